"""Results of the runs: tables in Markdown, and pictures."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from pymc_ensemble.benchmark.problems import PROBLEMS, find
from pymc_ensemble.benchmark.samplers import SAMPLERS
from pymc_ensemble.benchmark.study import MASS_BOUND, MEAN_BOUND, OVER, SD_BOUND, Summary
from pymc_ensemble.log import number

Results = Mapping[tuple[str, str], Summary]

SHOWN = {
    "EKS adjusted": "#1f6fb4",
    "EKS": "#74b3e3",
    "multiscale": "#2a9d5c",
    "EGPS": "#b5522b",
    "emcee": "#8c6bb1",
    "DEMetropolisZ": "#999999",
    "SMC": "#d4a017",
    "NUTS nutpie": "#333333",
}
"""Samplers of the pictures, with their colors. Those of other packages have dashed lines."""


def _names(results: Results, which: int, known: Iterable[str]) -> list[str]:
    present = dict.fromkeys(key[which] for key in results)
    return [name for name in known if name in present] + [n for n in present if n not in known]


def _number(value: float) -> str:
    """Three digits of a count."""
    if not np.isfinite(value):
        return "–"
    if abs(value) >= 1e12:
        return number(value)
    return f"{float(f'{value:.3g}'):,.0f}".replace(",", " ")


def _table(
    results: Results, cell: Callable[[Summary, str], str], problems: Sequence[str]
) -> list[str]:
    """Table with a row for each sampler and a column for each problem."""
    lines = [
        "| | " + " | ".join(problems) + " |",
        "|---|" + "---|" * len(problems),
    ]
    for sampler in _names(results, 1, SAMPLERS):
        cells = []
        for problem in problems:
            summary = results.get((problem, sampler))
            if summary is None:
                cells.append("")
            elif not summary.finished:
                cells.append("failed" if summary.failures else "too few draws")
            else:
                cells.append(cell(summary, problem))
        lines.append(f"| {sampler} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _reached(cost: str, over: str = "rms") -> Callable[[Summary, str], str]:
    def cell(summary: Summary, problem: str) -> str:
        reached = summary.reached(cost, over)
        median = np.median(reached)
        if not np.isfinite(median):
            return f"> {_number(summary.spent(cost))}"
        text = _number(median)
        if reached.min() < reached.max():
            text += f" ({_number(reached.min())} to {_number(reached.max())})"
        return text

    return cell


def _errors(summary: Summary, problem: str) -> str:
    shown = ["mean_worst", "sd_worst", "wasserstein", *["mode_mass"] * bool(find(problem).modes)]
    return " / ".join(number(float(np.median(summary.at_end(name))), ".2f") for name in shown)


def tables(results: Results) -> str:
    """Evaluations and rounds to a given precision, errors at the end, and times.

    Parameters
    ----------
    results : mapping
        Summaries by (problem, sampler), as `study.load` returns them.
    """
    problems = _names(results, 0, PROBLEMS)
    seeds = max(len(summary.runs) for summary in results.values())
    lines = [
        f"Precision: from there on, errors are at most {MEAN_BOUND:g} posterior standard "
        f"deviations in the means, {SD_BOUND:.0%} in the standard deviations, and {MASS_BOUND:g} "
        f"in the masses of modes, if there are several. Median of {seeds} seeds, with least and "
        "greatest; warm-up, pilots and failed evaluations included. A sampler that did not get "
        "there has a > with what it had spent. A round is a set of evaluations that can run at "
        "the same time.",
        "",
    ]
    for over, words in OVER.items():
        for cost in ("evaluations", "rounds"):
            lines += [f"## {cost.capitalize()} until precision {words}", ""]
            lines += _table(results, _reached(cost, over), problems)
    lines += [
        "## Errors at the end",
        "",
        "Error of the worst mean in posterior sd / relative error of the worst sd / sliced "
        "Wasserstein distance in posterior sd / largest error of the mass of a mode, if there "
        "are several. For rough problems these are errors against the smooth posterior.",
        "",
        *_table(results, _errors, problems),
        "## Seconds until precision, if an evaluation takes a second",
        "",
        "On one worker / on enough workers. Both include the sampler's own arithmetic and "
        "compilation. Errors are root mean squares.",
        "",
        *_table(results, _seconds, problems),
    ]
    failures = [
        f"- {sampler} on {problem}: {summary.failures[0]}"
        for (problem, sampler), summary in results.items()
        if summary.failures
    ]
    if failures:
        lines += ["## Runs that failed", "", *failures, ""]
    return "\n".join(lines)


def _seconds(summary: Summary, problem: str) -> str:
    evaluations, rounds = (np.median(summary.reached(c)) for c in ("evaluations", "rounds"))
    if not np.isfinite(evaluations):
        return "–"
    own = summary.own_seconds
    return f"{_number(evaluations + own)} / {_number(rounds + own)}"


def savings(results: Results, ours: str = "EKS adjusted", peer: str = "emcee") -> str:
    """How many times fewer evaluations and rounds one sampler needs than another.

    If the peer did not get there, the factor is a lower bound.
    """
    columns = [(cost, over) for over in OVER for cost in ("evaluations", "rounds")]
    heads = [f"{cost}, {'rms' if over == 'rms' else 'worst parameter'}" for cost, over in columns]
    lines = [f"| {ours} against {peer} | " + " | ".join(heads) + " |", "|---|---|---|---|---|"]
    for problem in _names(results, 0, PROBLEMS):
        pair = [results.get((problem, name)) for name in (ours, peer)]
        if pair[0] is None or pair[1] is None or not pair[1].finished:
            continue
        cells = [_ratio(pair[0], pair[1], cost, over) for cost, over in columns]
        lines.append(f"| {problem} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _ratio(ours: Summary, peer: Summary, cost: str, over: str) -> str:
    our, their = (float(np.median(summary.reached(cost, over))) for summary in (ours, peer))
    if not np.isfinite(our):
        return "–"
    return f"{their / our:.3g}x" if np.isfinite(their) else f"> {peer.spent(cost) / our:.3g}x"


def draw_errors(results: Results, file: Path) -> None:
    """Draw the error of the means against evaluations, in one panel per problem."""
    problems = _names(results, 0, PROBLEMS)
    columns = min(4, len(problems))
    rows = -(-len(problems) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(max(3.1 * columns, 6), 2.5 * rows + 1),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for ax, problem in zip(axes.flat, problems, strict=False):
        for sampler, color in SHOWN.items():
            summary = results.get((problem, sampler))
            if summary is None or not summary.finished:
                continue
            curve = np.array(list(summary.curve("mean_rms")))
            style = {"color": color, "lw": 1.6, "ls": "-" if SAMPLERS[sampler].ours else "--"}
            if len(curve) < 6:
                style |= {"marker": "o", "ms": 4}
            ax.plot(curve[:, 0], curve[:, 1], label=sampler, **style)
            ax.fill_between(curve[:, 0], curve[:, 2], curve[:, 3], color=color, alpha=0.12, lw=0)
        ax.axhline(MEAN_BOUND, color="0.7", lw=0.8, zorder=0)
        ax.set_title(problem, fontsize="medium")
        ax.set(xscale="log", yscale="log", ylim=(0.005, 20))
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes.flat[len(problems) :]:
        ax.set_visible(False)
    figure.supxlabel("forward evaluations")
    figure.supylabel("rms error of means, posterior sd")
    handles = {
        label: handle
        for ax in axes.flat
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=4, frameon=False
    )
    figure.savefig(file, dpi=110)
    plt.close(figure)


def draw_scaling(dimension: Results, studies: Mapping[str, xr.Dataset], file: Path) -> None:
    """Draw evaluations by dimension, own time by particles and by outputs, and speed-up."""
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.4), layout="constrained")
    for sampler in _names(dimension, 1, SAMPLERS):
        pairs = sorted(
            (len(summary.finished[0]["draws"].coordinate), np.median(summary.reached()))
            for (_, name), summary in dimension.items()
            if name == sampler and summary.finished
        )
        style = {"color": SHOWN.get(sampler, "0.6"), "marker": "o", "ms": 3}
        axes[0].plot(*zip(*pairs, strict=True), label=sampler, **style)
    axes[0].set(xscale="log", yscale="log", xlabel="parameters d", ylabel="evaluations")
    axes[0].set_title("to precision", fontsize="medium")
    for ax, dim, label in ((axes[1], "J", "particles J"), (axes[2], "K", "outputs K")):
        study = studies.get(dim)
        if study is not None:
            microseconds = 1e6 * study["own_seconds"]
            ax.plot(study[dim], microseconds, color=SHOWN["EKS adjusted"], marker="o", ms=3)
        ax.set(xscale="log", yscale="log", xlabel=label, ylabel="own µs a particle and sweep")
    speed = studies.get("workers")
    if speed is not None:
        axes[3].plot(speed.workers, speed.workers, color="0.7", lw=0.8, label="ideal")
        for name in speed["run"].values:
            axes[3].plot(speed.workers, speed["speed_up"].sel(run=name), label=name)
    axes[3].set(xscale="log", yscale="log", xlabel="workers", ylabel="speed-up")
    for ax in (axes[0], axes[3]):
        _legend(ax)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _legend(ax: Axes) -> None:
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize="small")


def scaling_tables(dimension: Results, studies: Mapping[str, xr.Dataset]) -> str:
    """Tables of the scaling studies, in Markdown."""
    lines = ["## Evaluations by dimension, linear Gaussian problem", ""]
    problems = sorted(
        {problem for problem, _ in dimension},
        key=lambda name: int("".join(filter(str.isdigit, name))),
    )
    lines += _table(dimension, _reached("evaluations"), problems)
    lines += ["Rounds:", "", *_table(dimension, _reached("rounds"), problems)]
    for dim, title in (
        ("J", "Particles, ensemble Kalman sampler in ten dimensions"),
        ("K", "Outputs, ensemble Kalman sampler with 100 particles"),
    ):
        study = studies.get(dim)
        if study is None:
            continue
        lines += [f"## {title}", ""]
        names = [str(name) for name in study.data_vars]
        lines += [f"| {dim} | " + " | ".join(map(_heading, names)) + " |"]
        lines += ["|---|" + "---|" * len(names)]
        for value in study[dim].values:
            row = study.sel({dim: value})
            cells = [_cell(name, float(row[name])) for name in names]
            lines.append(f"| {_number(value)} | " + " | ".join(cells) + " |")
        lines.append("")
    speed = studies.get("workers")
    if speed is not None:
        lines += [
            "## Speed-up on a simulated cluster",
            "",
            "Evaluations take log-normal times. Their logarithm has a standard deviation of 0.5.",
            "",
            "| workers | " + " | ".join(speed["run"].values) + " |",
            "|---|" + "---|" * speed.sizes["run"],
        ]
        for workers in speed.workers.values:
            cells = [f"{float(x):.3g}" for x in speed["speed_up"].sel(workers=workers)]
            lines.append(f"| {workers} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _heading(name: str) -> str:
    headings = {
        "own_seconds": "own µs a particle and sweep",
        "mean_error": "worst mean, posterior sd",
        "sd_error": "worst sd",
    }
    return headings.get(name, name)


def _cell(name: str, value: float) -> str:
    if name == "own_seconds":
        return f"{1e6 * value:.3g}"
    return number(value, ".3f") if name.endswith("error") else _number(value)
