"""Draws of the exact posterior of a program's latents by NUTS, its parameters fixed.

Shapes: S draws, B data, D dimensions of a site.

References:
    Hoffman, Gelman: The No-U-Turn Sampler, JMLR 15, 2014, arXiv:1111.4246.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import init_to_sample, init_to_value
from pyro.poutine.messenger import Messenger
from torch import Tensor

from inference.diagnostics.check import CannotTell
from inference.diagnostics.potential import TracedNUTS
from inference.elbo.base import plate_depth
from inference.elbo.states import EnumerateLatents
from inference.elbo.traces import Traces, sample_sites
from inference.sites import is_discrete
from ppl_models.errors import PplError
from ppl_models.program import Batch, Program


class Unscaled(Messenger):
    """Within, no ``poutine.scale`` and no subsampling weighs a site, and auxiliary losses are not
    seen: what is left is the model itself.
    """

    def _pyro_sample(self, msg: Any) -> None:
        msg["scale"] = 1.0
        if (msg["infer"] or {}).get("is_auxiliary_loss"):
            msg["stop"] = True


@dataclass
class Chains:
    """Draws by site, (chains, S, ...)."""

    samples: dict[str, Tensor]
    divergences: int


def run_chains(
    program: Program,
    batch: Batch,
    runs: Sequence[Traces],
    num_samples: int,
    warmup: int,
    starts: str = "prior",
    compile: bool = True,
) -> Chains:
    """Run NUTS on the model, one chain after the other.

    Args:
        program: in its scope, its parameters fixed.
        batch: fields (B, ...).
        runs: of guide and model on it, one a chain.
        num_samples: S, of each.
        warmup: steps before.
        starts: where chains after the first begin: ``prior``, or ``guide``; the first begins at
            the guide's draw.
        compile: trace the potential of each chain, where that changes nothing.

    Raises:
        CannotTell: NUTS cannot run the model.
    """
    # Continuous sites that cannot be reparameterized (LKJ) have no states; NUTS moves them too.
    real = {n for n, site in sample_sites(runs[0].model) if not is_discrete(site["fn"])}
    model = EnumerateLatents(given=real)(Unscaled()(program.run_model))
    found: list[Mapping[str, Tensor]] = []
    divergences = 0
    for chain, traces in enumerate(runs):
        begin = init_to_sample
        if chain == 0 or starts == "guide":
            begin = init_to_value(values=_latents(traces), fallback=init_to_sample)
        sampler = TracedNUTS if compile else NUTS
        kernel = sampler(model, max_plate_nesting=plate_depth(traces), init_strategy=begin)
        mcmc = MCMC(kernel, num_samples, warmup_steps=warmup, disable_progbar=True)
        try:
            mcmc.run(batch)
        except PplError:
            raise
        except (NotImplementedError, RuntimeError, ValueError) as error:
            raise CannotTell(f"NUTS cannot run this model: {error}") from error
        found.append(mcmc.get_samples())
        divergences += sum(map(len, mcmc.diagnostics()["divergences"].values()))
    samples = {name: torch.stack([chain[name] for chain in found]).detach() for name in found[0]}
    return Chains(samples, divergences)


def _latents(traces: Traces) -> dict[str, Tensor]:
    """What the guide drew."""
    return {
        name: site["value"].detach()
        for name, site in sample_sites(traces.model)
        if not site["is_observed"]
    }
