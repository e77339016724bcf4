"""Judge how far a run can be trusted, in words and numbers, from its draws and their stats."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from html import escape

import numpy as np
import pymc as pm
import xarray as xr
from numpy.typing import NDArray

from pymc_ensemble.log import number
from pymc_ensemble.problem.checks import given_generator, given_model
from pymc_ensemble.problem.leaves import without_leaves

from .estimated import judge_likelihoods, notes_on_likelihoods
from .findings import LARGEST_KHAT, judge
from .known import Evidence, Verdict, by_severity
from .modes import missed_mode, search_modes
from .notes import notes_of
from .repeats import REPEATS, repeat
from .run import Run
from .stored import Store, failures, other_evaluations

__all__ = ["Diagnosis", "diagnose"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Diagnosis:
    """Judgement of the draws of a run. Print it.

    Attributes
    ----------
    verdict : {"trustworthy", "doubtful", "wrong"}
        Whether you can rely on means up to 0.3 posterior standard deviations, and on standard
        deviations up to 20%.
    reasons, remedies : tuple of str
        Reasons why you cannot, the worst first, and what to do about them.
    notes : tuple of str
        What was not checked, or could not be checked.
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
        """Whether the result passed every check that could be made."""
        return self.verdict == "trustworthy"

    @property
    def headline(self) -> str:
        """The verdict in one line."""
        if not self.reasons:
            return "trustworthy: the draws passed every check that could be made."
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
    return f"{value:.0f}" if name.startswith("ess") else number(value, ".3f")


