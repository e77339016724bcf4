"""Bad input is refused before the first forward evaluation, by name.

Each row is a call, the error that it raises, and a word that the message has to contain: the name
of the argument or of the variable. What Python itself refuses, such as unknown arguments, is not
here.
"""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest
import xarray as xr

import pymc_ensemble as pe
from pymc_ensemble import gallery
from pymc_ensemble.forward import StoreError

nan, inf = np.nan, np.inf
DATA = np.array([0.6, 0.4, 0.2, 0.1, 0.1])
COUNTS = np.array([1, 2, 0, 3, 1])
EITHER = (TypeError, ValueError)


def decay(amplitude, rate):
    CALLS.append((amplitude, rate))
    return amplitude * np.exp(-rate * np.arange(1, 6.0))


CALLS = []
simulate = pe.forward_model(decay, output_shape=(5,))


def model_with(likelihood=None, *, sigma=0.1, observed=DATA, potential=None, prior=(0.0, 1.0)):
    with pm.Model() as model:
        amplitude, rate = pm.LogNormal("amplitude", *prior), pm.LogNormal("rate")
        if potential is not None:
            pm.Potential("penalty", pt.as_tensor(potential(amplitude)))
        if likelihood is None:
            pm.Normal("y", simulate(amplitude, rate), sigma, observed=observed)
        else:
            likelihood("y", simulate(amplitude, rate), observed=observed)
    return model


MODEL = model_with()
PROBLEM = pe.InverseProblem.from_model(MODEL)
with pm.Model() as OTHER_MODEL:
    pm.Normal("z", pm.Normal("q"), observed=1.0)


def step(sampler, **options):
    with MODEL:
        return sampler(**options)


def noisy(amplitude, rng):
    CALLS.append(amplitude)
    return amplitude + rng.standard_normal(5)


def summarized(observed, argument=None, name="y", dims=None, **options):
    with pm.Model(coords={"three": range(3)}):
        a = pm.Normal("a")
        likelihood = pe.synthetic_likelihood(noisy, **options)
        likelihood(name, argument or a, observed=observed, dims=dims)


def find_MAP(**options):
    return pe.find_MAP_ensemble(**{"model": MODEL, "progressbar": False} | options)


def sample(model):
    with model:
        return pm.sample(
            10, step=pe.EnsembleKalmanSampler(ensemble_size=20), chains=1, progressbar=False
        )


def rows(template, error, *cases):
    """Rows of calls that differ in their arguments only; a case is "arguments | word"."""
    for case in cases:
        arguments, word = case.rsplit(" | ", 1)
        yield template.format(arguments), error, word


GALLERY = [
    *rows(
        "gallery.decay({})",
        EITHER,
        "noise_sd=0.1 | noise_sd",
        "noise_sd=None | noise_sd",
        "noise_sd='0.05' | noise_sd",
        "noise_sd=[0.05] | noise_sd",
        "noise_sd=nan | noise_sd",
        "roughness=nan | roughness",
        "roughness=inf | roughness",
        "roughness=-1 | roughness",
        "roughness='much' | roughness",
        "roughness=None | roughness",
        "native='yes' | native",
    ),
    *rows(
        "gallery.linear_gaussian({})",
        EITHER,
        "d=0 | d must",
        "d=-1 | d must",
        "d=2.5 | d must",
        "d=None | d must",
        "d='10' | d must",
        "d=10**6 | d must",
        "native=None | native",
    ),
    *rows(
        "gallery.linear_multiscale({})",
        EITHER,
        "prior_variance=0 | prior_variance",
        "prior_variance=-1 | prior_variance",
        "prior_variance=nan | prior_variance",
        "prior_variance=None | prior_variance",
        "data=(1.0,) | data",
        "data=(1.0, nan) | data",
        "data=None | data",
        "data='ab' | data",
        "data=() | data",
        "rough=2 | rough",
        "native='no' | native",
    ),
    *rows(
        "gallery.darcy({})",
        EITHER,
        "d=10 | d may be",
        "d=0 | d may be",
        "d=None | d may be",
        "d='16' | d may be",
        "d=[16] | d may be",
        "native=1 | native",
    ),
    *rows(
        "gallery.{}",
        TypeError,
        "influenza(native=None) | native",
        "lynx_hare(native='no') | native",
        "bimodal(native='no') | native",
        "four_modes(rough=None) | rough",
        "poisson_regression(native=0.5) | native",
        "smooth_nonlinear(native='') | native",
    ),
]

