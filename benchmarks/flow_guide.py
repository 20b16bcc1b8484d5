"""What is a normalizing-flow guide worth against a diagonal one, the decoder being the same?

784-400-20-400-784 on the fixed binarization of MNIST, batches of 100, Adam 2e-3 along a cosine, the
same seed and number of epochs; the guides differ in what they make of the encoder's last layer.
Test ELBO and K-sample bound. Targets: the flow's ELBO better by at least 0.5 nats, its bound no
worse.

    python benchmarks/flow_guide.py [--posteriors diagonal,full_covariance,flow] [--epochs 20]
        [--compile]
"""

from __future__ import annotations

import torch
from harness import parser, save

from inference import evaluate, fit, load_data
from ppl_models.vae import VAE


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--posteriors", default="diagonal,full_covariance,flow")
    options.add_argument("--data", default="binarized_mnist")
    options.add_argument("--epochs", type=int, default=20)
    options.add_argument("--num_particles", type=int, default=500)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--compile", action="store_true")
    args = options.parse_args()
    data, rows = load_data(args.data), {}
    for posterior in args.posteriors.split(","):
        torch.manual_seed(args.seed)
        vae = VAE(latent_dim=20, hidden_dims=(400,), likelihood="bernoulli", posterior=posterior)
        fitted = fit(
            vae,
            data,
            epochs=args.epochs,
            batch_size=100,
            learning_rate=2e-3,
            lr_schedule="cosine",
            compile=args.compile,
            seed=args.seed,
        )
        result = evaluate(fitted.program, fitted.data.test, num_particles=args.num_particles)
        rows[posterior] = {
            "test_elbo": result.elbo,
            "elbo_se": result.elbo_se,
            f"test_iwae_{args.num_particles}": result.iwae,
            "iwae_se": result.iwae_se,
            "rate": result.rate,
            "seconds_of_training": fitted.history[-1]["seconds"],
        }
        print(posterior, rows[posterior], flush=True)
    save("flow_guide", vars(args), rows)


if __name__ == "__main__":
    main()
