"""Manifolds, class grids, attribute vectors, analogies and neighbours against closed forms."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from latent_helpers import ByClass, LinearImages

from inference.latents import (
    add_attribute,
    analogy,
    attribute_vector,
    encode,
    manifold,
    nearest_training,
    vary_condition,
    vary_latent,
)
from inference.sampling import prior_trace
from ppl_models.cvae import CVAE
from ppl_models.errors import PplError
from ppl_models.program import as_program

# The manifold.


def test_the_manifold_runs_through_the_priors_quantiles():
    program = LinearImages(2)
    found = manifold(program, side=3)
    low, high = -0.967422, 0.967422  # normal quantiles of 1/6 and 5/6
    rows = [[[low, high], [0, high], [high, high]], [[low, 0], [0, 0], [high, 0]]]
    rows.append([[low, low], [0, low], [high, low]])
    torch.testing.assert_close(found, program.mean(torch.tensor(rows)), atol=1e-5, rtol=0)


def test_the_manifold_of_another_prior_and_of_two_of_many_components():
    prior = dist.Uniform(torch.tensor([0.0, 2.0, -1.0]), torch.tensor([1.0, 4.0, 1.0])).to_event(1)
    program = LinearImages(3, prior=lambda: prior)
    found = manifold(program, side=2, dims=(2, 0))
    rows = [[[0.75, 3.0, -0.5], [0.75, 3.0, 0.5]], [[0.25, 3.0, -0.5], [0.25, 3.0, 0.5]]]
    torch.testing.assert_close(found, program.mean(torch.tensor(rows)))


def test_the_manifold_of_a_conditional_program_has_the_prior_of_its_label():
    program = ByClass(2)
    found = manifold(program, side=2, given={"y": torch.tensor([3])})
    at = 3 + 0.6744898 * torch.tensor([[[-1.0, 1], [1, 1]], [[-1, -1], [1, -1]]])
    torch.testing.assert_close(found, program.mean(at) + 3)


def no_quantiles():
    normals = dist.Normal(torch.zeros(3, 2), 1.0).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(3)), normals)


@pytest.mark.parametrize(
    ("program", "options", "message"),
    [
        (LinearImages(20), {}, "has 20. Name two .*traversal.*latent_dim 2"),
        (LinearImages(1), {}, "has 1. Name two"),
        (LinearImages(20), {"dims": [3, 3]}, r"must be two of them, got \[3, 3\]"),
        (LinearImages(20), {"dims": [3, 20]}, "there is no component 20"),
        (LinearImages(2), {"side": 1}, "at least 2 images, got 1"),
        (LinearImages(2, prior=no_quantiles), {}, r"MixtureSameFamily\) knows no quantiles"),
    ],
)
def test_what_has_no_manifold_is_told_with_what_can_be_had(program, options, message):
    with pytest.raises(PplError, match=message):
        manifold(program, **options)


# Classes against latents.


def test_with_a_fixed_label_each_row_has_its_offset_and_new_latents():
    program, labels = ByClass(2), torch.tensor([0, 4])
    found = vary_latent(program, labels, 50, seed=1)
    assert found.shape == (2, 50, 1, 3, 3)
    shift = labels.reshape(-1, 1, 1, 1, 1)
    codes = program.code((found - shift).flatten(0, 1)).unflatten(0, (2, 50))
    assert len(codes.flatten(0, 1).unique(dim=0)) == 100
    centred = codes - labels.reshape(-1, 1, 1)  # z | y ~ N(y, 1)
    assert float(centred.mean().abs()) < 4 / 200**0.5  # four standard errors: one in 15,000
    assert torch.equal(found, vary_latent(program, labels, 50, seed=1))
    assert not torch.equal(found, vary_latent(program, labels, 50, seed=2))


def test_with_a_fixed_latent_each_row_has_one_place_in_the_prior_and_every_label():
    program, labels = ByClass(2), torch.tensor([0, 2, 5])
    found = vary_condition(program, labels, 4, seed=1)
    assert found.shape == (4, 3, 1, 3, 3)
    codes = program.code((found - labels.reshape(-1, 1, 1, 1)).flatten(0, 1)).unflatten(0, (4, 3))
    noise = codes - labels.unsqueeze(-1)  # z | y ~ N(y, 1)
    torch.testing.assert_close(noise, noise[:, :1].expand_as(noise), atol=1e-4, rtol=0)
    assert len(found[:, 0].unique(dim=0)) == 4


def test_with_a_prior_that_knows_no_label_each_row_has_one_latent():
    program = CVAE((1, 3, 3), 4, latent_dim=2, hidden_dims=(5,))
    found = vary_condition(program, torch.arange(4), 3, seed=1)
    z = prior_trace(as_program(program), 3, {"y": torch.zeros(3).long()}, seed=1).nodes["z"]
    for y in range(4):
        expected = program.decode(z["value"], torch.full((3,), y)).mean
        torch.testing.assert_close(found[:, y], expected)


@pytest.mark.parametrize("grid", [vary_latent, vary_condition])
def test_a_program_without_labels_has_no_class_grid(grid):
    with pytest.raises(PplError, match=r"LinearImages is not conditional.*attribute vector"):
        grid(LinearImages(2), torch.arange(3))
    with pytest.raises(PplError, match="at least one draw, got 0"):
        grid(ByClass(2), torch.arange(3), 0)


# Attribute vectors.


def test_an_attribute_vector_is_the_difference_of_means():
    codes = torch.tensor([[1.0, 0.0], [3.0, 2.0], [0.0, 5.0]])
    has = torch.tensor([True, True, False])
    assert attribute_vector(codes, has).tolist() == [2.0, -4.0]
    assert attribute_vector(codes.unsqueeze(1), has).shape == (1, 2)


def test_a_balanced_vector_leaves_out_what_goes_along():
    """Smiles (+1 on the first axis) are frequent where the second axis has +10."""
    codes, smiles, group = [], [], []
    for woman in (0, 1):
        for smile, count in ((0, 4 - 3 * woman), (1, 1 + 3 * woman)):
            codes += [[float(smile), 10.0 * woman]] * count
            smiles += [bool(smile)] * count
            group += [woman] * count
    codes, smiles, group = torch.tensor(codes), torch.tensor(smiles), torch.tensor(group)
    assert attribute_vector(codes, smiles).tolist() == [1.0, 6.0]
    assert attribute_vector(codes, smiles, balance=group).tolist() == [1.0, 0.0]
    two = torch.stack([group, smiles.long()], -1)
    with pytest.raises(PplError, match="no group of the balance has both"):
        attribute_vector(codes, smiles, balance=two)


@pytest.mark.parametrize(
    ("has", "message"),
    [
        (torch.ones(3, dtype=torch.bool), "3 of 3 data have the attribute; its vector needs"),
        (torch.zeros(3, dtype=torch.bool), "0 of 3"),
        (torch.ones(2, dtype=torch.bool), r"one thing a code, \(3,\); got \(2,\)"),
    ],
)
def test_labels_that_give_no_vector_are_told(has, message):
    with pytest.raises(PplError, match=message):
        attribute_vector(torch.zeros(3, 2), has)


def test_adding_an_attribute_moves_the_code():
    program, z = LinearImages(2), torch.randn(3, 2)
    vector = torch.tensor([1.0, -2.0])
    found = add_attribute(program, {"x": program.mean(z)}, vector, (-1.0, 0.0, 2.0))
    expected = program.mean(torch.stack([z - vector, z, z + 2 * vector], 1))
    torch.testing.assert_close(found, expected)
    with pytest.raises(PplError, match=r"shape \(3,\), a code of latent 'z' \(2,\)"):
        add_attribute(program, {"x": program.mean(z)}, torch.zeros(3))


def test_an_analogy_adds_the_difference():
    program = ByClass(2)
    codes = torch.randn(3, 4, 2)
    labels = torch.tensor([[0] * 4, [1] * 4, [2] * 4])
    a, b, c = (
        {"x": program.mean(z) + y.reshape(-1, 1, 1, 1), "y": y}
        for z, y in zip(codes, labels, strict=True)
    )
    found = analogy(program, a, b, c)
    torch.testing.assert_close(found, program.mean(codes[2] + codes[1] - codes[0]) + 2)
    with pytest.raises(PplError, match=r"must be as many, got \[4, 4, 1\]"):
        analogy(program, a, b, {k: v[:1] for k, v in c.items()})


# Neighbours.


def test_the_nearest_training_images_over_batches():
    data = torch.randn(50, 1, 3, 3)
    images = data[[7, 31]] + 0.01
    batches = [{"x": data[i : i + 20]} for i in (0, 20, 40)]
    found = nearest_training(images, batches, num=3)
    assert found.indices[:, 0].tolist() == [7, 31]
    torch.testing.assert_close(found.distances[:, 0], torch.full((2,), 0.01), atol=1e-4, rtol=0)
    everything = (images.flatten(1)[:, None] - data.flatten(1)).square().mean(-1).sqrt()
    expected, order = everything.topk(3, largest=False)
    torch.testing.assert_close(found.distances, expected, atol=1e-4, rtol=0)
    assert torch.equal(found.indices, order)
    assert torch.equal(found.images, data[order])


def test_neighbours_that_cannot_be_found_are_told():
    data = {"x": torch.zeros(2, 1, 3, 3)}
    with pytest.raises(PplError, match="3 nearest of 2 data"):
        nearest_training(torch.zeros(1, 1, 3, 3), data, num=3)
    with pytest.raises(PplError, match=r"shape \(1, 4, 4\), the data \(1, 3, 3\)"):
        nearest_training(torch.zeros(1, 1, 4, 4), data)


def test_codes_of_the_helpers_program_are_exact():
    program, z = LinearImages(2), torch.randn(5, 2)
    torch.testing.assert_close(encode(program, {"x": program.mean(z)})["z"], z)
