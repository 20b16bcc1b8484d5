"""On a GPU: a compiled function recorded once as a CUDA graph, and replayed."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from inference.graphs import Compiled

log = logging.getLogger(__name__)

WARM_UP = 3
"""Calls before the recording, in which libraries set up what may not be set up within one."""


class Replayed:
    """A compiled function whose kernels are launched as one.

    Args:
        compiled: of a list of tensors. All but the last few are the same tensors at every call.
        changing: how many the last few are; their values are copied to where the graph reads.
    """

    def __init__(self, compiled: Compiled, changing: int) -> None:
        self.compiled = compiled
        self.changing = changing
        self.recordable = True
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: Sequence[Tensor] = []

    def __call__(self, flat: list[Tensor]) -> Sequence[Tensor]:
        """The outputs; the next call overwrites them."""
        self._calls += 1
        if not self.recordable or self._calls <= WARM_UP:
            return self.compiled(flat)
        if self._graph is None:
            self._record(flat)
            if self._graph is None:
                return self.compiled(flat)
        first = len(flat) - self.changing
        for own, given in zip(self._inputs[first:], flat[first:], strict=True):
            own.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._outputs

    def _record(self, flat: list[Tensor]) -> None:
        first = len(flat) - self.changing
        self._inputs = [*flat[:first], *(value.clone() for value in flat[first:])]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._outputs = self.compiled(list(self._inputs))
        except RuntimeError as error:
            self.recordable = False
            log.warning("the compiled step is not replayed as a CUDA graph: %s", error)
            return
        self._graph = graph
