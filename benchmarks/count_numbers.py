"""How many numbers somebody chose, and how much code there is.

    python benchmarks/count_numbers.py                 counts for every folder
    python benchmarks/count_numbers.py --list samplers each number of one folder, with file:line
    python benchmarks/count_numbers.py --tree OTHER    the same for another checkout

Numbers that somebody chose
---------------------------
The rule looks at the code alone, so that two people count the same. A number counts once as

named      a name that is set at the top of a module or in the body of a class to numbers: one for
           a single number or an expression, one for every entry of a table. Any value counts;
           in an expression, 0, 1 and -1 do not.
field      the default of an annotated field of a class, unless it is 0, 1 or -1, which begin a
           count or are neutral.
default    the default of an argument, with the same exception.
inline     a number within a function, unless it is
           - 0, 1, 2, -1 or -2;
           - 0.5 or -0.5 in a sum, a product or a power: as an argument or a threshold it counts;
           - part of an index, a slice or a shape, or compared with ``len``, ``ndim``, ``size``;
           - an exponent: the law that a formula states; or how far bits are shifted;
           - a tuple of axes that is summed over, or an argument named axis, ndim, stacklevel,
             decimals, indent or maxsplit;
           - in a format specification.
data       a number in a data file (JSON, TOML, YAML, CSV, text) within the package.

Whatever is at most 1e-6 or at least 1e10 guards against rounding or overflow. Such numbers stand in
a column of their own and are not in the sum. A sign belongs to its number. Members of an ``Enum``
are names, not numbers.

Of the folders that ``docs/tuned_numbers.csv`` tells of, a second table says what numbers are by its
column of halves: a convention (a definition, a unit, a layout, the default of an option), a guard
that nothing reaches in a run that works, or neither: those are tuned.

Code
----
A line counts as code if it holds a token that is neither a comment nor a docstring. A top-level
module is a file beside the package's ``__init__.py``, which does not count.
"""

import argparse
import ast
import csv
import io
import re
import tokenize
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

KINDS = ("named", "field", "default", "inline", "data")
GUARD = "guard"
SMALLEST, LARGEST = 1e-6, 1e10  # what is not between them guards against rounding or overflow
NEUTRAL_DEFAULTS = {0, 1, -1}
NEUTRAL_INLINE = {0, 1, 2, -1, -2}
HALVES = {0.5, -0.5}
STRUCTURAL_ARGUMENTS = {"axis", "ndim", "stacklevel", "decimals", "indent", "maxsplit"}
SHAPE_ATTRIBUTES = {"ndim", "shape", "size"}
SHAPE_FUNCTIONS = {"reshape", "zeros", "ones", "empty", "expand_dims", "moveaxis"}
REDUCTIONS = {"sum", "mean", "std", "var", "all", "any", "min", "max"}
DATA_FILES = {".json", ".toml", ".yaml", ".yml", ".csv", ".txt"}
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.])")
TABLE = Path("docs") / "tuned_numbers.csv"
TUNED, CLASSES = "tuned", ("convention", "guard")
APART = {"gallery", "benchmark"}  # problems and studies, not the package's own work
LONG_FILE = 400
TOP = "(top)"


@dataclass(frozen=True)
class Number:
    """A number that somebody chose, and where it stands.

    Its name is that of the constant, field or argument, or of the function around it.
    """

    file: Path
    line: int
    column: int
    kind: str
    name: str
    text: str


