"""The digest of code that versions are made of.

Prevents two simplifications: a digest of the source text, by which a comment or a module that moved
makes every partition stale, and one of so little of it that a changed rule leaves them fresh.
"""

import ast
import importlib.util
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import churn_assets
from churn_assets.stores.provenance import code_digest

Load = Callable[..., ModuleType]

# A module as the digest meets them: constants, functions, a class, a branch, an import for types.
SOURCE = '''"""What the module is for."""

import math
from typing import TYPE_CHECKING

from collections import Counter

if TYPE_CHECKING:
    from decimal import Decimal

LIMIT = 3
NAMES = ("a", "b")


def inner(value: int, *, scale: float = 1.5) -> float:
    """What it gives."""
    # Why it does so.
    if value > LIMIT and value != 0:
        return value * scale
    return math.sqrt(value)


@staticmethod
def outer(values: "list[Decimal]") -> list[int]:
    """What it gives."""
    return [len(NAMES) + value for value in values if not value]


class Kind:
    """A kind."""

    size: int = 7

    def grow(self, by: int = 1) -> None:
        self.size += by
'''


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """Gives a module with a source; each has a file, and a name unless one is given."""
    folder, loaded = tmp_path_factory.mktemp("modules"), list[str]()

    def load(source: str, name: str = "") -> ModuleType:
        name = name or f"generated_{len(loaded)}"
        path = folder / str(len(loaded)) / f"{name}.py"
        path.parent.mkdir()
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loaded.append(name)
        sys.modules[name] = module  # unlike its code, its source is found by that
        return module

    yield load
    for name in loaded:
        sys.modules.pop(name, None)


def blocks(source: str) -> list[str]:
    """The statements of a module as source, with the decorators and comments within them."""
    lines = source.splitlines()
    found = []
    for node in ast.parse(source).body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        found.append("\n".join(lines[first - 1 : node.end_lineno]))
    return found


def definitions(source: str) -> list[str]:
    """What remains of a module without its docstring and imports."""
    return [b for b in blocks(source) if not b.startswith(('"""', "import", "from", "if TYPE_"))]


def file_of(statements: Sequence[str]) -> str:
    return "\n\n\n".join(statements) + "\n"


# What does not count

SAME = {
    "comments": lambda s: re.sub(r"# .*", "# Another reason.", s) + "\n# The end.\n",
    "no comments": lambda s: re.sub(r" *# .*\n", "", s),
    "docstrings": lambda s: s.replace("What it gives.", "Gives\n\n    what is wanted."),
    "no docstrings": lambda s: re.sub(r' *"""(What it gives|What the module|A kind).*"""\n', "", s),
    "a docstring where there was none": lambda s: s.replace(
        "-> None:\n", '-> None:\n        """Grow."""\n'
    ),
    "other imports": lambda s: s.replace("import math", "import os\nimport math as m"),
    "no imports": lambda s: file_of(definitions(s)),
    "imports for types only": lambda s: s.replace("from decimal import Decimal", "import decimal"),
    "blank lines": lambda s: re.sub(r"\n+", "\n", s),
    "white space": lambda s: (
        s.replace("value * scale", "value*scale").replace("(value)", "( value )")
    ),
    "brackets": lambda s: s.replace("value * scale", "(value * scale)"),
    "broken lines": lambda s: s.replace('("a", "b")', '(\n    "a",\n    "b",\n)'),
    "quotes": lambda s: s.replace('("a", "b")', "('a', 'b')"),
    "digits that read better": lambda s: s.replace("LIMIT = 3", "LIMIT = 0x3"),
}  # fmt: skip


@pytest.mark.parametrize("change", SAME)
def test_what_a_reader_sees_and_the_code_does_not_is_no_change(load: Load, change: str) -> None:
    changed = SAME[change](SOURCE)
    assert changed != SOURCE
    assert code_digest(load(changed)) == code_digest(load(SOURCE))


def test_the_name_of_the_module_does_not_count(load: Load) -> None:
    digests = {code_digest(load(SOURCE, name)) for name in ("sentiment_then", "sentiment_now")}
    assert len(digests) == 1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), modules=st.integers(1, 4))
