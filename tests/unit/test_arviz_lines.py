"""ArviZ, on both of its lines: it imports under warnings as errors, and takes our draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from programs import tiny_images, tiny_vae

from inference import evaluate, fit, log_weights

pytestmark = pytest.mark.arviz1


def test_pareto_k_of_our_log_weights_tells_a_good_guide_from_a_bad_one():
    """The log weights (K, B) are what PSIS takes; 0.23 and 1.x want them with opposite signs."""
    import arviz

    fitted = fit(tiny_vae(), tiny_images(400), epochs=30, learning_rate=1e-2, progress=False)
    weights = log_weights(fitted.program, {"x": tiny_images(10)}, 1000).double().numpy()

    def pareto_k(log_w):
        if arviz.__version__.startswith("0."):
            return np.asarray(arviz.psislw(log_w)[1])
        from arviz_stats.base import array_stats

        return np.asarray(array_stats.psislw(-log_w)[1])

    good = pareto_k(weights.T)
    heavy = pareto_k(np.random.default_rng(0).normal(0.0, 6.0, (10, 1000)))
    assert good.shape == (10,)
    assert np.median(good) < 0.7 < np.median(heavy)


def test_the_engine_runs_where_the_newer_arviz_does():
    fitted = fit(tiny_vae(), tiny_images(60), epochs=2, progress=False)
    found = evaluate(fitted.program, fitted.data.test.batches(10), num_particles=10)
    assert np.isfinite(found.iwae)
    assert torch.isfinite(torch.tensor(found.elbo))