FORWARD = [
    *rows(
        "pe.forward_model({})",
        EITHER,
        "3 | function",
        "'decay' | function",
        "decay, output_shape='3' | output_shape",
        "decay, output_shape=(-1,) | output_shape",
        "decay, output_shape=(2.5,) | output_shape",
        "decay, output_shape=nan | output_shape",
        "decay, output_shape=[] | output_shape",
        "decay, output_shape={} | output_shape",
        "decay, output_shape=0 | output_shape",
        "decay, output_shape=(3, 0) | output_shape",
        "decay, vectorized='no' | vectorized",
        "decay, vectorized=None | vectorized",
        "decay, stochastic=1 | stochastic",
        "decay, executor='cluster' | executor",
        "decay, executor=0 | executor",
        "decay, executor=-2 | executor",
        "decay, executor=2.5 | executor",
        "decay, executor=True | executor",
        "decay, executor=10**9 | executor",
        "decay, executor=object() | executor",
        "decay, timeout=0 | timeout",
        "decay, timeout=-1 | timeout",
        "decay, timeout=nan | timeout",
        "decay, retries=-1 | retries",
        "decay, retries=1.5 | retries",
        "decay, retries=None | retries",
        "decay, retries='2' | retries",
        "decay, store=3 | store",
        "decay, store=folder | store",
        "decay, store=text, version=2 | version",
        "decay, version=2 | version",
    ),
    *rows(
        "pe.open_store({})",
        (TypeError, StoreError),
        "None | path",
        "3 | path",
        "xr.Dataset() | path",
        "[] | path",
        "'' | store",
        "'missing.db' | missing.db",
        "folder | store",
        "text | store",
    ),
]

