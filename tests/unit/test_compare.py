"""The comparison of estimators against closed forms, what it refuses, and what it leaves alone."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from programs import (
    BernoulliToy,
    EnumeratedMixture,
    GaussianToy,
    GlobalMean,
    WithoutLatents,
    tiny_images,
    tiny_vae,
)
from pyro.infer import Trace_ELBO
from torch import nn

from inference import compare_estimators
from inference.compare.files import netcdf
from inference.compare.groups import Layout
from inference.compare.references import Direction
from inference.elbo import ESTIMATORS, AnalyticKL, Pathwise
from inference.priming import prime
from ppl_models import PplError, Program, as_program

S2 = 0.25  # s² of the toy
B = 50
X = torch.full((B,), 1.7)
"""One datum B times: gradients per datum have a B-th of the closed form's variance."""


class Exaggerated(Pathwise):
    name = "exaggerated"

    def differentiable_loss(self, *args, **kwargs):
        return 1.1 * super().differentiable_loss(*args, **kwargs)


class Counting(Pathwise):
    """Keeps a number from step to step, as baselines do."""

    name = "counting"
    count = 0

    def differentiable_loss(self, *args, **kwargs):
        self.count += 1
        return super().differentiable_loss(*args, **kwargs)


class Undecided(Trace_ELBO):
    """Of the user's: it does not say whose gradient it estimates."""


class ClosedFormToy(GaussianToy):
    def closed_form_elbo(self, x):
        sigma2 = (2 * self.log_sigma).exp()
        kl = 0.5 * (sigma2 + self.m**2 - 1) - self.log_sigma
        spread = ((x - self.m - self.b) ** 2 + sigma2) / (2 * S2)
        return -0.5 * math.log(2 * math.pi * S2) - spread - kl


def exact(toy: GaussianToy) -> dict[str, float]:
    """Gradient of the loss."""
    b, m, sigma2 = toy.b.item(), toy.m.item(), math.exp(2 * toy.log_sigma.item())
    return {
        "m": m - (1.7 - m - b) / S2,
        "log_sigma": sigma2 * (1 + 1 / S2) - 1,
        "b": -(1.7 - m - b) / S2,
    }


def variances(toy: GaussianToy) -> dict[str, float]:
    """Of the pathwise gradient per datum."""
    sigma2, curvature = math.exp(2 * toy.log_sigma.item()), 1 + 1 / S2
    each = {
        "m": sigma2 * curvature**2,
        "log_sigma": sigma2 * exact(toy)["m"] ** 2 + 2 * sigma2**2 * curvature**2,
        "b": sigma2 / S2**2,
    }
    return {name: value / B for name, value in each.items()}


@pytest.fixture(scope="module")
def toy_table() -> xr.Dataset:
    toy = ClosedFormToy()
    estimators = {"pathwise": "pathwise", "kl": "analytic_kl", "wrong": Exaggerated()}
    return compare_estimators(toy, X, estimators=estimators, num_reps=2000)


def test_variance_norm_and_snr_are_the_closed_forms(toy_table):
    """Of 2,000 nearly normal draws a variance's standard error is 3.2 %: 15 % is 4.7 of them."""
    toy = GaussianToy()
    gradient, variance = exact(toy), variances(toy)
    gradient["all"] = math.sqrt(sum(g**2 for g in gradient.values()))
    variance["all"] = sum(variance.values())
    row = toy_table.sel(estimator="pathwise")
    assert row["group"].values.tolist() == ["b", "m", "log_sigma", "all"]
    for name, value in variance.items():
        found = row.sel(group=name)
        assert float(found["variance"]) == pytest.approx(value, rel=0.15), name
        norm = gradient[name] ** 2  # its standard error: 2 |g| sd / sqrt(n)
        margin = 4.5 * 2 * abs(gradient[name]) * math.sqrt(value / 2000)
        assert float(found["squared_norm"]) == pytest.approx(norm, abs=margin), name
        assert float(found["second_moment"]) == pytest.approx(
            norm + value, abs=margin + 0.15 * value
        )
        snr = math.sqrt(norm / value)
        assert float(found["snr"]) == pytest.approx(snr, rel=0.15 + margin / norm), name
        cost = found["variance"] * found["seconds"]
        assert float(found["variance_time"]) == pytest.approx(float(cost))
    lower = math.exp(2 * toy.log_sigma.item()) / S2**2 / B
    kl = toy_table["variance"].sel(estimator="kl", group="m")
    assert float(kl) == pytest.approx(lower, rel=0.15)


