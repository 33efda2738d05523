"""SQL gets values by bound parameters only: no statement is put together out of texts.

Names of tables and months can't be parameters. Where one is put into a statement it stands in
`KNOWN`, with why it is never a text from outside."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = ("shared/leaderboard", "functions")
RUNS_TEXT: Final = {"text", "exec_driver_sql", "literal_column", "DDL", "executescript", "copy"}
"""What takes a statement as a text; `text` of SQLAlchemy's, `copy` of psycopg's."""
SQL: Final = re.compile(
    r"\s*(SELECT|INSERT|UPDATE|DELETE|MERGE|REPLACE|CREATE|ALTER|DROP|TRUNCATE|GRANT|REVOKE|COPY"
    r"|SET|EXEC|DECLARE|WITH|PRAGMA|CALL|DO|BEGIN|LOCK)\b[ '\"$(]"
)
KNOWN: Final = {
    ("adapters/sql_engine.py", "command"): "a table's and its columns' names, from the schema",
    ("adapters/sql_engine.py", "COPY"): "a table's and its columns' names, from the schema",
    ("adapters/sql_erasure.py", "SELECT"): "the name of a function that locks, a constant",
    ("adapters/sql_erasure.py", "DECLARE"): "the mode of a lock, a constant",
    ("adapters/sql_months.py", "CREATE TABLE"): "a table's name from the schema, and two numbers",
    ("adapters/sql_migrations.py", "SET LOCAL"): "a constant number of seconds",
    ("adapters/sql_retention.py", "SET LOCAL"): "a constant number of seconds",
    ("adapters/sql_retention.py", "LOCK TABLE"): "a partition's name: its table's, and a month",
    ("adapters/sql_retention.py", "ALTER TABLE"): "a partition's name: its table's, and a month",
    ("adapters/sql_retention.py", "DROP TABLE"): "a partition's name: its table's, and a month",
    ("producer/tables.py", "statement"): "the outbox's own DDL, made from the schema",
    ("producer/tables.py", "ALTER TABLE"): "the outbox's own DDL, made from the schema",
    ("stack/postgres.py", "CREATE DATABASE"): "the stack's own database, a constant",
    ("stack/access_sql.py", ""): "a script for psql, from constants; nothing runs it here",
}


def findings(path: str, source: str) -> Iterator[tuple[str, str, int]]:
    """Statements that are put together: file, how each begins (or what is run), and its line."""
    for node in ast.walk(ast.parse(source)):
        text = _put_together(node)
        if text is not None and SQL.match(text):
            yield path, text.strip(), node.lineno  # type: ignore[attr-defined]
        if isinstance(node, ast.Call) and _name_of(node.func) in RUNS_TEXT and node.args:
            first = node.args[0]
            if isinstance(first, ast.Name | ast.Attribute) and _is_sql_call(node):
                yield path, ast.unparse(first), node.lineno


def _is_sql_call(call: ast.Call) -> bool:
    # `.copy()` and `text` are names of other things too: those take nothing, or a plain value.
    if _name_of(call.func) == "copy":
        return isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "cursor"
    if _name_of(call.func) == "text":
        return isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in SQLALCHEMY
    return True


SQLALCHEMY: Final = ("sa", "sqlalchemy", "sql")


def _put_together(node: ast.AST) -> str | None:
    """The first words of a text that is made of others, up to where another one is put in."""
    match node:
        case ast.JoinedStr(values=[ast.Constant(value=str(head)), *rest]) if rest:
            return head
        case ast.BinOp(op=ast.Mod() | ast.Add(), left=left):
            return _head_of(left)
        case ast.Call(func=ast.Attribute(value=left, attr="format" | "replace" | "join")):
            return _head_of(left)
    return None


def _head_of(node: ast.AST) -> str | None:
    if isinstance(node, ast.BinOp):
        return _head_of(node.left)
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _name_of(function: ast.AST) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))


def known(path: str, text: str) -> tuple[str, str] | None:
    """The entry of `KNOWN` that this is."""
    for name, begins in KNOWN:
        if path.endswith(name) and text.startswith(begins):
            return name, begins
    return None


def sources() -> list[Path]:
    return [path for folder in SOURCES for path in sorted((ROOT / folder).rglob("*.py"))]


def test_no_statement_is_put_together_out_of_texts(
    record_property: Callable[[str, object], None],
) -> None:
    met, wrong, statements = set(), [], 0
    for path in sources():
        source = path.read_text(encoding="utf-8")
        statements += len(re.findall(r"\.execute\(|exec_driver_sql\(|sa\.text\(", source))
        for name, text, line in findings(str(path), source):
            entry = known(name, text)
            if entry is None and path.name != "nchan_gateway.py":  # a request line of HTTP
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {text[:60]}")
            met.add(entry)
    record_property("tried", statements)
    assert statements > 80
    assert not wrong, "\n".join(wrong)
    assert met - {None} == KNOWN.keys(), "KNOWN has what is not there any more"


@pytest.mark.parametrize(
    "source",
    [
        "c.execute(f'SELECT * FROM t WHERE p = {player}')",
        "c.execute('SELECT * FROM t WHERE p = %s' % player)",
        "c.execute('DELETE FROM t WHERE p = ' + player)",
        "c.execute('DELETE FROM t' + ' WHERE p = ' + player + ';')",
        "c.execute('UPDATE t SET p = {}'.format(player))",
        "c.execute(sa.text(f'''\n  SELECT {column} FROM t'''))",
        "q = f'INSERT INTO t VALUES ({player})'\nc.execute(q)",
        "q = 'SELECT 1 FROM ' + name",
        "c.exec_driver_sql(query)",
        "c.execute(sa.text(query))",
        "sa.select(sa.literal_column(player))",
        "cursor.copy(command)",
    ],
)
def test_a_statement_that_is_put_together_is_found(source: str) -> None:
    assert list(findings("functions/any/main.py", source))


@pytest.mark.parametrize(
    "source",
    [
        "c.execute(sa.select(t).where(t.c.p == player))",
        "c.execute(sa.text('SELECT 1 WHERE :p'), {'p': player})",
        "print(f'Selected {player}')",
        "done = self._next.copy()",
        "told = _text(letter)",
    ],
)
def test_a_statement_with_parameters_is_fine(source: str) -> None:
    assert not list(findings("functions/any/main.py", source))