MODELS = [
    *rows(
        "pe.InverseProblem.from_model({})",
        EITHER,
        " | model",
        "'model' | model",
        "3 | model",
        "xr.DataTree() | model",
        "pm.Model() | no observed variable",
        "MODEL, ['nothing'] | nothing",
        "MODEL, ['amplitude'] | rate",
        "MODEL, [] | vars",
        "MODEL, 3 | vars",
        "MODEL, [None] | vars",
        "MODEL, compile_kwargs=3 | compile_kwargs",
        "MODEL, compile_kwargs={'speed': 3} | speed",
    ),
    *rows(
        "PROBLEM.{}",
        EITHER,
        "forward(np.zeros((3, 3))) | (n, 2)",
        "forward(np.zeros(2)) | (n, 2)",
        "loss(np.zeros((3, 4))) | (n, 5)",
        "loss_gradient(np.zeros(5)) | (n, 5)",
        "prior_potential(np.zeros((2, 5))) | (n, 2)",
        "prior_gradient(np.zeros((2, 5))) | (n, 2)",
        "sample_prior(0, rng) | size",
        "sample_prior(-1, rng) | size",
        "sample_prior(2.5, rng) | size",
        "sample_prior(None, rng) | size",
        "sample_prior(10**12, rng) | size",
        "sample_prior(10, None) | rng",
        "sample_prior(10, 3) | rng",
    ),
    *rows(
        "sample(model_with({}))",
        ValueError,
        "sigma=0.0 | `y` has a parameter (0.0)",
        "sigma=-1.0 | `y` has a parameter (-1.0)",
        "sigma=nan | `y`",
        "sigma=np.array([0.1, 0.1, 0.1, 0.1, 0.0]) | `y`",
        "observed=[1.0, 2.0, inf, 0.0, 0.0] | `y` observes inf at index [2]",
        "observed=[1.0, 2.0, -inf, 0.0, 0.0] | `y`",
        "observed=np.array([]) | `y` has no data",
        "potential=lambda a: nan | `penalty`",
        "potential=lambda a: -inf | `penalty`",
        "potential=lambda a: nan * a | `penalty`",
        "potential=lambda a: pt.log(-a) | `penalty`",
        "potential=lambda a: -inf * a | `penalty`",
        "prior=(0.0, 0.0) | `amplitude` has a parameter (0.0)",
        "prior=(0.0, -1.0) | `amplitude`",
        "prior=(nan, 1.0) | `amplitude`",
        "lambda y, mu, **k: pm.StudentT(y, nu=-1.0, mu=mu, **k) | `y` has a parameter",
        "lambda y, mu, **k: pm.Laplace(y, mu, 0.0, **k) | `y` has a parameter (0.0)",
        "sigma=inf | density of `y` is zero for 5 of its 5 data",
        "sigma=np.array([0.1, 0.1, 0.1, inf, 0.1]) | `y` is zero for 1 of its 5 data",
        "lambda y, mu, **k: pm.NegativeBinomial(y, mu=mu, alpha=-1.0, observed=COUNTS) | `y`",
    ),
    *rows(
        "sample(model_with(lambda y, mu, observed: pm.{}))",
        ValueError,
        "Poisson(y, mu, observed=[1, 2, 0, -3, 1]) | such as -3 at index [3]",
        "Gamma(y, 2.0, mu, observed=[1, 2, 0.0, 3, 1]) | such as 0.0 at index [2]",
        "Gamma(y, mu=mu, sigma=1.0, observed=[1, 2, 0.0, 3, 1]) | such as 0.0 at index [2]",
        "LogNormal(y, mu, 1.0, observed=[1, 2, 3, 3, 0.0]) | such as 0.0 at index [4]",
        "Exponential(y, mu, observed=[1, -1.0, 3, 3, 0.0]) | such as -1.0 at index [1]",
        "Bernoulli(y, logit_p=mu, observed=[0, 1, 2, 0, 1]) | such as 2 at index [2]",
        "Binomial(y, 5, logit_p=mu, observed=[0, 1, 2, 7, 1]) | such as 7 at index [3]",
        "NegativeBinomial(y, mu=mu, alpha=1.0, observed=[-1, 1, 2, 7, 1]) | such as -1 at index",
        "Weibull(y, 2.0, mu, observed=[1, 2, -1.0, 3, 1]) | such as -1.0 at index [2]",
        "HalfNormal(y, mu, observed=[1, 2, -1.0, 3, 1]) | such as -1.0 at index [2]",
    ),
]

