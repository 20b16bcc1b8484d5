"""Pictures: arrays in, a matplotlib ``Figure`` out."""

from inference.plotting.codebook import codebook_figure
from inference.plotting.curves import learning_curves, mode_search, rate_distortion
from inference.plotting.disentanglement import traversals_with_information
from inference.plotting.estimators import (
    cost_frontier,
    estimator_bias,
    estimator_snr,
    estimator_variance,
    training_curves,
)
from inference.plotting.gaps import gap_figure
from inference.plotting.grids import animated, labelled_grid, labelled_grids
from inference.plotting.images import image_grid, reconstruction_grid, side_by_side, tile
from inference.plotting.latents import (
    latent_scatter,
    posterior_against_prior,
    principal_plane,
)
from inference.plotting.mixtures import component_means, mixture_contours_2d, mixture_density_1d
from inference.plotting.nuts import posterior_intervals
from inference.plotting.posterior_checks import (
    dimension_figure,
    evidence_figure,
    loo_figure,
    pareto_figure,
    predictive_figure,
)
from inference.plotting.rates import rate_sites, site_rates
from inference.plotting.reliability import reliability_diagram
from inference.plotting.sbc import ecdf_differences, rank_histograms

__all__ = [
    "animated",
    "codebook_figure",
    "component_means",
    "cost_frontier",
    "dimension_figure",
    "ecdf_differences",
    "estimator_bias",
    "estimator_snr",
    "estimator_variance",
    "evidence_figure",
    "gap_figure",
    "image_grid",
    "labelled_grid",
    "labelled_grids",
    "latent_scatter",
    "learning_curves",
    "loo_figure",
    "mixture_contours_2d",
    "mixture_density_1d",
    "mode_search",
    "pareto_figure",
    "posterior_against_prior",
    "posterior_intervals",
    "predictive_figure",
    "principal_plane",
    "rank_histograms",
    "rate_distortion",
    "rate_sites",
    "reconstruction_grid",
    "reliability_diagram",
    "side_by_side",
    "site_rates",
    "tile",
    "training_curves",
    "traversals_with_information",
]
