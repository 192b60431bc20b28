"""What the documents promise is there: each test that they name exists."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"

_NAMED = re.compile(r"`((?:\.\./)?[\w/.]*\.py)?(?:::)?(test_\w+)?`")
_PLACED = re.compile(
    r"`(tests/[\w/]+\.py|(?:unit|e2e|faults|stores)/[\w/]*test_\w+\.py)(?:::(\w+))?`"
)
_MODULE = re.compile(r"python -m ([\w.]+)")


@functools.cache
def functions(path: Path) -> frozenset[str]:
    """Names of the tests in a file, those in classes too."""
    tree = ast.parse(path.read_text())
    return frozenset(n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))


def tables(document: Path) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Each table: its header, and its rows by cell."""
    rows: list[list[str]] = []
    for line in [*document.read_text().splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif rows:
            yield rows[0], rows[2:]
            rows = []


def references(text: str, file: Path | None) -> Iterator[tuple[Path | None, str]]:
    """The tests of a text: of the file named last, or of ``file``."""
    for path, name in _NAMED.findall(text):
        if path:
            base = file.parent if file and path.startswith("../") else TESTS
            file = (base / path).resolve()
        if path or name:
            yield file, name


def test_every_row_of_the_failures_names_a_test_that_exists() -> None:
    document = ROOT / "docs/failures.md"
    bad, seen = [], 0
    for header, rows in tables(document):
        column = next((n for n, cell in enumerate(header) if cell.startswith("test")), None)
        if column is None:
            continue
        home = re.search(r"`([\w/.]+\.py)`", header[column])
        file = TESTS / home[1] if home else None
        above = ""
        for row in rows:
            above = above if row[column] == "same" else row[column]
            found = list(references(above, file))
            seen += 1
            if not found:
                bad.append(f"no test: {row[0]}")
            for path, name in found:
                if path is None or not path.is_file():
                    bad.append(f"no file: {row[column]}")
                elif name and name not in functions(path):
                    bad.append(f"no such test: {path.name}::{name}")
    assert bad == []
    assert seen > 100


@pytest.mark.parametrize("name", [path.name for path in sorted((ROOT / "docs").glob("*.md"))])
def test_what_a_document_names_exists(name: str) -> None:
    """Tests by file and function, and modules to be run."""
    text = (ROOT / "docs" / name).read_text()
    for path, test in _PLACED.findall(text):
        file = (ROOT if path.startswith("tests/") else TESTS) / path
        assert file.is_file(), path
        assert not test or test in functions(file), f"{path}::{test}"
    for module in _MODULE.findall(text):
        if module.startswith("tests."):
            assert (ROOT / f"{module.rstrip('.').replace('.', '/')}.py").is_file(), module