SHARED = (
    "vars=['nothing'] | nothing",
    "vars=3 | vars",
    "vars=[None] | vars",
    "blocked=False | blocked",
    "blocked=None | blocked",
    "adjust='no' | adjust",
    "adjust=1 | adjust",
    "model=3 | model",
    "model='m' | model",
    "compile_kwargs='fast' | compile_kwargs",
    "compile_kwargs={'speed': 1} | speed",
    "initial_ensemble=3 | initial_ensemble",
    "initial_ensemble='prior' | initial_ensemble",
    "initial_ensemble=np.zeros((40, 3)) | initial_ensemble",
    "initial_ensemble=np.full((40, 2), nan) | initial_ensemble",
    "initial_ensemble={'amplitude': np.ones(40)} | rate",
    "initial_ensemble={'amplitude': -np.ones(40), 'rate': np.ones(40)} | amplitude",
    "initial_ensemble={'amplitude': np.ones(40), 'rate': np.ones(30)} | initial_ensemble",
    "initial_ensemble={} | initial_ensemble",
    "initial_ensemble=xr.DataTree() | result",
    "rng='seed' | rng",
)
SIZES = tuple(
    f"ensemble_size={size} | ensemble_size"
    for size in ("0", "-5", "2.5", "'100'", "nan", "10**12", "True", "[100]")
)
STEPS = tuple(f"dt={dt} | dt" for dt in ("0", "-1", "nan", "inf", "'2'", "True", "[1.0]"))
STEP_METHODS = [
    *rows(
        "step(pe.EnsembleKalmanSampler, {})",
        EITHER,
        *SHARED,
        *SIZES,
        *STEPS,
        "vars=['amplitude'] | rate",
        "vars=[] | vars",
        "rough='yes' | rough",
        "scheme='papers' | scheme",
        "scheme=None | scheme",
        "scheme=1 | scheme",
        "allow_subspace='yes' | allow_subspace",
        "adjust=True, rough=True | rough",
        "scheme='paper', adjust=True | adjust",
    ),
    *rows(
        "step(pe.EnsembleGaussianProcessSampler, {})",
        EITHER,
        *SHARED,
        *SIZES,
        *STEPS,
        "vars=['amplitude'] | rate",
        "target='density' | target",
        "target=1 | target",
        "scheme='papers' | scheme",
        "epochs=0 | epochs",
        "epochs=-1 | epochs",
        "epochs=2.5 | epochs",
        "epochs='3' | epochs",
        "epochs=True | epochs",
        "epochs=10**12 | epochs",
        "archive=3 | archive",
        "archive={} | archive",
        "scheme='paper', adjust=True | adjust",
    ),
    *rows(
        "step(pe.MultiscaleSampler, {})",
        EITHER,
        *SHARED,
        "directions=0 | directions",
        "directions=2.5 | directions",
        "directions='2' | directions",
        "directions=10**12 | directions",
        "sigma=0 | sigma",
        "sigma=-1 | sigma",
        "sigma=nan | sigma",
        "sigma='1' | sigma",
        "delta=-1 | delta",
        "delta=nan | delta",
        "delta='0' | delta",
        "delta=None | delta",
        "step_size=0 | step_size",
        "step_size=inf | step_size",
        "preconditioner='prior' | preconditioner",
        "preconditioner=np.zeros((2, 2)) | preconditioner",
        "preconditioner=np.eye(3) | preconditioner",
        "preconditioner=np.full((2, 2), nan) | preconditioner",
        "preconditioner=[[1.0, 2.0], [2.0, 1.0]] | preconditioner",
        "walkers=0 | walkers",
        "walkers=1.5 | walkers",
        "rough=1 | rough",
        "central='no' | central",
        "scheme='kalman' | scheme",
        "adjust=True, rough=True | rough",
    ),
    *rows(
        "step(pe.LikelihoodInformedSampler, {})",
        EITHER,
        "vars=3 | vars",
        "walkers=0 | walkers",
        "walkers='x' | walkers",
        "round_size=3 | round_size",
        "round_size=2.5 | round_size",
        "initial_ensemble=np.full((40, 7), 1.0) | initial_ensemble",
        "model=3 | model",
        "rng='seed' | rng",
    ),
    *rows(
        "step(pe.EnsembleLangevinSampler, {})",
        (TypeError, ValueError, NotImplementedError),
        " | gradient",
        "vars=3 | vars",
        "adjust='no' | adjust",
        "model=3 | model",
        "rng='seed' | rng",
    ),
    *rows(
        "find_MAP({})",
        EITHER,
        "vars=['nothing'] | nothing",
        "vars=3 | vars",
        "vars=[] | vars",
        "initvals=3 | initvals",
        "initvals={'nothing': 1.0} | nothing",
        "initvals={'amplitude': nan} | amplitude",
        "initvals={'amplitude': -1.0} | amplitude",
        "ensemble_size=0 | ensemble_size",
        "ensemble_size=3 | ensemble_size",
        "ensemble_size=10**12 | ensemble_size",
        "method='newton' | method",
        "preconditioner=None | preconditioner",
        "directions=2 | directions",
        "sigma=0.1 | sigma",
        "tol=0.1 | tol",
        "maxiter=0 | maxiter",
        "maxiter=2.5 | maxiter",
        "random_seed='x' | random_seed",
        "model=3 | model",
        "compile_kwargs=3 | compile_kwargs",
    ),
    *rows(
        "find_MAP(method='explorers', {})",
        EITHER,
        "ensemble_size=3 | ensemble_size",
        "preconditioner='x' | preconditioner",
        "preconditioner=np.eye(5) | preconditioner",
        "directions=0 | directions",
        "sigma=0 | sigma",
        "tol=0 | tol",
        "tol=nan | tol",
        "tol='x' | tol",
    ),
    *rows(
        "pe.approximate(MODEL, {})",
        EITHER,
        "draws=1 | draws",
        "draws='x' | draws",
        "weigh='no' | weigh",
        "round_size=3 | round_size",
        "maxiter=0 | maxiter",
        "random_seed='x' | random_seed",
        "progressbar='no' | progressbar",
    ),
]

