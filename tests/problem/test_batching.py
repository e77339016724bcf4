"""Functions of one point, made into functions of all points at once."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

from pymc_ensemble.problem.batching import BatchFunction
from pymc_ensemble.problem.graphs import gradients, substitute

PRIORS = {
    "simplex": lambda: pm.Dirichlet("w", np.full(4, 2.0)),
    "zero sum": lambda: pm.ZeroSumNormal("w", shape=4),
    "ordered": lambda: pm.Normal("w", shape=3, transform=pm.distributions.transforms.ordered),
}


@pytest.mark.parametrize("prior", PRIORS)
def test_gradients_that_split_their_coordinates_take_all_points_at_once(prior):
    """By sizes that the types of the coordinates tell."""
    with pm.Model() as model:
        PRIORS[prior]()
    u = pt.vector("u", shape=(3,))
    [density] = substitute([model.logp()], {model.value_vars[0]: u})
    function = BatchFunction([u], gradients(-density, [u]))
    points = np.random.default_rng(1).standard_normal((6, 3))
    [batch] = function(points)
    assert function._all is not None
    np.testing.assert_allclose(batch, [function.one(p)[0] for p in points], rtol=1e-12, atol=1e-12)
