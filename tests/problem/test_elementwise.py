"""Elementwise operations that call NumPy directly."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from pymc_ensemble.problem.batching import LazyFunction, cheap_mode
from pymc_ensemble.problem.elementwise import call_numpy_directly

x, y, row = pt.matrix("x"), pt.matrix("y"), pt.row("row")
counts, number = pt.imatrix("counts"), pt.dscalar("number")
VALUES = {
    x: np.random.default_rng(1).normal(size=(5, 3)),
    y: np.random.default_rng(2).normal(size=(5, 3)),
    row: np.random.default_rng(3).normal(size=(1, 3)),
    counts: np.arange(15, dtype="int32").reshape(5, 3),
    number: np.array(0.7),
}
GRAPHS = {
    "one": pt.exp(x),
    "two": x / y,
    "many": x + y + row + number + counts,
    "product of many": x * y * row,
    "one row": x - row,
    "a number": pt.exp(number) - 1,
    "integers": counts**2,
    "a root of integers": pt.sqrt(counts),
    "a condition": pt.switch(x < y, x, counts),
    "truths": pt.and_(x < y, pt.isnan(x)),
    "another type": pt.cast(x, "float32") + 1,
    "no ufunc": pt.sigmoid(x) + pt.sign(y),
    "invalid": pt.log(x),
    "of SciPy": pt.gammaln(x) + pt.erf(y),
}


def both(outputs):
    """Compiled by PyTensor alone, and with direct calls, with as many of them."""
    plain, direct = (
        pytensor.function(list(VALUES), outputs, on_unused_input="ignore", mode=cheap_mode())
        for _ in range(2)
    )
    call_numpy_directly(direct)
    return plain, direct, sum(thunk.__name__ == "direct" for thunk in direct.vm.thunks)


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_same_results_of_the_same_types(graph):
    with pytensor.config.change_flags(cxx=""), np.errstate(all="ignore"):
        plain, direct, n = both([graph])
        [wanted], [found] = plain(*VALUES.values()), direct(*VALUES.values())
        again = direct(*VALUES.values())[0]
    assert n > 0 or graph is GRAPHS["a root of integers"]
    assert type(found) is type(wanted) is np.ndarray
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)
    assert not np.shares_memory(found, again)


@pytest.mark.parametrize("graph", [x + y, x + y + number, pt.switch(x > 0, x, y)])
def test_lengths_of_one_that_are_not_declared_are_refused_still(graph):
    function = LazyFunction([x, y, number], [graph])
    with pytest.raises(ValueError, match="Runtime broadcasting not allowed"):
        function(VALUES[x], VALUES[row], VALUES[number])


def test_functions_of_points_call_numpy_directly():
    """They would all be slow if PyTensor changed what this builds upon."""
    function = LazyFunction([x, y], [pt.exp(x) * y + 1])
    function(VALUES[x], VALUES[y])
    thunks = function.compile().vm.thunks
    assert [thunk.__name__ for thunk in thunks] == ["direct"] * len(thunks)


def test_errors_are_told_in_the_same_words():
    wrong, told = {**VALUES, y: np.ones((4, 3))}, []
    for function in both([x * y])[:2]:
        with pytest.raises(ValueError, match=r"could not be broadcast.*\(4,3\)") as error:
            function(*wrong.values())
        told.append(str(error.value))
    assert told[0] == told[1]
