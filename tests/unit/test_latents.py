"""Codes, walks and traversals against closed forms. Programs: latent_helpers."""

from __future__ import annotations

import math
from itertools import pairwise

import pyro.distributions as dist
import pytest
import torch
from latent_helpers import ByClass, LinearImages, TwoLevels
from programs import DiscreteVAE, EnumeratedMixture, GaussianToy, tiny_images

from inference.latents import (
    choose_site,
    decode,
    encode,
    encode_all,
    interpolate,
    latent_sites,
    lerp,
    resynthesize,
    slerp,
    traverse,
)
from ppl_models.errors import PplError, ProgramError, UnknownNameError


def vectors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Lines and great circles.


def test_lerp_is_the_straight_line():
    start, end = vectors(4, 3), vectors(4, 3, seed=1)
    path = lerp(start, end, torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64))
    assert path.shape == (3, 4, 3)
    torch.testing.assert_close(path, torch.stack([start, 0.75 * start + 0.25 * end, end]))
    torch.testing.assert_close(lerp(start, end, 0.25), path[1])


def test_slerp_of_unit_vectors_is_shoemakes_formula():
    start, end = (torch.nn.functional.normalize(vectors(5, 7, seed=s), dim=-1) for s in (0, 1))
    t = torch.linspace(0, 1, 6, dtype=torch.float64)
    angle = torch.acos((start * end).sum(-1, keepdim=True))
    at = t.reshape(-1, 1, 1)
    expected = (((1 - at) * angle).sin() * start + (at * angle).sin() * end) / angle.sin()
    torch.testing.assert_close(slerp(start, end, t), expected)


def test_slerp_keeps_to_the_sphere_turns_evenly_and_meets_both_ends():
    start, end = vectors(6, 5), vectors(6, 5, seed=1)
    end = end * 3
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    path = slerp(start, end, t)
    torch.testing.assert_close(path[0], start)
    torch.testing.assert_close(path[-1], end)
    norms = lerp(start.norm(dim=-1), end.norm(dim=-1), t)
    torch.testing.assert_close(path.norm(dim=-1), norms)
    unit = torch.nn.functional.normalize(path, dim=-1)
    turns = torch.acos((unit[1:] * unit[:-1]).sum(-1))
    torch.testing.assert_close(turns, turns[:1].expand_as(turns))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slerp_between_parallel_vectors_is_straight(dtype):
    start = vectors(3, 4).to(dtype)
    t = torch.linspace(0, 1, 5, dtype=dtype)
    for end in (start, 2.5 * start):
        torch.testing.assert_close(slerp(start, end, t), lerp(start, end, t))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slerp_between_opposite_vectors_goes_round(dtype):
    start = torch.cat([vectors(3, 4), torch.eye(4, dtype=torch.float64)]).to(dtype)
    t = torch.linspace(0, 1, 5, dtype=dtype)
    path = slerp(start, -start, t)
    norms = start.norm(dim=-1).expand(5, -1)
    torch.testing.assert_close(path.norm(dim=-1), norms)
    torch.testing.assert_close(path[-1], -start, atol=1e-6, rtol=0)
    half = (path[2] * start).sum(-1)
    torch.testing.assert_close(half, torch.zeros_like(half), atol=1e-5, rtol=0)
    near = -start + 1e-4 * start.roll(1, -1)  # White's formula has weights of 1e4 here
    assert float((slerp(start, 3 * near, 0.5).norm(dim=-1) / start.norm(dim=-1)).max()) < 2.1


def test_slerp_of_zeros_and_of_numbers_is_straight():
    start, end = vectors(3, 4), torch.zeros(3, 4, dtype=torch.float64)
    torch.testing.assert_close(slerp(start, end, 0.3), 0.7 * start)
    numbers = vectors(3, 1)
    torch.testing.assert_close(slerp(numbers, -numbers, 0.5), torch.zeros_like(numbers))


def test_the_straight_line_leaves_the_shell_where_draws_of_a_wide_normal_lie():
    """√D in norm; the middle of a line between two independent draws has √(D/2)."""
    start, end = vectors(50, 400), vectors(50, 400, seed=1)
    straight, round_ = (f(start, end, 0.5).norm(dim=-1).mean() for f in (lerp, slerp))
    assert float(straight) == pytest.approx(math.sqrt(200), rel=0.03)
    assert float(round_) == pytest.approx(math.sqrt(400), rel=0.03)


# Codes.


def test_encode_gives_means_or_draws_and_decode_the_mean_image():
    program = LinearImages(2)
    z = torch.tensor([[0.5, -1.0], [2.0, 0.1]])
    x = program.mean(z)
    torch.testing.assert_close(encode(program, {"x": x})["z"], z)
    draw = encode(program, {"x": x}, draw="sample", seed=3)["z"]
    assert 0 < float((draw - z).abs().max()) < 0.1  # σ = 0.01
    assert torch.equal(draw, encode(program, {"x": x}, draw="sample", seed=3)["z"])
    torch.testing.assert_close(decode(program, {"z": z}), x)
    noisy = decode(program, {"z": z}, draw="sample")
    assert 0 < float((noisy - x).abs().max()) < 0.7
    torch.testing.assert_close(resynthesize(program, {"x": x}), x)


