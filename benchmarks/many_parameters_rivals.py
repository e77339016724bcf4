"""Evaluations and rounds of the likelihood-informed sampler and of its rivals, problem by problem.

    python benchmarks/many_parameters_rivals.py [problems] [--methods ...] [--most 40000]

Problems are those of the gallery: ``deconvolution``, ``cox_process``, ``darcy``, ``line_flow`` and
``initial_state``. A run is done when, from then on, the root mean square over 16 functionals of
errors of means is below 0.1 posterior standard deviations, and of relative errors of standard
deviations below 10%. Functionals are eight coordinates, and the eight directions that the data
inform most about. Every forward evaluation is counted, and every gradient as one more. Points of
one round could be evaluated at the same time.

Methods: ``informed``, four chains of 50 walkers; ``pcn``, 50 walkers by preconditioned
Crank-Nicolson moves of the prior, adapted; ``functional``, 100 walkers of Coullon and Webber's
functional ensemble sampler, with stretch moves in 5, 10 or 20 leading modes of the prior, and the
best of these is told; ``emcee``, 2 d + 2 walkers; ``demetropolis``, four chains of
`pm.DEMetropolisZ`; ``nuts``, four chains of `pm.NUTS` with gradients, where the gallery has them.
``differences`` is Gauss-Newton with forward differences, and ``tracked`` the search of
`find_MAP_ensemble`: both until the log density is within 0.1 of its largest value.
"""

import argparse
from functools import partial

import numpy as np
import pymc as pm
from many_parameters import first_good, one_round, run

from pymc_ensemble import InverseProblem, gallery
from pymc_ensemble.gallery.darcy import darcy
from pymc_ensemble.samplers.informed.law import InformedLaw
from pymc_ensemble.samplers.informed.mode import ModeSearch
from pymc_ensemble.samplers.informed.sampler import LikelihoodInformed

PROBLEMS = {
    "deconvolution": gallery.deconvolution,
    "cox_process": gallery.cox_process,
    "darcy": partial(darcy, 64),
    "line_flow": gallery.line_flow,
    "initial_state": gallery.initial_state,
}


