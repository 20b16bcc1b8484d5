"""Train the reference run and write its metrics: ``python tests/golden/regenerate.py``.

Double precision, so that another processor or torch changes the numbers in the last digits only.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from inference import fit, load_data
from ppl_models.vae import VAE

FILE = Path(__file__).with_name("vae_digits.json")


def reference_run() -> list[dict[str, float]]:
    """Metrics of three epochs of a small VAE on digits."""
    torch.manual_seed(0)
    vae = VAE((1, 8, 8), latent_dim=4, hidden_dims=(32,), likelihood="normal_shared_scale")
    fitted = fit(
        vae,
        load_data("digits"),
        epochs=3,
        kl_warmup=1.0,
        lr_schedule="cosine",
        clip_grad_norm=50.0,
        precision="64",
        device="cpu",
        progress=False,
    )
    return [{k: v for k, v in row.items() if k != "seconds"} for row in fitted.history]


if __name__ == "__main__":
    FILE.write_text(json.dumps(reference_run(), indent=2) + "\n")
