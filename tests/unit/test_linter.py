"""The linter: every rule is broken by a program, and kept by its mended twin."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from linter_programs import (
    LocalAuto,
    RandomWeights,
    Shy,
    both_orders,
    changing,
    failing,
    foreign,
    global_mean,
    joined,
    latent,
    likelihood,
    looped,
    toy,
    with_loss,
)
from programs import (
    BernoulliToy,
    EnumeratedMixture,
    GaussianToy,
    GlobalMean,
    LinearVAE,
    WithoutLatents,
    images_for,
    of_the_catalog,
    tiny_images,
    tiny_vae,
)
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from torch import nn

from inference.devices import rng_state
from inference.linter import RULES, lint
from inference.linter.sighting import _short
from ppl_models import CATALOG, Program
from ppl_models.likelihoods import LIKELIHOODS

X = torch.randn(6)
BITS = (X > 0).float()
GREY = torch.sigmoid(X)
NORMAL = dist.Normal(0.0, 1.0)


@dataclass(frozen=True)
class Case:
    """A program that breaks a rule, and its twin that does not."""

    code: str
    bad: Any
    mended: Any
    site: str | None = None
    says: str = ""
    """In the message or the remedy."""
    batch: Any = None
    mended_batch: Any = None
    estimator: Any = None
    mended_estimator: Any = None


Exp, Sigmoid = dist.transforms.ExpTransform, dist.transforms.SigmoidTransform
Affine = dist.transforms.AffineTransform


def through(*transforms: Any) -> Any:
    """A Normal guide through transforms; the last alone tells too much of its support."""
    return dist.TransformedDistribution(NORMAL, list(transforms))


def linear(scale: Callable[[nn.Linear, torch.Tensor], torch.Tensor]) -> Any:
    """A guide whose scale a network gives."""
    net = nn.Linear(1, 1)
    nn.init.constant_(net.weight, 0.0)
    nn.init.constant_(net.bias, 1.0)
    return latent(NORMAL, lambda x: dist.Normal(0.0, scale(net, x[:, None])[:, 0]), net=net)


scaled = poutine.scale(scale=0.5)
PIXELS = {"x": tiny_images(6)}

CASES = [
    Case("fails", failing("z.squeze()"), toy(), says="AttributeError.*linter_programs.py, line"),
    Case("fails", likelihood(lambda z: dist.Normal(z[:, None, None], torch.ones(6, 4, 4))),
         likelihood(lambda z: dist.Normal(z[:, None, None], torch.ones(6, 4, 4)).to_event(2)),
         says=r"to_event\(n\)", batch={"x": torch.randn(6, 4, 4)}),
    Case("not-looked-at", latent(NORMAL, Shy(0.0, 1.0)), toy(), None, "looking for supports fails"),
    Case("data-not-finite", toy(), toy(), says="nan at index", mended_batch={"x": X},
         batch={"x": X.clone().index_fill_(0, torch.tensor([2]), float("nan"))}),
    Case("pixels-not-scaled", joined(3), joined(3), "x", "up to 255",
         batch={"x": PIXELS["x"] * 255}, mended_batch=PIXELS),
    Case("grey-pixels", likelihood(lambda z: dist.Bernoulli(logits=z)),
         likelihood(lambda z: dist.ContinuousBernoulli(logits=z)), "x", "binarize",
         batch={"x": GREY}),
    Case("grey-pixels", likelihood(lambda z: dist.Bernoulli(logits=z, validate_args=False)),
         likelihood(lambda z: dist.Bernoulli(logits=z)), "x",
         batch={"x": GREY}, mended_batch={"x": BITS}),
    Case("binary-pixels", likelihood(lambda z: dist.ContinuousBernoulli(logits=z)),
         likelihood(lambda z: dist.Bernoulli(logits=z)), "x", "Use a Bernoulli",
         batch={"x": BITS}),
    Case("data-outside-support", likelihood(lambda z: dist.ContinuousBernoulli(logits=z)),
         likelihood(lambda z: dist.ContinuousBernoulli(logits=z)), "x", r"Scale the data to \[0",
         batch={"x": X}, mended_batch={"x": GREY}),
    Case("support-differs", latent(dist.Gamma(2.0, 1.0), dist.Normal(9.0, 0.01)),
         latent(dist.Gamma(2.0, 1.0), dist.LogNormal(0.0, 1.0)), "z", "from 0 up"),
    Case("support-differs", latent(dist.Uniform(-1.0, 1.0), dist.Uniform(0.0, 1.1)),
         latent(dist.Uniform(-1.0, 1.0), dist.Uniform(-1.0, 1.0)), "z", "from 0 to 1.1"),
    Case("support-differs",
         latent(dist.Dirichlet(torch.ones(3)), dist.Normal(torch.zeros(3), 1.0).to_event(1)),
         latent(dist.Dirichlet(torch.ones(3)), dist.Dirichlet(torch.ones(3) * 2)), "z", "Simplex"),
    Case("support-differs", latent(dist.Gamma(2.0, 1.0), dist.Poisson(3.0)),
         latent(dist.Poisson(2.0), dist.Poisson(3.0)), "z", "a mass against a density"),
    Case("support-differs",
         latent(dist.Categorical(torch.ones(2)), dist.Categorical(torch.ones(3))),
         latent(dist.Categorical(torch.ones(2)), dist.Bernoulli(0.5)), "z", "whole numbers"),
    Case("support-differs", latent(dist.Gamma(2.0, 1.0), through(Exp(), Affine(-0.01, 1.0))),
         latent(dist.Gamma(2.0, 1.0), through(Exp(), Affine(0.01, 1.0))), "z", "from -0.01 up"),
    Case("support-differs", latent(dist.Beta(2.0, 1.0), through(Sigmoid(), Affine(1.0, 1.0))),
         latent(dist.Beta(2.0, 1.0), through(Sigmoid(), Affine(1.0, -1.0))), "z", "from 1 to 2"),
    Case("support-narrower", latent(NORMAL, dist.LogNormal(0.0, 1.0)), toy(), "z", "all numbers"),
    Case("parameter-out-of-range", linear(lambda net, x: -net(x)),
         linear(lambda net, x: net(x).exp()), "z",
         r"scale of Normal \(possible: numbers from 0 up\) is from -1"),
    Case("raw-parameter", linear(lambda net, x: net(x)),
         linear(lambda net, x: nn.functional.softplus(net(x))), "z", "a linear layer"),
    Case("raw-parameter", linear(lambda net, x: net(x).relu()),
         linear(lambda net, x: net(x).relu() + 1e-3), "z", "a ReLU"),
    Case("raw-parameter",
         latent(NORMAL, lambda x: dist.Normal(0.0, pyro.param("s", torch.tensor(1.0)))),
         latent(NORMAL, lambda x: dist.Normal(
             0.0, pyro.param("s", torch.tensor(1.0), constraint=dist.constraints.positive))),
         "z", "an unconstrained parameter"),
    Case("density-not-finite", likelihood(lambda z: dist.Normal(z, 1e-30)),
         likelihood(lambda z: dist.Normal(z, 1.0)), "x"),
    Case("no-data-plate", toy(plate=None), toy(), "x", r"batch shape \(6,\)"),
    Case("no-data-plate", toy(plate="rows", extra=True), toy(plate="rows"), None, "cannot tell"),
    Case("batch-in-event", toy(plate=None, event=1), toy(), "x", "no to_event"),
    Case("batch-in-event",
         likelihood(lambda z: dist.Normal(z[:, None], torch.ones(6, 4)).to_event(2)),
         likelihood(lambda z: dist.Normal(z[:, None], torch.ones(6, 4)).to_event(1)), "x",
         r"to_event\(1\)", batch={"x": torch.randn(6, 4)}),
    Case("dimension-in-no-plate", likelihood(lambda z: dist.Normal(z[:, None], 1.0)),
         likelihood(lambda z: dist.Normal(z[:, None], 1.0).to_event(1)), "x",
         batch={"x": torch.randn(6, 1)}),
    Case("plates-differ", toy(guide_plate="rows"), toy(), "z", "'rows'.*in the guide"),
    Case("plates-differ", toy(guide_dim=-2), toy(), "z", "-2"),
    Case("shapes-differ", latent(dist.Normal(torch.zeros(1), 1.0).to_event(1), NORMAL,
                                 take=lambda z: z.reshape(-1)),
         latent(dist.Normal(torch.zeros(1), 1.0).to_event(1),
                dist.Normal(torch.zeros(1), 1.0).to_event(1), take=lambda z: z.reshape(-1)), "z"),
    Case("scale-differs", toy(around_model=scaled),
         toy(around_model=scaled, around_guide=scaled), "z", "0.5 in the model but 1"),
    Case("num-data-unknown", global_mean(num_data=False), global_mean(num_data=True), None,
         "num_data or len"),
    Case("plate-in-a-loop", looped(), toy(), None, "a loop in Python"),
    Case("autoguide-of-local-latents", LocalAuto(), toy(), None, "amortized"),
    Case("guide-forgets", toy(guide_name=None), toy(), "z", "no sites"),
    Case("guide-forgets", toy(guide_name="zz"), toy(), "z", "Is 'zz' meant"),
    Case("guide-forgets", latent(dist.Categorical(torch.ones(2)), None), EnumeratedMixture(), "z"),
    Case("guide-only", toy(guide_name="zz"), toy(), "zz", "Is 'z' meant"),
    Case("field-not-observed", toy(obs=False), toy(), "x", "obs=x"),
    Case("guide-observes", toy(guide_obs=True), toy(), "z", "guides only sample"),
    Case("sampled-and-observed", latent(NORMAL, NORMAL, also="x"), toy(), "x"),
    Case("site-named-otherwise", toy(x_name="image"), toy(), "image", "observes the field 'x'"),
    Case("observes-nothing", toy(x_name=None), toy()),
    Case("auxiliary-loss", with_loss(in_guide=False), with_loss(in_guide=True)),
    Case("changing-sites", changing(True), changing(False), None, "differ in their sites"),
    Case("foreign-parameter", foreign(registered=False), foreign(registered=True), None,
         r"pyro.module\('decoder'"),
    Case("pyro-method-missing", RandomWeights(False), RandomWeights(True)),
    Case("batch-norm", latent(NORMAL, NORMAL, net=nn.BatchNorm1d(2)),
         latent(NORMAL, NORMAL, net=nn.LayerNorm(2)), None, "LayerNorm"),
    Case("no-rsample", BernoulliToy(), GaussianToy(), "b", "leave_one_out"),
    Case("no-rsample", BernoulliToy(), BernoulliToy(), "b", mended_estimator="leave_one_out"),
    Case("plain-score-function", BernoulliToy(), BernoulliToy(), "b", estimator=Trace_ELBO(),
         mended_estimator="leave_one_out"),
    Case("plain-score-function", BernoulliToy(), GaussianToy(), "b", estimator="score_function"),
    Case("estimator-refuses", BernoulliToy(), BernoulliToy(), None, "rsample",
         estimator="pathwise", mended_estimator="enumerate"),
    Case("estimator-refuses", BernoulliToy(), GaussianToy(), "b", "silently",
         estimator=RenyiELBO(), mended_estimator=RenyiELBO()),
    Case("guide-not-mean-field", both_orders("w", "z"), both_orders("z", "w"), "w",
         "draws 'z' before 'w'", estimator=TraceMeanField_ELBO(),
         mended_estimator=TraceMeanField_ELBO()),
    Case("kl-from-draws", both_orders("w", "z"), both_orders("z", "w"), "w", "draws 'z' before 'w'",
         estimator="analytic_kl", mended_estimator="analytic_kl"),
    Case("kl-from-draws", latent(NORMAL, dist.StudentT(5.0)), toy(), "z", "no formula",
         estimator="analytic_kl", mended_estimator="analytic_kl"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_a_program_that_breaks_a_rule_and_its_mended_twin(case):
    batch = case.batch or {"x": X}
    found = [f for f in lint(case.bad, batch, case.estimator) if f.code == case.code]
    assert found, [str(f) for f in lint(case.bad, batch, case.estimator)]
    if case.site is not None:
        assert case.site in [f.site for f in found]
    assert any(_says(case.says, f) for f in found), [str(f) for f in found]
    mended = lint(case.mended, case.mended_batch or batch, case.mended_estimator or case.estimator)
    assert [str(f) for f in mended if f.code == case.code] == []
    assert [str(f) for f in mended if f.severity == "error"] == []


def _says(pattern, finding):
    return re.search(pattern, f"{finding.message} {finding.remedy}", flags=re.DOTALL)


def test_every_rule_has_a_case():
    assert {case.code for case in CASES} == set(RULES)


def test_all_findings_are_told_at_once_with_their_lines():
    program = latent(
        dist.Gamma(2.0, 1.0),
        lambda x: dist.Normal(0.0, pyro.param("s", torch.ones(()))),
        like=lambda z: dist.Bernoulli(probs=z.sigmoid()),
    )
    found = lint(program, {"x": GREY})
    assert [f.code for f in found] == ["grey-pixels", "support-differs", "raw-parameter"]
    assert all("linter_programs.py:" in f.place for f in found)
    assert str(found[1]).startswith("error support-differs, guide site 'z' (")


def test_what_a_broken_guide_hides_of_the_model_is_still_seen():
    found = lint(
        failing("oops", role="guide", like=lambda z: dist.Bernoulli(logits=z)), {"x": GREY}
    )
    assert {f.code for f in found} == {"fails", "grey-pixels"}
    assert next(f for f in found if f.code == "fails").role == "guide"


@pytest.mark.parametrize("name", CATALOG)
def test_the_catalog_has_no_errors(name):
    warnings = {"categorical_vae": ["no-rsample"]}
    assert [f.code for f in lint(*of_the_catalog(name))] == warnings.get(name, [])


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_likelihood_is_clean(likelihood):
    assert lint(tiny_vae(likelihood), {"x": images_for(likelihood, 5)}) == []


@pytest.mark.parametrize(
    "program", [GaussianToy(), GlobalMean(), EnumeratedMixture(), WithoutLatents()]
)
def test_programs_of_other_kinds_are_clean(program):
    assert lint(program, {"x": X}) == []


@pytest.mark.parametrize("guide", [AutoNormal, AutoDelta, AutoMultivariateNormal, AutoIAFNormal])
def test_automatic_guides_of_constrained_latents_are_clean(guide):
    def model(x, *, num_data=None):
        mu = pyro.sample("mu", NORMAL)
        scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", num_data or len(x), subsample=torch.arange(len(x)), dim=-1):
            pyro.sample("x", dist.Normal(mu * weights[0], scale), obs=x)

    assert [str(f) for f in lint(Program(model, guide(model)), {"x": X})] == []


def test_values_under_a_mask_are_no_data():
    def model(x, seen):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", NORMAL)
            with poutine.mask(mask=seen):
                pyro.sample("x", dist.Bernoulli(logits=z), obs=x)

    program = Program(model, toy().guide)
    half = torch.tensor([0.0, 1.0, 1.0, 0.5, 0.5, 0.5])
    assert lint(program, {"x": half, "seen": half != 0.5}) == []
    found = lint(program, {"x": half, "seen": half != 0.0})
    assert [f.code for f in found] == ["grey-pixels"]


def test_nothing_is_left_behind():
    program, other = LinearVAE(4, 2).train(), RandomWeights(True).train()
    pyro.param("mine", torch.ones(2))
    before = rng_state()["torch"]
    lint(program, {"x": torch.randn(6, 4, generator=torch.Generator().manual_seed(1))})
    lint(other, {"x": torch.ones(6)}, "analytic_kl")
    lint(GlobalMean(), {"x": torch.ones(6)})
    assert torch.equal(rng_state()["torch"], before)
    assert all(p.grad is None for p in program.parameters())
    assert program.training
    assert program.encoder.training
    assert list(pyro.get_param_store().keys()) == ["mine"]


def test_findings_are_ready_for_json():
    (found,) = lint(BernoulliToy(), {"x": X})
    assert found.to_dict()["code"] == "no-rsample"
    assert replace(found, place=None).where == "guide site 'b'"


def test_a_line_of_a_notebook_is_named_by_its_cell(monkeypatch):
    """Not by the temporary file that it is compiled from."""
    compiler = pytest.importorskip("IPython.core.compilerop").CachingCompiler()
    name = compiler.cache("x = 1", 7)
    assert _short(name) != "In[7]"
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(compile=compiler))
    assert _short(name) == "In[7]"
    assert _short(__file__).endswith("test_linter.py")
