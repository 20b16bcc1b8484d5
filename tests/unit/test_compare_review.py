"""What a review found around the estimators: comparison, training, other programs."""

from __future__ import annotations

import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from elbo_helpers import make
from programs import BernoulliToy, EnumeratedMixture, GaussianToy, GlobalMean
from torch import nn

from inference import compare_estimators, fit, train_compare
from inference.elbo import LeaveOneOut
from inference.priming import prime
from inference.vectorize import can_vectorize
from ppl_models import PplError, Program, as_program
from ppl_models.errors import ProgramError, UnknownNameError

LUCK = 5.0
"""Standard errors that a mean may be off."""
N = 20_000
X = torch.linspace(-1.0, 2.0, 40)
ROWS = torch.linspace(-1.0, 1.0, 160).reshape(40, 4)


def loss_of(name, program, *args, **options):
    args = args or (program.data(),)
    return make(name, **options).differentiable_loss(program.model, program.guide, *args)


class InnerBits(nn.Module):
    """Bits in an inner plate, x outside of it."""

    def __init__(self):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(0.4))
        self.w = nn.Parameter(torch.tensor(0.8))

    def model(self, x):
        with pyro.plate("data", len(x), dim=-2):
            with pyro.plate("in", 3, dim=-1):
                c = pyro.sample("c", dist.Bernoulli(logits=torch.tensor(0.1)))
            pyro.sample("x", dist.Normal(self.w * c.sum(-1, keepdim=True), 0.5), obs=x[:, None])

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("in", 3, dim=-1):
            pyro.sample("c", dist.Bernoulli(logits=self.logit))


@pytest.mark.filterwarnings("ignore:[\\s\\S]*possibly invalid dependency:RuntimeWarning")
def test_a_comparison_does_without_enumeration_where_it_cannot_be():
    table = compare_estimators(InnerBits(), X[:4], estimators=["leave_one_out"], num_reps=40)
    assert "large sample" in str(table["reference"].values)
    assert table["bias_z"].sel(group="all").item() < LUCK


def functions(*, registered=True):
    """Plain functions that share networks, by ``pyro.module`` or as they are."""
    decoder, encoder = nn.Linear(2, 4), nn.Linear(4, 2)

    def model(x):
        if registered:
            pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        if registered:
            pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(encoder(x), 0.5).to_event(1))

    return model, guide, {"decoder": decoder, "encoder": encoder}


def copies(networks):
    return {n: {k: v.clone() for k, v in net.state_dict().items()} for n, net in networks.items()}


def assert_unchanged(networks, before):
    for name, net in networks.items():
        for key, value in net.state_dict().items():
            torch.testing.assert_close(value, before[name][key], rtol=0, atol=0)


TWICE = {"first": "pathwise", "second": "pathwise"}


@pytest.mark.parametrize("registered", [True, False])
def test_networks_of_plain_functions_stay_as_they_are(registered):
    model, guide, networks = functions(registered=registered)
    program = Program(model, guide, **({} if registered else networks))
    before = copies(networks)
    options = {"seeds": (0,), "epochs": 3, "learning_rate": 0.05, "batch_size": 20}
    curves = train_compare(program, ROWS, estimators=TWICE, **options)
    first, second = curves["train_loss"].values[:, 0]
    np.testing.assert_array_equal(first, second)
    assert first[0] != first[-1]
    assert_unchanged(networks, before)
    compare_estimators(program, ROWS[:10], estimators=["pathwise"], num_reps=4)
    assert_unchanged(networks, before)
    twin = Program(model, guide, **({} if registered else networks))
    prime(twin, {"x": ROWS[:10]}, None)
    state = {name: value + 1 for name, value in twin.state_dict().items()}
    unprimed = Program(model, guide, **({} if registered else networks))
    points = {"a": twin.state_dict(), "b": state}
    compare_estimators(unprimed, ROWS[:10], estimators=["pathwise"], num_reps=4, checkpoints=points)
    assert_unchanged(networks, before)