def value(node):
    """Value of a literal number with its sign, else None."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        inner = value(node.operand)
        return None if inner is None else (-inner if isinstance(node.op, ast.USub) else inner)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, complex):
        return node.value
    return None


def has_number(node):
    """Whether an expression is a number, or contains one that is not neutral."""
    if value(node) is not None:
        return True
    return any(value(part) not in {None, *NEUTRAL_DEFAULTS} for part in ast.walk(node))


def entries(node):
    """Parts of a named value that count one each."""
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return [entry for element in node.elts for entry in entries(element)]
    if isinstance(node, ast.Dict):
        return [entry for element in node.values for entry in entries(element)]
    if isinstance(node, ast.Call) and any(isinstance(a, ast.List | ast.Tuple) for a in node.args):
        return [entry for argument in node.args for entry in entries(argument)]
    return [node] if has_number(node) else []


class Collector(ast.NodeVisitor):
    """Walk through a module and note its numbers."""

    def __init__(self, file):
        self.file, self.found, self.inside, self.owner = file, [], 0, ()

    def note(self, node, kind, name):
        """Note one number."""
        size = abs(value(node)) if value(node) is not None else 1
        if size != 0 and not SMALLEST < size < LARGEST:
            kind = GUARD
        name = ".".join((*self.owner, *([name] if name else [])))
        text = ast.unparse(node)
        self.found.append(Number(self.file, node.lineno, node.col_offset, kind, name, text))

    # -- names, fields, defaults ----------------------------------------------------------------

    def visit_ClassDef(self, node):
        """Fields and names of a class; the members of an Enum are none."""
        if any("Enum" in ast.unparse(base) or "Flag" in ast.unparse(base) for base in node.bases):
            return
        outer, self.owner = self.owner, (*self.owner, node.name)
        self.generic_visit(node)
        self.owner = outer

    def visit_Assign(self, node):
        """A name outside of functions."""
        if self.inside:
            self.generic_visit(node)
            return
        target, values = node.targets[0], [node.value]
        targets = [target]
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            targets, values = target.elts, node.value.elts
        for name, expression in zip(targets, values, strict=True):
            for entry in entries(expression):
                self.note(entry, "named", ast.unparse(name))

    def visit_AnnAssign(self, node):
        """A field of a class, or an annotated name."""
        if self.inside or node.value is None:
            self.generic_visit(node)
            return
        fixed = not isinstance(node.target, ast.Name) or node.target.id.isupper()
        kind = "named" if fixed or "ClassVar" in ast.unparse(node.annotation) else "field"
        for entry in entries(node.value):
            if kind == "named" or value(entry) not in NEUTRAL_DEFAULTS:
                self.note(entry, kind, ast.unparse(node.target))

    def visit_FunctionDef(self, node):
        """Defaults of a function, then its body."""
        arguments = node.args
        positional = [*arguments.posonlyargs, *arguments.args]
        last = positional[len(positional) - len(arguments.defaults) :]
        pairs = [
            *zip(last, arguments.defaults, strict=True),
            *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
        ]
        outer, self.owner = self.owner, (*self.owner, getattr(node, "name", "<lambda>"))
        for argument, default in pairs:
            for entry in entries(default) if default is not None else ():
                if value(entry) not in NEUTRAL_DEFAULTS:
                    self.note(entry, "default", argument.arg)
        self.inside += 1
        for statement in node.body if isinstance(node.body, list) else [node.body]:
            self.visit(statement)
        self.inside -= 1
        self.owner = outer

    visit_AsyncFunctionDef = visit_FunctionDef
    visit_Lambda = visit_FunctionDef

    # -- within functions -----------------------------------------------------------------------

    def visit_Subscript(self, node):
        """An index is no chosen number."""
        self.visit(node.value)

    def visit_FormattedValue(self, node):
        """A format specification is no chosen number."""
        self.visit(node.value)

    def visit_Call(self, node):
        """Arguments that are shapes or axes are no chosen numbers."""
        self.visit(node.func)
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        if called not in SHAPE_FUNCTIONS:
            for argument in node.args:
                if called not in REDUCTIONS or not isinstance(argument, ast.Tuple):
                    self.literal_or_visit(argument, formula=False)
        for keyword in node.keywords:
            if keyword.arg not in STRUCTURAL_ARGUMENTS | SHAPE_ATTRIBUTES:
                self.literal_or_visit(keyword.value, formula=False)

    def visit_BinOp(self, node):
        """Operands of a formula; exponents belong to its law."""
        self.literal_or_visit(node.left, formula=True)
        if not isinstance(node.op, ast.Pow | ast.LShift | ast.RShift):
            self.literal_or_visit(node.right, formula=True)

    def visit_AugAssign(self, node):
        """The same."""
        self.literal_or_visit(node.value, formula=True)

    def visit_Compare(self, node):
        """Thresholds, but not numbers of dimensions."""
        text = ast.unparse(node)
        sizes = "len(" in text or any(f".{name}" in text for name in SHAPE_ATTRIBUTES)
        for operand in (node.left, *node.comparators):
            if not (sizes and value(operand) is not None):
                self.literal_or_visit(operand, formula=False)

    def visit_UnaryOp(self, node):
        """A sign belongs to its number."""
        self.literal_or_visit(node, formula=False)

    def visit_Constant(self, node):
        """Any other literal."""
        self.literal_or_visit(node, formula=False)

    def literal_or_visit(self, node, formula):
        """Note a literal number, or look into what is none."""
        number = value(node)
        if number is None:
            self.generic_visit(node) if isinstance(node, ast.UnaryOp) else self.visit_other(node)
        elif self.inside and number not in NEUTRAL_INLINE and not (formula and number in HALVES):
            self.note(node, "inline", "")

    def visit_other(self, node):
        """Look into an expression."""
        if not isinstance(node, ast.Constant):
            self.visit(node)


def chosen_numbers(folder, pattern="**/*"):
    """All numbers that somebody chose in the files of a folder."""
    found = []
    for file in sorted(folder.glob(f"{pattern}.py")):
        collector = Collector(file)
        collector.visit(ast.parse(file.read_text(encoding="utf-8")))
        found += collector.found
    for file in sorted(path for path in folder.glob(pattern) if path.suffix in DATA_FILES):
        for line, text in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            found += [Number(file, line, 0, "data", "", match) for match in NUMBER.findall(text)]
    return found


def key_of(number, package):
    """What identifies a number in the table: its module, without the package, and its name."""
    parts = number.file.relative_to(package).with_suffix("").parts
    return f"{'.'.join(parts).removesuffix('.__init__')}: {number.name}"


def class_of(row):
    """What a row of the table says that its numbers are."""
    return next((one for one in CLASSES if row["half"].startswith(f"{one}:")), TUNED)


def table_rows(tree):
    """Rows of the table by their keys; none if the checkout has no table."""
    if not (tree / TABLE).exists():
        return {}
    with (tree / TABLE).open(encoding="utf-8", newline="") as file:
        return {row["number"].strip("`"): row for row in csv.DictReader(file)}


def code_lines(file):
    """Number of lines with code, without docstrings, comments and blank lines."""
    source = file.read_text(encoding="utf-8")
    documented = set()
    for node in ast.walk(ast.parse(source)):
        owners = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, owners) and ast.get_docstring(node, clean=False) is not None:
            documented.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    silent = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - documented)


def print_numbers(package):
    """Print how many numbers each folder has, kind by kind."""
    folders = sorted(path.parent for path in package.glob("*/__init__.py"))
    rooms = {TOP: chosen_numbers(package, "*")}
    rooms |= {f"{folder.name}/": chosen_numbers(folder) for folder in folders}
    print(f"{'chosen numbers':20}" + "".join(f"{kind:>9}" for kind in (*KINDS, "all", "guards")))
    for room, numbers in rooms.items():
        counts = Counter(number.kind for number in numbers)
        kinds = [counts[kind] for kind in KINDS]
        columns = [*kinds, sum(kinds), counts[GUARD]]
        print(f"{room:20}" + "".join(f"{count:9}" for count in columns))


def print_classes(package):
    """Print what the numbers in the table are."""
    rows = table_rows(package.parent)
    rooms = sorted({key.split(".")[0] for key in rows})
    kinds = (TUNED, *CLASSES, "not told")
    print(f"\n{'by ' + str(TABLE):27}" + "".join(f"{kind:>12}" for kind in kinds))
    for room in rooms:
        keys = [key_of(n, package) for n in chosen_numbers(package / room) if n.kind != GUARD]
        found = Counter(class_of(rows[key]) if key in rows else "not told" for key in keys)
        print(f"{room + '/':27}" + "".join(f"{found[kind]:12}" for kind in kinds))


def print_code(package):
    """Print how much code each folder has, and which files are long."""
    files = sorted(package.rglob("*.py"))
    lines = {file: code_lines(file) for file in files}
    rooms = Counter()
    for file, count in lines.items():
        room = file.relative_to(package).parts
        rooms[room[0] + "/" if len(room) > 1 else TOP] += count
    print("\nlines of code, without docstrings, comments and blank lines")
    for room, count in sorted(rooms.items()):
        print(f"{room:20}{count:9}")
    own = sum(count for room, count in rooms.items() if room.strip("/") not in APART)
    print(f"{'all but ' + ', '.join(sorted(APART)):28}{own}")
    top = [file.name for file in package.glob("*.py") if file.name != "__init__.py"]
    print(f"\ntop-level modules: {len(top)} ({', '.join(sorted(top))})")
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    long = {file: n for file, n in lengths.items() if n > LONG_FILE}
    print(f"files over {LONG_FILE} lines: {len(long)}")
    for file, n in sorted(long.items(), key=lambda item: -item[1]):
        print(f"{n:6}  {file.relative_to(package)}")


def main():
    """Print counts, or a list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1], help="a checkout")
    parser.add_argument("--list", metavar="FOLDER", help="print each number of this folder")
    options = parser.parse_args()
    package = options.tree / "pymc_ensemble"
    if options.list:
        folder = package / options.list.strip("/")
        if not folder.is_dir():
            parser.error(f"there is no folder {folder}.")
        for n in chosen_numbers(folder):
            print(f"{n.file.relative_to(options.tree)}:{n.line}: {n.kind:8} {n.name} {n.text}")
        return
    print_numbers(package)
    print_classes(package)
    print_code(package)


if __name__ == "__main__":
    main()
