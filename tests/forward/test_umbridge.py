"""Models behind UM-Bridge, served by the real server on the loopback interface."""

import socket
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import numpy as np
import pymc as pm
import pytest

import pymc_ensemble as pe
from pymc_ensemble.forward import UMBridgeModel

pytest.importorskip("umbridge")
pytestmark = pytest.mark.slow

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


def test_no_server():
    with pytest.raises(ConnectionError, match="no UM-Bridge server at http://127"):
        model(pe.forward_model(UMBridgeModel("http://127.0.0.1:9")))
