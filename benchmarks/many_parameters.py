"""Cost of the likelihood-informed sampler, and of its rivals, for hundreds of parameters.

    python benchmarks/many_parameters.py [names] [--seeds 3]

Names: ``linear``, ``random``, ``deconvolution``, ``darcy64``, ``darcy256``, ``darcy1024``, ``cox``,
``binary``, ``lorenz96``, ``flow``, ``process``, ``resolution``, ``memory``. Every forward
evaluation is counted, those of learning included. Four chains of 50 walkers share what was learned.
A run is done when, from then on, the root mean square over functionals of errors of the mean is
below 0.1 posterior standard deviations, and of relative errors of standard deviations below 10%.
Functionals are eight coordinates, and the eight directions that the data inform most about.
References come from Hamiltonian Monte Carlo with exact gradients; that of ``process``, counts of a
Gaussian process whose length and amplitude are unknown, from NUTS on the same model.
"""

import argparse
import resource
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from pymc_ensemble import InverseProblem
from pymc_ensemble.gallery.darcy import temperatures
from pymc_ensemble.samplers.informed.law import InformedLaw
from pymc_ensemble.samplers.informed.mode import ModeSearch
from pymc_ensemble.samplers.informed.sampler import LikelihoodInformed

CHAINS, SWEEPS, SEEDS = 4, 20, 3


@dataclass
class Case:
    """A problem with the prior N(0, 1), and the slope of its outputs at any point."""

    problem: InverseProblem
    slope: object
    rough_start: np.ndarray | None = None

    @property
    def dimension(self):
        """Number of parameters."""
        return self.problem.dimension

    def potential(self, x):
        """Potentials of points (n, d)."""
        Z = self.problem.forward(x)
        return self.problem.loss(Z) + 0.5 * (x**2).sum(1)

    def gradients(self, x):
        """Potentials and gradients at points (n, d)."""
        Z = self.problem.forward(x)
        g = self.problem.loss_gradient(Z)
        pulled = np.stack([gi @ self.slope(xi) for gi, xi in zip(g, x, strict=True)])
        return self.problem.loss(Z) + 0.5 * (x**2).sum(1), pulled + x


def gaussian(forward, truth, noise, slope, rng):
    """Problem of Gaussian noise, with data of a truth."""
    z = forward(truth[None])[0]
    y = z + noise * rng.standard_normal(len(z))
    d = len(truth)
    problem = InverseProblem(forward, prior=StandardNormal(d), data=y, noise=noise, vectorized=True)
    return Case(problem, slope)


class StandardNormal:
    """Prior that knows its gradient, and no matrix."""

    def __init__(self, d):
        self.d = d

    def sample(self, size, rng):
        """Draws."""
        return rng.standard_normal((size, self.d))

    def logpdf(self, points):
        """Log densities."""
        return -0.5 * (points**2).sum(1) - self.d / 2 * np.log(2 * np.pi)

    def grad_logpdf(self, points):
        """Their gradients."""
        return -points


def linear(ordered, d=500, K=100):
    """A linear map, in leading coordinates or in a random basis."""
    rng = np.random.default_rng(7)
    left = np.linalg.qr(rng.standard_normal((K, K)))[0]
    right = np.eye(d)[:, :K] if ordered else np.linalg.qr(rng.standard_normal((d, K)))[0]
    A = left * (30 / np.arange(1, K + 1) ** 1.5) @ right.T
    truth = rng.standard_normal(d)
    return gaussian(lambda u: u @ A.T, truth, 1.0, lambda x: A, rng)


def deconvolution(d=100):
    """A blurred field on a circle."""
    rng = np.random.default_rng(11)
    grid = np.arange(d) / d
    distance = np.abs(grid[:, None] - grid)
    distance = np.minimum(distance, 1 - distance)
    root = np.linalg.cholesky(np.exp(-distance / 0.1) + 1e-10 * np.eye(d))
    blur = np.exp(-0.5 * (distance[::3] / 0.03) ** 2)
    A = blur / blur.sum(1, keepdims=True) @ root
    return gaussian(lambda u: u @ A.T, rng.standard_normal(d), 0.05, lambda x: A, rng)


