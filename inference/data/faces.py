"""Faces: scikit-image's crops of LFW, Frey, Olivetti, CelebA.

Shapes: N images, C H W image.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from inference.data.checks import check_fields
from inference.data.dataset import (
    GREY_LIKELIHOODS,
    DataInfo,
    DataSet,
    MemorySplit,
    StreamSplit,
    describe,
    from_tensors,
)
from inference.data.sources import ROOT_VARIABLE, bytes_to_unit
from ppl_models.errors import PplError

CELEBA_CROP, CELEBA_SIDE = 148, 64
"""Pixels of CelebA's centre that are kept, and of the image they are reduced to."""


def faces(_: Path) -> DataSet:
    """100 faces of LFW, 1×25×25, from scikit-image's package; no labels.

    The file has 100 faces and 100 pictures that are none; the faces come first.

    Raises:
        PplError: scikit-image is not installed.

    References:
        Huang, Ramesh, Berg, Learned-Miller: Labeled Faces in the Wild, 2007.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise PplError(
            "the data set 'faces' comes with scikit-image, which is not installed: "
            "pip install 'ppl-models[photographs]', or take frey_faces or olivetti_faces"
        )
    images = np.load(Path(spec.origin).parent / "data" / "lfw_subset.npy", allow_pickle=False)
    x = torch.tensor(images[:100], dtype=torch.float32).unsqueeze(1)
    data = from_tensors(x, name="faces")
    return replace(data, info=replace(data.info, summary="100 faces of LFW, 25×25 (scikit-image)"))


def frey_faces(root: Path) -> DataSet:
    """Frey faces: 1,965 frames of one man's face, 1×28×20, grey.

    Reads ``faces/freyfaces_uint8.npy`` (N, 28, 20) or the original ``frey_rawface.mat`` (560, N).
    Split at random (80/10/10, fixed seed) as is usual: frames are neighbours in a film, so those
    held out resemble those trained on.

    References:
        Roweis, Saul: Nonlinear Dimensionality Reduction by Locally Linear Embedding, 2000.
    """
    path = _find(root, "frey_faces", ("freyfaces_uint8.npy", "frey_rawface.mat"))
    if path.suffix == ".npy":
        images = np.load(path, allow_pickle=False)
    else:
        images = _matrix(path, "ff").T.reshape(-1, 28, 20)
    x = bytes_to_unit(_checked(images, (28, 20), path)).unsqueeze(1)
    data = from_tensors(x, name="frey_faces", levels=256)
    summary = f"Frey faces, {len(x):,} frames, 28×20"
    return replace(data, info=replace(data.info, summary=summary))


def olivetti_faces(root: Path) -> DataSet:
    """Olivetti (AT&T) faces: 40 people ten times each, 1×64×64, grey; labels are people.

    Reads ``faces/olivettifaces.mat``. Of every person eight images are train, one valid and one
    test, drawn with a fixed seed.

    References:
        Samaria, Harter: Parameterisation of a Stochastic Model for Human Face Identification, 1994.
    """
    path = _find(root, "olivetti_faces", ("olivettifaces.mat",))
    images = _matrix(path, "faces").T.reshape(-1, 64, 64).transpose(0, 2, 1)  # columns first
    x = bytes_to_unit(_checked(images, (64, 64), path).copy()).unsqueeze(1)
    y = torch.arange(len(x)) // 10
    order = torch.stack([10 * person + _shuffle(10, person) for person in range(len(x) // 10)])
    parts = [order[:, :8], order[:, 8:9], order[:, 9:]]
    splits = [MemorySplit({"x": x[p.flatten()], "y": y[p.flatten()]}) for p in parts]
    info = replace(
        describe("olivetti_faces", {"x": x, "y": y}, 256),
        summary=f"Olivetti faces, {len(x) // 10} people × 10, 64×64",
    )
    return DataSet(info, *splits)


def _shuffle(size: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def _find(root: Path, name: str, files: tuple[str, ...]) -> Path:
    """The first of these files, in the folder or in ``faces`` in it."""
    places = [folder / file for file in files for folder in (root / "faces", root)]
    for path in places:
        if path.is_file():
            return path
    raise PplError(
        f"{name} needs {' or '.join(files)} in {root} or {root / 'faces'}; put it there, or name "
        f"its folder by --data_root or {ROOT_VARIABLE}"
    )


def _matrix(path: Path, key: str) -> np.ndarray:
    from scipy.io import loadmat

    try:
        return loadmat(path)[key]
    except Exception as error:  # of many kinds, one of them in no public module
        raise PplError(f"{path} is no MATLAB file with a matrix {key!r} ({error})") from error


def _checked(images: np.ndarray, shape: tuple[int, int], path: Path) -> np.ndarray:
    if images.ndim != 3 or images.shape[1:] != shape or images.dtype != np.uint8:
        raise PplError(
            f"{path} holds {images.dtype} {images.shape}; expected bytes "
            f"(N, {shape[0]}, {shape[1]})"
        )
    return images


class CelebFaces(Dataset[dict[str, Tensor]]):
    """CelebA's items as fields ``x`` (3, 64, 64) in [0, 1] and ``attributes`` (40,) of 0 and 1.

    Args:
        faces: torchvision's data set.
    """

    def __init__(self, faces: Any) -> None:
        self.faces = faces

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

        image, attributes = self.faces[index]
        pixels = resize(center_crop(pil_to_tensor(image), CELEBA_CROP), CELEBA_SIDE, antialias=True)
        return {"x": bytes_to_unit(pixels), "attributes": attributes.float()}


def celeba(root: Path) -> DataSet:
    """CelebA through torchvision: 202,599 faces, 3×64×64, 40 attributes; its own splits.

    The centre 148×148 of the aligned images, reduced; read from disk batch by batch.

    Raises:
        PplError: its files are not in ``root/celeba``, or were changed.

    References:
        Liu, Luo, Wang, Tang: Deep Learning Face Attributes in the Wild, 2015, arXiv:1411.7766.
    """
    from torchvision.datasets import CelebA

    try:
        parts = [CelebA(str(root), split=part) for part in ("train", "valid", "test")]
    except (RuntimeError, OSError) as error:
        texts = ", ".join(name for _, _, name in CelebA.file_list if name.endswith(".txt"))
        raise PplError(
            f"celeba is not whole in {root / 'celeba'} ({error}). It is not downloaded for you: "
            "from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html take img_align_celeba.zip "
            f"(unpacked) and {texts}, or name their folder by --data_root or {ROOT_VARIABLE}"
        ) from error
    splits = [StreamSplit(CelebFaces(part)) for part in parts]
    first = splits[0].dataset[0]
    check_fields({k: v.unsqueeze(0) for k, v in first.items()}, "celeba")
    info = DataInfo(
        "celeba",
        tuple(first["x"].shape),
        (0.0, 1.0),
        GREY_LIKELIHOODS,
        f"CelebA (torchvision), {' / '.join(f'{len(s):,}' for s in splits)}, 64×64",
        levels=256,
        columns={"attributes": tuple(name for name in parts[0].attr_names if name)},
    )
    return DataSet(info, *splits)
