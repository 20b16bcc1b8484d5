"""The run folder: configuration, environment, checkpoints, metrics, evaluation, pictures."""

from __future__ import annotations

import inspect
import json
import platform
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from inference.checkpoint import load_checkpoint, load_parameters, write_atomically
from inference.code_priors import check_fingerprint, code_data, coded, facts_of_codes
from inference.data import DataInfo, DataSet, load_data
from inference.devices import dtype_of, isolated_rng, make_fabric
from inference.priming import prime
from inference.signals import TrainingInterrupted
from ppl_models.catalog import build, resolve, source_file
from ppl_models.errors import PplError, ProgramError
from ppl_models.program import Program, as_program
from ppl_models.vqvae_prior import with_prior

CONFIG = "config.yaml"
FROM_DATA = {
    "x_shape": "x_shape",
    "num_classes": "num_classes",
    "grey_levels": "levels",
    "offset_scale": "offset_scale",
}
"""Constructor arguments that are facts of the data, and what these call them."""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    packages = ("torch", "pyro-ppl", "numpy", "torchvision", "lightning-fabric")
    return {"python": platform.python_version(), **{p: metadata.version(p) for p in packages}}


def environment() -> dict[str, Any]:
    """Where a run takes place: versions, platform, processor, devices."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "torch_threads": torch.get_num_threads(),
        "cuda_devices": devices,
        "command": sys.argv,
    }


def create_run(folder: Path, config: dict[str, Any]) -> None:
    """Make a run folder with its configuration.

    Args:
        folder: its path; may exist if it is empty.
        config: written to ``config.yaml``.

    Raises:
        PplError: the folder holds something, or cannot be made.
    """
    if _is_taken(folder):
        is_run = (folder / CONFIG).is_file()
        raise PplError(
            f"{folder} exists already"
            + (
                "; go on with it by --resume, replace it by --overwrite, or "
                if is_run
                else " and is no run; "
            )
            + "name another folder by --out"
        )
    save_config(folder, config)
    text = json.dumps(environment(), indent=2)
    write_atomically(folder / "environment.json", text.encode())
    user_file = source_file(config["program"])
    if user_file is not None:
        write_atomically(folder / "source" / user_file.name, user_file.read_bytes())


def _is_taken(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


@contextmanager
def new_run(folder: Path, config: dict[str, Any], *, overwrite: bool = False) -> Iterator[None]:
    """Make a run folder; what was there comes back if the run fails before it learned
    anything.

    Args:
        folder: as in :func:`create_run`.
        config: as in :func:`create_run`.
        overwrite: replace the run that is there.
    """
    aside = folder.with_name(f"{folder.name}.replaced")
    if overwrite and (folder / CONFIG).is_file():
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    made = False
    try:
        create_run(folder, config)
        made = True
        yield
    except TrainingInterrupted:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    except Exception:
        if made and not _has_steps(folder):
            shutil.rmtree(folder, ignore_errors=True)
        if aside.exists() and not folder.exists():
            aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _has_steps(folder: Path) -> bool:
    """Whether a run has a checkpoint of something learned."""
    path = folder / "checkpoints" / "last.ckpt"
    return path.is_file() and load_checkpoint(path)["position"]["step"] > 0


def save_config(folder: Path, config: dict[str, Any]) -> None:
    """Write ``config.yaml``, from which the run can be made again."""
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    write_atomically(folder / CONFIG, text.encode())


def load_config(folder: Path) -> dict[str, Any]:
    """A run's configuration.

    Raises:
        PplError: the folder is no run, or a prior's whose quantizer's run is gone.
    """
    path = folder / CONFIG
    if not path.is_file():
        what = "holds no run" if folder.is_dir() else "does not exist"
        raise PplError(
            f"{folder} {what} (no {CONFIG}); make one with: ppl train vae --out {folder}"
        )
    try:
        config = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise PplError(f"{path} is no YAML: {error}") from error
    if not isinstance(config, dict) or not {"program", "model", "data"} <= set(config):
        raise PplError(f"{path} is no run's configuration: expected program, model and data")
    if config.get("codes") is not None:
        config["codes"] = str(_moved(Path(config["codes"]), folder))
    return config


def _moved(codes: Path, folder: Path) -> Path:
    """Where a quantizer's run is: in its place, or beside the prior's, if both were moved.

    Raises:
        PplError: in neither.
    """
    beside = folder.resolve().parent / codes.name
    for place in (codes, beside):
        if (place / CONFIG).is_file():
            return place
    raise PplError(
        f"the quantizer's run that the prior in {folder} is about is gone: it was {codes}; put it "
        f"back there or to {beside}"
    )


def options_for(function: Callable[..., Any], config: dict[str, Any]) -> dict[str, Any]:
    """The part of a flat configuration that a function takes."""
    return {k: v for k, v in config.items() if k in inspect.signature(function).parameters}


def takes_codes(spec: str) -> bool:
    """Whether a program is a prior over the codes of another's run, so is made with ``grids``."""
    return "grids" in inspect.signature(resolve(spec)).parameters


