"""What a run can be trusted for, in words and numbers: from its draws and their stats."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

import arviz_stats as az  # arviz itself would load its plots
import numpy as np
import pymc as pm
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.spatial import cKDTree

from .diagnostics import to_ensemble
from .draws import points_of, variable_layout
from .evidence import Regression, SamplingError, Weights, logarithmic, needed_blocks
from .problem import problem_of
from .samplers.kalman import EnsembleKalman
from .samplers.tempering import systematic_resample

__all__ = ["Diagnosis", "diagnose", "reweight"]

FloatArray = NDArray[np.float64]
Verdict = Literal["trustworthy", "doubtful", "wrong"]

# Errors that make a result wrong are 0.3 posterior sd in a mean, and 20% in an sd. What is
# estimated is estimated with an error, so less is enough to be doubted.
MEAN_LIMIT, SD_LIMIT, SUM_LIMIT = 0.25, 0.15, 1.2
CHANCE_LIMIT = 0.2  # standard error of a mean beyond which chance alone may make it wrong
DISAGREEMENT = 0.6  # the same, where chains are in different places
LARGEST_KHAT = 0.7
ROUGH = 0.6  # scatter of the log density about a smooth fit
LOW_ACCEPTANCE = 0.05  # of Metropolis tests
LOW_WOULD_BE = 0.6  # of moves that met none
MOST_PARAMETERS = 35  # of a regression
MOST_COLUMNS = 60  # of a variable that may be a parameter


@dataclass(frozen=True)
class Finding:
    """Something that speaks against a result, and what to do about it."""

    severity: Verdict
    reason: str
    remedy: str


@dataclass(frozen=True)
class Diagnosis:
    """What the draws of a run are worth.

    Attributes
    ----------
    verdict : {"trustworthy", "doubtful", "wrong"}
        Whether means and standard deviations can be relied upon to 0.3 posterior standard
        deviations and 20%.
    reasons, remedies : tuple of str
        What speaks against them, the worst first, and what to do about each.
    notes : tuple of str
        What was not, or could not be checked.
    parameters : xarray.Dataset
        By ``parameter``: effective sample sizes (``ess``; ``ess_bulk`` of ArviZ), ``r_hat`` between
        ensembles, standard error ``mcse`` of the mean in posterior standard deviations, and, where
        they could be estimated, errors of the draws: ``shift`` of the mean in posterior standard
        deviations, and ``sd_ratio``.
    statistics : dict of str to float
        Numbers about the whole run.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    remedies: tuple[str, ...]
    notes: tuple[str, ...]
    parameters: xr.Dataset
    statistics: dict[str, float] = field(default_factory=dict)

    @property
    def trustworthy(self) -> bool:
        """Whether nothing speaks against the result."""
        return self.verdict == "trustworthy"

    @property
    def headline(self) -> str:
        """The verdict in one line."""
        if not self.reasons:
            return "trustworthy: nothing speaks against this posterior."
        return f"{self.verdict}: {self.reasons[0]}"

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        names = list(self.parameters.data_vars)
        rows = []
        for i, parameter in enumerate(self.parameters["parameter"].values):
            row = self.parameters.isel(parameter=i)
            rows.append([str(parameter), *[_number(float(row[name]), str(name)) for name in names]])
        return ["", *map(str, names)], rows

    def __str__(self) -> str:
        lines = [self.headline]
        lines += [f"  {reason}" for reason in self.reasons[1:]]
        lines += [f"  -> {remedy}" for remedy in self.remedies]
        header, rows = self._rows()
        shown = rows[:20]
        width = [max(len(row[k]) for row in [header, *shown]) for k in range(len(header))]
        for row in [header, *shown]:
            lines.append("  ".join(cell.rjust(w) for cell, w in zip(row, width, strict=True)))
        if len(rows) > len(shown):
            lines.append(f"... and {len(rows) - len(shown)} more parameters")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        header, rows = self._rows()
        cells = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
        )
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        points = "".join(f"<li>{escape(text)}</li>" for text in (*self.reasons[1:], *self.remedies))
        notes = "".join(f"<p><small>{escape(note)}</small></p>" for note in self.notes)
        return (
            f"<b>{escape(self.headline)}</b><ul>{points}</ul>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>{notes}"
        )


