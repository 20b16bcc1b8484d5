"""The estimators in ``fit``: by name, with their own parameters, vectorized where it is right."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import GlobalMean, tiny_images, tiny_vae
from torch import nn

from inference import ESTIMATORS, fit
from inference.cli import main
from inference.elbo import GumbelSoftmax, Pathwise, make_estimator
from inference.priming import prime
from inference.vectorize import can_vectorize
from ppl_models import PplError, ProgramError, as_program

CONTINUOUS = {"pathwise", "analytic_kl", "sticking_the_landing", "iwae", "doubly_reparameterized"}
DISCRETE = {"enumerate", "disarm", "rebar", "relax", "gumbel_softmax", "straight_through"}


class TinyBits(nn.Module):
    """z ~ Bernoulli(prior)^3, x | z ~ Bernoulli(decoder(z)): a discrete VAE."""

    def __init__(self):
        super().__init__()
        self.prior = nn.Parameter(torch.zeros(3))
        self.encoder, self.decoder = nn.Linear(16, 3), nn.Linear(3, 16)

    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior).to_event(1))
            logits = self.decoder(z).unflatten(-1, (1, 4, 4))
            return pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=self.encoder(x.flatten(1))).to_event(1))


class ConvVAE(nn.Module):
    """Its decoder takes one batch dimension, as convolutions do."""

    def __init__(self, flatten: bool = True):
        super().__init__()
        self.encoder = nn.Linear(16, 2)
        self.decoder = nn.ConvTranspose2d(2, 1, 4)

    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample(
                "x", dist.Bernoulli(logits=self.decoder(z[..., None, None])).to_event(3), obs=x
            )

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.encoder(x.flatten(1)), 0.3).to_event(1))


class Centered(nn.Module):
    """It runs in an outermost plate, and gives other numbers there: a mean over dimension 0."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.loc.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z - z.mean(0), 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.loc, 1.0))


def quick(program, data, **options):
    defaults = {"epochs": 3, "batch_size": 16, "learning_rate": 1e-2, "progress": False}
    return fit(program, data, **(defaults | options))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_trains_by_its_name(name):
    program = TinyBits() if name in DISCRETE else tiny_vae()
    fitted = quick(program, tiny_images(200), estimator=name, num_particles=4, epochs=10)
    losses = [row["train_loss"] for row in fitted.history]
    assert losses[-1] < losses[0] - 0.3
    assert fitted.elbo > fitted.history[0]["valid_elbo"]


@pytest.mark.parametrize("name", sorted(CONTINUOUS))
def test_discrete_latents_are_refused_before_the_first_step(name):
    program = TinyBits()
    before = {k: v.clone() for k, v in program.state_dict().items()}
    with pytest.raises(ProgramError, match=r"guide site 'z' is Bernoulli.*Use '"):
        quick(program, tiny_images(), estimator=name)
    assert all(torch.equal(v, before[k]) for k, v in program.state_dict().items())


@pytest.mark.parametrize("name", sorted(DISCRETE))
def test_continuous_latents_are_refused_before_the_first_step(name):
    with pytest.raises(ProgramError, match=r"use '.*pathwise'"):
        quick(tiny_vae(), tiny_images(), estimator=name)


@pytest.mark.parametrize("name", ["leave_one_out", "vimco", "reweighted_wake_sleep"])
def test_too_few_particles(name):
    with pytest.raises(PplError, match=f"{name}' needs at least 2 particles, got num_particles=1"):
        quick(tiny_vae(), tiny_images(), estimator=name)


@pytest.mark.parametrize("name", ["neural_baseline", "relax"])
def test_its_own_parameters_are_trained_kept_and_resumed(name, tmp_path):
    def run(folder, **options):
        torch.manual_seed(0)
        options = {"run_dir": folder, "estimator": name, "epochs": 4, "resume": True} | options
        quick(TinyBits(), tiny_images(100), **options)
        return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", epochs=2)
    parts = run(tmp_path / "parts")
    kept = whole["estimator"]
    assert any("network" in key for key in kept)
    assert float(sum(v.abs().sum() for k, v in kept.items() if k.endswith("last.weight"))) > 0 or (
        float(kept["site_z_network.2.weight"].abs().sum()) > 0
    )
    for part in ("program", "estimator"):
        assert whole[part].keys() == parts[part].keys()
        for key, value in whole[part].items():
            assert torch.equal(parts[part][key], value), key


def primed(program, x):
    program = as_program(program)
    return program, {"x": x}, prime(program, {"x": x}, None)


@pytest.mark.parametrize(
    ("make", "x", "possible"),
    [
        (tiny_vae, tiny_images(5), True),
        (TinyBits, tiny_images(5), True),
        (GlobalMean, torch.randn(5), True),
        (ConvVAE, tiny_images(5), False),
        (Centered, torch.randn(5), False),
    ],
    ids=["vae", "bits", "global", "convolution", "other numbers"],
)
def test_particles_are_vectorized_where_the_densities_are_the_same(make, x, possible):
    program, batch, _ = primed(make(), x)
    state, modes = torch.get_rng_state(), [m.training for m in program.modules()]
    assert can_vectorize(program, batch, None, 1) is possible
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in program.modules()] == modes


def test_fifty_particles_in_one_pass(monkeypatch):
    """The networks run once a step, not fifty times."""
    vae, calls = tiny_vae(), []
    vae.decoder.register_forward_hook(lambda *_: calls.append(1) if vae.training else None)
    quick(vae, tiny_images(100), estimator="iwae", num_particles=50, epochs=1, batch_size=80)
    assert len(calls) <= 3  # one step, and the look at the structure before it


def test_convolutions_get_their_particles_one_by_one():
    fitted = quick(ConvVAE(), tiny_images(100), estimator="iwae", num_particles=4)
    assert fitted.history[-1]["train_loss"] < fitted.history[0]["train_loss"]


def test_an_object_keeps_what_it_was_told():
    estimator = Pathwise(num_particles=3)
    quick(tiny_vae(), tiny_images(), estimator=estimator)
    assert not estimator.vectorized
    soft = GumbelSoftmax(temperature=0.3)
    assert quick(TinyBits(), tiny_images(), estimator=soft).history[-1]["train_loss"] > 0


def test_by_name_it_is_left_open_whether_particles_are_vectorized():
    assert make_estimator("pathwise", 4).vectorize_particles is None
    assert make_estimator("iwae", 4, vectorize_particles=True).vectorized


def test_the_command_line_takes_the_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = "train vae --data digits --estimator iwae --num_particles 8 --epochs 1 --out run"
    assert main(command.split()) == 0
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    for name, cls in ESTIMATORS.items():
        assert name in listed
        assert cls.reference in listed
    wrong = "train vae --data digits --estimator leave_one_out --epochs 1 --out other"
    assert main(wrong.split()) != 0
    assert "needs at least 2 particles" in capsys.readouterr().err


@pytest.mark.cuda
@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_trains_on_cuda(name):
    program = TinyBits() if name in DISCRETE else tiny_vae()
    fitted = quick(program, tiny_images(200), estimator=name, num_particles=4, device="cuda")
    assert next(fitted.program.parameters()).is_cuda
    assert fitted.history[-1]["train_loss"] < fitted.history[0]["train_loss"]


def test_left_open_it_loops_in_stock_pyro():
    """An estimator by name, used outside of ``fit``: nobody has asked the program."""
    toy = TinyBits()
    loss = make_estimator("leave_one_out", 3).differentiable_loss(
        toy.model, toy.guide, tiny_images(4)
    )
    assert torch.isfinite(loss)