COVERAGE = rows(
    "pe.coverage({})",
    EITHER,
    "MODEL, pe.EnsembleKalmanSampler() | step",
    "MODEL, 3 | step",
    "MODEL, None | step",
    "None, pe.EnsembleKalmanSampler | model",
    "3, pe.EnsembleKalmanSampler | model",
    "'model', pe.EnsembleKalmanSampler | model",
    "lambda: 3, pe.EnsembleKalmanSampler | model",
    "pm.Model(), pe.EnsembleKalmanSampler | observed",
    *(
        f"MODEL, pe.EnsembleKalmanSampler, {argument}={value} | {argument}"
        for argument, values in {
            "simulations": ("1", "2.5", "'20'", "nan", "10**12"),
            "draws": ("0", "'x'", "-3", "10**12"),
            "chains": ("0", "1.5"),
            "probability": ("0", "1", "nan", "'x'", "None"),
            "random_seed": ("'x'", "1.5"),
            "speed": ("3",),
        }.items()
        for value in values
    ),
)

SIMULATIONS = [
    *rows(
        "pe.simulations({})",
        EITHER,
        "None | model",
        "3 | model",
        "'model' | model",
        "pm.Model() | observed",
        "MODEL, 0 | n must",
        "MODEL, -1 | n must",
        "MODEL, 2.5 | n must",
        "MODEL, '10' | n must",
        "MODEL, None | n must",
        "MODEL, True | n must",
        "MODEL, 10**12 | n=1000000000000",
        "MODEL, 10, 8 | executor",
        "MODEL, 10, 'processes' | executor",
        "MODEL, 10, random_seed='x' | random_seed",
        "model_with(potential=lambda a: -a), 10 | penalty",
        "model_with(observed=np.array([])), 10 | `y` has no data",
    ),
    *rows(
        "pe.amortize(MODEL, None, {})",
        EITHER,
        "method='posteriors' | method",
        "method=1 | method",
        "method=None | method",
        "density='spline' | density",
        "density=None | density",
        "method='ratio', density='flow' | density",
        "conservative='yes' | conservative",
        "conservative=1 | conservative",
        "conservative=True | method",
        "members=0 | members",
        "members=2.5 | members",
        "members=True | members",
        "members=10**12 | members",
        "members=None | members",
    ),
]

with pm.Model() as SYNTHETIC_MODEL:
    pe.synthetic_likelihood(noisy)("y", pm.Normal("a"), observed=np.ones(5))

