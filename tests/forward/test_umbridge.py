"""Models behind UM-Bridge, served by the real server on the loopback interface."""

import contextlib
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import numpy as np
import pymc as pm
import pytest

import pymc_ensemble as pe
from pymc_ensemble.forward import UMBridgeModel

SERVER = """
    import sys, time
    import umbridge

    class Forward(umbridge.Model):
        def __init__(self):
            super().__init__("forward")

        def get_input_sizes(self, config):
            return [2]

        def get_output_sizes(self, config):
            return [3]

        def __call__(self, parameters, config):
            time.sleep(config.get("seconds", 0.0))
            [[a, b]] = parameters
            if a > 3:
                raise ValueError("a is too large")
            return [[config.get("scale", 1.0) * (a + b), a - b, a * b]]

        def supports_evaluate(self):
            return True

    class Two(Forward):
        def __init__(self):
            umbridge.Model.__init__(self, "two")

        def get_input_sizes(self, config):
            return [1, 2]

        def get_output_sizes(self, config):
            return [2, 1]

        def __call__(self, parameters, config):
            [[a], [b, c]] = parameters
            return [[a, b], [c]]

    umbridge.serve_models([Forward(), Two()], int(sys.argv[1]), max_workers=8)
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    pytest.importorskip("umbridge")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = tmp_path_factory.mktemp("server") / "server.py"
    script.write_text(textwrap.dedent(SERVER))
    with (script.parent / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, script, str(port)], stdout=log, stderr=log)
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        server.kill()
        server.wait()


def model(forward):
    with pm.Model() as model:
        u = pm.Normal("u", shape=2)
        pm.Normal("y", forward(u), 0.5, observed=[1.0, 0.2, 0.3])
    return model


def test_sampling_in_parallel(url):
    with ThreadPoolExecutor(8) as executor:
        forward = pe.forward_model(UMBridgeModel(url), executor=executor)
        with model(forward):
            idata = pm.sample(
                80,
                chains=1,
                cores=1,
                step=pe.EnsembleKalmanSampler(ensemble_size=20),
                random_seed=1,
                progressbar=False,
                compute_convergence_checks=False,
            )
        problem = pe.InverseProblem.from_model(model(forward))
    assert idata.posterior.u.shape == (1, 80, 2)
    assert forward.n_evaluations == idata.sample_stats.n_evals[0, -1], "the sizes are asked for"
    with ThreadPoolExecutor(8) as executor:
        slow = UMBridgeModel(url, config={"seconds": 0.2})
        problem = pe.InverseProblem.from_model(model(pe.forward_model(slow, executor=executor)))
        U = np.random.default_rng(0).normal(size=(8, 2))
        started = time.monotonic()
        evaluations = problem.evaluate(U)
    a, b = U.T
    np.testing.assert_allclose(evaluations.outputs, np.stack([a + b, a - b, a * b], axis=1))
    assert evaluations.seconds > 1.5 * (time.monotonic() - started), "several at the same time"


def test_errors_of_the_model_are_failures(url):
    problem = pe.InverseProblem.from_model(model(pe.forward_model(UMBridgeModel(url))))
    evaluations = problem.evaluate(np.array([[1.0, 2.0], [4.0, 0.0]]))
    np.testing.assert_array_equal(evaluations.failed, [False, True])
    assert evaluations.errors[0][1]


def test_several_inputs_and_outputs_and_a_configuration(url):
    two = UMBridgeModel(url, "two")
    assert two.input_sizes == [1, 2]
    assert two.output_shape == [(2,), (1,)]
    first, second = cloudpickle.loads(cloudpickle.dumps(two))(1.0, [2.0, 3.0])
    assert first.tolist() == [1.0, 2.0]
    assert second.tolist() == [3.0]
    with pm.Model():
        outputs = pe.forward_model(two)(pm.Normal("a"), pm.Normal("b", shape=2))
    assert [output.type.shape for output in outputs] == [(2,), (1,)]
    scaled = UMBridgeModel(url, config={"scale": 10.0})
    assert scaled([1.0, 2.0])[0] == 30.0


# -- servers that are not what they should be --------------------------------------------------

GOOD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def says(text, head=GOOD):
    def answer(connection):
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(text) + text)

    return answer


def forever(piece, seconds=0.0, first=b""):
    def answer(connection):
        connection.sendall(first)
        while True:
            connection.sendall(piece)
            time.sleep(seconds)

    return answer


SILENT = "took more than timeout=2 s"
BROKEN = "broke off its answer"
NO_ANSWER = "is not that of UM-Bridge"
HOSTILE = {
    "silent": (lambda connection: time.sleep(60), SILENT),
    "silent after its head": (lambda c: c.sendall(GOOD + b"\r\n") or time.sleep(60), SILENT),
    "head byte by byte": (forever(b"X", 0.05, GOOD), SILENT),
    "text byte by byte": (forever(b" ", 0.05, GOOD + b"\r\n"), SILENT),
    "closes": (lambda connection: None, BROKEN),
    "no HTTP": (lambda c: c.sendall(b"hello\r\n\r\n"), BROKEN),
    "less than announced": (lambda c: c.sendall(GOOD + b"Content-Length: 99\r\n\r\n{"), NO_ANSWER),
    "head without end": (forever(b"X" * 10000, 0.0, GOOD), BROKEN),
    "text without end": (forever(b"[" * 100000, 0.0, GOOD + b"\r\n"), "more than 67108864 bytes"),
    "deep": (says(b"[" * 10**6), NO_ANSWER),
    "no JSON": (says(b"\xff\xfe"), NO_ANSWER),
    "null": (says(b"null"), NO_ANSWER),
    "empty": (says(b"{}"), NO_ANSWER),
    "a page": (says(b"<html>", b"HTTP/1.1 404 Not Found\r\n"), NO_ANSWER),
    "long number": (says(b'{"output": [[' + b"1" * 5000 + b"]]}"), NO_ANSWER),
    "error without words": (says(b'{"error": 1}'), NO_ANSWER),
    "error": (says(b'{"error": {"type": "T", "message": "\\ud800"}}'), r"T: .ud800"),
    "no list": (says(b'{"output": {}}'), "not send a list of outputs"),
    "words": (says(b'{"output": [["a", "b", "c"]]}'), "could not convert"),
    "ragged": (says(b'{"output": [[1, [2]]]}'), "inhomogeneous"),
    "wrong length": (says(b'{"output": [[1, 2]]}'), "shape"),
    "not finite": (says(b'{"output": [[1e999, 1, 1]]}'), "not finite"),
}


@pytest.fixture
def hostile():
    """Start a server that gives one answer to everything."""
    servers = []

    def start(answer):
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def serve(connection):
            with connection, contextlib.suppress(OSError):
                request = b""
                while not request.endswith(b"}"):
                    request += connection.recv(2**16)
                answer(connection)

        def run():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    yield start
    for server in servers:
        server.close()


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_server_makes_evaluations_fail(kind, hostile):
    answer, reason = HOSTILE[kind]
    served = UMBridgeModel(hostile(answer))
    with ThreadPoolExecutor(3) as executor:
        forward = pe.forward_model(served, executor=executor, timeout=2.0, output_shape=(3,))
        problem = pe.InverseProblem.from_model(model(forward))
        started = time.monotonic()
        evaluations = problem.evaluate(np.zeros((3, 2)) + np.arange(3)[:, None])
    assert time.monotonic() - started < 30
    assert evaluations.failed.all()
    for _, said in evaluations.errors:
        assert re.search(reason, said), said


@pytest.mark.parametrize("kind", ["silent", "closes", "no list", "null"])
def test_a_hostile_server_is_not_believed_its_sizes(kind, hostile):
    served = UMBridgeModel(hostile(HOSTILE[kind][0]), timeout=2.0)
    with pytest.raises(Exception, match=r"timeout=2 s|broke off|UM-Bridge"):
        model(pe.forward_model(served))


def test_sizes_have_to_be_sizes(hostile):
    for sizes in (b"[]", b"[-1]", b"[1.5]", b'["3"]', b"[true]", b"3"):
        served = UMBridgeModel(hostile(says(b'{"outputSizes": ' + sizes + b"}")))
        with pytest.raises(RuntimeError, match="not send a list of the lengths"):
            _ = served.output_shape


def test_bad_options():
    for url in ("localhost:4242", "ftp://localhost", "http://", 7):
        with pytest.raises(ValueError, match="url must be the address of a server"):
            UMBridgeModel(url)
    with pytest.raises(ValueError, match="timeout must be a positive number"):
        UMBridgeModel("http://localhost:4242", timeout=np.inf)


def test_no_server():
    with pytest.raises(ConnectionError, match="no UM-Bridge server at http://127"):
        model(pe.forward_model(UMBridgeModel("http://127.0.0.1:9")))
