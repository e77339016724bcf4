"""Shapes of outputs that nobody has described, found by calls of the function."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pytensor.graph.basic import Variable

from pymc_ensemble.forward.workers.backend import backend
from pymc_ensemble.forward.workers.chunks import Chunk

from .batch import as_bytes
from .evaluator import UNSEEDED, Evaluator
from .messages import inputs
from .shapes import at_prior
from .store import Key
from .tasks import Outcomes, Seed, Signature, Task

FloatArray = NDArray[np.float64]

TRIALS = 5  # points of the prior that are tried to find the shape of the outputs


class OutputFinder(Evaluator):
    """A function that is evaluated in batches, and finds the shapes of its outputs by a call."""

    def with_known_outputs(self, signature: Signature, inputs: Sequence[Variable]) -> Signature:
        """Signature with the outputs: described, stored, or found by a call.

        Parameters
        ----------
        signature : Signature
            Signature that may lack the outputs.
        inputs : sequence of Variable
            The inputs in the model.

        Returns
        -------
        Signature
            Signature with the outputs.
        """
        store = self.store
        if store is not None:
            known = store.outputs(signature)
            if signature.outputs is None:
                signature = replace(signature, outputs=known)
        if signature.outputs is None:
            found = self._runtime.found
            if signature not in found:
                found[signature] = self._find_outputs(signature, inputs)
            signature = found[signature]
        if store is not None:
            store.bind(signature)
        return signature

    def _find_outputs(self, signature: Signature, inputs: Sequence[Variable]) -> Signature:
        """Call the function at points of the prior until it works at one."""
        reason = ""
        for number in range(TRIALS):
            found = self._found_at(signature, at_prior(inputs, number), number)
            if isinstance(found, Signature):
                return found
            reason = found
        raise ValueError(
            f"The shape of the outputs of {self.name} could not be found: {self.name} failed at "
            f"{TRIALS} points of the prior. Give `output_shape`, or a prior that stays where "
            f"{self.name} works. The last failure was at {reason}"
        )

    def _found_at(
        self, signature: Signature, values: Sequence[np.ndarray], number: int
    ) -> Signature | str:
        """Signature with the outputs that a call has found, or the reason why it has failed."""
        varying = [np.ravel(values[i]) for i in signature.varying]
        point = np.concatenate([*varying, []]).astype(float)
        fixed = tuple(values[i] for i in signature.fixed)
        outcomes, key = self._attempt(signature, point[None], fixed, number)
        if outcomes.found is None or outcomes.statuses[0] != "ok":
            return f"{inputs(signature, point)}\n{outcomes.reasons.get(0, '')}"
        signature = replace(signature, outputs=outcomes.found)
        site = self._runtime.site(signature, fixed)
        if (store := self._store(site.mark)) is not None:
            store.bind(signature)
            store.put([key], outcomes)
        site.memory.add([key[0]], point[None], outcomes.outputs)
        return signature

    def resized(self, signature: Signature, inputs: Sequence[np.ndarray]) -> Signature:
        """Signature for inputs of other shapes. A call at these inputs finds the outputs.

        Parameters
        ----------
        signature : Signature
            Signature in the model.
        inputs : sequence of ndarray
            Inputs without leading dimensions.

        Returns
        -------
        Signature
            Signature with the new shapes.
        """
        shapes = tuple(value.shape for value in inputs)
        unknown, found = replace(signature, shapes=shapes, outputs=None), self._runtime.found
        if unknown not in found:
            outcome = self._found_at(unknown, inputs, 0)
            if isinstance(outcome, str):
                raise ValueError(
                    f"The data of {self.name} have other shapes than when the model was built, "
                    f"{shapes}, and the shape of its outputs could not be found. {self.name} "
                    f"failed at {outcome}"
                )
            found[unknown] = outcome
        return found[unknown]

    def _attempt(
        self, signature: Signature, point: FloatArray, fixed: tuple[np.ndarray, ...], number: int
    ) -> tuple[Outcomes, Key]:
        """Evaluate a single point whose outputs are not known, by the workers."""
        looked = self._begin()
        task = Task(self.function, signature, self.vectorized, self.random, fixed=fixed)
        key = (as_bytes(point)[0], f"trial {number}" if self.random else "", 0)
        seeds: list[Seed] | None = [(UNSEEDED, (number,))] if self.random else None
        given = self._runtime.executor
        executor = 1 if given == "processes" or isinstance(given, int) else given
        with (
            closing(backend(executor, task, self._timeout)) as workers,
            self._calling(looked, here=executor is None),
        ):
            [(_, outcomes)] = workers.run(Chunk(np.zeros(1, dtype=int), point, seeds, None), None)
        self._runtime.n_evaluations += 1
        return outcomes, key
