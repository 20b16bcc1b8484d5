"""Data sets: what every source yields, fixed splits, binarization, and refusals."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import datasets

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
from inference.data.sources import torchvision_set
from ppl_models.errors import PplError, UnknownNameError

PARTS = ("train", "valid", "test")


def whole(split, batch_size=10_000):
    """All of a split as one batch."""
    batches = list(split.batches(batch_size))
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def sizes(data):
    return [len(data.split(part)) for part in PARTS]


def save_images(folder, arrays):
    """Byte images (H, W) or (H, W, 3) by file name."""
    for name, array in arrays.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


@pytest.fixture
def pictures(tmp_path):
    """A folder of 30 grey images of one grey value each: 0, 8, 16, ..."""
    folder = tmp_path / "pictures"
    save_images(folder, {f"{i:02}.png": np.full((3, 5), 8 * i, np.uint8) for i in range(30)})
    return folder


# Sources.


@pytest.mark.parametrize(
    ("name", "shape", "split", "levels"),
    [("digits", (1, 8, 8), [1437, 180, 180], 17), ("mnist5k", (1, 28, 28), [4000, 500, 500], 256)],
)
def test_embedded_sets(name, shape, split, levels):
    data = load_data(name)
    assert sizes(data) == split
    assert data.info.x_shape == shape
    assert (data.info.num_classes, data.info.levels) == (10, levels)
    assert data.info.value_range == (0.0, 1.0)
    assert "normal" in data.info.likelihoods
    assert "bernoulli" not in data.info.likelihoods
    parts = [whole(data.split(part)) for part in PARTS]
    for part in parts:
        assert part["x"].shape == (len(part["y"]), *shape)
        assert part["x"].dtype == torch.float32
        level = part["x"] * (levels - 1)
        torch.testing.assert_close(level, level.round(), atol=1e-4, rtol=0)
    counts = torch.cat([part["y"] for part in parts]).bincount()
    assert counts.min() >= 174
    assert len(counts) == 10


@pytest.mark.parametrize(
    ("name", "labels", "mean"),
    [("mnist", [7, 2, 1, 0, 4], 0.1307), ("fashion_mnist", [9, 2, 1, 1, 6], 0.2860)],
)
def test_torchvision_sets(shared_data, name, labels, mean):
    data = load_data(name, data_root=str(shared_data))
    assert sizes(data) == [54_000, 6_000, 10_000]
    assert data.info.x_shape == (1, 28, 28)
    assert (data.info.num_classes, data.info.levels) == (10, 256)
    assert data.test.tensors["y"][:5].tolist() == labels  # torchvision's test part, in its order
    assert float(data.train.tensors["x"].mean()) == pytest.approx(mean, abs=1e-3)
    assert float(data.test.tensors["x"].max()) == 1.0


def test_binarized_mnist(shared_data, monkeypatch):
    monkeypatch.setenv("PPL_DATA_ROOT", str(shared_data))
    data = load_data("binarized_mnist")
    assert sizes(data) == [50_000, 10_000, 10_000]
    assert data.info.likelihoods == ("bernoulli",)
    assert data.info.log_jacobian == 0.0
    assert data.train.fields == ("x",)
    x = data.test.tensors["x"]
    assert x.shape == (10_000, 1, 28, 28)
    assert x.unique().tolist() == [0.0, 1.0]
    assert float(x.mean()) == pytest.approx(0.1325, abs=2e-3)  # MNIST's mean grey value
    ink = x.mean((0, 1))  # (28, 28): nearly none along the edges, much in the middle
    assert float(torch.stack([ink[0], ink[-1], ink[:, 0], ink[:, -1]]).max()) < 0.01
    assert float(ink[10:18, 10:18].mean()) > 0.3


def write_amat(folder, seed):
    bits = np.random.default_rng(seed).integers(0, 2, (3, 4, 784))
    for part, rows in zip(PARTS, bits, strict=True):
        np.savetxt(folder / f"binarized_mnist_{part}.amat", rows, fmt="%d")
    return torch.tensor(bits).float().reshape(3, 4, 1, 28, 28)


def test_amat_files(tmp_path):
    bits = write_amat(tmp_path, 0)
    data = load_data("binarized_mnist", data_root=str(tmp_path))
    for part, expected in zip(PARTS, bits, strict=True):
        assert torch.equal(data.split(part).tensors["x"], expected)


def test_the_argument_goes_before_the_variable(tmp_path, monkeypatch):
    for seed, name in enumerate(("variable", "argument")):
        (tmp_path / name).mkdir()
        write_amat(tmp_path / name, seed)
    monkeypatch.setenv("PPL_DATA_ROOT", str(tmp_path / "variable"))
    first, second = (
        load_data("binarized_mnist", data_root=root).train.tensors["x"]
        for root in (None, str(tmp_path / "argument"))
    )
    assert not torch.equal(first, second)


def test_missing_binarized_mnist_says_what_to_put_where(tmp_path):
    with pytest.raises(PplError, match=r"static\.npz or .*train\.amat.*--data_root or PPL_DATA"):
        load_data("binarized_mnist", data_root=str(tmp_path))


def test_a_binarized_mnist_file_without_its_splits_is_refused(tmp_path):
    # BUG: KeyError of numpy.
    np.savez(tmp_path / "binarized_mnist_static.npz", train=np.zeros((2, 784)))
    with pytest.raises(PplError, match="valid"):
        load_data("binarized_mnist", data_root=str(tmp_path))


@pytest.mark.parametrize("name", ["mnist", "FashionMNIST"])
def test_a_torchvision_set_that_is_absent_names_the_ways_to_give_it(name, tmp_path, monkeypatch):
    def no_network(self):
        raise OSError("no network here")

    monkeypatch.setattr(datasets.MNIST, "download", no_network)
    with pytest.raises(PplError, match=r"(?i)could not be downloaded \(OSError: no net") as it:
        load_data(name, data_root=str(tmp_path))
    for part in (str(tmp_path), "--data_root", "PPL_DATA_ROOT"):
        assert part in str(it.value)


class Coloured:
    """A set like torchvision's: bytes (N, H, W, C), ``train`` and no download."""

    def __init__(self, root, train=True):
        self.data = np.arange(20 * 2 * 3 * 3, dtype=np.uint8).reshape(20, 2, 3, 3)
        self.targets = [i % 4 for i in range(20)]


