"""What the estimators refuse, by site, with the remedy, before any step; and Pyro's traps.

Traps are those of ``shared/reference/estimators.md``; a test names the one it is for.
"""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from elbo_helpers import (
    CONTINUOUS,
    K_SAMPLE,
    LUCK,
    BitCopies,
    CategoricalCopies,
    GaussianCopies,
    MixedCopies,
    OneHotCopies,
    TwoLayerCopies,
    bound,
    exact_gradients,
    gradients,
    make,
    served,
    worst,
    z_scores,
)
from programs import DiscreteVAE, GaussianToy, tiny_images
from pyro import poutine
from pyro.infer import (
    SVI,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    config_enumerate,
)

from inference.elbo import ESTIMATORS, make_estimator, score_function
from ppl_models import PplError, ProgramError, UnknownNameError

N = 100_000


def refused(program, estimator, match):
    """A step of stock SVI fails with the message and changes nothing."""
    before = {n: p.detach().clone() for n, p in program.named_parameters()}
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.1}), estimator)
    with pytest.raises(ProgramError, match=match):
        svi.step(program.data())
    for name, parameter in program.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_discrete_site_is_refused_by_name(name):
    match = r"guide site 'b' is Bernoulli.*no rsample.*" + remedy(name)
    refused(BitCopies(3), make(name), match)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_site_made_score_function_is_refused_by_name(name):
    program = GaussianCopies(3)
    program.guide = score_function(program.guide, sites=["z"])
    refused(program, make(name), r"guide site 'z'.*no rsample.*" + remedy(name))


def remedy(name):
    return "'vimco'" if name in K_SAMPLE else "'leave_one_out'.*'score_function'.*'enumerate'"


@pytest.mark.parametrize("name", ["enumerate", "disarm", "rebar", "relax", "gumbel_softmax"])
def test_a_program_without_discrete_latents_is_refused(name):
    refused(GaussianCopies(3), make(name), "use '(analytic_kl|pathwise)'")


class PoissonCopies(GaussianCopies):
    """A discrete latent of infinitely many states."""

    def model(self, x):
        with self.plate():
            z = pyro.sample("z", dist.Poisson(self.log_sigma.exp()))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with self.plate():
            pyro.sample("z", dist.Poisson(self.log_sigma.exp()))


@pytest.mark.parametrize("kind", [PoissonCopies, MixedCopies])
def test_enumeration_of_what_has_no_finite_states(kind):
    """A continuous latent is pathwise there, one that is score-function-only is not."""
    program = kind(3)
    if kind is MixedCopies:
        assert make("enumerate").loss(program.model, program.guide, program.data()) > 0
        program.guide = score_function(program.guide, sites=["z"])
    refused(program, make("enumerate"), r"site 'z' .*no finite set of states; use 'leave_one_out'")


@pytest.mark.parametrize(("count", "fits"), [(12, True), (13, False)])
def test_joint_states_of_independent_bits(count, fits):
    """Trap: stock TraceEnum_ELBO draws ``Bernoulli.to_event(1)`` without a word."""
    start = {"logits": [0.1] * count, "prior": [0.0] * count, "w": [0.5] * count}
    program = BitCopies(1, **start)
    if not fits:
        refused(program, make("enumerate"), r"site 'b' \(Bernoulli.*more than 4,096 joint states")
        return
    losses = {make("enumerate").loss(program.model, program.guide, program.data()) for _ in "ab"}
    assert len(losses) == 1
    assert losses.pop() == pytest.approx(-float(bound(program.double()).detach()), rel=1e-4)
    stock = TraceEnum_ELBO(max_plate_nesting=1)
    guide = config_enumerate(program.guide, "parallel")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there is nothing to enumerate
        assert len({stock.loss(program.model, guide, program.data()) for _ in range(9)}) > 1


@pytest.mark.parametrize("name", ["leave_one_out", "vimco", "reweighted_wake_sleep"])
@pytest.mark.parametrize("construct", [make_estimator, lambda n, k: ESTIMATORS[n](num_particles=k)])
def test_too_few_particles(name, construct):
    match = rf"'{name}' needs at least 2 particles, got num_particles=1: "
    with pytest.raises(PplError, match=match):
        construct(name, 1)


