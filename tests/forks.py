"""Scripts in forks of the test process: they need not import again what it has imported."""

import multiprocessing
import os
import runpy
import sys
import tempfile


def start(script, *arguments, output=os.devnull, temporary=None):
    """Run a script as a program of its own, with its output and temporary files elsewhere.

    Returns a `multiprocessing.Process`. Wait for it without a time-out: with one, `join` waits for
    a pipe that the processes of the script keep open, too.
    """
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_run, args=(script, arguments, output, temporary))
    process.start()
    return process


def _run(script, arguments, output, temporary):
    with open(output, "w") as file:  # noqa: PTH123
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout = sys.stderr = open(1, "w", closefd=False)  # noqa: SIM115
    if temporary is not None:
        os.environ["TMPDIR"] = str(temporary)
        tempfile.tempdir = None
    sys.argv = [str(script), *map(str, arguments)]
    runpy.run_path(str(script), run_name="__main__")
