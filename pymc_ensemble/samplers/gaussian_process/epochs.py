"""Learning in epochs where a growing surrogate came to no certificate."""

from dataclasses import dataclass, replace

import numpy as np

from pymc_ensemble.samplers.certificate import QUANTILE, Certificate, sd_limit
from pymc_ensemble.samplers.ensemble import Array, Ensemble, Evaluations

from .growing_state import GrowingState
from .learning import Learning, LearningState
from .verification import UNSURE, Verification


@dataclass(frozen=True)
class Epochs(Learning):
    """Learning in epochs after a growth. It tempers the loss anew."""

    def certificate(
        self, before: GrowingState, learned: GrowingState, evaluations: Evaluations
    ) -> Certificate | None:
        """Certificate from a verification: the surrogate error, if noise explains the rest.

        Particles of a verification follow functions of the process, so their weights do not prove
        its mean.

        Parameters
        ----------
        before, learned : GrowingState
            State before the verification, and after it.
        evaluations : Evaluations
            Evaluations at the particles.
        """
        verification, posterior = learned.verification, before.bound(self.problem).posterior
        if verification is None or posterior is None:
            return None
        new = Ensemble.evaluated(self.problem, before.particles, evaluations)
        good = new[new.ok]
        log_weights = posterior.loss(posterior.whitening.coordinates(good.U)) - good.loss
        certificate = Certificate.of(log_weights, before.budget.tolerance)
        error = QUANTILE * before.largest_error
        return certificate.under_noise(verification.noise, error, max(1, len(good) - 1))

    def _late(self, state: LearningState) -> bool:
        assert isinstance(state, GrowingState)
        return state.epochs - state.first_epoch > (state.last_epoch - state.first_epoch) / 2

    def _loss_noise(self, state: LearningState, x: Array) -> Array:
        """Noise of losses by the fit, but no more than an examination has found.

        A fit takes for noise what it has missed.
        """
        assert isinstance(state, GrowingState)
        noise = super()._loss_noise(state, x)
        return noise if state.found is None else np.minimum(noise, state.found.limit)

    def _verify(self, state: LearningState, good: Ensemble) -> Verification:
        """Compare evaluations with predictions. No noise explains differences if there is none."""
        assert isinstance(state, GrowingState)
        verification = super()._verify(state, good)
        if not state.smooth or state.noisy:
            return verification
        posterior = state.fit.posterior
        differences = good.loss - posterior.loss(posterior.whitening.coordinates(good.U))
        precise = sd_limit(differences) < UNSURE  # eq. (C1)
        return replace(verification, passed=verification.passed and precise)
