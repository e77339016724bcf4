"""Settings that must stand before NumPy and PyTensor are imported, and shared fixtures."""

import os
import signal

# Shells start background jobs with interrupts ignored, which children of theirs inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Small problems: threads cost more than they bring, and compiling costs more than running.
for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(threads, "1")
os.environ.setdefault("PYTENSOR_FLAGS", "mode=FAST_COMPILE")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytensor
import pytest


@pytest.fixture(autouse=True)
def _default_mode(request):
    """Run tests marked ``default_mode`` in the mode that users get."""
    if request.node.get_closest_marker("default_mode") is None:
        yield
        return
    with pytensor.config.change_flags(mode="Mode"):
        yield
