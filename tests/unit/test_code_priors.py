"""A prior over a quantizer's codes, and the two composed into one program."""

from __future__ import annotations

import math

import pytest
import torch
from autoregressive_helpers import all_grids
from pyro.infer import Trace_ELBO

from inference import evaluate, fit, from_tensors
from inference.code_priors import check_fingerprint, code_data, facts_of_codes
from inference.drawing import Sharpened
from inference.sampling import sample
from inference.testing import check_program
from ppl_models import PplError, ProgramError
from ppl_models.vae import VAE
from ppl_models.vqvae import VQVAE
from ppl_models.vqvae2 import VQVAE2
from ppl_models.vqvae_prior import vqvae_prior, with_prior

BITS = {"likelihood": "bernoulli", "code_dim": 3, "hidden_channels": 6, "residual_blocks": 1}
NETWORK = {"channels": 8, "num_layers": 2, "num_heads": 2}


def images(count=60):
    x = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return {"x": (x > 0.5).float(), "y": torch.arange(count) % 3}


def quantizer(levels=1, num_codes=5):
    torch.manual_seed(0)
    if levels == 1:
        return VQVAE((1, 8, 8), num_codes, grid=(2, 2), kmeans_start=False, **BITS).eval()
    options = {"grid": (4, 4), "top_grid": (2, 2), "kmeans_start": False}
    return VQVAE2((1, 8, 8), num_codes, **options, **BITS).eval()


def prior_of(program, **options):
    torch.manual_seed(1)
    return vqvae_prior(**facts_of_codes(program), **NETWORK | options)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("network", ["pixelcnn", "transformer"])
@pytest.mark.parametrize("classes", [False, True])
def test_total_bits_are_those_by_hand(levels, network, classes):
    program = quantizer(levels)
    options = {"class_conditional": True, "num_classes": 3} if classes else {}
    prior = prior_of(program, network=network, **options)
    composed, batch = with_prior(program, prior), images(12)
    with torch.no_grad():
        codes, y = program.encode_codes(batch["x"]), batch["y"] if classes else None
        if levels == 1:
            log_prior = {"codes": prior.prior(y).log_prob(codes["codes"])}
            vectors = [program.codebook.look_up(codes["codes"])]
        else:
            top, bottom = codes["codes_top"], codes["codes_bottom"]
            log_prior = {
                "codes_top": prior.prior.top(y).log_prob(top),
                "codes_bottom": prior.prior.bottom(top, y).log_prob(bottom),
            }
            vectors = [program.codebook_top.look_up(top), program.codebook_bottom.look_up(bottom)]
        log_image = program.decode(*vectors).log_prob(batch["x"])
    found = evaluate(composed, batch if classes else {"x": batch["x"]})
    nats = float((sum(log_prior.values()) + log_image).mean())
    assert found.bits_per_dim == pytest.approx(-nats / 64 / math.log(2), rel=1e-5)
    for site, log_prob in log_prior.items():
        assert found.kl[site] == pytest.approx(-float(log_prob.mean()), rel=1e-5)
    assert found.distortion == pytest.approx(-float(log_image.mean()), rel=1e-5)
    uniform = evaluate(program, {"x": batch["x"]})
    places = sum(grid[0] * grid[1] for grid in program.grids.values())
    assert uniform.rate == pytest.approx(places * math.log(5), rel=1e-5)