SYNTHETIC = [
    ("pe.simulations(SYNTHETIC_MODEL, 10)", EITHER, "twice"),
    ("pe.coverage(SYNTHETIC_MODEL, pe.EnsembleKalmanSampler, simulations=10)", EITHER, "twice"),
    *rows(
        "pe.synthetic_likelihood({})",
        EITHER,
        "3 | simulate",
        "decay | rng",
        "simulate | stochastic=True",
        "noisy, summaries=3 | summaries",
        "noisy, replicates=0 | replicates",
        "noisy, replicates=2.5 | replicates",
        "noisy, replicates=None | replicates",
        "noisy, covariance='diagonal' | covariance",
        "noisy, covariance=None | covariance",
    ),
    *rows(
        "summarized({})",
        EITHER,
        "observed=pt.vector() | observed",
        "observed=[] | observed",
        "observed=[nan, 1.0] | Summary 0",
        "observed=['a'] | observed",
        "observed=DATA, replicates=20 | replicates=25",
        "observed=DATA, initial_covariance=np.eye(4) | initial_covariance",
        "observed=DATA, initial_covariance='wide' | initial_covariance",
        "observed=DATA, initial_covariance=-np.eye(5) | initial_covariance",
        "observed=DATA, argument=1.0 | unknown",
        "observed=DATA, name=3 | name",
        "observed=DATA, name='a' | name",
        "observed=DATA, dims='time' | dims",
        "observed=DATA, dims='three' | dims",
        "observed=DATA, dims=('three', 'three') | dims",
        "observed=1j * DATA | observed",
        "observed=np.ma.masked_less(DATA, 1e9) | observed",
    ),
    *rows(
        "pe.sample_synthetic({})",
        EITHER,
        " | model",
        "model=3 | model",
        "model=MODEL | synthetic_likelihood",
        "0, model=MODEL | draws",
        "None, model=MODEL | draws",
        "10, model=MODEL, chains=0 | chains",
        "10, model=MODEL, stages=1 | stages",
        "10, model=MODEL, check='yes' | check",
        "10, model=MODEL, step=3 | step",
        "10, model=MODEL, tune=3 | tune",
        "10, model=MODEL, target_accept=0.9 | target_accept",
        "10, model=MODEL, nuts_sampler='blackjax' | nuts_sampler",
        "10, model=MODEL, return_inferencedata=False | return_inferencedata",
        "10, model=MODEL, random_seed='x' | random_seed",
    ),
]

RESULTS = [
    *rows(
        "pe.{}",
        EITHER,
        *(
            f"{function}({given}) | {word}"
            for function in (
                "to_ensemble",
                "ess",
                "diagnose",
                "reweight",
                "plots.path",
                "plots.spread",
                "plots.misfit",
                "plots.weights",
            )
            for given, word in {
                "None": "DataTree",
                "'idata'": "DataTree",
                "3": "DataTree",
                "xr.Dataset()": "DataTree",
                "np.zeros((2, 3))": "DataTree",
                "[]": "DataTree",
                "MODEL": "DataTree",
                "xr.DataTree()": "ensemble step method",
            }.items()
        ),
    ),
    *rows(
        "pe.diagnose(xr.DataTree(), model={})",
        TypeError,
        "3 | pymc.Model",
        "'model' | pymc.Model",
        "{} | pymc.Model",
    ),
    *rows(
        "pe.plots.coverage({})",
        TypeError,
        *(
            f"{given} | coverage"
            for given in ("None", "3", "xr.DataTree()", "np.zeros(3)", "MODEL")
        ),
    ),
    *rows(
        "pe.plots.outputs(np.zeros((20, 3)), {})",
        EITHER,
        "levels=(0.5, 2) | levels",
        "ax=3 | ax",
        "np.zeros(4) | data",
    ),
]

TABLE = [*GALLERY, *FORWARD, *MODELS, *STEP_METHODS, *COVERAGE, *SIMULATIONS, *SYNTHETIC, *RESULTS]


def test_table_is_long():
    assert len(TABLE) >= 150
    assert len({call for call, _, _ in TABLE}) == len(TABLE)


COMPILED = {}
from_model = pe.InverseProblem.from_model


def compiled_once(model=None, *args, **options):
    """The problem of a model, which is the same in most calls: compiling it takes longest."""
    if model is not MODEL:
        return from_model(model, *args, **options)
    key = repr((args, options))
    if key not in COMPILED:
        COMPILED[key] = from_model(model, *args, **options)
    return COMPILED[key]


@pytest.mark.parametrize(("call", "error", "word"), TABLE, ids=[row[0] for row in TABLE])
def test_refused_by_name_before_anything_is_evaluated(call, error, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pe.InverseProblem, "from_model", compiled_once)
    (tmp_path / "text").write_text("no store")
    names = {"folder": tmp_path, "text": tmp_path / "text", "rng": np.random.default_rng(1)}
    names |= {"gallery": gallery, "xr": xr}
    CALLS.clear()
    with pytest.raises(error) as caught:
        eval(call, globals() | names)
    assert word in str(caught.value)
    assert "pymc_ensemble" in str(caught.traceback[-1].path), "the message is another package's"
    assert not CALLS
