"""Pictures: arrays in, a matplotlib ``Figure`` out."""

from inference.plotting.curves import learning_curves
from inference.plotting.images import image_grid, reconstruction_grid, tile
from inference.plotting.latents import latent_scatter, principal_plane

__all__ = [
    "image_grid",
    "latent_scatter",
    "learning_curves",
    "principal_plane",
    "reconstruction_grid",
    "tile",
]
