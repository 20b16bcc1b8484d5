"""On CUDA: the compiled step as a CUDA graph, and compiled evaluation."""

from __future__ import annotations

import pyro
import pytest
import torch
from compiled_helpers import step_of
from programs import GaussianToy, tiny_images, tiny_vae
from unit.test_fit_estimators import DISCRETE, TinyBits

from inference import ESTIMATORS, evaluate, fit
from inference.elbo import make_estimator
from inference.nonfinite import NonFiniteLossError
from inference.replay import WARM_UP, Replayed
from inference.step import UNSEEN_ON_CUDA

pytestmark = pytest.mark.cuda


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01, fused=True)


def compiled_step(program, x):
    """A step on CUDA, after the first, eager one."""
    estimator = make_estimator("pathwise")
    step = step_of(program.cuda(), estimator, x, make_optimizer=adam, device="cuda")
    with step.program.scope(), pyro.validation_enabled(False):
        step({"x": x})
    return step


@pytest.mark.parametrize("optimizer", ["Adam", "SGD", "RMSprop"])
@pytest.mark.parametrize("precision", ["32", "64", "bf16"])
def test_compiled_and_eager_training_end_alike(optimizer, precision):
    options = {"epochs": 6, "batch_size": 20, "clip_grad_norm": 1.0, "kl_warmup": 2.0}
    fits = []
    for compile in (False, True):
        torch.manual_seed(0)
        choices = {"optimizer": optimizer, "precision": precision, "compile": compile}
        vae, x = tiny_vae(), tiny_images(110)
        fits.append(fit(vae, x, device="cuda", keep="last", progress=False, **choices, **options))
    eager, compiled = (fitted.program.state_dict() for fitted in fits)
    tolerance = {"32": 1e-3, "64": 1e-8, "bf16": 3e-2}[precision]
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_trains_compiled(name, caplog):
    program = TinyBits() if name in DISCRETE else tiny_vae()
    options = {"estimator": name, "num_particles": 2, "epochs": 4, "batch_size": 20}
    fit(program, tiny_images(100), device="cuda", compile=True, progress=False, **options)
    assert "without compiling" not in caplog.text


def test_the_step_is_recorded_and_replayed_with_other_data_and_draws():
    x = tiny_images(20).cuda()
    step = compiled_step(tiny_vae(), x)
    losses = set()
    with step.program.scope(), pyro.validation_enabled(False):
        for seed in range(WARM_UP + 5):
            loss, _ = step({"x": tiny_images(20, seed=seed).cuda()})
            losses.add(float(loss))
    (graph,) = step.compiled.graphs._graphs.values()
    assert isinstance(graph.run, Replayed)
    assert graph.run._graph is not None
    assert len(losses) == WARM_UP + 5


def test_a_step_that_is_not_finite_is_told_later_and_changes_nothing():
    x = torch.randn(20, device="cuda")
    step = compiled_step(GaussianToy(), x)
    with step.program.scope(), pyro.validation_enabled(False):
        for _ in range(WARM_UP + 2):
            step({"x": x})
        before = [p.detach().clone() for p in step.parameters]
        step({"x": x * torch.inf})
        for _ in range(3):
            step({"x": x})
        with pytest.raises(NonFiniteLossError, match="site 'x'"):
            step.settle()
    for old, parameter in zip(before, step.parameters, strict=True):
        assert torch.equal(old, parameter.detach())


def test_finiteness_is_asked_for_now_and_then():
    x = torch.randn(20, device="cuda")
    step = compiled_step(GaussianToy(), x)

    def many():
        for _ in range(UNSEEN_ON_CUDA + WARM_UP):
            step({"x": x * torch.nan})

    with step.program.scope(), pyro.validation_enabled(False), pytest.raises(NonFiniteLossError):
        many()


def test_evaluation():
    x = {"x": tiny_images(40).cuda()}
    vae = tiny_vae().cuda()
    ours, eager = (evaluate(vae, x, num_particles=20, compile=c) for c in (True, False))
    assert ours.elbo == pytest.approx(eager.elbo, rel=1e-5)
    assert ours.iwae == pytest.approx(eager.iwae, rel=1e-5)
