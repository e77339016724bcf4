"""Two models: what a certified posterior costs, what other ways cost, and false certificates.

    python benchmarks/two_models.py bounds --seeds 10     the table of docs/two_models.md
    python benchmarks/two_models.py compare --seeds 2     beside other ways
    python benchmarks/two_models.py wrong --seeds 200     pairs in turn, in rotated coordinates

Evaluations of both models are counted outside of the sampler. Errors are those of the worst mean,
in posterior standard deviations, and of the worst standard deviation, relative to it; of
coordinates with two modes, those of their absolute values. Runs are kept in a file, one a line: an
interrupted command goes on, and more seeds can be added.
"""

import argparse
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from time import process_time

import numpy as np

import pymc_ensemble as pe
from pymc_ensemble import gallery
from pymc_ensemble.problem.cheap_model import CheapModel, stand_ins
from pymc_ensemble.samplers import proposals
from pymc_ensemble.samplers.gaussian_process.growing import GrowingGaussianProcess
from pymc_ensemble.samplers.kalman.sampler import EnsembleKalman
from pymc_ensemble.samplers.multifidelity.sampler import Multifidelity, learned

WRONG = 0.3  # error with which a certificate is a false one
CHAINS, SWEEPS = 4, 20
WORKERS = 8  # of both simulators, for the time by the clock
CHEAPER = 100  # by so much the cheap simulator is faster
MOST = 2500  # fine evaluations of samplers of the fine model
GOOD = 0.1  # error up to which they have to come
TRIES = 10  # checks of it on the way

PAIRS: dict[str, Callable] = {
    "predators and prey": gallery.predators_and_prey,
    "Burgers": gallery.burgers,
    "Darcy, 8 x 8": gallery.coarse_darcy,
    "Darcy, 4 x 4": partial(gallery.coarse_darcy, 4),
    "Lorenz, two modes": gallery.lorenz63_modes,
    "counts, dispersion": gallery.outbreak,
    "garbage": partial(gallery.predators_and_prey, 2.1),
}


class Turned:
    """An inverse problem in rotated coordinates, and its cheap model.

    Its evaluations are counted, and the rounds of each model.
    """

    density_only = False

    def __init__(self, problem, cheap, rotation):
        self.problem, self.models = problem, (problem, cheap)
        rng = np.random.default_rng(0)
        draws = problem.sample_prior(4000, rng)
        self.mean, self.scale = draws.mean(0), draws.std(0)
        d = self.dimension = problem.dimension
        self.turn = np.linalg.qr(np.random.default_rng(rotation).standard_normal((d, d)))[0]
        if not rotation:
            self.turn = np.eye(d)
        self.counts, self.rounds = [0, 0], [[], []]

    def back(self, z):
        """Coordinates of the problem."""
        return self.mean + self.scale * (z @ self.turn.T)

    def evaluate(self, z, cheap=False):
        """Evaluate the fine or the cheap model."""
        self.counts[cheap] += len(z)
        if len(z):
            self.rounds[cheap].append(len(z))
        return self.models[cheap].evaluate(self.back(z))

    def sample_prior(self, size, rng):
        """Draws of the prior."""
        return ((self.problem.sample_prior(size, rng) - self.mean) / self.scale) @ self.turn

    def prior_potential(self, z):
        """Negative log prior density."""
        return self.problem.prior_potential(self.back(z))

    def prior_gradient(self, z):
        """Its gradient."""
        return (self.problem.prior_gradient(self.back(z)) * self.scale) @ self.turn

    def prior_hessian(self, z):
        """Its Hessian at one point."""
        root = self.scale[:, None] * self.turn
        return root.T @ self.problem.prior_hessian(self.back(z[None])[0]) @ root

    def __getattr__(self, name):
        return getattr(self.problem, name)


@dataclass
class Pair:
    """A pair of models with what is known about its posterior."""

    problem: pe.InverseProblem
    cheap: CheapModel
    mean: np.ndarray
    sd: np.ndarray
    folds: bool

    def features(self, U):
        """Coordinates whose moments are compared."""
        return np.column_stack([np.abs(U[:, 0]), U[:, 1:]]) if self.folds else U

    def errors(self, U, weights=None):
        """Errors of means and standard deviations, and of the mass of a mode."""
        f = self.features(U)
        weights = np.full(len(U), 1 / len(U)) if weights is None else weights
        mean = weights @ f
        sd = np.sqrt(weights @ (f - mean) ** 2)
        found = [np.abs((mean - self.mean) / self.sd).max(), np.abs(sd / self.sd - 1).max()]
        if self.folds:
            found.append(abs(weights @ (U[:, 0] > 0) - 0.5))
        return [round(float(e), 3) for e in found]


@cache
def pair(name):
    """Pair of this name."""
    model = PAIRS[name]()
    with model:
        problem = pe.InverseProblem.from_model()
    cheap = CheapModel(model, stand_ins(model, model.cheap))
    folds = name.startswith("Lorenz")
    names = list(model.initial_point())
    draws = [model.reference_draws[n].values.reshape(2000, -1) for n in names]
    if folds:
        draws[0] = np.abs(draws[0])
        f = np.column_stack(draws)
        return Pair(problem, cheap, f.mean(0), f.std(0), folds)
    moments = [model.reference[n].values.reshape(4, -1)[:2] for n in names]
    mean, sd = np.concatenate(moments, axis=1)
    return Pair(problem, cheap, mean, sd, folds)