def test_decode_of_a_conditional_program_takes_its_labels():
    program, z, y = ByClass(2), torch.randn(3, 2), torch.tensor([0, 1, 2])
    expected = program.mean(z) + y.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(decode(program, {"z": z}, given={"y": y}), expected)
    torch.testing.assert_close(resynthesize(program, {"x": expected, "y": y}), expected)


def test_latents_left_out_of_decode_are_at_the_mean_of_their_prior_given_the_others():
    program, top = TwoLevels(), torch.randn(4, 2)
    with torch.no_grad():
        expected = program.down(program.link(top)).unflatten(-1, (1, 3, 3))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    images = decode(program, {"top": top, "bit": torch.zeros(4)})
    torch.testing.assert_close(images, expected)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("latents", "options", "message"),
    [
        ({}, {}, "one length, got none"),
        ({"z": torch.zeros(2, 2)}, {"given": {"y": torch.zeros(3)}}, r"'z': 2, 'y': 3"),
        ({"z": torch.zeros(2, 5)}, {}, r"'z' must have shape \(2, 2\), got \(2, 5\)"),
        ({"w": torch.zeros(2, 2)}, {}, "unknown site 'w'.* There are: x, z"),
        ({"z": torch.zeros(2, 2)}, {"field": "image"}, "unknown site 'image'"),
        ({"z": torch.zeros(2, 2)}, {"draw": "median"}, "draw must be one of"),
    ],
)
def test_what_cannot_be_decoded_is_told(latents, options, message):
    with pytest.raises(PplError, match=message):
        decode(LinearImages(2), latents, **options)


def test_a_model_that_needs_labels_or_data_says_so():
    class Needs(ByClass):
        def model(self, x, y, *, size=1):
            return super().model(x, y, size=size)

    with pytest.raises(PplError, match=r"names the field\(s\) 'x', 'y', which"):
        decode(Needs(), {"z": torch.zeros(1, 2)})
    with pytest.raises(ProgramError, match="cannot be sampled"):
        latent_sites(EnumeratedMixtureWithDefault())


class EnumeratedMixtureWithDefault(EnumeratedMixture):
    def model(self, x=None):
        return super().model(x)


def test_the_latent_sites_of_a_program_with_several():
    sites = latent_sites(TwoLevels())
    assert {n: (s.size, s.discrete) for n, s in sites.items()} == {
        "top": (2, False),
        "z": (3, False),
        "bit": (1, True),
    }
    assert choose_site(sites).name == "z"
    assert choose_site(sites, "top").name == "top"
    with pytest.raises(UnknownNameError, match=r"unknown latent site 'zz'.*There are: bit, top, z"):
        choose_site(sites, "zz")
    with pytest.raises(PplError, match="latent 'bit' is not real-valued"):
        choose_site(sites, "bit")
    with pytest.raises(PplError, match=r"latent 'z' has 3 component\(s\), 0 to 2; there is no"):
        sites["z"].check_index(3)


def test_a_latent_that_is_a_number_has_one_component():
    site = latent_sites(GaussianToy())["z"]
    assert (site.size, tuple(site.shape)) == (1, ())


def test_encode_all_goes_over_batches_and_brings_labels():
    program, z = LinearImages(2), torch.randn(10, 2)
    x, y = program.mean(z), torch.arange(10)
    batches = [{"x": x[i : i + 4], "y": y[i : i + 4]} for i in (0, 4, 8)]
    codes, rest = encode_all(program, batches)
    torch.testing.assert_close(codes, z)
    assert rest["y"].tolist() == list(range(10))
    assert len(encode_all(program, batches, num=6)[0]) == 6
    noise = encode_all(program, batches, draw="sample")[0] - z
    assert len(noise.unique(dim=0)) == 10  # every batch has draws of its own
    with pytest.raises(PplError, match="no data to encode"):
        encode_all(program, [])


# Walks.


@pytest.mark.parametrize("method", ["lerp", "slerp"])
def test_interpolation_walks_through_the_codes(method):
    program, z = LinearImages(2), torch.randn(3, 2)
    found = interpolate(program, {"x": program.mean(z)}, num_steps=4, method=method)
    between = {"lerp": lerp, "slerp": slerp}[method]
    t = torch.linspace(0, 1, 4)
    expected = torch.stack([program.mean(between(z[i], z[i + 1], t)) for i in (0, 1)])
    torch.testing.assert_close(found, expected)


