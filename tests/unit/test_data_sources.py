"""Data sets of packages, of torchvision, and the fixed binarization."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_helpers import PARTS, sizes, whole
from PIL import Image
from torchvision import datasets

from inference.data import (
    load_data,
)
from inference.data.sources import torchvision_set
from ppl_models.errors import PplError


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
