"""Settings that must stand before NumPy and PyTensor are imported, and shared fixtures."""

import functools
import gc
import importlib.util
import multiprocessing
import os
import re
import signal
import sys
from pathlib import Path

# Shells start background jobs with interrupts ignored, which children of theirs inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Small problems: threads cost more than they bring, and compiling costs more than running. A
# quarter of its time would go into notes on which line made which node.
for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(threads, "1")
flags = "mode=FAST_COMPILE,traceback__limit=0,traceback__compile_limit=0,on_opt_error=raise"
os.environ.setdefault("PYTENSOR_FLAGS", flags)
os.environ.setdefault("MPLBACKEND", "Agg")
# What is compiled is kept for other processes and for the next time: here tests, whose assertions
# pytest rewrites, and the package, until all is collected; and what JAX compiles.
writes_no_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, False
jax_cache = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(jax_cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import numpy as np
import pytensor
import pytest
import threadpoolctl

# A plugin of pytest may have loaded NumPy before these settings: that of jaxtyping does.
threadpoolctl.threadpool_limits(int(os.environ["OPENBLAS_NUM_THREADS"]), user_api="blas")

# Processes of a forkserver then need not import anew, each for itself, what takes seconds.
multiprocessing.set_forkserver_preload(
    ["__main__", "pymc", "arviz_stats.base", "pymc_ensemble.step_methods.kalman"]
)


def pytest_addoption(parser):
    parser.addoption(
        "--seed-shift",
        type=int,
        default=0,
        help="add this number to every seed that a test fixes; what it asserts must still hold",
    )


def pytest_configure(config):
    config.pluginmanager.register(ProcessorTime())
    if shift := config.getoption("--seed-shift"):
        shift_seeds(shift)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Let one worker run a module that makes something for all of its tests: it comes once."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path = nodeid.partition("::")[0]
            return path if makes_once(config.rootpath / path) else nodeid

    config.option.loadscopereorder = False  # what loads JAX stays last
    return ByModule(config, log)


@functools.cache
def makes_once(path):
    text = path.read_text(encoding="utf-8")
    return '(scope="module")' in text or re.search(r"^@(functools\.)?cache$", text, re.MULTILINE)


def pytest_collection_finish():
    """Let the garbage collector leave alone what stays, and come less often.

    Graphs are many small objects, and a fifth of the time that it takes to make and rewrite them
    went into looking for those that are not used any more.
    """
    sys.dont_write_bytecode = writes_no_bytecode
    gc.freeze()
    gc.set_threshold(300_000, 10, 10)


def pytest_collection_modifyitems(items):
    """What loads JAX comes last, as processes are spawned from then on; without it, it is left out.

    Its threads do not survive a fork, and spawning takes seconds.
    """
    items.sort(key=needs_jax)
    if importlib.util.find_spec("jax") is None:
        reason = "needs the extra `amortized`: pip install jax equinox flowjax optax"
        for item in filter(needs_jax, items):
            item.add_marker(pytest.mark.skip(reason=reason))


def needs_jax(item):
    return item.get_closest_marker("amortized") is not None or (
        isinstance(item, pytest.DoctestItem) and "amortizing" in item.name
    )


def shift_seeds(shift):
    """Add to seeds where they become generators, as PyMC's do, too; those of the package stay."""
    default_rng = np.random.default_rng

    def shifted(seed=None):
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if isinstance(seed, int | np.integer) and not caller.startswith("pymc_ensemble"):
            seed = int(seed) + shift
        return default_rng(seed)

    np.random.default_rng = shifted


def processor_time():
    """Seconds of this process and of its descendants that have ended; on Windows without these."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


class ProcessorTime:
    """Prints what the tests cost: unlike durations, this hardly depends on what else is running."""

    def __init__(self):
        self.of_test = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self):
        self.started = processor_time()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item, call):
        if call.when == "teardown":  # properties travel from pytest-xdist's workers
            item.user_properties.append(("processor_time", processor_time() - self.started))

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown":
            self.of_test[report.nodeid] = dict(report.user_properties)["processor_time"]

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.section("processor time")
        slowest = sorted(self.of_test.items(), key=lambda item: item[1], reverse=True)
        for test, seconds in slowest[:20]:
            if seconds > 0.5:
                terminalreporter.write_line(f"{seconds:6.1f} s  {test}")
        total = processor_time()
        terminalreporter.write_line(
            f"{total:6.1f} s  ({total / 60:.1f} min) in all, startup included"
        )


@pytest.fixture(autouse=True)
def _default_mode(request):
    """Run tests marked ``default_mode`` in the mode that users get."""
    if request.node.get_closest_marker("default_mode") is None:
        yield
        return
    with pytensor.config.change_flags(mode="Mode"):
        yield
