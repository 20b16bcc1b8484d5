"""Inputs of a model from the command line: ``ppl sample RUN --y 3``.

Any field that a model names and does not have to draw can be given: one value for all, or a list
that is gone through in turn.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor

from inference.data.checks import check_labels
from inference.data.dataset import DataInfo
from inference.sketches import read_beginning
from ppl_models.errors import PplError, UnknownNameError
from ppl_models.program import Program


def inputs_among(argv: list[str], options: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without those that are no options, and these as texts by name.

    Args:
        argv: of a command.
        options: its own, without dashes.
    """
    rest: list[str] = []
    inputs: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name in {*options, "help"}:
            rest.append(word)
        else:
            inputs[name] = value if equals else next(words, "")
    return rest, inputs


def model_inputs(
    texts: Mapping[str, str], program: Program, info: DataInfo, num: int, options: Collection[str]
) -> dict[str, Tensor] | None:
    """The fields that are given, (num, ...) each; None if there are none.

    Args:
        texts: by field: a number, a list of them, or an ``.npy`` file.
        program: names its fields.
        info: of its data.
        num: how many draws.
        options: of the command, for the near misses of an error.

    Raises:
        UnknownNameError: neither a field nor an option.
        PplError: no number, list or file; or labels that are no classes of the data.
    """
    found = {}
    for name, text in texts.items():
        if name not in program.fields:
            known = [f"--{known}" for known in (*program.fields, *options)]
            raise UnknownNameError(f"option or field of {program.name}", f"--{name}", known)
        values = read_beginning(text, program) if name == "beginning" else _read(name, text)
        if name == "y" and info.num_classes is not None:
            check_labels(values, info.num_classes, f"--{name}")
        found[name] = values[torch.arange(num) % len(values)]
    return _placed(found, program) or None


def _read(name: str, text: str) -> Tensor:
    """Values (L, ...) of a text."""
    if text.endswith(".npy"):
        if not Path(text).is_file():
            raise PplError(f"--{name}: there is no file {text!r}")
        return torch.as_tensor(np.load(text, allow_pickle=False))
    try:
        values = torch.tensor(yaml.safe_load(text))
    except (yaml.YAMLError, TypeError, ValueError, RuntimeError) as error:
        raise PplError(
            f"--{name} must be a number, a list such as [0,1,2], or an .npy file; got {text!r}"
        ) from error
    return values.reshape(1) if values.dim() == 0 else values


def _placed(values: Mapping[str, Tensor], program: Program) -> dict[str, Tensor]:
    """On the program's device, floating ones in its precision."""
    like = next((p for p in program.parameters()), torch.zeros(()))
    return {
        name: value.to(like.device, like.dtype if value.is_floating_point() else None)
        for name, value in values.items()
    }