def darcy(d, noise=0.01):
    """Groundwater flow."""
    from pymc_ensemble.gallery.darcy import Temperatures, TemperaturesAdjoint

    rng = np.random.default_rng(77)
    truth = rng.standard_normal(d)
    forward, adjoint = Temperatures(), TemperaturesAdjoint()

    def slope(x):
        out = [[None], [None], [None]]
        forward.perform(None, [x], out)
        rows = np.empty((100, d))
        for k in range(100):
            row = [[None]]
            weights = np.zeros(100)
            weights[k] = 1.0
            adjoint.perform(None, [x, out[1][0], out[2][0], weights], row)
            rows[k] = row[0][0]
        return rows

    return gaussian(temperatures, truth, noise, slope, rng)


class DarcyGradient:
    """Gradient of the potential by one adjoint solve."""

    def __init__(self, case):
        self.case = case

    def __call__(self, x):
        """Potentials and gradients at points (n, d)."""
        from pymc_ensemble.gallery.darcy import Temperatures, TemperaturesAdjoint

        forward, adjoint, problem = Temperatures(), TemperaturesAdjoint(), self.case.problem
        values, gradients = np.empty(len(x)), np.empty_like(x)
        for i, u in enumerate(x):
            out = [[None], [None], [None]]
            forward.perform(None, [u], out)
            Z = out[0][0][None]
            row = [[None]]
            adjoint.perform(None, [u, out[1][0], out[2][0], problem.loss_gradient(Z)[0]], row)
            values[i] = problem.loss(Z)[0] + 0.5 * u @ u
            gradients[i] = row[0][0] + u
        return values, gradients


def field(kind, d=256, K=64):
    """Counts or binary data of a field in Karhunen-Loeve coordinates."""
    rng = np.random.default_rng(0)
    x, k = (np.arange(K) + 0.5) / K, np.arange(d)
    scale = 2.0 if kind == "binary" else 1.0
    B = scale * np.sqrt(2) * np.cos(np.pi * np.outer(x, k)) / (1 + (k / 4) ** 1.5)
    base = 0.0 if kind == "binary" else 2.0
    z = base + B @ rng.standard_normal(d)
    if kind == "binary":
        y = (rng.random(K) < 1 / (1 + np.exp(-z))).astype(float)

        def loss(Z):
            return (np.logaddexp(0, Z) - y * Z).sum(1)

        def loss_gradient(Z):
            return 1 / (1 + np.exp(-Z)) - y

        def curvature(Z):
            p = 1 / (1 + np.exp(-Z))
            return p * (1 - p)
    else:
        y = rng.poisson(np.exp(z))

        def loss(Z):
            return (np.exp(np.minimum(Z, 300)) - y * Z).sum(1)

        def loss_gradient(Z):
            return np.exp(np.minimum(Z, 300)) - y

        def curvature(Z):
            return np.exp(np.minimum(Z, 300))

    problem = InverseProblem(
        lambda u: base + u @ B.T,
        prior=StandardNormal(d),
        loss=loss,
        loss_gradient=loss_gradient,
        curvature=curvature,
        n_outputs=K,
        vectorized=True,
    )
    return Case(problem, lambda x: B)


