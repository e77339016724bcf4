"""When the paths of particles have mixed."""

import numpy as np
import pytest

from pymc_ensemble.samplers.multifidelity.exploration import path_times


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8])
def test_length_of_autoregressive_paths(correlation):
    """Of S steps: the variance of the mean of a path is known in closed form."""
    rng, S, J = np.random.default_rng(1), 30, 4000
    x = [rng.standard_normal((J, 1))]
    for _ in range(S - 1):
        noise = np.sqrt(1 - correlation**2) * rng.standard_normal((J, 1))
        x.append(correlation * x[-1] + noise)
    lags = np.arange(1, S)
    times = S / (1 + 2 * ((1 - lags / S) * correlation**lags).sum())
    # a variance of J values has a relative error of sqrt(2 / J)
    assert path_times(np.stack(x)) == pytest.approx(times, rel=4.5 * np.sqrt(2 / J))


def test_particles_that_stay_in_their_mode_have_not_mixed():
    rng = np.random.default_rng(1)
    mode = np.repeat([-5.0, 5.0], 50)[None, :, None]
    assert path_times(mode + rng.standard_normal((100, 100, 1))) < 1.1
