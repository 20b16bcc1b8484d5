"""Stochastic variational inference: :func:`fit` trains any Pyro program on any data."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro.infer import ELBO

from inference.data.dataset import DataSet, as_dataset
from inference.data_start import start_from_data
from inference.densities import has_global_latents
from inference.devices import dtype_of, isolated_rng, make_fabric
from inference.elbo import make_estimator
from inference.elbo.base import Estimator, set_plate_nesting
from inference.elbo.checks import require_enumeration
from inference.elbo.traces import Traces
from inference.em.start import start_untouched
from inference.handlers import FreeBits, Handler, KLAnnealing
from inference.loop import LAST, TrainingLoop
from inference.priming import (
    check_data,
    check_fields_named,
    check_plate_size,
    prime,
)
from inference.progress import Progress
from inference.settings import OptimizerFactory, ScheduleFactory, Settings
from inference.signals import StopRequest, stop_on_signals
from inference.summed_out import enumerates, shared_sums
from inference.validation import Validator
from inference.vectorize import choose_vectorization
from inference.weights import batch_size as batch_size_of
from ppl_models.errors import PplError
from ppl_models.program import Batch, Program, as_program

if TYPE_CHECKING:
    from lightning_fabric.loggers import Logger


@dataclass(repr=False)
class FitResult:
    """A trained program and how it came about."""

    program: Program
    """With the parameters of its best epoch (or the last, as asked); or averages of them."""
    data: DataSet
    """What it was trained on, on the device it was trained on."""
    history: list[dict[str, Any]]
    """One row an epoch, as in ``metrics.csv``; nats per datum."""
    best_epoch: int
    stopped_early: bool
    run_dir: Path | None

    def __repr__(self) -> str:
        return (
            f"FitResult({self.program.name}, {len(self.history)} epochs, best {self.best_epoch} "
            f"with validation ELBO {self.elbo:.2f})"
        )

    @property
    def elbo(self) -> float:
        """Validation ELBO of the best epoch."""
        return float(self.history[self.best_epoch - 1]["valid_elbo"])


def fit(
    program: Any,
    data: Any,
    *,
    estimator: str | ELBO = "auto",
    num_particles: int = 1,
    optimizer: str | OptimizerFactory = "Adam",
    learning_rate: float = 1e-3,
    lr_schedule: str | ScheduleFactory = "constant",
    epochs: int = 20,
    batch_size: int = 100,
    kl_warmup: float = 0.0,
    kl_balance: bool = False,
    kl_decay: float = 0.0,
    free_bits: float = 0.0,
    handlers: Sequence[Handler] = (),
    clip_grad_norm: float | None = None,
    max_skipped: int = 0,
    average_decay: float = 0.0,
    patience: int | None = None,
    valid_particles: int | None = None,
    keep: str = "best",
    checkpoint_every: float = 60.0,
    seed: int = 0,
    device: str = "auto",
    precision: str = "32",
    compile: bool | str = "auto",
    run_dir: str | Path | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    loggers: Sequence[Logger] = (),
    progress: bool | None = None,
) -> FitResult:
    """Train a Pyro program by stochastic variational inference.

    The program is trained in place, every parameter of it: those of ``nn.Module``s,
    ``pyro.param``s, and autoguides'. Pyro's global parameter store and the global random state are
    left as they were.

    Args:
        program: any object with ``model`` and ``guide``; see ``docs/adding_a_model.md``.
        data: a data set of :func:`inference.load_data`, or tensors (N, ...): one array, or a
            dict of fields, split 80/10/10 at random.
        estimator: a name of :func:`inference.estimators` or any ``pyro.infer.ELBO`` object;
            ``auto`` is ``enumerate`` where the model's latents are summed out, else
            ``analytic_kl``.
        num_particles: draws per datum and step, for an estimator given by name; taken in one
            pass where the program gives the same densities in an outermost plate.
        optimizer: a name of ``torch.optim``, or a function from parameters to an optimizer.
        learning_rate: for an optimizer given by name.
        lr_schedule: ``constant``, ``cosine`` or ``linear`` (both decay to 0), or a function from
            the optimizer to a torch schedule; stepped after every update.
        epochs: passes over the training data.
        batch_size: data per step.
        kl_warmup: epochs over which the weight of the KL term rises from 0 to 1. It weighs
            training alone; the reported ELBO is never scaled.
        kl_balance: in the warm-up, weigh the rates of two or more latent sites against each
            other, so that none is given up: :class:`inference.kl_balance.KLBalance`.
        kl_decay: factor by which what the KL weight lacks of one, 0.99 at first, falls at every
            step, such as Sketch-RNN's 0.99995; 0: the weight is one.
        free_bits: nats per datum of each latent site's rate that cost nothing in training.
        handlers: schedules and objectives of the rate, of :mod:`inference.handlers`, such as
            ``[Capacity(25, num_steps=10_000)]``; numbers that they change count steps from 0.
        clip_grad_norm: largest norm of the gradient of the loss per datum.
        max_skipped: updates of the run that are left out where loss or gradient is not finite;
            each is counted in the metrics, and one more than that is an error.
        average_decay: of a running average of the parameters, such as 0.999, which is what is
            validated, kept and given back; 0: no average.
        patience: stop after this many epochs without a better validation ELBO.
        valid_particles: draws in validation; when left out, one a datum for local latents, and
            20 where there are global ones, whose few draws all data share.
        keep: ``best`` gives back the parameters of the best validation ELBO, ``last`` the last.
        checkpoint_every: seconds between checkpoints within an epoch; there is one after each.
        seed: of draws, order of the data and lazy parameters. (Networks made before this call
            have their own.)
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``32``, ``64``, or ``bf16`` (autocast).
        compile: trace the step into one graph and compile it: True, False, or ``auto``: if the run
            has 10,000 steps, which pay for it. What cannot be compiled is trained as it is, with
            a message. See ``docs/compiled_step.md``.
        run_dir: folder for checkpoints and metrics; nothing is written when left out.
        resume: go on from the checkpoint in ``run_dir``, if there is one.
        tensorboard: write TensorBoard events to ``run_dir/tensorboard``.
        loggers: further Lightning Fabric loggers.
        progress: show a bar; when left out, if somebody is looking.

    Returns:
        A :class:`FitResult`; its ``program`` holds the trained parameters.

    Raises:
        PplError: options, data or program are not fit for use; the message says what to do.
        TrainingInterrupted: SIGINT or SIGTERM; a checkpoint was written.

    Example:
        >>> from inference import fit, load_data
        >>> from ppl_models.vae import VAE
        >>> fitted = fit(VAE((1, 8, 8), latent_dim=2), load_data("digits"), epochs=1)
        >>> fitted.history[0]["epoch"]
        1
    """
    settings = Settings(
        estimator=estimator,
        num_particles=num_particles,
        optimizer=optimizer,
        learning_rate=learning_rate,
        lr_schedule=lr_schedule,
        epochs=epochs,
        batch_size=batch_size,
        kl_warmup=kl_warmup,
        kl_balance=kl_balance,
        handlers=(
            *handlers,
            *([KLAnnealing(kl_decay)] if kl_decay else []),
            *([FreeBits(free_bits)] if free_bits else []),
        ),
        clip_grad_norm=clip_grad_norm,
        max_skipped=max_skipped,
        average_decay=average_decay,
        patience=patience,
        valid_particles=valid_particles,
        checkpoint_every=checkpoint_every,
        seed=seed,
        precision=precision,
        compile=compile,
    )
    if keep not in ("best", "last"):
        raise PplError(f"keep must be 'best' or 'last', got {keep!r}")
    folder = None if run_dir is None else Path(run_dir)
    fabric = make_fabric(device, precision, [*_run_loggers(folder, tensorboard, resume), *loggers])
    with isolated_rng(seed), stop_on_signals() if folder else nullcontext(StopRequest()) as stop:
        loop = _prepare(program, data, settings, fabric, folder, progress)
        if folder is not None:
            _take_up(loop, folder, resume)
        with closing(loop.progress):
            try:
                loop.run(stop)
            finally:
                loop.program.sealed = False
        loop.give(keep)
    for logger in fabric.loggers:
        logger.finalize("success")
    loop.program.eval()
    return FitResult(
        loop.program, loop.data, loop.at.history, loop.at.best_epoch, loop.stopped_early, folder
    )


def _run_loggers(folder: Path | None, tensorboard: bool, resume: bool) -> list[Logger]:
    if folder is None:
        if tensorboard:
            raise PplError("tensorboard needs a run_dir to write to")
        return []
    from inference.metrics import MetricsFile  # with Fabric, which is slow to import

    found: list[Logger] = [MetricsFile(folder)]
    if tensorboard:
        from lightning_fabric.loggers import TensorBoardLogger

        # After a resume the history is logged again.
        purge: dict[str, Any] = {"purge_step": 0} if resume else {}
        found.append(TensorBoardLogger(folder, name="tensorboard", version="", **purge))
    return found


def _prepare(
    program: Any, data: Any, settings: Settings, fabric: Any, folder: Path | None, progress: Any
) -> TrainingLoop:
    """Data and program on the device, checked and primed, in a loop ready to run."""
    dtype = dtype_of(settings.precision)
    wrapped = as_program(program).to(fabric.device, dtype)
    dataset = as_dataset(data)
    check_fields_named(wrapped, dataset.train)
    placed = dataset.map(lambda split: split.to(fabric.device, dtype))
    num_data = len(placed.train)
    one_batch = settings.batch_size >= num_data and "num_data" in wrapped.options
    batch = next(iter(placed.train.batches(num_data if one_batch else min(8, settings.batch_size))))
    traces = prime(wrapped, batch, num_data)
    check_data(traces, batch, placed)
    wrapped.to(fabric.device, dtype)  # parameters that came into being just now
    started = start_untouched(wrapped, placed.train, settings.seed)
    if start_from_data(wrapped, placed.train, settings.batch_size, settings.seed) or started:
        traces = prime(wrapped, batch, num_data)
    if settings.estimator == "auto":
        chosen = "enumerate" if enumerates(traces) else "analytic_kl"
        settings = replace(settings, estimator=chosen)
    rows = batch_size_of(batch)
    shared = shared_sums(traces)
    if not shared and settings.batch_size < num_data:
        check_plate_size(traces, wrapped, rows, num_data)
    estimator = _estimator(settings, wrapped, traces, batch, num_data)
    shared_draws = not shared and has_global_latents(traces, rows)
    draws = settings.valid_particles or (20 if shared_draws else 1)
    validator = Validator(
        placed.valid,
        estimator,
        shared,
        draws,
        num_data,
        settings.compiles_validation(num_data, draws * len(placed.valid)),
    )
    bar = Progress(num_data * settings.epochs, progress)
    return TrainingLoop(wrapped, placed, settings, estimator, fabric, validator, folder, bar)


def _estimator(
    settings: Settings, program: Program, traces: Traces, batch: Batch, num_data: int
) -> ELBO:
    """The estimator, which has seen the program and can serve it."""
    estimator = make_estimator(settings.estimator, settings.num_particles)
    if isinstance(settings.estimator, ELBO) and settings.num_particles not in (
        1,
        estimator.num_particles,
    ):
        raise PplError(
            f"num_particles={settings.num_particles} was given beside an estimator object, which "
            f"has {estimator.num_particles}; give it to the object alone"
        )
    if enumerates(traces):
        require_enumeration(estimator)
    if not isinstance(estimator, Estimator):
        set_plate_nesting(estimator, traces)
        return estimator
    choose_vectorization(estimator, program, batch, traces, num_data)
    estimator.prepare(traces)
    placed = next(iter(batch.values())).device
    estimator.state.to(placed)
    return estimator


def _take_up(loop: TrainingLoop, folder: Path, resume: bool) -> None:
    last = folder / "checkpoints" / LAST
    if not last.is_file():
        return
    if not resume:
        raise PplError(
            f"{folder} holds a run already; give resume=True to go on with it, or another folder"
        )
    loop.resume(last)
