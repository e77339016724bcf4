"""Ctrl-C while chains run in worker processes, and the end of the main process.

PyMC's main process stops reading draws as soon as it is interrupted. Sweeps that the workers have
computed, but not yet sent, would be lost. Here the first interrupt goes to the workers. They stop
computing, and send the complete sweeps as draws. The first worker that has no more draws interrupts
the main process. A second Ctrl-C ends the run at once.

On Windows, and where the main process cannot install signal handlers (outside the main thread), an
interrupt ends the run in PyMC's way. Draws that were not sent are then lost.

A killed main process cannot tell its workers anything. They notice its end, and stop, too.
"""

import ctypes
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, NoReturn

SHORTEST_WAIT = 1.0  # seconds that a worker waits until the others have sent their draws
WATCH = "watch of the main process"
WATCH_SECONDS = 1.0  # time between two checks of the main process
PR_SET_PDEATHSIG = 1  # from linux/prctl.h: asks for a signal when the parent ends
SAME_INTERRUPT = 0.5  # seconds in which interrupts of several processes count as one


def in_chain_process() -> bool:
    """Whether this is a process that PyMC started for one chain."""
    return multiprocessing.current_process().name.startswith("worker_chain_")


def in_worker() -> bool:
    """Whether this is such a process, to which the main process sends interrupts."""
    return os.name == "posix" and in_chain_process()


def shield() -> None:
    """Ignore interrupts in a worker. It ends when the main process tells it to."""
    if in_worker():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_with_main_process() -> None:
    """End this chain process as soon as its main process is gone."""
    main = multiprocessing.parent_process()
    name = multiprocessing.current_process().name
    if main is None or not name.startswith("worker_chain_") or WATCH in _thread_names():
        return
    direct = os.name == "posix" and os.getppid() == main.pid  # False with a forkserver
    if direct and sys.platform == "linux":  # works even if a simulator in C holds Python's lock
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_watch, args=(main, direct), daemon=True, name=WATCH).start()


def _watch(main: Any, direct: bool) -> None:
    if direct:  # `join` waits for a pipe that other workers keep open
        while os.getppid() == main.pid:
            time.sleep(WATCH_SECONDS)
    else:
        main.join()
    os._exit(1)


def _thread_names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


@contextmanager
def interruptible() -> Iterator[None]:
    """Let one interrupt reach a worker, as KeyboardInterrupt."""
    if not in_worker():
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        shield()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        from_forward_map = signal.getsignal(signal.SIGINT) is interrupt
        shield()
        if from_forward_map:
            _interrupt_main_process()
        raise
    finally:
        shield()


def end_run(handing_out_since: float) -> NoReturn:
    """End the run from a chain that has no more draws.

    Parameters
    ----------
    handing_out_since : float
        Time (`time.monotonic`) of the interrupt. A worker waits as long as its own draws have
        taken, so that the other workers can send theirs.

    Raises
    ------
    KeyboardInterrupt
    """
    if in_worker():
        time.sleep(max(SHORTEST_WAIT, time.monotonic() - handing_out_since))
        _interrupt_main_process()
        time.sleep(0.5)  # a worker that ends before the main process has reacted looks like a crash
    raise KeyboardInterrupt


def _interrupt_main_process() -> None:
    main = multiprocessing.parent_process()
    if main is not None and main.pid is not None:
        os.kill(main.pid, signal.SIGINT)


class PassOnFirstInterrupt:
    """Handler of SIGINT for the main process: workers first, then the main process itself."""

    def __init__(self) -> None:
        self.previous = signal.getsignal(signal.SIGINT)
        self.passed_on = -math.inf  # time of the first interrupt
        self.over = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Pass the first interrupt on, raise at the second, then wait for the workers to end."""
        workers = _workers()
        if self.passed_on == -math.inf and workers:
            self.passed_on = time.monotonic()
            for worker in workers:
                if worker.pid is not None:
                    os.kill(worker.pid, signal.SIGINT)
        elif not workers or (not self.over and time.monotonic() > self.passed_on + SAME_INTERRUPT):
            self.over = True
            signal.default_int_handler(signum, frame)

    def remove(self) -> None:
        """Put the previous handler back."""
        current: object = signal.getsignal(signal.SIGINT)
        if current is self and _is_main_thread():
            signal.signal(signal.SIGINT, self.previous)


def pass_on_first_interrupt(owner: object) -> None:
    """Install the handler for as long as the object `owner` exists, if there are workers."""
    if not _is_main_thread() or not _workers():
        return
    handler = PassOnFirstInterrupt()
    if handler.previous is signal.default_int_handler:
        signal.signal(signal.SIGINT, handler)
        weakref.finalize(owner, handler.remove)


def _workers() -> list[BaseProcess]:
    if os.name != "posix":
        return []
    children = multiprocessing.active_children()
    return [child for child in children if child.name.startswith("worker_chain_")]


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
