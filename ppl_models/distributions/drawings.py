"""A distribution over whole drawings by the chain rule: movement after movement of a pen.

    p(x) = Π_{i ≤ N + 1} p(x_i | x_1, ..., x_{i−1}, context),   x_{N+1} = end

each factor a :class:`StrokeMixture`. A drawing of N movements stands in (T, 5), N < T; the rows
after its end are padding and take part in nothing, so however many there are changes no number.

A recurrent network gives the factors of all rows at once, so a density takes one pass; a draw takes
one network output a row, until all drawings have ended. Those that have not by row T are cut there.

Shapes: B batch, T rows, F features of the context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import torch
from pyro.distributions import TorchDistribution, is_validation_enabled
from torch import Tensor
from torch.distributions import constraints

from ppl_models.distributions.autoregressive import check_sharpness
from ppl_models.distributions.stroke_mixture import END, StrokeMixture, StrokeRows
from ppl_models.errors import PplError


class FinishedDrawings(constraints.Constraint):
    """Drawings (T, 5): rows of stroke-5, of which the last is an end, and only ends after one."""

    event_dim = 2

    def check(self, value: Tensor) -> Tensor:
        """Whether each drawing is one."""
        ends = value[..., END]
        in_order = (ends[..., 1:] >= ends[..., :-1]).all(-1)
        return StrokeRows().check(value).all(-1) & in_order & (ends[..., -1] == 1)


def num_movements(x: Tensor) -> Tensor:
    """N of drawings (..., T, 5): rows before the first end."""
    return (x[..., END].cumsum(-1) == 0).sum(-1)


class Pen(Protocol):
    """The outputs of a recurrent network, one row after the other."""

    def outputs(self, rows: Tensor) -> Tensor:
        """Of the row after these (B, 5), for a :class:`StrokeMixture`."""


class StrokeNetwork(Protocol):
    """What gives the factors; a module."""

    def __call__(self, before: Tensor, context: Tensor | None = None, /) -> Tensor:
        """Outputs (B, T, 6 M + 3), each of the rows (B, T, 5) before it and a context (B, F)."""

    def pen(self, batch: int, context: Tensor | None) -> Pen:
        """The same, row by row."""


class Drawings(TorchDistribution):
    """Drawings of fewer than T movements, event shape (T, 5).

    Args:
        network: of the factors.
        num_rows: T.
        context: what the network is conditioned on, (batch..., F), or None.
        like: any tensor of the device and dtype of draws.
        batch_shape: where there is no context.
        beginning: rows (P, 5) or (batch..., P, 5) that every drawing begins with, P < T, none of
            them an end: the distribution is then of what follows.
        temperature: T > 0 of every factor.
        on_row: called after every row that is drawn, such as a progress bar's update.

    Raises:
        PplError: a temperature that is none, or a beginning that is too long or has an end.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        network: StrokeNetwork,
        num_rows: int,
        context: Tensor | None = None,
        *,
        like: Tensor,
        batch_shape: Sequence[int] = (),
        beginning: Tensor | None = None,
        temperature: float = 1.0,
        on_row: Callable[[], object] | None = None,
    ) -> None:
        check_sharpness(temperature, None)
        self.network = network
        self.context = context
        self.like = like
        self.beginning = beginning
        self.temperature = temperature
        self.on_row = on_row
        if beginning is not None:
            _check_beginning(beginning, num_rows)
        batch = torch.Size(batch_shape) if context is None else context.shape[:-1]
        super().__init__(batch, torch.Size([num_rows, 5]), validate_args=False)

    @property
    def num_rows(self) -> int:
        """T."""
        return self.event_shape[0]

    @property
    def num_positions(self) -> int:
        """Rows that a draw takes at most."""
        return self.num_rows - self._num_given

    @property
    def _num_given(self) -> int:
        return 0 if self.beginning is None else self.beginning.shape[-2]

    @property
    def support(self) -> Any:
        """Drawings that end."""
        return FinishedDrawings()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Drawings:
        """The same, over a larger batch."""
        return self._with(batch_shape)

    def sharpened(
        self,
        temperature: float = 1.0,
        top_k: int | None = None,
        on_position: Callable[[], object] | None = None,
    ) -> Drawings:
        """The same, with factors of this temperature.

        Raises:
            PplError: a ``top_k``, which is of categories.
        """
        if top_k is not None:
            raise PplError("top_k is of categories, and an offset is none; give a temperature")
        return self._with(self.batch_shape, temperature=temperature, on_row=on_position)

    def _with(self, batch_shape: Any, **changes: Any) -> Drawings:
        context = self.context
        if context is not None:
            context = context.expand(*batch_shape, context.shape[-1])
        options = {
            "beginning": self.beginning,
            "temperature": self.temperature,
            "on_row": self.on_row,
        }
        return Drawings(
            self.network,
            self.num_rows,
            context,
            like=self.like,
            batch_shape=batch_shape,
            **(options | changes),
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of drawings (..., T, 5), in one pass.

        Raises:
            PplError: under Pyro's validation: rows that are no drawing.
        """
        if is_validation_enabled():
            self._check(value)
        batch = torch.broadcast_shapes(value.shape[:-2], self.batch_shape)
        x = value.expand(*batch, *value.shape[-2:]).reshape(-1, *value.shape[-2:])
        lengths = num_movements(x)  # (B,)
        x = x[:, : int(lengths.max()) + 1]  # the network need not run on padding
        factors = self._mixture(self.network(_before(x), self._flat_context(batch)))
        rows = torch.arange(x.shape[1], device=x.device)
        counts = (rows <= lengths.unsqueeze(-1)) & (rows >= self._num_given)
        terms = torch.where(counts, factors.log_prob(x), 0.0)
        return terms.sum(-1).reshape(batch)

    def _check(self, value: Tensor) -> None:
        if value.shape[-1] != 5 or not bool(self.support.check(value).all()):
            raise PplError(
                "expected drawings (..., T, 5) of rows (dx, dy, down, up, end) that are finite and "
                f"finish with (0, 0, 0, 0, 1); got {tuple(value.shape)} with others among them. "
                "inference.data.sketches.stroke5 makes them of offsets and pen lifts (N, 3)"
            )

    def _flat_context(self, batch: Sequence[int]) -> Tensor | None:
        if self.context is None:
            return None
        return self.context.expand(*batch, self.context.shape[-1]).flatten(0, -2)

    def _mixture(self, outputs: Tensor) -> StrokeMixture:
        single = outputs.dtype in (torch.bfloat16, torch.float16)
        return StrokeMixture.from_outputs(outputs.float() if single else outputs, self.temperature)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008  (torch's own)
        """Draws, (sample..., batch..., T, 5)."""
        wide = self.expand((*torch.Size(sample_shape), *self.batch_shape))
        with torch.no_grad():
            return wide._draw().reshape(*wide.batch_shape, *self.event_shape)

    def _draw(self) -> Tensor:
        """Rows (B, T, 5), one after the other."""
        size = self.batch_shape.numel()
        context = None if self.context is None else self._flat_context(self.batch_shape)
        pen = self.network.pen(size, context)
        drawn = _ends(size, self.num_rows, self.like)
        row = _start(size, self.like)
        ended = torch.zeros(size, dtype=torch.bool, device=row.device)
        if self.beginning is not None:
            given = self.beginning.to(self.like).expand(*self.batch_shape, -1, 5)
            drawn[:, : self._num_given] = given.reshape(size, -1, 5)
        for i in range(self.num_rows - 1):  # the last row is an end whatever comes
            outputs = pen.outputs(row)
            if i >= self._num_given:
                fresh = self._mixture(outputs).sample()
                drawn[:, i] = torch.where(ended.unsqueeze(-1), drawn[:, i], fresh)
                ended = ended | (drawn[:, i, END] > 0)
                if self.on_row is not None:
                    self.on_row()
                if bool(ended.all()):
                    break
            row = drawn[:, i]
        return drawn


def _check_beginning(beginning: Tensor, num_rows: int) -> None:
    length = beginning.shape[-2]
    if length >= num_rows:
        raise PplError(
            f"a beginning of {length} movements leaves nothing to draw: drawings have at most "
            f"{num_rows - 1}. Give a shorter one, or simplify it (--simplify)"
        )
    if beginning.shape[-1] != 5 or not bool(StrokeRows().check(beginning).all()):
        raise PplError(f"a beginning is rows (P, 5) of stroke-5, got {tuple(beginning.shape)}")
    if bool((beginning[..., END] > 0).any()):
        raise PplError("a beginning must not end: leave out the rows (0, 0, 0, 0, 1)")


def _start(size: int, like: Tensor) -> Tensor:
    """What stands before a drawing, (B, 5): the pen is down and has not moved."""
    return torch.tensor([0.0, 0, 1, 0, 0], dtype=like.dtype, device=like.device).repeat(size, 1)


def _ends(size: int, num_rows: int, like: Tensor) -> Tensor:
    """Nothing but ends, (B, T, 5)."""
    rows = torch.zeros(size, num_rows, 5, dtype=like.dtype, device=like.device)
    rows[..., END] = 1
    return rows


def _before(x: Tensor) -> Tensor:
    """The row before every row of drawings (B, T, 5)."""
    return torch.cat([_start(len(x), x).unsqueeze(1), x[:, :-1]], 1)
