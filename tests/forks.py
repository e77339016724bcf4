"""Scripts in forks of the test process: they need not import again what it has imported."""

import logging
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import sys
import tempfile

import arviz_stats.base  # noqa: F401
import pymc  # noqa: F401


def start(
    script,
    *arguments,
    output=os.devnull,
    errors=None,
    temporary=None,
    folder=None,
    session=False,
):
    """Run a script as a program of its own, with its output, temporary files, folder and session.

    Without `errors` its standard error goes into the output, too.

    Returns a `multiprocessing.Process`. Wait for it without a time-out: with one, `join` waits for
    a pipe that the processes of the script keep open, too.
    """
    context = multiprocessing.get_context("fork")
    process = context.Process(
        target=_run, args=(script, arguments, output, errors, temporary, folder, session)
    )
    process.start()
    return process


def _run(script, arguments, output, errors, temporary, folder, session):
    if session:
        os.setsid()
    for stream, path in ((1, output), (2, errors)):
        if path is None:
            os.dup2(1, stream)
        else:
            with open(path, "w") as file:  # noqa: PTH123
                os.dup2(file.fileno(), stream)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    if temporary is not None:
        os.environ["TMPDIR"] = str(temporary)
        tempfile.tempdir = None
    if folder is not None:
        os.chdir(folder)
    logging.getLogger().handlers.clear()  # of pytest, which keep what a program prints
    server = multiprocessing.forkserver._forkserver  # that of the test process is no child of ours
    server._forkserver_pid = server._forkserver_address = server._forkserver_alive_fd = None
    sys.argv = [str(script), *map(str, arguments)]
    runpy.run_path(str(script), run_name="__main__")
