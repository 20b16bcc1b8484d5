"""A thousand draws for a thousand data of the demo's VAE, written to netCDF: seconds and memory.

The VAE is that of ``make demo`` (two hidden layers of 500, Bernoulli pixels of 28×28), as it is
made: what it has learned costs no time. All groups are written; the new images are bits, a byte
each, 784 MB. Memory is the process's peak, with all that is imported, and what it was before.

    python benchmarks/to_arviz.py [--draws 1000] [--data 1000] [--threads 2]
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import torch
from harness import parser, save

from inference import load_data, to_arviz
from ppl_models.vae import VAE


def peak() -> int:
    """Of this process's memory so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--draws", type=int, default=1000)
    options.add_argument("--data", type=int, default=1000)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--max_rows", type=int, default=None)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    data = load_data("mnist5k", binarize="dynamic")
    batch = next(iter(data.train.batches(args.data)))
    vae = VAE((1, 28, 28), hidden_dims=(500, 500), likelihood="bernoulli")
    to_arviz(vae, {k: v[:10] for k, v in batch.items()}, 10, max_rows=args.max_rows)
    before = peak()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "draws.nc"
        wall, cpu = time.perf_counter(), time.process_time()
        to_arviz(vae, batch, args.draws, out=path, max_rows=args.max_rows)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        results = {
            "seconds": round(wall, 2),
            "cpu_seconds": round(cpu, 2),
            "peak_mb": peak(),
            "peak_mb_before": before,
            "file_mb": path.stat().st_size // 2**20,
        }
    save("to_arviz", vars(args), results)


if __name__ == "__main__":
    main()