def lorenz96(d=40, steps=8, noise=0.5):
    """Initial state from every second variable, seen twice in 0.4 units of time."""
    rng = np.random.default_rng(0)

    @np.errstate(over="ignore", invalid="ignore")
    def velocity(x):
        return (np.roll(x, -1, 1) - np.roll(x, 2, 1)) * np.roll(x, 1, 1) - x + 8

    def step(x, h=0.05):
        k1 = velocity(x)
        k2 = velocity(x + h / 2 * k1)
        k3 = velocity(x + h / 2 * k2)
        return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + velocity(x + h * k3))

    state = 8 + rng.standard_normal((1, d))
    for _ in range(400):
        state = step(state)
    background = state[0] + rng.standard_normal(d)

    def forward(u):
        x, seen = background + u, []
        for i in range(1, steps + 1):
            x = step(x)
            if i in (steps // 2, steps):
                seen.append(x[:, ::2])
        return np.concatenate(seen, 1)

    return gaussian(forward, state[0] - background, noise, differences(forward), rng)


def flow(d=256, K=24, noise=0.05):
    """Pressures along a line: integrals of the inverse of a log-normal conductivity."""
    rng = np.random.default_rng(5)
    n, k = 256, np.arange(d)
    x = (np.arange(n) + 0.5) / n
    B = np.sqrt(2) * np.cos(np.pi * np.outer(k, x)) / (1 + (k / 3) ** 1.5)[:, None]
    B[0] /= np.sqrt(2)
    T = np.tril(np.ones((n, n)))[np.linspace(n // K - 1, n - 1, K).astype(int)] / n

    def forward(u):
        return np.exp(-np.clip(u @ B, -40, 40)) @ T.T

    truth = rng.standard_normal(d)
    level = noise * forward(truth[None]).max()
    return gaussian(forward, truth, level, lambda u: -(T * np.exp(-u @ B)) @ B.T, rng)


def differences(forward, h=1e-6):
    """Slope by central differences."""

    def slope(x):
        ends = forward(np.concatenate([x + h * np.eye(len(x)), x - h * np.eye(len(x))]))
        return ((ends[: len(x)] - ends[len(x) :]) / (2 * h)).T

    return slope


def process(sites=64):
    """Counts along a line, whose log rate is a Gaussian process of unknown length and amplitude."""
    import pymc as pm

    rng = np.random.default_rng(71)
    x = (np.arange(sites) + 0.5) / sites
    apart = np.sqrt(3) * np.abs(x[:, None] - x) / 0.15
    covariance = 0.8**2 * (1 + apart) * np.exp(-apart)
    root = np.linalg.cholesky(covariance + 1e-8 * np.eye(sites))
    counts = rng.poisson(np.exp(1.5 + root @ rng.standard_normal(sites)))
    with pm.Model() as model:
        length = pm.LogNormal("length", np.log(0.15), 0.4)
        amplitude = pm.LogNormal("amplitude", np.log(0.8), 0.4)
        kernel = amplitude**2 * pm.gp.cov.Matern32(1, length)
        f = pm.gp.Latent(cov_func=kernel).prior("f", x[:, None], jitter=1e-6)
        pm.Poisson("counts", pm.math.exp(1.5 + f), observed=counts)
    return model


# -- references ---------------------------------------------------------------------------------


def mode(case):
    """Mode by Gauss-Newton with exact slopes, and the law there."""
    problem, x, damping = case.problem, np.zeros(case.dimension), 1.0
    value = case.potential(x[None])[0]
    for _ in range(200):
        A, Z = case.slope(x), problem.forward(x[None])
        law = InformedLaw(x, np.sqrt(problem.curvature(Z)[0])[:, None] * A)
        gradient = problem.loss_gradient(Z)[0] @ A + x
        step = law.newton_step(gradient, damping)
        new = case.potential((x + step)[None])[0]
        if new < value:
            gain, x, value, damping = value - new, x + step, new, damping / 5
            if gain < 1e-10:
                break
        else:
            damping *= 5
            if damping > 1e12:
                break
    A, Z = case.slope(x), problem.forward(x[None])
    return value, InformedLaw(x, np.sqrt(problem.curvature(Z)[0])[:, None] * A)


def hamiltonian(case, law, gradients, rng, draws=600, burn_in=100, chains=10, leaps=6):
    """Draws (chains, draws, d) by HMC in coordinates in which the law is standard normal."""
    V, info = law.directions, law.information
    shrink = 1 - 1 / np.sqrt(1 + info)

    def out(xi):
        return law.center + xi - (xi @ V.T) * shrink @ V

    def pull(g):
        return g - (g @ V.T) * shrink @ V

    d = case.dimension
    xi, step = rng.standard_normal((chains, d)), 1.2 / d**0.25
    value, slope = gradients(out(xi))
    kept = []
    for n in range(burn_in + draws):
        p = rng.standard_normal((chains, d))
        h = step * rng.uniform(0.7, 1.3)
        new, q, g = xi, p - 0.5 * h * pull(slope), slope
        for leap in range(leaps):
            new = new + h * q
            v, g = gradients(out(new))
            q = q - h * pull(g) * (0.5 if leap == leaps - 1 else 1.0)
        with np.errstate(over="ignore", invalid="ignore"):
            ratio = value - v + 0.5 * (p**2).sum(1) - 0.5 * (q**2).sum(1)
            accepted = np.log(rng.random(chains)) < np.nan_to_num(ratio, nan=-np.inf)
        xi = np.where(accepted[:, None], new, xi)
        value, slope = np.where(accepted, v, value), np.where(accepted[:, None], g, slope)
        if n < burn_in:
            step *= np.exp(0.3 * (accepted.mean() - 0.8))
        else:
            kept.append(out(xi))
    return np.stack(kept, axis=1)


def functionals(law):
    """Rows of what is compared."""
    d = len(law.center)
    return np.concatenate([np.eye(d)[: min(8, d)], law.directions[:8]])


# -- runs ---------------------------------------------------------------------------------------


def one_round(sampler, case, state, rng):
    """State and account after a round, and its evaluations."""
    points, pending = sampler.ask(state, rng)
    return (*sampler.tell(state, pending, case.problem.evaluate(points)), len(points))


def run(case, seed, F, mean, sd, size=50, chains=CHAINS, sweeps=None):
    """A run of several chains: what it cost, and how good it is."""
    rng = np.random.default_rng(seed)
    sampler = LikelihoodInformed(case.problem, round_size=size)
    state = sampler.start(case.problem.sample_prior(size, rng), redraw=True)
    used = 0
    while state.phase in ("start", "burn-in"):
        state, _, n = one_round(sampler, case, state, rng)
        used += n
    learning, states = used, [state] * chains
    rngs = [np.random.default_rng([seed, chain]) for chain in range(chains)]
    for chain in range(chains):
        while not states[chain].burned_in:
            states[chain], _, n = one_round(sampler, case, states[chain], rngs[chain])
            used += n
    settled, values, good, accepted = used, [], [], []
    for _ in range(sweeps or SWEEPS):
        for chain in range(chains):
            info = None
            while info is None or info.snapshot is None:
                states[chain], info, n = one_round(sampler, case, states[chain], rngs[chain])
                used += n
            values.append(info.snapshot.U @ F.T)
            if np.isinf(info.snapshot.step_size):
                accepted.append(info.snapshot.acceptance.mean())
        X = np.concatenate(values)
        off = np.sqrt((((X.mean(0) - mean) / sd) ** 2).mean())
        ratio = np.sqrt(((X.std(0) / sd - 1) ** 2).mean())
        good.append((used, off, ratio))
    return learning, settled, float(np.mean(accepted)), first_good(good), good[-1]


def first_good(history):
    """Evaluations from which on both errors stay small, or None."""
    found = None
    for used, off, ratio in history:
        good = off < 0.1 and ratio < 0.1
        found = (used if found is None else found) if good else None
    return found


def posterior(name, case, seeds):
    """Runs against a reference."""
    started = perf_counter()
    _, law = mode(case)
    gradients = DarcyGradient(case) if name.startswith("darcy") else case.gradients
    draws = 120 if case.dimension > 500 or name == "lorenz96" else 600
    reference = hamiltonian(case, law, gradients, np.random.default_rng(1), draws)
    F = functionals(law)
    values = reference @ F.T
    flat = values.reshape(-1, len(F))
    mean, sd = flat.mean(0), flat.std(0)
    halves = values[: len(values) // 2], values[len(values) // 2 :]
    apart = np.sqrt((((halves[0].mean((0, 1)) - halves[1].mean((0, 1))) / sd) ** 2).mean())
    off = np.sqrt((((law.center @ F.T - mean) / sd) ** 2).mean())
    print(
        f"{name}: d={case.dimension}, {len(law.informed)} informed, {law.degrees:.1f} degrees of "
        f"freedom; the mode is off by {off:.2f} sd; halves of the reference by {apart:.3f} "
        f"({perf_counter() - started:.0f} s)",
        flush=True,
    )
    for seed in range(seeds):
        learning, settled, acceptance, done, last = run(case, seed, F, mean, sd)
        print(
            f"  seed {seed}: learning {learning}, settled {settled}, acceptance {acceptance:.2f}, "
            f"done at {done}; at {last[0]}: {last[1]:.3f}, {last[2]:.3f}",
            flush=True,
        )


def against_nuts(seeds):
    """Runs of the Gaussian process; functionals are both hyperparameters and 14 coordinates."""
    import pymc as pm

    model, started = process(), perf_counter()
    with model:
        idata = pm.sample(
            1000, tune=1000, chains=4, cores=1, random_seed=1, progressbar=False, target_accept=0.9
        )
    posterior, stats = idata.posterior, idata.sample_stats
    variables = [np.log(posterior[name].values)[..., None] for name in ("length", "amplitude")]
    draws = np.concatenate([*variables, posterior["f_rotated_"].values], axis=-1)[..., :16]
    mean, sd = draws.mean((0, 1)), draws.std((0, 1))
    apart = np.sqrt((((draws[:2].mean((0, 1)) - draws[2:].mean((0, 1))) / sd) ** 2).mean())
    problem = InverseProblem.from_model(model)
    print(
        f"process: d={problem.dimension}; halves of the reference by {apart:.3f}; NUTS: "
        f"{int(stats['n_steps'].sum())} gradients after its burn-in, for {4 * 1000} draws "
        f"({perf_counter() - started:.0f} s)",
        flush=True,
    )
    F = np.eye(problem.dimension)[:16]
    for seed in range(seeds):
        learning, settled, acceptance, done, last = run(
            Case(problem, None), seed, F, mean, sd, sweeps=60
        )
        print(
            f"  seed {seed}: learning {learning}, settled {settled}, acceptance {acceptance:.2f}, "
            f"done at {done}; at {last[0]}: {last[1]:.3f}, {last[2]:.3f}",
            flush=True,
        )


def gaps(name, case, seeds):
    """Evaluations until the potential is so near to its least value."""
    least, _ = mode(case)
    least += 0.5 * case.dimension * np.log(2 * np.pi)
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        sampler = ModeSearch(case.problem)
        state, used, history = sampler.start(case.problem.sample_prior(50, rng), redraw=True), 0, []
        while not state.burned_in:
            state, _, n = one_round(sampler, case, state, rng)
            used += n
            if state.ensemble is not None:
                history.append((used, state.ensemble.potential.min() - least))
        found = [next((n for n, gap in history if gap < limit), None) for limit in (10, 1, 0.1)]
        print(
            f"  mode, seed {seed}: gap below 10, 1, 0.1 at {found}; ends at {used} with "
            f"{history[-1][1]:.1e}, {state.converged}",
            flush=True,
        )


def slopes(name, case, seeds):
    """Error of the slope of a linear map after rounds of a hundred."""
    A = case.slope(np.zeros(case.dimension))
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        sampler = LikelihoodInformed(case.problem, round_size=100, tolerance=1e-12)
        state, used, told = sampler.start(case.problem.sample_prior(100, rng)), 0, []
        while used < 900 and state.phase in ("start", "burn-in"):
            state, _, n = one_round(sampler, case, state, rng)
            used += n
            if state.phase == "burn-in":
                slope = state.inner.tracker.slope
                told.append(f"{used}: {np.linalg.norm(slope - A) / np.linalg.norm(A):.1e}")
        print(f"  slope, seed {seed}: {', '.join(told[3:])}", flush=True)


def exact(name, case, seeds):
    """Mean and variances of the law of a linear map against the closed form, round by round."""
    A, problem = case.slope(np.zeros(case.dimension)), case.problem
    zero = np.zeros((1, problem.n_outputs))
    h, g = problem.curvature(zero)[0], problem.loss_gradient(zero)[0]
    covariance = np.linalg.inv(np.eye(case.dimension) + (A.T * h) @ A)
    mean, sd = -covariance @ A.T @ g, np.sqrt(np.diag(covariance))
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        sampler = LikelihoodInformed(problem)
        state, used, told = sampler.start(problem.sample_prior(50, rng)), 0, []
        while state.phase in ("start", "burn-in"):
            state, _, n = one_round(sampler, case, state, rng)
            used += n
            learning = state.phase == "burn-in"
            target = sampler.learned(state.inner) if learning else state.inner.target
            variances = np.diag(target.law.contract(np.eye(case.dimension)))
            off = np.abs((target.law.center - mean) / sd).max()
            told.append(f"{used}: {off:.1e} sd, {np.abs(variances / sd**2 - 1).max():.1e}")
        print(f"  exact, seed {seed}: {'; '.join(told[1:])}", flush=True)


def resolution():
    """Acceptance with exact slopes, the same field in more and more modes."""
    for d in (64, 256, 1024):
        case = darcy(d)
        _, law = mode(case)
        rng = np.random.default_rng(0)
        x = law.draw(400, rng)
        weights = -case.potential(x) - law.log_density(x)
        from pymc_ensemble.samplers.informed.walk import expected_acceptance

        print(f"resolution: d={d}, acceptance {expected_acceptance(weights):.2f}", flush=True)


def memory(d=100_000, K=100):
    """A linear map of many parameters: peak memory of a thousand evaluations."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((K, d)) / (1 + np.arange(d)) * 10
    case = gaussian(lambda u: u @ A.T, rng.standard_normal(d), 1.0, lambda x: A, rng)
    started, used = perf_counter(), 0
    sampler = LikelihoodInformed(case.problem, round_size=100)
    state = sampler.start(case.problem.sample_prior(100, rng))
    while used < 1000 and state.phase in ("start", "burn-in"):
        state, info, n = one_round(sampler, case, state, rng)
        used += n
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"memory: d={d}, {used} evaluations, {peak:.2f} GiB, {perf_counter() - started:.0f} s; "
        f"{info.message}",
        flush=True,
    )


CASES = {
    "linear": lambda: linear(True),
    "random": lambda: linear(False),
    "deconvolution": deconvolution,
    "darcy64": lambda: darcy(64),
    "darcy256": lambda: darcy(256),
    "darcy1024": lambda: darcy(1024),
    "cox": lambda: field("counts"),
    "binary": lambda: field("binary"),
    "lorenz96": lorenz96,
    "flow": flow,
}
EXTRA = {
    "linear": slopes,
    "random": slopes,
    "deconvolution": exact,
    "darcy64": gaps,
    "darcy256": gaps,
    "darcy1024": gaps,
}


def main():
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=[*CASES, "process", "resolution", "memory"])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    for name in options.names:
        if name in ("resolution", "memory"):
            {"resolution": resolution, "memory": memory}[name]()
            continue
        if name == "process":
            against_nuts(options.seeds)
            continue
        case = CASES[name]()
        posterior(name, case, options.seeds)
        if name in EXTRA:
            EXTRA[name](name, case, options.seeds)


if __name__ == "__main__":
    main()