def test_a_program_of_functions_and_networks_trains():
    model, guide, networks = functions(registered=False)
    before = copies(networks)
    fit(Program(model, guide, **networks), ROWS, epochs=1, progress=False)
    table = compare_estimators(
        Program(model, guide, **networks), ROWS[:10], estimators=["pathwise"], num_reps=4
    )
    assert not str(table["note"].values[0])
    assert before.keys() == networks.keys()


class Formula(BernoulliToy):
    """With the exact ELBO of each datum."""

    def closed_form_elbo(self, x):
        q, log_q = self.logit.sigmoid(), nn.functional.logsigmoid(self.logit)
        log_not = nn.functional.logsigmoid(-self.logit)
        one, zero = (dist.Normal(b, self.scale.abs()).log_prob(x) for b in (1.0, 0.0))
        return q * (one - log_q) + (1 - q) * (zero - log_not) - math.log(2)


def test_the_bias_at_a_stationary_point_is_a_number():
    program, x = Formula(), X[:20]
    tight = {"tolerance_grad": 1e-12, "tolerance_change": 1e-14}
    optimizer = torch.optim.LBFGS(program.parameters(), max_iter=200, **tight)

    def closure():
        optimizer.zero_grad()
        loss = -program.closed_form_elbo(x).mean()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    names = ["enumerate", "leave_one_out"]
    z = compare_estimators(program, x, estimators=names, num_reps=40)["bias_z"]
    assert np.isfinite(z.values).all()
    np.testing.assert_array_equal(z.sel(estimator="enumerate").values, 0.0)


class BrokenFormula(GaussianToy):
    def closed_form_elbo(self, x):
        return -(self.m - x) @ torch.zeros(3)


def test_a_formula_that_fails():
    table = compare_estimators(BrokenFormula(), X[:10], estimators=["pathwise"], num_reps=4)
    assert "large sample" in str(table["reference"].values)
    with pytest.raises(PplError, match=r"closed_form_elbo of .* fails"):
        compare_estimators(
            BrokenFormula(), X[:10], estimators=["pathwise"], num_reps=4, reference="closed_form"
        )


class BernoulliOfSameName(BernoulliToy):
    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            b = pyro.sample("z", dist.Bernoulli(torch.full_like(self.logit, 0.5)))
            pyro.sample("x", dist.Normal(b, self.scale), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=self.logit))


@pytest.mark.parametrize(
    "name", ["pathwise", "sticking_the_landing", "iwae", "doubly_reparameterized"]
)
def test_a_second_program_of_the_same_names_is_checked(name):
    estimator, first, second = make(name, 4), GaussianToy(), BernoulliOfSameName()
    estimator.differentiable_loss(first.model, first.guide, X)
    with pytest.raises(ProgramError, match="'z'"):
        estimator.differentiable_loss(second.model, second.guide, X)


class Deep(GaussianToy):
    """The same names, one plate deeper."""

    def plates(self, x):
        return pyro.plate("data", len(x), dim=-2), pyro.plate("in", 3, dim=-1)

    def model(self, x):
        outer, inner = self.plates(x)
        with outer, inner:
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[:, None].expand(-1, 3))

    def guide(self, x):
        outer, inner = self.plates(x)
        with outer, inner:
            pyro.sample("z", dist.Normal(self.m, 1.0))


@pytest.mark.parametrize("name", ["iwae", "leave_one_out", "pathwise"])
def test_a_second_program_of_deeper_plates(name):
    used, fresh = make(name, 32), make(name, 32)
    first, second = GaussianToy(), Deep()
    used.differentiable_loss(first.model, first.guide, X)
    losses = []
    for estimator in (used, fresh):
        with pyro.validation_enabled(False):  # which refuses it, at the first site
            found = [estimator.loss(second.model, second.guide, X) for _ in range(8)]
        losses.append(torch.tensor(found))
    error = math.sqrt(sum(float(found.var()) / len(found) for found in losses))
    assert abs(float(losses[0].mean() - losses[1].mean())) < 2 * LUCK * error


