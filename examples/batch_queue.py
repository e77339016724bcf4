"""Sampling from a script that a batch system starts again and again.

    python examples/batch_queue.py          # reads results, writes the next round, ends
    python examples/batch_queue.py --work   # does what the batch system would do: the waiting jobs

Each start takes in the results of the round before, asks the sampler for the next points, writes
one file for each of them, and ends; the state of the sampler waits in a file. The jobs of a round
can run anywhere and in any order. The script may be started at any time, also several times at
once: as long as results are missing it says so and leaves everything as it is. Several workers
share the jobs of a folder. Files appear whole or not at all, and what two processes do at the same
time is the same.

The folder that holds it all is `--folder`, by default `outputs/queue`. It is yours: the state is
read with pickle, so do not read folders of people whom you do not trust.
"""

import argparse
import io
import pickle
import random
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import numpy as np

import pymc_ensemble as pe
from pymc_ensemble.forward import Evaluations
from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman

TIMES = np.linspace(0.2, 4, 12)
DATA = 1.3 * np.exp(-0.8 * TIMES) + 0.05 * np.random.default_rng(1).normal(size=12)
ENSEMBLE_SIZE, SWEEPS, SEED = 40, 10, 1


def simulate(u):
    """The simulator: logarithms of amplitude and rate to a decaying signal."""
    return np.exp(u[0] - np.exp(u[1]) * TIMES)


def not_here(u):
    """Stand for the simulator, which this script never calls."""
    raise NotImplementedError


PROBLEM = pe.InverseProblem(not_here, prior=(np.zeros(2), np.eye(2)), data=DATA, noise=0.05)
SAMPLER = EnsembleKalman(PROBLEM, ensemble_size=ENSEMBLE_SIZE)


def advance(folder):
    """Take in the results of a round, and write the points of the next one.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    bool
        Whether the run is complete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "run.pickle"
    if kept.exists():
        run = pickle.loads(kept.read_bytes())
        if len(run.snapshots) == SWEEPS:
            return True
        results = [folder / f"{job.stem}.result.npy" for job in jobs(folder, run)]
        if missing := sum(not result.exists() for result in results):
            print(f"Round {run.round}: {missing} of {len(results)} results are missing.")
            return False
        # a job that failed leaves an array of NaN
        evaluations = Evaluations.from_outputs([np.load(result) for result in results])
        run.state, info = SAMPLER.tell(run.state, run.pending, evaluations)
        if info.snapshot is not None:
            run.snapshots.append(info.snapshot)
        elif info.complete and run.state.burned_in:
            run.state = SAMPLER.freeze(run.state)
    else:
        rng = np.random.default_rng(SEED)
        start = PROBLEM.sample_prior(ENSEMBLE_SIZE, rng)
        state = SAMPLER.start(start, redraw=True)
        run = SimpleNamespace(rng=rng, state=state, round=0, snapshots=[])
    done = len(run.snapshots) == SWEEPS
    if done:
        draws = np.stack([snapshot.U for snapshot in run.snapshots])
        save(folder / "draws.npy", draws)  # (sweep, particle, parameter)
        print(f"Complete after {run.round} rounds.")
    else:
        run.points, run.pending = SAMPLER.ask(run.state, run.rng)
        run.round += 1
        for job, point in zip(jobs(folder, run), run.points, strict=True):
            save(job, point)
        print(f"Round {run.round}: {len(run.points)} jobs are waiting in {folder}.")
    # last, and at once: who is killed before starts the same round again
    write(kept, pickle.dumps(run))
    return done


def write(path, content):
    """Write a file that others see whole, or not at all."""
    unfinished = path.with_name(f"{uuid4().hex}.unfinished")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def save(path, array):
    """Write an array in this way."""
    content = io.BytesIO()
    np.save(content, array)
    write(path, content.getvalue())


def jobs(folder, run):
    """Files of the members of a round."""
    return [folder / f"round{run.round:04}_{i:04}.npy" for i in range(len(run.points))]


def work(folder):
    """Evaluate the waiting jobs: what a batch system would do, each as a job of its own."""
    waiting = list(folder.glob("round????_????.npy"))
    random.shuffle(waiting)  # so that workers beside each other seldom do the same
    for job in waiting:
        result = folder / f"{job.stem}.result.npy"
        if result.exists():
            continue
        point = np.load(job)
        try:
            outputs = simulate(point)
        except Exception:
            outputs = np.full(len(DATA), np.nan)
        save(result, outputs)


def main():
    """Do one step."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("outputs/queue"))
    parser.add_argument("--work", action="store_true", help="evaluate the waiting jobs")
    options = parser.parse_args()
    if options.work:
        work(options.folder)
    elif advance(options.folder):
        draws = np.load(options.folder / "draws.npy").reshape(-1, 2)
        for name, column in zip(("log amplitude", "log rate"), draws.T, strict=True):
            print(f"{name}: {column.mean():.3f} +- {column.std():.3f}")


if __name__ == "__main__":
    main()
