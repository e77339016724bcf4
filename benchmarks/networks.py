"""Networks that an ensemble trains, beside the same networks trained by gradients.

    python benchmarks/networks.py dense --particles 500            # needs scikit-learn
    python benchmarks/networks.py dense --activation step --particles 200 --spread 0.1 --epochs 15
    python benchmarks/networks.py convolutional
    python benchmarks/networks.py recurrent
    python benchmarks/networks.py dense --by sgd                   # or adam: needs JAX and optax

prints what is right on held-back data by epoch, for each of --seeds. The images are 1797
handwritten digits of 8x8 pixels, 36 of each digit held back, in batches of 100. The series is the
yearly number of lynx trapped in the Mackenzie River district of Canada from 1821 to 1934 (Elton and
Nicholson 1942, https://doi.org/10.2307/1358), in logarithms; the last 34 years are held back, and
each is predicted from the five years before. What is right is the share of the variance that is
explained.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pymc as pm
import pytensor.tensor as pt

import pymc_ensemble as pe

Point = dict[str, np.ndarray]
WINDOW = 5  # years that the recurrent network sees
HELD_BACK = 34  # years
LYNX = """
269 321 585 871 1475 2821 3928 5943 4950 2577 523 98 184 279 409 2285 2685 3409 1824 409 151 45 68
213 546 1033 2129 2536 957 361 377 225 360 731 1638 2725 2871 2119 684 299 236 245 552 1623 3311
6721 4254 687 255 473 358 784 1594 1676 2251 1426 756 299 201 229 469 736 2042 2811 4431 2511 389
73 39 49 59 188 377 1292 4031 3495 587 105 153 387 758 1307 3465 6991 6313 3794 1836 345 382 808
1388 2713 3800 3091 2985 3790 374 81 80 108 229 399 1132 2432 3574 2935 1537 529 485 662 1000 1590
2657 3396
"""


@dataclass
class Task:
    """A network and its data.

    Attributes
    ----------
    sd : dict of str to float
        Prior standard deviation of each array of weights; they are where gradients start from.
    shapes : dict of str to tuple of int
    outputs : callable
        Outputs of the network at inputs x and weights; in the functions of its second argument,
        those of PyTensor, NumPy or JAX.
    right : callable
        Share of the held-back data, between 0 and 1, that outputs are right about.
    x, y, new : ndarray
        Inputs and data to learn from, and inputs that were held back.
    batch : int
    """

    sd: dict[str, float]
    shapes: dict[str, tuple[int, ...]]
    outputs: Callable
    right: Callable[[np.ndarray], float]
    x: np.ndarray
    y: np.ndarray
    new: np.ndarray
    batch: int

    @property
    def labels(self) -> bool:
        """Whether the data are classes."""
        return self.y.dtype.kind == "i"

    def model(self) -> pm.Model:
        """The network as a model of PyMC."""
        with pm.Model() as model:
            x, y = pm.Data("x", self.x[: self.batch]), pm.Data("y_data", self.y[: self.batch])
            weights = {k: pm.Normal(k, 0, sd, shape=self.shapes[k]) for k, sd in self.sd.items()}
            outputs = self.outputs(x, pt, weights)
            if self.labels:
                pm.Categorical("y", logit_p=outputs, observed=y)
            else:
                pm.Normal("y", outputs, 0.3, observed=y)
        return model

    def batches(self, seed: int) -> "Shuffled":
        """Batches in another order in each epoch."""
        return Shuffled(self, np.random.default_rng(seed))

    def accuracy(self, weights: Point) -> float:
        """Share of the held-back data that the network is right about."""
        return self.right(np.asarray(self.outputs(self.new, np, weights)))


@dataclass
class Shuffled:
    """Batches of a task, in another order each time."""

    task: Task
    rng: np.random.Generator

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        task = self.task
        order = self.rng.permutation(len(task.x))
        for k in range(0, len(order) - task.batch + 1, task.batch):
            rows = order[k : k + task.batch]
            yield {"x": task.x[rows], "y_data": task.y[rows]}


def hidden(activation: str, a: np.ndarray, xp: object) -> np.ndarray:
    """ReLU, or a step, which has no derivative."""
    return xp.maximum(a, 0) if activation == "relu" else xp.sign(xp.maximum(a, 0))


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, their labels, and which are held back."""
    from sklearn.datasets import load_digits

    X, Y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    test = np.concatenate([rng.permutation(np.flatnonzero(c == Y))[:36] for c in range(10)])
    return X / 16, Y.astype("int64"), np.isin(np.arange(len(Y)), test)


def dense(activation: str) -> Task:
    """A network 64-32-10 of 2410 weights."""
    X, Y, held = digits()

    def outputs(x: np.ndarray, xp: object, w: Point) -> np.ndarray:
        return hidden(activation, x @ w["W1"] + w["b1"], xp) @ w["W2"] + w["b2"]

    return Task(
        sd={"W1": (2 / 64) ** 0.5, "b1": 0.05, "W2": (1 / 32) ** 0.5, "b2": 0.05},
        shapes={"W1": (64, 32), "b1": (32,), "W2": (32, 10), "b2": (10,)},
        outputs=outputs,
        right=lambda logits: float(np.mean(logits.argmax(1) == Y[held])),
        x=X[~held],
        y=Y[~held],
        new=X[held],
        batch=100,
    )


