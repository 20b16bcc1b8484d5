"""The command ``ppl``: every subcommand is one call of a public function."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from inference import commands, photo_commands
from inference.checkpoint import to_json
from inference.code_options import not_asked, with_data_of_codes
from inference.compare.command import compare
from inference.data import load_data
from inference.diagnostics.command import diagnose_run
from inference.elbo import ESTIMATORS
from inference.explore.command import explore_run
from inference.inputs import inputs_among
from inference.parser import Parser, several_values, with_value
from inference.report import print_table
from inference.runs import options_for
from inference.settings import SCHEDULES
from inference.signals import TrainingInterrupted
from inference.svi import fit
from inference.sweep import sweep_command
from ppl_models.catalog import resolve
from ppl_models.errors import PplError, UnknownNameError, describe, without_shapes

RESUMABLE = (
    "epochs",
    "patience",
    "device",
    "progress",
    "checkpoint_every",
    "max_skipped",
    "valid_particles",
    "data_root",
)
"""Options that ``ppl train --resume`` may change."""

USAGE = """usage: ppl COMMAND ...

  ppl list                                    models, data sets, estimators
  ppl train MODEL --data DATA [--out RUN]     train, evaluate, draw; --help tells the options
  ppl train --resume RUN                      go on with a run
  ppl train vqvae_prior --codes RUN           a prior over the codes of a quantizer's run
  ppl sweep MODEL --model.beta 0.5,1,2 ...    a run a value of an option; rate against distortion
  ppl evaluate RUN --num_particles 1000       ELBO, IWAE bound, active units, ...
  ppl sample RUN --num 64 --out FILE.png      draw from the prior predictive
  ppl sample RUN --y 3 --temperature 0.9      of a class; autoregressive sites sharpened
  ppl reconstruct RUN                         data beside their reconstructions
  ppl explore RUN --kind interpolation        walk through the latent space; --help tells the kinds
  ppl diagnose RUN [--out DIR]                is the posterior to be believed? checks, verdicts
  ppl compare MODEL --data DATA [--out DIR]   ELBO estimators: bias, variance, SNR, cost, curves
  ppl compare --checkpoint RUN [--out DIR]    the same before and after a run's training
  ppl check FILE.py:MyModel --data DATA       does a program keep the contract?
  ppl denoise PHOTO --sigma 25 --out FILE     take noise off a photograph
  ppl train_prior FOLDER --out FILE           learn the prior of patches that denoise uses

MODEL is a name of `ppl list`, package.module:Name, or file.py:Name. Every command takes --json
and --help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _show_log()
    try:
        return _dispatch(arguments)
    except TrainingInterrupted as stop:
        return _fail(str(stop), 128 + stop.signum)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except PplError as error:
        return _fail(f"error: {without_shapes(str(error))}", 2)
    except Exception as error:
        if os.environ.get("PPL_TRACEBACK"):
            raise
        return _fail(f"error: {describe(error)}\n(PPL_TRACEBACK=1 shows the traceback)", 1)