def _number(value: float, name: str) -> str:
    if not np.isfinite(value):
        return "-"
    return f"{value:.0f}" if name.startswith("ess") else f"{value:.3f}"


@dataclass(frozen=True)
class Run:
    """Draws and stats of a run as arrays.

    Attributes
    ----------
    X : ndarray of shape (C, S, J, p)
        Free parameters: chains, sweeps, particles, parameters.
    labels : list of str
    stats : dict of str to ndarray of shape (C, S, J)
    """

    X: FloatArray
    labels: list[str]
    stats: dict[str, NDArray[Any]]

    @classmethod
    def of(cls, idata: xr.DataTree, var_names: Sequence[str] | None = None) -> "Run":
        """Take a result apart; deterministic variables are left out where that can be told."""
        tree = to_ensemble(idata)
        dims = ("chain", "sweep", "particle")
        stats = tree["sample_stats"].dataset
        if missing := {"lp", "log_q", "acceptance", "n_evals", "converged"} - set(stats):
            raise ValueError(
                f"The result has no stat `{min(missing)}`, so it does not come from a sampler of "
                "pymc_ensemble, or was stripped of it. Diagnose the DataTree as it was returned."
            )
        arrays = {str(k): stats[k].transpose(*dims).to_numpy() for k in stats}
        posterior = tree["posterior"].dataset
        blocks: dict[str, FloatArray] = {}
        labels: dict[str, list[str]] = {}
        if var_names is not None and (unknown := set(var_names) - set(posterior)):
            raise ValueError(
                f"The posterior has no `{min(unknown)}`. It has "
                f"{', '.join(f'`{name}`' for name in posterior)}."
            )
        for name in posterior if var_names is None else var_names:
            block = posterior[name].transpose(*dims, ...).to_numpy()
            shape = block.shape[3:]
            blocks[str(name)] = block.reshape(*block.shape[:3], -1).astype(float)
            labels[str(name)] = [
                f"{name}[{','.join(map(str, index))}]" if shape else str(name)
                for index in np.ndindex(shape)
            ]
        if var_names is None and len(blocks) > 1:
            kept = needed_blocks(
                [b.reshape(-1, b.shape[-1]) for b in blocks.values()],
                arrays["log_q"].ravel(),
                MOST_COLUMNS,
            )
            blocks = {n: b for (n, b), k in zip(blocks.items(), kept, strict=True) if k}
        X = np.concatenate(list(blocks.values()), axis=-1)
        return cls(X, [label for name in blocks for label in labels[name]], arrays)

    @property
    def pooled(self) -> FloatArray:
        """All draws, shape (n, p)."""
        return self.X.reshape(-1, self.X.shape[-1])

    @property
    def log_ratio(self) -> FloatArray:
        """Log density against the law that the ensemble believes in, shape (n,)."""
        return (self.stats["lp"] - self.stats["log_q"]).ravel()

    @property
    def cost(self) -> float:
        """Forward evaluations a draw: 1 of an ensemble, more of walkers, 0 of a surrogate."""
        evaluations = self.stats["n_evals"][:, :, 0]
        if evaluations.shape[1] < 2:
            return 1.0
        return float(np.median(np.diff(evaluations, axis=1)) / self.X.shape[2])

    @property
    def adjusted(self) -> bool:
        """Whether moves were refused by a Metropolis test: draws are then repeated."""
        if self.X.shape[1] < 2:
            return False
        repeated = (np.diff(self.X, axis=1) == 0).all(-1).mean()
        refused = 1 - np.nanmean(self.stats["acceptance"])
        return bool(repeated > 0.02 and repeated > 0.6 * refused)

    @property
    def drawn_from_law(self) -> bool:
        """Whether draws follow the law whose density is ``log_q``, as those of a plain EKS do."""
        return not self.adjusted and self.cost == 1.0


