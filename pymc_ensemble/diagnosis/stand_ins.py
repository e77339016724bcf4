"""Findings against draws of surrogates, estimates and inversions, which replace a model."""

from collections.abc import Iterator

import numpy as np

from pymc_ensemble.log import number, percent
from pymc_ensemble.samplers.proposals import GOOD, POOR

from .ensembles import LOST
from .known import CHANCE_LIMIT, POSSIBLE, SAMPLE, Evidence, Finding
from .limits import RARE, WRONG_SD
from .run import Run

FAMILIAR = 1 - RARE  # share of simulations that may be nearer to the others than the data are
# acceptance of a learned law by draws of the posterior below which they may lack tails
LACKING = 0.1
HELPS = 0.5  # error of means above which a cheap model does not help


def inverted(evidence: Evidence) -> Iterator[Finding]:
    """Find draws of an inversion, which no sampler has made."""
    if evidence.law != "inversion":
        return
    target = evidence.run.facts.options.get("target")
    if target != "posterior":
        yield Finding(
            "wrong",
            f'an ensemble Kalman inversion with target="{target}" has made the draws: their spread '
            "is no uncertainty.",
            f"{SAMPLE}.",
        )
        return
    yield Finding(
        "doubtful",
        "an ensemble Kalman inversion has made the draws: an approximation of the posterior that "
        "no evaluation was made to test.",
        f"{SAMPLE}.",
    )


def far_from_learned(evidence: Evidence) -> Iterator[Finding]:
    """Find a learned law whose independent proposals are rarely accepted."""
    run = evidence.run
    if not run.origin.learned:
        return
    learned, rarely = run.origin.law_acceptance, run.independent_acceptance < POOR
    if learned is not None and learned < LACKING and not rarely:
        # such proposals may miss tails: for a Gaussian process with unknown length and amplitude
        # 40% were accepted, but means were off by 0.3 sd
        yield Finding(
            "doubtful",
            "the posterior is far from the learned law: draws of the posterior would accept only "
            f"{percent(learned)} of those of the law. Curvature was learned, too, and of proposals "
            f"with it {percent(run.independent_acceptance)} were accepted.",
            "Draw more, and see whether means stay where they are.",
        )
        return
    reached = run.origin.reached
    if reached is not None and reached < GOOD and not rarely:
        yield Finding(
            "doubtful",
            "independent proposals may miss a part of the posterior: draws of the prior that the "
            f"data allow would accept only {percent(reached)} of them.",
            "Compare with EnsembleKalmanSampler(adjust=True).",
        )
        return
    if not rarely:
        return
    yield Finding(
        "doubtful",
        "the posterior is far from the learned law: only "
        f"{percent(run.independent_acceptance)} of the independent proposals were accepted.",
        "Draw more, until the chains agree, or write the model in coordinates in which the forward "
        "map is nearer to a linear one. With few parameters, use EnsembleKalmanSampler or "
        "EnsembleGaussianProcessSampler.",
    )


def law_alone(evidence: Evidence) -> Iterator[Finding]:
    """Find a learned law that was not compared with any evaluation."""
    run = evidence.run
    if run.facts.sampler != "approximate" or np.isfinite(run.stats["lp"]).any():
        return
    if run.facts.map == "stochastic":
        remedy = "EnsembleKalmanSampler averages over the noise, too."
    else:
        remedy = "Let approximate weigh them, or use LikelihoodInformedSampler."
    yield Finding(
        "doubtful",
        "the draws are those of the learned law alone, and nothing tells how far the posterior is "
        "from it.",
        remedy,
    )


def surrogate(evidence: Evidence) -> Iterator[Finding]:
    """Find a surrogate that predicts the forward map wrongly."""
    run = evidence.run
    if evidence.law != "surrogate":
        return
    if "cheap" in run.facts.options:
        yield from _not_corrected(run)
        return
    if (tolerance := run.facts.options.get("tolerance")) is not None:
        if not run.converged:
            yield Finding(
                "doubtful",
                f"the surrogate was not certified to {tolerance:g} posterior standard deviations.",
                "Allow more max_evaluations, or leave out the tolerance.",
            )
        return
    remedy = "Give it more epochs (tune), a larger ensemble, or use adjust=True."
    if not run.converged:
        yield Finding("wrong", "the surrogate did not pass its verification.", remedy)
    errors = [run.stats.get(name) for name in ("surrogate_error", "surrogate_error_sd")]
    mean, sd = (0.0 if e is None else float(np.nan_to_num(e).max()) for e in errors)
    if mean > CHANCE_LIMIT or sd > WRONG_SD / POSSIBLE:
        yield Finding(
            "doubtful",
            f"the surrogate leaves means open by {number(mean, '.2f')} posterior standard "
            f"deviations, and standard deviations by {percent(sd)}.",
            remedy,
        )


def _not_corrected(run: Run) -> Iterator[Finding]:
    """Find a cheap model whose correction was not certified."""
    limit, tolerance = (float(run.facts.options[name]) for name in ("certificate", "tolerance"))
    if limit <= tolerance and run.converged:
        return
    told = f"that the correction of the cheap model is right to {tolerance:g} posterior standard "
    if limit <= HELPS:
        yield Finding(
            "doubtful",
            f"it was not certified {told}deviations: means may be off by {number(limit)} of them.",
            "Give it more: max_evaluations.",
        )
        return
    yield Finding(
        "wrong",
        f"the cheap model does not help: it was not certified {told}deviations, and means may be "
        f"off by {'any number' if np.isinf(limit) else number(limit)} of them.",
        "Use a better cheap model, or EnsembleGaussianProcessSampler with the store of the fine "
        "one as its archive.",
    )


def amortized(evidence: Evidence) -> Iterator[Finding]:
    """Findings about an estimate that was learned from simulations."""
    if evidence.law != "amortized":
        return
    options = evidence.run.facts.options
    if options["surprise"] > FAMILIAR:
        yield Finding(
            "doubtful",
            f"{percent(options['surprise'])} of the simulations look more like the others than "
            "these data do: the estimate has not learned from any that are like them.",
            "Check the model and the data. With a likelihood, sample: "
            "pm.sample(step=EnsembleKalmanSampler()).",
        )
    if options["outside"] > LOST:
        yield Finding(
            "doubtful",
            f"{percent(options['outside'])} of what the estimate drew lay outside of the prior, "
            "and was rejected.",
            "Simulate more, or correct the draws by the likelihood: "
            "AmortizedPosterior.refine(data, evaluations=200).",
        )
    verdict = options.get("coverage")
    if verdict == "overconfident":
        yield Finding(
            "wrong",
            "the estimate is overconfident: its regions hold the truth less often than they claim.",
            'Simulate more, or use method="ratio" with conservative=True.',
        )
    elif verdict is None:
        yield Finding(
            "doubtful",
            "nothing has tested the estimate that the draws come from.",
            "Test it, AmortizedPosterior.coverage(), and draw again; or correct the draws by the "
            "likelihood, AmortizedPosterior.refine(data, evaluations=200).",
        )
