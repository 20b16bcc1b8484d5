"""Drawing grids of codes position by position: with what was computed kept, and without.

Both networks draw 16×16 grids of 128 codes from the same seed, by their sampler (a PixelCNN keeps
rows and columns of its layers, a Transformer keys and values) and by a whole pass a position. The
tokens must be the same; the arms take turns.

    python benchmarks/sampling.py [--size 16] [--num 8] [--codes 128] [--rounds 2] [--threads 1]
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

import torch
from harness import interleave, medians, parser, ratios, save
from torch import Tensor

from ppl_models.distributions import AutoregressiveGrid
from ppl_models.nets import CausalTransformer, GatedPixelCNN


def draws(args: Namespace) -> dict[str, dict[str, Callable[[], Tensor]]]:
    """For each network, grids drawn with and without its cache."""
    torch.manual_seed(0)
    grid = (args.size, args.size)
    networks = {
        "pixelcnn": GatedPixelCNN(args.codes, channels=64, num_layers=6),
        "transformer": CausalTransformer(args.codes, grid, dim=128, num_layers=4),
    }

    def by(name: str, cached: bool) -> Callable[[], Tensor]:
        codes = AutoregressiveGrid(
            networks[name].eval(), grid, batch_shape=(args.num,), cached=cached
        )

        def draw() -> Tensor:
            torch.manual_seed(1)
            return codes.sample()

        return draw

    return {name: {"cached": by(name, True), "whole passes": by(name, False)} for name in networks}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--size", type=int, default=16)
    options.add_argument("--num", type=int, default=8)
    options.add_argument("--codes", type=int, default=128)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--threads", type=int, default=1)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    results = {}
    for name, arms in draws(args).items():
        same = bool(torch.equal(*(draw() for draw in arms.values())))
        timed = interleave(arms, args.rounds, 1)
        results[name] = {
            "seconds": {arm: round(value, 3) for arm, value in medians(timed).items()},
            "times_as_fast": round(1 / ratios(timed, "whole passes")["cached"], 1),
            "same_tokens": same,
        }
    save("sampling", vars(args), results)


if __name__ == "__main__":
    main()
