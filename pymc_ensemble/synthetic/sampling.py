"""Sampling with a synthetic likelihood, in stages: find, run again and again, sample."""

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pymc as pm
import xarray as xr
from numpy.typing import NDArray
from pytensor.graph.basic import Apply

from pymc_ensemble.diagnosis.facts import TooFewDrawsError, facts_of
from pymc_ensemble.diagnosis.fountain import Fountain
from pymc_ensemble.log import logger, show_log
from pymc_ensemble.problem.checks import given_generator, given_model
from pymc_ensemble.problem.leaves import without_leaves
from pymc_ensemble.problem.points import compiled, layout_of, points_of
from pymc_ensemble.samplers.options import require_counts, require_flags, require_given_counts
from pymc_ensemble.samplers.phases import default_ensemble_size
from pymc_ensemble.step_methods.kalman import EnsembleKalmanSampler

from .checking import Design, check_posterior
from .gaussian import FLOOR, Covariance, Shape, Spread
from .likelihood import FEWEST_FOR_EACH, coordinate_sizes, free_behind
from .simulator import Estimate, Runs, SummaryModel, likelihoods_in, tell_of_failures

__all__ = ["sample_synthetic"]

FloatArray = NDArray[np.float64]

FIND_SIZE = 50  # particles that find the posterior, if there are few parameters
OF_STEP = (
    "step",
    "model",
    "initvals",
    "tune",
    "random_seed",
    "progressbar",
    "discard_tuned_samples",
    "return_inferencedata",
    "nuts_sampler",
)
KNOWN = set(inspect.signature(pm.sample).parameters) - {"kwargs"}  # those are of step methods


def sample_synthetic(
    draws: int = 1000,
    *,
    model: pm.Model | None = None,
    stages: int = 2,
    check: bool = True,
    chains: int = 1,
    cores: int = 1,
    ensemble_size: int | None = None,
    random_seed: Any = None,
    progressbar: bool = True,
    **sample_kwargs: Any,
) -> xr.DataTree:
    """Sample a model with synthetic likelihoods, whose covariances are estimated on the way.

    The first stage finds the posterior with the initial covariance. Then the simulator runs many
    times at its mean in unconstrained coordinates, and these replicates tell the covariance. The
    second stage samples the model with this covariance, by `EnsembleKalmanSampler` with
    ``rough=True``. At last the simulator runs at the ends of the posterior, to test whether the
    covariance is the same there.

    Parameters
    ----------
    draws : int, default 1000
        Draws of each chain. Each costs one simulation.
    model : pm.Model, optional
        By default the one on the context stack. It has at least one `synthetic_likelihood`, and may
        have other likelihoods.
    stages : int, default 2
        How often the model is sampled. Each further stage estimates the covariance again, at the
        mean of the stage before.
    check : bool, default True
        Whether to run the simulator 200 times more, at both ends of each principal axis of the
        posterior. With more than five parameters it runs 20 times at each end.
    chains, cores : int, default 1
        Chains of the last stage, and processes for them; each has a burn-in of its own. Workers of
        a `forward_model` are started there.
    ensemble_size : int, optional
        Particles of the last stage; by default 50, or four for each parameter and eight more.
    random_seed : int, Generator or None
    progressbar : bool, default True
        Whether progress is shown.
    **sample_kwargs
        Other options of `pymc.sample` for the last stage.

    Returns
    -------
    DataTree
        As `pymc.sample` returns it: the draws of the last stage. The stat ``n_evals`` counts all
        simulations, those of the first chain with what came before: the initial covariance, earlier
        stages, replicates and the check. ``constant_data`` has the covariances. The group
        ``synthetic`` has ``y_replicates`` for a variable ``y``; its attributes tell what has been
        simulated for what.

    Raises
    ------
    ValueError
        If the model has no synthetic likelihood, if an option makes no sense, or if too many
        replicates fail.
    SamplingError
        If too many simulations fail.

    Notes
    -----
    The draws follow the posterior given a Gaussian of the summaries, with the covariance at one
    point. With ``covariance="linear"`` the log variances are linear; then the simulator also runs
    at the ends of the posterior of the stage before, as in the check. `diagnose` says what
    tests have found, and `report` says what was done. The model keeps the estimated covariance.

    Correlations are shrunk [1]_, the covariance is enlarged for the error of its inverse [2]_, and
    variances are raised to a twentieth of those of the prior, as a summary that hardly varies in
    the replicates would count for too much. Mardia's skewness and kurtosis [3]_ of the replicates
    are compared with those of Gaussian samples of the same size.

    References
    ----------
    .. [1] Chen, Y., Wiesel, A., Eldar, Y. C. and Hero, A. O. (2010). Shrinkage algorithms for MMSE
       covariance estimation. IEEE Transactions on Signal Processing, 58, 5016-5029.
       https://doi.org/10.1109/TSP.2010.2053029
    .. [2] Hartlap, J., Simon, P. and Schneider, P. (2007). Why your model parameter confidences
       might be too optimistic. Astronomy and Astrophysics, 464, 399-404.
       https://doi.org/10.1051/0004-6361:20066170
    .. [3] Mardia, K. V. (1970). Measures of multivariate skewness and kurtosis with applications.
       Biometrika, 57, 519-530. https://doi.org/10.1093/biomet/57.3.519

    Examples
    --------
    >>> import numpy as np, pymc as pm, pymc_ensemble as pe
    >>> def simulate(rate, rng):
    ...     return rng.poisson(rate, size=50)
    >>> of_means = pe.synthetic_likelihood(simulate, summaries=lambda x: [np.sqrt(x).mean()])
    >>> with pm.Model() as model:
    ...     rate = pm.LogNormal("rate", 1.0, 0.5)
    ...     _ = of_means("y", rate, observed=simulate(3.0, np.random.default_rng(1)))
    ...     idata = pe.sample_synthetic(200, random_seed=1, progressbar=False)
    >>> idata["posterior"]["rate"].shape, idata["synthetic"]["y_replicates"].shape
    ((1, 200), (200, 1))
    """
    require_given_counts(1, draws=draws, chains=chains, cores=cores)
    require_given_counts(2, stages=stages)
    require_counts(2, ensemble_size=ensemble_size)
    require_flags(check=check, progressbar=progressbar)
    if taken := [name for name in OF_STEP if name in sample_kwargs]:
        raise ValueError(f"{taken[0]} is set by sample_synthetic itself. Leave it out.")
    if unknown := sorted(set(sample_kwargs) - KNOWN):
        raise ValueError(
            f"{unknown[0]} is not an option of sample_synthetic or of pm.sample. Leave it out."
        )
    if (sample_kwargs.get("idata_kwargs") or {}).get("log_likelihood"):
        raise ValueError(
            'idata_kwargs={"log_likelihood": True} asks for log likelihoods of single '
            "simulations, but these are random. Leave it out."
        )
    model = given_model(model)
    rng = given_generator(random_seed, "random_seed")
    likelihoods = likelihoods_in(model)
    if not likelihoods:
        raise ValueError(
            "The model has no synthetic likelihood. Add one: `pe.synthetic_likelihood(simulate, "
            'summaries=...)("y", theta, observed=data)`. Or sample with '
            "pm.sample(step=pe.EnsembleKalmanSampler())."
        )
    if frozen := [simulator.observed for simulator, _ in likelihoods if simulator.is_frozen(model)]:
        raise ValueError(
            f"The covariance of `{frozen[0]}` is a constant of the model, so it cannot be "
            "estimated. Sample the model as it was before freeze_dims_and_data."
        )
    staged = Staged(model, likelihoods, rng)
    if progressbar:
        show_log()
    staged.begin()
    step = staged.step(ensemble_size)  # what it refuses is refused before anything is simulated
    with _quiet():
        found = staged.find()
    for stage in range(2, stages + 1):
        staged.estimate(found)
        if stage < stages:
            with _quiet():
                found = staged.find(found)
    step = staged.step(ensemble_size, found)
    with model:
        idata = pm.sample(
            draws,
            step=step,
            chains=chains,
            cores=cores,
            random_seed=int(rng.integers(2**31)),
            progressbar=progressbar,
            compute_convergence_checks=sample_kwargs.pop("compute_convergence_checks", False),
            **sample_kwargs,
        )
    return staged.result(idata, staged.check(idata) if check else {})


