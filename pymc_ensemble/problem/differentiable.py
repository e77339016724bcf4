"""A PyMC model as a log density with gradient, for the samplers that need one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pymc as pm
from numpy.typing import ArrayLike, NDArray
from pytensor.gradient import NullTypeGradError
from pytensor.graph.basic import Variable

from pymc_ensemble.forward.evaluation import Evaluations, evaluate_batch
from pymc_ensemble.problem.batching import BatchFunction
from pymc_ensemble.problem.checks import check_compile_kwargs, given_model
from pymc_ensemble.problem.compiled import CompiledPrior
from pymc_ensemble.problem.extraction import extract_density
from pymc_ensemble.problem.graphs import gradients, simplified
from pymc_ensemble.problem.leaves import without_leaves
from pymc_ensemble.problem.remembered import remembered

FloatArray = NDArray[np.float64]


class DifferentiableProblem:
    """Loss and prior of a model, with the gradient of the loss.

    `from_model` builds it. The outputs of an evaluation are the loss and its d derivatives by the
    unconstrained coordinates.
    """

    def __init__(self, function: BatchFunction, prior: CompiledPrior, names: tuple[str, ...]):
        self._function, self._prior, self.coordinate_names = function, prior, names
        self.n_outputs = 1 + self.dimension

    @classmethod
    def from_model(
        cls,
        model: pm.Model | None = None,
        vars: Sequence[Variable | str] | None = None,
        *,
        compile_kwargs: Mapping[str, Any] | None = None,
    ) -> "DifferentiableProblem":
        """Take a PyMC model as a prior and a loss with a gradient.

        Raises
        ------
        NotImplementedError
            If the log density has no gradient.
        """
        check_compile_kwargs(compile_kwargs)
        whole = given_model(model)

        def make() -> "DifferentiableProblem":
            extraction = extract_density(without_leaves(whole), vars)
            root = extraction.coordinates.root
            [loss] = extraction.terms[0].outputs
            try:
                [gradient] = simplified(gradients(loss.sum(), [root]))
            except (NotImplementedError, NullTypeGradError) as error:
                raise NotImplementedError(
                    "The log density of the model has no gradient, which the ensemble Langevin "
                    f"sampler needs ({error}). Use pe.EnsembleKalmanSampler or another sampler "
                    "that needs no gradient."
                ) from error
            function = BatchFunction([root], [loss, gradient], compile_kwargs=compile_kwargs)
            return cls(function, CompiledPrior(extraction), extraction.coordinates.names)

        return remembered(whole, (cls, vars, compile_kwargs), make)

    @property
    def dimension(self) -> int:
        """Number d of unknowns."""
        return self._prior.dimension

    def compile(self) -> None:
        """Compile loss and gradient."""
        self._function.compile()

    def evaluate(self, U: ArrayLike, seed: np.random.SeedSequence | None = None) -> Evaluations:
        """Evaluate loss and gradient at points (J, d): outputs of shape (J, 1 + d)."""
        points = np.array(U, dtype=np.float64)

        def all_of(points: FloatArray) -> FloatArray:
            return np.column_stack(self._function(points))

        return evaluate_batch(all_of, points, self.n_outputs)

    def loss(self, Z: FloatArray) -> FloatArray:
        """Loss of the outputs, shape (J,)."""
        return np.where(np.isfinite(Z).all(1), Z[:, 0], np.inf)

    def sample_prior(self, size: int, rng: np.random.Generator) -> FloatArray:
        """Draw an ensemble from the prior, shape (size, d)."""
        return self._prior.sample(size, rng)

    def prior_potential(self, U: FloatArray) -> FloatArray:
        """Negative log prior density, shape (J,)."""
        return self._prior.potential(U)

    def prior_gradient(self, U: FloatArray) -> FloatArray:
        """Gradient of the prior potential, shape (J, d)."""
        return self._prior.gradient(U)
