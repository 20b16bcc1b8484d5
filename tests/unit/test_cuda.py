"""On CUDA: training, resuming across devices, evaluation and sampling, in float32 and bf16."""

from __future__ import annotations

import copy

import pytest
import torch
from programs import GlobalMean, tiny_images, tiny_vae

from inference import evaluate, fit, log_weights
from inference.sampling import encode, reconstruct, sample
from inference.testing import check_program
from ppl_models import as_program

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "normal", "normal_pixel_scale"])
def test_training(precision, likelihood):
    x = tiny_images(200, binary=likelihood == "bernoulli")
    options = {"epochs": 20, "batch_size": 20, "learning_rate": 1e-2, "progress": False}
    fitted = fit(tiny_vae(likelihood), x, device="cuda", precision=precision, **options)
    assert all(p.device.type == "cuda" for p in fitted.program.parameters())
    assert all(p.dtype == torch.float32 for p in fitted.program.parameters())
    assert fitted.history[-1]["train_loss"] < fitted.history[0]["train_loss"]


def test_auto_takes_cuda():
    fitted = fit(GlobalMean(), torch.randn(60) + 2, epochs=2, progress=False)
    assert fitted.program.param("loc").device.type == "cuda"


def test_evaluation_agrees_with_the_cpu():
    """Same weights, other draws: within 5 joint standard errors."""
    vae, x = tiny_vae(), tiny_images(20)
    on_cpu = evaluate(copy.deepcopy(vae), {"x": x}, num_particles=500)
    on_cuda = evaluate(vae.cuda(), {"x": x.cuda()}, num_particles=500)
    joint = (on_cpu.elbo_se**2 + on_cuda.elbo_se**2) ** 0.5
    assert abs(on_cpu.elbo - on_cuda.elbo) < 5 * joint
    assert log_weights(vae, {"x": x.cuda()}, 3).device.type == "cuda"


def test_sampling():
    program = as_program(tiny_vae()).cuda()
    x = tiny_images(6).cuda()
    assert sample(program, 5)["x"].shape == (5, 1, 4, 4)
    assert reconstruct(program, {"x": x})["x"].device.type == "cuda"
    assert encode(program, {"x": x})["z"].shape == (6, 3)
    before = torch.cuda.get_rng_state()
    sample(program, 5)
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize(("first", "second"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_resuming_across_devices(tmp_path, first, second):
    options = {"batch_size": 20, "run_dir": tmp_path, "progress": False}
    fit(tiny_vae(), tiny_images(200), epochs=2, device=first, **options)
    fitted = fit(tiny_vae(), tiny_images(200), epochs=4, device=second, resume=True, **options)
    assert [row["epoch"] for row in fitted.history] == [1, 2, 3, 4]
    assert all(p.device.type == second for p in fitted.program.parameters())


def test_the_contract_holds():
    check_program(tiny_vae().cuda(), {"x": tiny_images(6).cuda()})
