"""What an iteration of EM costs: full covariances, against scikit-learn in the same precision.

100,000 data of 64 dimensions from a mixture of 50 Gaussians, fitted by as many: E-step over all
data, M-step, and the parameters set for the next iteration. Both start every iteration from the
same parameters. scikit-learn's iteration is its ``_e_step`` and ``_m_step``, the body of the loop
in its ``fit``. The arms take turns in one run; the ratios are medians over rounds of the ratio
within a round. The log-likelihood of 10,000 of the data after three iterations from the same start
is compared as well.

    python benchmarks/gmm.py [--data 100000] [--components 50] [--rounds 7] [--threads 2]
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from harness import interleave, medians, parser, ratios, save
from sklearn.mixture import GaussianMixture as Peer
from torch import Tensor

from inference.em import Rows, fit_em
from inference.em.e_step import choose_step, one_pass
from inference.em.maximize import maximize
from inference.em.program import floor_of, read
from ppl_models.gmm import GaussianMixture, Moments

DIM = 64
FLOOR = 1e-6


def draw(size: int, components: int) -> tuple[Tensor, Moments]:
    """Data (N, D) from a random mixture, and where the fits start: near it."""
    factors = 0.1 * torch.randn(components, DIM, DIM).double()
    covariances = factors @ factors.mT + 0.05 * torch.eye(DIM).double()
    weights = torch.rand(components).double() + 0.5
    weights = weights / weights.sum()
    truth = GaussianMixture((DIM,), components).double()
    truth.set_moments(weights, torch.randn(components, DIM).double(), covariances)
    start = truth.moments()
    away = start.locs + 0.3 * torch.randn_like(start.locs)
    wide = start.covariances + 0.2 * torch.eye(DIM)
    return truth.sample(size), Moments(start.weights, away, wide)


def ours(x: Tensor, start: Moments) -> Callable[[], None]:
    """One iteration from the start."""
    program = GaussianMixture((DIM,), len(start.weights), min_scale=FLOOR**0.5).to(x.dtype)
    rows = Rows(x, DIM, x.device)

    def iteration() -> None:
        program.set_moments(*start)
        mixture = read(program)
        found = maximize(one_pass(mixture, rows.batches(), x.dtype), mixture, floor_of(program))
        program.set_moments(found.weights, found.locs, found.covariances)

    return iteration


def peer(x: Tensor, start: Moments, iterations: int = 1) -> Peer:
    """scikit-learn's estimator, fitted from the start."""
    kind = {torch.float32: np.float32, torch.float64: np.float64}[x.dtype]
    weights, locs, covariances = (m.numpy().astype(kind) for m in start)
    precisions = np.linalg.inv(covariances.astype(np.float64)).astype(kind)
    estimator = Peer(
        len(weights),
        tol=0.0,
        max_iter=iterations,
        reg_covar=FLOOR,
        weights_init=weights,
        means_init=locs,
        precisions_init=precisions,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        return estimator.fit(x.numpy())


def theirs(x: Tensor, start: Moments) -> Callable[[], None]:
    """One iteration from the parameters that one from the start gave."""
    estimator, data = peer(x[:10_000], start), x.numpy()
    begin = [estimator.weights_, estimator.means_, estimator.precisions_cholesky_]
    assert estimator.precisions_cholesky_.dtype == data.dtype

    def iteration() -> None:
        estimator.weights_, estimator.means_, estimator.precisions_cholesky_ = begin
        _, log_resp = estimator._e_step(data)
        estimator._m_step(data, log_resp)

    return iteration


def agreement(x: Tensor, start: Moments, iterations: int = 3) -> float:
    """Log-likelihood per datum after some iterations from the same start: ours − theirs."""
    program = GaussianMixture((DIM,), len(start.weights), min_scale=FLOOR**0.5).to(x.dtype)
    program.set_moments(*start)
    found = fit_em(
        program, x, max_iterations=iterations, tolerance=0.0, start="current", device="cpu"
    )
    return found.log_likelihood - float(peer(x, start, iterations).score(x.numpy()))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data", type=int, default=100_000)
    options.add_argument("--components", type=int, default=50)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--threads", type=int, default=2)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    double, start = draw(args.data, args.components)
    results = {}
    for name, x in (("float64", double), ("float32", double.float())):
        arms = {"ours": ours(x, start), "scikit-learn": theirs(x, start)}
        seconds = interleave(arms, args.rounds, 1)
        program = GaussianMixture((DIM,), args.components).to(x.dtype)
        program.set_moments(*start)
        results[name] = {
            "seconds": {n: round(v, 3) for n, v in medians(seconds).items()},
            "times_as_fast": round(ratios(seconds, "ours")["scikit-learn"], 2),
            "per_round": [round(b / a, 2) for a, b in zip(*seconds.values(), strict=True)],
            "e_step": type(choose_step(read(program), x.dtype)).__name__,
            "log_likelihood_minus_theirs": agreement(x[:10_000], start),
        }
        print(name, results[name], flush=True)
    save("gmm-cpu", vars(args) | {"dim": DIM}, results)


if __name__ == "__main__":
    main()
