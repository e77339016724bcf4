"""Certificates of laws that are off by a known amount."""

import numpy as np
import pytest

from pymc_ensemble.samplers.certificate import Certificate, disagreement, sd_limit
from pymc_ensemble.samplers.gaussian_process.verification import Verification

RUNS = 2000
VERIFIED = ("mean", "sd", "outliers", "noise", "beyond")


def shifted(x, shift):
    """Log weights of N(shift, 1) for draws of N(0, 1), less a constant: linear, of sd `shift`."""
    return shift * x[..., 0]


def scaled(x, ratio):
    """Log weights of a normal law that is `ratio` times as wide, in the first coordinate."""
    return 0.5 * (1 - ratio**-2) * x[..., 0] ** 2


@pytest.mark.parametrize("n", [8, 10, 20])
def test_limit_of_a_shift_is_above_the_sd_in_95_percent(n):
    """Frequencies of 2000 runs have standard errors of .005."""
    x = np.random.default_rng(n).standard_normal((RUNS, n, 1))
    limits = [sd_limit(lw) for lw in shifted(x, 0.3)]
    assert 0.94 < np.mean(np.array(limits) > 0.3) < 0.98


@pytest.mark.parametrize("n", [10, 20, 40])
@pytest.mark.parametrize("ratio", [0.7, 1.4])
def test_wrong_widths_are_hardly_ever_certified(n, ratio):
    """The sd of the log weights is |1 - ratio^-2| / sqrt(2): .74 and .35. Heavy tails."""
    x = np.random.default_rng(n).standard_normal((RUNS, n, 1))
    certified = [Certificate.of(lw).certified for lw in scaled(x, ratio)]
    assert np.mean(certified) < 0.005


@pytest.mark.parametrize("d", [2, 8])
def test_shift_beyond_tolerance_is_not_certified(d):
    """A shift by .3 in all directions: sd of the log weights .3 sqrt(d)."""
    x = np.random.default_rng(d).standard_normal((RUNS, 10, d))
    certified = [Certificate.of(0.3 * lw).certified for lw in x.sum(2)]
    assert np.mean(certified) < 0.002


def test_good_laws_are_certified():
    x = np.random.default_rng(0).standard_normal((RUNS, 10, 1))
    assert np.mean([Certificate.of(lw).certified for lw in shifted(x, 0.03)]) > 0.95
    assert Certificate.of(np.full(10, 3.0)).certified  # exactly the law


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_failed_weights_refuse(bad):
    certificate = Certificate.of(np.r_[np.zeros(20), bad])
    assert not certificate.certified
    assert certificate.limit == np.inf
    assert "some have failed" in str(certificate)
    assert not Certificate.of(np.zeros(4)).certified  # too few to tell


def test_a_law_that_moves_by_more_than_its_certificate_allows_has_none():
    certificate = Certificate.of(0.02 * np.random.default_rng(0).standard_normal(12))
    near, far, away = (certificate.moved_by(m) for m in (0.09, 0.2, np.inf))
    assert near.certified
    assert near.limit == 0.09
    assert not far.certified
    assert far.limit == 0.2
    assert "moves means by 0.2 sd" in str(far)
    assert not away.certified
    assert "another one" in str(away)
    assert certificate.moved_by(0.0).limit == certificate.limit


def test_constants_do_not_matter():
    lw = 0.05 * np.random.default_rng(0).standard_normal(12)
    one = Certificate.of(lw, wide=lw[:3], reach=np.ones(3))
    other = Certificate.of(lw + 1e4, wide=lw[:3] + 1e4, reach=np.ones(3))
    assert other.limit == pytest.approx(one.limit, rel=1e-6)
    assert other.missed == pytest.approx(one.missed, abs=1e-6)


