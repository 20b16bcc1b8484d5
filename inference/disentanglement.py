"""Does each latent component stand for one factor of the data? MIG, DCI and SAP.

All three look at codes and known factors alone, so they serve any program; a factor may have any
finite set of values. MIG and DCI take values as names, SAP uses the order of those that have one.

Shapes: N data, D components of the code, M factors.

References:
    MIG: Chen, Li, Grosse, Duvenaud: Isolating Sources of Disentanglement in VAEs, 2018,
    arXiv:1802.04942.
    DCI: Eastwood, Williams: A Framework for the Quantitative Evaluation of Disentangled
    Representations, ICLR 2018.
    SAP: Kumar, Sattigeri, Balakrishnan: Variational Inference of Disentangled Latent Concepts
    from Unlabeled Observations, 2018, arXiv:1711.00848.
    Their common form: Locatello et al.: Challenging Common Assumptions in the Unsupervised
    Learning of Disentangled Representations, 2019, arXiv:1811.12359, appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inference.data.dataset import Split
from inference.evaluation import as_batches
from inference.latents.codes import encode_all
from ppl_models.errors import PplError, UnknownNameError
from ppl_models.program import Batch

Array = NDArray[np.floating]
BINS = 20
"""Bins of equal width that a component of a code is sorted into for MIG."""
TREES = 20
"""Trees of a forest that predicts a factor for DCI."""


class DCI(NamedTuple):
    """Disentanglement, completeness, informativeness."""

    disentanglement: float
    """1 if every component tells of one factor."""
    completeness: float
    """1 if every factor is told by one component."""
    informativeness: float
    """Share of held-out data whose factor is told right, mean over factors."""
    importance: Array
    """Share of component i in telling factor j, (D, M); columns sum to 1."""


@dataclass
class Disentanglement:
    """Scores of a code, each 1 for one component a factor."""

    mig: float
    """Mutual information gap."""
    mig_by_factor: dict[str, float]
    disentanglement: float
    completeness: float
    informativeness: float
    sap: float
    """Separated attribute predictability."""
    information: Array
    """I(z_i; v_j) / H(v_j), (D, M)."""
    importance: Array
    """Of DCI, (D, M)."""
    factors: tuple[str, ...]
    num_data: int

    def to_dict(self) -> dict[str, Any]:
        """The scores under their names, ready for JSON; without the tables."""
        names = ("mig", "disentanglement", "completeness", "informativeness", "sap")
        scores = {name: getattr(self, name) for name in names}
        return scores | {"mig_by_factor": self.mig_by_factor, "num_data": self.num_data}


def disentanglement(
    program: object,
    batches: Iterable[Batch] | Batch | Split,
    *,
    factors: Sequence[str] = (),
    categorical: Sequence[str] = (),
    field: str = "factors",
    site: str | None = None,
    num: int | None = None,
    bins: int = BINS,
    seed: int = 0,
) -> Disentanglement:
    """Score the codes of a program against the factors of its data.

    MIG looks at one draw of q(z | x) a datum, as it is defined: a component that has collapsed to
    its prior tells nothing, however well its tiny mean could be read. DCI and SAP look at means.

    Args:
        program: any object with ``model`` and ``guide``.
        batches: a split, batches, or one batch with a field of factors (B, M).
        factors: their names; numbered when left out.
        categorical: those of them whose values have no order.
        field: the field of factors.
        site: the latent; the one with the most components when left out.
        num: the first so many data; all when left out. MIG and SAP are biased on few.
        bins: of a component, for MIG.
        seed: of DCI's forests and of the halves that predictors learn from and are tested on.

    Raises:
        PplError: the data have no such field, or a factor never changes.
    """
    batches = list(as_batches(batches))
    codes, fields = encode_all(program, batches, site=site, num=num)
    drawn, _ = encode_all(program, batches, site=site, num=num, draw="sample")
    if field not in fields:
        raise PplError(
            f"the data have no field {field!r} (they have: {', '.join(fields) or 'x alone'}). "
            "Disentanglement needs known factors, such as those of load_data('shapes')"
        )
    z = codes.flatten(1).double().numpy()
    v = fields[field].double().numpy()
    names = tuple(factors) or tuple(str(j) for j in range(v.shape[1]))
    unknown = [name for name in categorical if name not in names]
    if unknown or len(names) != v.shape[1]:
        raise UnknownNameError("factor", (unknown or [f"{len(names)} names"])[0], names)
    information = normalized_information(drawn.flatten(1).double().numpy(), v, bins)
    gaps = _gaps(information)
    scores = dci(z, v, seed=seed)
    return Disentanglement(
        mig=float(gaps.mean()),
        mig_by_factor=dict(zip(names, gaps.tolist(), strict=True)),
        disentanglement=scores.disentanglement,
        completeness=scores.completeness,
        informativeness=scores.informativeness,
        sap=sap(z, v, categorical=[names.index(name) for name in categorical], seed=seed),
        information=information,
        importance=scores.importance,
        factors=names,
        num_data=len(z),
    )


def normalized_information(codes: Array, factors: Array, bins: int = BINS) -> Array:
    """Mutual information of every component with every factor, over the factor's entropy.

    Args:
        codes: (N, D); a component is sorted into bins of equal width over its range.
        factors: (N, M), of finitely many values.
        bins: number of bins.

    Returns:
        (D, M), in [0, 1].

    Raises:
        PplError: not one code a datum, or a factor that never changes.
    """
    from sklearn.metrics import mutual_info_score

    _check(codes, factors)
    sorted_codes = [_binned(column, bins) for column in codes.T]
    columns = [np.unique(column, return_inverse=True)[1] for column in factors.T]
    entropies = [mutual_info_score(column, column) for column in columns]
    return np.array(
        [
            [mutual_info_score(z, v) / h for v, h in zip(columns, entropies, strict=True)]
            for z in sorted_codes
        ]
    )


def _binned(values: Array, bins: int) -> NDArray[np.intp]:
    edges = np.histogram_bin_edges(values, bins)
    return np.digitize(values, edges[1:-1])


def mig(codes: Array, factors: Array, bins: int = BINS) -> float:
    """Mutual information gap: how much more the best component tells of a factor than the next.

    The mean over factors of (I(z_a; v) − I(z_b; v)) / H(v), a and b the two components that tell
    most of v. It is 1 if each factor has a component of its own that tells it wholly, and 0 if
    every factor is told as well by two.

    Args:
        codes: (N, D): draws of q(z | x), or means.
        factors: (N, M), of finitely many values.
        bins: of equal width, into which components are sorted. Binned
            information serves any encoder; it is too high by about bins × values / 2N nats.

    Raises:
        PplError: not one code a datum, or a factor that never changes.
    """
    return float(_gaps(normalized_information(codes, factors, bins)).mean())


def _gaps(scores: Array) -> Array:
    """The highest score of every column less the second, (M,); a lone component has no second."""
    ordered = np.sort(np.vstack([np.zeros_like(scores[:1]), scores]), axis=0)
    return ordered[-1] - ordered[-2]


def dci(codes: Array, factors: Array, *, seed: int = 0) -> DCI:
    """Disentanglement, completeness and informativeness, by random forests.

    A forest learns each factor from the codes of half the data; how much its splits on a
    component lessen impurity is the component's importance for the factor.

    Args:
        codes: (N, D).
        factors: (N, M), of finitely many values.
        seed: of forests and halves.

    Raises:
        PplError: not one code a datum, or a factor that never changes.
    """
    from sklearn.ensemble import RandomForestClassifier

    _check(codes, factors)
    learned, tested = _halves(len(codes), seed)
    importance, right = [], []
    for column in factors.T:
        values = np.unique(column, return_inverse=True)[1]
        forest = RandomForestClassifier(TREES, max_features=None, random_state=seed)
        forest.fit(codes[learned], values[learned])
        importance.append(forest.feature_importances_)
        right.append(forest.score(codes[tested], values[tested]))
    table = np.stack(importance, axis=1)
    return DCI(*dci_scores(table), float(np.mean(right)), table)


def dci_scores(importance: Array) -> tuple[float, float]:
    """Disentanglement and completeness of a table of importances.

    Args:
        importance: of component i for factor j, (D, M), not negative.

    Returns:
        1 less the entropy of a row (in units of log M), weighted by the row's sum; 1 less the
        entropy of a column (in units of log D), weighted likewise.
    """
    return _concentration(importance), _concentration(importance.T)


def _concentration(table: Array) -> float:
    """Mean over rows of 1 − entropy / log(length), weighted by the rows' sums."""
    sums = table.sum(1)
    if table.shape[1] == 1 or sums.sum() == 0:
        return 1.0
    share = table / np.maximum(sums, 1e-300)[:, None]
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    entropy = -(share * logs).sum(1) / math.log(table.shape[1])
    return float(np.average(1 - entropy, weights=sums))