def advance(sampler, state, turned, rng):
    """One round of a sampler."""
    points, pending = sampler.ask(state, rng)
    asks_cheap = getattr(sampler, "asks_cheap", lambda state: False)(state)
    return sampler.tell(state, pending, turned.evaluate(points, cheap=asks_cheap))


def two_models(name, seed, rotation=0, adjust=False, chains=CHAINS, **options):
    """A run of the multi-fidelity sampler."""
    this, rng, began = pair(name), np.random.default_rng([seed, rotation]), process_time()
    turned = Turned(this.problem, this.cheap, rotation)
    sampler = Multifidelity(turned, adjust=adjust, **options)
    state = sampler.start(turned.sample_prior(sampler.start_size, rng), redraw=True)
    while state.phase in ("start", "burn-in"):
        state, _ = advance(sampler, state, turned, rng)
    known, draws, begun = learned(state), [], state
    learning = tuple(turned.counts)
    for number in range(chains):
        rng, state, sweeps = np.random.default_rng([seed, rotation, number]), begun, []
        while len(sweeps) < SWEEPS:
            state, info = advance(sampler, state, turned, rng)
            if info.snapshot is not None:
                sweeps.append(info.snapshot.U)
        draws += sweeps
    return record(
        this,
        turned,
        np.concatenate(draws),
        began,
        certificate=round(float(known.certificate.limit), 4),
        certified=bool(known.converged),
        fine=learning[0],
        cheap=learning[1],
    )


def record(this, turned, z, began, weights=None, **more):
    """What is kept of a run; its time by the clock is that of this process and the simulators."""
    own, clock = process_time() - began, {}
    for cost in (1.0, 0.001):
        each = (cost, cost / CHEAPER)
        rounds = zip(turned.rounds, each, strict=True)
        simulated = sum(math.ceil(n / WORKERS) * c for counts, c in rounds for n in counts)
        clock[f"{cost:g} s"] = round(own + simulated, 2)
    found = this.errors(turned.back(z), weights)
    fine, cheap = turned.counts
    return {
        "error": found,
        "fine": fine,
        "cheap": cheap,
        "cpu": round(own, 2),
        "clock": clock,
    } | more


# -- other ways -----------------------------------------------------------------------------------


def ensemble_kalman(name, seed, cheap=False):
    """The exact ensemble Kalman sampler, until its draws so far are right."""
    this, rng, began = pair(name), np.random.default_rng(seed), process_time()
    turned = Turned(this.problem, this.cheap, 0)
    sampler = EnsembleKalman(turned, adjust=True)
    state = sampler.start(turned.sample_prior(sampler.size, rng), redraw=True)
    sweeps = []
    while turned.counts[0] < MOST:
        state, info = advance(sampler, state, turned, rng)
        if info.snapshot is not None:
            sweeps.append(info.snapshot.U)
            if max(this.errors(turned.back(np.concatenate(sweeps)))) <= GOOD:
                break
    z = np.concatenate(sweeps) if sweeps else state.evaluated.U
    told = record(this, turned, z, began)
    return told | {"certified": max(told["error"]) <= GOOD}


def gaussian_process(name, seed):
    """The Gaussian process sampler on the fine model, until it is certified."""
    this, rng, began = pair(name), np.random.default_rng(seed), process_time()
    turned = Turned(this.problem, this.cheap, 0)
    sampler = GrowingGaussianProcess(turned, max_evaluations=600)
    state = sampler.start(sampler.first_design(rng), redraw=True)
    while not state.burned_in:
        state, _ = advance(sampler, state, turned, rng)
    sure, sweeps = state.converged, []
    for _ in range(SWEEPS):
        state, info = advance(sampler, state, turned, rng)
        sweeps.append(info.snapshot.U)
    return record(this, turned, np.concatenate(sweeps), began, certified=bool(sure))


def cheap_posterior(this, turned, rng):
    """Draws of the posterior of the cheap model, and the ensemble that made them."""
    sampler = EnsembleKalman(turned, adjust=True)
    state = sampler.start(turned.sample_prior(sampler.size, rng), redraw=True)
    sweeps = []
    while len(sweeps) < SWEEPS:
        points, pending = sampler.ask(state, rng)
        state, info = sampler.tell(state, pending, turned.evaluate(points, cheap=True))
        if info.snapshot is not None:
            sweeps.append(info.snapshot.U)
    return np.concatenate(sweeps)


def losses(turned, z, cheap=False):
    """Negative log likelihood at points."""
    found = turned.evaluate(z, cheap=cheap)
    loss = np.where(found.failed, np.inf, turned.loss(found.outputs))
    return np.where(np.isnan(loss), np.inf, loss)


