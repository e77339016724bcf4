"""Cost of a forward map with a loop (`pytensor.scan`), per particle.

Compares `InverseProblem.forward` on the Lotka-Volterra equations (RK4, 200 steps) with a Python
loop over the compiled function of one point. Run with ``python benchmarks/batched_loops.py``.
"""

import argparse
import time
from functools import partial

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

from pymc_ensemble import InverseProblem

STEP = 0.1


def predator_prey(x, a, b, c, d):
    """Advance the populations by one Runge-Kutta step."""

    def velocity(x):
        return pt.stack([x[0] * (a - b * x[1]), x[1] * (d * x[0] - c)])

    k1 = velocity(x)
    k2 = velocity(x + STEP / 2 * k1)
    k3 = velocity(x + STEP / 2 * k2)
    k4 = velocity(x + STEP * k3)
    return x + STEP / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def seconds(function, repeats=5):
    """Return the shortest of a few run times."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def each(function, points):
    """Call a function for one point after the other."""
    return [function(point) for point in points]


def main():
    """Print the cost per particle both ways, and their ratio."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with pm.Model() as model:
        rates = pm.LogNormal("rates", [-0.6, -3.6, -0.3, -3.7], 0.2, shape=4)
        path = pytensor.scan(
            predator_prey,
            outputs_info=[pt.constant([30.0, 4.0])],
            non_sequences=[rates[i] for i in range(4)],
            n_steps=200,
            return_updates=False,
        )
        pm.LogNormal("y", pt.log(path[9::10]), 0.25, observed=np.full((20, 2), 20.0))
    problem = InverseProblem.from_model(model)
    value = model.rvs_to_values[rates]
    single = pytensor.function([value], model.replace_rvs_by_values([pt.log(path[9::10])]))
    single.trust_input = True
    for J in (10, 100):
        U = problem.sample_prior(J, np.random.default_rng(1))
        batch, loop = seconds(partial(problem.forward, U)), seconds(partial(each, single, U))
        print(
            f"J={J}: forward {1e6 * batch / J:.0f} us, loop {1e6 * loop / J:.0f} us per particle, "
            f"ratio {batch / loop:.2f}"
        )


if __name__ == "__main__":
    main()
