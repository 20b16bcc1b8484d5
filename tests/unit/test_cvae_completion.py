"""Completion: seen pixels are inputs, hidden ones are scored and drawn."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from programs import tiny_images

from inference import evaluate, fit
from inference.data import MemorySplit
from inference.latents import interpolate, resynthesize, traverse
from inference.sampling import decode, reconstruct, sample, to_complete
from ppl_models import PplError, ProgramError, as_program
from ppl_models.cvae_completion import CompletionBaseline, CompletionCVAE, hidden_quadrants
from ppl_models.distributions import Completed
from ppl_models.vae import VAE


def tiny(num_quadrants: int = 1) -> CompletionCVAE:
    torch.manual_seed(0)
    return CompletionCVAE((1, 4, 4), num_quadrants, 2, (8,))


@pytest.mark.parametrize("num", [1, 2, 3])
def test_which_quadrants_are_seen(num):
    """Bottom left, then the left half, then all but the bottom right, as in the literature."""
    hidden = hidden_quadrants((1, 4, 6), num)[0]
    assert (~hidden).sum() == num * 6
    corners = {(r, c): bool(hidden[r, c]) for r in (0, 3) for c in (0, 5)}
    order = [(3, 0), (0, 0), (0, 5), (3, 5)]
    assert [corners[place] for place in order] == [i >= num for i in range(4)]


def test_odd_sides_leave_every_pixel_in_one_quadrant():
    sizes = [int((~hidden_quadrants((1, 5, 7), n)).sum()) for n in (1, 2, 3)]
    assert sizes == [3 * 3, 5 * 3, 5 * 3 + 2 * 4]


def test_the_density_is_that_of_the_hidden_pixels():
    hidden = hidden_quadrants((1, 4, 4), 1)
    base = dist.Bernoulli(logits=torch.randn(5, 1, 4, 4)).to_event(3)
    x, other = tiny_images(5), tiny_images(5, seed=3)
    p = Completed(base, hidden, x)
    expected = (base.base_dist.log_prob(x) * hidden).flatten(1).sum(1)
    torch.testing.assert_close(p.log_prob(x), expected)
    torch.testing.assert_close(p.log_prob(torch.where(hidden, x, other)), expected)
    torch.testing.assert_close(p.expand((3, 5)).log_prob(x), expected.expand(3, 5))


def test_the_hidden_pixels_mass_sums_to_one():
    hidden = torch.tensor([[[True, False], [True, True]]])
    base = dist.Bernoulli(logits=torch.randn(1, 2, 2)).to_event(3)
    p = Completed(base, hidden, torch.zeros(1, 2, 2))
    values = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    images = torch.zeros(8, 1, 2, 2)
    images[:, hidden] = values
    assert float(p.expand((8,)).log_prob(images).exp().sum()) == pytest.approx(1, abs=1e-6)


def test_draws_and_means_keep_what_is_seen():
    program, x = tiny(2), tiny_images(5)
    hidden = program.hidden.expand(5, 1, 4, 4)
    for image in (
        program.complete(x, 3)[2].detach(),
        reconstruct(program, {"x": x})["x"],
        reconstruct(program, {"x": x}, draw="sample")["x"],
    ):
        assert torch.equal(image[~hidden], x[~hidden])
        assert not torch.equal(image[hidden], x[hidden])


@pytest.mark.parametrize("num", [1, 3])
def test_what_is_explored_is_seen_in_its_seen_part(num):
    """Codes are decoded beside the images they are of, not beside black quadrants."""
    program, x = tiny(num), tiny_images(3)
    hidden = program.hidden.expand(3, 1, 4, 4)
    again = resynthesize(program, {"x": x})
    expected = program.decode(program.posterior(x).mean, x).mean
    torch.testing.assert_close(again, expected)
    assert torch.equal(again[~hidden], x[~hidden])
    walks = interpolate(program, {"x": x}, num_steps=3)
    torch.testing.assert_close(walks[:, 0], expected[:2])
    torch.testing.assert_close(walks[:, 2], expected[1:])
    rows = traverse(program, [1], batch={"x": x[:1]}, num_steps=3)
    assert torch.equal(rows[0][~hidden], x[:1].expand(3, 1, 4, 4)[~hidden])


@pytest.mark.parametrize("draw", ["mean", "sample"])
def test_samples_complete_what_is_given(draw):
    program, x = tiny(2), tiny_images(3)
    given = to_complete(as_program(program), MemorySplit({"x": x}), 5)
    assert torch.equal(given["x"], x[[0, 1, 2, 0, 1]])
    hidden = program.hidden.expand(5, 1, 4, 4)
    z = torch.randn(5, 2)
    for image in (
        sample(program, 5, draw=draw, given=given)["x"],
        decode(program, {"z": z}, given=given, draw=draw),
    ):
        assert torch.equal(image[~hidden], given["x"][~hidden])
        assert not torch.equal(image[hidden], given["x"][hidden])
    other = VAE((1, 4, 4), 2, (8,))
    assert to_complete(as_program(other), MemorySplit({"x": x}), 5) == {}


def test_the_prior_reads_the_seen_pixels_alone():
    program, x = tiny(1), tiny_images(5)
    other = torch.where(program.hidden, 1 - x, x)
    torch.testing.assert_close(program.prior(x).mean, program.prior(other).mean)
    z = torch.randn(5, 2)
    ours, theirs = (program.decode(z, image).base_dist.mean for image in (x, other))
    torch.testing.assert_close(ours, theirs)
    changed = torch.where(program.hidden, x, 1 - x)
    assert not torch.allclose(program.prior(x).mean, program.prior(changed).mean)


def test_the_baseline_is_exact_and_has_no_latents():
    program = CompletionBaseline((1, 4, 4), 1, (8,))
    result = evaluate(program, {"x": tiny_images(5)}, num_particles=4)
    assert result.rate == 0
    assert result.elbo == pytest.approx(result.iwae)
    assert result.iwae_se == 0


def test_what_is_seen_tells_the_rest():
    """All-black and all-white images: nothing is left to guess."""
    x = (torch.arange(100) % 2).float().view(-1, 1, 1, 1).expand(100, 1, 4, 4).contiguous()
    for program in (CompletionBaseline((1, 4, 4), 1, (8,)), tiny()):
        assert evaluate(program, {"x": x}).elbo < -5
        fit(program, x, epochs=20, batch_size=10, learning_rate=0.02, progress=False)
        assert evaluate(program, {"x": x}).elbo > -0.5


def test_errors():
    with pytest.raises(ProgramError, match="num_quadrants must be 1, 2 or 3, got 4"):
        tiny(4)
    with pytest.raises(ProgramError, match=r"quadrants are of images \(C, H, W\), got \(16,\)"):
        CompletionCVAE((16,))
    with pytest.raises(PplError, match="outside the support of the model's Completed Bernoulli"):
        fit(tiny(), tiny_images(30, binary=False), progress=False)
