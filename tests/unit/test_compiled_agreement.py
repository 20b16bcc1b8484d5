"""Machine code and eager Python agree: every estimator, every program, in both precisions."""

from __future__ import annotations

import pytest
import torch
from compiled_helpers import batch_of, outcome, step_of, traced
from programs import (
    BernoulliToy,
    EnumeratedMixture,
    LinearVAE,
    images_for,
    of_the_catalog,
    tiny_images,
    tiny_vae,
)
from unit.test_compiled import Normed
from unit.test_fit_estimators import DISCRETE, TinyBits

from inference import ESTIMATORS
from inference.elbo import make_estimator
from inference.graphs import compile_graph
from ppl_models import CATALOG
from ppl_models.likelihoods import LIKELIHOODS
from ppl_models.vae import VAE

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
pytestmark = pytest.mark.slow
SERVES = {"gmm": ("enumerate", 1), "categorical_vae": ("leave_one_out", 2)}
"""Estimators of programs with discrete latents, and their particles."""
UNTRACEABLE = {name for name in CATALOG if "sketch" in name}
"""Their length is read off the batch; that they go on eagerly, test_sketch_commands.py asks."""
in_both_precisions = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def assert_agreement(step, x):
    """Loss, norm, gradients and new buffers, relative to the largest number of each tensor."""
    graph = traced(step, x)
    compiled = compile_graph(graph, step.compiled.step_graph().flat(batch_of(x)))
    ours = outcome(step, lambda *flat: compiled(list(flat)), x)
    theirs = outcome(step, step.compiled.step_graph().function(list(batch_of(x))), x)
    held = step.compiled.step_graph().held
    count = len(held.trained)
    names = ["loss", "norm", "bad steps", *(f"gradient of {name}" for name in held.trained)]
    names += [*(f"new {name}" for name in held.trained), *held.kept]
    # A gradient that is zero but for rounding (a bias before batch norm) is as good.
    floor = 0.01 * max(float(g.abs().max()) for g in theirs[3 : 3 + count])
    for name, a, b in zip(names, ours, theirs, strict=False):
        gap = float((a.double() - b.double()).abs().max())
        size = float(b.double().abs().max())
        assert gap <= TOLERANCE.get(b.dtype, 0.0) * max(size, floor), (name, gap, size)


def agreement(program, estimator, x, dtype):
    torch.manual_seed(0)
    program = program.to(dtype) if isinstance(program, torch.nn.Module) else program
    batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch_of(x).items()}
    assert_agreement(step_of(program, estimator, batch), batch)


@in_both_precisions
@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator(name, dtype):
    program = TinyBits() if name in DISCRETE else tiny_vae()
    agreement(program, make_estimator(name, 2), tiny_images(6), dtype)


@in_both_precisions
@pytest.mark.parametrize("name", sorted(set(CATALOG) - UNTRACEABLE))
def test_every_program_of_the_catalog(name, dtype):
    program, batch = of_the_catalog(name)
    agreement(program, make_estimator(*SERVES.get(name, ("analytic_kl", 1))), batch, dtype)


@in_both_precisions
@pytest.mark.parametrize(
    ("posterior", "prior"),
    [("full_covariance", "vamp"), ("flow", "mixture"), ("point", "standard_normal")],
)
def test_posteriors_and_priors(posterior, prior, dtype):
    vae = VAE((1, 4, 4), 3, (8,), "bernoulli", posterior, prior, 4, beta=2.0)
    agreement(vae, make_estimator("analytic_kl", 2), tiny_images(6), dtype)


@in_both_precisions
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_likelihood(likelihood, dtype):
    x = images_for(likelihood, 5)
    agreement(tiny_vae(likelihood), make_estimator("analytic_kl"), x, dtype)


@in_both_precisions
@pytest.mark.parametrize(
    ("make", "x"),
    [(Normed, tiny_images(8)), (lambda: LinearVAE(4, 2), torch.randn(5, 4))],
    ids=["batch norm", "PyroModule"],
)
def test_other_kinds_of_program(make, x, dtype):
    agreement(make(), make_estimator("pathwise", 2), x, dtype)


@pytest.mark.parametrize(
    ("make", "estimator"),
    [(BernoulliToy, "leave_one_out"), (EnumeratedMixture, "enumerate")],
    ids=["discrete", "summed out"],
)
def test_programs_with_discrete_latents(make, estimator):
    """In float32: the mixture holds constants of that dtype; the docs tell of the other."""
    agreement(make(), make_estimator(estimator, 2), torch.randn(6), torch.float32)