def convolutional(activation: str) -> Task:
    """Eight filters of 3x3 pixels, the largest of 2x2 of them, and a dense layer: 810 weights."""
    X, Y, held = digits()
    # a convolution is a product with the patches of an image; patches of a pool stay together
    corner = np.arange(6)
    pool = [(r, c) for r in corner[::2] for c in corner[::2]]
    places = [(r + i, c + j) for r, c in pool for i in range(2) for j in range(2)]
    pixels = np.array(
        [[8 * (r + i) + c + j for i in range(3) for j in range(3)] for r, c in places]
    )
    patches = X[:, pixels].reshape(len(X), 9, 4, 9)

    def outputs(x: np.ndarray, xp: object, w: Point) -> np.ndarray:
        a = hidden(activation, x @ w["W1"] + w["b1"], xp).max(2)
        return a.reshape((a.shape[0], 72)) @ w["W2"] + w["b2"]

    return Task(
        sd={"W1": (2 / 9) ** 0.5, "b1": 0.05, "W2": (1 / 72) ** 0.5, "b2": 0.05},
        shapes={"W1": (9, 8), "b1": (8,), "W2": (72, 10), "b2": (10,)},
        outputs=outputs,
        right=lambda logits: float(np.mean(logits.argmax(1) == Y[held])),
        x=patches[~held],
        y=Y[~held],
        new=patches[held],
        batch=100,
    )


def recurrent(activation: str) -> Task:
    """A network of eight units that reads five years and predicts the next: 89 weights."""
    series = np.log(np.array(LYNX.split(), dtype=float))
    series = (series - series.mean()) / series.std()
    windows = np.lib.stride_tricks.sliding_window_view(series, WINDOW + 1)
    x, y = windows[:, :-1], windows[:, -1]
    new, truth = x[-HELD_BACK:], y[-HELD_BACK:]

    def outputs(x: np.ndarray, xp: object, w: Point) -> np.ndarray:
        state = None
        for year in range(WINDOW):
            a = x[:, year][:, None] * w["in"] + w["b"]
            a = a if state is None else a + state @ w["again"]
            state = hidden(activation, a, xp) if activation == "step" else xp.tanh(a)
        return (state @ w["out"])[:, 0] + w["c"][0]

    return Task(
        sd={"in": 1.0, "again": 8**-0.5, "b": 0.2, "out": 8**-0.5, "c": 0.1},
        shapes={"in": (8,), "again": (8, 8), "b": (8,), "out": (8, 1), "c": (1,)},
        outputs=outputs,
        right=lambda outputs: float(1 - np.mean((outputs - truth) ** 2) / truth.var()),
        x=x[:-HELD_BACK],
        y=y[:-HELD_BACK],
        new=new,
        batch=25,
    )


def by_ensemble(task: Task, seed: int, epochs: int, particles: int, spread: float) -> list[float]:
    """What is right after each epoch."""
    trained = pe.train(
        task.model(),
        task.batches(seed),
        epochs=epochs,
        ensemble_size=particles,
        spread=spread,
        validation=task.accuracy,
        random_seed=seed,
        progressbar=False,
    )
    return trained.history["validation"].to_numpy().tolist()


def by_gradients(task: Task, seed: int, epochs: int, how: str) -> list[float]:
    """The same by stochastic gradient descent with momentum, or by Adam, from the same prior."""
    import jax
    import optax

    rng = np.random.default_rng(seed)
    weights = {k: sd * rng.standard_normal(task.shapes[k]) for k, sd in task.sd.items()}
    optimizer = optax.adam(1e-2) if how == "adam" else optax.sgd(0.1, momentum=0.9)

    def loss(w: dict, x: np.ndarray, y: np.ndarray) -> float:
        outputs = task.outputs(x, jax.numpy, w)
        if task.labels:
            return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()
        return ((outputs - y) ** 2).mean()

    @jax.jit
    def step(w: dict, state: tuple, x: np.ndarray, y: np.ndarray) -> tuple:
        updates, state = optimizer.update(jax.grad(loss)(w, x, y), state, w)
        return optax.apply_updates(w, updates), state

    state, right = optimizer.init(weights), []
    for _ in range(epochs):
        for batch in task.batches(int(rng.integers(2**32))):
            weights, state = step(weights, state, batch["x"], batch["y_data"])
        right.append(task.accuracy({k: np.asarray(v) for k, v in weights.items()}))
    return right


if __name__ == "__main__":
    tasks = {task.__name__: task for task in (dense, convolutional, recurrent)}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=tasks)
    parser.add_argument("--activation", choices=("relu", "step"), default="relu")
    parser.add_argument("--by", choices=("ensemble", "sgd", "adam"), default="ensemble")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--particles", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--spread", type=float, default=0.02)
    given = parser.parse_args()
    task = tasks[given.network](given.activation)
    for seed in given.seeds:
        if given.by == "ensemble":
            right = by_ensemble(task, seed, given.epochs, given.particles, given.spread)
        else:
            right = by_gradients(task, seed, given.epochs, given.by)
        print(f"seed {seed}: {np.round(right, 3).tolist()}", flush=True)
