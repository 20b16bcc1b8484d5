"""Divergences in closed form that torch and Pyro lack; importing this registers them."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, register_kl


@register_kl(MultivariateNormal, Independent)
def kl_full_to_diagonal(q: MultivariateNormal, p: Independent) -> Tensor:
    """KL(N(m, LLᵀ) ‖ N(μ, diag σ²)) = ½(Σ (LLᵀ)_ii/σ_i² + Σ (m_i − μ_i)²/σ_i² − D) + log Πσ/Π L_ii.

    Raises:
        NotImplementedError: p is no Normal over vectors.
    """
    base: Normal = p.base_dist
    if not isinstance(base, Normal) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError
    variances = q.scale_tril.square().sum(-1)  # the diagonal of LLᵀ
    quadratic = (variances + (q.loc - base.loc).square()) / base.scale.square() - 1
    log_ratio = base.scale.log() - q.scale_tril.diagonal(dim1=-2, dim2=-1).log()
    return (0.5 * quadratic + log_ratio).sum(-1)