def importance(name, seed, size=400):
    """Importance weights of draws of the cheap posterior."""
    this, rng, began = pair(name), np.random.default_rng(seed), process_time()
    turned = Turned(this.problem, this.cheap, 0)
    draws = cheap_posterior(this, turned, rng)
    z = draws[rng.choice(len(draws), size, replace=False)]
    log_weights = losses(turned, z, cheap=True) - losses(turned, z)
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    return record(this, turned, z, began, weights, ess=round(1 / float((weights**2).sum()), 1))


def delayed_acceptance(name, seed, walkers=40, moves=12):
    """Chains on the cheap model, and a test with the fine one at the ends of some moves."""
    this, rng, began = pair(name), np.random.default_rng(seed), process_time()
    turned = Turned(this.problem, this.cheap, 0)
    draws = cheap_posterior(this, turned, rng)
    z = draws[rng.choice(len(draws), walkers, replace=False)]
    partners, root = draws, np.linalg.cholesky(np.cov(draws.T).reshape(turned.dimension, -1))
    cheap, fine, kept, rates = losses(turned, z, True), losses(turned, z), [], []
    while turned.counts[0] < 1500:
        new, new_cheap = z.copy(), cheap.copy()
        for _ in range(moves):
            proposed = proposals.differential_evolution(new, partners, root, rng)
            loss = losses(turned, proposed, True)
            before, after = (
                v + turned.prior_potential(p) for v, p in ((new_cheap, new), (loss, proposed))
            )
            accepted = np.log(rng.random(walkers)) < before - after
            new[accepted], new_cheap[accepted] = proposed[accepted], loss[accepted]
        new_fine = losses(turned, new)
        alpha = proposals.acceptance(fine - cheap, new_fine - new_cheap, np.zeros(walkers))
        accepted = rng.random(walkers) < alpha
        z, cheap, fine = (
            np.where(accepted[:, None], new, z),
            np.where(accepted, new_cheap, cheap),
            np.where(accepted, new_fine, fine),
        )
        kept.append(z)
        rates.append(alpha.mean())
    half = np.concatenate(kept[len(kept) // 2 :])
    return record(this, turned, half, began, acceptance=round(float(np.mean(rates)), 2))


WAYS = {
    "two models, one chain": partial(two_models, chains=1),
    "ensemble Kalman, fine model": ensemble_kalman,
    "Gaussian process, fine model": gaussian_process,
    "importance weights": importance,
    "delayed acceptance": delayed_acceptance,
    "two models, adjusted": partial(two_models, adjust=True, chains=1),
}


# -- runs and tables ------------------------------------------------------------------------------


def runs(path, jobs):
    """Runs of jobs (key, function), those in the file taken from there."""
    known = {}
    if path.exists():
        lines = path.read_text("utf-8").splitlines()
        known = {line["key"]: line for line in map(json.loads, lines)}
    for key, function in jobs:
        if key not in known:
            try:
                found = function()
            except Exception as error:  # a run that ends is a result, too
                found = {"failure": f"{type(error).__name__}: {error}"[:200]}
            known[key] = {"key": key, **found}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(known[key]) + "\n")
            print(json.dumps(known[key]), flush=True)
    return [known[key] for key, _ in jobs]


def told(found):
    """Row of a table: medians over runs, where one without a certificate has cost infinitely."""
    good = [run for run in found if "failure" not in run]
    if not good:
        return f"| {len(found)} runs failed |"
    fine = np.median([run["fine"] if run.get("certified", True) else np.inf for run in good])
    errors = np.median([run["error"] for run in good], axis=0)
    certified = sum(run.get("certified", False) for run in good)
    cells = [f"{fine:g}", "/".join(f"{e:.2f}" for e in errors), f"{certified} of {len(found)}"]
    cells += [f"{np.median([run['cheap'] for run in good]):.0f}"]
    cells += [f"{np.median([run['clock'][cost] for run in good]):.3g}" for cost in good[0]["clock"]]
    return "| " + " | ".join(cells) + " |"


def main():
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["bounds", "compare", "wrong"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--pairs", nargs="*", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--file", type=Path, default=Path("two_models.jsonl"))
    options = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)  # of simulators that blow up
    if options.what == "wrong":
        jobs = []
        for seed in range(options.seeds):
            name = options.pairs[seed % len(options.pairs)]
            key = f"wrong: {name}, seed {seed}, turned {seed}"
            jobs.append((key, partial(two_models, name, 1000 + seed, 1 + seed)))
        found = [run for run in runs(options.file, jobs) if run.get("certified")]
        false = [run for run in found if max(run["error"][:2]) > WRONG]
        print(f"{len(found)} of {len(jobs)} runs certified, {len(false)} of them wrongly")
        for run in false:
            print(run)
        return
    ways = {"two models": two_models} if options.what == "bounds" else WAYS
    print("| pair | way | fine | error | certified | cheap | clock, 1 s | clock, 1 ms |")
    table = []
    for name in options.pairs:
        for way, function in ways.items():
            jobs = [
                (f"{way}: {name}, seed {seed}", partial(function, name, seed))
                for seed in range(options.seeds)
            ]
            table.append(f"| {name} | {way} {told(runs(options.file, jobs))}")
    print("\n".join(table))


if __name__ == "__main__":
    main()
