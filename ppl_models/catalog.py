"""Programs by name: ``"vae"``, ``"package.module:Name"``, ``"file.py:Name"``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ppl_models.errors import PplError, ProgramError, UnknownNameError, describe
from ppl_models.program import Program


@dataclass(frozen=True)
class Entry:
    """A program of the catalog."""

    target: str
    """Where its constructor is, as ``module:Name``."""
    summary: str
    reference: str


CATALOG: dict[str, Entry] = {
    "autoencoder": Entry(
        "ppl_models.autoencoder:Autoencoder",
        "autoencoder: a point for a guide, and a prior that it does not know",
        "Hinton & Salakhutdinov 2006",
    ),
    "vae": Entry(
        "ppl_models.vae:VAE",
        "variational autoencoder, fully connected",
        "Kingma & Welling 2014, arXiv:1312.6114",
    ),
    "beta_vae": Entry(
        "ppl_models.beta_vae:BetaVAE",
        "VAE with a weight on its rate",
        "Higgins et al. 2017",
    ),
    "conv_vae": Entry(
        "ppl_models.conv_vae:ConvVAE",
        "VAE with convolutional networks, images of any size",
        "Kingma & Welling 2014, arXiv:1312.6114",
    ),
    "conv_grid_vae": Entry(
        "ppl_models.conv_vae:ConvGridVAE",
        "fully convolutional VAE, N × N latents",
        "Gulrajani et al. 2017, arXiv:1611.05013",
    ),
    "cvae": Entry(
        "ppl_models.cvae:CVAE",
        "class-conditional VAE: images of a class that is asked for",
        "Sohn, Lee & Yan 2015",
    ),
    "cvae_completion": Entry(
        "ppl_models.cvae_completion:CompletionCVAE",
        "image completion by a conditional VAE: some quadrants seen, the others drawn",
        "Sohn, Lee & Yan 2015",
    ),
    "vqvae": Entry(
        "ppl_models.vqvae:VQVAE",
        "vector-quantized VAE: an image as a grid of codes",
        "van den Oord et al. 2017, arXiv:1711.00937",
    ),
    "vqvae2": Entry(
        "ppl_models.vqvae2:VQVAE2",
        "two grids of codes, the lower given the upper",
        "Razavi et al. 2019, arXiv:1906.00446",
    ),
    "vqvae_prior": Entry(
        "ppl_models.vqvae_prior:vqvae_prior",
        "autoregressive prior over the codes of a trained VQ-VAE: --codes RUN",
        "van den Oord et al. 2017, arXiv:1711.00937",
    ),
    "ladder_vae": Entry(
        "ppl_models.ladder_vae:LadderVAE",
        "dense layers of latents, each given those above",
        "Sønderby et al. 2016, arXiv:1602.02282",
    ),
    "hvae_mnist_small": Entry(
        "ppl_models.hierarchical_presets:hvae_mnist_small",
        "hierarchical VAE, groups of latents on two grids, for a CPU",
        "Vahdat & Kautz 2020, arXiv:2007.03898",
    ),
    "hvae_mnist": Entry(
        "ppl_models.hierarchical_presets:hvae_mnist",
        "the same, deeper and wider, for a GPU",
        "Vahdat & Kautz 2020, arXiv:2007.03898",
    ),
    "hvae_cifar10": Entry(
        "ppl_models.hierarchical_presets:hvae_cifar10",
        "the same for colour images of 32×32",
        "Vahdat & Kautz 2020, arXiv:2007.03898",
    ),
    "nvae_faces": Entry(
        "ppl_models.hierarchical_presets:nvae_faces",
        "NVAE's cells on three grids, for faces of 64×64",
        "Vahdat & Kautz 2020, arXiv:2007.03898",
    ),
    "categorical_vae": Entry(
        "ppl_models.categorical_vae:CategoricalVAE",
        "VAE with categorical latents (--estimator gumbel_softmax, leave_one_out, ...)",
        "Jang, Gu & Poole 2017, arXiv:1611.01144",
    ),
    "gmm": Entry(
        "ppl_models.gmm:GaussianMixture",
        "mixture of Gaussians, its component summed out",
        "Dempster, Laird & Rubin 1977",
    ),
    "pixelcnn": Entry(
        "ppl_models.autoregressive:PixelCNN",
        "gated PixelCNN over images or grids of integers; its likelihood is exact",
        "van den Oord et al. 2016, arXiv:1606.05328",
    ),
    "code_transformer": Entry(
        "ppl_models.autoregressive:CodeTransformer",
        "causal Transformer over images or grids of integers; its likelihood is exact",
        "Chen et al. 2020",
    ),
    "sketch_rnn": Entry(
        "ppl_models.sketch_rnn:SketchRNN",
        "Sketch-RNN: a recurrent VAE of pen strokes",
        "Ha & Eck 2018, arXiv:1704.03477",
    ),
    "class_sketch_rnn": Entry(
        "ppl_models.sketch_rnn:ClassSketchRNN",
        "Sketch-RNN of a class that is asked for",
        "Ha & Eck 2018, arXiv:1704.03477",
    ),
    "sketch_rnn_decoder": Entry(
        "ppl_models.sketch_rnn:SketchDecoder",
        "Sketch-RNN without a code: its likelihood is exact, and it draws on from a beginning",
        "Ha & Eck 2018, arXiv:1704.03477",
    ),
}


def resolve(spec: str) -> Callable[..., Any]:
    """The constructor of a program.

    Args:
        spec: a name of the catalog, ``package.module:Name``, ``path/to/file.py:Name``, or
            ``path/to/file.py`` for a file with functions ``model`` and ``guide``.

    Returns:
        A class or function that makes an object with ``model`` and ``guide``.

    Raises:
        UnknownNameError: nothing of that name.
        ProgramError: the file or class is no program.
    """
    if spec in CATALOG:
        spec = CATALOG[spec].target
    location, name = _split(spec)
    if location.endswith(".py"):
        module = _import_file(Path(location))
    elif name and location and not location.startswith("."):
        module = _import_module(location)
    else:
        raise UnknownNameError(
            "model", spec, CATALOG, "Or give `package.module:Name` or `path/to/file.py:Name`."
        )
    return _constructor(module, name, spec) if name else _plain_functions(module, spec)


def locate(spec: str) -> str:
    """The spec with a file's path made absolute, so that it holds from any folder."""
    path = source_file(spec)
    if path is None:
        return spec
    name = _split(spec)[1]
    return f"{path}:{name}" if name else str(path)