def diagnose(
    idata: xr.DataTree,
    *,
    var_names: Sequence[str] | None = None,
    model: pm.Model | None = None,
    probe: int = 0,
    random_seed: int = 0,
) -> Diagnosis:
    """Say what the draws of a run are worth, why, and what to do.

    Parameters
    ----------
    idata : DataTree
        Result of `pymc.sample` with a step method of this package.
    var_names : list of str, optional
        The free variables of the model. By default they are those of `model`; without it,
        deterministic variables are recognized by the law that the ensemble believes in, which does
        not depend on them.
    model : pm.Model, optional
        The model of the run.
    probe : int, default 0
        Forward evaluations to spend on a search for modes that the draws do not have, by a new
        ensemble from the prior; needs `model`. A few thousand are a good number.
    random_seed : int, default 0
        Seed of the random numbers in the estimates.

    Returns
    -------
    Diagnosis

    Raises
    ------
    ValueError
        If the result does not come from an ensemble step method, or if `probe` is given without
        `model`.

    Notes
    -----
    Every draw carries the value of its log density. A regression on these values, sampled in place
    of the posterior, has moments that do not depend on how often a draw occurs, so they tell what
    the draws' frequencies are worth: errors by chance, by the approximation, and by a burn-in that
    was too short alike. Where the regression is not reliable, Pareto-smoothed importance weights
    of the draws [1]_ and differences between ensembles take its place.

    A mode that no particle has visited cannot be seen by any of these.

    References
    ----------
    .. [1] Vehtari, A., Simpson, D., Gelman, A., Yao, Y. and Gabry, J. (2024). Pareto smoothed
       importance sampling. Journal of Machine Learning Research, 25(72), 1-58.
       https://arxiv.org/abs/1507.02646

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_ensemble as pe
    >>> with pm.Model():
    ...     x = pm.Normal("x", shape=2)
    ...     _ = pm.Normal("y", x[0] - x[1], 0.5, observed=1.0)
    ...     idata = pm.sample(
    ...         1000, step=pe.EnsembleKalmanSampler(), chains=4, cores=1, random_seed=1,
    ...         progressbar=False,
    ...     )
    >>> pe.diagnose(idata).verdict
    'trustworthy'
    """
    if probe and model is None:
        raise ValueError("A probe evaluates the forward map: give the model, `model=`.")
    if var_names is None and model is not None:
        var_names = [rv.name for rv in model.free_RVs]
    run = Run.of(idata, var_names)
    rng = np.random.default_rng(random_seed)
    chance = SamplingError.of(run.X)
    p = len(run.labels)
    weights = Weights.of(run.pooled, run.log_ratio)
    regression = None
    if p <= MOST_PARAMETERS and run.cost > 0:
        logs = logarithmic(run.pooled, run.stats["log_q"].ravel())
        regression = Regression.of(run.pooled, run.stats["lp"].ravel(), logs, rng)
    r_hat, ess_bulk = _arviz(run.X)
    findings = _findings(run, chance, weights, regression, r_hat)
    if probe and model is not None:
        findings += search_modes(model, run, probe, rng)
    order: list[Verdict] = ["wrong", "doubtful"]
    findings.sort(key=lambda finding: order.index(finding.severity))
    columns: dict[str, FloatArray] = {
        "ess": chance.ess,
        "ess_bulk": ess_bulk,
        "r_hat": r_hat,
        "mcse": chance.mean,
    }
    if regression is not None and regression.reliable:
        columns |= {"shift": regression.shift, "sd_ratio": regression.sd_ratio}
    elif run.drawn_from_law:
        columns |= {"shift": weights.shift, "sd_ratio": weights.sd_ratio}
    statistics = {
        "khat": weights.khat,
        "weight_efficiency": weights.efficiency,
        "acceptance": float(np.nanmean(run.stats["acceptance"])),
        "failed": float(run.stats["n_failed"].max() / max(run.stats["n_evals"].max(), 1)),
    }
    if regression is not None:
        statistics |= {"roughness": regression.noise, "uncertainty": regression.uncertainty}
    return Diagnosis(
        findings[0].severity if findings else "trustworthy",
        tuple(finding.reason for finding in findings),
        tuple(dict.fromkeys(finding.remedy for finding in findings)),
        _notes(run, regression, probe),
        xr.Dataset(
            {name: ("parameter", np.asarray(values)) for name, values in columns.items()},
            coords={"parameter": run.labels},
        ),
        statistics,
    )