class Wide(BernoulliToy):
    """Of data of another width."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            b = pyro.sample("b", dist.Bernoulli(torch.full_like(self.logit, 0.5)))
            pyro.sample("x", dist.Normal(b[:, None].expand(-1, 4), self.scale).to_event(1), obs=x)


def test_a_second_program_of_other_data():
    estimator = make("neural_baseline")
    for program, x in ((BernoulliToy(), X), (Wide(), ROWS)):
        loss = estimator.differentiable_loss(program.model, program.guide, x)
        loss.backward()
        assert program.logit.grad.isfinite()


class Decoder(nn.Module):
    """Of rows of 4, by two latents; ``decode`` may not take a dimension more."""

    def __init__(self, decode=None):
        super().__init__()
        self.net = nn.LSTM(2, 4) if decode is sequence_first else nn.Linear(2, 4)
        self.encoder = nn.Linear(4, 2)
        self.decode = decode or (lambda self, z, size: self.net(z))

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = self.decode(self, z, len(x))
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


def first_rows(self, z, size):
    return self.net(z.reshape(-1, 2)[:size])


def sequence_first(self, z, size):
    return self.net(z)[0] if z.dim() == 3 else self.net(z[None])[0][0]


@pytest.mark.parametrize(
    ("decode", "can"), [(None, True), (first_rows, False), (sequence_first, False)]
)
def test_what_can_be_vectorized(decode, can):
    program = as_program(Decoder(decode))
    prime(program, {"x": ROWS[:8]}, None)
    assert can_vectorize(program, {"x": ROWS[:8]}, None, 1) is can


def test_vectorization_is_decided_anew():
    estimator = make("pathwise", 3, vectorize_particles=None)
    options = {"epochs": 1, "batch_size": 20, "progress": False}
    for decode, expected in ((None, True), (first_rows, False), (None, True)):
        fit(Decoder(decode), ROWS, estimator=estimator, **options)
        assert estimator.vectorize_particles is expected


def test_a_bound_of_all_data_trains_with_one_batch():
    options = {"estimator": "iwae", "num_particles": 2, "epochs": 2, "progress": False}
    found = fit(GlobalMean(), {"x": X}, batch_size=len(X), **options)
    assert all(math.isfinite(row["train_loss"]) for row in found.history)


def test_a_weight_of_the_kl_term_where_it_is_summed_out():
    options = {"epochs": 1, "kl_warmup": 1, "batch_size": 20, "progress": False}
    with pytest.raises(PplError, match="kl_warmup"):
        fit(EnumeratedMixture(), {"x": X}, estimator="enumerate", **options)


def test_an_unknown_name_can_be_made_anew():
    error = UnknownNameError("estimator", "pathwize", ["pathwise"])
    assert str(type(error)(str(error))) == str(error)


def test_checkpoints_as_users_have_them():
    """The module's own state dict, the program, a fit."""
    toy = GaussianToy()
    before = copy.deepcopy(toy.state_dict())
    fitted = fit(toy, torch.randn(40), epochs=2, learning_rate=0.1, progress=False)
    points = {
        "before": before,
        "after": fitted,
        "again": toy,
        "whole": as_program(toy).state_dict(),
    }
    table = compare_estimators(
        toy, torch.randn(5), estimators=["pathwise"], num_reps=4, checkpoints=points
    )
    loss = dict(zip(points, table["loss"].sel(estimator="pathwise").values, strict=True))
    assert loss["after"] == loss["again"] == loss["whole"] != loss["before"]


def test_particles_beside_an_object_are_refused():
    with pytest.raises(PplError, match=r"num_particles=8 was given beside an estimator object"):
        fit(GaussianToy(), torch.randn(20), estimator=LeaveOneOut(2), num_particles=8)
