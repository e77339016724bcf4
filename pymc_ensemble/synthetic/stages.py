"""Stages of sampling with a synthetic likelihood, and what is found out in each."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pymc as pm
import xarray as xr
from numpy.typing import NDArray
from pytensor.graph.basic import Apply

from pymc_ensemble.diagnosis.facts import TooFewDrawsError, facts_of
from pymc_ensemble.diagnosis.fountain import Fountain
from pymc_ensemble.log import logger
from pymc_ensemble.problem.leaves import without_leaves
from pymc_ensemble.problem.points import compiled, layout_of, points_of
from pymc_ensemble.samplers.phases import default_ensemble_size
from pymc_ensemble.step_methods.kalman import EnsembleKalmanSampler

from .checking import Design, check_posterior
from .gaussian import FLOOR, Covariance, Shape, Spread
from .likelihood import FEWEST_FOR_EACH, coordinate_sizes, free_behind
from .simulator import Estimate, Runs, SummaryModel, tell_of_failures

FloatArray = NDArray[np.float64]

FIND_SIZE = 50  # particles of the first stage, if there are few parameters


@dataclass(frozen=True)
class Counted:
    """Numbers of simulations, by purpose."""

    made: dict[str, int]
    failed: dict[str, int]

    def add(self, what: str, n: int, failed: int) -> None:
        """Count some more."""
        self.made[what] = self.made.get(what, 0) + n
        self.failed[what] = self.failed.get(what, 0) + failed


class Staged:
    """Stages of one run.

    Parameters
    ----------
    model : pm.Model
    likelihoods : list of (SummaryModel, Apply)
    rng : numpy.random.Generator
    """

    def __init__(
        self,
        model: pm.Model,
        likelihoods: list[tuple[SummaryModel, Apply]],
        rng: np.random.Generator,
    ):
        self.model, self.likelihoods, self.rng = model, likelihoods, rng
        self.moved = without_leaves(model)  # without variables that are drawn separately
        if discrete := [
            str(self.moved.values_to_rvs[v].name) for v in self.moved.discrete_value_vars
        ]:
            raise ValueError(
                f"`{discrete[0]}` is discrete, but samplers that average over a synthetic "
                "likelihood move continuous variables only. Marginalize it out of the model. Or "
                "use pymc_ensemble.amortize, or pm.sample_smc with pm.Simulator, which need no "
                "Gaussian of summaries."
            )
        self.counted = Counted({}, {})
        self.designs: dict[str, Design] = {}
        self.replicates: dict[str, FloatArray] = {}
        self._inputs: dict[str, Any] = {}

    def begin(self) -> None:
        """Set the initial covariances, also after an earlier run."""
        for simulator, _ in self.likelihoods:
            simulator.estimate = None
            values = {"covariance": simulator.initial.matrix}
            if simulator.linear:
                slopes = self.model[f"{simulator.observed}_slopes"].get_value()
                values |= {"slopes": np.zeros_like(slopes)}
            self._set(simulator, values)
            self.counted.add("initial", simulator.initial.n_evals, simulator.initial.n_failed)

    def step(
        self, size: int | None = None, found: FloatArray | None = None
    ) -> EnsembleKalmanSampler:
        """Step method of a stage."""
        if found is not None and size is not None:
            found = found[self.rng.choice(len(found), size, replace=size > len(found))]
        return EnsembleKalmanSampler(
            rough=True, ensemble_size=size, initial_ensemble=found, model=self.model
        )

    def find(self, found: FloatArray | None = None) -> FloatArray:
        """Sample roughly; return the particles of one sweep, shape (J, d)."""
        d = sum(v.where.stop - v.where.start for v in layout_of(self.moved))
        size = default_ensemble_size(d, FIND_SIZE)
        step = self.step(size, found)
        with self.model:
            idata = pm.sample(
                size,
                step=step,
                chains=1,
                cores=1,
                random_seed=int(self.rng.integers(2**31)),
                progressbar=False,
                compute_convergence_checks=False,
            )
        stats = idata["sample_stats"]
        if stats.sizes["draw"] < size:  # PyMC returns the draws so far after an interrupt
            raise KeyboardInterrupt
        self.counted.add("finding", *(int(stats[k].max()) for k in ("n_evals", "n_failed")))
        return stats["unconstrained"].to_numpy()[0]

    def estimate(self, found: FloatArray) -> None:
        """Estimate covariances by replicates at the mean of particles."""
        center = found.mean(0)
        for simulator, node in self.likelihoods:
            name, R = simulator.observed, simulator.replicates
            made = self._run(simulator, node, np.repeat(center[None], R, axis=0), "replicates")
            K = made.outputs.shape[1]
            simulator.require(made, "the mean of the posterior", min(R, FEWEST_FOR_EACH * K))
            least = simulator.initial.variances
            if least is None:  # else compared over the prior, where more summaries vary
                simulator.require_independent(made.good - made.good.mean(0))
            covariance = Covariance.of(made.good, None if least is None else FLOOR * least)
            matrix = covariance.matrix
            constant = np.flatnonzero(np.ptp(made.good, axis=0) == 0).tolist()
            if constant and least is None:
                raise ValueError(
                    f"Summary {constant[0]} of `{name}` is the same in all {R} replicates, so it "
                    "has no variance there. Leave it out."
                )
            facts: dict[str, Any] = {
                "replicates": R,
                "failed": made.n_failed,
                "correction": covariance.correction,
                "shrinkage": covariance.shrinkage,
                "raised": np.flatnonzero(covariance.raised).tolist(),
            }
            facts |= _shape_facts(made.good, self.rng)
            self.replicates[name] = made.outputs
            values: dict[str, FloatArray] = {"covariance": matrix}
            slopes = None
            columns = self._columns(node)
            design = self.designs[name] = Design(center, columns, made.good, found)
            if simulator.linear:
                slopes = design.slopes(self._spread(simulator, node).slopes)
                values |= {"slopes": slopes, "center": center[columns]}
                facts["linear"] = True
            simulator.estimate = Estimate(matrix, facts, slopes)
            self._set(simulator, values)
            tell_of_failures(simulator, made, "at the mean of the posterior")

    def check(self, idata: xr.DataTree) -> dict[str, dict[str, Any]]:
        """Compare the likelihoods with replicates at the ends of the posterior."""
        U = idata["sample_stats"]["unconstrained"].to_numpy()
        U = U.reshape(-1, U.shape[-1])
        checked = {}
        for simulator, node in self.likelihoods:
            name = simulator.observed
            design = self.designs[name] = replace(self.designs[name], U=U)
            assert simulator.estimate is not None
            try:  # after a failure the draws are returned as untested
                if len(U) <= U.shape[1]:
                    raise ValueError(f"{len(U)} draws are too few for the axes of the posterior.")
                spread = self._spread(simulator, node)
            except (ValueError, KeyboardInterrupt) as error:
                why = str(error) or "It was interrupted."
                logger.warning(f"The covariance of `{name}` could not be tested. {why}")
                continue
            if simulator.estimate.slopes is not None:
                known = spread.points @ (simulator.estimate.slopes @ design.root).T
                spread = replace(spread, log_variances=spread.log_variances - known)
            data = np.asarray(self.model.rvs_to_values[self.model[name]].eval())
            checked[name] = check_posterior(data, simulator.estimate, design, spread, self.rng)
        return checked

    def _spread(self, simulator: SummaryModel, node: Apply) -> Spread:
        """Means and variances at the ends of the posterior, and at the point of the replicates."""
        design = self.designs[simulator.observed]
        ends, n = design.points, design.n_runs
        made = self._run(simulator, node, np.repeat(ends, n, axis=0), "ends")
        groups = [Runs(part).good for part in np.split(made.outputs, len(ends))]
        used = [k for k, group in enumerate(groups) if len(group) >= max(3, n // 2)]
        p = len(design.columns)
        axes = {k % p for k in used}
        simulator.require(made, "the ends of the posterior", 2 if len(axes) == p else len(ends) * n)
        points = np.concatenate([design.center[None], ends[used]])
        # a given covariance may be far too wide, and would hide the change of variances
        known = simulator.initial.variances
        least = FLOOR * (design.replicates.var(0, ddof=1) if known is None else known)
        replicates = [design.replicates, *(groups[k] for k in used)]
        return Spread.of(design.relative(points), replicates, least)

    def _set(self, simulator: SummaryModel, values: Mapping[str, FloatArray]) -> None:
        for what, value in values.items():
            self.model.set_data(f"{simulator.observed}_{what}", value)

    def _columns(self, node: Apply) -> list[int]:
        """Coordinates on which the simulator depends, in the order of its free variables."""
        layout = {v.name: v.where for v in layout_of(self.moved)}
        free = free_behind(self.model, node)
        names = [str(self.model.rvs_to_values[rv].name) for rv in free]
        columns = [k for n in names for k in range(layout[n].start, layout[n].stop)]
        assert len(columns) == sum(coordinate_sizes(self.model, free))
        return columns

    def _run(self, simulator: SummaryModel, node: Any, U: FloatArray, what: str) -> Runs:
        """Run a simulator at points in unconstrained coordinates."""
        name = simulator.observed
        varying = [node.inputs[i] for i in node.op.signature.varying]
        if name not in self._inputs:
            self._inputs[name] = compiled(self.moved, self.model.replace_rvs_by_values(varying))
        rows = [self._inputs[name](point) for point in points_of(layout_of(self.moved), U)]
        inputs = [np.array(column) for column in zip(*rows, strict=True)]
        seed = np.random.SeedSequence(int(self.rng.integers(2**63)))
        made = simulator.run(node, inputs, seed)
        self.counted.add(what, len(U), made.n_failed)
        return made

    def result(self, idata: xr.DataTree, checked: Mapping[str, Mapping[str, Any]]) -> xr.DataTree:
        """The draws, with the results of the tests and the count of all simulations."""
        for simulator, _ in self.likelihoods:
            assert simulator.estimate is not None
            facts = {**simulator.estimate.facts, **checked.get(simulator.observed, {})}
            simulator.estimate = replace(simulator.estimate, facts=facts)
        stats = idata["sample_stats"].dataset
        sampling = {k: int(stats[k].max("draw").sum()) for k in ("n_evals", "n_failed")}
        before = {
            "n_evals": sum(self.counted.made.values()),
            "n_failed": sum(self.counted.failed.values()),
        }
        self.counted.add("sampling", sampling["n_evals"], sampling["n_failed"])
        changed = {"made_by": self._made_by(stats)}
        for name, n in before.items():
            values = stats[name].copy(deep=True)
            values[0] += n  # of the first chain
            changed[name] = values
        idata["sample_stats"] = xr.DataTree(stats.assign(changed), name="sample_stats")
        arrays = {
            f"{name}_replicates": ((f"{name}_replicate", f"{name}_summary"), values)
            for name, values in self.replicates.items()
        }
        attrs = {f"n_evals_{k.replace(' ', '_')}": n for k, n in self.counted.made.items()}
        attrs |= {"n_evals": sum(self.counted.made.values())}
        attrs |= {"n_failed": sum(self.counted.failed.values())}
        idata["synthetic"] = xr.DataTree(xr.Dataset(arrays, attrs=attrs), name="synthetic")
        parts = ", ".join(f"{n} {what}" for what, n in self.counted.made.items() if n)
        logger.info(f"{attrs['n_evals']} simulations: {parts}.")
        return idata

    def _made_by(self, stats: xr.Dataset) -> xr.DataArray:
        """Facts that the draws carry, with the results of tests after the run."""
        before = stats["made_by"]
        try:
            facts = facts_of(stats)
        except TooFewDrawsError as error:  # `diagnose` tells this, too
            logger.warning(str(error))
            return before
        told = dict(simulator.likelihood_facts(self.model) for simulator, _ in self.likelihoods)
        fountain = Fountain.of(replace(facts, likelihoods=told).text())
        packets = [
            fountain.packets(c, *(stats[k].to_numpy()[c] for k in ("sweep", "particle")))
            for c in range(stats.sizes["chain"])
        ]
        return before.copy(data=np.stack(packets))


def _shape_facts(replicates: FloatArray, rng: np.random.Generator) -> dict[str, Any]:
    """P-value of the test that replicates are Gaussian, and the summaries that are not."""
    vary = np.flatnonzero(np.ptp(replicates, axis=0) > 0)
    if not len(vary):
        every = list(range(replicates.shape[1]))
        return {"gaussian": 1.0, "odd": every, "skewness": 0.0, "skewed": 0}
    shape = Shape.of(replicates[:, vary], rng)
    worst = int(np.abs(shape.skewness).argmax())
    constant = np.setdiff1d(np.arange(replicates.shape[1]), vary)
    return {
        "gaussian": shape.p,
        "odd": sorted([*vary[shape.odd].tolist(), *constant.tolist()]),
        "skewness": float(shape.skewness[worst]),
        "skewed": int(vary[worst]),
    }
