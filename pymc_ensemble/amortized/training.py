"""Training of an ensemble of networks: Adam, early stopping, new noise for every pass. In JAX."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import paramax
from numpy.typing import NDArray

from pymc_ensemble.log import logger

from .estimators import Architecture, loss_of

Array = NDArray[Any]

# Clip, share and patience are the defaults of sbi (Tejero-Cantero et al. 2020,
# https://doi.org/10.21105/joss.02505), the rate is that of Adam (Kingma and Ba 2015,
# https://arxiv.org/abs/1412.6980). Half and twice were not measured, nor those of batch and passes.
BATCH = 128  # between 50 and 200, which the default of sbi has been
RATE = 1e-3  # learning rate of Adam
FIRST_RATE = 3e-3  # first rate of a regression; it falls to zero, which halves the divergence
CLIP = 5.0  # largest norm of a gradient
HELD_BACK = 0.1  # share of the simulations that decide when the training ends
PATIENCE = 20  # passes without a better loss
PASSES = 400  # largest number of passes: a guard, as patience ends a training
REGRESSION_PASSES = 150  # fixed number of passes of a regression
REPEATS = 5  # looks at the held-back simulations, each with new noise or other partners


@dataclass(frozen=True)
class Trained:
    """An ensemble of networks, with the history of its training.

    Attributes
    ----------
    networks : Module
        Networks with a leading axis for the members.
    history : ndarray of shape (passes, members)
        Loss of the simulations that were held back, after each pass over the others.
    """

    networks: Any
    history: Array


def train(
    sizes: Architecture,
    theta: Array,
    data: Callable[[int], Array],
    held_back: Callable[[int], Array],
    *,
    members: int,
    balance: float,
    rng: np.random.Generator,
) -> Trained:
    """Train members side by side, each on its own part of the simulations.

    Parameters
    ----------
    sizes : Architecture
    theta : ndarray of shape (n, d)
        Standardized parameters.
    data, held_back : callable
        Standardized data (n, K) for a pass, and for one of `REPEATS` looks at held-back data.
    members : int
    balance : float
        Weight of the balance of a classifier.
    rng : numpy.random.Generator

    Returns
    -------
    Trained

    Raises
    ------
    RuntimeError
        If the loss of a member is not finite, twice.
    """
    for attempt in range(2):
        trained = _train(sizes, theta, data, held_back, members, balance, rng)
        if np.isfinite(trained.history.min(0)).all():
            return trained
        logger.debug("The loss of the training was not finite in attempt %d.", attempt)
    raise RuntimeError(
        "The loss of the training is not finite, with either of two seeds. Look for simulations "
        "with numbers of very different size, and put data or parameters of the model on a "
        "logarithmic scale."
    )


def _train(
    sizes: Architecture,
    theta: Array,
    data: Callable[[int], Array],
    held_back: Callable[[int], Array],
    members: int,
    balance: float,
    rng: np.random.Generator,
) -> Trained:
    key = jax.random.key(int(rng.integers(2**31)))
    networks = sizes.ensemble(jax.random.split(key, members))
    n = len(theta)
    order: Array = np.array([rng.permutation(n) for _ in range(members)])
    n_held = max(1, round(HELD_BACK * n))
    held, kept = order[:, :n_held], order[:, n_held:]
    batch = min(BATCH, kept.shape[1])
    n_batches = kept.shape[1] // batch
    parameters = jnp.asarray(theta, jnp.float32)
    looks = jnp.asarray(np.stack([held_back(k) for k in range(REPEATS)]), jnp.float32)
    partners = jnp.asarray(rng.integers(1, max(2, n_held), REPEATS))
    passes = REGRESSION_PASSES if sizes.kind == "diffusion" else PASSES
    learner = _Learner(sizes.kind, passes * n_batches)
    weight = jnp.asarray(balance, jnp.float32)  # an array, so that functions are compiled once
    state = learner.start(networks)
    best: Any
    lowest: Array
    waited: Array
    best, lowest, waited = networks, np.full(members, np.inf), np.zeros(members, int)
    history = []
    for number in range(passes):
        rows = rng.permuted(kept, axis=1)[:, : n_batches * batch]
        batches = jnp.asarray(rows.reshape(members, n_batches, batch))
        shifts = jnp.asarray(rng.integers(1, max(2, batch), (members, n_batches)))
        x = jnp.asarray(data(number), jnp.float32)
        networks, state = learner.one_pass(networks, state, parameters, x, batches, shifts, weight)
        loss = np.asarray(
            learner.held_back(networks, parameters, looks, jnp.asarray(held), partners, weight)
        )
        history.append(loss)
        better = loss < lowest - 1e-5  # in nats: less is rounding of float32
        best = _chosen(jnp.asarray(better), networks, best)
        lowest, waited = np.where(better, loss, lowest), np.where(better, 0, waited + 1)
        if learner.may_end and (waited >= PATIENCE).all():
            break
    return Trained(best, np.array(history))


@dataclass(frozen=True)
class _Learner:
    """Optimizer steps for all members at once. Equal learners share compiled functions."""

    kind: str
    steps: int

    @property
    def may_end(self) -> bool:
        """Whether the training may end early: with a falling rate it may not."""
        return self.kind != "diffusion"

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam with clipped gradients."""
        rate = RATE if self.may_end else optax.cosine_decay_schedule(FIRST_RATE, self.steps)
        return optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(rate))

    def start(self, networks: Any) -> Any:
        """State of the optimizer of each member."""
        return eqx.filter_vmap(self.optimizer.init)(_trainable(networks)[0])

    @eqx.filter_jit
    def one_pass(
        self, networks: Any, state: Any, theta: Any, x: Any, rows: Any, shifts: Any, balance: Any
    ) -> tuple[Any, Any]:
        """Networks and states after batches with the given rows (members, n_batches, batch)."""
        weights, fixed = _trainable(networks)
        loss_of_batch = loss_of(self.kind, balance)

        def of_member(weights: Any, fixed: Any, state: Any, rows: Any, shifts: Any) -> Any:
            def step(carry: Any, batch: Any) -> tuple[Any, None]:
                weights, state = carry
                chosen, shift = batch

                def loss(weights: Any) -> Any:
                    network = paramax.unwrap(eqx.combine(weights, fixed, is_leaf=_is_fixed))
                    return loss_of_batch(network, theta[chosen], x[chosen], shift)

                gradient = jax.grad(loss)(weights)
                updates, state = self.optimizer.update(gradient, state, weights)
                return (eqx.apply_updates(weights, updates), state), None

            (weights, state), _ = jax.lax.scan(step, (weights, state), (rows, shifts))
            return weights, state

        weights, state = eqx.filter_vmap(of_member)(weights, fixed, state, rows, shifts)
        return eqx.combine(weights, fixed, is_leaf=_is_fixed), state

    @eqx.filter_jit
    def held_back(
        self, networks: Any, theta: Any, looks: Any, rows: Any, partners: Any, balance: Any
    ) -> Any:
        """Loss of each member on its rows (members, m), averaged over looks (REPEATS, n, K)."""
        loss = loss_of(self.kind, balance)

        def of_member(network: Any, rows: Any) -> Any:
            network = paramax.unwrap(network)

            def one(x: Any, shift: Any) -> Any:
                return loss(network, theta[rows], x[rows], shift)

            return jax.vmap(one)(looks, partners).mean()

        return eqx.filter_vmap(of_member)(networks, rows)


def _is_fixed(leaf: Any) -> bool:
    return isinstance(leaf, paramax.NonTrainable)


def _trainable(networks: Any) -> tuple[Any, Any]:
    """Trainable weights, and all other values."""
    return eqx.partition(networks, eqx.is_inexact_array, is_leaf=_is_fixed)


@eqx.filter_jit
def _chosen(better: Any, new: Any, old: Any) -> Any:
    """Members of `new` that are better, otherwise those of `old`."""

    def choose(a: Any, b: Any) -> Any:
        if not eqx.is_array(a):
            return a
        return jnp.where(better.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree_util.tree_map(choose, new, old)
