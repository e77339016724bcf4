"""What importing the package costs, next to importing PyMC.

    python benchmarks/import_time.py [repeats]

prints the processor time of each statement in a fresh interpreter, the median of some repeats that
take turns, and its ratio to `import pymc`. Names of the package are loaded when they are used
first, so that the first use of the large ones is listed as well. The bytecode is written before,
whatever the environment says: that of the installed packages is there, too.
"""

import argparse
import os
import subprocess
import sys
from statistics import median

STATEMENTS = (
    "import pymc",
    "import pymc_ensemble",
    "import pymc, pymc_ensemble",
    "import pymc_ensemble.forward.workers.processes",  # what a worker process imports
    "from pymc_ensemble import forward_model",
    "from pymc_ensemble import EnsembleKalmanSampler",
    "from pymc_ensemble import EnsembleGaussianProcessSampler",
    "from pymc_ensemble import EnsembleLangevinSampler",
    "from pymc_ensemble import MultiscaleSampler",
    "from pymc_ensemble import LikelihoodInformedSampler",
    "from pymc_ensemble import MultifidelitySampler",
    "from pymc_ensemble import find_MAP_ensemble",
    "from pymc_ensemble import invert",
    "from pymc_ensemble import diagnose",
    "from pymc_ensemble import gallery",
    "from pymc_ensemble import plots",
)
TIMED = "from time import process_time; before = process_time(); {}; print(process_time() - before)"


def seconds(statement: str) -> float:
    """Processor time of a statement, without that of starting the interpreter."""
    command = [sys.executable, "-c", TIMED.format(statement)]
    # else each interpreter would compile the source of the package, and of no other
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return float(
        subprocess.run(command, capture_output=True, text=True, check=True, env=kept).stdout
    )


def main(repeats: int) -> None:
    """Print the table."""
    for statement in STATEMENTS:
        seconds(statement)  # writes the bytecode
    runs = [[seconds(statement) for statement in STATEMENTS] for _ in range(repeats)]
    for statement, times in zip(STATEMENTS, zip(*runs, strict=True), strict=True):
        ratio = median(t / run[0] for t, run in zip(times, runs, strict=True))
        print(f"{statement:58} {median(times):6.2f} s  {ratio:5.2f} times")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repeats", nargs="?", type=int, default=5)
    main(parser.parse_args().repeats)
