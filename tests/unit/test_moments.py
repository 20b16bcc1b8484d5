"""Moments of a stream against those of the stack; groups of parameters."""

from __future__ import annotations

import pytest
import torch

from inference.compare.groups import Layout, group_parameters, plain_name
from inference.compare.moments import Moments, VectorMoments, signal_to_noise
from ppl_models import PplError


def stream(count: int = 50, size: int = 7) -> torch.Tensor:
    """(count, size), far from zero, where a naive sum of squares loses its digits."""
    return 1e4 + torch.randn(count, size, generator=torch.Generator().manual_seed(3)).double()


def halves(vector: torch.Tensor) -> torch.Tensor:
    """Sums over the first three entries and over all."""
    return torch.stack([vector[:3].sum(), vector.sum()])


def test_moments_of_a_stream_are_those_of_the_stack():
    values = stream()
    moments = Moments()
    for value in values:
        moments.update(value)
    torch.testing.assert_close(moments.mean, values.mean(0))
    torch.testing.assert_close(moments.variance, values.var(0), rtol=1e-9, atol=0)
    torch.testing.assert_close(moments.variance_of_mean, values.var(0) / 50, rtol=1e-9, atol=0)


def test_vector_moments_are_those_of_the_stack():
    values = stream()
    moments = VectorMoments(halves)
    for value in values:
        moments.update(value)
    variance = halves(values.var(0))
    torch.testing.assert_close(moments.variance, variance, rtol=1e-9, atol=0)
    norms = torch.stack([halves(value**2) for value in values]).mean(0)
    torch.testing.assert_close(moments.second_moment, norms, rtol=1e-12, atol=0)
    expected = halves(values.mean(0) ** 2) - variance / 50
    torch.testing.assert_close(moments.squared_distance(), expected)


def test_single_precision_streams_are_summed_in_double():
    moments = VectorMoments(lambda v: v.sum().reshape(1))
    for value in stream().float():
        moments.update(value)
    assert moments.mean.dtype == moments.variance.dtype == torch.float64
    assert float(moments.variance) == pytest.approx(float(stream().var(0).sum()), rel=1e-2)


def test_what_is_kept_does_not_grow_with_the_stream():
    def kept(count: int) -> int:
        moments = VectorMoments(halves)
        for value in stream(count):
            moments.update(value)
        return sum(v.numel() for v in vars(moments).values() if isinstance(v, torch.Tensor))

    assert kept(2) == kept(100) == 7 + 2


def test_equal_vectors_have_no_variance_at_all():
    moments = VectorMoments(halves)
    for _ in range(10):
        moments.update(torch.full((7,), 1 / 3))
    assert moments.variance.tolist() == [0.0, 0.0]
    assert signal_to_noise(moments.squared_distance(), moments.variance).isinf().all()


def test_the_noise_of_a_mean_is_no_distance():
    """Of 2,000 means of 20 draws about zero the corrected squared norm averages to zero.

    Unclamped its mean would be 0 and with the noise 7/20 = 0.35; clamped it is the positive part,
    below 0.1.
    """
    draws = torch.randn(2000, 20, 7, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for sample in draws:
        moments = VectorMoments(lambda v: v.sum().reshape(1))
        for value in sample:
            moments.update(value)
        total += float(moments.squared_distance())
    assert total / 2000 < 0.1


def test_one_value_has_no_variance():
    moments = Moments()
    moments.update(torch.ones(2))
    assert moments.variance.isnan().all()


NAMES = ("owner.encoder.0.weight", "owner.encoder.0.bias", "owner.decoder.weight", "owner.s")


def test_groups_by_the_first_part_of_the_names():
    assert group_parameters(NAMES) == {
        "encoder": [0, 1],
        "decoder": [2],
        "s": [3],
        "all": [0, 1, 2, 3],
    }
    assert plain_name("pyro_params.decoder/net/weight") == "decoder.net.weight"
    assert plain_name("networks.encoder.weight") == "encoder.weight"


def test_groups_by_patterns_and_by_function():
    chosen = group_parameters(NAMES, {"weights": ["*.weight"], "rest": "s"})
    assert chosen == {"weights": [0, 2], "rest": [3], "all": [0, 1, 2, 3]}
    biases = group_parameters(NAMES, lambda name: "bias" if name.endswith("bias") else None)
    assert biases == {"bias": [1], "all": [0, 1, 2, 3]}


def test_wrong_groups_are_refused():
    with pytest.raises(PplError, match=r"pattern 'encodr\.\*'; .*encoder\.0\.weight, encoder"):
        group_parameters(NAMES, {"e": ["encodr.*"]})
    with pytest.raises(PplError, match="cannot be named 'all'"):
        group_parameters(NAMES, {"all": ["s"]})


def test_a_layout_sums_by_group():
    parameters = {name: torch.zeros(i + 1, 2) for i, name in enumerate(NAMES)}
    layout = Layout(parameters)
    vector = layout.flatten([torch.full((i + 1, 2), 10.0**i) for i in range(4)])
    assert layout.sum_by_group(vector).tolist() == [42.0, 600.0, 8000.0, 8642.0]
    assert layout.group_sizes == [6, 6, 8, 20]
