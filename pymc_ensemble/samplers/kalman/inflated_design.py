"""Rough and noisy forward maps: regression on a design that is wider than the posterior.

A linear fit averages small-scale fluctuations of the forward map. The wider the points lie, the
better it knows the slope. So the forward map is evaluated on an inflated copy of the law of the
ensemble, and the particles move on the pooled fit. The curvature of the outputs limits the width of
the design.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pymc_ensemble.samplers import proposals
from pymc_ensemble.samplers.certificate import CERTAIN
from pymc_ensemble.samplers.ensemble import Array, Ensemble, Evaluations, Info, Problem, Snapshot
from pymc_ensemble.samplers.linear_guess import NO_STEP, SMALLEST_SHARE
from pymc_ensemble.samplers.linearization import (
    FARTHEST,
    MOST_LOST,
    Anomalies,
    GaussianLaw,
    LinearMap,
    gaussian_law,
    without_noise,
)
from pymc_ensemble.samplers.options import PATIENCE
from pymc_ensemble.samplers.rest import IN_A_ROW, STILL
from pymc_ensemble.samplers.weights import plausible
from pymc_ensemble.samplers.words import number

from .quadratic_outputs import QuadraticFit, curvature_excess

FIRST_INFLATION = 3.0
LARGEST_INFLATION = 8.0
INFLATION_FACTOR = 1.5  # steps of the width; the narrowest is one step above the posterior
LARGEST_CHANGE = 2.0  # largest change of the width of the design in one round, in any direction
# Change of a moment by curvature that a linear fit may miss. If a fit is wrong by 0.3, the change
# found is 0.2 to 0.6. If it is right, it is up to 0.15 (8 seeds of each problem).
BENT = 0.18
COMPARED = 4000  # draws from which this change is computed
PRIOR_WIDTH = 0.3  # in posterior sd: if wider, exponential priors drown their slope in noise


@dataclass(frozen=True)
class DesignState:
    """State of the sampler on an inflated design.

    Attributes
    ----------
    ensemble : Ensemble
        Particles with the outputs that the fit predicts for them.
    law : GaussianLaw
        Gaussian law of the pooled fit.
    center, root : ndarray of shape (d,) and (d, d)
        Mean and covariance factor of the law around which the design is laid.
    inflation : float
        Width of the design in posterior standard deviations.
    points, outputs : tuple of ndarray
        Design points and outputs, one entry a round; `widths` holds their inflation.
    settled : int
        Rounds since the width of the design was changed.
    n_fitted : int
        Design points at the last fit.
    frozen : bool
        Whether center and width are fixed.
    curved : bool
        Whether the outputs are too curved for a linear fit where the posterior is.
    """

    ensemble: Ensemble
    law: GaussianLaw
    center: Array
    root: Array
    inflation: float = FIRST_INFLATION
    widest: float = LARGEST_INFLATION
    points: tuple = ()
    outputs: tuple = ()
    widths: tuple = ()
    settled: int = 0
    n_fitted: int = 0
    frozen: bool = False
    curved: bool = False
    burned_in: bool = False
    converged: bool = False

    @property
    def n_points(self) -> int:
        """Number of evaluated design points."""
        return sum(len(points) for points in self.points)


@dataclass(frozen=True)
class DesignRound:
    """A pending round: the design, and the seed of the moves that follow it."""

    points: Array
    seed: int
    origin: DesignState


@dataclass(frozen=True)
class InflatedDesign:
    """Sample with a linear fit of a rough forward map.

    Parameters
    ----------
    problem : InverseProblem
    patience : int, optional
        Rounds after which a fit that has not settled is given up. By default it goes on.
    """

    problem: Problem
    patience: int | None = None

    def start(self, ensemble: Ensemble, *, at_rest: bool = False) -> DesignState:
        """State for an evaluated ensemble. Even if it is at rest, the fit is not known yet."""
        members = ensemble[ensemble.ok]
        members = members[plausible(members.potential, members.U.shape[1])]
        law = pooled_law(self.problem, members.U, members.Z)
        anomalies = Anomalies.of(members.U)
        return DesignState(self._predicted(law, ensemble.U), law, anomalies.mean, anomalies.L)

    def ask(self, state: DesignState, rng: np.random.Generator) -> tuple[Array, DesignRound]:
        """Points of the next round, shape (J, d), and what `tell` needs."""
        J, rank = len(state.ensemble), state.root.shape[1]
        # eq. (R1)
        points = state.center + state.inflation * rng.standard_normal((J, rank)) @ state.root.T
        return points, DesignRound(points, int(rng.integers(2**63)), state)

    def tell(
        self, state: DesignState, pending: DesignRound, evaluations: Evaluations
    ) -> tuple[DesignState, Info]:
        """State after the round, and an account of it."""
        state = pending.origin
        ok = ~evaluations.failed & np.isfinite(evaluations.outputs).all(1)
        if not ok.any():  # nothing to learn
            return state, Info("burn-in", False, None, len(ok), len(ok), "all evaluations failed")
        state = replace(
            state,
            points=(*state.points, pending.points[ok]),
            outputs=(*state.outputs, evaluations.outputs[ok]),
            widths=(*state.widths, state.inflation),
            settled=state.settled + 1,
        )
        # later the fit costs more than it brings, and a block ends with one anyway
        if not state.frozen or state.n_points > 2 * state.n_fitted:
            state = self._refitted(state)
        rng = np.random.default_rng(pending.seed)
        state, snapshot = self._sweep(state, rng)
        if not state.frozen:
            state = self._adapt(state, (~ok).mean(), rng)
            if not state.burned_in and len(state.points) == self.patience:
                state = replace(state, burned_in=True, curved=True)
        phase = "sampling" if state.frozen else "burn-in"
        message = f"design {number(state.inflation, '.2g')} posterior sd wide"
        emitted = snapshot if state.frozen else None
        return state, Info(phase, True, emitted, len(ok), int((~ok).sum()), message)

    def freeze(self, state: DesignState) -> DesignState:
        """Fix the design. Later rounds only add to the fit."""
        if not state.points:
            return replace(state, frozen=True)
        points, outputs = self._window(state)
        return replace(
            state, points=(points,), outputs=(outputs,), widths=(state.inflation,), frozen=True
        )

    def finish(
        self, state: DesignState, snapshots: Sequence[Snapshot], rng: np.random.Generator
    ) -> list[Snapshot]:
        """Draw the sweeps of a block again, with the fit of its last round."""
        state, redrawn = self._refitted(state), []
        for _ in snapshots:
            state, snapshot = self._sweep(state, rng)
            redrawn.append(snapshot)
        return redrawn

    # -- parts ----------------------------------------------------------------------------------

    def _window(self, state: DesignState) -> tuple[Array, Array]:
        """Points and outputs of the rounds that the fit may use."""
        first = 0 if state.frozen else len(state.points) // 2
        last = len(state.points) - 1
        within = [k for k in range(first, last + 1) if state.widths[k] <= state.inflation]
        rounds = within or [last]
        points = np.concatenate([state.points[k] for k in rounds])
        return points, np.concatenate([state.outputs[k] for k in rounds])

    def _refitted(self, state: DesignState) -> DesignState:
        """Fit the law to the pool, if the pool is large enough."""
        if state.n_points < 2 * (len(state.center) + 2):
            return state
        law = pooled_law(self.problem, *self._window(state), state.law.mean, state.inflation)
        return replace(state, law=law, n_fitted=state.n_points)

    def _predicted(self, law: GaussianLaw, U: Array) -> Ensemble:
        Z = law.map(U)
        return Ensemble(U, Z, self.problem.loss(Z), self.problem.prior_potential(U))

    def _sweep(self, state: DesignState, rng: np.random.Generator) -> tuple[DesignState, Snapshot]:
        """Metropolis step on the posterior of the fitted map, which costs no evaluation."""
        law = state.law
        ensemble = self._predicted(law, state.ensemble.U)
        points, log_ratio, _ = proposals.independence((law,), ensemble.U, rng)
        values = self._predicted(law, points)
        acceptance = proposals.acceptance(ensemble.potential, values.potential, log_ratio)
        accepted = rng.random(len(acceptance)) < acceptance
        ensemble = ensemble.updated(np.arange(len(ensemble)), values, accepted)
        snapshot = Snapshot(
            ensemble.U, -ensemble.potential, law.log_density(ensemble.U), acceptance, np.inf
        )
        return replace(state, ensemble=ensemble), snapshot

    def _adapt(self, state: DesignState, failed: float, rng: np.random.Generator) -> DesignState:
        """Recenter the design, and widen it until the outputs are too curved on it."""
        d = len(state.center)
        inverse = np.linalg.pinv(state.root)
        shift = inverse @ (state.law.mean - state.center)
        reach = state.inflation * np.sqrt(d) / max(np.linalg.norm(shift), np.finfo(float).tiny)
        growth, V = np.linalg.eigh(inverse @ state.law.covariance @ inverse.T)
        within = np.clip(growth, 1 / LARGEST_CHANGE**2, LARGEST_CHANGE**2)
        state = replace(
            state,
            center=state.center + state.root @ shift * min(1.0, reach),
            root=state.root @ (V * np.sqrt(within)),
        )
        if shift @ shift > STILL**2 * d or (growth != within).any():
            return replace(state, settled=0)
        recent = slice(len(state.points) - state.settled, None)
        points, outputs = (np.concatenate(v[recent]) for v in (state.points, state.outputs))
        excess = curvature_excess(points, outputs)
        if (excess > CERTAIN or failed > MOST_LOST) and state.inflation > INFLATION_FACTOR:
            narrower = max(INFLATION_FACTOR, state.inflation / INFLATION_FACTOR)
            return replace(state, inflation=narrower, widest=narrower, settled=0)
        if state.settled >= 1 and state.inflation < state.widest and excess < 0.5 * CERTAIN:
            wider = min(state.widest, state.inflation * INFLATION_FACTOR)
            return replace(state, inflation=wider, settled=0)
        if state.settled < IN_A_ROW:
            return state
        curved = excess > CERTAIN and self._is_bent(state, QuadraticFit.of(points, outputs), rng)
        return replace(state, burned_in=True, converged=not curved, curved=curved)

    def _is_bent(
        self, state: DesignState, fit: QuadraticFit | None, rng: np.random.Generator
    ) -> bool:
        """Whether squares and products in the fit would change the moments of the posterior."""
        if fit is None:
            return False
        U, log_weights = [], []
        for _ in range(-(-COMPARED // len(state.ensemble))):
            state, snapshot = self._sweep(state, rng)
            U.append(snapshot.U)
            log_weights.append(state.ensemble.loss - self.problem.loss(fit(snapshot.U)))
        shift, ratio = _change_of_moments(np.concatenate(U), np.concatenate(log_weights))
        return bool(np.abs(shift).max() > BENT or np.abs(ratio - 1).max() > BENT)


def pooled_law(
    problem: Problem,
    points: Array,
    outputs: Array,
    at: Array | None = None,
    inflation: float = 1.0,
) -> GaussianLaw:
    """Gaussian law of a least-squares fit, linearized again at the law's own mean.

    Newton steps find the mean. They go down the loss of the fit plus the prior potential, averaged
    over copies of the points around the mean, narrower than the posterior. A step is shortened
    until it goes downhill. No step leaves the surroundings of the points, as the fit means nothing
    there.

    Parameters
    ----------
    points, outputs : ndarray of shape (n, d) and (n, K)
        The pooled evaluations.
    at : ndarray of shape (d,), optional
        Point where the loss and the prior are linearized first, by default the mean of the points.
    inflation : float, default 1.0
        Width of the points in posterior standard deviations.
    """
    anomalies = Anomalies.of(points)
    fit = LinearMap.fit(anomalies, outputs)
    residual = fit.residual_variance(points, outputs)
    farthest = FARTHEST * np.sqrt(anomalies.rank)
    x = np.zeros(anomalies.rank) if at is None else fit.coordinates(at[None])[0]
    x = x * farthest / max(np.linalg.norm(x), farthest)
    scale = PRIOR_WIDTH / inflation
    deviations = scale * (points - anomalies.mean)
    narrow = replace(anomalies, L=scale * anomalies.L, L_pinv=anomalies.L_pinv / scale)
    for _ in range(PATIENCE):
        at = fit.particles(x[None])[0]
        local = LinearMap(replace(anomalies, mean=at), fit(at[None])[0], fit.slope)
        slope = without_noise(problem, local, residual).slope * scale
        local = LinearMap(replace(narrow, mean=at), local.output_mean, slope)
        law = gaussian_law(problem, local, at + deviations)
        step = scale * law.center
        share = _share_downhill(problem, law, deviations) * _share_within(x, step, farthest)
        x = x + share * step
        small = law.distance(np.zeros((1, anomalies.rank)))[0] < NO_STEP * len(x)
        law = replace(law, force=share * law.force)
        if small or share < SMALLEST_SHARE:
            break
    return law


def _share_within(x: Array, step: Array, radius: float) -> float:
    """Largest share of `step`, at most one, with which `x` stays within this radius."""
    if np.linalg.norm(x + step) <= radius:
        return 1.0
    a, b, c = step @ step, x @ step, min(x @ x - radius**2, 0.0)
    return float(np.clip((np.sqrt(b**2 - a * c) - b) / a, 0.0, 1.0))


def _share_downhill(problem: Problem, law: GaussianLaw, deviations: Array) -> float:
    """Share of the step to the mean of `law`, halved until it lowers the averaged potential."""

    def potential(share: float) -> float:
        u = law.map.particles(share * law.center)
        with np.errstate(over="ignore", invalid="ignore"):
            prior = problem.prior_potential(u + deviations)  # eq. (R2)
            return float(problem.loss(law.map(u[None]))[0] + law.anomalies.weights @ prior)

    share, present = 1.0, potential(0.0)
    highest = present + 1e-6 + 1e-9 * abs(present)  # of rounding errors
    while share > SMALLEST_SHARE and not potential(share) <= highest:
        share /= 2
    return share


def _change_of_moments(U: Array, log_weights: Array) -> tuple[Array, Array]:
    """Shift of means by weights, in weighted sds, and ratio of plain sds to weighted ones."""
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    mean = weights @ U
    sd = np.maximum(np.sqrt(weights @ (U - mean) ** 2), np.finfo(float).tiny)
    return (U.mean(0) - mean) / sd, U.std(0) / sd
