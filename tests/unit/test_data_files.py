"""The user's own files and folders."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
import torch
from data_helpers import PARTS, save_images, sizes, whole

from inference.data import (
    binarize_data,
    files,
    load_data,
)
from ppl_models.errors import PplError


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

    ready(tmp_path, **{f"x_{part}": np.zeros((6, 4, 4), np.uint8) + 200 for part in PARTS})
    data = load_data(str(tmp_path / "ready.npz"), dequantize=True)
    assert data.info.log_jacobian == pytest.approx(-math.log(256))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_test": np.full(6, 2.0)}, "must be integers"),
        ({"x_test": np.zeros((6, 2))}, "shape"),
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

    labels = {f"y_{part}": np.arange(6) % 2 for part in PARTS}
    data = ready(tmp_path, **{**ready_x(), **labels, "y_valid": np.full(6, 7)})
    assert data.info.num_classes == 8


def test_binarization_looks_at_the_range_of_every_split(tmp_path):

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

    grey = (np.arange(16, dtype=np.uint16) * 4369).reshape(4, 4)
    save_images(tmp_path, {"deep.png": grey})
    expected = torch.tensor(grey.astype(np.float32) / 65535)
    torch.testing.assert_close(
        files.read_image(tmp_path / "deep.png")[0], expected, atol=1 / 255, rtol=0
    )


def test_a_folder_of_few_images_is_data_or_a_clear_error(tmp_path):

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