def source_file(spec: str) -> Path | None:
    """The user's file behind a spec, or None for an installed program."""
    location = _split(spec)[0]
    return Path(location).resolve() if location.endswith(".py") else None


def _split(spec: str) -> tuple[str, str]:
    """The place and the name of a spec; the name is empty if there is none."""
    location, colon, name = spec.rpartition(":")
    return (location, name) if colon else (spec, "")


def _import_module(location: str) -> ModuleType:
    try:
        return importlib.import_module(location)
    except ModuleNotFoundError as error:
        raise ProgramError(
            f"cannot import {location!r} ({error}); is it installed? "
            "A file is named as `path/to/file.py:Name`."
        ) from error
    except Exception as error:
        raise ProgramError(f"{location!r} cannot be imported: {describe(error)}") from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ProgramError(f"there is no file {str(path)!r} (looked in {Path.cwd()})")
    name = f"ppl_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # so that the file can import its neighbours
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        shown = describe(error, path.resolve())
        raise ProgramError(f"{path} cannot be imported: {shown}") from error
    finally:
        sys.path.remove(folder)
    return module


def _constructor(module: ModuleType, name: str, spec: str) -> Callable[..., Any]:
    target = getattr(module, name, None)
    if target is None:
        here = [
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == module.__name__
        ]
        raise UnknownNameError(f"name in {module.__name__.removeprefix('ppl_user_')}", name, here)
    if inspect.isclass(target):
        # A guide may be made in __init__ (an autoguide), so its absence is known only later.
        if not hasattr(target, "model"):
            raise ProgramError(
                f"class {name} of {spec!r} has no `model`; a program needs methods "
                "model(self, x=None, *, size=1) and guide(self, x)."
            )
        return target
    if hasattr(target, "model") and hasattr(target, "guide"):
        return lambda: target  # already an object
    if not callable(target):
        raise ProgramError(f"{spec!r} is {target!r}, neither a program nor a constructor of one")
    return target


def _plain_functions(module: ModuleType, spec: str) -> Callable[[], Program]:
    missing = [role for role in ("model", "guide") if not hasattr(module, role)]
    if missing:
        raise ProgramError(
            f"{spec!r} has no function {' and no function '.join(missing)}; name the class in it "
            f"as `{spec}:Name`, or define both model(...) and guide(...)."
        )
    networks = {k: v for k, v in vars(module).items() if isinstance(v, nn.Module)}
    networks = {k: v for k, v in networks.items() if v not in (module.model, module.guide)}
    return lambda: Program(module.model, module.guide, **networks)


def build(spec: str, **arguments: Any) -> Any:
    """Construct the program of this spec.

    Raises:
        PplError: the constructor refuses the arguments; its message says which.
    """
    constructor = resolve(spec)
    try:
        return constructor(**arguments)
    except PplError:
        raise
    except Exception as error:
        shown = ", ".join(f"{k}={v!r}" for k, v in arguments.items())
        raise ProgramError(
            f"{spec}({shown}) cannot be made: {describe(error, source_file(spec))}"
        ) from error
