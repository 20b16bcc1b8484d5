"""Device, precision and loggers of a run, through Lightning Fabric.

Fabric is imported when the first run is made: it brings torch's compiler with it, which takes
longer than everything else that a command needs to answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ppl_models.errors import PplError, UnknownNameError

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.loggers import Logger

PRECISIONS = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed"}
"""Names that ``fit`` takes, and Fabric's."""


def make_fabric(
    device: str = "auto", precision: str = "32", loggers: Sequence[Logger] = ()
) -> Fabric:
    """Fabric for one process on one device.

    Args:
        device: ``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or ``cuda:1``.
        precision: ``32``, ``64``, or ``bf16`` (autocast; densities stay float32).
        loggers: Fabric loggers.

    Raises:
        UnknownNameError: another device or precision.
        PplError: CUDA is asked for where there is none.
    """
    from lightning_fabric import Fabric

    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda"):
        raise UnknownNameError("device", device, ["auto", "cpu", "cuda", "cuda:1"])
    available = torch.cuda.device_count()
    if kind == "cuda" and (available == 0 or (index and int(index) >= available)):
        raise PplError(
            f"device {device!r} was asked for, but this machine has {available or 'no'} CUDA "
            "device(s) that torch can use; use --device cpu or --device auto"
        )
    on_cuda = kind == "cuda" or (kind == "auto" and available > 0)
    return Fabric(
        accelerator="cuda" if on_cuda else "cpu",
        devices=[int(index)] if index and on_cuda else 1,
        precision=PRECISIONS[precision],  # type: ignore[arg-type]
        loggers=list(loggers),
    )


def dtype_of(precision: str) -> torch.dtype:
    """The dtype of parameters and data."""
    return torch.float64 if precision == "64" else torch.float32


def rng_state() -> dict[str, Any]:
    """The state of torch's, numpy's and Python's generators, as plain values and tensors."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).copy()), position, has_gauss, gauss],
        "python": [version, list(internal), gauss_next],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what :func:`rng_state` gave; CUDA generators as many as there are."""
    torch.set_rng_state(state["torch"])
    for index, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda_state, index)
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy(), *rest))  # noqa: NPY002
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


def seed_all(seed: int) -> None:
    """Seed torch (every device), numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


@contextmanager
def isolated_rng(seed: int, purpose: str = "") -> Iterator[None]:
    """Within, the generators are seeded; afterwards they are as they were.

    Args:
        seed: of the draws.
        purpose: what they are for; each has draws of its own. Without one they are those that
            ``torch.manual_seed(seed)`` gives, of which a user's data may be made.
    """
    before = rng_state()
    seed_all(seed if not purpose else own_seed(seed, purpose))
    try:
        yield
    finally:
        set_rng_state(before)


def own_seed(seed: int, purpose: str) -> int:
    """A seed of 32 bits that no other seed or purpose has, but by a chance of one in 2^32."""
    return int.from_bytes(blake2b(f"{purpose}:{seed}".encode(), digest_size=4).digest())
