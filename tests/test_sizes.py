"""Functions fit on a screen, most on a hand; calls can be read without counting commas; long files say why they are.

The lines of a function are those from its first statement after the docstring to the end of its last, with blank
lines, comments and the functions inside it; decorators and the signature do not count. The arguments of a call are
those that stand between its parentheses, ``*more`` and ``**more`` being one each.
"""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent / "fedsim"
FILES = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(ROOT.rglob("*.py"))}

LONG_FUNCTIONS: dict[str, str] = {}
"""{file: function of more than 60 lines: why}. There is none."""

LONG_CALLS = {
    ("algorithms/adom_plus.py", "ADOMPlusPeer"): "the ten vectors that a peer holds, all new in every round",
    ("algorithms/fedspeed.py", "FedSpeed"): "all keys of the method, one of which has another name in configurations",
    ("assembly/setup.py", "Setup"): "everything that workers are given, by name",
    ("data/own.py", "Arrays"): "in from_arrays, whose arguments these are",
    ("report/compare.py", "Comparison"): "everything that a report shows of a comparison, by name",
    ("simulation.py", "History"): "in simulate, whose arguments these are",
    ("simulation.py", "Parts"): "in simulate, whose arguments these are",
    ("simulation.py", "Result"): "in simulate: everything that a run came to, by name",
    ("topology/figure.py", "axes.scatter"): "matplotlib's: positions, sizes, colours and their range",
}
"""{(file, what is called): why it has more than 8 arguments}."""

LONG_FILES = {
    "assembly/agreement.py": "one class that measures how far each kernel is from the plain module, and its bounds",
    "data/batches.py": "a client's minibatches, from the draw over padding to tensors: one life of one thing",
    "kernels/example_sums.py": "one pass over a model that finds what every layer's gradients by example are made of",
    "kernels/oracle.py": "one class: every question that an algorithm may ask about a model",
    "kernels/stacked.py": "one compiler, from a traced module to steps on stacked parameters",
    "kernels/stacked_ops.py": "a list: one short function for each operation that can be stacked",
    "objective.py": "one class whose docstrings are what authors of methods read",
    "pool/ray_pool.py": "one pool: its actors, their jobs, and what is done when either is lost",
    "pool/worker.py": "what is sent to a worker, what it does and what it sends back, which are read together",
    "privacy/config.py": "a list: the six choices of ``privacy``, each with its keys in its docstring",
    "privacy/ledger.py": "epsilon, from draws over counts to the accountant's questions: one computation",
    "record/checkpoint.py": "one file format: written, read and distrusted in one place",
    "record/run_folder.py": "one folder: every file in it, written and read in one place",
    "report/compare.py": "one comparison: what it holds, and how each number of it comes about",
    "schedule/rules.py": "a list: the rules for cohorts, each with its law in its docstring",
    "topology/reading.py": "graphs from files: three formats that share their checks",
    "traits/declared.py": "how the words of a class are read, and every way in which they can be wrong",
}
"""{file of more than 250 lines: why}."""


def functions(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, int]]:
    """(name with those of the classes and functions around it, lines)."""
    for node in ast.iter_child_nodes(tree):
        here = inside
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            here = f"{inside}.{node.name}".lstrip(".")
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield here, lines(node)
        yield from functions(node, here)


def lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How long a function is; 0 with nothing but a docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def long_calls(source: str) -> set[str]:
    """What is called with more than 8 arguments."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return {ast.unparse(call.func) for call in calls if len(call.args) + len(call.keywords) > 8} - {"simulate"}


LENGTHS = {f"{file}: {name}": n for file, text in FILES.items() for name, n in functions(ast.parse(text))}


def test_most_functions_are_short() -> None:
    assert len(LENGTHS) > 1000
    assert statistics.median(LENGTHS.values()) < 6


def test_no_function_is_long_without_a_reason() -> None:
    assert {name for name, n in LENGTHS.items() if n > 60} == {*LONG_FUNCTIONS}


def test_no_call_has_many_arguments_without_a_reason() -> None:
    assert {(file, call) for file, text in FILES.items() for call in long_calls(text)} == {*LONG_CALLS}


def test_no_file_is_long_without_a_reason() -> None:
    assert {file for file, text in FILES.items() if text.count("\n") > 250} == {*LONG_FILES}


def test_how_it_is_counted() -> None:
    inner = "\n".join(f"        x{i} = {i}" for i in range(3))
    source = f'class A:\n    def f(self):\n        """Doc."""\n\n{inner}\n\n        def g(): ...\n'
    source += '    def h(self):\n        "x"\n'
    assert dict(functions(ast.parse(source))) == {"A.f": 5, "A.f.g": 1, "A.h": 0}
    assert long_calls("f(1, 2, 3, 4, 5, 6, 7, 8)\ng(1, 2, 3, *a, d=5, e=6, f=7, **b, **c)") == {"g"}