def _arviz(X: FloatArray) -> tuple[FloatArray, FloatArray]:
    """R-hat and bulk effective sample size of ArviZ, each ensemble one chain."""
    C, S, J, p = X.shape
    draws = xr.Dataset({"x": (("chain", "draw", "p"), np.moveaxis(X, 2, 1).reshape(C, J * S, p))})
    if C < 2:
        return np.full(p, np.nan), az.ess(draws)["x"].to_numpy()
    return az.rhat(draws)["x"].to_numpy(), az.ess(draws)["x"].to_numpy()


def _worst(values: FloatArray, labels: Sequence[str]) -> tuple[float, str]:
    """Largest absolute value, and its label."""
    k = int(np.nanargmax(np.abs(values)))
    return float(values[k]), labels[k]


def _findings(
    run: Run,
    chance: SamplingError,
    weights: Weights,
    regression: Regression | None,
    r_hat: FloatArray,
) -> list[Finding]:
    """What speaks against the result."""
    found = []
    known = regression is not None and regression.reliable
    better = "Use adjust=True, which is exact for deterministic forward maps"
    if run.adjusted or run.cost > 1:
        better = "Draw more"
    if known and regression is not None:
        shift, where = _worst(regression.shift, run.labels)
        ratio, which = _worst(np.log(np.maximum(regression.sd_ratio, 1e-300)), run.labels)
        both = abs(shift) / 0.3 + abs(ratio) / 0.2 > SUM_LIMIT
        if abs(shift) > MEAN_LIMIT or both:
            found.append(
                Finding(
                    "wrong",
                    f"the mean of `{where}` is off by {shift:+.2f} posterior standard deviations, "
                    "by the log density that the draws carry.",
                    f"{better}; or correct these draws: pymc_ensemble.reweight.",
                )
            )
        if abs(ratio) > SD_LIMIT or both:
            found.append(
                Finding(
                    "wrong",
                    f"the standard deviation of `{which}` is {np.exp(ratio):.2f} times what it "
                    "should be, by the log density that the draws carry.",
                    f"{better}; or correct these draws: pymc_ensemble.reweight.",
                )
            )
    chance_limit = DISAGREEMENT if known else CHANCE_LIMIT
    error, where = _worst(chance.mean, run.labels)
    if error > chance_limit:
        found.append(
            Finding(
                "doubtful",
                f"the mean of `{where}` is known to {error:.2f} posterior standard deviations only "
                f"(R-hat {np.nanmax(r_hat):.2f}): the ensembles have not seen the same posterior.",
                "Draw more; if ensembles sit in different modes, use MultiscaleSampler with many "
                "walkers, or a larger ensemble_size.",
            )
        )
    if not known and run.cost > 0:
        if run.drawn_from_law and weights.khat > LARGEST_KHAT:
            found.append(
                Finding(
                    "doubtful",
                    "the posterior is not what the ensemble takes it to be (Pareto k-hat "
                    f"{weights.khat:.2f} of its importance weights).",
                    "Use adjust=True, which is exact for deterministic forward maps.",
                )
            )
        elif regression is not None and regression.uncertainty > 1.0:
            found.append(
                Finding(
                    "doubtful",
                    "the posterior has tails, or regions, that the draws hardly reach.",
                    "Draw more, or write the model in coordinates in which its posterior is "
                    "compact.",
                )
            )
        acceptance = float(np.nanmean(run.stats["acceptance"]))
        suspect = weights.khat > 0.5 or weights.efficiency < 0.5
        if run.drawn_from_law and suspect and acceptance < LOW_WOULD_BE:
            found.append(
                Finding(
                    "doubtful",
                    f"a Metropolis test would have accepted only {acceptance:.0%} of the moves.",
                    "Use adjust=True, which is exact for deterministic forward maps.",
                )
            )
        if not run.stats["converged"].all():
            found.append(
                Finding(
                    "doubtful",
                    "the burn-in had not passed its test.",
                    "Give it more time (tune), or start nearer to the posterior.",
                )
            )
        drift, where = _worst(chance.drift, run.labels)
        if abs(drift) > 0.3:
            found.append(
                Finding(
                    "doubtful",
                    f"`{where}` drifts: its mean moved by {drift:+.2f} posterior standard "
                    "deviations between the halves of the run.",
                    "Give the burn-in more time (tune), and draw more.",
                )
            )
    if run.cost == 0 and not run.stats["converged"].all():
        found.append(
            Finding(
                "wrong",
                "the surrogate did not pass its verification.",
                "Give it more epochs (tune) or a larger ensemble.",
            )
        )
    rough = regression is not None and regression.noise > ROUGH
    acceptance = float(np.nanmean(run.stats["acceptance"]))
    if rough and regression is not None and (run.adjusted or run.cost > 1):
        found.append(
            Finding(
                "doubtful",
                "the forward map is rough: the log density scatters by "
                f"{regression.noise:.1f} about a smooth function. An exact sampler samples the "
                "fluctuations, too, and not the smooth posterior behind them.",
                "Use EnsembleKalmanSampler(rough=True), unless the fluctuations are meant.",
            )
        )
    elif rough and regression is not None and regression.noise > 1.0:
        found.append(
            Finding(
                "doubtful",
                "the forward map is rough: the log density scatters by "
                f"{regression.noise:.1f} about a smooth function.",
                "Use EnsembleKalmanSampler(rough=True).",
            )
        )
    if run.adjusted and acceptance < LOW_ACCEPTANCE:
        found.append(
            Finding(
                "doubtful",
                f"only {acceptance:.1%} of the moves were accepted.",
                "Draw more; if the forward map is rough, use rough=True instead of adjust=True.",
            )
        )
    return found