def conditional_walk(num_steps, y, **options):
    """What decodes to, less what the codes alone would: the condition along the walk."""
    program, z = ByClass(2), torch.randn(len(y), 2)
    x = program.mean(z) + y.reshape(-1, 1, 1, 1)
    found = interpolate(program, {"x": x, "y": y}, num_steps=num_steps, method="lerp", **options)
    t = torch.linspace(0, 1, num_steps)
    plain = torch.stack([program.mean(lerp(a, b, t)) for a, b in pairwise(z)])
    return x, found, (found - plain).mean((2, 3, 4))


def test_interpolation_of_a_conditional_program_goes_from_label_to_label():
    """Both ends are reconstructions: labels change half-way, numbers go straight."""
    x, found, labels = conditional_walk(4, torch.tensor([2, 0, 5]))
    torch.testing.assert_close(labels, torch.tensor([[2.0, 2, 0, 0], [0, 0, 5, 5]]))
    torch.testing.assert_close(found[:, 0], x[:-1])
    torch.testing.assert_close(found[:, -1], x[1:])
    *_, numbers = conditional_walk(5, torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(numbers, torch.tensor([[2, 1.5, 1, 0.5, 0]]))


def test_interpolation_under_one_label():
    *_, labels = conditional_walk(3, torch.tensor([2, 0, 5]), given={"y": torch.tensor([7])})
    torch.testing.assert_close(labels, torch.full((2, 3), 7.0))
    with pytest.raises(UnknownNameError, match=r"unknown condition 'w'.*There are: y"):
        conditional_walk(3, torch.tensor([2, 0]), given={"w": torch.tensor([7])})


def test_interpolation_moves_the_sites_it_is_told_and_never_discrete_ones():
    program, x = TwoLevels(), torch.randn(2, 1, 3, 3)
    codes = encode(program, {"x": x})
    found = interpolate(program, {"x": x}, num_steps=2, site="z")
    latents = {"z": codes["z"], "top": codes["top"][:1].expand(2, -1)}
    latents["bit"] = codes["bit"][:1].expand(2)
    torch.testing.assert_close(found[0], decode(program, latents))
    both = interpolate(program, {"x": x}, num_steps=2)
    torch.testing.assert_close(both[0], found[0])  # x hangs on z alone


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (1, {}, "at least two images and two steps, got 1 image"),
        (2, {"num_steps": 1}, "1 step"),
        (2, {"method": "slrp"}, "Did you mean 'slerp'"),
        (2, {"site": "y"}, "unknown latent site 'y'"),
    ],
)
def test_what_cannot_be_interpolated_is_told(size, options, message):
    with pytest.raises(PplError, match=message):
        interpolate(LinearImages(2), {"x": torch.zeros(size, 1, 3, 3)}, **options)


def test_discrete_codes_cannot_be_walked_through():
    program = DiscreteVAE()
    with pytest.raises(PplError, match=r"latents \(b\) are not real-valued"):
        interpolate(program, {"x": tiny_images(2)})


def test_a_traversal_moves_one_component_and_keeps_the_rest():
    program = LinearImages(3)
    found = traverse(program, num_steps=5)
    values = torch.linspace(-3, 3, 5)
    for i in range(3):
        z = torch.zeros(5, 3)
        z[:, i] = values
        torch.testing.assert_close(found[i], program.mean(z))


def test_a_traversal_from_a_datum_through_chosen_values():
    program, z = LinearImages(3), torch.tensor([[0.3, -0.2, 1.0]])
    found = traverse(program, [1], batch={"x": program.mean(z)}, values=[-2.0, 4.0])
    rows = torch.tensor([[0.3, -2.0, 1.0], [0.3, 4.0, 1.0]])
    torch.testing.assert_close(found, program.mean(rows).unsqueeze(0))


def test_a_traversal_follows_the_priors_location_and_scale():
    prior = dist.Normal(torch.tensor([1.0, -1.0]), torch.tensor([0.5, 2.0])).to_event(1)
    program = LinearImages(2, prior=lambda: prior)
    z = torch.tensor([[1.0, -7.0], [1.0, 5.0]])
    torch.testing.assert_close(traverse(program, [1], num_steps=2)[0], program.mean(z))
    assert traverse(GaussianToy()).shape == (1, 9)


def test_a_traversal_of_a_conditional_program_is_under_its_label():
    program, y = ByClass(2), torch.tensor([2])
    z = torch.tensor([[-1.0, 2.0], [5.0, 2.0]])  # z | y ~ N(2, 1)
    found = traverse(program, [0], given={"y": y}, num_steps=2)
    torch.testing.assert_close(found[0], program.mean(z) + 2)


@pytest.mark.parametrize(
    ("indices", "options", "message"),
    [
        ([3], {}, "0 to 2; there is no component 3"),
        ([-1], {}, "there is no component -1"),
        ([0], {"site": "q"}, "unknown latent site 'q'"),
        ([0], {"batch": {"x": torch.zeros(2, 1, 3, 3)}}, "starts from one datum, got 2"),
    ],
)
def test_what_cannot_be_traversed_is_told(indices, options, message):
    with pytest.raises(PplError, match=message):
        traverse(LinearImages(3), indices, **options)
