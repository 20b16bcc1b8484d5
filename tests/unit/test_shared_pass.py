"""What model and guide share is computed once, and only where it is the same."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref

import pyro
import pytest
import torch
from programs import tiny_images
from pyro import poutine
from torch import nn

from inference import ESTIMATORS
from inference.elbo import make_estimator
from inference.elbo.traces import run_model, run_traces, with_value
from inference.vectorize import can_vectorize
from ppl_models import ProgramError, as_program
from ppl_models.hierarchical_vae import HierarchicalVAE
from ppl_models.ladder_vae import LadderVAE
from ppl_models.shared_pass import KEY, SharedPass


def tiny_hierarchy(**options) -> HierarchicalVAE:
    torch.manual_seed(0)
    return HierarchicalVAE((1, 4, 4), (2, 1), 2, 4, encoder_cells=1, **options)


def tiny_ladder(**options) -> LadderVAE:
    torch.manual_seed(0)
    return LadderVAE((1, 4, 4), (2, 3), (6, 8), **({"likelihood": "bernoulli"} | options))


X = tiny_images(5)


class Counted:
    """How often modules were called."""

    def __init__(self, *modules: nn.Module):
        self.calls = 0
        for module in modules:
            module.register_forward_hook(self._count)

    def _count(self, *_):
        self.calls += 1


def steps_and_priors(program) -> Counted:
    return Counted(*(m for group in program.groups for m in (group.prior, group.step)))


@pytest.mark.parametrize("make", [tiny_hierarchy, tiny_ladder])
@pytest.mark.parametrize("enabled", [True, False])
def test_the_top_down_pass_is_run_once(make, enabled):
    program = make()
    program.shared.enabled = enabled
    counted = steps_and_priors(program)
    run_traces(program.model, program.guide, (X,), {})
    assert counted.calls == 2 * len(program.groups) * (1 if enabled else 2)


def loss_and_gradients(program, estimator, enabled, seed=3):
    program.shared.enabled = enabled
    wrapped = as_program(program)
    torch.manual_seed(seed)
    with wrapped.scope():
        for parameter in wrapped.parameters():
            parameter.grad = None
        loss = estimator.differentiable_loss(
            wrapped.run_model, wrapped.run_guide, {"x": X.double()}
        )
        loss.backward()
    gradients = {n: p.grad.clone() for n, p in wrapped.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def served_by(program) -> list[str]:
    """Names of the estimators that take a program."""
    wrapped, found = as_program(program), []
    with wrapped.scope(), torch.no_grad():
        traces = run_traces(wrapped.run_model, wrapped.run_guide, ({"x": X.double()},), {})
    for name, kind in ESTIMATORS.items():
        try:
            make_estimator(name, num_particles=max(2, kind.min_particles)).prepare(traces)
        except ProgramError:
            continue
        found.append(name)
    return found


CONTINUOUS = {
    *("pathwise", "analytic_kl", "iwae", "sticking_the_landing", "doubly_reparameterized"),
    *("score_function", "leave_one_out", "vimco", "reweighted_wake_sleep", "decaying_average"),
}


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("make", [tiny_hierarchy, tiny_ladder])
def test_every_estimator_gives_the_same_with_and_without(make, vectorized):
    program = make().double()
    names = served_by(program)
    assert set(names) >= CONTINUOUS
    for name in names:
        outcomes = []
        for enabled in (True, False):
            torch.manual_seed(1)  # of an estimator's own networks
            particles = max(2, ESTIMATORS[name].min_particles)
            estimator = make_estimator(
                name, num_particles=particles, vectorize_particles=vectorized
            )
            outcomes.append(loss_and_gradients(program, estimator, enabled))
        (ours, shared), (theirs, apart) = outcomes
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=name)
        assert set(shared) == set(apart), name
        for parameter, gradient in apart.items():
            scale = float(gradient.abs().max()) + 1e-12
            gap = float((shared[parameter] - gradient).abs().max())
            assert gap <= 1e-10 * scale + 1e-11, (name, parameter, gap, scale)


@pytest.mark.parametrize("make", [tiny_hierarchy, tiny_ladder])
def test_particles_in_one_pass_have_the_densities_that_each_has_by_itself(make):
    assert can_vectorize(as_program(make()), {"x": X}, None, plates=1)


def test_a_guide_without_gradient_gives_the_model_none_of_its_states():
    program = tiny_hierarchy()
    with torch.no_grad():
        guide = poutine.trace(program.guide).get_trace(X)
    counted = steps_and_priors(program)
    run_model(program.model, guide, (X,), {}).log_prob_sum().backward()
    assert counted.calls == 2 * len(program.groups)
    assert all(p.grad is not None for group in program.groups for p in group.step.parameters())


def test_parameters_written_to_since_are_seen():
    program = tiny_hierarchy()
    guide = poutine.trace(program.guide).get_trace(X)
    with torch.no_grad():
        program.groups[1].step.spread.bias.add_(1.0)
    ours = run_model(program.model, guide, (X,), {}).log_prob_sum()
    theirs = run_model(program.model, guide, (X,), {}).log_prob_sum()  # nothing is remembered
    assert torch.equal(ours, theirs)


def test_parameters_freed_since_get_their_gradients():
    program = tiny_hierarchy()
    steps = [group.step for group in program.groups]
    for step in steps:
        step.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pyro's, that they are frozen
        guide = poutine.trace(program.guide).get_trace(X)
    for step in steps:
        step.requires_grad_(True)
    run_model(program.model, guide, (X,), {}).log_prob_sum().backward()
    assert all(p.grad is not None for step in steps for p in step.parameters())


class Times(nn.Module):
    """A number that is no parameter."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor
        self.drop = nn.Dropout(0.5)

    def forward(self, z):
        return self.drop(self.factor * z)


