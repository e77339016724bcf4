"""Learn a posterior for any data from simulations."""

from collections.abc import Callable
from importlib.util import find_spec
from os import PathLike
from typing import Any, Literal, get_args

import numpy as np
import pymc as pm
import xarray as xr
from numpy.typing import NDArray

from pymc_ensemble.log import logger, percent
from pymc_ensemble.problem.checks import given_generator, given_model, quoted
from pymc_ensemble.samplers.options import require_flags, require_given_counts

from . import storage
from .diffusion import Archive
from .estimate import MOST_CANDIDATES, Estimate
from .familiarity import Familiarity
from .generating import Generator
from .learned import Method
from .noise import Noise
from .posterior import AmortizedPosterior
from .scaling import SMALLEST, Scaling
from .simulations import checked

__all__ = ["amortize", "load_amortized"]

FloatArray = NDArray[np.float64]

BALANCE = 100.0  # weight of the balance condition, as published
FEWEST = 20  # simulations per parameter and datum: with fewer, a Gaussian fit is uncertain by 20%
PAIRS, FEWEST_PAIRS = 2, 4000  # labels per simulation, and in all at least (5 each: no better)
POOL = 8  # number of noise samples to reuse, if noise has to be drawn simulation by simulation
NEEDED = ("jax", "equinox", "optax", "flowjax")  # libraries of the extra


def amortize(
    model: pm.Model | None,
    simulations: xr.Dataset,
    *,
    method: Method = "posterior",
    density: Literal["mixture", "flow"] = "mixture",
    conservative: bool = False,
    members: int = 4,
    random_seed: Any = None,
) -> AmortizedPosterior:
    """Learn the posterior for any data from simulations of a model.

    Networks are trained once. Afterwards posteriors cost no simulation, for any number of data
    sets. No likelihood is needed: a `pymc.Simulator` is enough. For one data set with a
    likelihood, samplers take far fewer evaluations. Install the extra ``amortized``:
    ``pip install "pymc_ensemble[amortized]"``.

    Parameters
    ----------
    model : pymc.Model or None
        The model; None for the one on the context stack.
    simulations : Dataset
        Result of `simulations` for this model. Draws or stores of a run are refused, because they
        are no sample of the prior.
    method : {"posterior", "ratio", "diffusion"}, default "posterior"
        What is learned: the density of the posterior [1]_; its ratio to the prior, by a classifier
        of pairs of parameters and data [2]_; or a map from noise to parameters, by training-free
        conditional diffusion [4]_, which has no density.
    density : {"mixture", "flow"}, default "mixture"
        For ``method="posterior"``: a mixture of eight Gaussians whose weights, means and
        covariances are functions of the data, or a masked autoregressive flow of splines.
    conservative : bool, default False
        For ``method="ratio"``: whether classifiers are balanced [3]_, so that posteriors are rather
        too wide than too narrow, on average over the prior.
    members : int, default 4
        Number of networks. Each is trained on its own part, and their densities are averaged.
    random_seed : int, Generator or None
        Seed of the networks and their training.

    Returns
    -------
    AmortizedPosterior
        With ``sample(data)``, ``coverage()``, ``surprise(data)``, ``refine(data)`` and ``save``.

    Raises
    ------
    ImportError
        If the extra is not installed.
    TypeError, ValueError
        If parameters or data cannot be drawn from the model; if simulations are not those of the
        model and its prior, or fewer than 20 for each parameter and datum; if data, or forward
        outputs, are the same in all of them; if options exclude each other.
    RuntimeError
        If more than half of the simulations have failed.

    Notes
    -----
    Networks learn in unconstrained coordinates, standardized. Counts enter by their square root,
    positive data by their logarithm. With a likelihood, the noise of forward outputs is drawn anew
    for every pass over the simulations. This is worth several times as many simulations.
    Simulations that have failed are left out: the posterior is the one given that the simulator
    works. Each network holds back a tenth of the simulations, and ends when their loss does not
    improve for 20 passes. With ``method="diffusion"`` the reverse equation of a diffusion leads
    noise to parameters of simulations whose data are near. Networks learn by least squares where
    it ends, in 150 passes. Draws whose prior density is below that of all simulations are
    rejected, and counted.

    References
    ----------
    .. [1] Papamakarios, G. and Murray, I. (2016). Fast epsilon-free inference of simulation models
       with Bayesian conditional density estimation. Advances in Neural Information Processing
       Systems, 29. https://arxiv.org/abs/1605.06376
    .. [2] Hermans, J., Begy, V. and Louppe, G. (2020). Likelihood-free MCMC with amortized
       approximate ratio estimators. International Conference on Machine Learning.
       https://arxiv.org/abs/1903.04057
    .. [3] Delaunoy, A., Hermans, J., Rozet, F., Wehenkel, A. and Louppe, G. (2022). Towards
       reliable simulation-based inference with balanced neural ratio estimation. Advances in
       Neural Information Processing Systems, 35. https://arxiv.org/abs/2208.13624
    .. [4] Tatsuoka, C., Yang, M., Xiu, D. and Zhang, G. (2025). Multi-fidelity parameter estimation
       using conditional diffusion models. https://arxiv.org/abs/2504.01894

    Examples
    --------
    >>> import numpy as np, pymc as pm, pymc_ensemble as pe
    >>> with pm.Model() as model:
    ...     x = pm.Normal("x")
    ...     y = pm.Normal("y", x, 0.5, observed=1.0)
    >>> made = pe.simulations(model, 1000, random_seed=1)
    >>> learned = pe.amortize(model, made, members=1, random_seed=1)
    >>> idata = learned.sample({"y": 1.0}, random_seed=1)
    >>> bool(abs(idata.posterior["x"].mean() - 0.8) < 0.1)
    True
    """
    _check_options(method, density, conservative, members)
    require_extra()
    model = given_model(model)
    rng = given_generator(random_seed, "random_seed")
    generator = Generator(model)
    given = _usable(checked(simulations, generator), generator)
    from .estimators import Architecture
    from .training import REPEATS, train

    data = {name: given[name].to_numpy().astype(float) for name in generator.observed}
    scaling = Scaling.of(data, generator.kinds)
    U = given["unconstrained"].to_numpy().astype(float)
    n, d = U.shape
    _check_number(n, d, scaling)
    center, scale = U.mean(0), U.std(0)
    X, theta = scaling(data), (U - center) / scale
    familiarity = Familiarity.of(X, rng)
    kind = density if method == "posterior" else method
    sizes = Architecture.of(kind, d, scaling.size)
    if method == "diffusion":
        theta, inputs = _labelled(Archive(theta, X), rng)
        redrawn, looks = (lambda number: inputs), [inputs] * REPEATS
    else:
        redrawn = _with_new_noise(generator.noise, given, scaling, X, rng)
        looks = [redrawn(-1 - k) for k in range(REPEATS)]
    trained = train(
        sizes,
        theta,
        redrawn,
        lambda k: looks[k],
        members=members,
        balance=BALANCE if conservative else 0.0,
        rng=rng,
    )
    log_prior = log_prior_of(generator)
    some = rng.permutation(n)[:MOST_CANDIDATES]
    floor = float(np.min(log_prior(U)))
    estimate = Estimate(sizes, trained.networks, center, scale, U[some], floor, log_prior)
    return AmortizedPosterior(
        method,
        conservative,
        members,
        n,
        simulations.sizes["simulation"] - n,
        trained.history,
        None,
        generator,
        estimate,
        scaling,
        familiarity,
    )