def test_order_and_place_of_definitions_do_not_count(load: Load, seed: int, modules: int) -> None:
    rng = random.Random(seed)
    statements = definitions(SOURCE)
    rng.shuffle(statements)
    parts: list[list[str]] = [[] for _ in range(modules)]
    for statement in statements:
        rng.choice(parts).append(statement)
    moved = [load(f'"""Part."""\nimport sys\n\n{file_of(part)}') for part in parts]
    rng.shuffle(moved)
    assert code_digest(*moved) == code_digest(load(SOURCE))


def test_functions_alone_are_digested_as_in_a_module(load: Load) -> None:
    source = "\n\ndef grown(value: int) -> int:\n    # As there.\n    return value + 1\n"
    module = load(source)
    exec(compile(source, module.__file__ or "", "exec"), vars(module))
    assert code_digest(module.grown) == code_digest(module)
    assert code_digest(module.grown) != code_digest(load(source.replace("1", "2")))


# What does

CHANGES = [
    ("LIMIT = 3", "LIMIT = 4"),
    ("LIMIT = 3", "LIMIT = 3.0"),
    ("LIMIT = 3", 'LIMIT = "3"'),
    ("LIMIT = 3", "LIMIT = -3"),
    ("LIMIT = 3", "LIMIT = None"),
    ("LIMIT = 3", "LIMIT = True"),
    ("LIMIT = 3", "LIMIT: int = 3"),
    ("LIMIT = 3", "LIMIT = 3\nMOST = 4"),
    ("LIMIT = 3\n", ""),
    ('("a", "b")', '("b", "a")'),
    ('("a", "b")', '["a", "b"]'),
    ('("a", "b")', '("a", b"b")'),
    ('("a", "b")', '("a",)'),
    ('("a", "b")', "()"),
    ("value > LIMIT", "value >= LIMIT"),
    ("value > LIMIT", "LIMIT > value"),
    ("> LIMIT and", "> LIMIT or"),
    ("value != 0", "value is not 0"),
    ("value * scale", "value + scale"),
    ("value * scale", "scale * value"),
    ("value * scale", "value"),
    ("return value * scale", "yield value * scale"),
    ("scale: float = 1.5", "scale: float = 2.5"),
    ("*, scale", "scale"),
    ("value: int, *", "value: int = 0, *"),
    ("math.sqrt(value)", "math.cbrt(value)"),
    ("math.sqrt(value)", "math.sqrt(value, value)"),
    ("return math.sqrt(value)", "math.sqrt(value)"),
    ("@staticmethod\n", ""),
    ("@staticmethod", "@classmethod"),
    ("if not value", "if value"),
    (" if not value", ""),
    ("[len(NAMES) + value for value in values", "[*(len(NAMES) + value for value in values"),
    ("def outer", "async def outer"),
    ("def outer", "def other"),
    ("class Kind:", "class Kind(dict):"),
    ("size: int = 7", "size: int = 8"),
    ("self.size += by", "self.size -= by"),
    ("self.size += by", "self.size = by"),
    ("by: int = 1", "by: int = 0"),
    ("by: int = 1", "by: int"),
]


@pytest.mark.parametrize(("old", "new"), CHANGES)
def test_another_meaning_is_another_digest(load: Load, old: str, new: str) -> None:
    changed = SOURCE.replace(old, new, 1)
    if "[*(" in new:
        changed = changed.replace("if not value]", "if not value)]")
    assert changed != SOURCE
    ast.parse(changed)
    assert code_digest(load(changed)) != code_digest(load(SOURCE))


NAME = st.sampled_from(["a", "b", "size"])
CONSTANT = st.one_of(
    st.integers(-9, 9),
    st.floats(-2, 2).map(abs),
    st.booleans(),
    st.none(),
    st.text("ab", max_size=2),
).map(repr)
EXPRESSION = st.recursive(
    NAME | CONSTANT,
    lambda part: st.one_of(
        st.tuples(part, st.sampled_from("+-*/%"), part).map(lambda t: f"({' '.join(t)})"),
        st.tuples(part, st.sampled_from(["<", "<=", "==", "is"]), part).map(
            lambda t: f"({' '.join(t)})"
        ),
        st.tuples(part, st.sampled_from(["and", "or"]), part).map(lambda t: f"({' '.join(t)})"),
        st.tuples(NAME, part).map(lambda t: f"{t[0]}({t[1]})"),
        st.lists(part, max_size=2).map(lambda parts: f"[{', '.join(parts)}]"),
    ),
    max_leaves=6,
)