@pytest.mark.parametrize("name", ["gumbel_softmax", "straight_through", "rebar", "relax"])
def test_a_class_by_its_index_cannot_be_relaxed(name):
    match = r"guide site 'c' is Categorical; write it as OneHotCategorical.*'leave_one_out'"
    refused(CategoricalCopies(3), make(name), match)


@pytest.mark.parametrize("kind", [CategoricalCopies, OneHotCopies])
def test_disarm_is_for_bernoulli_sites(kind):
    refused(kind(3), make("disarm"), r"guide site 'c' is .*Categorical; use 'leave_one_out'")


@pytest.mark.parametrize("name", ["rebar", "relax"])
@pytest.mark.parametrize("kind", [TwoLayerCopies, MixedCopies])
def test_rebar_is_for_one_discrete_site_at_the_end(name, kind):
    sites = "'b1', 'b2'" if kind is TwoLayerCopies else "'y', 'z'"
    match = rf"one discrete site that the guide draws last.*{sites}.*Use 'disarm' or 'leave_one_o"
    refused(kind(3), make(name), match)


@pytest.mark.parametrize("name", ["gumbel_softmax", "straight_through", "rebar", "relax"])
@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_temperatures_are_positive(name, temperature):
    with pytest.raises(PplError, match="temperature must be positive, got"):
        make(name, temperature=temperature)


def test_wrong_sites():
    with pytest.raises(PplError, match="sites must be 'auto', 'all' or a list of names, got 'z'"):
        make("score_function", sites="z")
    program = MixedCopies(3)
    estimator = make("score_function", sites=["z1"])
    with pytest.raises(UnknownNameError, match=r"unknown guide site 'z1'. Did you mean 'z'\?"):
        estimator.loss(program.model, program.guide, program.data())


@pytest.mark.parametrize("sites", ["auto", "all", ["z"]])
def test_sites_that_take_the_score_function(sites):
    """Discrete ones always, others if asked for; the mean is the same."""
    found = gradients(MixedCopies(N), make("score_function", sites=sites))
    assert worst(found, exact_gradients(MixedCopies, bound)) < LUCK
    auto = gradients(MixedCopies(N), make("score_function"))
    ratio = float(found["log_sigma"].var() / auto["log_sigma"].var())
    assert ratio == pytest.approx(1.0, abs=0.1) if sites == "auto" else ratio > 1.5


@pytest.mark.parametrize("name", ["neural_baseline"])
def test_a_neural_baseline_needs_data(name):
    class Nothing(BitCopies):
        def model(self, x):
            with self.plate():
                pyro.sample("b", dist.Bernoulli(logits=self.prior).to_event(1))

    refused(Nothing(3), make(name), r"no observed site stands in a plate with guide site 'b'; use")


@pytest.mark.parametrize("name", [n for n in ESTIMATORS if n != "enumerate"])
def test_a_latent_that_the_guide_leaves_out(name):
    program = served(name)(3)
    program.guide = lambda x: None
    latent = "z" if name in CONTINUOUS else "b"
    with pytest.raises(
        ProgramError, match=rf"'{latent}'|has none|no sites|reparameterized already"
    ):
        make(name).loss(program.model, program.guide, program.data())


def test_tail_adaptive_is_not_offered():
    """Trap: stock TraceTailAdaptive_ELBO gives the largest weight the smallest γ."""
    assert not [name for name in ESTIMATORS if "tail" in name]


# The handler score_function ---------------------------------------------------------------------


@pytest.mark.parametrize("sites", [None, "z", ["z"]])
@pytest.mark.parametrize("particles", [1, 3])
def test_the_handler_makes_a_site_score_function(sites, particles):
    """Stock Trace_ELBO, vectorized too: the mean and the variance of REINFORCE.

    Trap: ``has_rsample_(False)`` then ``to_event`` in a plate raises an AttributeError.
    """
    program = GaussianCopies(N)
    program.guide = score_function(program.guide, sites=sites)
    program.zero_grad()
    vectorize = particles > 1
    stock = Trace_ELBO(num_particles=particles, vectorize_particles=vectorize, max_plate_nesting=1)
    (-stock.differentiable_loss(program.model, program.guide, program.data())).backward()
    found = {n: p.grad.double() for n, p in program.named_parameters()}
    assert worst(found, exact_gradients(GaussianCopies, bound)) < LUCK
    ours = gradients(GaussianCopies(N), make("score_function", particles))
    assert float(found["m"].var()) == pytest.approx(float(ours["m"].var()), rel=0.05)