def load_amortized(path: str | PathLike, model: pm.Model | None = None) -> AmortizedPosterior:
    """Read a file that `AmortizedPosterior.save` has written.

    Parameters
    ----------
    path : path-like
        The file. It has arrays and text, but no code that could be executed.
    model : pymc.Model, optional
        The model that was simulated, by default the one on the context stack.

    Returns
    -------
    AmortizedPosterior
        The estimate as it was saved. It draws, and takes data, as before.

    Raises
    ------
    ImportError
        If the extra ``amortized`` is not installed.
    TypeError
        If there is no model.
    ValueError
        If the file does not contain an amortized posterior, or if it belongs to another model.

    See Also
    --------
    amortize : learns the estimate; its ``save(path)`` writes the file.
    """
    require_extra()
    model = given_model(model)
    arrays, text = storage.load(path)
    from .estimators import Architecture

    generator = Generator(model)
    sizes = Architecture(**text["sizes"])
    record = text["record"]
    scaling = Scaling.restored(arrays["scaling"], text["scaling"])
    saved = arrays["estimate"]
    networks = storage.networks_of(sizes, record["members"], arrays["network"])
    estimate = Estimate(
        sizes,
        networks,
        saved["center"],
        saved["scale"],
        saved["candidates"],
        float(saved["floor"]),
        log_prior_of(generator),
    )
    loaded = AmortizedPosterior(
        **record,
        history=arrays["record"]["history"],
        generator=generator,
        estimate=estimate,
        scaling=scaling,
        familiarity=Familiarity.restored(arrays["familiarity"]),
    )
    of_file = loaded.facts.of_text(text["facts"])
    same = dict(zip(scaling.names, scaling.shapes, strict=True)) == generator.shapes
    if of_file.variables != loaded.facts.variables or not same:
        raise ValueError(
            "The file belongs to another model, with the parameters "
            f"{quoted(v.name for v in of_file.variables)}, in this order, and the data "
            f"{quoted(scaling.names)}. Pass the model that was simulated."
        )
    return loaded


