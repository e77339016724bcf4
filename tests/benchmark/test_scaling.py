import numpy as np
import pytest

from pymc_ensemble.benchmark import scaling


def test_one_worker_does_all_the_work_itself():
    elapsed, work = scaling.makespan([5, 3, 1], 1, np.random.default_rng(1))
    assert elapsed == pytest.approx(work)


@pytest.mark.parametrize("workers", [2, 7, 50])
def test_the_clock_keeps_the_bounds_of_list_scheduling(workers):
    rng = np.random.default_rng(workers)
    for n in (1, 10, 100):
        elapsed, work = scaling.makespan([n], workers, rng)
        assert work / workers <= elapsed <= work
    # Graham: at most the mean load and the longest job together; jobs here take 1 on average
    elapsed, work = scaling.makespan([1000], workers, rng)
    assert elapsed < work / workers + 10


def test_batches_wait_for_each_other():
    study = scaling.cluster({"one batch": [400], "pairs": [2] * 200}, [1, 2, 100])
    speed = study["speed_up"]
    assert float(speed.sel(run="pairs", workers=100)) <= 2
    assert float(speed.sel(run="one batch", workers=100)) > 40
    assert float(speed.sel(run="one batch", workers=2)) == pytest.approx(2, rel=0.05)


@pytest.mark.slow
def test_own_time_by_particles_and_outputs_is_measured(monkeypatch):
    monkeypatch.setattr(scaling, "SHORTEST", 0)
    monkeypatch.setattr(scaling, "REPEATS", 1)
    by_size = scaling.ensemble_size((30, 60))
    assert (by_size["own_seconds"] >= 0).all()
    assert by_size["evaluations"].values.tolist() == sorted(by_size["evaluations"].values)
    assert (by_size["mean_error"] < 0.6).all()
    by_outputs = scaling.outputs((1, 50), size=30, dimension=3)
    assert by_outputs["own_seconds"].dims == ("K",)
    assert (by_outputs["evaluations"] > 30 * 11).all()
