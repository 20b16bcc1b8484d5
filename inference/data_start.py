"""Programs that start from data: what they ask for is done once, before the first step."""

from __future__ import annotations

from typing import Any

import torch

from inference.data.dataset import Split
from inference.devices import isolated_rng
from inference.weights import evaluation_mode
from ppl_models.errors import PplError, ProgramError, describe
from ppl_models.program import Program

HOOK = "start_from_data"


def start_from_data(program: Program, split: Split, batch_size: int, seed: int) -> bool:
    """Let a program look at training data before it is trained, if it has a method for it.

    ``start_from_data(batches)`` is given the training data once, as batches in random order, in
    evaluation mode and without gradient, and may set parameters and buffers. It says whether it
    has; a program that is trained already should leave itself as it is.

    Args:
        program: any program.
        split: its training data, on its device.
        batch_size: of the batches.
        seed: of the order, and of what the method draws.

    Returns:
        Whether the program was changed.

    Raises:
        ProgramError: the method fails.
    """
    hook: Any = getattr(program.owner, HOOK, None)
    if hook is None:
        return False
    with isolated_rng(seed), evaluation_mode(program), torch.no_grad(), program.scope():
        order = torch.randperm(len(split))
        try:
            return bool(hook(split.batches(batch_size, order)))
        except PplError:
            raise
        except Exception as error:
            raise ProgramError(f"{HOOK} of {program.name} fails: {describe(error)}") from error
