"""Report on a run for a paper: how it was sampled, its cost, and how far it can be trusted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import pymc as pm
import xarray as xr

from pymc_ensemble.log import duration, number

from .diagnose import Diagnosis, diagnose
from .ensembles import ensemble_stats
from .estimated import described, results_of_tests
from .facts import Facts, entries, facts_of

__all__ = ["Report", "report"]

QUANTILES = (0.05, 0.95)
SHOWN = 20  # rows of the table on a screen
BIBLIOGRAPHY = Path(__file__).with_name("references.bib")

# What is to be cited, by sampler
CITED = {
    "EnsembleKalmanSampler": ("garbuno2020interacting", "garbuno2020affine"),
    "MultiscaleSampler": ("pavliotis2022multiscale", "leimkuhler2013rational"),
    "EnsembleGaussianProcessSampler": ("dunbar2022ensemble",),
    "EnsembleLangevinSampler": ("garbuno2020affine",),
    "MultifidelitySampler": ("peherstorfer2018survey",),
    "invert": ("iglesias2013ensemble", "iglesias2021adaptive"),
    "LikelihoodInformedSampler": ("cui2016dimension", "rudolf2018generalization"),
}
ROUGH = "dunbar2022ensemble"
SUMMARIES = ("wood2010statistical", "price2018bayesian")  # of synthetic likelihoods
ESTIMATED = ("chen2010shrinkage", "hartlap2007model", "mardia1970measures")
SOFTWARE = ("pymc_ensemble", "pymc2023")
WEIGHTS = "vehtari2024pareto"  # which the verdict rests upon

SAMPLERS = {
    "EnsembleKalmanSampler": "the ensemble Kalman sampler, which needs no gradient",
    "MultiscaleSampler": "the multiscale sampler, which measures gradients by explorers",
    "EnsembleGaussianProcessSampler": (
        "an ensemble that follows a Gaussian-process surrogate, which was learned from all "
        "evaluations"
    ),
    "EnsembleLangevinSampler": "affine-invariant interacting Langevin dynamics",
    "MultifidelitySampler": (
        "a cheap model, to whose outputs a Gaussian process added the difference to the fine one"
    ),
    "invert": "ensemble Kalman inversion, which needs no gradient",
    "LikelihoodInformedSampler": (
        "a likelihood-informed sampler, which learned the slope of the forward outputs"
    ),
}
LAWS = {
    "density": "Moves met no Metropolis test: draws follow the posterior up to the error of steps.",
    "gaussian": "Draws follow the Gaussian law that a linear fit to the forward map leads to.",
    "approximate": "Draws follow the posterior approximately: moves met no Metropolis test.",
    "fit": (
        "Fluctuations of the forward map were averaged out: draws follow the posterior of a smooth "
        "fit to it."
    ),
    "smooth": (
        "Fluctuations of the forward map were averaged out: draws follow the smooth posterior "
        "behind it."
    ),
    "surrogate": "Draws follow the posterior of the surrogate, and cost no evaluation.",
    "amortized": (
        "Draws follow an estimate of the posterior that was learned from simulations, for any data."
    ),
    "inversion": "Particles approximate the posterior; no evaluation was made to test how well.",
}
ADJUSTED = "A Metropolis test makes draws exact for a deterministic forward map."


@dataclass(frozen=True)
class Report:
    """A report on a run. Print it, or turn it into Markdown.

    Attributes
    ----------
    facts : Facts
        What the sampler has declared: its name, options and version.
    chains, draws : int
        Number of chains, and of draws in each.
    evaluations, failures : int
        Forward evaluations of all chains, those of the burn-in included, and how many failed.
    seconds : float
        Time that sampling took; NaN if it is not known.
    pymc : str
        Version of PyMC.
    diagnosis : Diagnosis
        What the draws are worth.
    posterior : xarray.Dataset
        By ``parameter``: ``mean``, ``sd``, ``q5`` and ``q95`` of the draws; the standard error
        ``mcse`` of the mean in units of the parameter; effective sample size and R-hat.
    """

    facts: Facts
    chains: int
    draws: int
    evaluations: int
    failures: int
    seconds: float
    pymc: str
    diagnosis: Diagnosis
    posterior: xr.Dataset

    @property
    def methods(self) -> str:
        """A paragraph for the section on methods."""
        facts = self.facts
        particles = f" of {facts.particles} particles" if facts.particles > 1 else ""
        ensembles = "ensembles" if facts.particles > 1 else "chains"
        several = f"{self.chains} independent {ensembles}{particles}"
        if self.chains == 1:
            several = f"One {ensembles[:-1]}{particles}"
        failed = f"; {self.failures:,} of them failed" if self.failures else ""
        law = ADJUSTED if facts.origin.adjusted else LAWS[facts.origin.law]
        keys = ", ".join(f"@{key}" for key in self.citations)
        error = float(self.diagnosis.parameters["mcse"].max())
        return (
            f"The posterior was sampled with {SAMPLERS.get(facts.sampler, facts.sampler)} "
            f"({facts.sampler} of pymc_ensemble {facts.version}, with PyMC {self.pymc}). "
            f"{law}{self._likelihoods} "
            f"{several} gave {self.chains * self.draws:,} draws, from {self.evaluations:,} "
            f"evaluations of the forward model in all{failed}. Standard errors of posterior "
            f"means are at most {number(error, '.2g')} posterior standard deviations. An "
            "examination of the draws, which uses their log densities, found them "
            f"{self.diagnosis.verdict}. [{keys}]"
        )

    @property
    def _likelihoods(self) -> str:
        """What was done about likelihoods that are estimates, as sentences."""
        told = ""
        for name, known in self.facts.likelihoods.items():
            told += (
                f" The data `{name}` entered by a synthetic likelihood: {described(known)}. "
                f"{results_of_tests(known)}"
            ).rstrip()
        return told

    @property
    def citations(self) -> tuple[str, ...]:
        """Keys of what is to be cited."""
        smooth = self.facts.origin.law in ("fit", "smooth")
        likelihoods = self.facts.likelihoods.values()
        estimated = any(known["covariance"] == "estimated" for known in likelihoods)
        keys = (
            *SOFTWARE,
            *CITED.get(self.facts.sampler, ()),
            *[ROUGH] * smooth,
            *SUMMARIES * bool(likelihoods),
            *ESTIMATED * estimated,
            WEIGHTS,
        )
        return tuple(dict.fromkeys(keys))

    @property
    def bibtex(self) -> str:
        """BibTeX entries of what is to be cited."""
        known = dict(_bibtex(BIBLIOGRAPHY.read_text(encoding="utf-8")))
        text = "\n\n".join(known[key] for key in self.citations)
        return text.replace("{VERSION}", f"{{{self.facts.version}}}")

    # -- text, Markdown and HTML ----------------------------------------------------------------

    def _facts(self) -> list[tuple[str, str]]:
        facts = self.facts
        options = ", ".join(f"{name}={value!r}" for name, value in facts.options.items())
        failed = f", {self.failures:,} of them failed" if self.failures else ", none failed"
        time = f"; {duration(self.seconds)}" if np.isfinite(self.seconds) else ""
        rows = [
            ("sampler", f"{facts.sampler}({options})"),
            ("version", f"pymc_ensemble {facts.version}, PyMC {self.pymc}"),
            ("draws", f"{self.chains} chains of {self.draws:,}, {facts.particles} particles each"),
            ("evaluations", f"{self.evaluations:,}{failed}{time}"),
        ]
        if facts.origin.fluctuation is not None:
            fluctuation = number(facts.origin.fluctuation, ".2g")
            law = "log density fluctuates by {} on scales below the posterior's"
            rows.append(("smoothness", law.format(fluctuation)))
        for name, known in facts.likelihoods.items():
            text = f"{name}: {described(known)}. {results_of_tests(known)}"
            rows.append(("likelihood", text.strip()))
        rows.append(("verdict", self.diagnosis.headline))
        rows += [("reason", reason) for reason in self.diagnosis.reasons[1:]]
        rows += [("remedy", remedy) for remedy in self.diagnosis.remedies]
        return rows

    def _table(self) -> tuple[list[str], list[list[str]]]:
        header = ["", "mean", "sd", "5%", "95%", "error of mean", "ESS", "R-hat"]
        rows = []
        for name in self.posterior["parameter"].values:
            row = {k: float(v) for k, v in self.posterior.sel(parameter=name).data_vars.items()}
            decimals = _decimals(row["sd"])
            values = [decimals(row[key]) for key in ("mean", "sd", "q5", "q95")]
            ends = [(row["mcse"], ".2g"), (row["ess"], ",.0f"), (row["r_hat"], ".2f")]
            told = ["-" if np.isnan(value) else format(value, spec) for value, spec in ends]
            rows.append([str(name), *values, *told])
        return header, rows

    def __str__(self) -> str:
        lines = [f"{name:>11}: {text}" for name, text in self._facts()]
        header, rows = self._table()
        shown = rows[:SHOWN]
        widths = [max(len(row[k]) for row in [header, *shown]) for k in range(len(header))]
        lines.append("")
        lines += [
            "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True))
            for row in [header, *shown]
        ]
        if len(rows) > SHOWN:
            lines.append(f"... and {len(rows) - SHOWN} more parameters")
        return "\n".join([*lines, "", self.methods, "", self.bibtex])

    def to_markdown(self) -> str:
        """The report as Markdown; citations are those of Pandoc."""
        header, rows = self._table()
        table = ["| " + " | ".join(row) + " |" for row in [header, *rows]]
        table.insert(1, "|---" + "|---:" * (len(header) - 1) + "|")
        facts = [f"- **{name}**: {text}" for name, text in self._facts()]
        parts = ["\n".join(facts), "\n".join(table), self.methods, f"```bibtex\n{self.bibtex}\n```"]
        return "\n\n".join(parts) + "\n"

    def _repr_html_(self) -> str:
        header, rows = self._table()

        def row(cells: Sequence[str], kind: str) -> str:
            return "<tr>" + "".join(f"<{kind}>{escape(c)}</{kind}>" for c in cells) + "</tr>"

        facts = "".join(row([f"{name}", text], "td") for name, text in self._facts())
        body = "".join(row(cells, "td") for cells in rows)
        return (
            f"<table>{facts}</table><table><thead>{row(header, 'th')}</thead><tbody>{body}</tbody>"
            f"</table><p>{escape(self.methods)}</p><details><summary>BibTeX</summary>"
            f"<pre>{escape(self.bibtex)}</pre></details>"
        )


def report(idata: xr.DataTree, model: pm.Model | None = None) -> Report:
    """Report on a run as a paper needs it: sampler, cost, verdict, posterior, citations.

    Parameters
    ----------
    idata : DataTree
        Result of `pymc.sample` with a step method of this package.
    model : pm.Model, optional
        The model of the run, for what `diagnose` cannot tell without it.

    Returns
    -------
    Report
        `print` shows it, `to_markdown` gives a text for a notebook or a supplement, and
        ``.methods`` and ``.bibtex`` what goes into the manuscript.

    Raises
    ------
    TypeError, ValueError
        As `diagnose`: if the result does not come from a step method of this package.

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_ensemble as pe
    >>> with pm.Model():
    ...     x = pm.Normal("x", shape=2)
    ...     _ = pm.Normal("y", x[0] - x[1], 0.5, observed=1.0)
    ...     idata = pm.sample(
    ...         1000, step=pe.EnsembleKalmanSampler(adjust=True), chains=4, cores=1,
    ...         random_seed=1, progressbar=False,
    ...     )
    >>> found = pe.report(idata)
    >>> found.chains, found.failures, found.diagnosis.verdict
    (4, 0, 'trustworthy')
    >>> print(found.methods)
    The posterior was sampled with the ensemble Kalman sampler, which needs no gradient ...
    """
    diagnosis = diagnose(idata, model=model)
    stats, posterior = ensemble_stats(idata), idata["posterior"].dataset
    facts = facts_of(stats)
    evaluations, failures = (int(stats[name].max("draw").sum()) for name in ("n_evals", "n_failed"))
    attributes = posterior.attrs
    return Report(
        facts,
        stats.sizes["chain"],
        stats.sizes["draw"],
        evaluations,
        failures,
        float(attributes.get("sampling_time", np.nan)),
        str(attributes.get("inference_library_version", pm.__version__)),
        diagnosis,
        _summary(posterior, facts, diagnosis),
    )


def _summary(posterior: xr.Dataset, facts: Facts, diagnosis: Diagnosis) -> xr.Dataset:
    """Moments of the parameters that the diagnosis knows, with their errors."""
    columns: dict[str, np.ndarray] = {}
    for variable in facts.variables:
        if variable.name in posterior:
            values = posterior[variable.name].transpose("chain", "draw", ...).to_numpy()
            flat = values.reshape(values.shape[0] * values.shape[1], -1).astype(float)
            names = entries(variable.name, values.shape[2:])
            columns |= dict(zip(names, flat.T, strict=True))
    known = diagnosis.parameters
    names = [str(name) for name in known["parameter"].values if str(name) in columns]
    draws = np.array([columns[name] for name in names]).reshape(len(names), -1)
    sd = draws.std(axis=1)
    low, high = np.quantile(draws, QUANTILES, axis=1)
    chosen = known.sel(parameter=names)
    moments = {"mean": draws.mean(axis=1), "sd": sd, "q5": low, "q95": high}
    moments |= {"mcse": sd * chosen["mcse"].to_numpy()}
    moments |= {name: chosen[name].to_numpy() for name in ("ess", "r_hat")}
    return xr.Dataset(
        {name: ("parameter", values) for name, values in moments.items()},
        coords={"parameter": names},
    )


def _decimals(sd: float) -> Callable[[float], str]:
    """Format numbers to two significant digits of their standard deviation."""
    if not np.isfinite(sd) or sd <= 0:
        return "{:.4g}".format
    if "e" in f"{sd:g}":
        return "{:.3e}".format
    exponent = int(np.floor(np.log10(sd)))
    return f"{{:.{max(0, 1 - exponent)}f}}".format


def _bibtex(text: str) -> list[tuple[str, str]]:
    """Keys and entries of a BibTeX file whose entries stand between empty lines."""
    pieces = [piece.strip() for piece in text.split("\n\n") if piece.strip()]
    return [(piece.split("{", 1)[1].split(",", 1)[0], piece) for piece in pieces]
