"""What the tests of the review's findings share."""

from __future__ import annotations

from elbo_helpers import bound, exact_gradients, gradients, make, worst

LUCK = 5.0
"""Standard errors that a mean may be off."""
N = 20_000


def loss_of(name, program, *args, **options):
    args = args or (program.data(),)
    return make(name, **options).differentiable_loss(program.model, program.guide, *args)


def check_exact(name, kind, k=None, n=N, like=None):
    """The mean gradient of the guide's parameters is that of the bound."""
    estimator = make(name, k)
    particles = 1 if estimator.target == "ELBO" else estimator.num_particles
    expected = exact_gradients(like or kind, bound, particles)
    found = gradients(kind(n), estimator)
    assert worst(found, {p: expected[p] for p in kind.guide_names}) < LUCK