def test_a_biased_estimator_is_found_out_and_the_others_are_not(toy_table):
    """Under the null z is standard normal: |z| > 4.5 has p = 7e-6, at 8 of them 6e-5."""
    assert (toy_table["reference"] == "closed form").all()
    fair = toy_table["bias_z"].sel(estimator=["pathwise", "kl"])
    assert (abs(fair) < 4.5).all()
    wrong = toy_table.sel(estimator="wrong")
    gradient = exact(GaussianToy())
    for name, value in gradient.items():
        found = wrong.sel(group=name)
        assert found["bias_z"] > 4, name
        margin = 5 * float(found["bias_se"])
        assert float(found["bias"]) == pytest.approx(0.1 * abs(value), abs=margin), name
    total = wrong.sel(group="all")
    off = 0.01 * sum(value**2 for value in gradient.values())
    assert float(total["mse"] - total["variance"]) == pytest.approx(off, rel=0.3)


def test_a_large_sample_finds_the_bias_too():
    """z > 4 where 12 is expected; |z| < 4.5 of the fair one fails 4 times with p < 3e-5."""
    estimators = [Exaggerated(), "pathwise"]
    table = compare_estimators(
        GaussianToy(), X, estimators=estimators, reference="large_sample", num_reps=300
    )
    assert table["reference"].values[0] == "large sample: 3000 draws of analytic_kl"
    assert table["bias_z"].sel(estimator="exaggerated", group="all") > 4
    assert (abs(table["bias_z"].sel(estimator="pathwise")) < 4.5).all()


def test_gradients_given_by_parameter_are_a_reference():
    toy = GaussianToy()
    given = {name: torch.tensor(value) for name, value in exact(toy).items()}
    options = {"estimators": ["pathwise"], "num_reps": 100}
    table = compare_estimators(toy, X, reference=given, **options)
    assert table["reference"].item() == "given"
    assert (abs(table["bias_z"]) < 5).all()  # t with 49 degrees of freedom: p = 8e-6 each
    off = given | {"m": given["m"] + 3.0}
    assert compare_estimators(toy, X, reference=off, **options)["bias_z"].sel(group="m")[0] > 4
    with pytest.raises(PplError, match=r"lacking \['m'\], unknown \['n'\]"):
        compare_estimators(
            toy, X, reference={"b": given["b"], "log_sigma": given["b"], "n": given["m"]}, **options
        )
    with pytest.raises(PplError, match=r"'m' has shape \(2,\)"):
        compare_estimators(toy, X, reference=given | {"m": torch.zeros(2)}, **options)


def test_an_enumerated_gradient_has_no_noise_and_no_bias():
    estimators = ["pyro.infer.TraceEnum_ELBO", "pathwise"]
    table = compare_estimators(EnumeratedMixture(), X[:3], estimators=estimators, num_reps=6)
    row = table.isel(estimator=0)
    assert row["reference"].item().endswith("(exact)")
    assert (row["variance"] == 0).all()
    assert np.isinf(row["snr"]).all()
    assert (row["bias_z"] == 0).all()
    assert "enumerated latents" in table["note"].values[1]


def test_discrete_estimators_are_told_apart_by_their_bias():
    """Fair: |z| > 4.5 at 4 x 3 groups has p = 8e-5. The relaxation: 4 where 12 is expected."""
    fair = ["score_function", "leave_one_out", "disarm", "neural_baseline"]
    table = compare_estimators(
        BernoulliToy(), X, estimators=[*fair, "gumbel_softmax", "iwae"], num_reps=800
    )
    z = table["bias_z"]
    assert (table["reference"].sel(estimator=fair) == "enumerate (exact)").all()
    assert (abs(z.sel(estimator=fair)) < 4.5).all()
    assert z.sel(estimator="gumbel_softmax", group="all") > 4
    assert table["objective"].sel(estimator="gumbel_softmax").item() == "relaxed ELBO"
    assert table["note"].sel(estimator="iwae").item().startswith("not applicable")
    variance = table["variance"].sel(group="logit")  # the score function's is twice the others'
    for better in fair[1:]:
        assert variance.sel(estimator=better) < variance.sel(estimator="score_function")


