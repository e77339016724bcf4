"""Models with known posteriors: the problems of the papers, and real data.

Each function returns a `GalleryModel`: a ready `pymc.Model` that also knows

- ``model.reference``: mean and standard deviation of each parameter's exact posterior,
- ``model.reference_draws``: two thousand draws of it,
- ``model.forward``: its forward map, a plain function that counts its evaluations. It is None for
  ``native=True``, a model with gradients,
- ``model.cheap``: a cheap forward map of the same outputs, where there is one,
- ``model.truth``: the parameters behind synthetic data,
- ``model.description``: what it teaches, in one sentence.
"""

from pymc_ensemble.gallery.darcy import darcy
from pymc_ensemble.gallery.decay import decay
from pymc_ensemble.gallery.fields import cox_process, deconvolution, line_flow
from pymc_ensemble.gallery.influenza import influenza
from pymc_ensemble.gallery.initial_state import initial_state
from pymc_ensemble.gallery.linear import linear_gaussian, linear_multiscale
from pymc_ensemble.gallery.lorenz63 import lorenz63
from pymc_ensemble.gallery.lorenz96 import lorenz96
from pymc_ensemble.gallery.lynx_hare import lynx_hare
from pymc_ensemble.gallery.model import GalleryModel
from pymc_ensemble.gallery.multimodal import bimodal, four_modes
from pymc_ensemble.gallery.regression import poisson_regression, smooth_nonlinear
from pymc_ensemble.gallery.two_grids import burgers, coarse_darcy
from pymc_ensemble.gallery.two_time_steps import lorenz63_modes, outbreak, predators_and_prey

__all__ = [
    "GalleryModel",
    "bimodal",
    "burgers",
    "coarse_darcy",
    "cox_process",
    "darcy",
    "decay",
    "deconvolution",
    "four_modes",
    "influenza",
    "initial_state",
    "line_flow",
    "linear_gaussian",
    "linear_multiscale",
    "lorenz63",
    "lorenz63_modes",
    "lorenz96",
    "lynx_hare",
    "outbreak",
    "poisson_regression",
    "predators_and_prey",
    "smooth_nonlinear",
]