def diagnose(
    idata: xr.DataTree,
    *,
    var_names: Sequence[str] | None = None,
    model: pm.Model | None = None,
    store: Store | None = None,
    repeats: int = 0,
    probe: int = 0,
    random_seed: int = 0,
) -> Diagnosis:
    """Say what the draws of a run are worth, why, and what to do.

    Parameters
    ----------
    idata : DataTree
        Result of `pymc.sample` with a step method of this package. If it has the burn-in, too
        (``discard_tuned_samples=False``), the diagnosis looks for modes that were lost there.
    var_names : list of str, optional
        Free variables that are shown; all by default.
    model : pm.Model, optional
        The model of the run. Further evaluations need it. Values of variables also need it if a
        name does not define their transform, as for `pymc.LKJCholeskyCov` or for bounds that depend
        on other variables. Without the model the diagnosis shows their unconstrained coordinates.
    store : path, store, Dataset or (points, outputs), optional
        More evaluations of the forward map, which are used but not repeated. Either an evaluation
        store (``forward.store`` of a forward model), its path, or what `open_store` reads from it.
        Or points and outputs as `archive` of `EnsembleGaussianProcessSampler` takes them, with rows
        of NaN for those that failed. They show modes without draws, where evaluations fail, and
        whether a surrogate is right. Without `model` the diagnosis uses only the failures.
    repeats : int, default 0
        Forward evaluations to spend on some draws. Each of these draws is evaluated four more
        times. This shows how noisy the forward map is, whether a Metropolis test keeps lucky
        evaluations, and whether a surrogate is right. Needs `model`. Take a few dozen, at least 8.
    probe : int, default 0
        Forward evaluations to spend on a search for modes that the draws do not have, by a new
        ensemble from the prior. Needs `model`. Take a few thousand.
    random_seed : int, default 0
        Seed of the random numbers in the estimates.

    Returns
    -------
    Diagnosis
        Verdict, reasons, remedies and a table of the parameters. Print it.

    Raises
    ------
    ValueError
        If the result does not come from an ensemble step method, or is reweighted; if its draws do
        not say how they were made (as those of version 0.1), or come from another model; if
        `repeats` or `probe` is too small or given without `model`; or if `store` does not fit the
        model.
    TypeError
        If `idata` is not a DataTree, or `repeats` or `probe` not an integer.

    Notes
    -----
    Every draw carries the value of its log density. The diagnosis fits a regression to these
    values, and samples it in place of the posterior. Its moments do not depend on how often a draw
    occurs. So they tell the errors of the draws: those by chance, by the approximation, and by a
    burn-in that was too short. The uncertainty of the regression itself is subtracted from
    these errors. If the regression is not reliable, Pareto-smoothed importance weights of the draws
    [1]_ and differences between ensembles take its place.

    None of these checks sees a mode that no particle has visited.

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
    if model is not None:
        model = without_leaves(given_model(model))
    for option, value in {"repeats": repeats, "probe": probe}.items():
        if not isinstance(value, int | np.integer):
            raise TypeError(f"`{option}` is {value!r}; it must be an integer.")
        if value < 0:
            raise ValueError(f"`{option}` is {value}; it must not be negative.")
        if value and model is None:
            raise ValueError(
                f"`{option}` evaluates the forward map, and needs the model: pass `model=`."
            )
    if repeats and repeats < 2 * REPEATS:
        raise ValueError(
            f"`repeats` is {repeats}; at least {2 * REPEATS} evaluations are needed. Take a few "
            "dozen."
        )
    run = Run.of(idata, model)
    rows = _rows_of(run, var_names)
    if probe and probe < run.facts.smallest_ensemble:
        raise ValueError(
            f"`probe` is {probe}; an ensemble for {run.facts.dimension} parameters needs "
            f"{run.facts.smallest_ensemble} evaluations at least. Take a few thousand."
        )
    if not run.alone and (repeats or probe or (store is not None and model is not None)):
        raise ValueError(
            f"Other step methods have moved `{run.facts.others[0].name}`, so the log densities of "
            "the draws are not those of the model. Leave out `repeats`, `probe` and `store`."
        )
    if run.origin.law == "amortized" and (repeats or probe or store is not None):
        raise ValueError(
            "The draws come from an amortized estimate, and carry its density. Leave out "
            "`repeats`, `probe` and `store`: AmortizedPosterior.refine(data, evaluations=200) "
            "evaluates the forward map, and corrects them."
        )
    rng = given_generator(random_seed, "random_seed")
    others = None if store is None else other_evaluations(store, run, model)
    evidence = Evidence.of(run, None if others is None else others.known, rng)
    repeated = None
    if repeats and model is not None:
        repeated = repeat(model, run, repeats, rng, random_seed)
        evidence = replace(evidence, noise=repeated.noise)
    findings = [*judge(evidence), *judge_likelihoods(run.facts)]
    notes = [*notes_on_likelihoods(run.facts), *notes_of(evidence, probe)]
    statistics = _statistics(evidence)
    if run.burn_in is not None and run.alone and run.origin.density_known:
        findings += missed_mode(run, *run.burn_in, "the burn-in was there, in {} of its draws")
    if others is not None:
        if others.known is not None:
            findings += missed_mode(run, *others.known, "{} of the stored evaluations are there")
        else:
            notes.append("the log densities of the stored evaluations are not known")
        found, told = failures(run, others)
        findings, notes = findings + found, notes + told
    if repeated is not None:
        found, told = repeated.judge(evidence)
        findings, notes = findings + found, notes + told
        statistics |= {"noise": repeated.noise, "luck": repeated.luck}
        if run.origin.law == "surrogate":
            statistics |= {
                "error": repeated.agreement.error,
                "error_sd": repeated.agreement.error_sd,
                "slope": repeated.agreement.slope,
                "slope_sd": repeated.agreement.slope_sd,
            }
    if probe and model is not None:
        found, told = search_modes(model, run, probe, rng)
        findings, notes = findings + found, notes + told
    findings = by_severity(findings)
    return Diagnosis(
        findings[0].severity if findings else "trustworthy",
        tuple(finding.reason for finding in findings),
        _without_shorter(finding.remedy for finding in findings),
        tuple(notes),
        _parameters(evidence).isel(parameter=rows),
        statistics,
    )


def _without_shorter(remedies: Iterable[str]) -> tuple[str, ...]:
    """Remedies, each once. A remedy is left out if a longer one begins with it."""
    each = list(dict.fromkeys(remedies))
    return tuple(
        remedy
        for remedy in each
        if not any(other != remedy and other.startswith(remedy.rstrip(".")) for other in each)
    )


def _rows_of(run: Run, var_names: Sequence[str] | None) -> list[int]:
    """Numbers of the parameters that are entries of some variables."""
    names = [variable.name for variable in run.facts.variables]
    if isinstance(var_names, str):
        var_names = [var_names]
    if var_names is not None and not len(var_names):
        raise ValueError("`var_names` is empty: leave it out, or name free variables.")
    if var_names is not None and (extra := set(var_names) - set(names)):
        raise ValueError(
            f"`var_names` has `{min(extra)}`, which is not a free variable of the model. Free "
            f"variables are {', '.join(f'`{name}`' for name in names)}."
        )
    chosen = names if var_names is None else var_names
    return [k for name in chosen for k, owner in enumerate(run.owners) if owner == name]


def _parameters(evidence: Evidence) -> xr.Dataset:
    """What is known of every parameter."""
    run, fit = evidence.run, evidence.fit
    columns: dict[str, FloatArray] = {
        "ess": evidence.chance.ess,
        "ess_bulk": evidence.ess_bulk,
        "r_hat": evidence.r_hat,
        "mcse": evidence.chance.mean,
    }
    if fit is not None:
        columns |= {"shift": fit.shift, "sd_ratio": fit.sd_ratio}
    elif run.origin.law == "gaussian":
        known = evidence.weights.khat <= LARGEST_KHAT
        columns |= {
            "shift": np.where(known, evidence.weights.shift, np.nan),
            "sd_ratio": np.where(known, evidence.weights.sd_ratio, np.nan),
        }
    return xr.Dataset(
        {name: ("parameter", np.asarray(values)) for name, values in columns.items()},
        coords={"parameter": run.labels},
    )


def _statistics(evidence: Evidence) -> dict[str, float]:
    """Numbers about the whole run."""
    run, weights, regression = evidence.run, evidence.weights, evidence.regression
    statistics = {
        "khat": weights.khat,
        "weight_efficiency": weights.efficiency,
        "acceptance": run.acceptance,
        "failed": run.failures,
    }
    if regression is not None:
        statistics |= {"roughness": regression.noise, "uncertainty": regression.uncertainty}
    return statistics