def _show_log() -> None:
    """What the engine has to tell (that a step is compiled, or why not) goes to stderr."""
    logger = logging.getLogger("inference")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("ppl: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def _fail(message: str, status: int) -> int:
    print(f"ppl: {message}", file=sys.stderr)
    return status


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    name, rest = argv[0], argv[1:]
    if name not in SUBCOMMANDS:
        raise UnknownNameError("command", name, SUBCOMMANDS)
    as_json = "--json" in rest
    numbers = SUBCOMMANDS[name]([word for word in rest if word != "--json"])
    if as_json:
        print(to_json(numbers, ensure_ascii=False))
    else:
        print_table(numbers)
    return 0


def _function_command(function: Callable[..., Any], name: str) -> Callable[[list[str]], Any]:
    """A command of a function; its options that are False if left out are flags.

    If it takes ``given``, options that are not its own go there: inputs of a model.
    """
    parameters = inspect.signature(function).parameters.values()
    flags: set[str | int] = {p.name for p in parameters if p.default is False}
    names = set(inspect.signature(function).parameters)

    def run(argv: list[str]) -> Any:
        parser = Parser(prog=f"ppl {name}", description=inspect.getdoc(function))
        inputs: dict[str, Any] = {}
        if "given" in names:
            argv, inputs["given"] = inputs_among(argv, names - {"given"})
        parser.add_function_arguments(function, as_positional=True, skip={*flags, *inputs})
        for flag in sorted(map(str, flags)):
            parser.add_argument(f"--{flag}", action="store_true", help=_help_of(function, flag))
        return function(**parser.parse(with_value("--compile", "true", argv)), **inputs)

    return run


def _help_of(function: Callable[..., Any], option: str) -> str:
    """What a docstring says of an option, in one line."""
    lines = (line.strip() for line in (inspect.getdoc(function) or "").splitlines())
    return next((text.partition(": ")[2] for text in lines if text.startswith(f"{option}: ")), "")


def _train(argv: list[str]) -> Any:
    if "--resume" in argv or any(word.startswith("--resume=") for word in argv):
        return _resume(argv)
    parser, argv = _training_parser("train", with_data_of_codes(argv))
    parser.add_argument("--out", type=str, help="folder of the run; runs/MODEL-DATA if left out")
    parser.add_argument("--overwrite", action="store_true", help="replace a run that is there")
    config = _plain(parser.parse(argv))
    out, overwrite = config.pop("out"), config.pop("overwrite")
    folder = Path(out) if out else _free_folder(config["program"], config["data"])
    return commands.train(config, folder, overwrite=overwrite)


def _sweep(argv: list[str]) -> Any:
    asks = bool({"-h", "--help"} & set(argv))
    option, lines = ("", [argv]) if asks else several_values(argv)
    configs = []
    for line in lines:
        parser, line = _training_parser("sweep", line)
        parser.description = (
            "Train a program for several values of one option, given as --model.beta 0.5,1,2: a "
            "run folder each, and the rate-distortion curve. The same command goes on with it."
        )
        parser.add_argument("--out", type=str, required=True, help="folder of the runs")
        configs.append(_plain(parser.parse(line)))
    out = Path([config.pop("out") for config in configs].pop())
    setting = option.removeprefix("--")
    part, _, name = setting.rpartition(".")
    values = [(config[part] if part else config)[name] for config in configs]
    return sweep_command(configs[0], setting, values, out)


def _training_parser(command: str, argv: list[str]) -> tuple[Parser, list[str]]:
    """A parser of a program, its data and all of its training."""
    parser, argv = _program_parser(command, with_value("--compile", "true", argv))
    parser.add_argument(
        "--method",
        choices=tuple(commands.METHODS),
        default="svi",
        help="svi, or em: Gaussian mixtures in closed form, an epoch an iteration",
    )
    _add_fit_options(parser)
    return parser, argv


def _add_fit_options(parser: Parser) -> None:
    """The options of ``fit``; what it takes as a name or an object is a name here."""
    names = {
        "estimator": f"auto, {', '.join(ESTIMATORS)}, or a class: pyro.infer.TraceGraph_ELBO",
        "optimizer": "a name of torch.optim",
        "lr_schedule": ", ".join(SCHEDULES),
    }
    defaults = inspect.signature(fit).parameters
    for name, text in names.items():
        parser.add_argument(f"--{name}", type=str, default=defaults[name].default, help=text)
    parser.add_function_arguments(
        fit, skip={"program", "data", "run_dir", "resume", "loggers", "handlers", *names}
    )


def _resume(argv: list[str]) -> Any:
    parser = Parser(prog="ppl train --resume RUN")
    parser.add_argument("--resume", type=str, required=True, help="folder of the run")
    chosen = inspect.signature(fit).parameters.keys() - set(RESUMABLE)
    parser.add_function_arguments(fit, skip=set(chosen))
    parser.add_argument("--data_root", type=str, help="folder of data files")
    given = parser.parse(argv)
    defaults = parser.get_defaults().as_dict()
    folder = Path(given.pop("resume"))
    changes = {k: v for k, v in given.items() if v != defaults.get(k) or f"--{k}" in " ".join(argv)}
    return commands.resume(folder, changes)


def _check(argv: list[str]) -> Any:
    parser, argv = _program_parser("check", argv)
    return commands.check(_plain(parser.parse(argv)))


def _compare(argv: list[str]) -> Any:
    own: set[str | int] = {"config", "overwrite"}
    if any(word.partition("=")[0] == "--checkpoint" for word in argv):
        parser = Parser(
            prog="ppl compare --checkpoint RUN",
            description="Compare estimators on a run's program and data, before and after it.",
        )
    else:
        parser, argv = _program_parser("compare", argv)
        parser.description = (
            "Compare ELBO estimators on a program as it is made. `ppl compare --checkpoint RUN` "
            "compares on a trained run instead, at its initialization and after training. "
            "`ppl compare MODEL --help` adds the model's options."
        )
        own.add("checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="write over files in --out")
    parser.add_function_arguments(compare, skip=own)
    config = _plain(parser.parse(argv))
    return compare(config, **options_for(compare, config))


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Without the configuration file's name; a program without options has empty ones."""
    return {"model": {}} | {k: v for k, v in config.items() if k != "config"}


def _program_parser(command: str, argv: list[str]) -> tuple[Parser, list[str]]:
    """A parser with the options of the program that is named, and of its data."""
    spec = _program_named(argv)
    parser = Parser(
        prog=f"ppl {command} {spec or 'MODEL'}",
        description=f"{command} a program. `ppl {command} MODEL --help` adds the model's options.",
    )
    parser.add_argument("program", type=str, help="name, package.module:Name or file.py:Name")
    parser.add_argument("--config", action="config", help="YAML file, such as RUN/config.yaml")
    parser.add_function_arguments(load_data, as_positional=False)
    if spec is not None:
        _add_model_options(parser, spec)
        if argv[:1] != [spec]:
            argv = [spec, *argv]  # named in the configuration file alone
    return parser, argv


def _add_model_options(parser: Parser, spec: str) -> None:
    constructor = resolve(spec)
    add: Any = (
        parser.add_class_arguments
        if inspect.isclass(constructor)
        else parser.add_function_arguments
    )
    add(constructor, "model", skip=not_asked(parser, spec), fail_untyped=False)


def _program_named(argv: list[str]) -> str | None:
    """The program on the command line, or in the file that ``--config`` names."""
    if argv and not argv[0].startswith("-"):
        return argv[0]
    for i, word in enumerate(argv):
        path = word.partition("=")[2] or (argv[i + 1] if i + 1 < len(argv) else "")
        if word.partition("=")[0] == "--config":
            if not Path(path).is_file():
                raise PplError(f"there is no configuration file {path!r}")
            config = yaml.safe_load(Path(path).read_text())
            return config.get("program") if isinstance(config, dict) else None
    if not {"-h", "--help"} & set(argv):
        raise PplError("which model? `ppl train MODEL --data DATA`; `ppl list` shows the names")
    return None


def _free_folder(program: str, data: str) -> Path:
    base = f"{Path(program.rpartition(':')[2] or program).stem}-{Path(data).stem}".lower()
    folder, number = Path("runs") / base, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{base}-{number}"
    return folder


SUBCOMMANDS: dict[str, Callable[[list[str]], Any]] = {
    "list": lambda argv: commands.list_all(),
    "train": _train,
    "sweep": _sweep,
    "evaluate": _function_command(commands.evaluate_run, "evaluate"),
    "sample": _function_command(commands.sample_run, "sample"),
    "reconstruct": _function_command(commands.reconstruct_run, "reconstruct"),
    "explore": _function_command(explore_run, "explore"),
    "diagnose": _function_command(diagnose_run, "diagnose"),
    "compare": _compare,
    "check": _check,
    "denoise": _function_command(photo_commands.denoise_photo, "denoise"),
    "train_prior": _function_command(photo_commands.train_prior, "train_prior"),
}

if __name__ == "__main__":
    sys.exit(main())