def build_for(spec: str, arguments: dict[str, Any], info: DataInfo) -> Program:
    """Construct a program for a data set.

    A constructor that names ``x_shape``, ``num_classes``, ``grey_levels`` or ``offset_scale`` gets
    them from the data, if they say.

    Args:
        spec: as in :func:`ppl_models.resolve`.
        arguments: of the constructor.
        info: of the data.

    Raises:
        ProgramError: the constructor needs ``num_classes`` and the data have no labels; or codes,
            and there are none.
    """
    if takes_codes(spec) and "grids" not in arguments:
        raise ProgramError(
            f"{spec} is a prior over the codes of a trained quantizer: ppl train {spec} --codes RUN"
        )
    named = inspect.signature(resolve(spec)).parameters
    facts = {name: getattr(info, key) for name, key in FROM_DATA.items() if name in named}
    needs_labels = "num_classes" in facts and named["num_classes"].default is not None
    if needs_labels and facts["num_classes"] is None:
        raise ProgramError(f"{spec} needs labels (num_classes), and {info.name!r} has none")
    known = {name: fact for name, fact in facts.items() if fact is not None}
    return as_program(build(spec, **(known | arguments)))


def _check_source(spec: str, folder: Path) -> None:
    """Refuse a run whose model file is gone, or say that it has changed since."""
    original = source_file(spec)
    if original is None:
        return
    kept = folder / "source" / original.name
    if not original.is_file():
        raise ProgramError(f"the model file {original} is gone; the run's copy of it is {kept}")
    if kept.is_file() and kept.read_bytes() != original.read_bytes():
        warnings.warn(
            f"{original} has changed since the run; what was trained is {kept}", stacklevel=3
        )


@dataclass
class Run:
    """A trained program with its data, as its folder tells."""

    folder: Path
    config: dict[str, Any]
    program: Program
    data: DataSet
    epoch: int


def open_codes(config: dict[str, Any], **options: Any) -> Run | None:
    """The run of the quantizer that a prior's run is about; None: the run is no prior's.

    Args:
        config: of the prior's run.
        **options: of :func:`load_run`.

    Raises:
        PplError: the quantizer's run is gone, or its codebook is another.
    """
    folder = config.get("codes")
    if folder is None:
        return None
    run = load_run(folder, **options)
    check_fingerprint(run.program, config.get("fingerprint"), folder)
    return run


def load_training_data(config: dict[str, Any]) -> tuple[DataSet, dict[str, Any]]:
    """What a run is trained on, and what its program is made with beside its own options."""
    base = open_codes(config, device=config.get("device", "auto"))
    if base is None:
        return load_data(**options_for(load_data, config)), {}
    return code_data(base.program, base.data), facts_of_codes(base.program)


def load_run(
    folder: str | Path,
    *,
    checkpoint: str = "best",
    device: str = "auto",
    data_root: str | None = None,
) -> Run:
    """Open a run folder.

    Args:
        folder: made by ``ppl train``.
        checkpoint: ``best`` (by validation ELBO) or ``last``.
        device: where to.
        data_root: folder of data files, if it is another than in training.

    Returns:
        The program in evaluation mode, and the data, both on the device. Of a prior's run it is
        the quantizer's program with that prior, and the data are the images.

    Raises:
        PplError: no run, no such checkpoint, or one that does not fit.
    """
    folder = Path(folder)
    config = load_config(folder)
    path = folder / "checkpoints" / f"{checkpoint}.ckpt"
    state = load_checkpoint(path)
    precision = config.get("precision", "32")
    fabric, dtype = make_fabric(device, precision), dtype_of(precision)
    base = open_codes(config, device=device, data_root=data_root)
    arguments = config["model"] | ({} if base is None else facts_of_codes(base.program))
    data = _data_of(config, data_root) if base is None else base.data
    data = data.map(lambda split: split.to(fabric.device, dtype))
    _check_source(config["program"], folder)
    program = build_for(config["program"], arguments, data.info).to(fabric.device, dtype)
    with isolated_rng(0):
        batch = next(iter(data.train.batches(8)))
        prime(program, batch if base is None else coded(base.program, batch), len(data.train))
    program.to(fabric.device, dtype)
    load_parameters(program, state, path)
    if base is not None:
        program = as_program(with_prior(base.program, program))
    program.eval()
    return Run(folder, config, program, data, state["position"]["epoch"])


def _data_of(config: dict[str, Any], data_root: str | None) -> DataSet:
    options = options_for(load_data, config)
    return load_data(**(options if data_root is None else options | {"data_root": data_root}))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.jsonl``; none if there is no such file."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
