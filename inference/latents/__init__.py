"""Exploring a latent space: codes, walks, grids, attribute vectors, neighbours.

Works on any program whose model can be run without data (``size``): latents are given by site
name, conditions such as labels are further fields. The pictures are in
:mod:`inference.plotting`, the command is ``ppl explore``.
"""

from inference.latents.attributes import (
    add_attribute,
    analogy,
    attribute_vector,
)
from inference.latents.codes import (
    LatentSite,
    choose_site,
    encode_all,
    latent_sites,
    resynthesize,
    site_for,
)
from inference.latents.grids import manifold, vary_condition, vary_latent
from inference.latents.levels import levels_of, resample
from inference.latents.neighbours import Neighbours, nearest_training
from inference.latents.paths import interpolate, lerp, slerp, traverse
from inference.sampling import decode, encode

__all__ = [
    "LatentSite",
    "Neighbours",
    "add_attribute",
    "analogy",
    "attribute_vector",
    "choose_site",
    "decode",
    "encode",
    "encode_all",
    "interpolate",
    "latent_sites",
    "lerp",
    "levels_of",
    "manifold",
    "nearest_training",
    "resample",
    "resynthesize",
    "site_for",
    "slerp",
    "traverse",
    "vary_condition",
    "vary_latent",
]
