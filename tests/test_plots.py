"""Pictures show what is in the result: positions of lines, dots and bands."""

import matplotlib.pyplot as plt
import numpy as np
import pymc as pm
import pytest
import xarray as xr

import pymc_ensemble as pe
from pymc_ensemble import plots
from pymc_ensemble.log import number

J, S = 12, 5


@pytest.fixture(scope="module")
def idata():
    with pm.Model():
        a = pm.Normal("a")
        b = pm.Normal("b", shape=2)
        pm.Deterministic("0", a + b)  # before all others by name
        pm.Normal("y", a + b, 0.5, observed=[1.0, 2.0])
        idata = pm.sample(
            J * S,
            step=pe.EnsembleKalmanSampler(adjust=False, ensemble_size=J),
            chains=2,
            cores=1,
            random_seed=1,
            progressbar=False,
            compute_convergence_checks=False,
            discard_tuned_samples=False,
        )
        pm.sample_posterior_predictive(
            idata, extend_inferencedata=True, random_seed=1, progressbar=False
        )
    return idata


@pytest.fixture(autouse=True)
def ax():
    """Axes of a figure that is closed after the test, as all others."""
    yield plt.subplots()[1]
    plt.close("all")


def test_axes_go_in_and_come_out(idata, ax):
    draw = (plots.path, plots.spread, plots.misfit, plots.outputs, plots.weights)
    for function in draw:
        assert function(idata, ax=ax) is ax
    before = plt.get_fignums()
    figures = [function(idata).figure.number for function in draw]
    assert not set(figures) & set(before)
    assert len(set(figures)) == len(draw)


# -- path ---------------------------------------------------------------------------------------


def test_path_of_the_chosen_chain(idata, ax):
    plots.path(idata, "b[1]", "a", chain=1, ax=ax)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("b[1]", "a")
    posterior = pe.to_ensemble(idata)["posterior"].dataset.isel(chain=1)
    expected = np.stack([posterior["b"][..., 1], posterior["a"]], axis=-1)
    dots = max(ax.collections, key=lambda c: len(c.get_offsets()))
    np.testing.assert_array_equal(dots.get_offsets(), expected.reshape(-1, 2))
    np.testing.assert_array_equal(dots.get_array(), np.arange(S).repeat(J))
    [mean] = [line for line in ax.lines if line.get_label() == "mean"]
    np.testing.assert_allclose(mean.get_xydata(), expected.mean(1))


def test_path_shows_the_burn_in_if_it_was_kept(idata, ax):
    plots.path(idata, ax=ax)
    [crosses] = [c for c in ax.collections if c.get_label() == "burn-in"]
    n_evals = idata["warmup_sample_stats"]["n_evals"].values
    iterations = max(len(np.unique(of_chain)) for of_chain in n_evals)
    assert len(crosses.get_offsets()) == iterations < n_evals.shape[1]
    without = xr.DataTree.from_dict({k: idata[k] for k in ("posterior", "sample_stats")})
    assert not [c for c in plots.path(without).collections if c.get_label() == "burn-in"]


@pytest.mark.parametrize("names", [("a", "c"), ("b[7]", None)])
def test_path_names_the_parameters_there_are(idata, names):
    known = r"'a', 'b\[0\]', 'b\[1\]', '0\[0\]', '0\[1\]'"
    with pytest.raises(ValueError, match=rf"{known}; `(c|b\[7\])` is none of them"):
        plots.path(idata, *names)


def test_path_needs_a_chain_that_there_is(idata):
    n = idata["posterior"].sizes["chain"]
    with pytest.raises(ValueError, match=f"no chain {n}: there are {n}"):
        plots.path(idata, chain=n)


def test_path_needs_two_parameters(idata):
    alone = xr.DataTree.from_dict(
        {"posterior": idata["posterior"].dataset[["a"]], "sample_stats": idata["sample_stats"]}
    )
    with pytest.raises(ValueError, match="'a'; two are needed"):
        plots.path(alone)


# -- spread and misfit --------------------------------------------------------------------------


def test_spread_is_that_of_the_particles(idata, ax):
    plots.spread(idata, ["b[1]"], ax=ax)
    values = pe.to_ensemble(idata)["posterior"]["b"].values[..., 1]
    lines = [line.get_ydata() for line in ax.lines if len(line.get_ydata()) == S]
    np.testing.assert_allclose(lines, values.std(2) / values.std())


