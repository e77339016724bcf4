"""One call of the user's function: given up after a time-out, and what is said of a failure.

As `members`, this module goes to workers by value.
"""

import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

ABANDONED = "abandoned forward model"  # name of threads whose call was given up


class ProgramFailed(RuntimeError):
    """An external program failed; its message says all that is to be said."""


class TimedOut(Exception):
    """A call took longer than it may."""


class Abandoned(TimedOut):
    """A call that took longer than it may, and goes on in a thread of this process."""


def within(seconds: float, function: Callable[[], Any]) -> Any:
    """Call a function in a thread, which is left to itself if it takes too long."""
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
    """Whether no call that was given up goes on in this process; wait for it, but no longer."""
    deadline = time.monotonic() + seconds
    for thread in threading.enumerate():
        if thread.name == ABANDONED:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                return False
    return True


def short_traceback(error: BaseException, frames: int = 3) -> str:
    """Format the innermost frames of an exception, its causes left out.

    Of a program that failed, the message is enough: the frames are those of this package.

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
    return text.encode(errors="backslashreplace").decode()  # a store takes no lone surrogates
