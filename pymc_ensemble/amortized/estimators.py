"""Networks for a posterior, or for its ratio to the prior, given any data. Arrays only, in JAX.

Parameters and data are standardized. All members of an ensemble form one module. Each of its arrays
has a leading axis for the members.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import flowjax.bijections
import flowjax.distributions
import flowjax.flows
import jax
import jax.numpy as jnp
import numpy as np
import paramax
from numpy.typing import NDArray

Array = NDArray[Any]
Key = Any

LARGEST_LOG_SCALE = 7.0  # of a component, in prior sd: float32 networks resolve scales up to e^7


@dataclass(frozen=True)
class Architecture:
    """Kind and sizes of a network, from which it can be built again.

    Attributes
    ----------
    kind : {"mixture", "flow", "ratio", "diffusion"}
    dimension, inputs : int
        Numbers of parameters and of data.
    width, depth : int
        Size of the hidden layers.
    components : int
        Number of Gaussians of a mixture, or of layers of a flow.
    """

    kind: str
    dimension: int
    inputs: int
    width: int
    depth: int
    components: int

    @classmethod
    def of(cls, kind: str, dimension: int, inputs: int) -> "Architecture":
        """Sizes that are good on the problems of the benchmark.

        Those of a flow are the default of sbi [1]_. Half and twice of the others were not measured.

        References
        ----------
        .. [1] Tejero-Cantero, A. et al. (2020). sbi: A toolkit for simulation-based inference.
           Journal of Open Source Software, 5(52), 2505. https://doi.org/10.21105/joss.02505
        """
        width, depth, components = {
            "mixture": (64, 2, 8),
            "flow": (50, 1, 5),
            "ratio": (64, 3, 1),
            "diffusion": (64, 3, 1),
        }[kind]
        return cls(kind, dimension, inputs, width, depth, components)

    def build(self, key: Key) -> Any:
        """One network with random weights."""
        build = {
            "mixture": MixtureDensity,
            "flow": Flow,
            "ratio": Ratio,
            "diffusion": LatentMap,
        }[self.kind]
        return build(self, key)

    def ensemble(self, keys: Any) -> Any:
        """Networks with random weights, one for each key, along a leading axis."""
        return eqx.filter_vmap(self.build)(keys)


class MixtureDensity(eqx.Module):
    """A mixture of Gaussians whose weights, means and precisions are functions of the data."""

    network: eqx.nn.MLP
    dimension: int = eqx.field(static=True)
    components: int = eqx.field(static=True)

    def __init__(self, sizes: Architecture, key: Key):
        self.dimension, self.components = d, K = sizes.dimension, sizes.components
        of_network, of_means = jax.random.split(key)
        n_out = K * (1 + d + d * (d + 1) // 2)
        network = eqx.nn.MLP(
            sizes.inputs, n_out, sizes.width, sizes.depth, jax.nn.silu, key=of_network
        )
        last = network.layers[-1]
        # at the start components are like the prior, but apart, for all data
        bias = jnp.zeros(n_out).at[K : K + K * d].set(jax.random.normal(of_means, (K * d,)))
        where = lambda net: (net.layers[-1].weight, net.layers[-1].bias)  # noqa: E731
        self.network = eqx.tree_at(where, network, (0.1 * last.weight, bias))

    def parts(self, x: Any) -> tuple[Any, Any, Any]:
        """Log weights (K,), means (K, d) and Cholesky factors (K, d, d) of precisions at data."""
        d, K = self.dimension, self.components
        out = self.network(x)
        log_weights = jax.nn.log_softmax(out[:K])
        means = out[K : K + K * d].reshape(K, d)
        rest = out[K + K * d :].reshape(K, -1)
        diagonal = jnp.clip(rest[:, :d], -LARGEST_LOG_SCALE, LARGEST_LOG_SCALE)
        factors = jnp.zeros((K, d, d)).at[:, *np.tril_indices(d, -1)].set(rest[:, d:])
        return log_weights, means, factors + jax.vmap(jnp.diag)(jnp.exp(diagonal))

    def log_density(self, theta: Any, x: Any) -> Any:
        """Log density of parameters (d,) given data (K,)."""
        log_weights, means, factors = self.parts(x)
        z = jnp.einsum("kij,ki->kj", factors, theta - means)
        volume = jnp.log(jnp.diagonal(factors, axis1=1, axis2=2)).sum(1)
        each = log_weights + volume - 0.5 * (z**2).sum(1) - 0.5 * self.dimension * np.log(2 * np.pi)
        return jax.nn.logsumexp(each)

    def draw(self, key: Key, x: Any, n: int) -> Any:
        """Draws (n, d) given data (K,)."""
        log_weights, means, factors = self.parts(x)
        of_choice, of_noise = jax.random.split(key)
        chosen = jax.random.categorical(of_choice, log_weights, shape=(n,))
        noise = jax.random.normal(of_noise, (n, self.dimension))
        scales = jax.vmap(
            lambda L: jax.scipy.linalg.solve_triangular(L, jnp.eye(self.dimension), lower=True)
        )(factors)
        return means[chosen] + jnp.einsum("ni,nij->nj", noise, scales[chosen])


class Flow(eqx.Module):
    """A masked autoregressive flow of rational quadratic splines, by flowjax."""

    flow: Any

    def __init__(self, sizes: Architecture, key: Key):
        self.flow = flowjax.flows.masked_autoregressive_flow(
            key,
            base_dist=flowjax.distributions.Normal(jnp.zeros(sizes.dimension)),
            # as in the examples of flowjax; data are standardized, and hardly any is beyond 4 sd
            transformer=flowjax.bijections.RationalQuadraticSpline(knots=8, interval=4),
            cond_dim=sizes.inputs,
            flow_layers=sizes.components,
            nn_width=sizes.width,
            nn_depth=sizes.depth,
        )

    def log_density(self, theta: Any, x: Any) -> Any:
        """Log density of parameters (d,) given data (K,)."""
        return self.flow.log_prob(theta, x)

    def draw(self, key: Key, x: Any, n: int) -> Any:
        """Draws (n, d) given data (K,)."""
        return self.flow.sample(key, (n,), x)


class Ratio(eqx.Module):
    """Log ratio of the posterior to the prior, from a classifier of matching pairs."""

    network: eqx.nn.MLP

    def __init__(self, sizes: Architecture, key: Key):
        self.network = eqx.nn.MLP(
            sizes.dimension + sizes.inputs, "scalar", sizes.width, sizes.depth, jax.nn.silu, key=key
        )

    def log_density(self, theta: Any, x: Any) -> Any:
        """Log ratio of the densities at parameters (d,) given data (K,)."""
        return self.network(jnp.concatenate([theta, x]))


class LatentMap(eqx.Module):
    """Parameters as a function of data and of a standard normal latent; it has no density."""

    network: eqx.nn.MLP
    dimension: int = eqx.field(static=True)

    def __init__(self, sizes: Architecture, key: Key):
        d = self.dimension = sizes.dimension
        self.network = eqx.nn.MLP(
            sizes.inputs + d, d, sizes.width, sizes.depth, jax.nn.silu, key=key
        )

    def draw(self, key: Key, x: Any, n: int) -> Any:
        """Draws (n, d) given data (K,)."""
        z = jax.random.normal(key, (n, self.dimension))
        return jax.vmap(lambda one: self.network(jnp.concatenate([x, one])))(z)


# --- losses of a batch ----------------------------------------------------------------------------


def negative_log_density(network: Any, theta: Any, x: Any, shift: Any) -> Any:
    """Mean negative log density of parameters, shape (n, d), given their data, shape (n, K)."""
    return -jax.vmap(network.log_density)(theta, x).mean()


def classification(network: Any, theta: Any, x: Any, shift: Any, *, balance: Any) -> Any:
    """Cross entropy of matching and other pairs, with the balance condition.

    The other pairs have the parameters of `shift` rows before. A balanced classifier has
    ``E d(joint) + E d(marginal) = 1``. Its posteriors are rather too wide than too narrow [1]_.

    .. [1] Delaunoy, A., Hermans, J., Rozet, F., Wehenkel, A. and Louppe, G. (2022). Towards
       reliable simulation-based inference with balanced neural ratio estimation. Advances in
       Neural Information Processing Systems, 35. https://arxiv.org/abs/2208.13624
    """
    logit = jax.vmap(network.log_density)
    joint, marginal = logit(theta, x), logit(jnp.roll(theta, shift, axis=0), x)
    entropy = 0.5 * (jax.nn.softplus(-joint).mean() + jax.nn.softplus(marginal).mean())
    both = jax.nn.sigmoid(joint).mean() + jax.nn.sigmoid(marginal).mean()
    return entropy + balance * (both - 1) ** 2


def squared_error(network: Any, theta: Any, x: Any, shift: Any) -> Any:
    """Mean squared distance of parameters (n, d) from the map of data and latents (n, K + d)."""
    return ((jax.vmap(network.network)(x) - theta) ** 2).sum(1).mean()


def loss_of(kind: str, balance: Any) -> Callable[..., Any]:
    """Loss of a kind of network."""
    if kind == "ratio":
        return partial(classification, balance=balance)
    if kind == "diffusion":
        return squared_error
    return negative_log_density


# --- what an ensemble of networks says ------------------------------------------------------------


@eqx.filter_jit
def log_densities(networks: Any, theta: Any, x: Any) -> Any:
    """Log densities (D, n), averaged over members, of (D, n, d) parameters given (D, K) data."""

    def of_member(network: Any) -> Any:
        network = paramax.unwrap(network)
        of_draws = jax.vmap(network.log_density, in_axes=(0, None))
        return jax.vmap(of_draws)(theta, x)

    each = eqx.filter_vmap(of_member)(networks)
    return jax.nn.logsumexp(each, axis=0) - jnp.log(each.shape[0])


@eqx.filter_jit
def draws(networks: Any, key: Key, x: Any, n: int) -> Any:
    """Independent draws (D, n, d) from the average over members, given (D, K) data."""
    of_members, of_choice = jax.random.split(key)

    def of_member(network: Any, key: Key) -> Any:
        network = paramax.unwrap(network)
        keys = jax.random.split(key, len(x))
        return jax.vmap(lambda k, one: network.draw(k, one, n))(keys, x)

    members = jax.tree_util.tree_leaves(eqx.filter(networks, eqx.is_array))[0].shape[0]
    each = eqx.filter_vmap(of_member)(networks, jax.random.split(of_members, members))
    chosen = jax.random.randint(of_choice, (len(x), n), 0, members)
    return jnp.take_along_axis(each, chosen[None, :, :, None], axis=0)[0]
