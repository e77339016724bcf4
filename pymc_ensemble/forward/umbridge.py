"""Models behind UM-Bridge, the HTTP interface for models of uncertainty quantification."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class UMBridgeModel:
    """A model that is served by UM-Bridge, as the function of a forward model.

    Needs the package `umbridge`. A server evaluates as many requests at the same time as it has
    models running; give the forward model as many threads.

    Parameters
    ----------
    url : str
        Where the server listens, ``"http://localhost:4242"``.
    name : str, default "forward"
        Name of the model.
    config : dict, optional
        Configuration that the model understands.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> import pymc_ensemble as pe
    >>> from pymc_ensemble.forward import UMBridgeModel
    >>> simulate = pe.forward_model(
    ...     UMBridgeModel("http://localhost:4242"), executor=ThreadPoolExecutor(8), timeout=600
    ... )

    References
    ----------
    Seelinger et al. (2023), UM-Bridge: Uncertainty quantification and modeling bridge.
    https://doi.org/10.21105/joss.04748
    """

    url: str
    name: str = "forward"
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def __name__(self) -> str:
        return f"{self.name} at {self.url}"

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "name": self.name, "config": self.config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __fingerprint__(self) -> tuple[Any, ...]:
        return (self.name, dict(self.config))

    @cached_property
    def _model(self) -> Any:
        import umbridge

        try:
            return umbridge.HTTPModel(self.url, self.name)
        except OSError as error:  # of the package requests
            raise ConnectionError(
                f"There is no UM-Bridge server at {self.url} ({type(error).__name__}). Start it, "
                "or check the address."
            ) from error

    @cached_property
    def input_sizes(self) -> list[int]:
        """Lengths of the input vectors."""
        return list(self._model.get_input_sizes(dict(self.config)))

    @cached_property
    def output_shape(self) -> Any:
        """Shape of the output vector, or list of the shapes if there are several."""
        shapes = [(int(n),) for n in self._model.get_output_sizes(dict(self.config))]
        return shapes[0] if len(shapes) == 1 else shapes

    def __call__(self, *inputs: ArrayLike) -> NDArray[np.float64] | tuple[NDArray[np.float64], ...]:
        """Evaluate the model once.

        Parameters
        ----------
        *inputs : array_like
            The input vectors.

        Returns
        -------
        ndarray or tuple of ndarray
            The output vectors.
        """
        vectors = [np.atleast_1d(value).astype(float).tolist() for value in inputs]
        outputs = [
            np.array(values, dtype=float) for values in self._model(vectors, dict(self.config))
        ]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)
