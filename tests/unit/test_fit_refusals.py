"""What training refuses, by message, before anything is lost."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import GaussianToy, tiny_images, tiny_vae
from torch import nn

from inference import fit, from_tensors
from inference.nonfinite import NonFiniteLossError
from ppl_models import PplError, Program, ProgramError


def quick(program, data, **options):
    return fit(program, data, **({"epochs": 2, "batch_size": 16, "progress": False} | options))


class Ungraded(GaussianToy):
    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(2))


class Detached(GaussianToy):
    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", dist.Normal(self.m.detach(), self.log_sigma.exp()))


@pytest.mark.parametrize(("program", "name"), [(Ungraded(), "unused"), (Detached(), "m")])
def test_a_parameter_without_gradient_is_named(program, name):
    with pytest.raises(ProgramError, match=rf"no gradient reached parameter\(s\) owner.{name}\b"):
        quick(program, torch.randn(40))


def test_a_parameter_that_is_not_to_be_trained_may_go_without():
    program = Ungraded()
    program.unused.requires_grad_(False)
    quick(program, torch.randn(40))


def test_a_network_that_the_program_does_not_hold_is_found():
    """Stock Pyro trains such a program without a word and without its network."""
    hidden = nn.Linear(1, 1)

    class Closure(GaussianToy):
        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                shift = hidden(x.unsqueeze(-1)).squeeze(-1)
                return pyro.sample("z", dist.Normal(self.m + shift, self.log_sigma.exp()))

    with pytest.raises(ProgramError, match=r"belong to no module.*decoder=decoder.*pyro.module"):
        quick(Closure(), torch.randn(40))


def test_nothing_to_train():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ProgramError, match="nothing to train"):
        quick(Program(model, guide), torch.randn(40))


class Exploding(GaussianToy):
    """Fine at first; after some steps the site x has log density −inf or NaN."""

    def __init__(self, how: str):
        super().__init__()
        self.how, self.calls = how, 0

    def model(self, x=None, *, size=1):
        self.calls += self.training
        late = self.calls > 6
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.b), 1.0))
            mean = z + self.b
            if late and self.how == "density":
                mean = mean / 0.0
            if late and self.how == "gradient":
                mean = mean + (self.b - self.b.detach()).abs().sqrt()  # 0, with slope inf
            return pyro.sample("x", dist.Normal(mean, self.s), obs=x)


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("density", r"log density is not finite at site 'x' of the model \(Normal\)"),
        ("gradient", r"the gradient is not finite at parameter\(s\) owner.b"),
    ],
)
def test_nan_stops_before_the_parameters_are_spoilt(tmp_path, how, cause):
    program = Exploding(how)
    with pytest.raises(NonFiniteLossError, match=rf"the loss became .*{cause}.*clip_grad_norm"):
        quick(program, torch.randn(100), run_dir=tmp_path, epochs=10)
    assert all(bool(torch.isfinite(p).all()) for p in program.parameters())
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(bool(torch.isfinite(v).all()) for v in state["program"].values())
    assert state["position"]["step"] > 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            lambda: {"y": torch.zeros(30).long()},
            r"names the field\(s\) 'x', which the data lack.*: y\.",
        ),
        (lambda: tiny_images(30, binary=False), r"outside the support.*Bernoulli.*--binarize"),
        (lambda: torch.zeros(0, 1, 4, 4), "there are no data"),
        (lambda: torch.zeros(2, 1, 4, 4), "no validation data"),
        (lambda: torch.zeros(30, 1, 5, 5), r"VAE fails on a batch with fields \{'x': \(8, 1, 5, 5"),
        (
            lambda: torch.zeros(30, 1, 4, 4).index_fill(0, torch.tensor([17]), torch.nan),
            r"holds nan at index \(17, 0, 0, 0\) \(16 such",
        ),
        (
            lambda: {"x": torch.zeros(30, 1, 4, 4), "y": torch.full((30,), -1)},
            "label -1 at index 0 is out of range",
        ),
    ],
)
def test_data_that_do_not_fit_are_refused(data, message):
    with pytest.raises(PplError, match=message):
        quick(tiny_vae(), data())


def test_one_grey_pixel_far_down_the_data_is_found():
    x = tiny_images(6000)
    data = from_tensors(x)
    data.test.tensors["x"][300, 0, 2, 1] = 0.5
    with pytest.raises(PplError, match=r"\(test\): field 'x' at index 300 is outside the support"):
        quick(tiny_vae(), data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "pathwize"}, "unknown estimator 'pathwize'. Did you mean 'pathwise'"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam'. Did you mean 'Adam'"),
        ({"lr_schedule": "cosin"}, "unknown learning-rate schedule 'cosin'. Did you mean 'cosine'"),
        ({"precision": "16"}, "unknown precision '16'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"epochs": 0}, "epochs must be positive, got 0"),
        ({"batch_size": -5}, "batch_size must be positive"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"kl_warmup": -1.0}, "kl_warmup must not be negative"),
        ({"keep": "all"}, "keep must be 'best' or 'last'"),
        ({"tensorboard": True}, "tensorboard needs a run_dir"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(PplError, match=message):
        quick(tiny_vae(), tiny_images(), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none():
    with pytest.raises(PplError, match=r"'cuda' was asked for.*no CUDA device.*--device cpu"):
        quick(tiny_vae(), tiny_images(), device="cuda")


def test_a_model_that_fails_is_shown_with_its_line():
    class Broken(GaussianToy):
        def model(self, x=None, *, size=1):
            raise KeyError("oops")

    with pytest.raises(ProgramError, match=r"Broken fails on a batch.*KeyError.*refusals.py, line"):
        quick(Broken(), torch.randn(40))
