"""Training of models on batches."""

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import pytest

import pymc_ensemble as pe

RNG = np.random.default_rng(1)
X = RNG.standard_normal((240, 3))
Y = (X[:, 0] - 0.5 * X[:, 1] > 0).astype(int)  # a line parts the points


def batch(where):
    return {"x": X[where], "labels": Y[where]}


BATCHES = [batch(slice(40 * k, 40 * k + 40)) for k in range(5)]  # the last 40 are for validation
TEST = X[200:], Y[200:]


def hidden(x, W):
    """Layer of units that step: it has no derivative."""
    return np.concatenate([(x @ W > 0).astype(float), np.ones((len(x), 1))], axis=1)


def network(black_box=False):
    """Net of 8 units, as a graph or as a function of NumPy that takes the batch."""
    with pm.Model() as model:
        x, labels = pm.Data("x", X[:40]), pm.Data("labels", Y[:40])
        W = pm.Normal("W", 0, 1, shape=(3, 8))
        v = pm.Normal("v", 0, 0.5, shape=9)
        if black_box:
            logits = pe.forward_model(lambda x, W, v: hidden(x, W) @ v, output_shape=40)(x, W, v)
        else:
            ones = pt.ones((x.shape[0], 1))
            logits = pt.concatenate([pt.cast(x @ W > 0, "float64"), ones], axis=1) @ v
            pm.Deterministic("logits", logits)
        pm.Bernoulli("y", logit_p=logits, observed=labels)
    return model


def quiet(model, batches=BATCHES, **options):
    defaults = {"progressbar": False, "random_seed": 1, "ensemble_size": 60, "spread": 0.1}
    return pe.train(model, batches, **defaults | options)


def accuracy(point):
    return np.mean((hidden(TEST[0], point["W"]) @ point["v"] > 0) == TEST[1])


def test_learns_what_has_no_derivative():
    model = network()
    trained = quiet(model, epochs=15, validation=accuracy)
    assert accuracy(trained.mean) > 0.85
    np.testing.assert_allclose(trained.history["validation"][-1], accuracy(trained.mean))
    logits = trained.predict({"x": TEST[0]})["logits"]
    np.testing.assert_allclose(
        logits, hidden(TEST[0], trained.mean["W"]) @ trained.mean["v"], atol=1e-8
    )
    np.testing.assert_array_equal(model["x"].get_value(), X[:40])  # its own data again
    assert trained.history["n_evals"][-1] == 15 * 5 * 60
    assert trained.history["loss"][-1] < 0.6 * trained.history["loss"][0]


def test_black_box_takes_the_same_path():
    one, two = (quiet(network(black_box), epochs=2) for black_box in (False, True))
    np.testing.assert_allclose(one.particles, two.particles, atol=1e-6)
    np.testing.assert_allclose(one.history["loss"], two.history["loss"], rtol=1e-6)


def test_batches_are_what_is_trained_on():
    """With the labels of all batches turned over, the opposite is learned."""
    turned = [{"x": b["x"], "labels": 1 - b["labels"]} for b in BATCHES]
    trained = quiet(network(), turned, epochs=10)
    assert accuracy(trained.mean) < 0.2


def test_batches_from_a_function_and_an_iterator():
    def draw(rng):
        return batch(rng.integers(200, size=40))

    one, two = (quiet(network(), draw, epochs=2, steps=3) for _ in range(2))
    np.testing.assert_array_equal(one.particles, two.particles)
    assert one.history.sizes["epoch"] == 2
    once = quiet(network(), iter(BATCHES), epochs=5)
    assert once.history.sizes["epoch"] == 1


def test_stops_early_with_the_best_epoch():
    scores = iter([0.1, 0.5, 0.2, 0.3, 0.9])
    points = []

    def validation(point):
        points.append(point)
        return next(scores)

    trained = quiet(network(), epochs=10, validation=validation, patience=2)
    assert trained.history.sizes["epoch"] == 4
    np.testing.assert_array_equal(trained.mean["W"], points[1]["W"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batches": None}, TypeError, "`batches` are needed"),
        ({"batches": []}, ValueError, "`batches` is empty"),
        ({"batches": [3]}, TypeError, "must map names"),
        ({"batches": [{"z": 1}]}, ValueError, "`z`, which is not a pm.Data.*`labels`, `x`"),
        ({"batches": [batch(slice(0, 30))]}, ValueError, r"shape \(30,.*the same"),
        ({"batches": [BATCHES[0], {"x": X[:40]}]}, ValueError, "for `labels`"),
        ({"batches": lambda rng: BATCHES[0]}, ValueError, "`steps` of an epoch"),
        ({"steps": 3}, ValueError, "`steps` of an epoch"),
        ({"patience": 3}, ValueError, "Give `validation`"),
        ({"epochs": 0}, ValueError, "epochs must be"),
        ({"momentum": True}, ValueError, "without bound"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        quiet(network(), **options)


def test_predictions_need_a_name():
    trained = quiet(network(), epochs=1)
    with pytest.raises(ValueError, match="`W` is not a deterministic"):
        trained.predict(var_names=["W"])
    bare = quiet(network(black_box=True), epochs=1)
    with pytest.raises(ValueError, match="no deterministic variable"):
        bare.predict()