def require_extra() -> None:
    """Raise if the libraries of the extra are missing."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ImportError(
            f"Amortized inference needs {', '.join(missing)}, which is not installed: "
            'pip install "pymc_ensemble[amortized]".'
        )


def log_prior_of(generator: Generator) -> Callable[[FloatArray], FloatArray]:
    """Log prior density of points (n, d), in unconstrained coordinates."""

    def log_prior(U: FloatArray) -> FloatArray:
        finite = np.isfinite(U).all(1)
        values = np.full(len(U), -np.inf)
        values[finite] = -generator.prior.potential(np.ascontiguousarray(U[finite]))
        return values

    return log_prior


def _check_options(method: Any, density: Any, conservative: Any, members: Any) -> None:
    if method not in get_args(Method):
        raise ValueError(f'method={method!r} must be "posterior", "ratio" or "diffusion".')
    if density not in ("mixture", "flow"):
        raise ValueError(f'density={density!r} must be "mixture" or "flow".')
    require_flags(conservative=conservative)
    require_given_counts(1, members=members)
    if conservative and method == "posterior":
        raise ValueError(
            'conservative=True balances a classifier: use method="ratio". Balancing does not make '
            'method="posterior" less confident.'
        )
    if conservative and method == "diffusion":
        raise ValueError(
            'conservative=True balances a classifier, but method="diffusion" has no classifier. '
            'Use method="ratio".'
        )
    if method != "posterior" and density != "mixture":
        raise ValueError(
            f'density={density!r} is an option of method="posterior" alone. Leave it out.'
        )


def _usable(simulations: xr.Dataset, generator: Generator) -> xr.Dataset:
    """Simulations that have not failed, with their dimension first."""
    n = simulations.sizes["simulation"]
    good = np.ones(n, dtype=bool)
    if "failed" in simulations:
        good &= ~simulations["failed"].to_numpy().astype(bool)
    for name in ("unconstrained", *generator.observed):
        values = simulations[name].transpose("simulation", ...).to_numpy().reshape(n, -1)
        good &= np.isfinite(values.astype(float)).all(1)
    if 2 * good.sum() < n:
        raise RuntimeError(
            f"{n - good.sum()} of {n} simulations have failed. Choose priors that stay where the "
            "forward map works, or let the forward map return a value instead of failing."
        )
    if not good.all():
        logger.info(f"{percent(1 - good.mean())} of the simulations failed. They are left out.")
    kept = simulations.isel(simulation=np.flatnonzero(good))
    return kept.transpose("simulation", ...)


def _check_number(n: int, d: int, scaling: Scaling) -> None:
    if n < (least := FEWEST * (d + scaling.size)):
        raise ValueError(
            f"{n} simulations are too few for {d} parameters and {scaling.size} data "
            f"({quoted(scaling.names)}): make {least} or more, with pymc_ensemble.simulations. "
            "Summaries of the data, in a pm.Simulator, need fewer."
        )


def _labelled(archive: Archive, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Parameters (m, d) for pairs of data and latents, and these pairs, (m, K + d)."""
    n, d = archive.theta.shape
    m = max(FEWEST_PAIRS, PAIRS * n)
    X, z = archive.X[rng.integers(n, size=m)], rng.standard_normal((m, d))
    return archive.labelled(X, z), np.concatenate([X, z], axis=1)


def _with_new_noise(
    noise: Noise | None,
    given: xr.Dataset,
    scaling: Scaling,
    X: FloatArray,
    rng: np.random.Generator,
) -> Callable[[int], FloatArray]:
    """Function that returns the standardized data of a pass, shape (n, K), by its number."""
    if noise is None or "outputs" not in given:
        return lambda number: X
    Z = np.ascontiguousarray(given["outputs"].to_numpy().astype(float))
    spread, size = np.ptp(Z, axis=0), np.abs(Z).max(0)
    if (spread <= SMALLEST * np.maximum(size, 1.0)).all():
        raise ValueError(
            f"The forward outputs behind {quoted(noise.names)} are the same in all simulations, "
            "so the data say nothing about the parameters. Check that the forward map uses the "
            "parameters."
        )

    def fresh() -> FloatArray:
        drawn = scaling({name: v.astype(float) for name, v in noise(Z, rng).items()})
        return np.where(np.isfinite(drawn), drawn, X)  # X if there is no distribution

    pool = [fresh()]
    if noise.together:
        return lambda number: fresh()
    pool += [fresh() for _ in range(POOL - 1)]
    return lambda number: pool[number % POOL]
