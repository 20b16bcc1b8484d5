"""Denoising with a patch prior: PSNR on Set12, seconds and memory, and deepinv's EPLL as the peer.

    python benchmarks/epll.py quality --prior prior.safetensors
    python benchmarks/epll.py speed --prior prior.safetensors --threads 2
    python benchmarks/epll.py scaling

``quality`` takes hours for the slow settings and goes on where it was stopped: every image's PSNR
is kept in results/NAME.partial.json until the run is whole.

Set12 is looked for in natural_images/set12 under PPL_DATA_ROOT. Noise is
sigma * RandomState(0).randn(H, W) / 255, begun anew for each image, neither clipped nor rounded;
PSNR is of the result clipped to [0, 1]. ``speed`` times one 256 × 256 image; the peer, if deepinv
is installed, has the same prior, with 10 (DC ⊗ DC) added to its covariances because it takes no
mean off the patches.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Kept, medians, parser, save
from torch import Tensor

from inference import anneal, split_half_quadratic
from inference.denoise import NUM_PAIRS, STRIDE, denoise
from inference.image_quality import psnr
from inference.images import read_photo
from ppl_models.epll import EPLL
from ppl_models.observations import SCHEDULE, Noise
from ppl_models.patch_prior import SHIPPED, PatchPrior
from ppl_models.patches import dc_free_basis

Denoiser = Callable[[EPLL, Tensor], Tensor]


def by_default(program: EPLL, noisy: Tensor, **options: Any) -> Tensor:
    """As the command does it, with the program that is given."""
    return denoise(lambda _: program, noisy, program.observation.noise_scale, **options)


def by_literature(program: EPLL, noisy: Tensor) -> Tensor:
    """The five steps of Zoran and Weiss."""
    variance = program.observation.noise_scale**2
    steps = [variance / b for b in (1, 4, 8, 16, 32)]
    return split_half_quadratic(program, noisy, stride=1, variances=steps)


SETTINGS: dict[str, Denoiser] = {
    "every patch": lambda program, noisy: split_half_quadratic(program, noisy, stride=1),
    "fast": by_default,
    "faster": lambda program, noisy: by_default(program, noisy, stride=6),
    "gradient, every patch": anneal,
    "every patch, five steps": by_literature,
}


def set12() -> dict[str, Tensor]:
    """The twelve images, (1, H, W) in [0, 1]."""
    folder = Path(os.environ.get("PPL_DATA_ROOT", "../shared/data")) / "natural_images" / "set12"
    found = {path.stem: read_photo(path).pixels[:1] for path in sorted(folder.glob("*.png"))}
    if not found:
        raise SystemExit(f"no images in {folder}; name the data's folder by PPL_DATA_ROOT")
    return found


def with_noise(clean: Tensor, sigma: float) -> Tensor:
    noise = np.random.RandomState(0).randn(*clean.shape[1:])
    return clean + torch.from_numpy(sigma / 255 * noise).float()


def score(denoiser: Denoiser, program: EPLL, clean: Tensor, sigma: float) -> float:
    """PSNR in dB."""
    return psnr(denoiser(program, with_noise(clean, sigma)).clamp(0, 1), clean)


def quality(
    prior: PatchPrior, settings: list[str], sigmas: list[float], only: int, rows: Kept
) -> Any:
    """PSNR in dB of each image, and their mean, by setting and noise."""
    images = dict(list(set12().items())[:only])
    results: dict[str, Any] = {}
    for name, sigma in itertools.product(settings, sigmas):
        program, cell = EPLL(prior, Noise(sigma / 255)), f"{name}, sigma {sigma:g}"
        started, found = time.perf_counter(), {}
        for image, clean in images.items():
            measure = partial(score, SETTINGS[name], program, clean, sigma)
            found[image] = rows.value(f"{cell}, image {image}", measure)
        results[cell] = {"mean": statistics.mean(found.values()), **found}
        seconds = time.perf_counter() - started
        print(f"{cell:<40} {results[cell]['mean']:.3f} dB   {seconds:.0f} s", flush=True)
    return results


def peer(prior: PatchPrior) -> Denoiser:
    """Deepinv's EPLL with this prior."""
    from deepinv.optim.epll import EPLL as PeerEPLL
    from deepinv.optim.utils import GaussianMixtureModel
    from deepinv.physics import Denoising

    area = prior.patch_size**2
    basis = dc_free_basis(prior.patch_size)
    mixture = GaussianMixtureModel(prior.num_components, area)
    mixture.set_weights(prior.weights.float())
    mixture.set_cov((basis @ prior.covariances() @ basis.T + 10 / area).float())
    restorer = PeerEPLL(GMM=mixture, pretrained=None, patch_size=prior.patch_size)

    def denoise(program: EPLL, noisy: Tensor) -> Tensor:
        with torch.no_grad():
            sigma = program.observation.noise_scale
            return restorer(noisy[None], Denoising(), sigma=sigma, batch_size=5000)[0]

    return denoise


