"""A number of the package with another value, for studies of what half and twice of it do."""

import importlib
import sys
from contextlib import ExitStack
from unittest.mock import patch


def home_of(number):
    """Module of a number such as ``"diagnosis.known.OFF"``, and its name there."""
    module, _, name = number.rpartition(".")
    return importlib.import_module(f"pymc_ensemble.{module}"), name


def changed(number, value):
    """Change a number in its module, and in those that have imported it, until this is closed."""
    home, name = home_of(number)
    before, stack = getattr(home, name), ExitStack()
    for module in [m for key, m in sys.modules.items() if key.startswith("pymc_ensemble.")]:
        if vars(module).get(name) is before:
            stack.enter_context(patch.object(module, name, value))
    return stack
