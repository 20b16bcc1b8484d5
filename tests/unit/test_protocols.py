"""What is taken for a program or a mixture, on every Python: 3.12 changed ``isinstance``."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, pyro_method

from inference import fit_em
from ppl_models.gmm import GaussianMixture
from ppl_models.program import as_program

pytestmark = pytest.mark.arviz1


class WithAutoguide(PyroModule):
    """Its guide is a submodule, no attribute that Python finds by itself."""

    def __init__(self):
        super().__init__()
        self.guide = AutoNormal(self.model)

    @pyro_method
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_a_guide_may_be_a_submodule():
    assert as_program(WithAutoguide()).name == "WithAutoguide"


def test_a_mixture_is_known_by_its_buffers_too():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(50, 2), torch.randn(50, 2) + 5])
    found = fit_em(GaussianMixture((2,), 2), x, seed=0)
    assert torch.isfinite(torch.tensor(found.log_likelihood))
