"""The numbers of every epoch, on held-out data: ELBO, rate, distortion, unscaled."""

from __future__ import annotations

import torch
from pyro.infer import ELBO

from inference.compiled_weights import CompiledDensities
from inference.data.dataset import Split
from inference.devices import isolated_rng
from inference.evaluation import evaluate_by
from inference.weights import evaluation_mode
from ppl_models.program import Program

BATCH = 1024


class Validator:
    """Evaluates a program on a split, with the same draws every time.

    Args:
        split: held-out data, on the device.
        estimator: of the training; its loss stands in where no number is a datum's own.
        shared: whether that is so: a latent that is summed out is shared by data.
        num_particles: importance samples per datum.
        num_data: size of the training set.
        compiled: run the program by a compiled graph.
    """

    def __init__(
        self,
        split: Split,
        estimator: ELBO | None,
        shared: bool,
        num_particles: int,
        num_data: int,
        compiled: bool = False,
    ) -> None:
        self.split = split
        self.estimator = estimator
        self.shared = shared
        self.num_particles = num_particles
        self.num_data = num_data
        self.take = CompiledDensities(0 if compiled else None, least=BATCH)

    def __call__(self, program: Program) -> dict[str, float]:
        """Validation numbers under the names of ``metrics.csv``; nats per datum.

        Of two or more latent sites, each has its rate; of codes, perplexity and dead ones.
        """
        if self.shared:
            return {"valid_elbo": self._elbo_by_estimator(program)}
        batches = self.split.batches(BATCH)
        result = evaluate_by(self.take, program, batches, self.num_particles, self.num_data)
        numbers = {
            "valid_elbo": result.elbo,
            "valid_rate": result.rate,
            "valid_distortion": result.distortion,
        }
        if len(result.kl) > 1:
            numbers |= {f"valid_rate_{site}": rate for site, rate in result.kl.items()}
        numbers |= {f"valid_{name}": value for name, value in result.auxiliary.items()}
        for site, perplexity in result.perplexity.items():
            numbers[f"valid_perplexity_{site}"] = perplexity
            numbers[f"valid_dead_{site}"] = result.dead_codes[site]
        return numbers

    def _elbo_by_estimator(self, program: Program) -> float:
        assert self.estimator is not None
        total = 0.0
        options = {"num_data": None}
        with evaluation_mode(program), isolated_rng(0), torch.no_grad(), program.scope():
            for batch in self.split.batches(BATCH):
                total += self.estimator.loss(program.run_model, program.run_guide, batch, **options)
        return -float(total) / len(self.split)