def module_of(expressions: Sequence[str], words: Sequence[str] = ("",) * 4) -> str:
    """A module of functions that return these, with words where they do not count."""
    return file_of(
        [
            f'"""{words[0]}"""',
            *(
                f'def f{i}(a, b):  # {words[1]}\n    """{words[2]}"""\n    return {expression}'
                for i, expression in enumerate(expressions)
            ),
            f"# {words[3]}",
        ]
    )


EXPRESSIONS = st.lists(EXPRESSION, min_size=1, max_size=3)
WORDS = st.lists(st.text("abc d", max_size=5), min_size=4, max_size=4)


@settings(max_examples=200, deadline=None)
@given(one=EXPRESSIONS, other=EXPRESSIONS, words=WORDS)
def test_digests_are_equal_exactly_where_the_trees_are(
    load: Load, one: list[str], other: list[str], words: list[str]
) -> None:
    same = ast.dump(ast.parse(module_of(one))) == ast.dump(ast.parse(module_of(other)))
    first, second = load(module_of(one)), load(module_of(other, words))
    assert (code_digest(first) == code_digest(second)) is same
    assert code_digest(load(module_of(one, words))) == code_digest(first)


def test_a_digest_is_the_same_in_every_version_of_python(load: Load) -> None:
    """A new Python must not make all that was kept stale; `ast.dump` differs between them."""
    assert (
        code_digest(load("LIMIT = 3\n\n\ndef f(a, *, b=1):\n    return a if b else []\n"))
        == "7395d6e5a932"
    )


# The package itself

PACKAGE = Path(churn_assets.__file__).parent


def test_every_module_may_be_written_otherwise(load: Load) -> None:
    """Python's own rendering of a module has no comments, other quotes, brackets and lines."""
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        tree.body = [
            node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)
        ]
        tree.body.reverse()
        if tree.body:  # an empty file has no source to find
            assert code_digest(load(ast.unparse(tree))) == code_digest(load(path.read_text())), path


OTHER = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Lt: ast.LtE,
    ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.And: ast.Or, ast.Or: ast.And, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn,
}  # fmt: skip


class Changed(ast.NodeTransformer):
    """Changes one constant or operator, the wanted of those that it counts."""

    def __init__(self, wanted: int = -1) -> None:
        self.wanted, self.seen = wanted, 0

    def next_is_wanted(self) -> bool:
        self.seen += 1
        return self.seen - 1 == self.wanted

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if type(node) in OTHER and self.next_is_wanted():
            return OTHER[type(node)]()
        return super().generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        return node if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return node  # its texts must stay texts

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if not self.next_is_wanted():
            return node
        value = node.value
        other = value + 1 if isinstance(value, int | float) else f"{value!r}, another"
        return ast.Constant(other)


@pytest.mark.parametrize(
    "module",
    [
        *("history/sentiment", "history/topics", "history/text_models", "history/text_vectors"),
        *("models/estimators", "models/kinds", "models/promotion", "models/tuning"),
        *("models/grades", "models/bootstrap", "sources/true_churn", "online/rows"),
        *("models/contributions", "predictions/reasons"),
    ],
)
def test_no_constant_or_operator_of_a_versioned_module_changes_unseen(
    load: Load, module: str
) -> None:
    source = (PACKAGE / f"{module}.py").read_text()
    digest, counted = code_digest(load(source)), Changed()
    counted.visit(ast.parse(source))
    assert counted.seen > 5
    for number in random.Random(module).sample(range(counted.seen), min(20, counted.seen)):
        changed = ast.unparse(ast.fix_missing_locations(Changed(number).visit(ast.parse(source))))
        assert code_digest(load(changed)) != digest, (module, number)
