"""VQ-VAE, VQ-VAE-2 and the categorical VAE as programs: sites, bound, losses, use of codes."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from programs import tiny_images
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch.nn import functional as F

from inference import DataSet, evaluate, fit, from_tensors, load_data
from inference.checkpoint import load_checkpoint
from inference.elbo import make_estimator
from inference.sampling import decode, encode, reconstruct, sample
from inference.weights import log_weights, site_densities
from ppl_models import as_program
from ppl_models.categorical_vae import CategoricalVAE
from ppl_models.errors import PplError, ProgramError
from ppl_models.quantized import UniformCodes
from ppl_models.vqvae import VQVAE
from ppl_models.vqvae2 import VQVAE2

SMALL = {"num_codes": 6, "code_dim": 3, "hidden_channels": 8, "residual_blocks": 1}
QUICK = {"batch_size": 20, "epochs": 2, "progress": False, "device": "cpu"}
BOTH = [VQVAE, VQVAE2]


def make(kind=VQVAE, **options):
    torch.manual_seed(0)
    return kind((1, 8, 8), **(SMALL | options))


def images(size=60):
    return F.interpolate(tiny_images(size, binary=False), (8, 8), mode="bilinear")


@pytest.fixture
def data() -> DataSet:
    return from_tensors(images())


def traced(program, x):
    guide = poutine.trace(program.guide).get_trace(x)
    return guide, poutine.trace(poutine.replay(program.model, trace=guide)).get_trace(x)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_vectors_are_those_of_the_codes_and_certain_in_the_model(kind, mode):
    """In a step of training too, in which the codebook moves."""
    program = getattr(make(kind, restart_below=0.5), mode)()
    guide, model = traced(program, images(5))
    for site, book in program.codebooks.items():
        z = site.replace("codes", "z")
        codes = guide.nodes[site]["value"]
        assert codes.shape == (5, *program.grids[site])
        assert torch.equal(guide.nodes[z]["value"], book.look_up(codes))
        assert float(model.nodes[z]["fn"].log_prob(guide.nodes[z]["value"]).abs().max()) == 0.0
        assert torch.equal(program.eval().encode_codes(images(5))[site], codes)


@pytest.mark.parametrize("kind", BOTH)
def test_the_elbo_is_distortion_and_the_bits_of_the_codes(kind):
    program = make(kind)
    x = images(7)
    found = evaluate(program, {"x": x}, num_particles=3)
    places = sum(h * w for h, w in program.grids.values())
    assert found.rate == pytest.approx(places * math.log(6), rel=1e-6)
    grids = [book.look_up(program.encode_codes(x)[s]) for s, book in program.codebooks.items()]
    with torch.no_grad():
        log_p = program.decode(*grids).log_prob(x)
    assert found.distortion == pytest.approx(-float(log_p.mean()), rel=1e-5)
    assert found.iwae == pytest.approx(found.elbo, rel=1e-6)  # a point: every draw is the same
    assert found.elbo_se == pytest.approx(0.0, abs=1e-9)
    assert not found.deterministic_guide  # and yet a bound: the point is one of finitely many


def test_the_elbo_is_a_bound():
    """log p(x) summed over all grids of a codebook small enough."""
    program = make(num_codes=2, grid=(2, 2))
    x = images(5)
    every = torch.cartesian_prod(*[torch.arange(2)] * 4).reshape(16, 2, 2)
    with torch.no_grad():
        log_p_x = torch.stack(
            [
                program.decode(program.codebook.look_up(grid.expand(5, 2, 2))).log_prob(x)
                for grid in every
            ]
        ).logsumexp(0) - 4 * math.log(2)
    assert bool((log_weights(program, {"x": x})[0] <= log_p_x + 1e-4).all())


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_losses_of_the_guide_are_minimized_by_us_and_by_stock_pyro(kind, update):
    program = make(kind, codebook_update=update, commitment_cost=0.3)
    x = images(5)
    found = program.eval().quantize(x)
    parts = [part for q in found.values() for part in (q.commitment, q.codebook)]
    losses = [part.sum() for part in parts if part is not None]
    assert len(losses) == len(found) * (2 if update == "gradient" else 1)
    expected = sum(losses) - 5 * evaluate(program, {"x": x}).elbo
    for estimator in (Trace_ELBO(), "pathwise", "iwae"):
        loss = make_estimator(estimator).differentiable_loss(program.model, program.guide, x)
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    gradients = {}
    for name in ("analytic_kl", "pathwise"):
        program.zero_grad()
        make_estimator(name).loss_and_grads(program.model, program.guide, x)
        gradients[name] = [p.grad.clone() for p in program.parameters()]
    program.zero_grad()
    Trace_ELBO().differentiable_loss(program.model, program.guide, x).backward()
    for ours in gradients.values():
        for a, p in zip(ours, program.parameters(), strict=True):
            torch.testing.assert_close(a, p.grad)


def test_losses_are_reported_apart():
    program = make(VQVAE2, codebook_update="gradient")
    x = images(6)
    found = evaluate(program, {"x": x})
    quantized = program.eval().quantize(x)
    assert set(found.auxiliary) == {
        *("commitment_top", "commitment_bottom", "codebook_top", "codebook_bottom")
    }
    mean = float(quantized["codes_bottom"].codebook.detach().mean())
    assert found.auxiliary["codebook_bottom"] == pytest.approx(mean, rel=1e-5)
    assert set(encode(program, {"x": x})) == {"codes_top", "z_top", "codes_bottom", "z_bottom"}


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_use_of_codes_is_counted_over_all_batches(compile):
    """Against a count by hand; a batch alone has fewer codes."""
    program = make(VQVAE2, num_codes=12)
    x = images(50)
    train = from_tensors({"x": x}).train
    found = evaluate(program, train.batches(7), compile=compile)
    seen = {site: [0] * 12 for site in program.grids}
    for batch in train.batches(7):
        for site, codes in program.encode_codes(batch["x"]).items():
            for code in codes.flatten().tolist():
                seen[site][code] += 1
    for site, counts in seen.items():
        total = sum(counts)
        entropy = -sum(n / total * math.log(n / total) for n in counts if n)
        assert found.perplexity[site] == pytest.approx(math.exp(entropy), rel=1e-9)
        assert found.dead_codes[site] == sum(n == 0 for n in counts)
        assert total == len(train) * math.prod(program.grids[site])


def test_draws_of_one_hot_latents_are_counted_too():
    program = CategoricalVAE((1, 8, 8), num_latents=3, num_states=4, hidden_dims=(8,))
    densities = site_densities(program, {"x": images(5)}, num_particles=2)
    assert int(densities.states["z"].sum()) == 2 * 5 * 3
    assert densities.states["z"].shape[1] == 4


@pytest.mark.parametrize("kind", BOTH)
def test_training_starts_on_clusters_and_logs_the_use_of_codes(kind, data):
    program = make(kind)
    fitted = fit(program, data, **QUICK)
    assert all(bool(book.started) for book in program.codebooks.values())
    for site in program.grids:
        last = fitted.history[-1]
        assert 1 <= last[f"valid_perplexity_{site}"] <= 6
        assert 0 <= last[f"valid_dead_{site}"] < 6
    assert f"valid_commitment{site.removeprefix('codes')}" in last
    assert last["train_loss"] < fitted.history[0]["train_loss"]


def test_a_trained_codebook_is_not_started_again(data):
    program = make()
    fit(program, data, **QUICK)
    assert not program.start_from_data(data.train.batches(20))
    untouched = make(kmeans_start=False)
    assert not untouched.start_from_data(data.train.batches(20))
    assert not bool(untouched.codebook.started)


def test_the_start_puts_codes_on_features(data):
    program = make(grid=(4, 4))
    before = program.fingerprint()
    assert program.start_from_data(data.train.batches(20))
    assert program.fingerprint() != before
    found = evaluate(program, data.train)
    assert found.dead_codes["codes"] == 0


@pytest.mark.parametrize("kind", BOTH)
def test_a_start_looks_at_as_many_features_as_there_are_codes(kind, data, monkeypatch):
    monkeypatch.setattr("ppl_models.quantized.START_SAMPLE", 4)
    program = make(kind, num_codes=30)
    assert program.start_from_data(data.train.batches(2))
    assert all(len(book.e().unique(dim=0)) == 30 for book in program.codebooks.values())


def test_data_smaller_than_the_codebook_are_refused(data):
    program = make(num_codes=500, grid=(2, 2))
    with pytest.raises(ProgramError, match=r"500 codes needs as many.*the data have 192"):
        fit(program, data, **QUICK)


def test_the_codebook_is_in_the_checkpoint_and_a_resumed_run_ends_the_same(data, tmp_path):
    whole = fit(make(restart_below=0.5), data, run_dir=tmp_path / "a", **QUICK).program
    fit(make(restart_below=0.5), data, run_dir=tmp_path / "b", **(QUICK | {"epochs": 1}))
    again = fit(make(restart_below=0.5), data, run_dir=tmp_path / "b", resume=True, **QUICK).program
    saved = load_checkpoint(tmp_path / "a" / "checkpoints" / "last.ckpt")["program"]
    assert {"owner.codebook.vectors", "owner.codebook.counts", "owner.codebook.sums"} <= set(saved)
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_stock_pyro_trains_it():
    pyro.clear_param_store()
    program = make()
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(images(20)) for _ in range(30)]
    assert losses[-1] < losses[0]
    assert bool((program.codebook.counts != 1).all())  # it has learned
    pyro.clear_param_store()


@pytest.mark.parametrize("kind", BOTH)
def test_it_draws_reconstructs_and_decodes(kind):
    program = make(kind)
    drawn = sample(program, 4)
    assert drawn["x"].shape == (4, 1, 8, 8)
    codes = program.encode_codes(images(4))
    again = reconstruct(program, {"x": images(4)})["x"]
    torch.testing.assert_close(decode(program, codes), again)
    for site, grid in program.grids.items():
        assert drawn[site].shape == (4, *grid)
        assert drawn[site].dtype == torch.int64


def test_the_lower_codes_depend_on_the_upper_ones():
    program = make(VQVAE2, num_codes=32, code_dim=4).eval()
    x = images(40)
    before = program.encode_codes(x)
    with torch.no_grad():
        program.codebook_top.vectors.copy_(10 * torch.randn(32, 4))
    after = program.encode_codes(x)
    assert bool((after["codes_bottom"] != before["codes_bottom"]).any())


def test_the_lower_codes_stand_for_what_the_upper_ones_leave():
    """What the upper vectors say is taken off the lower features, and put to the lower vectors."""
    program = make(VQVAE2).eval()
    quantized, decoded = [], []
    program.codebook_bottom.register_forward_pre_hook(lambda m, i: quantized.append(i[0]))
    program.decoder.register_forward_pre_hook(lambda m, i: decoded.append(i[0]))
    top, bottom = (
        (3, book.code_dim, *grid)
        for book, grid in zip(program.codebooks.values(), program.grids.values(), strict=True)
    )
    for bias in (0.0, 2.5):
        with torch.no_grad():
            for p in program.spread.parameters():
                p.fill_(0.0)
            list(program.spread.parameters())[-1].fill_(bias)
            program.quantize(images(3))
            program.decode(torch.zeros(top), torch.ones(bottom))
    torch.testing.assert_close(quantized[1], quantized[0] - 2.5)
    above, both = decoded[1].chunk(2, dim=-3)
    torch.testing.assert_close(above, torch.full_like(above, 2.5))
    torch.testing.assert_close(both, torch.full_like(both, 3.5))


def test_a_gradient_of_the_reconstruction_reaches_the_encoder_of_the_upper_codes():
    program = make(VQVAE2).eval()
    found = program.quantize(images(3))
    program.decode(*(q.vectors for q in found.values())).log_prob(images(3)).sum().backward()
    assert all(p.grad is not None for p in program.encoder_top.parameters())


def test_a_learned_prior_takes_the_place_of_the_uniform_one():
    """Its log probability is what the rate becomes; y goes through to it."""

    class Learned(UniformCodes):
        def forward(self, y=None):
            self.seen = y
            return super().forward(y)

    program = make()
    program.code_prior = Learned(6, program.grids["codes"])
    program.code_prior.logits[0] = 2.0
    x = images(4)
    codes = program.encode_codes(x)["codes"]
    expected = -program.code_prior.logits.log_softmax(0)[codes].sum((1, 2)).mean()
    assert evaluate(program, {"x": x}).rate == pytest.approx(float(expected), rel=1e-5)
    program.model(x, y=torch.arange(4))
    assert program.code_prior.seen.tolist() == [0, 1, 2, 3]
    assert "y" not in as_program(program).fields  # data without labels serve


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": (5, 5)}, "grid of 5×5 does not fit images of 8×8.*4×4, 2×2, 1×1"),
        ({"x_shape": (64,)}, "need images"),
        ({"x_shape": (1, 3, 3)}, "cannot be halved 2 times"),
        ({"kind": VQVAE2, "top_grid": (3, 3)}, "grid of 3×3 does not fit images of 2×2"),
    ],
)
def test_grids_that_do_not_fit_are_refused(options, message):
    kind = options.pop("kind", VQVAE)
    with pytest.raises(ProgramError, match=message):
        kind(**({"x_shape": (1, 8, 8)} | SMALL | options))


def test_images_of_another_size_are_refused():
    message = r"made for images \(1, 8, 8\), got \(1, 16, 8\); resize"
    with pytest.raises(ProgramError, match=message):
        make().encode_codes(torch.rand(2, 1, 16, 8))
    with pytest.raises(PplError, match=message):
        fit(make(), torch.rand(50, 1, 16, 8), **QUICK)


def test_codes_out_of_range_are_refused():
    with pytest.raises(ProgramError, match="codes from 0 to 6, but the codebook has 6: 0 to 5"):
        decode(make(), {"codes": torch.tensor([[[0, 1], [2, 6]]])})


def test_a_start_that_fails_says_so():
    class Broken(VQVAE):
        def start_from_data(self, batches):
            raise KeyError("oops")

    program = Broken((1, 8, 8), **SMALL)
    with pytest.raises(ProgramError, match=r"start_from_data of Broken fails: KeyError.*oops"):
        fit(program, images(), **QUICK)


@pytest.mark.parametrize("estimator", ["leave_one_out", "gumbel_softmax", "vimco"])
def test_the_categorical_vae_is_trained_by_draws(estimator):
    data = load_data("digits")
    program = CategoricalVAE((1, 8, 8), num_latents=4, num_states=4, hidden_dims=(32,))
    options = QUICK | {"batch_size": 200, "learning_rate": 5e-3, "epochs": 4}
    fitted = fit(program, data, estimator=estimator, num_particles=2, **options)
    assert fitted.history[-1]["valid_elbo"] > fitted.history[0]["valid_elbo"]


def test_the_categorical_vae_says_which_estimators_serve_it():
    program = CategoricalVAE((1, 8, 8), num_latents=4, num_states=4)
    with pytest.raises(ProgramError, match=r"guide site 'z' is OneHotCategorical.*leave_one_out"):
        fit(program, images(), **QUICK)
    with pytest.raises(ProgramError, match="two states or more"):
        CategoricalVAE(num_states=1)
