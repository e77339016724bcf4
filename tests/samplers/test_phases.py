import numpy as np

from pymc_ensemble.samplers.linearization import Anomalies
from pymc_ensemble.samplers.phases import STANDSTILLS, Standstill

REST = np.random.default_rng(0).standard_normal((50, 2))


def after(ensembles, time):
    rest = Standstill()
    for U in ensembles:
        rest = rest.after(Anomalies.of(U), time)
    return rest


def test_rest_takes_relaxation_times():
    """One relaxation time a comparison, however small the steps are."""
    assert after([REST] * (1 + STANDSTILLS), 1.0).done
    assert not after([REST] * (1 + 10 * STANDSTILLS), 0.05).done
    assert after([REST] * (2 + 20 * STANDSTILLS), 0.05 + 1e-9).done


def test_an_ensemble_that_drifts_is_not_at_rest():
    drifting = [REST + np.array([0.8 * k, 0.0]) for k in range(20)]
    assert not after(drifting, 1.0).done
    growing = [1.5**k * REST for k in range(20)]
    assert not after(growing, 1.0).done
