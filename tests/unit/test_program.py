"""Programs: what they take, what they own, and that Pyro's global state is left alone."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import GlobalMean, tiny_images, tiny_vae
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn

from inference import fit, log_weights
from inference.elbo import AnalyticKL
from ppl_models import Program, ProgramError, as_program


def test_fields_are_positional_and_options_keyword_only():
    def model(x, y=None, *, size=1, num_data=None):
        pass

    program = Program(model, lambda x: None)
    assert program.fields == ("x", "y")
    assert program.options == {"size", "num_data"}


def test_model_and_guide_get_the_fields_they_name():
    seen = {}

    def model(x, y):
        seen["model"] = (x, y)

    def guide(y):
        seen["guide"] = y

    program = Program(model, guide)
    batch = {"x": torch.zeros(2), "y": torch.ones(2), "other": torch.ones(2)}
    program.run_model(batch, unknown_option=1)
    program.run_guide(batch)
    assert torch.equal(seen["model"][0], batch["x"])
    assert torch.equal(seen["guide"], batch["y"])


def test_an_object_without_guide_is_refused_with_the_remedy():
    class NoGuide:
        def model(self, x):
            pass

    with pytest.raises(ProgramError, match=r"NoGuide has no `guide`.*AutoNormal"):
        as_program(NoGuide())


def test_a_model_without_size_cannot_be_sampled():
    with pytest.raises(ProgramError, match="keyword-only option `size`"):
        Program(lambda x: None, lambda x: None).draw_prior(3)


def test_pyro_params_belong_to_the_program():
    program = as_program(GlobalMean())
    batch = {"x": torch.zeros(4)}
    with program.scope():
        program.run_guide(batch)
    assert set(program.state_dict()) == {"pyro_params.loc", "pyro_params.scale"}
    assert float(program.param("scale")) == pytest.approx(1.0)
    with torch.no_grad():
        program.pyro_params["scale"].fill_(-1.0)  # unconstrained: the value is exp(-1)
    assert float(program.param("scale")) == pytest.approx(0.36788, abs=1e-4)
    assert dict(pyro.get_param_store()) == {}
    with pytest.raises(ProgramError, match=r"no pyro.param 'lok'.*loc, scale"):
        program.param("lok")


def test_the_wrapper_of_an_object_is_always_the_same():
    mean = GlobalMean()
    fitted = fit(
        mean, torch.randn(100) + 3, epochs=10, batch_size=10, learning_rate=0.1, progress=False
    )
    assert as_program(mean) is fitted.program
    assert float(as_program(mean).param("loc")) > 2


def test_a_replaced_guide_gets_a_new_wrapper():
    class Both:
        def model(self, x):
            pass

        def guide(self, x):
            pass

    both = Both()
    first = as_program(both)
    both.guide = lambda x: None
    assert as_program(both) is not first


def test_the_global_parameter_store_is_left_alone():
    pyro.param("loc", torch.tensor(7.0))
    fit(GlobalMean(), torch.randn(50), epochs=1, progress=False)
    assert float(pyro.param("loc").detach()) == 7.0
    assert set(pyro.get_param_store().keys()) == {"loc"}


def test_a_second_model_in_one_process_is_trained_too():
    """Stock SVI leaves a second model's weights as they were: its names are in the store."""
    for seed in (0, 1):
        torch.manual_seed(seed)
        vae = tiny_vae()
        before = copy.deepcopy(vae.state_dict())
        fit(vae, tiny_images(), epochs=1, progress=False)
        assert all(not torch.equal(vae.state_dict()[k], v) for k, v in before.items())


def test_training_works_after_stock_svi_on_the_same_module():
    vae = tiny_vae()
    x = tiny_images(20)
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), AnalyticKL())
    stock = svi.step(x)
    assert stock > 0
    before = copy.deepcopy(vae.state_dict())
    fit(vae, x, epochs=2, progress=False)
    assert all(not torch.equal(vae.state_dict()[k], v) for k, v in before.items())


def test_a_deep_copy_shares_nothing():
    program = as_program(tiny_vae())
    twin = copy.deepcopy(program)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert all(bool(p.abs().sum() > 0) for n, p in program.named_parameters() if "weight" in n)
    twin_guide_owner = twin.guide.__self__
    assert twin_guide_owner is twin.owner
    assert twin_guide_owner is not program.owner


def test_plain_functions_with_pyro_module_are_trained():
    decoder = nn.Linear(2, 3)

    def model(x=None, *, size=1):
        pyro.module("decoder", decoder)
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    before = decoder.weight.detach().clone()
    fitted = fit(Program(model, guide), torch.randn(40, 3), epochs=2, progress=False)
    assert not torch.equal(decoder.weight, before)
    assert len(list(fitted.program.parameters())) == 3


def test_autoguides_are_trained():
    def model(x=None, *, size=1, num_data=None):
        rows = size if x is None else len(x)
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", num_data or rows, subsample=torch.arange(rows), dim=-1):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    guide = AutoNormal(model)
    x = torch.randn(400) + 4
    fitted = fit(Program(model, guide), x, epochs=60, learning_rate=0.05, progress=False, seed=3)
    train = fitted.data.train.tensors["x"]
    posterior_mean = train.sum() / (len(train) + 1 / 100)
    # AutoNormal's mean after 240 noisy steps of Adam; the posterior's own sd is 0.056.
    assert float(guide.locs.mu.detach()) == pytest.approx(float(posterior_mean), abs=0.15)
    assert len(list(fitted.program.parameters())) == 2


class BayesianRegression(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))

    def model(self, x, t=None):
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("t", dist.Normal(mean, 1.0), obs=t)

    def guide(self, x, t):
        loc = pyro.param("w", torch.zeros(1, 2))
        pyro.sample("linear.weight", dist.Normal(loc, 0.1).to_event(2))


BayesianRegression.model = pyro.nn.pyro_method(BayesianRegression.model)


def test_random_attributes_keep_their_context():
    """``pyro_method``'s context is skipped where it does nothing, but not for PyroSample."""
    program = as_program(BayesianRegression())
    batch = {"x": torch.randn(5, 2), "t": torch.randn(5)}
    with program.scope():
        trace = pyro.poutine.trace(program.run_model).get_trace(batch)
    assert "linear.weight" in trace.nodes


def test_log_weights_of_a_raw_object_use_its_trained_parameters():
    mean = GlobalMean()
    fit(mean, torch.randn(100) + 5, epochs=10, batch_size=10, learning_rate=0.1, progress=False)
    weights = log_weights(mean, {"x": torch.full((3,), 5.0)}, 50)
    assert float(weights.mean()) > -2.5  # at loc = 0 it would be about -13
