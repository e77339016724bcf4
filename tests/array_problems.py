"""Small inverse problems on arrays, with exact facts about their posteriors, and loops to run them.

They follow the protocol of ``pymc_ensemble.InverseProblem`` without being one: what the samplers
need is tested here without PyMC.
"""

from dataclasses import dataclass

import numpy as np

from pymc_ensemble.forward.evaluation import Evaluations
from pymc_ensemble.samplers.ensemble import Ensemble


class GaussianProblem:
    """Forward map with white noise of unit variance and the prior ``N(prior_mean, P0^-1)``."""

    quadratic_loss = True
    gaussian_prior = True
    fails = None  # function of U: mask of the evaluations that fail

    def __init__(self, forward_map, data, prior_mean, P0):
        self.forward_map = forward_map
        self.data = np.asarray(data, float)
        self.prior_mean = np.asarray(prior_mean, float)
        self.P0 = np.asarray(P0, float)
        self.dimension = len(self.prior_mean)
        self.n_outputs = self.data.size
        self.n_evaluations = 0

    def sample_prior(self, size, rng):
        xi = rng.standard_normal((size, self.dimension))
        return self.prior_mean + np.linalg.solve(np.linalg.cholesky(self.P0).T, xi.T).T

    def evaluate(self, U):
        self.n_evaluations += len(U)
        with np.errstate(over="ignore", invalid="ignore"):
            Z = np.array(self.forward_map(U))
        if self.fails is not None:
            Z[self.fails(U)] = np.nan
        return Evaluations.from_outputs(Z)

    def loss(self, Z):
        with np.errstate(over="ignore"):
            loss = self.pointwise_loss(Z).sum(1)
        return np.where(np.isfinite(loss), loss, np.inf)

    def pointwise_loss(self, Z):
        return 0.5 * (Z - self.data) ** 2

    def loss_gradient(self, Z):
        return Z - self.data

    def curvature(self, Z):
        return np.ones_like(Z)

    def misfit(self, Z):
        if self.quadratic_loss:
            return ((Z - self.data) ** 2).mean(1)
        return np.full(len(Z), np.nan)

    def prior_potential(self, U):
        e = U - self.prior_mean
        return 0.5 * (e * (e @ self.P0)).sum(1)

    def prior_gradient(self, U):
        return (U - self.prior_mean) @ self.P0

    def prior_hessian(self, u):
        return self.P0

    def failing(self, fails):
        """This problem, with evaluations that fail where ``fails(U)`` says so."""
        self.fails = fails
        return self

    def ensemble(self, U):
        return Ensemble.evaluated(self, U, self.evaluate(U))

    def transformed(self, B, c):
        """The same problem in the coordinates ``B u + c``."""
        inverse = np.linalg.inv(B)
        forward_map, result = self.forward_map, object.__new__(type(self))
        result.__dict__.update(self.__dict__)
        GaussianProblem.__init__(
            result,
            lambda V: forward_map((V - c) @ inverse.T),
            self.data,
            B @ self.prior_mean + c,
            inverse.T @ self.P0 @ inverse,
        )
        return result


class LinearProblem(GaussianProblem):
    """``G(u) = A u``: the posterior is Gaussian with a known mean and precision."""

    def __init__(self, A, data, prior_mean, P0):
        super().__init__(lambda U: U @ A.T, data, prior_mean, P0)
        self.precision = A.T @ A + self.P0
        self.covariance = np.linalg.inv(self.precision)
        self.mean = self.covariance @ (A.T @ self.data + self.P0 @ self.prior_mean)
        self.sd = np.sqrt(np.diag(self.covariance))

    def sample_posterior(self, size, rng):
        return rng.multivariate_normal(self.mean, self.covariance, size, method="cholesky")

    def standardized(self, U):
        """Coordinates in which the posterior is ``N(0, I)``."""
        return (U - self.mean) @ np.linalg.cholesky(self.precision)