@pytest.mark.parametrize("levels", [1, 2])
def test_prior_and_composition_keep_the_contract(levels):
    program = quantizer(levels)
    prior = prior_of(program, class_conditional=True, num_classes=3)
    codes = program.encode_codes(images(6)["x"]) | {"y": images(6)["y"]}
    check_program(prior, codes)
    check_program(with_prior(program, prior).requires_grad_(), images(6))


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("network", ["pixelcnn", "transformer"])
def test_particles_in_one_pass_are_those_one_by_one(levels, network):
    """Stock Pyro puts their plate before the data's, so grids come as (K, B, h, w)."""
    program, batch = quantizer(levels), images(5)
    options = {"class_conditional": True, "num_classes": 3, "network": network}
    composed = with_prior(program, prior_of(program, **options)).eval()
    losses = [
        Trace_ELBO(3, max_plate_nesting=1, vectorize_particles=v).loss(
            composed.model, composed.guide, batch["x"], batch["y"]
        )
        for v in (False, True)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_probabilities_of_both_levels_sum_to_one():
    torch.manual_seed(0)
    grids = {"codes_top": (1, 2), "codes_bottom": (2, 2)}
    pair = vqvae_prior(grids, 2, **NETWORK).double().requires_grad_(False).prior
    tops, bottoms = all_grids(2, 1, 2), all_grids(2, 2, 2)
    of_top = pair.top().log_prob(tops).exp()
    given = torch.stack([pair.bottom(top.expand(16, 1, 2)).log_prob(bottoms) for top in tops])
    assert torch.allclose(given.exp().sum(1), torch.ones(4).double())
    assert float((of_top[:, None] * given.exp()).sum()) == pytest.approx(1, abs=1e-12)
    assert not torch.allclose(given[0], given[1])


def test_codes_are_a_data_set():
    program, data = quantizer(2), from_tensors(images())
    codes = code_data(program, data)
    assert [len(codes.split(part)) for part in ("train", "valid", "test")] == [48, 6, 6]
    batch = next(codes.test.batches(6))
    assert {k: tuple(v.shape) for k, v in batch.items()} == {
        "codes_top": (6, 2, 2),
        "codes_bottom": (6, 4, 4),
        "y": (6,),
    }
    again = program.encode_codes(data.test.tensors["x"])
    assert torch.equal(batch["codes_top"], again["codes_top"])
    assert codes.info.num_classes == 3


def test_a_prior_that_is_trained_beats_the_uniform_one():
    program = quantizer()
    x = torch.zeros(200, 1, 8, 8)
    x[::2, :, :4] = 1.0
    data = from_tensors({"x": x})
    prior = fit(prior_of(program), code_data(program, data), epochs=30, batch_size=20)
    composed = with_prior(program, prior)
    assert evaluate(composed, data.test).rate < 0.5 * evaluate(program, data.test).rate
    before = program.fingerprint()
    drawn = sample(composed, 4, sharpened=Sharpened(0.9, 3, progress=False))
    assert drawn["x"].shape == (4, 1, 8, 8)
    assert drawn["codes"].shape == (4, 2, 2)
    assert composed.fingerprint() == before == program.fingerprint()
    assert type(program.code_prior).__name__ == "UniformCodes"  # it was copied


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: with_prior(VAE((1, 8, 8)), prior_of(quantizer())), "VAE has no codes"),
        (lambda: code_data(VAE((1, 8, 8)), images()), "VAE has no codes to learn"),
        (
            lambda: with_prior(quantizer(num_codes=4), prior_of(quantizer())),
            "over 2×2 places of 5 codes, but VQVAE has 2×2 places of 4 codes",
        ),
        (
            lambda: with_prior(quantizer(2), prior_of(quantizer())),
            "but VQVAE2 has 2×2 places of 5 codes and 4×4 places of 5 codes",
        ),
        (lambda: with_prior(quantizer(), quantizer()), "the prior is over no codes"),
        (lambda: vqvae_prior({"codes": (2, 2)}, 5, network="rnn"), "unknown network 'rnn'"),
        (lambda: vqvae_prior({"z": (2, 2)}, 5), "codes stand at the sites"),
        (lambda: vqvae_prior({"codes": (2, 2)}, 1), "num_codes must be a whole number"),
        (
            lambda: vqvae_prior({"codes": (2, 2)}, 5, class_conditional=True),
            "needs labels",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(make, message):
    with pytest.raises(PplError, match=message):
        make()


def test_codes_out_of_range_and_missing_labels_are_refused():
    prior = prior_of(quantizer())
    with pytest.raises(PplError, match=r"outside the support.*from 4 to 7"):
        fit(prior, {"codes": torch.arange(160).reshape(40, 2, 2) % 8}, epochs=1)
    prior = prior_of(quantizer(), class_conditional=True, num_classes=3)
    with pytest.raises(ProgramError, match="data without labels"):
        fit(prior, {"codes": torch.zeros(40, 2, 2, dtype=torch.long)}, epochs=1)


def test_another_codebook_is_refused():
    program = quantizer()
    check_fingerprint(program, None, "runs/vqvae")
    check_fingerprint(program, program.fingerprint(), "runs/vqvae")
    with pytest.raises(PplError, match="trained on codes of the codebook 0123, but runs/vqvae now"):
        check_fingerprint(program, "0123", "runs/vqvae")