def speed(prior: PatchPrior, rounds: int, with_peer: bool) -> Any:
    clean = set12()["01"]
    noisy = with_noise(clean, 25)
    program = EPLL(prior, Noise(25 / 255))
    arms = {name: SETTINGS[name] for name in ("every patch", "fast", "faster")}
    if with_peer:
        arms["deepinv"] = peer(prior)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    processor: dict[str, list[float]] = {name: [] for name in arms}
    scores: dict[str, float] = {}
    arms["fast"](program, noisy)  # its matrices are kept from now on
    for _ in range(rounds):
        for name, arm in arms.items():
            for _ in range(5 if name.startswith("fast") else 1):  # the slow ones once
                started, worked = time.perf_counter(), time.process_time()
                found = arm(program, noisy)
                seconds[name].append(time.perf_counter() - started)
                processor[name].append(time.process_time() - worked)
            scores[name] = psnr(found.clamp(0, 1), clean)
            print(name, seconds[name], scores[name], flush=True)
    results: dict[str, Any] = {
        "size": list(clean.shape[1:]),
        "seconds": medians(seconds),
        "best seconds": {name: min(values) for name, values in seconds.items()},
        "processor seconds, all threads": medians(processor),
        "psnr": scores,
    }
    if with_peer:
        results["times faster than deepinv"] = {
            name: results["seconds"]["deepinv"] / value
            for name, value in results["seconds"].items()
        }
    return results


def scaling(prior: PatchPrior) -> Any:
    """Seconds (the best of three; of one from 1024 on) and peak memory of the fast setting."""
    program, results = EPLL(prior, Noise(25 / 255)), {}
    SETTINGS["fast"](program, torch.rand(1, 256, 256))  # its matrices are kept from now on
    for side in (256, 512, 1024, 2048, 4000):
        image, times, processor = torch.rand(1, side, side), [], []
        for _ in range(3 if side < 1024 else 1):
            started, worked = time.perf_counter(), time.process_time()
            SETTINGS["fast"](program, image)
            times.append(time.perf_counter() - started)
            processor.append(time.process_time() - worked)
        seconds = min(times)
        results[f"{side} × {side}"] = {
            "seconds": seconds,
            "processor seconds, all threads": min(processor),
            "microseconds a pixel": 1e6 * seconds / side**2,
            "peak memory of the process, GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            / 1024**2,
        }
    return results


def main() -> None:
    options = parser(__doc__)
    options.add_argument("part", choices=("quality", "speed", "scaling"))
    options.add_argument("--prior", help="a patch prior; the shipped one when left out")
    options.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS)[:2])
    options.add_argument("--sigmas", nargs="+", type=float, default=[15, 25, 50])
    options.add_argument("--images", type=int, default=12, help="the first so many of Set12")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--no-peer", action="store_true")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--name", help="of the result file")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    prior = PatchPrior.load(chosen.prior) if chosen.prior else PatchPrior.shipped()
    name = chosen.name or f"epll-{chosen.part}"
    configuration = {k: v for k, v in vars(chosen).items() if k not in ("prior", "name")}
    configuration |= {
        "prior": Path(chosen.prior).name if chosen.prior else "shipped",
        "prior_sha256": hashlib.sha256(Path(chosen.prior or SHIPPED).read_bytes()).hexdigest(),
        "components": prior.num_components,
        "stride": STRIDE,
        "num_pairs": NUM_PAIRS,
        "schedule": SCHEDULE,
        "load average before": round(os.getloadavg()[0], 2),
    }
    if chosen.part == "quality":
        rows = Kept(name, {"prior": configuration["prior_sha256"]})
        results = quality(prior, chosen.settings, chosen.sigmas, chosen.images, rows)
        save(name, configuration, results)
        rows.remove()
    elif chosen.part == "speed":
        save(name, configuration, speed(prior, chosen.rounds, not chosen.no_peer))
    else:
        save(name, configuration, scaling(prior))


if __name__ == "__main__":
    main()