class Decoded:
    """One that has to be decoded image by image, the last one larger if ``odd``."""

    odd = False

    def __init__(self, root, split="train"):
        self.sizes = [4] * 19 + [5 if self.odd else 4]

    def __iter__(self):
        return ((Image.new("RGB", (s, 3), (255, 0, 51)), i % 2) for i, s in enumerate(self.sizes))


def test_a_torchvision_set_of_colour_arrays(tmp_path):
    data = torchvision_set(Coloured, tmp_path)
    assert sizes(data) == [18, 2, 20]
    assert data.info.num_classes == 4
    bytes_ = torch.tensor(Coloured(tmp_path).data).permute(0, 3, 1, 2)
    torch.testing.assert_close(data.test.tensors["x"] * 255, bytes_.float())


def test_a_torchvision_set_of_images_to_decode(tmp_path, monkeypatch):
    x = torchvision_set(Decoded, tmp_path).test.tensors["x"]
    assert x.shape == (20, 3, 3, 4)
    assert x[0, :, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])
    monkeypatch.setattr(Decoded, "odd", True)
    with pytest.raises(PplError, match="images of torchvision's Decoded differ in size"):
        torchvision_set(Decoded, tmp_path)


# Array files.


def test_npy_bytes_are_images_in_the_unit_interval(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (50, 4, 6), dtype=np.uint8)
    np.save(tmp_path / "bytes.npy", array)
    data = load_data(str(tmp_path / "bytes.npy"))
    assert sizes(data) == [40, 5, 5]
    assert (data.info.x_shape, data.info.levels) == ((1, 4, 6), 256)
    found = torch.cat([whole(data.split(part))["x"] for part in PARTS]) * 255
    rows = sorted(found.round().long().flatten(1).tolist())
    assert rows == sorted(array.reshape(50, -1).tolist())


def test_npz_fields_stay_together(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 3))
    y = (x[:, 0] > 0).astype(np.uint8)
    np.savez(tmp_path / "pairs.npz", x=x, y=y)
    data = load_data(str(tmp_path / "pairs.npz"))
    assert (data.info.num_classes, data.info.levels) == (2, None)
    for part in PARTS:
        batch = whole(data.split(part))
        assert batch["x"].dtype == torch.float32
        assert torch.equal(batch["y"], (batch["x"][:, 0] > 0).long())


