"""The mode of any program: closed forms, supports, discrete latents, refusals."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import GaussianToy
from torch.distributions import constraints

from inference import map_estimate
from ppl_models.errors import PplError, ProgramError


def linear_regression(x, y):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weights, 0.5), obs=y)


@pytest.mark.parametrize(
    ("optimizer", "learning_rate", "steps"),
    [("Adam", 0.05, 2000), ("LBFGS", 1.0, 20), ("SGD", 2e-3, 2000)],
)
def test_ridge_regression_in_closed_form(optimizer, learning_rate, steps):
    x = torch.randn(40, 3)
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.5 * torch.randn(40)
    expected = torch.linalg.solve(x.T @ x / 0.25 + torch.eye(3) / 4, x.T @ y / 0.25)
    found = map_estimate(
        linear_regression,
        {"x": x, "y": y},
        optimizer=optimizer,
        learning_rate=learning_rate,
        max_steps=steps,
        tolerance=0,
    )
    assert torch.allclose(found.values["weights"], expected, atol=1e-3)
    assert len(found.trajectory) == steps + 1
    assert found.log_joint >= found.trajectory[0]


def test_the_mode_of_the_values_not_of_their_logarithm():
    """Gamma(3, 2) has its mode at (3 − 1) / 2; of the logarithm's density it is 3 / 2."""

    def model():
        pyro.sample("rate", dist.Gamma(3.0, 2.0))

    found = map_estimate(model, learning_rate=0.05)
    assert float(found.values["rate"]) == pytest.approx(1.0, abs=1e-2)
    assert found.converged


def test_constrained_vectors_and_local_latents():
    def model(counts):
        chance = pyro.sample("chance", dist.Dirichlet(torch.full((3,), 2.0)))
        with pyro.plate("data", len(counts), dim=-1):
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(shift, 1.0), obs=torch.ones(len(counts)))
            pyro.sample("counts", dist.Categorical(chance), obs=counts)

    counts = torch.tensor([0] * 6 + [1] * 3 + [2])
    found = map_estimate(model, counts, learning_rate=0.05, max_steps=2000)
    assert torch.allclose(found.values["chance"], torch.tensor([7.0, 4.0, 2.0]) / 13, atol=2e-3)
    assert torch.allclose(found.values["shift"], torch.full((10,), 0.5), atol=1e-2)


def test_discrete_latents_are_summed_out():
    """Two clusters: the mode of the means, with the memberships summed out."""

    def model(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    x = torch.cat([torch.randn(30) - 4, torch.randn(30) + 4])
    found = map_estimate(model, x, init={"loc": torch.tensor([-1.0, 1.0])}, learning_rate=0.1)
    loc = found.values["loc"]
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(loc, 1.0))
    expected = mixture.log_prob(x).sum() + dist.Normal(0.0, 10.0).log_prob(loc).sum()
    assert found.log_joint == pytest.approx(float(expected), rel=1e-5)
    assert torch.allclose(loc, torch.stack([x[:30].mean(), x[30:].mean()]), atol=0.05)


def test_factors_and_improper_sites():
    def model(target):
        place = pyro.sample("place", dist.ImproperUniform(constraints.real, (), (2,)))
        pyro.factor("score", -(place - target).square().sum())

    target = torch.tensor([1.0, 2.0])
    with pytest.raises(
        ProgramError, match=r"'place' .* cannot be drawn from.*init=\{'place': value\}"
    ):
        map_estimate(model, target)
    found = map_estimate(model, target, init={"place": torch.zeros(2)}, learning_rate=0.05)
    assert torch.allclose(found.values["place"], target, atol=1e-2)
    assert "place (2,)" in repr(found)


def test_an_object_with_model_and_guide_keeps_its_parameters():
    toy = GaussianToy()
    before = {name: p.detach().clone() for name, p in toy.named_parameters()}
    seen = []
    found = map_estimate(
        toy, torch.randn(4), max_steps=5, tolerance=0, callback=lambda *at: seen.append(at)
    )
    assert list(found.values) == ["z"]
    assert [step for step, *_ in seen] == [0, 1, 2, 3, 4]
    assert [value for _, value, _ in seen] == found.trajectory[:-1]
    assert not torch.equal(seen[0][2]["z"], seen[4][2]["z"])
    for name, parameter in toy.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_no_steps_tell_the_log_joint_of_the_start():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    start = torch.tensor(0.3)
    found = map_estimate(model, torch.tensor(1.0), init={"loc": start}, max_steps=0)
    normal = dist.Normal(0.0, 1.0)
    expected = normal.log_prob(start) + normal.log_prob(torch.tensor(0.7))
    assert found.log_joint == pytest.approx(float(expected))
    assert torch.equal(found.values["loc"], start)


def test_the_global_random_state_is_left_alone():
    def model():
        pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    torch.manual_seed(3)
    before = torch.get_rng_state()
    runs = [map_estimate(model, max_steps=0, seed=seed).values["loc"] for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_supports_that_move_with_other_latents_are_refused():
    def model(x):
        top = pyro.sample("top", dist.Gamma(2.0, 1.0))
        place = pyro.sample("place", dist.Uniform(0.0, top))
        pyro.sample("x", dist.Normal(place, 1.0), obs=x)

    def scaled(x):
        top = pyro.sample("top", dist.Gamma(2.0, 1.0))
        share = pyro.sample("share", dist.Uniform(0.0, 1.0))
        pyro.sample("x", dist.Normal(top * share, 1.0), obs=x)

    with pytest.raises(ProgramError, match=r"support of site 'place' depends on other latents"):
        map_estimate(model, torch.tensor(3.0))
    assert set(map_estimate(scaled, torch.tensor(3.0)).values) == {"top", "share"}


def test_refusals():
    def observed(x):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def counted(x):
        rate = pyro.sample("rate", dist.Poisson(3.0))
        pyro.sample("x", dist.Normal(rate, 1.0), obs=x)

    def scaled(x):
        scale = pyro.sample("scale", dist.Exponential(1.0))
        pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    x, big = torch.zeros(()), torch.full((5, 3), 1e10)
    with pytest.raises(ProgramError, match="no continuous latent site"):
        map_estimate(observed, x)
    with pytest.raises(ProgramError, match=r"'rate' .* no continuous support"):
        map_estimate(counted, x)
    with pytest.raises(PplError, match=r"latent site in init 'sale'.*scale"):
        map_estimate(scaled, x, init={"sale": x})
    with pytest.raises(PplError, match="outside its support"):
        map_estimate(scaled, x, init={"scale": torch.tensor(-1.0)})
    with pytest.raises(PplError, match=r"must be of shape \(\); got \(2,\)"):
        map_estimate(scaled, x, init={"scale": torch.ones(2)})
    with pytest.raises(ProgramError, match=r"no field 'y'; it names: x"):
        map_estimate(scaled, {"y": x})
    with pytest.raises(PplError, match="unknown optimizer 'Adma'"):
        map_estimate(scaled, x, optimizer="Adma")
    with pytest.raises(PplError, match="learning_rate must be positive"):
        map_estimate(scaled, x, learning_rate=0.0)
    with pytest.raises(PplError, match="max_steps"):
        map_estimate(scaled, x, max_steps=-1)
    with pytest.raises(PplError, match=r"log joint is .* at step"):
        map_estimate(linear_regression, {"x": big, "y": big[:, 0]}, optimizer="SGD")
