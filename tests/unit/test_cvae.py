"""Class-conditional programs: labels in, images of the class out."""

from __future__ import annotations

import pytest
import torch
from programs import tiny_images

from inference import evaluate, fit
from inference.data import from_tensors
from inference.sampling import sample
from ppl_models import ProgramError, UnknownNameError
from ppl_models.cvae import CVAE
from ppl_models.labels import beside, one_hot


def tiny(**options) -> CVAE:
    torch.manual_seed(0)
    return CVAE((1, 4, 4), 3, 2, (8,), "bernoulli", **options)


def batch(size: int = 5) -> dict[str, torch.Tensor]:
    return {"x": tiny_images(size), "y": torch.arange(size) % 3}


def test_the_label_is_an_input_and_no_part_of_the_evidence():
    """With one class it is the VAE: the label adds nothing to any density."""
    program = CVAE((1, 4, 4), 1, 2, (8,), "bernoulli")
    one = {"x": tiny_images(5), "y": torch.zeros(5, dtype=torch.long)}
    result = evaluate(program, one, num_particles=3)
    assert set(result.kl) == {"z"}
    z = torch.zeros(5, 2)
    p = program.decode(z, one["y"])
    assert p.batch_shape == (5,)


@pytest.mark.parametrize("prior", ["standard_normal", "learned"])
def test_the_label_changes_what_is_decoded_and_a_learned_prior(prior):
    program, z = tiny(prior=prior), torch.randn(4, 2)
    zeros, ones = torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.long)
    assert not torch.allclose(program.decode(z, zeros).mean, program.decode(z, ones).mean)
    same = torch.allclose(*(program.prior(y).expand((4,)).mean for y in (zeros, ones)))
    assert same == (prior == "standard_normal")


def test_fixed_y_and_fixed_z_decode_in_one_pass():
    """The lecture's two grids: z (K, B, D) against labels (B,)."""
    program, y = tiny(), torch.arange(3)
    z = torch.randn(5, 1, 2).expand(5, 3, 2)
    grid = program.decode(z, y).mean
    assert grid.shape == (5, 3, 1, 4, 4)
    torch.testing.assert_close(grid[2], program.decode(z[2], y).mean)


def test_draws_of_a_class_and_of_any_class():
    program = tiny()
    any_class = sample(program, 50)
    assert set(any_class["y"].tolist()) == {0, 1, 2}
    asked = sample(program, 4, given={"y": torch.full((4,), 2)})
    assert set(asked) == {"z", "x"}
    torch.testing.assert_close(asked["x"], program.decode(asked["z"], torch.full((4,), 2)).mean)


def test_it_learns_what_a_class_looks_like():
    """Three classes of one image each: draws of a class are that image."""
    images = torch.stack([(torch.arange(16).view(1, 4, 4) % 3 == k).float() for k in range(3)])
    y = torch.arange(300) % 3
    program = tiny()
    fit(program, {"x": images[y], "y": y}, epochs=30, learning_rate=0.02, progress=False)
    for k in range(3):
        drawn = sample(program, 8, given={"y": torch.full((8,), k)})["x"]
        assert float((drawn - images[k]).abs().max()) < 0.4


def test_labels_that_are_missing_or_out_of_range():
    program = tiny()
    with pytest.raises(ProgramError, match="images without labels"):
        program.model(tiny_images(3))
    with pytest.raises(ProgramError, match=r"names the field\(s\) 'y', which the batch lacks"):
        evaluate(program, {"x": tiny_images(3)})
    with pytest.raises(ProgramError, match="'y', which the data lack"):
        fit(program, tiny_images(30), progress=False)
    with pytest.raises(ProgramError, match="y = 3 is out of range: there are 3 classes, 0 to 2"):
        evaluate(program, {"x": tiny_images(3), "y": torch.tensor([0, 3, 1])})
    with pytest.raises(ProgramError, match="y = -1 is out of range"):
        one_hot(torch.tensor([-1]), 3, torch.zeros(1))
    with pytest.raises(ProgramError, match=r"labels y must be integers, got torch.float32"):
        one_hot(torch.tensor([1.0]), 3, torch.zeros(1))


def test_labels_beyond_the_classes_are_refused_before_the_first_step():
    data = from_tensors({"x": tiny_images(40), "y": torch.arange(40) % 5})
    with pytest.raises(ProgramError, match="out of range: there are 3 classes"):
        fit(tiny(), data, progress=False)


def test_constructor_errors():
    with pytest.raises(UnknownNameError, match=r"prior p\(z \| y\) 'learnd'.*'learned'"):
        tiny(prior="learnd")
    with pytest.raises(ProgramError, match="num_classes must be at least 1, got 0"):
        CVAE((1, 4, 4), 0)


def test_a_context_is_repeated_over_what_stands_before():
    joined = beside(torch.zeros(5, 2, 3), torch.ones(2, 4))
    assert joined.shape == (5, 2, 7)
    assert joined[4, 1].tolist() == [0.0] * 3 + [1.0] * 4
    assert batch()["y"].tolist() == [0, 1, 2, 0, 1]