def sap(codes: Array, factors: Array, *, categorical: Sequence[int] = (), seed: int = 0) -> float:
    """Separated attribute predictability: the gap between the two components that predict best.

    The score of a component for a factor with an order is R² of the line through both (its
    squared correlation); for a categorical one it is the balanced accuracy, on the half of the
    data that it has not learned from, of thresholds on the component, as many as tell its values
    apart.

    Args:
        codes: (N, D).
        factors: (N, M).
        categorical: columns whose values have no order.
        seed: of the halves.

    Raises:
        PplError: not one code a datum, or a factor that never changes.
    """
    _check(codes, factors)
    halves = _halves(len(codes), seed)
    columns = [
        _threshold_scores(codes, column, *halves)
        if j in categorical
        else _squared_correlations(codes, column)
        for j, column in enumerate(factors.T)
    ]
    return float(_gaps(np.stack(columns, axis=1)).mean())


def _squared_correlations(codes: Array, factor: Array) -> Array:
    """R² of each component with a factor, (D,); 0 for one that never changes."""
    z, v = codes - codes.mean(0), factor - factor.mean()
    power = (z**2).sum(0) * (v**2).sum()
    return np.divide((z.T @ v) ** 2, power, out=np.zeros(z.shape[1]), where=power > 0)


def _threshold_scores(
    codes: Array, factor: Array, learned: NDArray[np.intp], tested: NDArray[np.intp]
) -> Array:
    """Balanced accuracy of thresholds on each component, (D,)."""
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.tree import DecisionTreeClassifier

    found, values = np.unique(factor, return_inverse=True)
    scores = []
    for column in codes.T[:, :, None]:
        tree = DecisionTreeClassifier(
            max_leaf_nodes=len(found), class_weight="balanced", random_state=0
        )
        tree.fit(column[learned], values[learned])
        scores.append(balanced_accuracy_score(values[tested], tree.predict(column[tested])))
    return np.array(scores)


def _halves(size: int, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    order = np.random.default_rng(seed).permutation(size)
    return order[: size // 2], order[size // 2 :]


def _check(codes: Array, factors: Array) -> None:
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors) or len(codes) < 4:
        raise PplError(
            f"expected codes (N, D) and factors (N, M) of at least 4 data, got {codes.shape} and "
            f"{factors.shape}"
        )
    still = [j for j, column in enumerate(factors.T) if (column == column[0]).all()]
    if still:
        raise PplError(
            f"factor {still[0]} has one value in all {len(factors)} data, so nothing can tell it; "
            "leave it out"
        )
