"""One call of the user's function, with a time-out, and the message of a failure.

This module goes to workers by value, as `members` does.
"""

import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

ABANDONED = "abandoned forward model"  # name of threads whose call was given up


class ProgramFailed(RuntimeError):
    """An external program failed. The message is complete without a traceback."""


class TimedOut(Exception):
    """A call took longer than the time-out."""


class Abandoned(TimedOut):
    """A call took longer than the time-out, and goes on in a thread of this process."""


def within(seconds: float, function: Callable[[], Any]) -> Any:
    """Call a function in a thread. The thread is abandoned if it takes too long."""
    done: list[tuple[bool, Any]] = []

    def target() -> None:
        try:
            done.append((True, function()))
        except BaseException as error:
            done.append((False, error))

    thread = threading.Thread(target=target, daemon=True, name="forward model")
    thread.start()
    thread.join(seconds)
    if not done:
        thread.name = ABANDONED
        raise Abandoned(
            f"It took more than timeout={seconds:g} s. It counts as lost. It may go on, as it "
            "cannot be killed in this executor. Use executor='processes', whose calls can be "
            "killed."
        )
    good, value = done[0]
    if good:
        return value
    raise value


def is_undisturbed(seconds: float) -> bool:
    """Whether no abandoned call goes on in this process, after waiting for at most `seconds`."""
    deadline = time.monotonic() + seconds
    for thread in threading.enumerate():
        if thread.name == ABANDONED:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                return False
    return True


def short_traceback(error: BaseException, frames: int = 3) -> str:
    """Format the innermost frames of an exception, without its causes.

    For a program that failed, only the message is used, as the frames are those of this package.

    Parameters
    ----------
    error : BaseException
        The exception.
    frames : int, default 3
        How many frames to keep, counted from where the exception was raised.

    Returns
    -------
    str
    """
    if isinstance(error, ProgramFailed):
        text = str(error)
    else:
        stack = traceback.extract_tb(error.__traceback__)[-frames:]
        lines = ["Traceback (most recent call last):\n", *traceback.format_list(stack)]
        text = "".join([*lines, *traceback.format_exception_only(error)]).strip()
    return text.encode(errors="backslashreplace").decode()  # a store refuses lone surrogates
