"""Test doubles: a sampler with a known law, and a problem whose evaluations can be made to fail."""

from dataclasses import dataclass, replace

import numpy as np
import pymc as pm

from pymc_ensemble.forward.evaluation import Evaluations
from pymc_ensemble.samplers.ensemble import Ensemble, EnsembleFailure, Info, Origin, Snapshot
from pymc_ensemble.step_methods.base import EnsembleStep


def gaussian_model(d=2):
    """A model whose posterior does not matter: the toy sampler draws from N(0, 1)."""
    with pm.Model() as model:
        x = pm.Normal("x", shape=d)
        pm.Normal("y", x, 1.0, observed=np.zeros(d))
    return model


class ToyProblem:
    """The identity as forward map; `evaluate` calls a hook first, which may raise."""

    def __init__(self, model, vars, hook):
        point = model.initial_point()
        self.coordinate_names = tuple(
            v.name if point[v.name].ndim == 0 else f"{v.name}[{i}]"
            for v in vars
            for i in range(point[v.name].size)
        )
        self.dimension = len(self.coordinate_names)
        self.hook = hook

    @classmethod
    def from_model(cls, model, vars, *, compile_kwargs=None):
        return cls(model, vars, compile_kwargs)

    def sample_prior(self, size, rng):
        return rng.normal(size=(size, self.dimension))

    def evaluate(self, U, seed=None):
        outputs = np.array(U)
        if self.hook is not None:
            outputs = self.hook(outputs)
        return Evaluations.from_outputs(outputs)

    def loss(self, Z):
        return 0.5 * (Z**2).sum(axis=1)

    def prior_potential(self, U):
        return np.full(len(U), 0.5 * U.shape[1] * np.log(2 * np.pi))


@dataclass(frozen=True)
class ToyState:
    start: np.ndarray
    ensemble: Ensemble | None = None
    iteration: int = 0
    burned_in: bool = False
    converged: bool = False
    moved: bool = False  # first half of a sweep is done


class ToySampler:
    """Autoregressive particles with the law N(0, 1): ``u' = r u + sqrt(1 - r**2) noise``.

    As the real ones, a sweep is two rounds, one for each half of the ensemble.
    """

    def __init__(self, problem, *, ensemble_size=None, correlation=0.0, burn_in=3):
        self.problem = problem
        self.size = 10 if ensemble_size is None else ensemble_size
        self.correlation = correlation
        self.burn_in = burn_in

    def start(self, U, *, redraw=False, skip_burn_in=False):
        return ToyState(np.array(U), burned_in=skip_burn_in, converged=skip_burn_in)

    def freeze(self, state):
        return replace(state, burned_in=True)

    def finish(self, state, snapshots, rng):
        return snapshots

    def origin(self, state):
        return Origin("density")

    def ask(self, state, rng):
        if state.ensemble is None:
            return state.start, np.arange(len(state.start))
        J = len(state.ensemble)
        index = np.arange(J // 2, J) if state.moved else np.arange(J // 2)
        r, U = self.correlation, state.ensemble.U[index]
        return r * U + np.sqrt(1 - r**2) * rng.normal(size=U.shape), index

    def tell(self, state, index, evaluations):
        U = state.start.copy() if state.ensemble is None else state.ensemble.U.copy()
        good = ~evaluations.failed
        n_failed = int(evaluations.failed.sum())
        if good.sum() < 2:
            raise EnsembleFailure(f"All {len(index)} members failed.")
        U[index[good]] = evaluations.outputs[good]
        ensemble = Ensemble(U, U, self.problem.loss(U), self.problem.prior_potential(U))
        starting = state.ensemble is None
        complete = starting or state.moved
        sampling = state.burned_in and not starting
        moved = not complete
        state = replace(state, ensemble=ensemble, moved=moved, iteration=state.iteration + complete)
        if complete and not state.burned_in and state.iteration >= self.burn_in:
            state = replace(state, burned_in=True, converged=True)
        snapshot = None
        if complete and sampling:
            lp = -ensemble.potential
            snapshot = Snapshot(U.copy(), lp, lp.copy(), np.full(len(U), 0.5), 2.0)
        phase = "sampling" if sampling else "burn-in"
        return state, Info(phase, complete, snapshot, len(index), n_failed, f"at {state.iteration}")


class ToyStep(EnsembleStep):
    """Step method over the toy sampler; `hook` is called with each batch of points."""

    name = "toy"
    problem_class = ToyProblem
    sampler_class = ToySampler

    def __init__(self, vars=None, *, hook=None, correlation=0.0, burn_in=3, **kwargs):
        options = {"correlation": correlation, "burn_in": burn_in}
        super().__init__(vars, options=options, compile_kwargs=hook, **kwargs)


def sample(model, step=None, *, draws=50, chains=1, cores=1, random_seed=1, **kwargs):
    """`pm.sample` without bar and checks."""
    with model:
        return pm.sample(
            draws=draws,
            chains=chains,
            cores=cores,
            random_seed=random_seed,
            step=ToyStep() if step is None else step,
            progressbar=False,
            compute_convergence_checks=False,
            **kwargs,
        )


class CountCalls:
    """Hook that counts evaluations, and raises an exception at the given call."""

    def __init__(self, raise_at=None, exception=None):
        self.calls = self.evaluations = 0
        self.raise_at, self.exception = raise_at, exception

    def __call__(self, U):
        self.calls += 1
        self.evaluations += len(U)
        if self.calls == self.raise_at:
            raise self.exception
        return U
