"""Result of the learning from simulations, for draws, tests, corrections and files."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import pymc as pm
from numpy.typing import NDArray

from pymc_ensemble.diagnosis.facts import Facts
from pymc_ensemble.samplers.ensemble import Origin

from .estimate import Estimate
from .familiarity import Familiarity
from .generating import Generator
from .scaling import Scaling

FloatArray = NDArray[np.float64]
Method = Literal["posterior", "ratio", "diffusion"]


@dataclass
class Learned:
    """Networks, the scaling of their data, and the record of their training.

    Attributes
    ----------
    method : {"posterior", "ratio", "diffusion"}
    conservative : bool
    members : int
    simulations, failed : int
    history : ndarray of shape (passes, members)
    tested : {"calibrated", "overconfident", "conservative"} or None
        These are described at `AmortizedPosterior`.
    generator : Generator
        Generator of the simulated model.
    estimate : Estimate
    scaling : Scaling
        Scaling of data.
    familiarity : Familiarity
        Test whether data look like simulated ones.
    """

    method: Method
    conservative: bool
    members: int
    simulations: int
    failed: int
    history: FloatArray = field(repr=False)
    tested: str | None
    generator: Generator = field(repr=False)
    estimate: Estimate = field(repr=False)
    scaling: Scaling = field(repr=False)
    familiarity: Familiarity = field(repr=False)

    @property
    def model(self) -> pm.Model:
        """The model that was simulated."""
        return self.generator.model

    @cached_property
    def facts(self) -> Facts:
        """Facts about their origin that all results carry."""
        options = {
            "method": self.method,
            "conservative": self.conservative,
            "members": self.members,
            "simulations": self.simulations,
            "failed": self.failed,
        }
        values = self.model.value_vars
        return Facts.of(self.model, values, "amortize", options, Origin("amortized"), 1)