def test_functions_of_the_unknowns_are_drawn_on_demand(idata, ax):
    legend = plots.spread(idata, ax=ax).get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b[0]", "b[1]"]
    path = plots.path(idata)
    assert (path.get_xlabel(), path.get_ylabel()) == ("a", "b[0]")
    assert plots.path(idata, "0[1]").get_xlabel() == "0[1]"
    legend = plots.spread(idata, ["0"]).get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["0[0]", "0[1]"]


def test_spread_of_a_single_walker_is_refused():
    sweep = np.arange(4)[None]
    one = xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset({"x": (("chain", "draw"), sweep * 1.0)}),
            "sample_stats": xr.Dataset(
                {"sweep": (("chain", "draw"), sweep), "particle": (("chain", "draw"), 0 * sweep)}
            ),
        }
    )
    with pytest.raises(ValueError, match="one particle"):
        plots.spread(one)


def test_unknown_variables_are_named(idata):
    with pytest.raises(ValueError, match="no 'c'; its variables are 'a', 'b'"):
        plots.spread(idata, ["a", "c"])
    with pytest.raises(ValueError, match="no 'rate';"):
        plots.spread(idata, "rate")


def test_misfit_before_and_after_the_burn_in(idata, ax):
    plots.misfit(idata, ax=ax)
    lp = pe.to_ensemble(idata)["sample_stats"]["lp"].values
    for c in range(2):
        [mean] = [line for line in ax.lines if line.get_label() == f"chain {c}"]
        np.testing.assert_allclose(mean.get_ydata(), -lp[c].mean(1))
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert [line.get_xdata()[-1] for line in crosses] == [-1, -1]


# -- outputs ------------------------------------------------------------------------------------


def test_bands_are_quantiles(ax):
    values = np.random.default_rng(1).normal(size=(3, 50, 4))
    plots.outputs(values, np.arange(4.0), x=[0, 1, 2, 5], levels=[0.8], ax=ax)
    [band] = ax.collections
    corners = band.get_paths()[0].vertices[:, 1]
    low, high = np.quantile(values.reshape(-1, 4), [0.1, 0.9], axis=0)
    np.testing.assert_allclose(np.unique(corners), np.unique([low, high]))
    [dots] = [line for line in ax.lines if line.get_label() == "data"]
    np.testing.assert_array_equal(dots.get_xydata(), [[0, 0], [1, 1], [2, 2], [5, 3]])


def test_data_come_with_the_result(idata, ax):
    plots.outputs(idata, ax=ax)
    [dots] = [line for line in ax.lines if line.get_label() == "data"]
    np.testing.assert_array_equal(dots.get_ydata(), [1.0, 2.0])


def test_wrong_outputs_are_refused(idata):
    values = np.zeros((10, 4))
    with pytest.raises(ValueError, match=r"data has the shape \(3,\), but there are 4 outputs"):
        plots.outputs(values, np.zeros(3))
    with pytest.raises(ValueError, match="levels"):
        plots.outputs(values, levels=[50])
    with pytest.raises(ValueError, match=r"has the shape \(4,\)"):
        plots.outputs(np.zeros(4))
    with pytest.raises(ValueError, match="var_name='z' has to be one of y"):
        plots.outputs(idata, var_name="z")
    with pytest.raises(ValueError, match="sample_posterior_predictive"):
        plots.outputs(xr.DataTree.from_dict({"posterior": idata["posterior"].dataset}))


# -- weights ------------------------------------------------------------------------------------


def test_largest_weights_are_marked(idata, ax):
    plots.weights(idata, ax=ax)
    [marked] = [c for c in ax.collections if c.get_label() == "largest weights"]
    [others] = [c for c in ax.collections if c.get_label() == "draws"]
    log_q, lp = marked.get_offsets().T
    assert len(lp) == int(0.2 * 2 * J * S)
    assert (lp - log_q).min() >= np.subtract(*others.get_offsets().T[::-1]).max()
    expected = f"k-hat {number(pe.diagnose(idata).statistics['khat'], '.2f')}"
    assert ax.get_title().startswith(expected)
