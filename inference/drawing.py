"""How latents and autoregressive sites are drawn: temperature, top_k, and a bar of what is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro.distributions import Normal
from pyro.poutine.messenger import Messenger
from torch.distributions import Independent
from tqdm.auto import tqdm

from inference.progress import watched
from ppl_models.errors import PplError
from ppl_models.program import Program


class Sharpened(Messenger):
    """Within, sites are drawn at a temperature.

    Of a Normal latent it is a factor of the scale; what is drawn further down has such draws for
    context. Sites whose distribution can be ``sharpened`` (autoregressive ones) say themselves
    what it does. Fields of the data with a Normal likelihood are drawn as they are.

    Args:
        temperature: T > 0; or one for each of the program's scales, the first drawn first, where
            the program has an attribute ``scales``, the names of its latent sites by scale; what
            is of no scale is then drawn as it is.
        top_k: values that a position of an autoregressive site is drawn from, or None for all.
        progress: show a bar of the positions; when left out, if somebody is looking.

    Raises:
        PplError: a temperature that is not positive and finite, or none.

    Example:
        >>> from inference.drawing import Sharpened
        >>> from inference.sampling import sample
        >>> from ppl_models.autoregressive import PixelCNN
        >>> drawn = sample(PixelCNN((1, 4, 4), 4, 2), 3, sharpened=Sharpened(0.9, progress=False))
        >>> drawn["x"].shape
        torch.Size([3, 1, 4, 4])
    """

    def __init__(
        self,
        temperature: float | Sequence[float] = 1.0,
        top_k: int | None = None,
        progress: bool | None = None,
    ) -> None:
        super().__init__()
        several = isinstance(temperature, Sequence)
        self.temperatures = [*temperature] if isinstance(temperature, Sequence) else [temperature]
        if not self.temperatures or not all(0 < t < float("inf") for t in self.temperatures):
            raise PplError(
                f"temperature must be positive and finite, got {temperature}; below 1 draws keep "
                "to what is likely, and 1 leaves the distribution as it is"
            )
        self.several = several
        self.top_k = top_k
        self.shown = watched() if progress is None else progress
        self.bars: list[Any] = []
        self.sites: list[str] = []
        """Those that were changed."""
        self._of_site: dict[str, float] = {}
        self._data: tuple[str, ...] = ()

    def of(self, program: Program) -> Sharpened:
        """Itself, for draws from this program.

        Raises:
            PplError: there are several temperatures, and the program has not as many scales.
        """
        self._data = program.fields
        if not self.several:
            return self
        scales = getattr(program.owner, "scales", None)
        if scales is None or len(scales) != len(self.temperatures):
            have = "no scales" if scales is None else f"{len(scales)} scales: {scales}"
            raise PplError(
                f"{len(self.temperatures)} temperatures were given, one for each scale of latents, "
                f"but {program.name} has {have}; give one number, or as many as there are scales"
            )
        self._of_site = {
            name: temperature
            for names, temperature in zip(scales, self.temperatures, strict=True)
            for name in names
        }
        return self

    def _pyro_sample(self, msg: Any) -> None:
        fn, name = msg["fn"], msg["name"]
        if msg["is_observed"]:
            return
        temperature = self._of_site.get(name, 1.0) if self.several else self.temperatures[0]
        if not hasattr(fn, "sharpened"):
            cooled = None if name in self._data else _cooled(fn, temperature)
            if cooled is not None:
                self.sites.append(name)
                msg["fn"] = cooled
            return
        self.sites.append(name)
        positions = getattr(fn, "num_positions", fn.event_shape.numel())
        bar = tqdm(total=positions, desc=name, unit=" positions", disable=not self.shown)
        self.bars.append(bar)
        msg["fn"] = fn.sharpened(temperature, self.top_k, bar.update)

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # first: a handler that is left by an error stays in no stack
        for bar in self.bars:
            bar.close()
        if exception[0] is not None:
            return
        if any(t != 1 for t in self.temperatures) and not self.sites:
            raise PplError(
                "a temperature is of Normal latents and of autoregressive sites, and this program "
                "draws none; leave it out"
            )
        if self.top_k is not None and not self.bars:
            raise PplError(
                "top_k is of autoregressive sites, and this program draws none; leave it out"
            )


def _cooled(fn: Any, temperature: float) -> Any | None:
    """A Normal distribution with a scale times the temperature; None of any other."""
    if isinstance(fn, Independent):
        base = _cooled(fn.base_dist, temperature)
        return None if base is None else base.to_event(fn.reinterpreted_batch_ndims)
    return Normal(fn.loc, fn.scale * temperature) if isinstance(fn, Normal) else None


class Calm(Messenger):
    """Within, sites that can be ``sharpened`` are drawn at this temperature.

    Args:
        temperature: T > 0 of every position.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and hasattr(msg["fn"], "sharpened"):
            msg["fn"] = msg["fn"].sharpened(self.temperature)