class PoissonRegression(GaussianProblem):
    """Counts with rates ``exp(X u)``; the outputs are the linear predictors ``X u``."""

    quadratic_loss = False

    def __init__(self):
        rng = np.random.default_rng(5)
        self.X = np.column_stack([np.ones(60), rng.standard_normal((60, 4))])
        counts = rng.poisson(np.exp(self.X @ [0.5, 0.4, -0.5, 0.3, 0.2]))
        super().__init__(lambda U: U @ self.X.T, counts, np.zeros(5), np.eye(5))
        self.mean = np.array([0.3903, 0.2584, -0.5148, 0.4867, 0.2476])
        self.sd = np.array([0.1183, 0.0889, 0.0992, 0.0903, 0.1030])

    def pointwise_loss(self, Z):
        return np.exp(Z) - self.data * Z

    def loss_gradient(self, Z):
        return np.exp(np.clip(Z, -30, 30)) - self.data

    def curvature(self, Z):
        return np.exp(np.clip(Z, -30, 30))


class TwoCompartments(GaussianProblem):
    """Logarithms of concentrations after a dose, with noise of unknown size.

    Parameters are logarithms of the dose, of three rates, and of the noise, which has a half-normal
    prior with scale 1/2, and is an output, too. With the noise of the prior the curve hardly
    counts: an ensemble that comes from there finds the small noise of the data last. The moments
    are those of two runs of 360 000 draws, which agree to 0.006 sd.
    """

    quadratic_loss = gaussian_prior = False

    def __init__(self):
        self.hours = np.array([0.25, 0.5, 0.75, 1, 1.25, 2, 3, 4, 5, 6, 8])
        data = np.log([1.50, 0.94, 0.78, 0.48, 0.37, 0.19, 0.12, 0.11, 0.08, 0.07, 0.05])
        center = np.log([2.0, 1.0, 0.5, 0.5, 0.5])
        super().__init__(self.outputs, data, center, np.diag([1.0, 1, 1, 1, 0]))
        self.n_outputs = len(data) + 1
        self.mean = np.array([0.80596, -0.02359, -0.37726, -1.18287, -2.53908])
        self.sd = np.array([0.09741, 0.09238, 0.10427, 0.15755, 0.30514])

    def outputs(self, U):
        start, out, over, back = np.exp(U[:, :4, None]).swapaxes(0, 1)
        half = 0.5 * (out + over + back)
        fast = half + np.sqrt(half**2 - out * back)
        slow = out * back / fast
        share = (fast - back) / (fast - slow)
        fall = share * np.exp(-fast * self.hours) + (1 - share) * np.exp(-slow * self.hours)
        with np.errstate(divide="ignore"):
            return np.column_stack([np.log(start * fall), U[:, 4]])

    def sample_prior(self, size, rng):
        U = self.prior_mean + rng.standard_normal((size, 5))
        U[:, 4] = np.log(0.5 * np.abs(rng.standard_normal(size)))
        return U

    def pointwise_loss(self, Z):
        return 0.5 * ((Z[:, :-1] - self.data) * np.exp(-Z[:, -1:])) ** 2 + Z[:, -1:]

    def loss_gradient(self, Z):
        weight = np.exp(-2 * Z[:, -1:])
        residual = Z[:, :-1] - self.data
        of_noise = (1 - weight * residual**2).sum(1, keepdims=True)
        return np.column_stack([weight * residual, of_noise])

    def curvature(self, Z):
        n = len(self.data)
        return np.column_stack([np.exp(-2 * Z[:, -1:]).repeat(n, 1), np.full(len(Z), 2.0 * n)])

    def prior_potential(self, U):
        with np.errstate(over="ignore"):
            return super().prior_potential(U) + 2 * np.exp(2 * U[:, 4]) - U[:, 4]

    def prior_gradient(self, U):
        gradient = super().prior_gradient(U)
        gradient[:, 4] += 4 * np.exp(2 * U[:, 4]) - 1
        return gradient

    def prior_hessian(self, u):
        return self.P0 + np.diag([0, 0, 0, 0, 8 * np.exp(2 * u[4])])


