"""A distribution over grids of integers by the chain rule: position after position, raster order.

    p(x) = Π_i p(x_i | x_1, ..., x_{i−1}, context)

A causal network gives the logits of all positions at once, so a density takes one pass; a draw
takes one network output a position, for which the network keeps what it has computed.

With a temperature T and top_k = k every factor is sharpened: its logits are divided by T, and all
but the k largest are left out. The density is that of what is drawn.

Shapes: B batch, C h w grid (or h w), V values, n = C·h·w positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import torch
from pyro.distributions import TorchDistribution, is_validation_enabled
from torch import Tensor
from torch.distributions import constraints

from ppl_models.distributions.discretized_logistic import GreyLevels
from ppl_models.errors import PplError, whole_number

OPTIONS = ("grey", "temperature", "top_k", "cached", "on_position")
"""What an :class:`AutoregressiveGrid` keeps when it is expanded."""


class Sampler(Protocol):
    """The outputs of a causal network, one position after the other."""

    def logits(self) -> Tensor:
        """Of the next position, (B, V)."""

    def take(self, values: Tensor) -> None:
        """The integers (B,) at that position; then the next one is the following."""


class CausalNetwork(Protocol):
    """What gives the factors; a module."""

    num_values: int

    def __call__(self, codes: Tensor, context: Tensor | None = None, /) -> Tensor:
        """Logits (B, h, w, V) of all positions, each of the integers (B, h, w) before it."""

    def sampler(self, batch: int, grid: tuple[int, int], context: Tensor | None) -> Sampler:
        """The same, position by position."""


class AutoregressiveGrid(TorchDistribution):
    """Grids of V values: the integers 0, ..., V − 1, or grey levels k / (V − 1).

    Args:
        network: of the factors.
        event_shape: (h, w), or (C, h, w): then a pixel's channels follow one another, and the
            network sees a grid (h, w·C).
        context: what the network is conditioned on, (batch..., F, h or 1, w·C or 1), or None.
        batch_shape: where there is no context.
        grey: values are k / (V − 1) in floating point, not integers.
        temperature: T > 0 of every factor.
        top_k: values that are left of every factor, or None for all.
        cached: draw by the network's sampler; if not, by a whole pass a position.
        on_position: called after every position that is drawn, such as a progress bar's update.

    Raises:
        PplError: a temperature or a top_k that are none, or an event that is no grid.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        network: CausalNetwork,
        event_shape: Sequence[int],
        context: Tensor | None = None,
        *,
        batch_shape: Sequence[int] = (),
        grey: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        cached: bool = True,
        on_position: Callable[[], object] | None = None,
    ) -> None:
        if len(event_shape) not in (2, 3):
            raise PplError(f"a grid is (h, w) or (C, h, w), got {tuple(event_shape)}")
        check_sharpness(temperature, top_k)
        self.network = network
        self.context = context
        self.grey = grey
        self.temperature = temperature
        self.top_k = top_k
        self.cached = cached
        self.on_position = on_position
        batch = torch.Size(batch_shape) if context is None else context.shape[:-3]
        super().__init__(batch, torch.Size(event_shape), validate_args=False)

    @property
    def num_values(self) -> int:
        """V."""
        return self.network.num_values

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width as the network sees them."""
        *channels, height, width = self.event_shape
        return height, width * (channels[0] if channels else 1)

    @property
    def support(self) -> Any:
        """The integers, or the grey levels."""
        values: Any = GreyLevels(self.num_values)
        if not self.grey:
            values = constraints.integer_interval(0, self.num_values - 1)
        return constraints.independent(values, self.event_dim)

    def expand(self, batch_shape: Any, _instance: Any = None) -> AutoregressiveGrid:
        """The same, over a larger batch."""
        context = self.context
        if context is not None:
            context = context.expand(*batch_shape, *context.shape[-3:])
        return self._with(context, batch_shape)

    def sharpened(
        self,
        temperature: float = 1.0,
        top_k: int | None = None,
        on_position: Callable[[], object] | None = None,
    ) -> AutoregressiveGrid:
        """The same, with factors of this temperature, and of so many values."""
        changes = {"temperature": temperature, "top_k": top_k, "on_position": on_position}
        return self._with(self.context, self.batch_shape, **changes)

    def _with(self, context: Tensor | None, batch_shape: Any, **changes: Any) -> AutoregressiveGrid:
        options = {name: getattr(self, name) for name in OPTIONS} | changes
        return AutoregressiveGrid(
            self.network, self.event_shape, context, batch_shape=batch_shape, **options
        )

    def to_codes(self, value: Tensor) -> Tensor:
        """Values (..., event) as the integers (..., h, w) that the network takes.

        Raises:
            PplError: under Pyro's validation: values that are none of the V.
        """
        if is_validation_enabled():
            self._check(value)
        if self.grey:
            value = (value * (self.num_values - 1)).round()
        if len(self.event_shape) == 3:
            value = value.movedim(-3, -1).flatten(-2)
        return value.long()

    def _check(self, value: Tensor) -> None:
        if value.shape[-self.event_dim :] != self.event_shape:
            raise PplError(
                f"the grid has shape {tuple(self.event_shape)}, but got values of shape "
                f"{tuple(value.shape)}"
            )
        if not bool(self.support.check(value).all()):
            last = self.num_values - 1
            known = f"grey levels k / {last}" if self.grey else "integers"
            raise PplError(
                f"an AutoregressiveGrid of {self.num_values} values takes the {known}, k = 0 to "
                f"{last}; got values from {float(value.min()):g} to {float(value.max()):g}. "
                "Binarize images for two values (--binarize dynamic, static or threshold), or "
                "make it for as many values as the data have (num_values)"
            )

    def from_codes(self, codes: Tensor) -> Tensor:
        """The inverse of :meth:`to_codes`."""
        if len(self.event_shape) == 3:
            codes = codes.unflatten(-1, (self.event_shape[-1], -1)).movedim(-1, -3)
        return codes / (self.num_values - 1) if self.grey else codes

    def logits(self, value: Tensor) -> Tensor:
        """The factors' logits at the positions of (..., event), sharpened: (..., h, w, V)."""
        codes = self.to_codes(value)
        batch = torch.broadcast_shapes(codes.shape[:-2], self.batch_shape)
        codes, context = codes.expand(*batch, *self.grid), self.context
        if context is not None:
            context = context.expand(*batch, *context.shape[-3:]).reshape(-1, *context.shape[-3:])
        flat = self.network(codes.reshape(-1, *self.grid), context)
        return self._sharp(flat).reshape(*batch, *flat.shape[1:])

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of (..., event), in one pass."""
        codes = self.to_codes(value)
        factors = self.logits(value).log_softmax(-1)
        taken = factors.gather(-1, codes.expand(factors.shape[:-1]).unsqueeze(-1))
        return taken.squeeze(-1).sum((-2, -1))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008  (torch's own)
        """Draws, (sample..., batch..., event...)."""
        wide = self.expand((*torch.Size(sample_shape), *self.batch_shape))
        with torch.no_grad():
            return self.from_codes(wide._draw())

    def _draw(self) -> Tensor:
        """Integers (batch..., h, w), one position after the other."""
        rows, context = self.batch_shape.numel(), self.context
        if context is not None:
            context = context.reshape(rows, *context.shape[-3:])
        make = self.network.sampler if self.cached else self._uncached
        sampler = make(rows, self.grid, context)
        height, width = self.grid
        drawn = []
        for _ in range(height * width):
            factor = self._sharp(sampler.logits()).softmax(-1)
            values = torch.multinomial(factor, 1).squeeze(-1)
            sampler.take(values)
            drawn.append(values)
            if self.on_position is not None:
                self.on_position()
        return torch.stack(drawn, dim=-1).reshape(*self.batch_shape, height, width)

    def _uncached(self, rows: int, grid: tuple[int, int], context: Tensor | None) -> Sampler:
        return WholePasses(self.network, rows, grid, context)

    def _sharp(self, logits: Tensor) -> Tensor:
        """Logits (..., V) in full precision, with temperature and top_k."""
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        if self.top_k is not None and self.top_k < self.num_values:
            largest, places = logits.topk(self.top_k, dim=-1)
            logits = torch.full_like(logits, -torch.inf).scatter(-1, places, largest)
        if self.temperature == 1:
            return logits
        # The largest is 0 whatever the temperature: a very low one leaves it alone, and no inf.
        return (logits - logits.amax(-1, keepdim=True)) / self.temperature


class WholePasses:
    """A network's outputs one after the other, each by a pass over the whole grid.

    Args:
        network: of the factors.
        batch: B.
        grid: height and width.
        context: of the network.
    """

    def __init__(
        self,
        network: CausalNetwork,
        batch: int,
        grid: tuple[int, int],
        context: Tensor | None = None,
    ) -> None:
        self.network = network
        self.context = context
        device = next(iter(network.parameters())).device  # type: ignore[attr-defined]
        self.codes = torch.zeros(batch, *grid, dtype=torch.long, device=device)
        self.position = 0

    def logits(self) -> Tensor:
        """Of the next position, (B, V)."""
        return self.network(self.codes, self.context).flatten(1, 2)[:, self.position]

    def take(self, values: Tensor) -> None:
        """The integers (B,) at that position."""
        self.codes.flatten(1)[:, self.position] = values
        self.position += 1


def check_sharpness(temperature: float, top_k: int | None) -> None:
    """Refuse what is no temperature or no number of values.

    Raises:
        PplError: temperature ≤ 0 or not finite, or top_k no whole number from 1.
    """
    if not 0 < temperature < float("inf"):
        raise PplError(
            f"temperature must be positive and finite, got {temperature}; below 1 draws keep to "
            "what is likely, and top_k=1 takes the likeliest value alone"
        )
    if top_k is not None:
        whole_number("top_k", top_k)
