"""Two grids of codes against one: reconstructions of faces, 64×64 (Olivetti).

VQ-VAE-2 with grids 8×8 and 16×16 and two codebooks of 256 codes (2,560 bits an image), against
VQ-VAEs with one grid 16×16: one with as many code vectors in all (512; 2,304 bits), one that has as
many parameters too, and one with as many bits an image (1,024 codes). 320 faces to train, 40 to
test, eight and one of each person. Mean squared error of the pixels in [0, 1] on test faces; Muon,
cosine schedule, the last epoch. An arm that is measured is kept on disk at once.

    python benchmarks/vqvae_faces.py --epochs 60 --seeds 3
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import Kept, parser, save

from inference import evaluate, fit, load_data
from inference.checkpoint import write_atomically
from inference.plotting import labelled_grid
from inference.report import png
from inference.sampling import reconstruct
from ppl_models.quantized import QuantizedProgram
from ppl_models.vqvae import VQVAE
from ppl_models.vqvae2 import VQVAE2

OPTIONS: dict[str, Any] = {"commitment_cost": 2.0, "decay": 0.95}
WIDER = {"hidden_channels": 110}
"""About as many parameters as two grids have with 64."""
ARMS: dict[str, Callable[[], QuantizedProgram]] = {
    "two grids, 2 × 256 codes": lambda: VQVAE2((1, 64, 64), 256, **OPTIONS),
    "one grid, 512 codes": lambda: VQVAE((1, 64, 64), 512, **OPTIONS),
    "one grid, 512 codes, wider": lambda: VQVAE((1, 64, 64), 512, **OPTIONS, **WIDER),
    "one grid, 1024 codes": lambda: VQVAE((1, 64, 64), 1024, **OPTIONS),
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--epochs", type=int, default=60)
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--pictures", type=Path, help="PNG of test faces and reconstructions")
    args = options.parse_args()
    data = load_data("olivetti_faces")
    training: dict[str, Any] = {"epochs": args.epochs, "batch_size": 16, "learning_rate": 4e-3}
    training |= {"optimizer": "Muon", "lr_schedule": "cosine", "keep": "last"}
    kept = Kept("vqvae_faces", training | {"seeds": args.seeds, **OPTIONS})
    shown: dict[str, torch.Tensor] = {}

    def measure(name: str, seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        program = ARMS[name]()
        fitted = fit(program, data, **training, seed=seed, progress=False)
        batch = next(iter(fitted.data.test.batches(40)))
        again = reconstruct(fitted.program, batch)["x"]
        shown[name] = again[:8]
        found = evaluate(fitted.program, fitted.data.test)
        return {
            "mse": float((again - batch["x"]).square().mean()),
            "bits_per_image": found.rate / torch.tensor(2.0).log().item(),
            "perplexity": found.perplexity,
            "unused_on_test": found.dead_codes,
            "parameters": sum(p.numel() for p in program.parameters()),
        }

    rows: dict[str, Any] = {
        f"{name}, seed {seed}": kept.value(f"{name}, seed {seed}", partial(measure, name, seed))
        for name in ARMS
        for seed in range(args.seeds)
    }
    save("vqvae_faces", kept.record["configuration"], rows)
    kept.remove()
    if args.pictures:
        faces = next(iter(data.test.batches(40)))["x"][:8]
        sheet = torch.stack([faces, *shown.values()]).numpy()
        write_atomically(args.pictures, png(labelled_grid(sheet, ["faces", *shown])))


if __name__ == "__main__":
    main()
