"""Draw what the samplers save against emcee, and the tree that leads to one of them.

    python docs/figures/which_sampler.py

The numbers are those of the table "What they cost" of docs/which_sampler.md. The pictures go into
docs/images.
"""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

DOCS = Path(__file__).parents[1]
BLUE, ORANGE, GRAY = "#0072b2", "#d55e00", "0.55"  # told apart by all eyes
NEVER = 100_000  # evaluations after which the benchmark ends
ROWS = {
    "emcee, from the prior": ("emcee", GRAY),
    "`EnsembleKalmanSampler()`": ("EnsembleKalmanSampler()", BLUE),
    "`EnsembleGaussianProcessSampler()`": ("EnsembleGaussianProcessSampler()", ORANGE),
}

# Each node of the tree: where it stands (column, row), what it says, and where an answer leads.
QUESTIONS = {
    "gradients": ((0, 0), "Does the model\nhave gradients?"),
    "likelihood": ((0, 1), "Is there a\nlikelihood?"),
    "discrete": ((0, 2), "Are variables discrete,\nor left to other steps?"),
    "many": ((0, 3), "More than\n100 parameters?"),
    "cheap": ((0, 4), "Has the simulator a cheap\nsibling, on a coarser grid say?"),
    "dear": ((0, 5), "Does a run take\nhalf a second or more?"),
}
ANSWERS = {
    "gradients": "pm.sample(): NUTS",
    "likelihood": "pe.synthetic_likelihood(), or\npe.amortize()",
    "discrete": "MultiscaleSampler(vars, adjust=True)",
    "many": "LikelihoodInformedSampler()",
    "cheap": "MultifidelitySampler(cheap)",
    "dear": "EnsembleGaussianProcessSampler()\nup to 30 parameters",
}
ASIDE = dict.fromkeys(QUESTIONS, "yes") | {"likelihood": "no"}


def costs():
    """Evaluations by sampler and problem, from the table of the page; NaN where it has a dash."""
    page = (DOCS / "which_sampler.md").read_text(encoding="utf-8")
    table = page.split("## What they cost")[1].split("\n\n")[2]
    head, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
    )
    numbers = {
        name: [float(re.sub(r"\s", "", cell)) if cell != "–" else np.nan for cell in cells]
        for name, *cells in rows
    }
    return head[1:], {label: numbers[name] for name, (label, _) in ROWS.items()}


def draw_savings():
    """Bars of evaluations, those of emcee above; hatched where a sampler never got there."""
    problems, numbers = costs()
    order = np.argsort(np.nan_to_num(numbers["emcee"], nan=NEVER))
    figure, ax = plt.subplots(figsize=(8, 6.4), layout="constrained")
    for k, (label, color) in enumerate(ROWS.values()):
        values = np.array(numbers[label])[order]
        at = np.arange(len(problems)) + 0.27 * (1 - k)
        arrived = np.isfinite(values)
        ax.barh(at[arrived], values[arrived], 0.25, color=color, label=label)
        ax.barh(
            at[~arrived], NEVER, 0.25, facecolor="none", edgecolor=color, hatch="///", alpha=0.5
        )
        for y, value in zip(at, values, strict=True):
            text = f"{value:,.0f}".replace(",", " ") if np.isfinite(value) else "did not get there"
            ax.text(22 if np.isnan(value) else value * 1.04, y, text, va="center", size=7)
    ax.set(xscale="log", xlim=(20, 3e5), xlabel="runs of the simulator, burn-in included")
    ax.set_yticks(np.arange(len(problems)), [problems[i] for i in order])
    ax.set_title("Until means are known to 0.1 sd and standard deviations to 10%", size=10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="lower right", frameon=True, fontsize=8)
    save(figure, "savings")


def draw_tree():
    """Questions in one column, from the top; an answer leads to the right, the other one down."""
    figure, ax = plt.subplots(figsize=(8, 6.6), layout="constrained")
    box = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": GRAY}
    for key, ((x, y), text) in QUESTIONS.items():
        ax.text(x, -y, text, ha="center", va="center", bbox=box)
        arrow(ax, (x + 0.46, -y), (x + 0.78, -y), ASIDE[key])
        arrow(ax, (x, -y - 0.28), (x, -y - 0.72), "yes" if ASIDE[key] == "no" else "no")
        result = {**box, "edgecolor": BLUE}
        ax.text(x + 0.82, -y, ANSWERS[key], ha="left", va="center", family="monospace", bbox=result)
    last = len(QUESTIONS)
    result = {**box, "edgecolor": ORANGE, "linewidth": 2}
    text = "EnsembleKalmanSampler()"
    ax.text(0, -last, text, ha="center", va="center", family="monospace", bbox=result)
    ax.set(xlim=(-0.6, 2.4), ylim=(-last - 0.4, 0.4))
    ax.axis("off")
    save(figure, "which_sampler")


def arrow(ax, start, end, text):
    """Draw an arrow with a word beside it."""
    ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": GRAY})
    x, y = np.mean([start, end], axis=0)
    ax.text(x + 0.03, y + 0.06, text, size=9, color="0.3")


def save(figure, name):
    """Write a picture for the pages."""
    path = DOCS / "images" / f"{name}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(path)


if __name__ == "__main__":
    draw_savings()
    draw_tree()