def test_the_handler_survives_events_and_expansion():
    loc = torch.zeros(3, requires_grad=True)

    def guide():
        with pyro.plate("data", 5, dim=-1):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1).mask(torch.ones(5).bool()))
        pyro.sample("w", dist.Normal(loc, 1.0).expand([2, 3]).to_event(2))

    trace = poutine.trace(score_function(guide)).get_trace()
    for name, shape in (("z", (5, 3)), ("w", (2, 3))):
        fn = trace.nodes[name]["fn"]
        assert not fn.has_rsample
        assert not fn.expand([4, *fn.batch_shape]).has_rsample
        assert trace.nodes[name]["value"].shape == shape
        assert not trace.nodes[name]["value"].requires_grad
        assert fn.log_prob(trace.nodes[name]["value"]).requires_grad
    only = poutine.trace(score_function(guide, "w")).get_trace()
    assert only.nodes["z"]["value"].requires_grad


@pytest.mark.parametrize("trace", [False, True])
def test_the_handler_refuses_unknown_sites(trace):
    program = GaussianCopies(3)
    guide = score_function(program.guide, sites=["zz"])
    run = poutine.trace(guide).get_trace if trace else guide
    with pytest.raises(UnknownNameError, match=r"unknown guide site 'zz'. Did you mean 'z'\?"):
        run(program.data())
    with pytest.raises(PplError, match="takes a guide, which is callable"):
        score_function(3)


# Traps of stock Pyro ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["decaying_average", "neural_baseline", "rebar", "relax"])
def test_a_short_last_batch(name):
    """Trap: TraceGraph_ELBO's decaying average has the plate's shape, and crashes here."""
    program, estimator = DiscreteVAE(), make(name)
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 1e-2}), estimator)
    assert all(svi.step(tiny_images(size)) > 0 for size in (20, 20, 7, 1))

    def guide(x):
        with poutine.infer_config(config_fn=lambda site: {"baseline": baseline}):
            program.guide(x)

    baseline = {"use_decaying_avg_baseline": True}
    stock = SVI(program.model, guide, pyro.optim.Adam({"lr": 1e-2}), TraceGraph_ELBO())
    stock.step(tiny_images(20))
    with pytest.raises(RuntimeError):
        stock.step(tiny_images(7))


def test_the_bound_has_a_gradient_at_score_function_sites():
    """Trap: stock RenyiELBO's gradient of the guide is exactly zero there; ``vimco``'s is right."""
    program = BitCopies(1000)

    def registered(fn):
        def run(x):
            pyro.module("program", program)
            fn(x)

        return run

    renyi = RenyiELBO(alpha=0, num_particles=2)
    renyi.loss_and_grads(registered(program.model), registered(program.guide), program.data())
    assert program.w.grad.any()
    assert not program.logits.grad.any()
    exact = exact_gradients(BitCopies, bound, 2)["logits"]
    assert float(exact.abs().max()) > 0.05
    found = gradients(BitCopies(N), make("vimco"))["logits"]
    assert float(z_scores(found, exact).abs().max()) < LUCK


@pytest.mark.parametrize("name", [n for n in ESTIMATORS if n not in K_SAMPLE])
def test_plain_modules_have_gradients(name):
    """Trap: stock Trace_ELBO.loss_and_grads gives a plain ``nn.Module``'s parameters none."""
    program = served(name)(3)
    make(name).loss_and_grads(program.model, program.guide, program.data())
    assert all(p.grad is not None for p in program.parameters())
    toy = GaussianToy()
    Trace_ELBO().loss_and_grads(toy.model, toy.guide, torch.tensor([0.5]))
    assert toy.m.grad is None
