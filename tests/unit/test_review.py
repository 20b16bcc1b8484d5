"""Programs that used to be trained or measured wrongly without a word."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import EnumeratedMixture, GaussianToy, GlobalMean, tiny_images, tiny_vae
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import nn

from inference import evaluate, fit, log_weights
from inference.sampling import sample
from ppl_models import PplError, Program, ProgramError, as_program, auxiliary_loss, build

QUICK = {"epochs": 2, "batch_size": 16, "progress": False}
X = torch.randn(40)


class Components:
    """Three global means in a plate on the data's own dimension, as in the textbook mixture."""

    def model(self, x=None, *, size=1, num_data=None):
        n = size if x is None else len(x)
        with pyro.plate("components", 3, dim=-1):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", num_data or n, subsample=torch.arange(n), dim=-1):
            return pyro.sample("x", dist.Normal(mu.mean(), 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("components", 3, dim=-1):
            pyro.sample("mu", dist.Normal(0.0, 2.0))


@pytest.mark.parametrize("rows", [3, 4])
def test_a_global_plate_as_long_as_the_batch_is_still_global(rows):
    found = evaluate(Components(), {"x": torch.randn(rows)}, num_particles=2000, num_data=1000)
    kl = 3 * 0.5 * (4 - 1 - math.log(4))  # 2.42; its standard error at 2,000 draws is 0.08
    assert found.rate * 1000 == pytest.approx(kl, abs=0.4)
    assert found.iwae is None
    assert found.active_units is None


def test_global_latents_without_the_size_of_the_whole_are_refused():
    class NoNumData(GlobalMean):
        def model(self, x=None, *, size=1):
            return super().model(x, size=size)

    with pytest.raises(ProgramError, match=r"plate 'data' has size 8 instead of the 32 training"):
        fit(NoNumData(), X, **QUICK)
    fit(NoNumData(), X, **(QUICK | {"batch_size": 32}))  # one batch of all data is right


def test_scales_that_differ_between_model_and_guide_are_refused():
    toy = GaussianToy()
    program = Program(poutine.scale(toy.model, 0.1), toy.guide, toy=toy)
    with pytest.raises(ProgramError, match=r"'z' has scale 0.1 in the model but 1 in the guide"):
        fit(program, X, **QUICK)


def test_a_mask_on_one_side_is_refused():
    toy = GaussianToy()
    program = Program(lambda x: poutine.mask(toy.model, torch.tensor(True))(x), toy.guide, toy=toy)
    with pytest.raises(ProgramError, match="masked in the model or the guide alone"):
        fit(program, X, **QUICK)


def test_enumerated_latents_need_an_estimator_that_sums():
    for estimator in ("analytic_kl", "pathwise"):
        with pytest.raises(ProgramError, match="sums them out: 'enumerate'"):
            fit(EnumeratedMixture(), X, estimator=estimator, **QUICK)


def test_recorded_values_are_no_data_and_bits_are_of_masses_alone():
    vae = tiny_vae()

    def model(x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", vae.prior())
            px = vae.decode(z)
            pyro.deterministic("mean", px.mean, event_dim=3)
            return pyro.sample("x", px, obs=x)

    batch = {"x": tiny_images(5)}
    ours = evaluate(Program(model, vae.guide, vae=vae), batch, log_jacobian=0.0)
    plain = evaluate(vae, batch, log_jacobian=0.0)
    assert ours.elbo == pytest.approx(plain.elbo)
    assert ours.bits_per_dim == pytest.approx(plain.bits_per_dim)
    assert evaluate(tiny_vae("normal"), batch, log_jacobian=0.0).bits_per_dim is None


def test_a_factor_outside_the_data_plate_is_refused():
    toy = GaussianToy()

    def model(x):
        pyro.factor("extra", torch.tensor(-10.0))
        return toy.model(x)

    with pytest.raises(ProgramError, match=r"'extra' .*outside the data plate 'data'"):
        log_weights(Program(model, toy.guide, toy=toy), {"x": X})


@pytest.mark.parametrize("particles", [2, 10, 100, 1000])
def test_a_collapsed_posterior_has_numbers_too(particles):
    class Collapsed(GaussianToy):
        def model(self, x=None, *, size=1):
            with pyro.plate("data", size if x is None else len(x), dim=-1):
                pyro.sample("z", dist.Normal(0.0, 1.0))
                return pyro.sample("x", dist.Normal(self.b, 1.3), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(0.0, 1.0))

    found = evaluate(Collapsed(), {"x": X}, num_particles=particles)
    assert found.iwae_se == pytest.approx(0.0, abs=1e-6)
    assert found.ess == pytest.approx(1.0)


def _with_loss(of_toy, **where):
    def story(x):
        with pyro.plate("penalized", len(x), dim=-1):
            auxiliary_loss("commitment", torch.ones(len(x)), **where)
        return of_toy(x)

    return story


def test_an_auxiliary_loss_that_does_not_know_where_it_is_is_refused():
    """Its sign would be turned: the guide's log densities are subtracted."""
    toy = GaussianToy()
    with pytest.raises(ProgramError, match=r"'commitment' is in the guide.*in_guide=True"):
        fit(Program(toy.model, _with_loss(toy.guide), toy=toy), X, **QUICK)
    with pytest.raises(ProgramError, match=r"'commitment' is in the model.*leave in_guide out"):
        fit(Program(_with_loss(toy.model, in_guide=True), toy.guide, toy=toy), X, **QUICK)


def test_a_parameter_born_after_the_first_step_is_refused():
    calls = iter(range(1000))

    def model(x):
        late = pyro.param("late", torch.tensor(0.0)) if next(calls) > 5 else 0.0
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + late, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, 1.0))

    with pytest.raises(ProgramError, match=r"'late'\) came into being after the first step"):
        fit(Program(model, guide), X, **(QUICK | {"epochs": 20}))


def test_pyros_decaying_average_baseline_moves():
    class Baselined(nn.Module):
        def __init__(self):
            super().__init__()
            self.logit = nn.Parameter(torch.tensor(0.5))

        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                b = pyro.sample("b", dist.Bernoulli(0.5))
                pyro.sample("x", dist.Normal(b, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                baseline = {"baseline": {"use_decaying_avg_baseline": True}}
                pyro.sample("b", dist.Bernoulli(logits=self.logit), infer=baseline)

    options = QUICK | {"batch_size": 32, "estimator": "pyro.infer.TraceGraph_ELBO"}
    fitted = fit(Baselined(), X, **options)
    (baseline,) = [p for k, p in fitted.program.pyro_params.items() if "baseline" in k]
    assert not baseline.requires_grad
    assert bool(baseline.abs().sum() > 0)


def test_an_autoguides_unconstrained_site_counts_with_its_latent():
    def model(x=None, *, size=1, num_data=None):
        n = size if x is None else len(x)
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", num_data or n, subsample=torch.arange(n), dim=-1):
            pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    found = evaluate(Program(model, AutoNormal(model)), {"x": X}, num_particles=20)
    assert set(found.kl) == {"scale"}
    assert found.active_units is None


def test_modes_are_restored_and_dropout_is_off_in_evaluation():
    class Dropped(GaussianToy):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.5)
            self.frozen = nn.Dropout(0.5).eval()

        def model(self, x=None, *, size=1):
            with pyro.plate("data", size if x is None else len(x), dim=-1):
                z = pyro.sample("z", dist.Delta(torch.zeros(())))
                shift = self.dropout(torch.ones(1))
                return pyro.sample("x", dist.Normal(z + self.b + shift, self.s), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Delta(torch.zeros(())))

    program = Dropped().train()
    program.frozen.eval()
    assert len(log_weights(program, {"x": X[:1]}, 20).unique()) == 1
    sample(program, 3)
    evaluate(program, {"x": X})
    assert program.training
    assert program.dropout.training
    assert not program.frozen.training


def test_regression_targets_and_settings_of_the_model():
    class Regression(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 1)

        def model(self, x, y=None, noise=0.5):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                mean = self.linear(x).squeeze(-1) + z
                return pyro.sample("y", dist.Normal(mean, noise), obs=y)

        def guide(self, x, y):
            loc = pyro.param("loc", torch.tensor(0.0))
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(loc, 1.0))

    program = Regression()
    fit(program, {"x": torch.randn(40, 2), "y": torch.randn(40)}, **QUICK)
    assert as_program(program).fields == ("x", "y")


def test_float64_makes_float64_parameters():
    fitted = fit(GlobalMean(), X, precision="64", **QUICK)
    assert fitted.program.param("loc").dtype == torch.float64


def test_what_python_users_hand_over_by_mistake():
    fitted = fit(tiny_vae(), tiny_images(), **QUICK)
    assert evaluate(fitted, fitted.data.test).num_data == len(fitted.data.test)
    for wrong, message in (
        (lambda: fit(tiny_vae(), "digits", **QUICK), r"field 'x' is a str.*load_data"),
        (lambda: fit(GlobalMean, X, **QUICK), "GlobalMean is a class; make an object"),
        (lambda: evaluate(fitted, X), "evaluate takes a split.*got Tensor"),
        (lambda: evaluate(fitted, fitted.data), "evaluate takes a split.*got DataSet"),
    ):
        with pytest.raises(PplError, match=message):
            wrong()
    assert "60" not in repr(fitted.data.train)
    assert repr(fitted).startswith("FitResult(VAE, 2 epochs, best")
    assert len(repr(fitted.data)) < 200


def test_an_autoguide_over_local_latents_is_refused():
    def model(x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ProgramError, match=r"AutoNormal covers the latent\(s\) 'z' of the data"):
        fit(Program(model, AutoNormal(model)), X, **QUICK)


def test_a_resumed_run_is_not_shortened(tmp_path):
    fit(tiny_vae(), tiny_images(), run_dir=tmp_path, **(QUICK | {"epochs": 3}))
    with pytest.raises(PplError, match="is at epoch 3 already; give epochs above that, not 2"):
        fit(tiny_vae(), tiny_images(), run_dir=tmp_path, resume=True, **QUICK)


def test_networks_of_a_file_of_plain_functions_are_the_programs(tmp_path):
    (tmp_path / "plain_networks.py").write_text(
        "import pyro, torch\nimport pyro.distributions as dist\nfrom torch import nn\n"
        "decoder = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))\n"
        "def model(x=None, *, size=1):\n"
        "    pyro.module('decoder', decoder)\n"
        "    with pyro.plate('data', size if x is None else len(x), dim=-1):\n"
        "        z = pyro.sample('z', dist.Normal(torch.zeros(1), 1.).to_event(1))\n"
        "        return pyro.sample('x', dist.Normal(decoder(z), 1.).to_event(1), obs=x)\n"
        "def guide(x):\n"
        "    w = pyro.param('w', torch.zeros(1))\n"
        "    with pyro.plate('data', len(x), dim=-1):\n"
        "        pyro.sample('z', dist.Normal(w, 1.).to_event(1))\n"
    )
    program = as_program(build(str(tmp_path / "plain_networks.py")))
    fit(program, torch.randn(60, 4), **QUICK)
    state = program.state_dict()
    assert bool(state["networks.decoder.1.running_mean"].abs().sum() > 0)
    assert sum("decoder" in name and "weight" in name for name in state) == 2  # and none twice
    assert not program.networks["decoder"].training