def test_bounds_are_measured_against_their_own_kind():
    """|z| > 4.5 at 2 x 4 groups has p = 5e-5."""
    estimators = ["iwae", "vimco", "reweighted_wake_sleep"]
    table = compare_estimators(
        GaussianToy(), X, estimators=estimators, num_particles=3, num_reps=200
    )
    assert (table["num_particles"] == 3).all()
    for name in ("iwae", "vimco"):
        row = table.sel(estimator=name)
        assert "of doubly_reparameterized with 3 particles" in row["reference"].item()
        assert (abs(row["bias_z"]) < 4.5).all()
    assert table["bias"].sel(estimator="reweighted_wake_sleep").isnull().all()


class Learning(Pathwise):
    """Its gradient is right once its own weight is, which it learns along."""

    name = "learning"

    def __init__(self):
        super().__init__()
        self.state.weight = nn.Parameter(torch.tensor(1.5))

    def differentiable_loss(self, *args, **kwargs):
        error = (self.state.weight - 1.0) ** 2
        loss = super().differentiable_loss(*args, **kwargs)
        return self.state.weight.detach() * loss + error - error.detach()


def test_an_estimators_own_state_is_fitted_before_the_first_rep():
    """A wrong weight would give z of 50; |z| > 4.5 at 4 groups has p = 3e-5."""
    mine, options = Learning(), {"num_reps": 100, "reference": "closed_form"}
    fitted, raw = (
        compare_estimators(ClosedFormToy(), X, estimators=[mine], adapt_steps=n, **options)
        for n in (400, 0)
    )
    assert (abs(fitted["bias_z"]) < 4.5).all()
    assert raw["bias_z"].sel(group="all")[0] > 10
    assert mine.state.weight.item() == 1.5
    assert mine.state.weight.grad is None


def test_every_estimator_has_a_row():
    table = compare_estimators(BernoulliToy(), X[:3], num_reps=4, adapt_steps=2)
    assert table["estimator"].values.tolist() == list(ESTIMATORS)
    numbers = table["variance"].sel(group="all").notnull()
    assert ((table["note"] == "") == numbers).all()
    assert 0 < int(numbers.sum()) < len(ESTIMATORS)


def test_a_projection_is_a_length_along_the_direction():
    problem = type("P", (), {"layout": Layout({"a": torch.zeros(2), "b": torch.zeros(1)})})
    direction = Direction(problem, torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64))
    vector = torch.tensor([1.0, 2.0, 7.0], dtype=torch.float64)
    assert direction.project(vector).tolist() == pytest.approx([11 / 5, 0.0, 11 / 5])


def test_discrete_latents_under_pathwise_are_a_row_with_a_note():
    table = compare_estimators(
        BernoulliToy(), X[:3], estimators=["pathwise", "pyro.infer.TraceGraph_ELBO"], num_reps=10
    )
    first, second = table["note"].values.tolist()
    assert first.startswith("not applicable: ")
    assert "guide site 'b' is Bernoulli" in first
    assert second == ""
    assert table["variance"].isel(estimator=0).isnull().all()
    assert table["variance"].isel(estimator=1).notnull().all()
    assert table["bias"].isel(estimator=1).notnull().all()  # against a large sample


def test_objects_of_pyro_and_of_the_user_are_compared():
    estimators = [
        Trace_ELBO(num_particles=3),
        "pyro.infer.TraceGraph_ELBO",
        Undecided(),
        "pyro.infer.RenyiELBO",
        Trace_ELBO(),
    ]
    toy = GaussianToy()
    table = compare_estimators(toy, X[:2], estimators=estimators, num_particles=2, num_reps=6)
    assert table["estimator"].values.tolist() == [
        "Trace_ELBO",
        "pyro.infer.TraceGraph_ELBO",
        "Undecided",
        "pyro.infer.RenyiELBO",
        "Trace_ELBO (2)",
    ]
    assert table["num_particles"].values.tolist() == [3, 2, 1, 2, 1]
    assert table["target"].values.tolist() == ["ELBO", "ELBO", "unknown", "unknown", "ELBO"]
    assert table["bias"].isel(estimator=2).isnull().all()
    assert "attribute target" in table["reference"].values[2]
    assert "gives no parameter a gradient" in table["note"].values[3]
    assert all(p.grad is None for p in toy.parameters())


def test_an_unknown_target_gets_no_bias():
    class Bound(Pathwise):
        name = "bound"
        objective = target = "another bound"

    table = compare_estimators(GaussianToy(), X[:2], estimators=[Bound(), "pathwise"], num_reps=6)
    assert table["bias"].isel(estimator=0).isnull().all()
    assert "no unbiased estimator of the target 'another bound'" in table["reference"].values[0]
    assert table["bias"].isel(estimator=1).notnull().all()
    assert table["objective"].values.tolist() == ["another bound", "ELBO"]


