"""Ctrl-C, with real signals: what was computed comes back as draws."""

import os
import signal
import threading
import time

import forks
import pytest

from pymc_ensemble.step_methods import interrupts

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

SCRIPT = """
import faulthandler, os, signal, sys, time
import pymc as pm
from toys import ToyStep, gaussian_model

class Slow:
    def __init__(self):
        self.calls = 0

    def __call__(self, U):
        self.calls += 1
        if self.calls == 12:  # after the burn-in (5) and three sweeps of two rounds each
            os.write(1, b"computing\\n")  # in one piece, while print may be torn by the others
        if self.calls > 11:
            time.sleep(0.5)  # so that the interrupt comes here, and not while draws are recorded
        return U

if __name__ == "__main__":
    faulthandler.enable()
    cores, mp_ctx = int(sys.argv[1]), sys.argv[2]
    with gaussian_model():
        idata = pm.sample(
            draws=100_000, tune=10, chains=cores, cores=cores, mp_ctx=mp_ctx,
            step=ToyStep(hook=Slow()), random_seed=1,
            progressbar=False, compute_convergence_checks=False,
        )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    sizes = idata.posterior.sizes
    print("returned", sizes["chain"], sizes["draw"], int(idata.sample_stats.sweep.max()) + 1)
"""


def run_and_interrupt(script, *arguments, until, whom=os.kill, **options):
    """What a script prints that is interrupted as soon as it has printed something."""
    output = script.with_name("output")
    process = forks.start(script, *arguments, output=output, session=True, **options)
    watchdog = threading.Timer(60, os.killpg, (process.pid, signal.SIGABRT))
    watchdog.start()
    try:
        while not (output.exists() and until(output.read_text())):
            assert process.exitcode is None, output.read_text()
            time.sleep(0.02)
        time.sleep(0.5)
        whom(process.pid, signal.SIGINT)
        interrupted = time.monotonic()
        process.join()
        return output.read_text(), time.monotonic() - interrupted
    finally:
        watchdog.cancel()
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("cores", "mp_ctx", "whom"),
    [
        (1, "fork", os.kill),
        pytest.param(2, "fork", os.killpg, marks=pytest.mark.slow),  # as a terminal does it
        pytest.param(2, "forkserver", os.kill, marks=pytest.mark.slow),  # as `kill` does it
    ],
)
def test_complete_sweeps_come_back(tmp_path, cores, mp_ctx, whom):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    out, _ = run_and_interrupt(
        script, cores, mp_ctx, until=lambda out: out.count("computing\n") == cores, whom=whom
    )
    assert "interrupted. The" in out
    *_, word, chains, draws, sweeps = out.split()
    assert word == "returned", out
    assert int(sweeps) >= 3
    # PyMC drops a chain or cuts the others, whatever keeps more draws
    assert 1 <= int(chains) <= cores
    assert int(draws) >= 0.5 * 10 * int(sweeps)


def test_handler_comes_and_goes(monkeypatch):
    """It is there as long as its owner, only if there are workers, and it does not pile up."""
    before = signal.getsignal(signal.SIGINT)

    class Owner:
        pass

    owner = Owner()
    interrupts.pass_on_first_interrupt(owner)
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(interrupts, "_workers", lambda: [None])
    interrupts.pass_on_first_interrupt(owner)
    installed = signal.getsignal(signal.SIGINT)
    assert isinstance(installed, interrupts.PassOnFirstInterrupt)
    interrupts.pass_on_first_interrupt(Owner())
    assert signal.getsignal(signal.SIGINT) is installed
    del owner
    assert signal.getsignal(signal.SIGINT) is before


def test_handler_without_workers_raises(monkeypatch):
    handler = interrupts.PassOnFirstInterrupt()
    with pytest.raises(KeyboardInterrupt):
        handler(signal.SIGINT, None)


def test_handler_passes_the_first_interrupt_on(monkeypatch):
    class Worker:
        pid = 12345

    sent, clock = [], iter([10.0, 10.1, 11.0, 11.0, 11.0])
    monkeypatch.setattr(interrupts, "_workers", lambda: [Worker])
    monkeypatch.setattr(interrupts.os, "kill", lambda *signal: sent.append(signal))
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: next(clock))
    handler = interrupts.PassOnFirstInterrupt()
    handler(signal.SIGINT, None)
    assert sent == [(12345, signal.SIGINT)]
    handler(signal.SIGINT, None)  # the same interrupt, as another process has seen it
    with pytest.raises(KeyboardInterrupt):
        handler(signal.SIGINT, None)
    handler(signal.SIGINT, None)  # a worker that has run out of draws meanwhile
    assert len(sent) == 1


PILOT = """
import signal, sys, time
import numpy as np
import pymc as pm
import pymc_ensemble as pe

signal.signal(signal.SIGINT, signal.default_int_handler)  # which was left out in the background

def simulate(u, rng):
    time.sleep(0.02)
    return u

if __name__ == "__main__":
    with pm.Model():
        u = pm.Normal("u", shape=2)
        forward = pe.forward_model(simulate, output_shape=(2,), stochastic=True)
        pm.Normal("y", forward(u), 1.0, observed=np.zeros(2))
        try:
            pm.sample(
                20, chains=2, cores=2, mp_ctx="fork", step=pe.MultiscaleSampler(),
                progressbar=False, compute_convergence_checks=False,
            )
        except (KeyboardInterrupt, ValueError) as error:
            print("ended", type(error).__name__)
"""


def test_chain_that_waits_for_another_ends_with_it(tmp_path):
    """One chain computes what is common to both, and the other one waits for it."""
    script = tmp_path / "script.py"
    script.write_text(PILOT)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    out, seconds = run_and_interrupt(  # the pilot takes 20 seconds
        script, until=lambda out: "waits for another chain" in out, temporary=scratch
    )
    assert "ended" in out
    assert seconds < 15
    assert not list(scratch.glob("pymc_ensemble-run-*"))
