"""What is done to a database file that cannot be used as it is."""

from __future__ import annotations

import sqlite3
from pathlib import Path


def drop_other_versions(database: sqlite3.Connection, version: str) -> None:
    """Tables of another version hold nothing that cannot be found again."""
    tables = [
        name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type='table'")
    ]
    if "meta" in tables:
        row = database.execute("SELECT value FROM meta WHERE name = 'version'").fetchone()
        if row is not None and row[0] != version:
            for name in tables:
                database.execute(f"DROP TABLE {name}")


def put_aside(path: Path) -> Path:
    """Rename a corrupt journal, so that a person can look at it and nothing is deleted."""
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return aside
