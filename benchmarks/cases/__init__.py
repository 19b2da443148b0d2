"""The cases: each a function that gives the rows of one table."""

from collections.abc import Callable, Iterator

from benchmarks.cases.cells import cells
from benchmarks.cases.generate import generate
from benchmarks.cases.memory import memory
from benchmarks.cases.overhead import overhead
from benchmarks.cases.step import step
from benchmarks.cases.target import target
from benchmarks.cases.text import text
from benchmarks.cases.word import word
from benchmarks.rows import Row, Setting

CASES: dict[str, Callable[[Setting], Iterator[Row]]] = {
    case.__name__: case for case in (step, word, cells, target, text, memory, generate, overhead)
}
OF_THE_NOVEL = frozenset({"cells", "target", "text", "memory"})
"""Those that read the book's novel, which may have to be downloaded."""
