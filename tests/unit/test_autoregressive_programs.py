"""PixelCNN and CodeTransformer as programs: exact likelihood, classes, refusals."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from compiled_helpers import step_of
from programs import tiny_images, tiny_vae
from pyro import poutine
from pyro.poutine.runtime import _PYRO_STACK
from torch.optim import SGD

from inference import evaluate, fit, from_tensors, load_data
from inference.drawing import Sharpened
from inference.elbo import make_estimator
from inference.runs import build_for
from inference.sampling import sample
from inference.testing import check_program
from ppl_models import PplError, ProgramError
from ppl_models.autoregressive import CodeTransformer, PixelCNN
from ppl_models.errors import without_shapes

SMALL = {
    PixelCNN: {"channels": 6, "num_layers": 2},
    CodeTransformer: {"dim": 12, "num_layers": 2, "num_heads": 2},
}
both_programs = pytest.mark.parametrize("program", SMALL)


def small(program, x_shape=(1, 4, 4), **options):
    torch.manual_seed(0)
    return program(x_shape, **SMALL[program], **options)


def codes(count=40, grid=(3, 4), values=5):
    return torch.randint(values, (count, *grid), generator=torch.Generator().manual_seed(0))


@both_programs
@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("kind", ["images", "codes"])
def test_the_contract_is_kept(program, classes, kind):
    x, options = (tiny_images(5), {}) if kind == "images" else (codes(5), {"num_values": 5})
    options |= {"class_conditional": classes, "num_classes": 3}
    batch = {"x": x} | ({"y": torch.tensor([0, 1, 2, 1, 0])} if classes else {})
    check_program(small(program, x.shape[1:], **options), batch)


@both_programs
def test_the_evaluation_is_exact_and_says_so(program):
    model, x = small(program), tiny_images(20)
    found = evaluate(model, {"x": x}, num_particles=50)
    with torch.no_grad():
        expected = float(model.prior().log_prob(x).mean())
    assert found.elbo == pytest.approx(expected, rel=1e-6)
    assert found.iwae == pytest.approx(expected, rel=1e-6)
    assert found.rate == 0
    assert found.bits_per_dim == pytest.approx(-expected / 16 / math.log(2), rel=1e-6)
    assert found.elbo_se == pytest.approx(0, abs=1e-6)
    assert "Nothing is latent" in found.note


@both_programs
def test_training_learns_a_grid_of_integers(program):
    """Columns repeat the first one: all but one place in four can be known."""
    first = torch.randint(5, (400, 3, 1), generator=torch.Generator().manual_seed(0))
    data = from_tensors({"x": first.expand(-1, -1, 4).contiguous()})
    fitted = fit(
        small(program, (3, 4), num_values=5), data, epochs=40, batch_size=50, learning_rate=0.01
    )
    nats = -evaluate(fitted.program, fitted.data.test).elbo
    assert 0.9 * 3 * math.log(5) < nats < 1.3 * 3 * math.log(5)  # of 12 log 5 in all


@both_programs
def test_classes_condition(program):
    x = torch.zeros(300, 1, 3, 3)
    y = torch.arange(300) % 2
    x[y == 1] = 1.0
    model = small(program, (1, 3, 3), class_conditional=True, num_classes=2)
    fitted = fit(model, {"x": x, "y": y}, epochs=20, batch_size=30, learning_rate=0.01)
    labels = torch.tensor([0, 1]).repeat(20)
    drawn = sample(fitted.program, 40, given={"y": labels})["x"]
    assert float((drawn.mean((1, 2, 3)) - labels).abs().mean()) < 0.1
    free = sample(fitted.program, 40)
    assert free["x"].shape == (40, 1, 3, 3)
    assert set(free["y"].tolist()) == {0, 1}


def test_labels_that_are_not_needed_are_passed_over():
    data = {"x": tiny_images(40), "y": torch.arange(40) % 2}
    fitted = fit(small(PixelCNN), data, epochs=1)
    assert math.isfinite(fitted.elbo)


def test_grey_images_have_as_many_values_as_the_data_have_levels():
    data = load_data("digits")
    program = build_for("pixelcnn", {"channels": 4, "num_layers": 1}, data.info)
    assert program.owner.prior.network.num_values == data.info.levels
    assert math.isfinite(evaluate(program, next(data.test.batches(20))).bits_per_dim)


@both_programs
@pytest.mark.slow
def test_the_compiled_step_is_the_eager_one(program):
    x = tiny_images(6)
    losses = {}
    for compiled in (True, False):
        made = partial(SGD, lr=1e-3)
        step = step_of(small(program), make_estimator("analytic_kl"), x, make_optimizer=made)
        if not compiled:
            step.compiled = None
        losses[compiled] = [float(step({"x": x})[0]) for _ in range(4)]
        assert step.compiled is None or step.compiled.failure is None
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    assert len(set(losses[True])) == 4


def test_temperature_and_top_k_reach_the_site():
    program = small(PixelCNN, (4, 5), num_values=6)
    greedy = sample(program, 8, sharpened=Sharpened(top_k=1, progress=False))["x"]
    assert torch.equal(greedy, greedy[:1].expand_as(greedy))
    plain = sample(program, 8)["x"]
    assert torch.equal(plain, sample(program, 8, sharpened=Sharpened(progress=False))["x"])
    cold = sample(program, 8, sharpened=Sharpened(0.01, progress=False))["x"]
    assert float((cold == greedy).float().mean()) > 0.9


def test_a_bar_goes_over_the_positions(capsys):
    sample(small(PixelCNN, (4, 5), num_values=6), 2, sharpened=Sharpened(progress=True))
    assert "20/20" in capsys.readouterr().err


def test_top_k_without_an_autoregressive_site_is_refused():
    with pytest.raises(PplError, match="top_k is of autoregressive sites, and this program draws"):
        sample(tiny_vae(), 2, sharpened=Sharpened(top_k=2))
    assert _PYRO_STACK == []
    with pytest.raises(PplError, match="temperature must be positive"):
        sample(small(PixelCNN), 2, sharpened=Sharpened(0.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PixelCNN((5,)), r"takes images \(C, h, w\) or grids of integers"),
        (lambda: PixelCNN((4, 4)), "has num_values of them"),
        (lambda: PixelCNN(num_values=1), "num_values must be a whole number of at least 2"),
        (lambda: PixelCNN(class_conditional=True), r"needs labels \(num_classes\)"),
        (lambda: CodeTransformer(dim=10), "multiple of num_heads"),
    ],
)
def test_programs_that_cannot_be_are_refused(make, message):
    with pytest.raises(PplError, match=message):
        make()


def test_data_that_do_not_fit_are_refused_before_training():
    grey = {"x": torch.rand(40, 1, 4, 4)}
    with pytest.raises(
        PplError, match=r"support of the model's AutoregressiveGrid.*--binarize dynamic"
    ):
        fit(small(PixelCNN), grey, epochs=1)
    later = tiny_images(40).clone()
    later[30] = 0.5
    with pytest.raises(PplError, match=r"at index \d+ is outside the support.*binarize"):
        fit(small(PixelCNN), {"x": later}, epochs=1)
    many = {"x": codes(values=9)}
    with pytest.raises(PplError, match=r"support.*to 8\).*integers below num_values"):
        fit(small(PixelCNN, (3, 4), num_values=5), many, epochs=1)
    model = small(PixelCNN, class_conditional=True, num_classes=2)
    with pytest.raises(ProgramError, match="data without labels"):
        fit(model, {"x": tiny_images(40)}, epochs=1)
    with pytest.raises(ProgramError, match="class_conditional=True"):
        sample(small(PixelCNN), 3, given={"y": torch.tensor([1, 1, 1])})


def test_a_refusal_within_a_trace_is_told_without_pyros_table():
    program = PixelCNN((1, 4, 4), 4, 1)
    with pytest.raises(PplError) as caught:
        poutine.trace(program.model).get_trace(y=torch.tensor([0]))
    assert "Trace Shapes" in str(caught.value)
    assert without_shapes(str(caught.value)).endswith("(--model.class_conditional true)")