class Setting:
    """A problem in the modes of its prior, and what is compared.

    Coordinates are those of the prior's principal components, the widest first, in standard
    deviations.
    """

    def __init__(self, name):
        self.name, self.model = name, PROBLEMS[name]()
        self.problem = InverseProblem.from_model(self.model)
        reference = LikelihoodInformed(self.problem).reference
        self.d = self.problem.dimension
        root = reference.points(np.eye(self.d)) - reference.mean
        widths, modes = np.linalg.eigh(root.T @ root)
        if reference.root is None:
            widths, modes = np.ones(self.d), np.eye(self.d)[:, ::-1]  # in the order of the model
        self.mean, self.modes = reference.mean, (modes * np.sqrt(widths))[:, ::-1]
        self.used = self.rounds = 0
        draws = self.model.reference_draws["u"].values
        x = np.linalg.solve(self.modes, (draws - self.mean).T).T
        A = np.linalg.lstsq(x - x.mean(0), self.outputs(x) - self.outputs(x).mean(0), rcond=None)[0]
        h = self.problem.curvature(self.outputs(x.mean(0)[None]))[0]
        law = InformedLaw(x.mean(0), np.sqrt(h)[:, None] * A.T)
        self.F = np.concatenate([np.eye(self.d)[:8], law.directions[:8]])
        values = x @ self.F.T
        self.expected, self.sd = values.mean(0), values.std(0)
        self.reset()

    def reset(self):
        """Count from now on."""
        self.used = self.rounds = 0
        self.values, self.history = [], []

    def points(self, x):
        """Points in unconstrained coordinates."""
        return self.mean + x @ self.modes.T

    def outputs(self, x):
        """Forward outputs."""
        self.used, self.rounds = self.used + len(x), self.rounds + 1
        return self.problem.evaluate(self.points(x)).outputs

    def loss(self, x):
        """Losses, infinite where they are none."""
        with np.errstate(over="ignore", invalid="ignore"):
            loss = self.problem.loss(self.outputs(x))
        return np.where(np.isfinite(loss), loss, np.inf)

    def judge(self, x, used=None, rounds=None):
        """Take note of draws."""
        self.values.append(x @ self.F.T)
        used, rounds = used or self.used, rounds or self.rounds
        if self.history and used < 1.05 * self.history[-1][0]:
            return
        kept = np.concatenate(self.values[len(self.values) // 5 :])  # without a burn-in
        off = np.sqrt((((kept.mean(0) - self.expected) / self.sd) ** 2).mean())
        ratio = np.sqrt(((kept.std(0) / self.sd - 1) ** 2).mean())
        self.history.append((used, off, ratio, rounds))

    def told(self):
        """What it took, in words."""
        done = first_good([entry[:3] for entry in self.history])
        used, off, ratio, rounds = self.history[-1]
        if done is None:
            return f"not by {used} in {rounds} rounds: {off:.2f}, {ratio:.0%}"
        rounds = next(entry[3] for entry in self.history if entry[0] >= done)
        return f"{done} in {rounds} rounds"


def accepted(old, new, log_ratio, rng):
    """Which proposals a Metropolis test accepts."""
    with np.errstate(invalid="ignore", over="ignore"):
        alpha = np.where(np.isfinite(new), np.exp(np.minimum(0.0, old - new + log_ratio)), 0.0)
    return rng.random(len(old)) < alpha, float(alpha.mean())


def pcn(setting, rng, most, walkers=50, target=0.25):
    """Preconditioned Crank-Nicolson moves of the prior."""
    x, size = rng.standard_normal((walkers, setting.d)), 0.2
    loss = setting.loss(x)
    while setting.used < most:
        new = np.sqrt(1 - size**2) * x + size * rng.standard_normal(x.shape)
        proposed = setting.loss(new)
        taken, alpha = accepted(loss, proposed, 0.0, rng)
        x, loss = np.where(taken[:, None], new, x), np.where(taken, proposed, loss)
        if setting.used < most / 5:
            size = float(np.clip(size * np.exp(0.1 * (alpha - target)), 1e-3, 1.0))
        setting.judge(x)
    return setting.told()


def functional(setting, rng, most, leading, walkers=100, target=0.25):
    """Stretch moves in leading modes together with pCN moves in the others, half by half."""
    x, size = rng.standard_normal((walkers, setting.d)), 0.2
    loss = setting.loss(x)
    while setting.used < most:
        order = rng.permutation(walkers)
        for group, others in ((order[::2], order[1::2]), (order[1::2], order[::2])):
            n, low = len(group), x[group][:, :leading]
            z = (1 + rng.random(n)) ** 2 / 2  # of density z^-1/2 between 1/2 and 2
            partners = x[rng.choice(others, n)][:, :leading]
            new = np.sqrt(1 - size**2) * x[group] + size * rng.standard_normal((n, setting.d))
            new[:, :leading] = partners + z[:, None] * (low - partners)
            proposed = setting.loss(new)
            energy = 0.5 * ((low**2).sum(1) - (new[:, :leading] ** 2).sum(1))
            taken, alpha = accepted(loss[group], proposed, (leading - 1) * np.log(z) + energy, rng)
            x[group[taken]], loss[group[taken]] = new[taken], proposed[taken]
            if setting.used < most / 5:
                size = float(np.clip(size * np.exp(0.1 * (alpha - target)), 1e-3, 1.0))
        setting.judge(x.copy())
    return setting.told()


def best_functional(setting, rng, most):
    """The best number of leading modes."""
    told = []
    for leading in (5, 10, 20):
        setting.reset()
        words = functional(setting, rng, most, leading)
        last = setting.history[-1]
        told.append((words.startswith("not"), last[1] + last[2], f"{words} ({leading} modes)"))
    return min(told)[2]


def emcee(setting, rng, most):
    """Affine-invariant ensemble sampler."""
    from emcee import EnsembleSampler

    walkers = 2 * setting.d + 2

    def log_density(x):
        return -setting.loss(x) - 0.5 * (x**2).sum(1)

    sampler = EnsembleSampler(walkers, setting.d, log_density, vectorize=True)
    sampler.random_state = np.random.RandomState(int(rng.integers(2**31))).get_state()
    for state in sampler.sample(
        rng.standard_normal((walkers, setting.d)), iterations=most // walkers
    ):
        setting.judge(state.coords.copy())
    return setting.told()


def chains_told(setting, draws, used, rounds):
    """Judge chains of draws (chains, draws, d) whose evaluations are known at each draw."""
    x = np.linalg.solve(setting.modes, (draws - setting.mean).transpose(0, 2, 1))
    x = x.transpose(2, 0, 1)
    for k in range(len(x)):
        setting.judge(x[k], used=int(used[k]), rounds=int(rounds[k]))
    return setting.told()


def demetropolis(setting, rng, most, chains=4):
    """Differential evolution with a history; a tenth of the evaluations is its burn-in."""
    draws = most // chains
    with setting.model:
        idata = pm.sample(
            draws=draws - draws // 10,
            tune=draws // 10,
            chains=chains,
            cores=1,
            step=pm.DEMetropolisZ(),
            random_seed=int(rng.integers(2**31)),
            progressbar=False,
            compute_convergence_checks=False,
            quiet=True,
        )
    steps = draws // 10 + 1 + np.arange(draws - draws // 10)
    return chains_told(setting, idata.posterior["u"].values, chains * steps, steps)


def nuts(setting, rng, most, chains=4):
    """NUTS on the version of the model with gradients; its first 500 draws are a burn-in."""
    if setting.name == "initial_state":
        return "no gradients in the gallery"
    with PROBLEMS[setting.name](native=True):
        idata = pm.sample(
            draws=500,
            tune=500,
            chains=chains,
            cores=1,
            random_seed=int(rng.integers(2**31)),
            progressbar=False,
            compute_convergence_checks=False,
            discard_tuned_samples=False,
            quiet=True,
        )
    burn_in = int(idata.warmup_sample_stats["n_steps"].sum())
    steps = idata.sample_stats["n_steps"].values
    used = 2 * (burn_in + np.cumsum(steps.sum(0)))  # a value and a gradient each
    rounds = int(idata.warmup_sample_stats["n_steps"].sum("draw").max()) + np.cumsum(steps.max(0))
    return chains_told(setting, idata.posterior["u"].values, used, rounds)


def informed(setting, rng, most):
    """The sampler of this package."""
    setting.reset()
    F = np.linalg.solve(setting.modes.T, setting.F.T).T  # of points, instead of coordinates
    shift = F @ setting.mean
    learning, _, acceptance, done, last = run(
        setting, int(rng.integers(2**31)), F, setting.expected + shift, setting.sd
    )
    words = f"not by {last[0]}" if done is None else f"{done}"
    rounds = learning / 50 + ((done or last[0]) - learning) / 200
    return f"{words} in {rounds:.0f} rounds (learning {learning}, acceptance {acceptance:.2f})"


def tracked(setting, rng, most):
    """Search for the mode with a learned slope."""
    search = ModeSearch(setting.problem)
    state, used, rounds, history = (
        search.start(setting.problem.sample_prior(50, rng), redraw=True), 0, 0, []
    )  # fmt: skip
    while not state.burned_in:
        state, _, n = one_round(search, setting, state, rng)
        used, rounds = used + n, rounds + 1
        if state.ensemble is not None:
            history.append((state.ensemble.potential.min(), used, rounds))
    least = history[-1][0]
    _, used, rounds = next(entry for entry in history if entry[0] < least + 0.1)
    return f"{used} in {rounds} rounds"


def differences(setting, rng, most):
    """Gauss-Newton steps with forward differences and damping that is searched, from the mean."""
    setting.reset()
    x, damping, history = np.zeros(setting.d), 1.0, []
    Z = setting.outputs(x[None])
    value = setting.problem.loss(Z)[0]
    while setting.used < most:
        ahead = setting.outputs(x + 1e-6 * np.eye(setting.d))
        A = (ahead - Z).T / 1e-6
        law = InformedLaw(x, np.sqrt(setting.problem.curvature(Z)[0])[:, None] * A)
        gradient = setting.problem.loss_gradient(Z)[0] @ A + x
        before = value
        for _ in range(12):
            step = law.newton_step(gradient, damping)
            new = setting.outputs((x + step)[None])
            with np.errstate(over="ignore", invalid="ignore"):
                proposed = setting.problem.loss(new)[0] + 0.5 * ((x + step) ** 2).sum()
            if proposed < value:
                x, Z, value, damping = x + step, new, proposed, damping / 10
                break
            damping *= 10
        history.append((value, setting.used, setting.rounds))
        if before - value < 1e-4:
            break
    _, used, rounds = next(entry for entry in history if entry[0] < value + 0.1)
    return f"{used} in {rounds} rounds"


METHODS = {
    "informed": informed,
    "pcn": pcn,
    "functional": best_functional,
    "emcee": emcee,
    "demetropolis": demetropolis,
    "nuts": nuts,
    "tracked": tracked,
    "differences": differences,
}


def main():
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("problems", nargs="*", default=[*PROBLEMS])
    parser.add_argument("--methods", nargs="*", default=[*METHODS])
    parser.add_argument("--most", type=int, default=40_000, help="evaluations of a rival")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in options.problems:
        setting = Setting(name)
        print(f"{name}, {setting.d} parameters", flush=True)
        for method in options.methods:
            setting.reset()
            told = METHODS[method](setting, np.random.default_rng(options.seed), options.most)
            print(f"  {method}: {told}", flush=True)


if __name__ == "__main__":
    main()
