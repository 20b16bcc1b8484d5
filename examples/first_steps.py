"""What does a VAE with two latent dimensions know of handwritten digits?

Trains one on 8×8 digits, says what it is worth, and draws the latent space and a walk
through it:

    python examples/first_steps.py [--epochs 60] [--out first_steps]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from inference import evaluate, fit, load_data
from inference.plotting import image_grid, latent_scatter
from inference.sampling import encode
from ppl_models.vae import VAE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("first_steps"))
    args = parser.parse_args()

    torch.manual_seed(0)
    data = load_data("digits")
    vae = VAE(data.info.x_shape, latent_dim=2, hidden_dims=(128,), likelihood="normal_shared_scale")
    fitted = fit(vae, data, epochs=args.epochs, kl_warmup=5, lr_schedule="cosine")
    result = evaluate(fitted.program, fitted.data.test.batches(200), num_particles=200)
    print(f"test ELBO {result.elbo:.2f}, IWAE-200 {result.iwae:.2f} ± {result.iwae_se:.2f} nats")

    train = next(iter(fitted.data.train.batches(2000)))
    codes = encode(fitted.program, train)["z"].cpu().numpy()
    args.out.mkdir(exist_ok=True)
    latent_scatter(codes, train["y"].cpu().numpy()).savefig(args.out / "latent_space.png", dpi=120)

    steps = torch.linspace(-2.5, 2.5, 15)
    plane = torch.cartesian_prod(steps.flip(0), steps).flip(1).to(train["x"].device)  # rows go down
    with torch.no_grad():
        images = vae.decode(plane).mean.cpu().numpy()
    image_grid(images, "decoder means over the latent plane").savefig(
        args.out / "latent_plane.png", dpi=120
    )


if __name__ == "__main__":
    main()