class Density:
    """A problem whose forward map is hidden: its one output is its loss."""

    density_only = True
    quadratic_loss = False

    def __init__(self, problem):
        self.problem = problem
        self.n_evaluations = 0

    def __getattr__(self, name):
        return getattr(self.__dict__["problem"], name)

    def evaluate(self, U):
        self.n_evaluations += len(U)
        return Evaluations.from_outputs(
            self.problem.loss(self.problem.evaluate(U).outputs)[:, None]
        )

    def loss(self, Z):
        return Z[:, 0]

    def loss_gradient(self, Z):
        return np.ones_like(Z)

    def curvature(self, Z):
        return np.zeros_like(Z)


def random_linear(d, seed=0):
    """Well-conditioned linear problem with a correlated prior that is not centered."""
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((d, d)) / np.sqrt(d) + np.eye(d)
    A = rng.standard_normal((d + 2, d))
    return LinearProblem(A, rng.standard_normal(d + 2), rng.standard_normal(d), root.T @ root)


def stiff_linear(d):
    """Linear problem whose posterior precision has condition 50, outputs in twice the dimension."""
    rng = np.random.default_rng(1000)
    Q, _ = np.linalg.qr(rng.standard_normal((2 * d, d)))
    W, _ = np.linalg.qr(rng.standard_normal((d, d)))
    A = Q * np.sqrt(np.logspace(0, 2, d)) @ W.T
    data = A @ rng.standard_normal(d) + rng.standard_normal(2 * d)
    return LinearProblem(A, data, np.zeros(d), np.eye(d))


def oscillating(rough):
    """``A u + sin(2 pi u / eps)`` with ``A = diag(-1, 2)``; the exact facts are for ``A u``."""
    scale, A = np.sqrt(0.05), np.diag([-1.0, 2.0])
    data = np.array([1.028114, 1.970460]) / scale
    problem = LinearProblem(A / scale, data, np.zeros(2), np.eye(2) / 0.05)
    if rough:
        problem.forward_map = lambda U: (U @ A + np.sin(20 * np.pi * U)) / scale
    return problem


def decay(noise=0.05, prior_sd=1.0, roughness=0.0):
    """Amplitude and rate (in logs) of an exponential decay seen at twelve times.

    With `roughness` the outputs carry fast oscillations of so many noise sd; the exact facts are
    those of the smooth map.
    """
    data = {
        0.05: "1.152259 .857051 .682911 .495785 .342909 .296697 "
        ".275178 .205603 .084077 .026611 .036576 .053118",
        0.3: "1.183692 .824025 .843017 .522010 .208992 .387095 "
        ".601178 .442373 -.091857 -.289744 -.119243 .063449",
    }[noise]
    t = np.linspace(0.2, 4, 12)

    def smooth(U):
        return np.exp(U[:, :1]) * np.exp(-np.exp(U[:, 1:]) * t) / noise

    def rough(U):
        return smooth(U) + roughness * np.sin(100 * np.pi * (U @ directions.T) + phases)

    rng = np.random.default_rng(3)
    phases, directions = 2 * np.pi * rng.random(12), rng.standard_normal((12, 2))
    P0 = np.eye(2) / prior_sd**2
    problem = GaussianProblem(smooth, np.array(data.split(), float) / noise, np.zeros(2), P0)
    lower, upper = {0.05: ([-0.2, -0.9], [0.8, 0.5]), 0.3: ([-2.5, -5.0], [2.5, 3.5])}[noise]
    integrate(problem, lower, upper)
    if roughness:
        problem.forward_map = rough
    return problem


def parabola(steep, d, bend=0.5, prior_sd=1.0, data=(0.0, 1.0)):
    """The first of d parameters lies near a parabola of the second, up to a part of the third."""

    def outputs(U):
        return np.stack([steep * (U[:, 0] - bend * U[:, 1] ** 2 - 0.3 * U[:, 2]), U[:, 1]], axis=1)

    problem = GaussianProblem(outputs, data, np.zeros(d), np.eye(d) / prior_sd**2)
    u = np.linspace(-6, 6, 2001) * prior_sd
    rows, variance = np.array([1.0, -0.3]), prior_sd**2
    gain = variance * rows / (1.09 * variance + 1 / steep**2)
    misfit = (bend * u**2 + data[0] / steep) ** 2 / (1.09 * variance + 1 / steep**2)
    log_density = -0.5 * (u**2 / variance + (u - data[1]) ** 2 + misfit)
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    means = np.stack([gain[0] * bend * u**2, u, gain[1] * bend * u**2])
    means[[0, 2]] += gain[:, None] * data[0] / steep
    spread = np.array([variance * (1 - gain[0]), 0.0, variance * (1 + 0.3 * gain[1])])
    problem.mean, problem.sd = np.zeros(d), np.full(d, prior_sd)
    problem.mean[:3] = means @ density
    problem.sd[:3] = np.sqrt(((means - problem.mean[:3, None]) ** 2) @ density + spread)
    return problem


