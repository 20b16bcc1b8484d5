"""What the linter looks at: runs of guide and model, whole or as far as they came.

Shapes: B data.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

from inference.densities import data_plate
from inference.elbo.traces import Site, Traces, sample_sites
from inference.summed_out import enumerates
from inference.weights import batch_size
from ppl_models.errors import ProgramError, is_machinery
from ppl_models.program import Program


class Places(Messenger):
    """Remembers the line of the user's code that each sample statement stands in."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}

    def _pyro_sample(self, msg: Any) -> None:
        frame = sys._getframe(1)
        while frame is not None and _of_machinery(frame.f_code.co_filename):
            frame = frame.f_back  # type: ignore[assignment]
        if frame is not None:
            self.found.setdefault(
                msg["name"], f"{_short(frame.f_code.co_filename)}:{frame.f_lineno}"
            )


@cache
def _of_machinery(filename: str) -> bool:
    typed = filename.startswith("<ipython-input")  # at the prompt of IPython
    return not typed and (filename.startswith("<") or is_machinery(Path(filename)))


def _short(filename: str) -> str:
    """A path as a user would type it: from where they are, else whole; of a notebook the cell."""
    cell = _cell(filename)
    if cell is not None:
        return cell
    path = Path(filename).resolve()
    here = Path.cwd()
    return str(path.relative_to(here) if here in path.parents else path)


def _cell(filename: str) -> str | None:
    """``In[4]``, if the file is the temporary one of that cell of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    found = shell.compile.format_code_name(filename) if shell is not None else None
    return found[1] if found else None


@dataclass
class Run:
    """A run of model or guide, as far as it came."""

    trace: poutine.Trace
    places: dict[str, str]
    error: Exception | None = None

    @property
    def sites(self) -> dict[str, Site]:
        """Its sample sites, by name."""
        return dict(sample_sites(self.trace))


def _run(call: Callable[[], Any]) -> Run:
    """Run something, and keep what it sampled even if it fails."""
    tracer, places = poutine.trace(), Places()
    error = None
    try:
        with places, tracer:
            call()
    except Exception as raised:
        error = raised
    return Run(tracer.trace, places.found, error)


@dataclass
class Sighting:
    """A program on a batch: guide, model by itself, and model with the guide's draws."""

    program: Program
    """A copy, in evaluation mode."""
    copy: Callable[[], Program]
    """Makes another one, that has not run."""
    batch: dict[str, Tensor]
    options: dict[str, Any]
    estimator: ELBO | None = None
    """That it is to be trained by, if it is known."""
    guide: Run = field(init=False)
    prior: Run = field(init=False)
    """The model, which draws its latents itself."""
    joint: Run = field(init=False)
    """The model, with the guide's draws for its latents."""
    guide_again: Run = field(init=False)
    """The guide a second time."""

    def __post_init__(self) -> None:
        program, batch, options = self.program, self.batch, self.options
        with program.scope(), torch.enable_grad(), pyro.validation_enabled(False):
            self.guide = _run(lambda: program.run_guide(batch, **options))
            self.prior = _run(lambda: program.run_model(batch, **options))
            self.joint = _run(lambda: self._replayed(program.run_model))
            self.guide_again = _run(lambda: program.run_guide(batch, **options))

    def _replayed(self, model: Callable[..., Any]) -> Any:
        return poutine.replay(model, trace=self.guide.trace)(self.batch, **self.options)

    @cached_property
    def on_one_more(self) -> Sighting:
        """The same program on B + 1 data, the first of them twice."""
        more = {name: torch.cat([value, value[:1]]) for name, value in self.batch.items()}
        return Sighting(self.copy(), self.copy, more, {"num_data": self.rows + 1}, self.estimator)

    @property
    def rows(self) -> int:
        """B."""
        return batch_size(self.batch)

    @property
    def model(self) -> Run:
        """The model's run that tells most: with the guide's draws, where that works."""
        return self.joint if self.joint.error is None else self.prior

    @property
    def runs(self) -> bool:
        """Whether guide and model run, the one with the other's draws."""
        return self.guide.error is None and self.joint.error is None

    @property
    def traces(self) -> Traces:
        """Of model and guide."""
        return Traces(self.model.trace, self.guide.trace)

    @property
    def roles(self) -> dict[str, Run]:
        """The two runs by role."""
        return {"guide": self.guide, "model": self.model}

    def place(self, role: str, site: str | None) -> dict[str, Any]:
        """Role, site and line, as a finding takes them."""
        found = self.roles[role].places.get(site) if site is not None else None
        return {"role": role, "site": site, "place": found}

    @property
    def plate(self) -> tuple[str, int] | None:
        """Name and dimension of the data plate; None: it cannot be told."""
        try:
            return data_plate(self.model.trace, self.rows)
        except ProgramError:
            return None

    @property
    def latents(self) -> dict[str, Site]:
        """The model's sites that it does not observe."""
        return {n: s for n, s in self.model.sites.items() if not s["is_observed"]}

    @property
    def observed(self) -> dict[str, Site]:
        """The model's sites that it observes, without auxiliary losses."""
        return {
            n: s
            for n, s in self.model.sites.items()
            if s["is_observed"] and not s["infer"].get("is_auxiliary_loss")
        }

    @property
    def pairs(self) -> dict[str, tuple[Site, Site]]:
        """Latent sites of guide and model, by name."""
        guide = self.guide.sites
        return {n: (guide[n], s) for n, s in self.latents.items() if n in guide}

    @property
    def sums_out(self) -> bool:
        """Whether latents of the model are summed out."""
        return enumerates(self.traces)