def test_nothing_is_left_on_program_gradients_draws_store_and_estimators():
    pyro.param("somebody's", torch.ones(2))
    toy, mine = GaussianToy(), Counting()
    toy.m.grad = torch.tensor(7.0)
    toy.eval()
    toy.b.requires_grad_(False)
    before = copy.deepcopy(toy.state_dict())
    draws = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    kept = dict(vars(mine))
    table = compare_estimators(toy, X[:4], estimators=[mine, "pathwise"], num_reps=6)
    assert table["group"].values.tolist() == ["m", "log_sigma", "all"]  # b is not trained
    assert torch.equal(torch.get_rng_state(), draws[0])
    assert np.array_equal(np.random.get_state()[1], draws[1][1])  # noqa: NPY002
    assert random.getstate() == draws[2]
    assert all(torch.equal(value, before[name]) for name, value in toy.state_dict().items())
    assert float(toy.m.grad) == 7.0
    assert toy.log_sigma.grad is None
    assert not toy.training
    assert vars(mine) == kept
    assert mine.count == 0
    assert list(pyro.get_param_store()) == ["somebody's"]
    assert not list(as_program(toy).pyro_params)


def test_programs_of_pyro_params_and_of_plain_functions_stay_as_they_are():
    mean = GlobalMean()
    table = compare_estimators(mean, X[:4], num_data=40, estimators=["pathwise"], num_reps=6)
    assert table["group"].values.tolist() == ["loc", "scale", "all"]
    assert table.attrs["num_data"] == 40
    assert not list(as_program(mean).pyro_params)
    network = nn.Linear(1, 1)

    def model(x):
        pyro.module("net", network)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = network(z.unsqueeze(-1)).squeeze(-1)
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.0))

    program = Program(model, guide)
    estimators = ["pathwise", "pyro.infer.TraceGraph_ELBO"]
    table = compare_estimators(program, X[:4], estimators=estimators, num_reps=6)
    assert table["group"].values.tolist() == ["loc", "net", "all"]
    prime(program, {"x": X[:4]}, None)  # from now on a copy shares the network
    before = {k: v.clone() for k, v in program.state_dict().items()}
    network.weight.grad = torch.full_like(network.weight, 7.0)
    moved = {"moved": {k: v + 1 for k, v in before.items()}}
    options = {"estimators": estimators, "num_reps": 4}
    table = compare_estimators(program, X[:4], checkpoints=moved, **options)
    assert (table["note"] == "").all()
    assert all(torch.equal(v, before[k]) for k, v in program.state_dict().items())
    assert network.weight.grad.item() == 7.0
    assert network.bias.grad is None


def test_the_same_seed_gives_the_same_table():
    timed = ["seconds", "variance_time", "second_moment_time"]
    vae = tiny_vae()
    first, second, other = (
        compare_estimators(vae, tiny_images(5), estimators=["pathwise"], num_reps=4, seed=s)
        for s in (1, 1, 2)
    )
    xr.testing.assert_identical(first.drop_vars(timed), second.drop_vars(timed))
    assert (first["variance"] != other["variance"]).all()


def test_groups_add_up():
    table = compare_estimators(
        tiny_vae(), tiny_images(5), estimators=["pathwise"], num_reps=5, reference=None
    )
    parts = table.sel(group=["encoder", "decoder"])
    total = table.sel(group="all")
    for name in ("variance", "second_moment"):
        assert parts[name].sum().item() == pytest.approx(total[name].item()), name
    assert parts["num_parameters"].sum().item() == total["num_parameters"].item()
    assert table["bias"].isnull().all()
    weights = compare_estimators(
        tiny_vae(),
        tiny_images(5),
        estimators=["pathwise"],
        num_reps=5,
        reference=None,
        groups={"weights": ["*.weight"], "code": "encoder.*"},
    )
    assert weights["group"].values.tolist() == ["weights", "code", "all"]


