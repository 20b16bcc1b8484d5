"""Splits, streams, binarization, dequantization, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from data_helpers import PARTS, sizes, whole
from torch.utils.data import Dataset

from inference.data import (
    MemorySplit,
    StreamSplit,
    as_dataset,
    binarize_data,
    dequantize_data,
    files,
    from_tensors,
    load_data,
)
from ppl_models.errors import PplError, UnknownNameError


def numbered(size=103, **options):
    return from_tensors({"x": torch.arange(size).float().unsqueeze(1)}, **options)


def test_splits_are_the_same_every_time_disjoint_and_whole():
    first, again, other = numbered(), numbered(), numbered(seed=1)
    rows = [[whole(d.split(p))["x"].flatten().tolist() for p in PARTS] for d in (first, again)]
    assert rows[0] == rows[1]
    assert [len(part) for part in rows[0]] == [83, 10, 10]
    assert sorted(row for part in rows[0] for row in part) == list(range(103))
    assert rows[0][0] != whole(other.train)["x"].flatten().tolist()
    assert rows[0][0] != sorted(rows[0][0])  # drawn, not cut


def test_splits_and_loading_leave_the_random_state_alone():
    before = torch.get_rng_state()
    load_data("digits", binarize="static")
    assert torch.equal(torch.get_rng_state(), before)


def test_fractions_are_kept_and_too_few_data_are_refused():
    assert sizes(numbered(fractions=(0.0, 0.5))) == [51, 0, 52]
    with pytest.raises(PplError, match="1 data leave none to train on"):
        numbered(1, fractions=(0.0, 1.0))


@pytest.mark.parametrize("order", [None, torch.tensor([4, 4, 0, 79, 3])])
def test_memory_batches_follow_the_order(order):
    split = numbered(100).train
    rows = split.tensors["x"] if order is None else split.tensors["x"][order]
    batches = [batch["x"] for batch in split.batches(3, order)]
    assert [len(batch) for batch in batches[:-1]] == [3] * (len(batches) - 1)
    assert torch.equal(torch.cat(batches), rows)


def test_to_changes_the_dtype_of_floating_fields_alone():
    moved = from_tensors({"x": torch.rand(20, 2), "y": torch.arange(20) % 2}).train.to(
        torch.device("cpu"), torch.float64
    )
    assert {k: v.dtype for k, v in whole(moved).items()} == {"x": torch.float64, "y": torch.int64}


def test_tensors_say_what_they_are():
    grey = from_tensors(np.random.default_rng(0).random((20, 2)), levels=256).info
    assert (grey.x_shape, grey.levels, grey.log_jacobian) == ((2,), 256, None)
    assert 0 <= grey.value_range[0] < grey.value_range[1] <= 1
    binary = from_tensors(torch.arange(20).reshape(20, 1) % 2 == 0).info
    assert (binary.likelihoods, binary.log_jacobian) == (("bernoulli",), 0.0)


def test_a_data_set_stays_itself_and_tensors_become_one():
    data = numbered(20)
    assert as_dataset(data) is data
    assert len(as_dataset(torch.rand(20, 2)).train) == 16


def test_an_unknown_split_is_refused():
    with pytest.raises(PplError, match="unknown split 'tset'; there are: train, valid, test"):
        numbered().split("tset")


class Items(Dataset):
    def __init__(self, tensors):
        self.tensors = tensors

    def __len__(self):
        return len(self.tensors["x"])

    def __getitem__(self, index):
        return {name: value[index] for name, value in self.tensors.items()}


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # one core
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork, Python 3.12
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_yields_the_batches_of_memory_and_draws_nothing(workers):
    tensors = {"x": torch.rand(23, 2), "y": torch.arange(23)}
    memory, stream = MemorySplit(tensors), StreamSplit(Items(tensors), num_workers=workers)
    assert (len(stream), stream.fields) == (23, ("x", "y"))
    before = torch.get_rng_state()
    for order in (None, torch.randperm(23, generator=torch.Generator().manual_seed(3))):
        pairs = zip(memory.batches(5, order), stream.batches(5, order), strict=True)
        for expected, batch in pairs:
            assert batch.keys() == expected.keys()
            assert all(torch.equal(batch[name], expected[name]) for name in batch)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_large_folder_is_streamed_with_the_same_data(pictures, monkeypatch):
    memory = load_data(str(pictures))
    monkeypatch.setattr(files, "MEMORY_LIMIT", 0)
    stream = load_data(str(pictures))
    assert isinstance(stream.train, StreamSplit)
    for part in PARTS:
        assert torch.equal(whole(stream.split(part), 7)["x"], whole(memory.split(part))["x"])
    with pytest.raises(PplError, match="static binarization needs the data in memory"):
        load_data(str(pictures), binarize="static")
    drawn = whole(load_data(str(pictures), binarize="threshold").train)["x"]
    assert torch.equal(drawn, (whole(memory.train)["x"] > 0.5).float())


# Binarization and dequantization.


def grey(value=0.3, size=2500):
    return from_tensors(torch.full((size, 1, 2, 5), value), levels=256)


def test_dynamic_binarization_draws_every_batch_anew_with_the_right_mean():
    data = binarize_data(grey(), "dynamic")
    first, second = (whole(data.train)["x"] for _ in range(2))
    assert first.unique().tolist() == [0.0, 1.0]
    assert not torch.equal(first, second)
    # 20,000 pixels each: a mean is off by 0.02 with probability < 2 exp(-2 n 0.02²) = 3e-7.
    for x in (first, second):
        assert float(x.mean()) == pytest.approx(0.3, abs=0.02)
    assert data.info.likelihoods == ("bernoulli",)
    assert (data.info.log_jacobian, data.info.levels) == (0.0, None)


def test_static_binarization_is_drawn_once():
    data, again = (binarize_data(grey(), "static") for _ in range(2))
    other = binarize_data(grey(), "static", seed=1)
    first = whole(data.train)["x"]
    assert first.unique().tolist() == [0.0, 1.0]
    # As above: probability < 3e-7.
    assert float(first.mean()) == pytest.approx(0.3, abs=0.02)
    assert torch.equal(first, whole(data.train)["x"])
    assert torch.equal(first, whole(again.train)["x"])
    assert not torch.equal(first, whole(other.train)["x"])
    assert not torch.equal(whole(data.valid)["x"], whole(data.test)["x"])


def test_threshold_binarization_is_more_than_a_half():
    x = torch.tensor([0.0, 0.5, 0.51, 1.0]).repeat(10, 1)
    data = binarize_data(from_tensors(x), "threshold")
    assert whole(data.train)["x"].unique(dim=0).tolist() == [[0.0, 0.0, 1.0, 1.0]]


def test_binarization_is_refused_by_name_and_by_range():
    data = grey()
    assert binarize_data(data, "none") is data
    with pytest.raises(UnknownNameError, match="Did you mean 'dynamic'"):
        binarize_data(data, "dynamik")
    with pytest.raises(PplError, match=r"cannot binarize 'tensors': x in \[0, 102\], not \[0, 1\]"):
        binarize_data(numbered(), "threshold")


def test_dequantization_spreads_each_level_over_its_own_interval():
    levels = torch.arange(256).repeat(10, 1)
    data = dequantize_data(from_tensors(levels / 255, levels=256))
    first, second = (whole(data.train)["x"] for _ in range(2))
    assert not torch.equal(first, second)
    assert first.min() >= 0
    assert first.max() <= 1
    noise = first * 256 - levels[: len(first)]
    assert noise.min() > -1e-4
    assert noise.max() < 1 + 1e-4
    # 2,048 uniform numbers: their mean is off by 0.05 with probability < 2 exp(-2 n 0.05²) = 8e-5.
    assert float(noise.mean()) == pytest.approx(0.5, abs=0.05)
    assert data.info.log_jacobian == pytest.approx(-math.log(256))
    assert data.info.levels is None


def test_dequantization_is_refused_without_grey_levels():
    with pytest.raises(PplError, match=r"cannot dequantize 'tensors': .* levels=256"):
        dequantize_data(numbered())
    with pytest.raises(PplError, match="binarized data cannot be dequantized"):
        load_data("digits", binarize="static", dequantize=True)
    with pytest.raises(PplError, match="cannot dequantize"):
        dequantize_data(dequantize_data(grey()))


@pytest.mark.parametrize("how", ["threshold", "static"])
def test_dequantized_data_are_not_binarized(how):

    with pytest.raises(PplError):
        binarize_data(dequantize_data(grey()), how)


# Refusals.


@pytest.mark.parametrize("near", ["mnist", "digits", "binarized_mnist", "cifar10"])
def test_an_unknown_data_set_gives_near_misses(near):
    with pytest.raises(UnknownNameError, match=f"unknown data set .*Did you mean .*'{near}'"):
        load_data(near[:-2] + near[-1])


X, Y = torch.rand(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])


def with_value(value, *index):
    x = torch.rand(6, 2)
    x[index] = value
    return x


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "there are no data"),
        ({"x": torch.zeros(0, 2)}, r"there are no data \(lengths of the fields: {'x': 0}\)"),
        ({"x": X, "y": Y[:5]}, "fields of different lengths: {'x': 6, 'y': 5}"),
        ({"x": torch.tensor(1.0)}, r"'x' is a single number; expected \(N, \.\.\.\)"),
        ({"x": X.to(torch.complex64)}, "'x' is complex"),
        ({"x": with_value(math.nan, 3, 1)}, r"'x' holds nan at index \(3, 1\) \(1 such values"),
        ({"x": with_value(-math.inf, 5)}, r"'x' holds -inf at index \(5, 0\) \(2 such values"),
        ({"x": X, "y": Y.float()}, "labels must be integers, got torch.float32"),
        ({"x": X, "y": Y.unsqueeze(1)}, r"labels must have shape \(N,\), got \(6, 1\)"),
        ({"x": X, "y": Y - 1}, "label -1 at index 0 is out of range; .* from 0 to 1"),
    ],
)
def test_data_that_cannot_be_learned_from_are_refused(fields, message):
    with pytest.raises(PplError, match=message):
        from_tensors(fields)


def test_large_numbers_whose_sum_overflows_are_data():
    x = torch.full((20, 2), 1e308, dtype=torch.float64)
    assert len(from_tensors(x).train) == 16