@contextmanager
def _quiet() -> Iterator[None]:
    """Sampling of PyMC without a word: of a stage that only has to come near."""
    log = logging.getLogger("pymc")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The burn-in had not passed", UserWarning)
            yield
    finally:
        log.setLevel(before)


@dataclass(frozen=True)
class Counted:
    """Simulations, by what they were made for."""

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
        self.moved = without_leaves(model)  # without what is drawn beside the others
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
        """Set the initial covariances, whatever was sampled before."""
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
        """Sample roughly: particles of one sweep, shape (J, d)."""
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
        if stats.sizes["draw"] < size:  # PyMC returns the draws that there are
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
            if least is None:  # else they were compared over the prior, where more of them vary
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
            columns = self._columns(simulator, node)
            design = self.designs[name] = Design(center, columns, made.good, found)
            if simulator.linear:
                slopes = design.slopes(self._spread(simulator, node).slopes)
                values |= {"slopes": slopes, "center": center[columns]}
                facts["linear"] = True
            simulator.estimate = Estimate(matrix, facts, slopes)
            self._set(simulator, values)
            tell_of_failures(simulator, made, "at the mean of the posterior")

    def check(self, idata: xr.DataTree) -> dict[str, dict[str, Any]]:
        """Compare the likelihoods with what replicates at the ends of the posterior say."""
        U = idata["sample_stats"]["unconstrained"].to_numpy()
        U = U.reshape(-1, U.shape[-1])
        checked = {}
        for simulator, node in self.likelihoods:
            name = simulator.observed
            design = self.designs[name] = replace(self.designs[name], U=U)
            assert simulator.estimate is not None
            try:  # whatever happens, the draws are there, and are told to be untested
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
        # a covariance that was given may be far too wide, and would hide that variances change
        known = simulator.initial.variances
        least = FLOOR * (design.replicates.var(0, ddof=1) if known is None else known)
        replicates = [design.replicates, *(groups[k] for k in used)]
        return Spread.of(design.relative(points), replicates, least)

    def _set(self, simulator: SummaryModel, values: Mapping[str, FloatArray]) -> None:
        for what, value in values.items():
            self.model.set_data(f"{simulator.observed}_{what}", value)

    def _columns(self, simulator: SummaryModel, node: Apply) -> list[int]:
        """Coordinates that the simulator depends on, in the order of its free variables."""
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
        """The draws, with all that was found out, and with all simulations counted."""
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
        """What draws carry, with what was found out after they were drawn."""
        before = stats["made_by"]
        try:
            facts = facts_of(stats)
        except TooFewDrawsError as error:  # which `diagnose` says, too
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
    """P-value of tests that replicates are Gaussian, and summaries that are not."""
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
