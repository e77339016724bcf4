"""Certificates: few evaluations show whether draws of a cheap law follow the true density.

Draws of a law q, say the posterior of a surrogate, are evaluated under the true density. Their log
weights l = log density - log q are known up to a constant. Let w = exp(l) / E[exp(l)]. Then every
function f has, by eq. (C1),

    | E_density f - E_q f |  =  | Cov_q(w, f) |  <=  sd(w) sd(f).

If sd(l) is small, sd(w) is about as large. So the sd of the log weights of some independent draws
bounds the error of every mean, in standard deviations. This holds where q has draws. Draws from a
wider law look for what q has lost.
"""

from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import scipy  # parts of it are loaded when they are used first

from .ensemble import Array
from .weights import LARGEST_LOG, LEVEL, UNUSUAL, normalized_weights
from .words import number

QUANTILE = NormalDist().inv_cdf(LEVEL)  # scipy.special is not loaded before it is needed
CERTAIN = 3.0  # standard errors: by chance, the largest of ten exceeds this in one run of forty
TOLERANCE = 0.1  # default error of means that is tolerated, in sd
FEWEST = 5  # fewer log weights do not tell an sd
TAILS = (UNUSUAL, 0.5, LEVEL)  # quantiles by which two laws are compared
HEAVIER = 1.0  # log weight of the outermost draws: of a hundred, they hold 2% too little then
EVEN = 0.2  # effective share of weighted draws below which nothing can be compared


def sd_limit(values: Array) -> float:
    """Upper 95% confidence limit of the standard deviation behind some values.

    If a covariance is wrong, log weights have heavy tails, and the limit for a normal distribution
    is too small. This limit is widened by the kurtosis of the values [1]_. For ten normal values it
    is above the sd in 96 to 97% of samples, for ten squared normal values in 82%.

    Parameters
    ----------
    values : ndarray of shape (n,)
        Independent draws.

    Returns
    -------
    float
        The limit. It is infinite if a value is not finite, or if there are fewer than five.

    References
    ----------
    .. [1] Bonett, D. G. (2006). Approximate confidence interval for standard deviation of nonnormal
       distributions. Computational Statistics & Data Analysis, 50, 775-782.
       https://doi.org/10.1016/j.csda.2004.10.003

    Examples
    --------
    >>> import numpy as np
    >>> values = np.random.default_rng(1).standard_normal(1000)
    >>> round(sd_limit(values), 2)
    1.03
    """
    n = len(values)
    if n < FEWEST or not np.isfinite(values).all():
        return np.inf
    variance = values.var(ddof=1)
    if variance == 0:
        return 0.0
    fourth = ((values - np.median(values)) ** 4).sum()
    kurtosis = n * fourth / ((n - 1) * variance) ** 2
    # eq. (C2)
    c = n / (n - QUANTILE)
    error = c * np.sqrt(max(kurtosis - (n - 3) / n, 0.0) / (n - 1))
    return float(np.sqrt(c * variance * np.exp(QUANTILE * error)))