def search_modes(
    model: pm.Model, run: Run, n_evaluations: int, rng: np.random.Generator
) -> list[Finding]:
    """Send a new ensemble from the prior to the posterior, and see where it arrives.

    Parameters
    ----------
    model : pm.Model
    run : Run
        Draws of the model's free variables.
    n_evaluations : int
        Forward evaluations to spend.
    rng : numpy.random.Generator

    Returns
    -------
    list of Finding
        One if members are in a place, and likely, where there are no draws; else none.
    """
    problem, _ = problem_of(model)
    size = max(2 * (problem.dimension + 2), min(100, n_evaluations // 20))
    sampler = EnsembleKalman(problem, size + size % 2, adjust=True, evolutions=4)
    state = sampler.start(problem.sample_prior(sampler.size, rng), redraw=True)
    spent = 0
    while spent < n_evaluations:
        points, pending = sampler.ask(state, rng)
        state, _ = sampler.tell(state, pending, problem.evaluate(points))
        spent += len(points)
    ensemble = state.ensemble[state.ensemble.ok]
    likely = -ensemble.potential > np.nanquantile(run.stats["lp"], 0.01)
    to_model = model.compile_fn(
        model.replace_rvs_by_values(model.free_RVs),
        inputs=model.value_vars,
        mode="FAST_COMPILE",
        on_unused_input="ignore",
    )
    start = model.initial_point()
    layout = variable_layout(start, [value.name for value in model.value_vars])
    places = [
        np.concatenate([np.ravel(value) for value in to_model(point)])
        for point in points_of(layout, ensemble.U[likely])
    ]
    if not places:
        return []
    draws = run.pooled
    scale = np.maximum(draws.std(0), 1e-300)
    tree = cKDTree(draws / scale)
    horizon = 2 * np.quantile(tree.query(draws / scale, k=2)[0][:, 1], 0.99)
    distance = tree.query(np.array(places) / scale)[0]
    far = distance > max(horizon, 1.0)
    if not far.any():
        return []
    where = ", ".join(
        f"{label}={value:.3g}"
        for label, value in zip(run.labels, places[int(distance.argmax())], strict=True)
    )
    return [
        Finding(
            "wrong",
            f"there is a mode that the draws do not have, at {where}: {far.mean():.0%} of an "
            "ensemble from the prior arrived there.",
            "Use MultiscaleSampler with many walkers, or start from that ensemble.",
        )
    ]


def _notes(run: Run, regression: Regression | None, probe: int) -> tuple[str, ...]:
    """What was not, or could not be checked."""
    notes = []
    C, _, J, p = run.X.shape
    if regression is None and run.cost > 0:
        notes.append("there are too many parameters, or too few draws, to check the moments")
    elif regression is not None and not regression.reliable:
        notes.append("the log density at the draws does not determine the moments")
    if C < 2:
        notes.append("one ensemble cannot disagree with another one: run several chains")
    if run.cost == 1 and 1 < J < 2 * (p + 2):
        notes.append(f"{J} particles are few for {p} parameters; {2 * (p + 2)} are needed")
    failed = float(run.stats["n_failed"].max() / max(run.stats["n_evals"].max(), 1))
    if failed > 0.05:
        notes.append(
            f"{failed:.0%} of the forward evaluations failed: the posterior is the one given that "
            "the forward map works"
        )
    if probe:
        notes.append(f"other modes were searched for with {probe} forward evaluations")
    else:
        notes.append(
            "modes that no particle has visited were not searched for; "
            "diagnose(idata, model=model, probe=2000) does that"
        )
    return tuple(notes)


def reweight(
    idata: xr.DataTree, *, var_names: Sequence[str] | None = None, random_seed: int = 0
) -> xr.DataTree:
    """Correct draws by what their log densities say, without a further forward evaluation.

    Parameters
    ----------
    idata : DataTree
        Result of `pymc.sample` with a step method of this package.
    var_names : list of str, optional
        The free variables of the model, as of `diagnose`.
    random_seed : int, default 0
        Seed of the resampling.

    Returns
    -------
    DataTree
        The same groups with as many draws, resampled from all chains by their weights: chains, the
        order of draws and their stats mean nothing any more. The attributes of its posterior tell
        the Pareto ``khat`` of the weights [1]_, beyond 0.7 of which they cannot be relied upon, and
        their ``efficiency``, the effective share of the draws.

    Raises
    ------
    ValueError
        If the result does not come from an ensemble step method, or is that of a surrogate, whose
        draws carry no density but its own.

    Notes
    -----
    Draws of a plain ensemble Kalman sampler follow a known law, so their importance weights are the
    posterior density over the density of that law. Where the regression of `diagnose` is reliable,
    weights are tilted as little as possible such that means and variances are those of the
    regression.

    References
    ----------
    .. [1] Vehtari, A., Simpson, D., Gelman, A., Yao, Y. and Gabry, J. (2024). Pareto smoothed
       importance sampling. Journal of Machine Learning Research, 25(72), 1-58.
       https://arxiv.org/abs/1507.02646

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_ensemble as pe
    >>> model = pe.gallery.decay(noise_sd=0.3)
    >>> with model:
    ...     idata = pm.sample(
    ...         1000, step=pe.EnsembleKalmanSampler(), chains=4, cores=1, random_seed=1,
    ...         progressbar=False,
    ...     )
    >>> error = (idata.posterior.mean() - model.reference.sel(statistic="mean")) / (
    ...     model.reference.sel(statistic="sd")
    ... )
    >>> better = pe.reweight(idata)
    >>> left = (better.posterior.mean() - model.reference.sel(statistic="mean")) / (
    ...     model.reference.sel(statistic="sd")
    ... )
    >>> bool(abs(left["log_rate"]) < abs(error["log_rate"]) / 3)
    True
    """
    run = Run.of(idata, var_names)
    if run.cost == 0:
        raise ValueError(
            "These draws come from a surrogate, and their log density is its own, so it cannot "
            "correct them. Sample with adjust=True instead."
        )
    rng = np.random.default_rng(random_seed)
    X = run.pooled
    base, khat = np.zeros(len(X)), -np.inf
    if run.drawn_from_law:
        weights = Weights.of(X, run.log_ratio)
        base, khat = weights.log_weights, weights.khat
    regression = None
    if len(run.labels) <= MOST_PARAMETERS:
        logs = logarithmic(X, run.stats["log_q"].ravel())
        regression = Regression.of(X, run.stats["lp"].ravel(), logs, rng)
    if regression is not None and regression.reliable:
        if khat > LARGEST_KHAT:  # they would spoil what the regression knows
            base = np.zeros(len(X))
        base, khat = _tilted(base, X, regression), min(khat, LARGEST_KHAT)
    w = np.exp(base - base.max())
    efficiency = w.sum() ** 2 / (w**2).sum() / len(w)
    chosen = rng.permutation(systematic_resample(w / w.sum(), len(w), rng.random()))
    return _resampled(idata, chosen.reshape(len(run.X), -1), khat, float(efficiency))


def _tilted(log_weights: FloatArray, X: FloatArray, regression: Regression) -> FloatArray:
    """Log weights that are nearest to the given ones and have the moments of the regression."""
    z = (X - regression.mean) / regression.sd
    T = np.concatenate([z, z**2 - 1], axis=1)

    def dual(a: FloatArray) -> tuple[float, FloatArray]:
        exponent = log_weights + T @ a
        top = exponent.max()
        w = np.exp(exponent - top)
        value = float(np.log(w.sum()) + top)
        return value, T.T @ w / w.sum()

    bounds = [(-20.0, 20.0)] * T.shape[1]
    found = minimize(dual, np.zeros(T.shape[1]), jac=True, method="L-BFGS-B", bounds=bounds)
    return log_weights + T @ found.x


def _resampled(
    idata: xr.DataTree, chosen: NDArray[np.int64], khat: float, efficiency: float
) -> xr.DataTree:
    """Pick draws by their numbers among all draws, chosen of shape (C, n)."""
    tree = to_ensemble(idata)
    chain, draw = (
        xr.DataArray(number, dims=("chain", "draw"))
        for number in np.divmod(chosen, chosen.shape[1])
    )
    groups = {}
    for name, group in tree.children.items():
        data = group.dataset
        if {"chain", "sweep", "particle"} <= set(data.sizes):
            # the order in which arrays of shape (S, J) are flattened
            stacked = data.stack(flat=("sweep", "particle"), create_index=False)
            stacked = stacked.drop_vars(["sweep", "particle"], errors="ignore")
            labels = data["chain"].to_numpy()
            data = stacked.drop_vars("chain").isel(chain=chain, flat=draw)
            data = data.assign_coords(chain=labels, draw=np.arange(chosen.shape[1]))
            data = data.transpose("chain", "draw", ..., missing_dims="ignore")
        groups[name] = data
    groups["posterior"] = groups["posterior"].assign_attrs(khat=khat, efficiency=efficiency)
    return xr.DataTree.from_dict(groups, name=idata.name)