def scaled(n=8, steep=3.0):
    """n parameters times the exponential of another one, a single number: linear for given one."""
    data = steep * np.random.default_rng(2).standard_normal(n)
    problem = GaussianProblem(
        lambda U: steep * np.exp(U[:, :1]) * U[:, 1:], data, np.zeros(n + 1), np.eye(n + 1)
    )
    problem.coordinate_names = ("scale", *(f"u[{i}]" for i in range(n)))
    scale = np.linspace(-5, 5, 2001)
    s = steep * np.exp(scale)
    energy = (data**2).sum()
    log_density = -0.5 * (scale**2 + n * np.log1p(s**2) + energy / (1 + s**2))
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    means = np.concatenate([scale[None], data[:, None] * s / (1 + s**2)])
    problem.mean = means @ density
    variance = ((means - problem.mean[:, None]) ** 2) @ density
    variance[1:] += density @ (1 / (1 + s**2))
    problem.sd = np.sqrt(variance)
    return problem


def bimodal():
    """``G(u) = (u1 - u2)^2``, data 2, prior N(0, I): two modes, mirror images at u1 = u2."""
    problem = GaussianProblem(lambda U: (U[:, :1] - U[:, 1:]) ** 2, [2.0], np.zeros(2), np.eye(2))
    problem.mean, problem.sd = np.zeros(2), np.full(2, 0.93050566)
    return problem


def four_modes():
    """Four equal modes at (+-0.7766, +-0.7766) behind high barriers."""
    problem = GaussianProblem(
        lambda U: ((U**2 - 1) ** 2).sum(1, keepdims=True) / np.sqrt(0.05),
        [0.0],
        np.zeros(2),
        10 * np.eye(2),
    )
    problem.mean, problem.sd = np.zeros(2), np.full(2, 0.801597)
    return problem


def sample_bimodal(size, rng):
    """Exact draws of the bimodal posterior: u1 + u2 is normal, u1 - u2 by inversion."""
    v = np.linspace(-6, 6, 20001)
    cdf = np.cumsum(np.exp(-(v**2) / 4 - 0.5 * (v**2 - 2) ** 2))
    v = np.interp(rng.random(size), cdf / cdf[-1], v + 0.5 * (v[1] - v[0]))
    s = np.sqrt(2) * rng.standard_normal(size)
    return np.column_stack([s + v, s - v]) / 2


def sample_density(problem, lower, upper, size, rng, n=801):
    """Draws of a posterior in two dimensions, exact up to the width of the cells of a grid."""
    axes = [np.linspace(a, b, n) for a, b in zip(lower, upper, strict=True)]
    U = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    V = problem.loss(problem.forward_map(U)) + problem.prior_potential(U)
    w = np.exp(V.min() - V)
    cells = rng.choice(len(U), size, p=w / w.sum())
    return U[cells] + (rng.random((size, 2)) - 0.5) * [axis[1] - axis[0] for axis in axes]


def integrate(problem, lower, upper, n=301):
    """Posterior mean and sd in two dimensions by quadrature."""
    axes = [np.linspace(a, b, n) for a, b in zip(lower, upper, strict=True)]
    U = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    V = problem.loss(problem.forward_map(U)) + problem.prior_potential(U)
    w = np.exp(V.min() - V)
    w /= w.sum()
    problem.mean = w @ U
    problem.sd = np.sqrt(w @ (U - problem.mean) ** 2)


