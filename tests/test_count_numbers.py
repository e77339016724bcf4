"""The rule by which chosen numbers are counted."""

import runpy
from pathlib import Path

import pytest

COMMAND = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "count_numbers.py"))


def found(tmp_path, source):
    (tmp_path / "module.py").write_text(source)
    return [(n.kind, n.name, n.text) for n in COMMAND["chosen_numbers"](tmp_path)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("LIMIT = 2", [("named", "LIMIT", "2")]),
        ("SHARE = 1 / 3", [("named", "SHARE", "1 / 3")]),
        ("A = (3, [4, 5])", [("named", "A", text) for text in "345"]),
        ("TINY = 1e-12", [("guard", "TINY", "1e-12")]),
        ("class C:\n    first: int = 0\n    most: int = 7", [("field", "C.most", "7")]),
        ("class Code(IntEnum):\n    EXACT = 3", []),
        ("def f(a, b=0, *, c=-4): ...", [("default", "f.c", "-4")]),
        ("def f(x):\n    return x > 0.5", [("inline", "f", "0.5")]),
        ("def f(x):\n    return 0.5 * x**3 + x[..., 4]", []),
        ("def f(x):\n    return (x << 4) ^ (x >> np.uint64(27))", []),
        ("def f(x):\n    x *= 0.5\n    return x", []),
        ("A = field(default_factory=lambda: np.zeros(0))", []),
        ("def f(x):\n    return max(3 * x, -7)", [("inline", "f", "3"), ("inline", "f", "-7")]),
        ("def f(x):\n    return x.ndim == 3 or len(x) > 4 or x.reshape(3, 4)", []),
        ("def f(x):\n    return x.sum(axis=3), f'{x:.3f}'", []),
        ("def f():\n    for _ in range(60): ...", [("inline", "f", "60")]),
        (
            "class C:\n    def f(self):\n        g = lambda x: x - 9",
            [("inline", "C.f.<lambda>", "9")],
        ),
    ],
)
def test_counts_what_somebody_chose(tmp_path, source, expected):
    assert found(tmp_path, source) == expected


def test_counts_numbers_in_data_files(tmp_path):
    (tmp_path / "limits.json").write_text('{"v2 of 3.5": [1, -2.5e-3], "x1": 4}')
    texts = [n.text for n in COMMAND["chosen_numbers"](tmp_path) if n.kind == "data"]
    assert texts == ["3.5", "1", "-2.5e-3", "4"]


def test_lines_of_code_are_no_comments_and_no_docstrings(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        '"""Words.\n\nMore."""\n\n# why\nx = """two\nlines"""\n\n\ndef f():\n    """No."""\n'
    )
    assert COMMAND["code_lines"](file) == 3
