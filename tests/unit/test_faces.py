"""Face data sets: where their files are, and what is said where they are not."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_helpers import PARTS, save_images, sizes, whole
from scipy.io import savemat
from torchvision.datasets import CelebA

from inference.data import load_data
from inference.data.dataset import StreamSplit
from ppl_models.errors import PplError


@pytest.fixture
def skimage_package(tmp_path, monkeypatch):
    """A package like scikit-image, whose file has 100 bright and 100 dark pictures."""
    (tmp_path / "skimage" / "data").mkdir(parents=True)
    bright = np.repeat([1.0, 0.0], 100).reshape(-1, 1, 1) * np.ones((1, 25, 25))
    np.save(tmp_path / "skimage" / "data" / "lfw_subset.npy", bright)
    place = SimpleNamespace(origin=str(tmp_path / "skimage" / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: place)


def test_faces_are_the_first_hundred_of_the_file(skimage_package):
    data = load_data("faces")
    assert sizes(data) == [80, 10, 10]
    assert data.info.x_shape == (1, 25, 25)
    assert all(bool((whole(data.split(part))["x"] == 1).all()) for part in PARTS)


def test_faces_of_scikit_image():
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    x = torch.cat([whole(load_data("faces").split(part))["x"] for part in PARTS])
    assert x.shape == (100, 1, 25, 25)
    assert 0.2 < float(x.mean()) < 0.8
    assert float(x.amin()) == 0.0


def test_faces_without_scikit_image_name_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PplError, match=r"ppl-models\[photographs\].*frey_faces"):
        load_data("faces")


def test_frey_faces(shared_data):
    data = load_data("frey_faces", data_root=str(shared_data))
    assert sizes(data) == [1573, 196, 196]
    assert (data.info.x_shape, data.info.levels) == ((1, 28, 20), 256)
    x = torch.cat([whole(data.split(part))["x"] for part in PARTS])
    assert float(x.mean()) == pytest.approx(0.6060, abs=1e-3)


def test_the_original_frey_file_gives_the_same_images(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 20), dtype=np.uint8)
    for name in ("npy", "mat"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "npy" / "freyfaces_uint8.npy", images)
    savemat(tmp_path / "mat" / "frey_rawface.mat", {"ff": images.reshape(30, 560).T})
    first, second = (load_data("frey_faces", data_root=str(tmp_path / n)) for n in ("npy", "mat"))
    assert torch.equal(first.train.tensors["x"], second.train.tensors["x"])


def test_olivetti_faces_hold_every_person_in_every_part(shared_data):
    data = load_data("olivetti_faces", data_root=str(shared_data))
    assert sizes(data) == [320, 40, 40]
    assert (data.info.x_shape, data.info.num_classes) == ((1, 64, 64), 40)
    for part, each in zip(PARTS, (8, 1, 1), strict=True):
        assert whole(data.split(part))["y"].bincount().tolist() == [each] * 40
    x = torch.cat([whole(data.split(part))["x"] for part in PARTS])
    assert len(x.unique(dim=0)) == 400
    upper, lower = x[:, :, :6].mean(), x[:, :, -6:].mean()  # hair above, chin below: upright
    assert float(upper) != pytest.approx(float(lower), abs=0.02)


def test_people_of_one_image_are_alike(shared_data):
    """Rows of ten are one person: nearer to each other than to others."""
    train = whole(load_data("olivetti_faces", data_root=str(shared_data)).train)
    means = torch.stack([train["x"][train["y"] == k].mean(0).flatten() for k in range(40)])
    test = whole(load_data("olivetti_faces", data_root=str(shared_data)).test)
    nearest = torch.cdist(test["x"].flatten(1), means).argmin(-1)
    assert float((nearest == test["y"]).float().mean()) > 0.75


@pytest.mark.parametrize(
    ("name", "file"),
    [("frey_faces", "freyfaces_uint8.npy"), ("olivetti_faces", "olivettifaces.mat")],
)
def test_missing_files_are_named_with_their_place(name, file, tmp_path):
    with pytest.raises(PplError, match=f"{file}.*--data_root or PPL_DATA_ROOT") as told:
        load_data(name, data_root=str(tmp_path))
    assert str(tmp_path / "faces") in str(told.value)


def test_foreign_files_are_refused(tmp_path):
    np.save(tmp_path / "freyfaces_uint8.npy", np.zeros((4, 20, 28), np.uint8))
    with pytest.raises(PplError, match=r"uint8 \(4, 20, 28\); expected bytes \(N, 28, 20\)"):
        load_data("frey_faces", data_root=str(tmp_path))
    (tmp_path / "olivettifaces.mat").write_bytes(b"no matrix")
    with pytest.raises(PplError, match="no MATLAB file with a matrix 'faces'"):
        load_data("olivetti_faces", data_root=str(tmp_path))


ATTRIBUTES = ("Bald", "Smiling")


@pytest.fixture
def celeba_files(tmp_path, monkeypatch):
    """Seven pictures in the layout of CelebA; what is checked of the real files is their sums."""
    folder = tmp_path / "celeba"
    greys = [10, 60, 110, 140, 160, 210, 250]
    names = [f"{i + 1:06}.jpg" for i in range(7)]
    save_images(
        folder / "img_align_celeba",
        {n: np.full((218, 178, 3), g, np.uint8) for n, g in zip(names, greys, strict=True)},
    )
    numbers = {"identity_CelebA": "7", "list_bbox_celeba": "0 0 9 9"}
    numbers["list_landmarks_align_celeba"] = " ".join(["1"] * 10)
    for file, row in numbers.items():
        header = "" if file.startswith("identity") else "7\nheader\n"
        text = header + "".join(f"{name} {row}\n" for name in names)
        (folder / f"{file}.txt").write_text(text)
    parts = [0, 0, 0, 1, 1, 2, 2]
    rows = zip(names, parts, strict=True)
    (folder / "list_eval_partition.txt").write_text("".join(f"{n} {p}\n" for n, p in rows))
    bits = "".join(f"{n} {1 if i % 2 else -1}  {-1 if i % 2 else 1}\n" for i, n in enumerate(names))
    (folder / "list_attr_celeba.txt").write_text(f"7\n{' '.join(ATTRIBUTES)} \n{bits}")
    monkeypatch.setattr("torchvision.datasets.celeba.check_integrity", lambda path, md5: True)
    return tmp_path


def test_celeba_is_streamed_with_its_own_splits_and_attributes(celeba_files):
    data = load_data("celeba", data_root=str(celeba_files), num_workers=0)
    assert sizes(data) == [3, 2, 2]
    assert isinstance(data.train, StreamSplit)
    assert data.info.x_shape == (3, 64, 64)
    assert data.info.columns == {"attributes": ATTRIBUTES}
    test = whole(data.test)
    assert (test["x"][:, 0, 0, 0] * 255).round().tolist() == [210, 250]
    assert test["attributes"].tolist() == [[1, 0], [0, 1]]
    assert load_data("celeba", data_root=str(celeba_files), num_workers=2).test.num_workers == 2


def test_an_absent_celeba_says_what_to_get(tmp_path):
    with pytest.raises(PplError, match=r"img_align_celeba\.zip.*list_attr_celeba\.txt") as told:
        load_data("celeba", data_root=str(tmp_path))
    for part in (str(tmp_path / "celeba"), "mmlab.ie.cuhk.edu.hk", "--data_root"):
        assert part in str(told.value)
    assert CelebA.base_folder == "celeba"
