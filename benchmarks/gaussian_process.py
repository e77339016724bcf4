"""Figures of the ensemble Gaussian process sampler: what it costs, and what adjusting brings.

    python benchmarks/gaussian_process.py [speed] [outputs] [adjusted]

``speed``: time of a refit with 5000 evaluations, and of a move of 1000 particles; ``outputs``: cost
of 100 outputs compared with 5; ``adjusted``: error of ``adjust=True`` at equal evaluations, beside
the adjusted ensemble Kalman sampler. All on one core.
"""

import argparse
from time import process_time

import numpy as np
from threadpoolctl import threadpool_limits

import pymc_ensemble as pe
from pymc_ensemble import gallery
from pymc_ensemble.samplers.gaussian_process.regression import GaussianProcess
from pymc_ensemble.samplers.gaussian_process.sampler import EnsembleGaussianProcess
from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman

SEEDS = range(10)


def best_of(repeats, function):
    """Shortest processor time of several calls, in milliseconds."""
    times = []
    for _ in range(repeats):
        start = process_time()
        function()
        times.append(process_time() - start)
    return 1000 * min(times)


def speed():
    """Warm refit of losses, and a move on the fit."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5000, 2))
    losses = ((x**2).sum(1) + np.sin(3 * x[:, 0]) + rng.standard_normal(5000))[:, None]
    process = GaussianProcess.fit(x, losses, "quadratic", rng)

    def refit():
        GaussianProcess.fit(x, losses, "quadratic", rng, warm=process.hyperparameters)

    def move():
        values, pull_back = process.evaluate(points)
        pull_back(np.ones_like(values))

    points = rng.standard_normal((1000, 2))
    print(f"warm refit, 5000 evaluations: {best_of(5, refit):.0f} ms")
    print(
        f"move of 1000 particles, {len(process.inducing)} inducing points: "
        f"{best_of(20, move):.1f} ms"
    )


def run(sampler, problem, U, rng, evaluations):
    """Draws of a run until so many evaluations were made, for samplers that test each draw."""
    state, used, kept = sampler.start(U, redraw=True), 0, []
    while True:
        points, pending = sampler.ask(state, rng)
        if used + len(points) > evaluations or (not len(points) and len(kept) >= 20):
            return np.concatenate(kept), used
        used += len(points)
        state, info = sampler.tell(state, pending, problem.evaluate(points))
        if info.snapshot is not None:
            kept.append(info.snapshot.U)


def outputs():
    """Time of a whole run with 5 and with 100 outputs of the same two parameters."""
    for K in (5, 100):
        t = np.linspace(0.2, 4, K)
        problem = pe.InverseProblem(
            lambda U, t=t: np.exp(U[:, :1]) * np.exp(-np.exp(U[:, 1:]) * t),
            prior=(np.zeros(2), np.eye(2)),
            data=1.3 * np.exp(-0.8 * t),
            noise=0.05,
            vectorized=True,
        )

        def whole_run(problem=problem):
            rng = np.random.default_rng(1)
            U = problem.sample_prior(100, rng)
            run(EnsembleGaussianProcess(problem, ensemble_size=100), problem, U, rng, 10_000)

        print(f"a run with {K} outputs: {best_of(3, whole_run):.0f} ms")


def adjusted():
    """Errors of mean and sd (root mean square over the parameters), medians over seeds."""
    models = {
        "decay, noise 0.3": (gallery.decay(noise_sd=0.3), 4100),
        "smooth nonlinear": (gallery.smooth_nonlinear(), 4100),
        "Poisson regression": (gallery.poisson_regression(), 4100),
    }
    for name, (model, evaluations) in models.items():
        problem = pe.InverseProblem.from_model(model)
        reference = [
            np.concatenate([np.ravel(v.sel(statistic=k)) for v in model.reference.values()])
            for k in ("mean", "sd")
        ]
        for label, make in (
            ("surrogate", lambda p: EnsembleGaussianProcess(p, ensemble_size=100, adjust=True)),
            ("Kalman", lambda p: EnsembleKalman(p, ensemble_size=100, adjust=True)),
        ):
            errors = []
            for seed in SEEDS:
                rng, sampler = np.random.default_rng(seed), make(problem)
                U, _ = run(sampler, problem, problem.sample_prior(100, rng), rng, evaluations)
                mean, sd = reference
                shift, ratio = (U.mean(0) - mean) / sd, U.std(0) / sd - 1
                errors.append([np.sqrt((shift**2).mean()), np.sqrt((ratio**2).mean())])
            mean, sd = np.median(errors, axis=0)
            print(f"{name}, {evaluations} evaluations, {label}: mean {mean:.3f}, sd {sd:.3f}")


PARTS = {f.__name__: f for f in (speed, outputs, adjusted)}


def main():
    """Print the parts named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    with threadpool_limits(limits=1):
        for part in parser.parse_args().parts or PARTS:
            PARTS[part]()


if __name__ == "__main__":
    main()
