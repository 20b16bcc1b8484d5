"""Inference for any Pyro program: training, evaluation, checkpoints, pictures."""

from inference.compare import compare_estimators, train_compare
from inference.data import DataSet, from_tensors, load_data
from inference.denoise import denoise
from inference.diagnostics.diagnose import diagnose
from inference.diagnostics.to_arviz import to_arviz
from inference.elbo import ESTIMATORS, estimators, score_function
from inference.em import EMResult, fit_em
from inference.evaluation import Evaluation, evaluate
from inference.linter import lint
from inference.map_estimate import MapResult, map_estimate
from inference.mixtures import FittedMixture, fit_mixture
from inference.splitting import anneal, split_half_quadratic
from inference.svi import FitResult, fit
from inference.weights import log_weights

__all__ = [
    "ESTIMATORS",
    "DataSet",
    "EMResult",
    "Evaluation",
    "FitResult",
    "FittedMixture",
    "MapResult",
    "anneal",
    "compare_estimators",
    "denoise",
    "diagnose",
    "estimators",
    "evaluate",
    "fit",
    "fit_em",
    "fit_mixture",
    "from_tensors",
    "lint",
    "load_data",
    "log_weights",
    "map_estimate",
    "score_function",
    "split_half_quadratic",
    "to_arviz",
    "train_compare",
]
