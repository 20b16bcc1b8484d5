"""The options of a prior over codes on the command line: ``ppl train vqvae_prior --codes RUN``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inference.data import load_data
from inference.parser import Parser
from inference.runs import FROM_DATA, load_config, options_for, takes_codes
from ppl_models.errors import PplError


def not_asked(parser: Parser, spec: str) -> set[str | int]:
    """Constructor arguments that are no options; a prior over codes is asked for those instead.

    Args:
        parser: of the program's options.
        spec: the program.
    """
    if not takes_codes(spec):
        return set(FROM_DATA)
    parser.add_argument("--codes", type=str, help="folder of the quantizer's run")
    parser.add_argument("--fingerprint", type=str, help="of its codebook, as config.yaml has it")
    return {*FROM_DATA, "grids", "num_codes"}


def with_data_of_codes(argv: list[str]) -> list[str]:
    """The arguments, with the data options of the run that ``--codes`` names.

    Raises:
        PplError: the data are given as well, or that run is none.
    """
    folder = _value_of("--codes", argv)
    if folder is None:
        return argv
    if _value_of("--data", argv) is not None:
        raise PplError(
            "--codes RUN trains on the codes of that run's data; leave out --data and its options"
        )
    options: dict[str, Any] = options_for(load_data, load_config(Path(folder)))
    return [*argv, *(f"--{k}={v}" for k, v in options.items() if v is not None)]


def _value_of(option: str, argv: list[str]) -> str | None:
    for word, after in zip(argv, [*argv, ""][1:], strict=True):
        name, equals, value = word.partition("=")
        if name == option:
            return value if equals else after
    return None