def test_checkpoints_are_a_dimension():
    toy = GaussianToy()
    program = as_program(toy)
    wide = {k: v + (2.0 if "log_sigma" in k else 0.0) for k, v in program.state_dict().items()}
    points = {"start": program.state_dict(), "wide": wide}
    table = compare_estimators(
        toy, X[:5], estimators=["pathwise", "analytic_kl"], num_reps=8, checkpoints=points
    )
    assert table["variance"].dims == ("checkpoint", "estimator", "group")
    assert table["checkpoint"].values.tolist() == ["start", "wide"]
    variance = table["variance"].sel(group="b", estimator="pathwise")
    assert float(variance[1] / variance[0]) == pytest.approx(math.exp(4), rel=1e-3)  # same draws
    assert toy.log_sigma.item() == pytest.approx(-0.4)
    with pytest.raises(PplError, match="another program's parameters"):
        compare_estimators(toy, X, checkpoints={"a": {"n": torch.ones(1)}})
    with pytest.raises(PplError, match="checkpoints is empty"):
        compare_estimators(toy, X, checkpoints={})


def test_netcdf_gives_the_table_back(toy_table, tmp_path):
    path = tmp_path / "table.nc"
    path.write_bytes(netcdf(toy_table))
    with xr.open_dataset(path, engine="h5netcdf") as again:
        xr.testing.assert_allclose(again.load(), toy_table)
        assert again.attrs["gradient"] == toy_table.attrs["gradient"]
        assert again["note"].values.tolist() == toy_table["note"].values.tolist()


class Foreign(GaussianToy):
    """Uses a parameter that belongs to nobody."""

    def __init__(self):
        super().__init__()
        self.hidden = [nn.Parameter(torch.zeros(()))]

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.m + self.hidden[0], 1.0))


@pytest.mark.parametrize(
    ("program", "batch", "options", "message"),
    [
        (WithoutLatents(), X, {}, "no latent site"),
        (Foreign(), X, {}, "belong to no module of the program"),
        (GaussianToy(), {"y": X}, {}, "'x', which the data lack"),
        (GaussianToy(), [1.0, 2.0], {}, "batch must be a dict of tensors"),
        (GaussianToy(), {}, {}, "batch must be a dict of tensors"),
        (GaussianToy(), {"x": torch.zeros(3), "y": torch.zeros(2)}, {}, "one length"),
        (GaussianToy(), X * torch.nan, {}, "field 'x' holds nan"),
        (tiny_vae(), torch.zeros(5, 1, 3, 3), {}, "fails on a batch"),
        (object(), X, {}, "has no `model`"),
        (GaussianToy(), X, {"estimators": ["pathwize"]}, r"Did you mean 'pathwise'\?"),
        (GaussianToy(), X, {"estimators": []}, "no estimator to compare"),
        (GaussianToy(), X, {"estimators": [3]}, "estimator must be a name"),
        (GaussianToy(), X, {"num_particles": 0}, "num_particles must be at least 1"),
        (GaussianToy(), X, {"num_reps": 3}, "num_reps must be at least 4"),
        (GaussianToy(), X, {"reference": "closed_form"}, "no method closed_form_elbo"),
        (GaussianToy(), X, {"reference": "enumerate"}, "no reference by enumeration"),
        (GaussianToy(), X, {"reference": "exakt"}, "reference: unknown estimator 'exakt'"),
        (BernoulliToy(), X, {"reference": "pathwise"}, "pathwise cannot serve: .*Bernoulli"),
        (GlobalMean(), X, {"num_data": 500, "groups": {"a": "lok"}}, "are: loc, scale"),
    ],
)
def test_what_cannot_be_compared_is_refused(program, batch, options, message):
    with pytest.raises(PplError, match=message):
        compare_estimators(program, batch, **({"estimators": ["pathwise"]} | options))


def test_a_formula_of_the_wrong_shape_is_refused():
    class Summed(ClosedFormToy):
        def closed_form_elbo(self, x):
            return super().closed_form_elbo(x).sum()

    with pytest.raises(PplError, match=r"ELBO per datum \(50,\), got \(\)"):
        compare_estimators(Summed(), X, estimators=[AnalyticKL()], reference="closed_form")


@pytest.mark.cuda
def test_compare_on_cuda():
    """Variances of 1,000 draws on either device within 25 %, over five standard errors."""
    toy = ClosedFormToy()
    options = {"estimators": ["pathwise", "decaying_average"], "num_reps": 1000}
    cpu = compare_estimators(toy, X, **options)
    cuda = compare_estimators(toy.cuda(), X, **options)
    assert cuda.attrs["device"] == "cuda:0"
    assert (abs(cuda["bias_z"]) < 4.5).all()
    near = abs(cuda["variance"] / cpu["variance"] - 1).sel(estimator="pathwise")
    assert (near < 0.25).all()
