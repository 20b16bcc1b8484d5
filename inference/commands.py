"""What the subcommands of ``ppl`` do: typed functions that return what is to be printed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from inference import report
from inference.checkpoint import to_json, write_atomically
from inference.code_priors import code_numbers, quantized
from inference.data import SOURCES, load_data
from inference.devices import seed_all
from inference.drawing import Sharpened
from inference.elbo import ESTIMATORS
from inference.em.run import fit_em_in
from inference.evaluation import evaluate
from inference.inputs import model_inputs
from inference.mixture_numbers import em_numbers, mixture_numbers
from inference.priming import check_fields_named
from inference.runs import (
    Run,
    build_for,
    load_config,
    load_run,
    load_training_data,
    new_run,
    open_codes,
    options_for,
    save_config,
)
from inference.sampling import to_complete
from inference.sketch_files import reconstruct_drawings, sample_files
from inference.sketches import are_drawings, sketch_numbers
from inference.svi import fit
from inference.testing import check_program
from ppl_models.catalog import CATALOG, locate
from ppl_models.errors import PplError, ProgramError

Numbers = dict[str, Any]
MAX_PARTICLES_IN_REPORT = 100
METHODS: dict[str, Callable[..., Any]] = {"svi": fit, "em": fit_em_in}
"""What ``ppl train --method`` names."""


def list_all() -> Numbers:
    """The models, data sets and estimators there are."""
    return {
        "models": {n: f"{e.summary} ({e.reference})" for n, e in CATALOG.items()}
        | {"file.py:Name": "your own model and guide (docs/adding_a_model.md)"},
        "data": {n: s.summary for n, s in SOURCES.items()}
        | {
            "mnist, fashion_mnist, cifar10, ...": "any image set of torchvision",
            "FILE.npy, FILE.npz, FOLDER": "your own arrays or images",
            "FILE.npz, FILE.ndjson, FOLDER of these or SVG": "pen drawings, as QuickDraw has them",
        },
        "estimators": {
            n: f"{e.objective}; latents: {e.latents}; bias: {e.bias}; particles: "
            f"{e.min_particles}+; {e.reference}"
            for n, e in ESTIMATORS.items()
        },
    }


def train(config: dict[str, Any], out: Path, *, overwrite: bool = False) -> Numbers:
    """Train a program, evaluate it on test data and draw its pictures.

    Args:
        config: flat: ``program``, ``model`` (its constructor's arguments), ``method``, and the
            options of ``load_data`` and ``fit``.
        out: the run folder.
        overwrite: replace a run that is there.
    """
    config = settled(config)
    with new_run(out, config, overwrite=overwrite):
        found = _fit(config, out, resume=False)
    return _finish(config, out, found)


def settled(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with absolute paths, so that it holds from any folder."""
    config = config | {"program": locate(config["program"])}
    if Path(config["data"]).exists():
        config["data"] = str(Path(config["data"]).resolve())
    if config.get("codes") is not None:
        config["codes"] = str(Path(config["codes"]).resolve())
        codes = open_codes(config, device=config.get("device", "auto"))
        config["fingerprint"] = quantized(codes).fingerprint()
    return config


def resume(out: Path, changes: dict[str, Any]) -> Numbers:
    """Go on with a run.

    Args:
        out: its folder.
        changes: options that a resumed run may change, such as ``epochs``.
    """
    config = load_config(out) | changes
    found = _fit(config, out, resume=True)
    save_config(out, config)  # now that the changes have proved possible
    return _finish(config, out, found)


def _fit(config: dict[str, Any], out: Path, *, resume: bool) -> object:
    """Train; what the method gives back."""
    seed_all(config.get("seed", 0))  # of the networks' first weights
    data, facts = load_training_data(config)
    program = build_for(config["program"], config["model"] | facts, data.info)
    train_by = METHODS[config.get("method", "svi")]
    _check_taken(train_by, config)
    options = {
        k: v for k, v in options_for(train_by, config).items() if k not in ("program", "data")
    }
    return train_by(program=program, data=data, run_dir=out, resume=resume, **options)


def _check_taken(train_by: Callable[..., Any], config: dict[str, Any]) -> None:
    """Refuse options of ``fit`` that another method would pass over."""
    taken = inspect.signature(train_by).parameters
    for name, parameter in inspect.signature(fit).parameters.items():
        if name not in taken and config.get(name, parameter.default) != parameter.default:
            raise PplError(
                f"method {config['method']!r} takes no {name} (got {config[name]!r}); leave it "
                "out, or train with method svi"
            )


def _finish(config: dict[str, Any], out: Path, found: object) -> Numbers:
    """Evaluate the best epoch on test data, and draw."""
    run = load_run(out, device=config.get("device", "auto"))
    numbers = evaluate_on(run, "test", MAX_PARTICLES_IN_REPORT, seed=0)
    numbers |= em_numbers(found) | mixture_numbers(run.program, run.data)
    pictures = report.make_pictures(run)
    page = report.write_report(run, numbers, pictures)
    return numbers | {"run": str(out), "report": str(page)}


def evaluate_on(
    run: Run, split: str, num_particles: int, seed: int, compile: bool | str = "auto"
) -> Numbers:
    """Evaluate an open run and write ``evaluation.json``."""
    result = evaluate(
        run.program,
        run.data.split(split).batches(512),
        num_particles=num_particles,
        num_data=len(run.data.train),
        log_jacobian=run.data.info.log_jacobian,
        seed=seed,
        compile=compile,
    )
    numbers = {"split": split, "epoch": run.epoch} | result.to_dict()
    numbers |= code_numbers(run.program, result.kl)
    numbers |= sketch_numbers(run.program, run.data, split, result)
    path = run.folder / "evaluation.json"
    write_atomically(path, (to_json(numbers, indent=2) + "\n").encode())
    return numbers


def evaluate_run(
    run: str,
    *,
    split: str = "test",
    num_particles: int = 100,
    checkpoint: str = "best",
    device: str = "auto",
    data_root: str | None = None,
    seed: int = 0,
    compile: bool | str = "auto",
) -> Numbers:
    """Evaluate a run: ELBO, rate, distortion, IWAE bound, active units; nats per datum.

    Args:
        run: folder of the run.
        split: train, valid or test.
        num_particles: importance samples per datum.
        checkpoint: best (by validation ELBO) or last.
        device: auto, cpu or cuda.
        data_root: folder of data files, if it is another than in training.
        seed: of the draws.
        compile: run the program by a compiled graph: true, false, or auto: if it pays.
    """
    opened = load_run(run, checkpoint=checkpoint, device=device, data_root=data_root)
    return evaluate_on(opened, split, num_particles, seed, compile)


def sample_run(
    run: str,
    *,
    num: int = 64,
    out: str | None = None,
    draw: str = "mean",
    checkpoint: str = "best",
    device: str = "auto",
    data_root: str | None = None,
    seed: int = 0,
    temperature: float | list[float] = 1.0,
    top_k: int | None = None,
    progress: bool | None = None,
    given: Mapping[str, str] | None = None,
) -> Numbers:
    """Draw from the prior predictive into a picture; of a program that completes, test images.

    Fields that a conditional model takes are given by their names: `--y 3`, `--y [0,1,2]`.

    Args:
        run: folder of the run.
        num: how many.
        out: PNG file, or .npz for the arrays; of drawings SVG, or GIF of their being made;
            RUN/samples.png (and .svg, .gif of drawings) when left out.
        draw: mean of p(x | z), or a sample of it.
        checkpoint: best or last.
        device: auto, cpu or cuda.
        data_root: folder of data files, if it is another than in training.
        seed: of the draws.
        temperature: above 0, of Normal latents (a factor of their scale) and autoregressive sites;
            below 1 keeps to what is likely. One number, or one a scale of latents, as [0.7,0.9].
        top_k: values that every position of an autoregressive site is drawn from; all if left out.
        progress: show a bar of the positions drawn; when left out, if somebody is looking.
        given: what the model is given, as texts by field.
    """
    opened = load_run(run, checkpoint=checkpoint, device=device, data_root=data_root)
    path = Path(out) if out is not None else opened.folder / "samples.png"
    if num < 1:
        raise PplError(f"num must be at least 1, got {num}")
    options = inspect.signature(sample_run).parameters
    inputs = model_inputs(given or {}, opened.program, opened.data.info, num, [*options][1:-1])
    inputs = to_complete(opened.program, opened.data.test, num, inputs) | (inputs or {})
    sharpened = Sharpened(temperature, top_k, progress)
    drawn = report.sample(
        opened.program, num, draw=draw, given=inputs, seed=seed, sharpened=sharpened
    )
    files = sample_files(path, opened, drawn, named=out is not None)
    return {"samples": num, "file": files}


def reconstruct_run(
    run: str,
    *,
    num: int = 40,
    split: str = "test",
    out: str | None = None,
    checkpoint: str = "best",
    device: str = "auto",
    data_root: str | None = None,
    seed: int = 0,
    temperature: float | None = None,
) -> Numbers:
    """Draw data beside their reconstructions.

    Args:
        run: folder of the run.
        num: how many.
        split: train, valid or test.
        out: PNG file, of drawings also SVG or GIF; RUN/reconstructions.png when left out.
        checkpoint: best or last.
        device: auto, cpu or cuda.
        data_root: folder of data files, if it is another than in training.
        seed: of the draws.
        temperature: of drawings, 1 when left out; the lower, the calmer.
    """
    opened = load_run(run, checkpoint=checkpoint, device=device, data_root=data_root)
    path = Path(out) if out is not None else opened.folder / "reconstructions.png"
    batch = next(iter(opened.data.split(split).batches(num)))
    if are_drawings(batch.get("x")):
        return reconstruct_drawings(opened, batch, out, temperature or 1.0, seed)
    if temperature is not None:
        raise PplError("temperature is of drawings, and these data are none; leave it out")
    figure = report.reconstruction_figure(opened, batch, num, seed)
    if figure is None:
        raise PplError(
            "nothing to draw: the data's field 'x' is no image, no site named 'x' observes it, or "
            "the program has no latents to reconstruct it from"
        )
    write_atomically(path, report.png(figure))
    return {"reconstructions": len(next(iter(batch.values()))), "file": str(path)}


def check(config: dict[str, Any]) -> Numbers:
    """Check that a program keeps the contract, on the first data of a data set.

    Args:
        config: flat: ``program``, ``model`` and the options of ``load_data``.

    Raises:
        ProgramError: it does not; the message lists what is broken.
    """
    seed_all(0)
    data = load_data(**options_for(load_data, config))
    program = build_for(config["program"], config["model"], data.info)
    split = data.train.to(torch.device("cpu"), torch.float32)
    check_fields_named(program, split)
    results = check_program(program, next(iter(split.batches(6))), raise_on_failure=False)
    failed = [r.name for r in results if not r.ok]
    numbers = {r.name: f"{'ok' if r.ok else 'BROKEN'}: {r.message}" for r in results}
    if failed:
        lines = "\n".join(f"  {name:<17} {text}" for name, text in numbers.items())
        raise ProgramError(f"{program.name} breaks the contract ({', '.join(failed)}):\n{lines}")
    return numbers