def ready(tmp_path, **fields):
    np.savez(tmp_path / "ready.npz", **fields)
    return load_data(str(tmp_path / "ready.npz"))


def ready_x(count=6, shape=(3,)):
    draw = np.random.default_rng(0)
    return {f"x_{part}": draw.random((count, *shape)) for part in PARTS}


def test_npz_with_splits_of_its_own_keeps_them(tmp_path):
    fields = {f"x_{part}": np.full((i + 2, 3), float(i)) for i, part in enumerate(PARTS)}
    fields |= {f"y_{part}": np.full(i + 2, i) for i, part in enumerate(PARTS[:1])}
    fields |= {f"y_{part}": np.zeros(i + 3, int) for i, part in enumerate(PARTS[1:])}
    data = ready(tmp_path, **fields)
    assert sizes(data) == [2, 3, 4]
    assert [float(data.split(part).tensors["x"].mean()) for part in PARTS] == [0, 1, 2]


def test_npz_without_one_of_its_splits_is_refused(tmp_path):
    with pytest.raises(PplError, match=r"for train but none for valid: \['x_train'\]"):
        ready(tmp_path, x_train=np.zeros((4, 3)))


def test_npz_splits_of_bytes_can_be_dequantized(tmp_path):
    # BUG: `_ready_splits` forgets the grey levels, so dequantization is refused.
    ready(tmp_path, **{f"x_{part}": np.zeros((6, 4, 4), np.uint8) + 200 for part in PARTS})
    data = load_data(str(tmp_path / "ready.npz"), dequantize=True)
    assert data.info.log_jacobian == pytest.approx(-math.log(256))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_test": np.full(6, 0.5)}, "must be integers"),  # BUG: those of train alone are checked
        ({"x_test": np.zeros((6, 2))}, "shape"),  # BUG: not checked
        ({"x_test": np.full((6, 3), np.nan)}, r"\(test\): field 'x' holds nan at index \(0, 0\)"),
        ({"y_train": np.zeros(5, int)}, r"\(train\): fields of different lengths"),
        ({"x_valid": np.zeros((0, 3))}, "there are no data"),
    ],
)
def test_npz_splits_are_checked_every_one(tmp_path, change, message):
    labels = {f"y_{part}": np.arange(6) % 2 for part in PARTS}
    with pytest.raises(PplError, match=message):
        ready(tmp_path, **{**ready_x(), **labels, **change})


def test_npz_splits_have_the_classes_of_all_splits(tmp_path):
    # BUG: 2, the classes of train alone.
    labels = {f"y_{part}": np.arange(6) % 2 for part in PARTS}
    data = ready(tmp_path, **{**ready_x(), **labels, "y_valid": np.full(6, 7)})
    assert data.info.num_classes == 8


def test_binarization_looks_at_the_range_of_every_split(tmp_path):
    # BUG: `value_range` is that of train; torch.bernoulli raises RuntimeError for test.
    data = ready(tmp_path, **{**ready_x(), "x_test": np.full((6, 3), 3.0)})
    with pytest.raises(PplError, match=r"not \[0, 1\]"):
        binarize_data(data, "static")


@pytest.mark.parametrize("name", ["objects.npy", "objects.npz"])
def test_pickled_arrays_are_refused(tmp_path, name):
    array = np.array([{}, 1], dtype=object)
    path = tmp_path / name
    np.save(path, array, allow_pickle=True) if name.endswith("npy") else np.savez(path, x=array)
    with pytest.raises(PplError, match=rf"{name}.*pickled objects are refused"):
        load_data(str(path))


@pytest.mark.parametrize("name", ["text.npy", "empty.npy", "cut.npz"])
def test_damaged_and_foreign_array_files_are_refused_and_closed(tmp_path, name):
    # BUG (cut.npz): zipfile.BadZipFile comes out, and numpy leaves the file open.
    np.savez(tmp_path / "whole.npz", x=np.zeros((50, 4)))
    cut = (tmp_path / "whole.npz").read_bytes()[:200]
    (tmp_path / name).write_bytes({"text.npy": b"hello", "empty.npy": b"", "cut.npz": cut}[name])
    told = ""
    try:
        load_data(str(tmp_path / name))
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
    gc.collect()  # a file left open warns here, not in some later test
    assert told.startswith(f"PplError: cannot read {tmp_path / name}: ")


