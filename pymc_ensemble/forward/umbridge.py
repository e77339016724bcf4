"""Models behind UM-Bridge, the HTTP interface for models of uncertainty quantification."""

import json
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .calls import TimedOut
from .workers.chunks import check_timeout

MAX_BYTES = 2**26  # of an answer: three million numbers as text; parsed, they take 2 GB at most
DESCRIBE_SECONDS = 60.0  # time-out of requests that do not run the model


@dataclass(frozen=True)
class UMBridgeModel:
    """A model that is served by UM-Bridge, as the function of a forward model.

    A server evaluates as many requests at the same time as it has running models. Give the forward
    model as many threads. If a server is silent, too slow or sends too much, only this evaluation
    fails: no request takes longer than its time-out, and at most 64 MiB of an answer are read.

    Parameters
    ----------
    url : str
        Address of the server, such as ``"http://localhost:4242"``.
    name : str, default "forward"
        Name of the model.
    config : dict, optional
        Configuration for the model.
    timeout : float, default 600
        Seconds that an evaluation may take. That of the forward model takes precedence.

    Raises
    ------
    ValueError
        If `url` is not an HTTP address, or `timeout` not a time.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> import pymc_ensemble as pe
    >>> from pymc_ensemble.forward import UMBridgeModel
    >>> simulate = pe.forward_model(
    ...     UMBridgeModel("http://localhost:4242"), executor=ThreadPoolExecutor(8), timeout=3600
    ... )

    References
    ----------
    Seelinger et al. (2023), UM-Bridge: Uncertainty quantification and modeling bridge.
    https://doi.org/10.21105/joss.04748
    """

    url: str
    name: str = "forward"
    config: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 600.0

    def __post_init__(self) -> None:
        check_timeout(self.timeout)
        parts = urlsplit(self.url) if isinstance(self.url, str) else None
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"url must be the address of a server, such as 'http://localhost:4242', not "
                f"{self.url!r}."
            )

    @property
    def __name__(self) -> str:
        return f"{self.name} at {self.url}"

    def __fingerprint__(self) -> tuple[Any, ...]:
        return (self.name, dict(self.config))

    def with_timeout(self, timeout: float) -> "UMBridgeModel":
        """Copy with another time-out."""
        return replace(self, timeout=timeout)

    @cached_property
    def input_sizes(self) -> list[int]:
        """Lengths of the input vectors."""
        return self._sizes("/InputSizes", "inputSizes")

    @cached_property
    def output_shape(self) -> Any:
        """Shape of the output vector, or list of the shapes if there are several."""
        shapes = [(n,) for n in self._sizes("/OutputSizes", "outputSizes")]
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

        Raises
        ------
        RuntimeError
            If the model reports an error, or the answer does not follow the protocol.
        ConnectionError
            If there is no server.
        """
        vectors = [np.atleast_1d(value).astype(float).tolist() for value in inputs]
        found = self._ask("/Evaluate", "output", self.timeout, input=vectors)
        if not isinstance(found, list) or not found:
            raise RuntimeError(
                f"The server at {self.url} did not send a list of outputs, but {found!r:.200}. "
                "Check that it is a UM-Bridge server."
            )
        outputs = [np.array(values, dtype=float) for values in found]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _sizes(self, path: str, what: str) -> list[int]:
        sizes = self._ask(path, what, min(self.timeout, DESCRIBE_SECONDS))
        good = isinstance(sizes, list) and all(type(n) is int and n >= 0 for n in sizes)
        if not good or not sizes:
            raise RuntimeError(
                f"The server at {self.url} did not send a list of the lengths of vectors, but "
                f"{sizes!r:.200}. Check that it is a UM-Bridge server."
            )
        return sizes

    def _ask(self, path: str, what: str, seconds: float, **more: Any) -> Any:
        """Send a request of the protocol, and take one entry from the answer."""
        body = json.dumps({"name": self.name, "config": dict(self.config)} | more).encode()
        status, text = _post(self.url, path, body, seconds)
        try:
            answer = json.loads(text)
            if "error" in answer:
                error = answer["error"]
                said = f"{error.get('type')}: {error.get('message')}"
                said = said[:2000].encode(errors="backslashreplace").decode()
                raise RuntimeError(f"{self.name} at {self.url} failed. {said}")
            return answer[what]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RuntimeError(
                f"The answer of the server at {self.url} to {path} (status {status}) is not that "
                f"of UM-Bridge for a model {self.name!r}: {text[:200]!r}"
            ) from error


def _post(url: str, path: str, body: bytes, seconds: float) -> tuple[int, bytes]:
    """Send a request, and return status and body of the answer, with limits of time and size.

    A time-out of a socket begins anew with each byte, so a separate clock ends the connection.
    """
    parts = urlsplit(url)
    made = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    assert parts.hostname is not None
    connection = made(parts.hostname, parts.port, timeout=seconds)
    deadline = time.monotonic() + seconds
    late = f"{url} took more than timeout={seconds:g} s to answer; the request was ended."
    kept: list[socket.socket] = []  # the connection lets go of it before all is read
    clock = threading.Timer(seconds, _hang_up, [connection, kept])
    clock.daemon = True
    clock.start()
    try:
        try:
            connection.connect()
            kept.append(connection.sock)
        except TimeoutError:
            raise TimedOut(late) from None
        except OSError as error:
            if time.monotonic() >= deadline:
                raise TimedOut(late) from None
            raise ConnectionError(
                f"There is no UM-Bridge server at {url} ({error}). Start it, or check the address."
            ) from error
        try:
            connection.request(
                "POST", parts.path.rstrip("/") + path, body, {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            text = response.read(MAX_BYTES + 1)
        except (OSError, HTTPException) as error:
            if time.monotonic() >= deadline:
                raise TimedOut(late) from None
            raise ConnectionError(f"{url} broke off its answer: {error!r}") from error
        if time.monotonic() >= deadline:  # the end of the connection may pass for that of the text
            raise TimedOut(late)
        if len(text) > MAX_BYTES:
            raise RuntimeError(
                f"The answer of {url} has more than {MAX_BYTES} bytes, and was not read to the end."
            )
        return response.status, text
    finally:
        clock.cancel()
        connection.close()


def _hang_up(connection: HTTPConnection, kept: list[socket.socket]) -> None:
    for sock in kept or [connection.sock]:  # which is there while it is being made secure
        with suppress(OSError, AttributeError):
            sock.shutdown(socket.SHUT_RDWR)