def test_modules_made_on_the_spot_are_not_mistaken_for_one_another():
    shared, z = SharedPass(), torch.ones(1)
    with shared.in_guide() as kept:
        held = kept()
        found = [float(shared(Times(factor).eval(), z)) for factor in range(5)]
    assert found == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert held[KEY].results


def test_the_mode_of_a_part_is_seen():
    shared, z, module = SharedPass(), torch.ones(1000), Times(1.0)
    with shared.in_guide() as kept:
        held = kept()
        noisy = shared(module, z)
    module.drop.eval()
    with shared.in_model():
        assert torch.equal(shared(module, z), z)
    assert not torch.equal(noisy, z)
    assert not held[KEY].results


@pytest.mark.parametrize("replace", [torch.clone, torch.detach])
def test_a_replaced_draw_is_computed_anew_with_all_below_it(replace):
    program = tiny_hierarchy()
    guide = poutine.trace(program.guide).get_trace(X)
    given = guide.copy()
    given.nodes["z_2"] = with_value(guide.nodes["z_2"], replace(guide.nodes["z_2"]["value"]))
    counted = [Counted(group.step) for group in program.groups]
    run_model(program.model, given, (X,), {})
    assert [c.calls for c in counted] == [0, 1, 1]


def test_a_draw_written_to_is_computed_anew():
    program = tiny_hierarchy()
    with torch.no_grad():
        guide = poutine.trace(program.guide).get_trace(X)
        guide.nodes["z_1"]["value"].mul_(2)
        ours = run_model(program.model, guide, (X,), {}).nodes["z_2"]["fn"].base_dist.loc
        theirs = run_model(program.model, guide, (X,), {}).nodes["z_2"]["fn"].base_dist.loc
    assert torch.equal(ours, theirs)


def test_a_step_is_forgotten_at_the_models_end_and_with_the_guides_trace():
    program = tiny_hierarchy()
    gc.disable()  # what a cycle would keep is kept
    try:
        guide = poutine.trace(program.guide).get_trace(X)
        memory = weakref.ref(guide.nodes["z_1"]["infer"][KEY])
        assert memory().results
        run_model(program.model, guide, (X,), {})
        assert not memory().results
        del guide
        assert memory() is None
        alone = poutine.trace(program.guide).get_trace(X)  # no model follows
        memory = weakref.ref(alone.nodes["z_1"]["infer"][KEY])
        del alone
        assert memory() is None
    finally:
        gc.enable()


def test_a_copy_has_a_memory_of_its_own():
    program = tiny_hierarchy()
    guide = poutine.trace(program.guide).get_trace(X)
    twin = copy.deepcopy(program)
    counted = steps_and_priors(twin)
    run_model(twin.model, guide, (X,), {})
    assert counted.calls == 2 * len(program.groups)


def test_drawing_from_the_prior_remembers_nothing():
    program = tiny_hierarchy()
    counted = steps_and_priors(program)
    for _ in range(2):
        assert program.model(size=3).shape == (3, 1, 4, 4)
    assert counted.calls == 2 * 2 * len(program.groups)


class OwnStory(nn.Module):
    """A user's program of two sites, written by the module's docstring."""

    def __init__(self):
        super().__init__()
        self.cell = nn.Linear(1, 1)
        self.loc = nn.Linear(1, 1)
        self.shared = SharedPass()

    def model(self, x=None, *, size=1):
        with self.shared.in_model(), pyro.plate("data", size if x is None else len(x), dim=-1):
            z_1 = pyro.sample("z_1", unit(torch.zeros(1)))
            state = self.shared(self.cell, z_1)
            z_2 = pyro.sample("z_2", unit(state))
            return pyro.sample("x", unit(z_2), obs=x)

    def guide(self, x):
        with self.shared.in_guide() as kept, pyro.plate("data", len(x), dim=-1):
            z_1 = pyro.sample("z_1", unit(self.loc(x)), infer=kept())
            state = self.shared(self.cell, z_1)
            pyro.sample("z_2", unit(state + x), infer=kept())


def unit(loc):
    return pyro.distributions.Normal(loc, 1.0).to_event(1)


def test_a_users_own_program_shares_as_well():
    program = OwnStory()
    counted = Counted(program.cell)
    traces = run_traces(program.model, program.guide, (torch.randn(4, 1),), {})
    assert counted.calls == 1
    (traces.model.log_prob_sum() - traces.guide.log_prob_sum()).backward()
    assert program.cell.weight.grad is not None