def test_arrays_of_another_byte_order_are_read(tmp_path):
    # BUG: "given numpy array has byte order different from the native byte order".
    np.save(tmp_path / "big.npy", np.arange(40.0).reshape(20, 2).astype(">f8"))
    found = torch.cat([whole(load_data(str(tmp_path / "big.npy")).split(p))["x"] for p in PARTS])
    assert sorted(found.flatten().tolist()) == list(range(40))


def test_text_and_missing_array_files_are_named(tmp_path):
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    with pytest.raises(PplError, match=r"words\.npy: field 'x' is of type <U1; expected numbers"):
        load_data(str(tmp_path / "words.npy"))
    with pytest.raises(PplError, match=r"there is no data file '.*none\.npz'"):
        load_data(str(tmp_path / "none.npz"))


# Folders of images.


def test_a_folder_of_images(pictures):
    data = load_data(str(pictures))
    assert sizes(data) == [24, 3, 3]
    assert (data.info.x_shape, data.info.num_classes, data.info.levels) == ((1, 3, 5), None, 256)
    assert data.train.fields == ("x",)
    found = torch.cat([whole(data.split(part))["x"] for part in PARTS])
    assert sorted((found[:, 0, 0, 0] * 255).round().tolist()) == [8.0 * i for i in range(30)]


def test_subfolders_are_classes_in_alphabetical_order(tmp_path):
    for label, name in enumerate(["ant", "bee", "cat", "dog", "eel"]):
        image = np.zeros((4, 6, 3), np.uint8)
        image[0, :, 2] = 50 * label  # a blue first row
        save_images(tmp_path / name, {f"{i}.PNG": image for i in range(6)})
    data = load_data(str(tmp_path))
    assert (data.info.x_shape, data.info.num_classes) == ((3, 4, 6), 5)
    for part in PARTS:
        batch = whole(data.split(part))
        expected = torch.zeros(len(batch["y"]), 3, 4, 6)
        expected[:, 2, 0] = (50 / 255 * batch["y"]).unsqueeze(1)
        torch.testing.assert_close(batch["x"], expected)


@pytest.mark.parametrize("limit", [0, files.MEMORY_LIMIT])
def test_an_image_of_another_size_is_named(pictures, monkeypatch, limit):
    save_images(pictures, {"17.png": np.zeros((4, 5), np.uint8)})
    monkeypatch.setattr(files, "MEMORY_LIMIT", limit)
    with pytest.raises(PplError, match=r"17\.png has shape \(1, 4, 5\), but .* \(1, 3, 5\)"):
        [whole(load_data(str(pictures)).split(part)) for part in PARTS]


def test_an_unreadable_image_is_named(pictures):
    (pictures / "09.png").write_bytes((pictures / "09.png").read_bytes()[:40])
    with pytest.raises(PplError, match=r"cannot read the image .*09\.png"):
        load_data(str(pictures))
    (pictures / "09.png").write_text("no image")
    with pytest.raises(PplError, match=r"cannot read the image .*09\.png"):
        load_data(str(pictures))


def test_sixteen_bit_images_keep_their_grey_levels(tmp_path):
    # BUG: PIL's convert("L") clips 16 bits at 255, so nearly all pixels become white.
    grey = (np.arange(16, dtype=np.uint16) * 4369).reshape(4, 4)
    save_images(tmp_path, {"deep.png": grey})
    expected = torch.tensor(grey.astype(np.float32) / 65535)
    torch.testing.assert_close(
        files.read_image(tmp_path / "deep.png")[0], expected, atol=1 / 255, rtol=0
    )


def test_a_folder_of_few_images_is_data_or_a_clear_error(tmp_path):
    # BUG: "stack expects a non-empty TensorList", a RuntimeError, with fewer than five images.
    save_images(tmp_path, {f"{i}.png": np.zeros((3, 3), np.uint8) for i in range(2)})
    try:
        found = len(load_data(str(tmp_path)).train)
    except PplError:
        return
    assert found == 2


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("none here")
    with pytest.raises(PplError, match=r"no images \(\.png, .*\) in "):
        load_data(str(tmp_path))


# Splits and streams.


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
    # BUG: the noise stays on the binary x, which then is not binary.
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