def test_lost_mode_is_found_by_the_wider_law():
    """Two equal modes at +-4, and a law that has one of them: half of the density is missing.

    Draws of the wider law, here 4 times as wide, are weighted exactly: the mean over many is
    E_wide[reach (w - 1)] = 1, the mass of the other mode relative to that of the law.
    """
    rng, mode, width = np.random.default_rng(0), 4.0, 4.0

    def normal(x, m, s):
        return np.exp(-0.5 * ((x - m) / s) ** 2) / s

    def truth(x):
        return np.log(normal(x, mode, 1) + normal(x, -mode, 1))

    x = mode + rng.standard_normal(10)
    wide = mode + width * rng.standard_normal(200_000)

    def law(x):
        return -0.5 * (x - mode) ** 2

    reach = normal(wide, mode, 1) / normal(wide, mode, width)
    blind = Certificate.of(truth(x) - law(x))
    assert blind.certified
    seen = Certificate.of(truth(x) - law(x), wide=truth(wide) - law(wide), reach=reach)
    assert seen.missed == pytest.approx(1.0, abs=0.03)
    assert not seen.certified
    assert "mass missed" in str(seen)


def test_tails_that_are_too_light_refuse():
    certificate = Certificate.of(np.zeros(12), outer=np.array([-9.0, 1.1]))
    assert not certificate.certified
    assert "outermost draws 1.1 above" in str(certificate)
    assert Certificate.of(np.zeros(12), outer=np.array([-9.0, 0.9])).certified


def test_disagreement_of_known_laws():
    """Weights that turn N(0, 1) into N(m, 1): the mean moves by m sd, and nothing by more.

    The median's event gains 2 (Phi(m) - 1/2), in its sd 1/2. 20000 draws tell to .02.
    """
    x = np.random.default_rng(0).standard_normal((20_000, 2))
    assert disagreement(x, np.zeros(len(x))) == pytest.approx(0.0, abs=1e-9)
    assert disagreement(x, 0.2 * x[:, 0]) == pytest.approx(0.2, abs=0.02)
    assert disagreement(7 * x + 3, 0.2 * x[:, 0]) == pytest.approx(0.2, abs=0.02)


def test_masses_of_modes_are_compared_by_events():
    """Modes at +-5 with masses .5, and .6 and .4 after weighting: event and mean move by .2 sd."""
    rng = np.random.default_rng(0)
    x = 5 * rng.choice([-1.0, 1.0], (20_000, 1)) + rng.standard_normal((20_000, 1))
    lw = np.where(x[:, 0] > 0, np.log(0.6), np.log(0.4))
    assert disagreement(x, lw) == pytest.approx(0.2, abs=0.02)


def test_few_draws_in_a_hole_of_one_law_are_seen():
    """Two of a hundred draws at 20 sd, which the other law does not have, make the sd 3 of 1."""
    x = np.random.default_rng(0).standard_normal((100, 1))
    x[:2] = 20.0
    lw = np.where(x[:, 0] > 10, -30.0, 0.0)
    assert disagreement(x, lw) > 0.3


def test_laws_with_nothing_in_common_disagree():
    x = np.random.default_rng(0).standard_normal((1000, 1))
    assert disagreement(x, 20 * x[:, 0]) == np.inf
    assert disagreement(x, np.full(1000, -np.inf)) == np.inf


def test_noise_that_explains_the_scatter_is_allowed_for():
    """Noise of sd 2, as it was measured: log weights of that sd pass, of ten times it do not."""
    lw = 2 * np.random.default_rng(0).standard_normal(40)
    certificate = Certificate.of(lw)
    assert not certificate.certified
    assert certificate.under_noise(2.0, error=0.05, degrees=5).certified
    assert not certificate.under_noise(
        2.0, error=0.2, degrees=5
    ).certified  # the law may be off by itself
    assert not Certificate.of(10 * lw).under_noise(2.0, error=0.05, degrees=5).certified
    refused = Certificate.of(10 * lw).under_noise(2.0, error=0.05, degrees=5)
    assert "scatter more than noise explains" in str(refused)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e300, 2.5e-300])
@pytest.mark.parametrize("name", ["sd", "missed", "moved", "outer", "noise"])
def test_no_message_has_the_names_of_floats_or_their_many_digits(name, value):
    certificate = Certificate(**({"limit": 0.2, "sd": 0.1, "size": 10} | {name: value}))
    verification = Verification(**(dict.fromkeys(VERIFIED, value) | {"passed": False}))
    for told in (str(certificate), str(verification)):
        words = told.replace(",", " ").split()
        assert not {"inf", "-inf", "nan", "inf%", "nan%"} & set(words)
        assert max(map(len, words)) < 20
