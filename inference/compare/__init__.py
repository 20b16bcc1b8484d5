"""Comparison of ELBO gradient estimators on any program."""

from inference.compare.compare import compare_estimators
from inference.compare.training import train_compare

__all__ = ["compare_estimators", "train_compare"]