@dataclass(frozen=True)
class Certificate:
    """Judgement of a law by evaluations of independent draws.

    Attributes
    ----------
    limit : float
        Upper 95% confidence limit of the sd of the log weights. Means may be off by this much, in
        posterior standard deviations. Infinite if a weight is zero or unknown.
    sd : float
        That sd itself.
    size : int
        Number of log weights.
    missed : float
        Share of the density that the law lacks (or, if negative, has too much), by draws of a wider
        law. 0 without such draws.
    tolerance : float
        Largest limit that is accepted.
    outer : float
        Largest log weight of the outermost draws, above the mean log weight. 0 without such draws.
    noise : float
        Standard deviation of the log density by roughness or noise that was allowed for.
    moved : float
        Shift of means, in standard deviations, after the law has learned from these evaluations. 0
        if it has not.

    Examples
    --------
    A normal law whose mean is off by a twentieth of its standard deviation:

    >>> import numpy as np
    >>> x = np.random.default_rng(1).standard_normal(40)
    >>> certificate = Certificate.of(-0.5 * (x - 0.05) ** 2 + 0.5 * x**2)
    >>> bool(certificate.limit < 0.1), certificate.certified
    (True, True)
    """

    limit: float
    sd: float
    size: int
    missed: float = 0.0
    tolerance: float = TOLERANCE
    outer: float = 0.0
    noise: float = 0.0
    moved: float = 0.0

    @classmethod
    def of(
        cls,
        log_weights: Array,
        tolerance: float = TOLERANCE,
        wide: Array | None = None,
        reach: Array | None = None,
        outer: Array | None = None,
    ) -> "Certificate":
        """Certificate from log weights.

        Parameters
        ----------
        log_weights : ndarray of shape (n,)
            Log weights of independent draws of the law, up to a constant: true log density minus
            that of the law. NaN or -inf if the evaluation has failed.
        tolerance : float, default 0.1
            Largest limit that is accepted.
        wide : ndarray of shape (m,), optional
            Log weights of draws from a wider law, with the same constant.
        reach : ndarray of shape (m,), optional
            Density of the law at these draws, relative to that of the wider law.
        outer : ndarray of shape (k,), optional
            Log weights of the outermost of many draws of the law, with the same constant.
        """
        log_weights = np.asarray(log_weights, dtype=float)
        limit = sd_limit(log_weights)
        if not np.isfinite(limit):
            return cls(np.inf, np.nan, len(log_weights), np.nan, tolerance)
        missed = 0.0
        if wide is not None and reach is not None and len(wide):
            excess = np.asarray(wide, dtype=float) - log_weights.mean()
            excess = np.where(np.isnan(excess), -np.inf, excess)
            # eq. (C3)
            missed = float((reach * np.expm1(np.minimum(excess, LARGEST_LOG))).mean())
        tail = 0.0 if outer is None else np.max(outer - log_weights.mean(), initial=0.0)
        sd = float(log_weights.std(ddof=1))
        return cls(limit, sd, len(log_weights), missed, tolerance, float(tail))

    def under_noise(self, fluctuation: float, error: float, degrees: int) -> "Certificate":
        """Certificate of a smooth law, if the evaluated density fluctuates about it.

        An F test with 95% must say that the fluctuations explain the scatter of the log weights.
        Then `error` takes the place of the limit.

        Parameters
        ----------
        fluctuation : float
            Measured standard deviation of the log density by fluctuations.
        error : float
            Error of means, by the uncertainty of the law itself.
        degrees : int
            Degrees of freedom of the measurement of the fluctuation.
        """
        explained = np.isfinite(self.sd) and self.size > 1
        if explained:
            largest = scipy.special.fdtri(self.size - 1, degrees, LEVEL)
            explained = self.sd**2 <= largest * (fluctuation**2 + self.tolerance**2)
        limit = float(error) if explained else np.inf
        return replace(self, limit=limit, noise=fluctuation, missed=0.0, outer=0.0)

    def moved_by(self, moved: float) -> "Certificate":
        """Certificate of a law that has since learned from these evaluations.

        If the judged law is off by at most `limit`, and the present law knows more, the second is
        at most that far from the first. A longer way contradicts the certificate.

        Parameters
        ----------
        moved : float
            `disagreement` of both laws. Infinite if it is not known.
        """
        return replace(self, limit=max(self.limit, moved), moved=moved)

    @property
    def certified(self) -> bool:
        """Whether the law is within the tolerance."""
        whole = abs(self.missed) <= self.tolerance and self.outer <= HEAVIER
        return self.limit <= self.tolerance and whole

    def __str__(self) -> str:
        verdict = "certified" if self.certified else "not certified"
        if not np.isfinite(self.limit):
            if self.noise:
                return f"{verdict}: the log weights scatter more than noise explains"
            if self.moved:
                return (
                    f"{verdict}: the law that has learned from {self.size} proving evaluations is "
                    "another one, or could not be sampled"
                )
            return f"{verdict}: of {self.size} proving evaluations some have failed"
        if self.noise:
            return (
                f"{verdict}: sd of {self.size} log weights {number(self.sd, '.2g')}, which noise "
                f"of {number(self.noise, '.2g')} explains; means are open by "
                f"{number(self.limit, '.2g')} sd"
            )
        more = ""
        if abs(self.missed) > self.tolerance:
            more = f", mass missed {number(self.missed, '.2g')}"
        if self.moved > self.tolerance:
            moved = number(self.moved, ".2g")
            more += f", and what is learned from them moves means by {moved} sd"
        if self.outer > HEAVIER:
            outer = number(self.outer, ".2g")
            more += f", log weight of the outermost draws {outer} above the others'"
        return (
            f"{verdict}: sd of {self.size} log weights {number(self.sd, '.2g')}, at most "
            f"{number(self.limit, '.2g')}{more}"
        )


def disagreement(U: Array, log_weights: Array) -> float:
    """Difference of two laws, in probabilities of coordinates and in means.

    It is the largest ``|E_w f - E f| / sd(f)`` over functions f: the coordinates, their squares,
    and the events that they are below their 5%, 50% and 95% quantiles. The standard deviation is
    the smaller one of both laws. Otherwise a few draws in a hole of one law would hide behind their
    own standard deviation. As both laws are known, there is no error of a second sample.

    Parameters
    ----------
    U : ndarray of shape (n, d)
        Draws of one law.
    log_weights : ndarray of shape (n,)
        Log density of the other law minus that of this one, up to a constant.

    Returns
    -------
    float
        The difference. Infinite if the weights are so uneven that the laws have little in common.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(1).standard_normal((4000, 1))
    >>> bool(abs(disagreement(x, 0.2 * x[:, 0]) - 0.2) < 0.05)
    True
    """
    log_weights = np.where(np.isnan(log_weights), -np.inf, log_weights)
    if not np.isfinite(log_weights.max()):
        return np.inf
    weights, size = normalized_weights(log_weights)
    if size < EVEN * len(U):
        return np.inf
    z = U - U.mean(0)
    events = [q >= U for q in np.quantile(U, TAILS, axis=0)]
    f = np.hstack([z, z**2, *events])
    mean = weights @ f
    sd = np.minimum(f.std(0), np.sqrt(weights @ (f - mean) ** 2))
    shift, sure = np.abs(mean - f.mean(0)), sd > 0
    if (shift[~sure] > 0).any():
        return np.inf
    return float((shift[sure] / sd[sure]).max(initial=0.0))
