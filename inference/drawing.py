"""How autoregressive sites are drawn: temperature, top_k, and a bar of what is done."""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger
from tqdm.auto import tqdm

from inference.progress import watched
from ppl_models.errors import PplError


class Sharpened(Messenger):
    """Within, sites whose distribution can be ``sharpened`` are drawn so.

    Args:
        temperature: T > 0 of every position.
        top_k: values that a position is drawn from, or None for all.
        progress: show a bar of the positions; when left out, if somebody is looking.

    Example:
        >>> from inference.drawing import Sharpened
        >>> from inference.sampling import sample
        >>> from ppl_models.autoregressive import PixelCNN
        >>> drawn = sample(PixelCNN((1, 4, 4), 4, 2), 3, sharpened=Sharpened(0.9, progress=False))
        >>> drawn["x"].shape
        torch.Size([3, 1, 4, 4])
    """

    def __init__(
        self, temperature: float = 1.0, top_k: int | None = None, progress: bool | None = None
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.top_k = top_k
        self.shown = watched() if progress is None else progress
        self.bars: list[Any] = []
        self.sites: list[str] = []

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or not hasattr(fn, "sharpened"):
            return
        name = msg["name"]
        self.sites.append(name)
        positions = getattr(fn, "num_positions", fn.event_shape.numel())
        bar = tqdm(total=positions, desc=name, unit=" positions", disable=not self.shown)
        self.bars.append(bar)
        msg["fn"] = fn.sharpened(self.temperature, self.top_k, bar.update)

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # first: a handler that is left by an error stays in no stack
        for bar in self.bars:
            bar.close()
        asked = self.temperature != 1 or self.top_k is not None
        if asked and not self.sites and exception[0] is None:
            raise PplError(
                "temperature and top_k are of autoregressive sites, and this program draws none; "
                "leave them out"
            )


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