def errors(problem, U):
    """Root mean squares over the coordinates of the errors of mean and sd, in posterior sd."""
    U = U.reshape(-1, problem.dimension)
    mean, sd = (U.mean(0) - problem.mean) / problem.sd, U.std(0) / problem.sd - 1
    return np.sqrt((mean**2).mean()), np.sqrt((sd**2).mean())


@dataclass
class FixedNoise:
    """Generator whose normal numbers are given; everything else is random."""

    normal: float | np.ndarray
    seed: int = 0

    def __post_init__(self):
        self.rng = np.random.default_rng(self.seed)

    def standard_normal(self, size):
        return np.broadcast_to(self.normal, size)

    def __getattr__(self, name):
        return getattr(self.rng, name)


def step(part, problem, state, rng):
    """One round of evaluations."""
    points, pending = part.ask(state, rng)
    return part.tell(state, pending, problem.evaluate(points))


def sweeps(kernel, problem, state, n, rng):
    """Advance a sampling kernel by `n` sweeps; returns the state and the snapshots."""
    snapshots = []
    while len(snapshots) < n:
        state, info = step(kernel, problem, state, rng)
        if info.snapshot is not None:
            snapshots.append(info.snapshot)
    return state, snapshots


def burn_in(part, problem, state, rng, max_rounds=500):
    """Run until the part says that it has burned in; returns the state and the reports."""
    reports = []
    while not state.burned_in:
        assert len(reports) < max_rounds, "the burn-in does not end"
        state, info = step(part, problem, state, rng)
        reports.append(info)
    return state, reports


def run(sampler, problem, rng, *, max_evaluations=None, n_sweeps=None, U=None, max_rounds=500):
    """A whole run from the prior (or from `U`): state and draws, shape (sweeps, J, d)."""
    redraw, problem.n_evaluations = U is None, 0
    size = getattr(sampler, "start_size", sampler.size)
    if U is None:
        design = getattr(sampler, "first_design", lambda rng: problem.sample_prior(size, rng))
        U = design(rng)
    state = sampler.start(U, redraw=redraw)
    for _ in range(max_rounds):
        if state.burned_in:
            break
        state, _ = step(sampler, problem, state, rng)
    state, snapshots = sampler.freeze(state), []
    cost = getattr(sampler, "evaluations_per_sweep", sampler.size)

    def goes_on():
        if n_sweeps is not None:
            return len(snapshots) < n_sweeps
        return problem.n_evaluations + cost <= max_evaluations

    while goes_on():
        state, more = sweeps(sampler, problem, state, 1, rng)
        snapshots += more
    snapshots = sampler.finish(state, snapshots, rng)
    return state, np.array([snapshot.U for snapshot in snapshots])


MOMENTS = {
    "u1": lambda U: U[:, 0],
    "u1^2": lambda U: U[:, 0] ** 2,
    "u1 u2": lambda U: U[:, 0] * U[:, 1],
    "|u1 - u2|": lambda U: np.abs(U[:, 0] - U[:, 1]),
    "(u1 - u2)^4": lambda U: (U[:, 0] - U[:, 1]) ** 4,
    "(u1 + u2)^4": lambda U: (U[:, 0] + U[:, 1]) ** 4,
}


def moments(U):
    return [moment(U).mean() for moment in MOMENTS.values()]


def changes(kernel, problem, draw, J, n_sweeps, replicas=500):
    """Change of the moments from exact draws to the ensemble after some sweeps, replica-wise."""
    result = []
    for seed in range(replicas):
        rng = np.random.default_rng(seed)
        state = kernel.start(problem.ensemble(draw(J, rng)))
        before = moments(state.ensemble.U)
        state, _ = sweeps(kernel, problem, state, n_sweeps, rng)
        result.append(np.subtract(moments(state.ensemble.U), before))
    return result


def truncated(draw, fails):
    """Draws from where nothing fails."""

    def draws(size, rng):
        U = draw(4 * size, rng)
        return U[~fails(U)][:size]

    return draws


def within(samples, expected, standard_errors=4.0):
    """Whether the mean over independent replicas, axis 0, is the expected one up to Monte Carlo."""
    samples = np.asarray(samples)
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    return bool((np.abs(samples.mean(0) - expected) <= standard_errors * error).all())
