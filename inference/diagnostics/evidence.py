"""How close the ELBO comes to the evidence: the bound of many draws, its error, what it rests on.

Shapes: S draws, N data.

References:
    Burda, Grosse, Salakhutdinov: Importance Weighted Autoencoders, 2016, arXiv:1509.00519.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from matplotlib.figure import Figure
from torch import Tensor

from inference.diagnostics.check import CannotTell, Check
from inference.diagnostics.importance import usable_rows
from inference.diagnostics.weighing import Weighed, weigh
from inference.plotting.posterior_checks import evidence_figure
from ppl_models.program import Batch

WIDE_GAP = 1.0
"""Nats per datum (of a global posterior: in all) by which an ELBO may fall short."""
LEAST_SHARE = 0.05
"""Of the draws that count."""


@dataclass(frozen=True)
class Evidence:
    """ELBO and IWAE bound; nats, (N,) one a datum, or (1,) of all data where latents are global."""

    elbo: Tensor
    iwae: Tensor
    """Log of the mean weight of the S draws: a lower bound of log p(x), tighter than the ELBO."""
    iwae_se: Tensor
    """Its Monte-Carlo standard error (delta method)."""
    ess: Tensor
    """Effective sample size over S, in (0, 1]."""
    joint: bool
    num_samples: int
    num_data: int
    too_noisy: str = ""
    """Why the draws that count do not tell of the guide of the global latents; empty if they do."""

    @property
    def gap(self) -> Tensor:
        """IWAE bound − ELBO: what KL(q ‖ posterior) is at least."""
        return self.iwae - self.elbo

    def checks(self) -> list[Check]:
        """``evidence_gap`` and ``ess``."""
        return [self._of_gap(), self._of_ess()]

    def figures(self) -> dict[str, Figure]:
        """Gap and ESS of every datum with a finite gap; none of a joint one."""
        finite = self.gap.isfinite()
        if self.joint or not bool(finite.any()):
            return {}
        return {"evidence": evidence_figure(self.gap[finite].numpy(), self.ess[finite].numpy())}

    def _of_gap(self) -> Check:
        per = "over all data" if self.joint else "per datum"
        count = len(self.elbo)
        elbo, iwae, gap = (float(v.mean()) for v in (self.elbo, self.iwae, self.gap))
        error = float(self.iwae_se.square().sum().sqrt()) / count
        numbers = {
            "elbo": elbo,
            "iwae": iwae,
            "iwae_se": error,
            "num_samples": self.num_samples,
            "num_data": self.num_data,
        }
        text = (
            f"ELBO {elbo:.2f}, bound of {self.num_samples} draws {iwae:.2f} ± {error:.2g} nats "
            f"{per}: the ELBO falls short of log p(x) by at least {max(gap, 0.0):.2g}. "
        )
        if math.isinf(gap):
            text += (
                "The model finds some draws of the guide impossible: its support is wider than the "
                "posterior's."
            )
            return Check("evidence_gap", "bad", text, gap, WIDE_GAP, numbers)
        if gap <= WIDE_GAP:
            return Check("evidence_gap", "ok", text + "That is little.", gap, WIDE_GAP, numbers)
        text += "Compare models by the bound, not by the ELBO; a richer guide would close the gap."
        return Check("evidence_gap", "warning", text, gap, WIDE_GAP, numbers)

    def _of_ess(self) -> Check:
        share = float(self.ess.median())
        draws = share * self.num_samples
        numbers = {"smallest": float(self.ess.min()), "draws": draws}
        of = "" if self.joint else " (median over data)"
        text = f"{draws:.3g} of {self.num_samples} draws count{of}. "
        if share >= LEAST_SHARE:
            return Check(
                "ess", "ok", text + "The bound rests on many draws.", share, LEAST_SHARE, numbers
            )
        if self.too_noisy:
            text = self.too_noisy + text
            return Check("ess", "cannot tell", text, share, LEAST_SHARE, numbers)
        text += "The bound rests on a few lucky draws, so log p(x) may be well above it."
        verdict = "bad" if draws < 10 else "warning"
        return Check("ess", verdict, text, share, LEAST_SHARE, numbers)


def evidence(
    program: object,
    batch: Batch,
    *,
    num_samples: int = 1000,
    num_data: int | None = None,
    weighed: Weighed | None = None,
    seed: int = 0,
) -> Evidence:
    """ELBO, IWAE bound with its standard error, their gap, and the effective sample size.

    Args:
        program: any object with ``model`` and ``guide``.
        batch: fields (N, ...); all that the guide was fitted to, where latents are global.
        num_samples: S.
        num_data: size of the data set that a global posterior is about.
        weighed: weights that are there already.
        seed: of the draws.

    Raises:
        CannotTell: as :func:`~inference.diagnostics.weighing.weigh`; weights that are not finite.
        PplError: the program has no latents.
    """
    if weighed is None:
        weighed = weigh(program, batch, num_samples, num_data=num_data, seed=seed)
    joint, log_w = weighed.joint is not None, weighed.rows
    broken = int((~usable_rows(log_w.numpy())).sum())
    if broken:
        whose = "the joint weights" if joint else f"those of {broken} of {len(log_w)} data"
        raise CannotTell(
            f"the importance weights are not finite ({whose}): a density is NaN or infinite, or "
            "the model finds every draw of the guide impossible; compare their supports"
        )
    num = weighed.num_samples
    iwae = log_w.logsumexp(1) - math.log(num)
    ess = (2 * log_w.logsumexp(1) - (2 * log_w).logsumexp(1)).exp().clamp(1, num)
    return Evidence(
        elbo=(log_w if weighed.single is None else weighed.single.unsqueeze(0)).mean(1),
        iwae=iwae,
        iwae_se=((num / ess - 1) / (num - 1)).clamp_min(0).sqrt(),
        ess=ess / num,
        joint=joint,
        num_samples=num,
        num_data=weighed.num_data,
        too_noisy=weighed.too_noisy(),
    )
