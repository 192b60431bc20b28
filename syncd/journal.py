"""The journal: the daemon's SQLite database of what it knows.

It saves reading and asking again, and is never the only place where something is known: lost or
corrupt, it is put aside and rebuilt from the files and the store.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from syncd.errors import Corrupt
from syncd.records import UNREADABLE, CommitRecord, Layout, parse_record
from syncd.uploadrows import SCHEMA, UploadRows

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS commits (
    seq INTEGER PRIMARY KEY, checkpoint TEXT NOT NULL, profile TEXT NOT NULL, record BLOB NOT NULL,
    writer TEXT NOT NULL, behind INTEGER NOT NULL, written INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS roots ON commits (behind, seq);
CREATE INDEX IF NOT EXISTS commits_by_checkpoint ON commits (checkpoint, seq);
CREATE TABLE IF NOT EXISTS objects (
    key TEXT NOT NULL, seq INTEGER NOT NULL, size INTEGER NOT NULL, sha256 TEXT NOT NULL,
    current INTEGER NOT NULL DEFAULT 1, encoding TEXT NOT NULL DEFAULT '',
    stored INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (key, seq));
CREATE INDEX IF NOT EXISTS objects_by_content ON objects (size, sha256);
CREATE TABLE IF NOT EXISTS safe (
    checkpoint TEXT PRIMARY KEY, signature TEXT NOT NULL, seq INTEGER NOT NULL,
    changed INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS safe_by_seq ON safe (seq);
CREATE TABLE IF NOT EXISTS digests (
    path TEXT PRIMARY KEY, stat TEXT NOT NULL, sha256 TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sent (
    key TEXT PRIMARY KEY, path TEXT NOT NULL, stat TEXT NOT NULL, sha256 TEXT NOT NULL,
    version TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS sent_by_path ON sent (path);
CREATE TABLE IF NOT EXISTS stale (key TEXT PRIMARY KEY, source TEXT NOT NULL, seq INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS taken (checkpoint TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS log_objects (
    path TEXT PRIMARY KEY, key TEXT NOT NULL, size INTEGER NOT NULL, print TEXT NOT NULL,
    version TEXT NOT NULL, edge INTEGER NOT NULL, grew INTEGER NOT NULL, seen TEXT NOT NULL,
    intent TEXT NOT NULL);
"""

_VERSION = "8"

_TOGETHER = 500
"""Values in one question: SQLite takes 999 at most, where it is old."""


@dataclass(frozen=True)
class Sent:
    """A file that reached the store but is in no commit yet."""

    key: str
    path: str
    stat: str
    sha256: str
    version: str


@dataclass(frozen=True)
class Held:
    """An object that holds a file, whose ``sha256`` it is; ``stored`` are the object's bytes."""

    key: str
    sha256: str
    encoding: str
    stored: int


@dataclass(frozen=True)
class Root:
    """A commit in the order of writing.

    ``written`` is the newest modification of its files by the clock of the machine that wrote
    them, ``changed`` the newest change of them on this disk (None: they are not here), both in
    nanoseconds since the epoch.
    """

    seq: int
    writer: str
    written: int
    changed: int | None


@dataclass(frozen=True)
class LogSent:
    """The object of a log file: its first ``size`` bytes, of which ``print`` is the fingerprint.

    ``edge`` is where a record ends, at or before its end; ``grew`` whether it was continued after
    it was made; ``seen`` the stat of a file of which nothing is left to send; ``intent`` the
    fingerprint of what was about to be written, in case that nobody lived to see it.
    """

    path: str
    key: str
    size: int
    print: str
    version: str
    edge: int = 0
    grew: bool = False
    seen: str = ""
    intent: str = ""


class Journal(UploadRows):
    """What is known of the store and of the files, safe against a kill at any moment."""

    def __init__(self, path: Path | None, store: str) -> None:
        """Open the journal at ``path`` (None: in memory) for the store of that name."""
        super().__init__(path, store, _SCHEMA + SCHEMA, _VERSION)

    # -- small facts

    def get(self, name: str) -> str | None:
        """A fact by name."""
        rows = self._run("SELECT value FROM meta WHERE name = ?", name)
        return rows[0][0] if rows else None

    def remember(self, name: str, value: str) -> None:
        """Remember a fact."""
        self._run("INSERT OR REPLACE INTO meta VALUES (?, ?)", name, value)

    def writers(self) -> list[str]:
        """Ids of this machine's daemons that wrote with this journal."""
        try:
            return [str(writer) for writer in json.loads(self.get("writers") or "[]")]
        except (ValueError, TypeError):
            return []

    def add_writer(self, writer: str) -> None:
        """Remember one life of the daemon."""
        self.remember("writers", json.dumps([*self.writers()[-100:], writer]))

    # -- the commit log as far as it is known

    def known_commits(self) -> dict[int, int]:
        """Numbers of the commits in the journal, with the sizes of their records in bytes.

        The size is 0 for a record that could not be read.
        """
        sql = "SELECT seq, length(record) * (writer != ?) FROM commits"
        return {int(seq): int(size) for seq, size in self._run(sql, UNREADABLE)}

    def head(self) -> int:
        """Number of the newest known commit; 0 before the first."""
        return int(self._run("SELECT COALESCE(MAX(seq), 0) FROM commits")[0][0])

    def add_commit(self, record: CommitRecord) -> None:
        """Remember a commit and what its objects hold."""
        with self.transaction():
            self._run(
                "INSERT OR REPLACE INTO commits VALUES (?, ?, ?, ?, ?, ?, ?)",
                record.seq,
                record.checkpoint,
                record.profile,
                record.to_json(),
                record.writer,
                record.behind,
                record.rank[2],
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO objects (key, seq, size, sha256, encoding, stored) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (f.key, record.seq, f.size, f.sha256, f.encoding, f.at_rest)
                    for f in record.files
                ],
            )
            self._db.executemany(
                "DELETE FROM sent WHERE key = ?", [(entry.key,) for entry in record.files]
            )
            self.take(record.checkpoint)

    def drop_commits(self, numbers: Iterable[int]) -> None:
        """Forget commits that are no longer in the store."""
        with self.transaction():
            for seq in numbers:
                self._run("DELETE FROM commits WHERE seq = ?", seq)
                self._run("DELETE FROM objects WHERE seq = ?", seq)

    def commit(self, seq: int, layout: Layout) -> CommitRecord | None:
        """A known commit."""
        rows = self._run("SELECT record FROM commits WHERE seq = ?", seq)
        try:
            return parse_record(_bytes(rows[0][0]), seq, layout.prefix) if rows else None
        except Corrupt:
            return None

    def newest_commit(
        self, layout: Layout, checkpoint: str, before: int | None = None
    ) -> CommitRecord | None:
        """The newest known commit of one checkpoint, among those below a number if one is given."""
        rows = self._run(
            "SELECT MAX(seq) FROM commits WHERE checkpoint = ? AND seq < COALESCE(?, seq + 1)",
            checkpoint,
            before,
        )
        return self.commit(int(rows[0][0]), layout) if rows[0][0] is not None else None

    def recovery_point(self, layout: Layout, without_profile: str = "") -> CommitRecord | None:
        """The known commit of what was written last; claims are left out."""
        rows = self._run(
            "SELECT seq FROM commits WHERE checkpoint != '' AND profile != ? "
            "ORDER BY MAX(behind, (behind = 0) * seq) DESC, behind, written DESC, seq DESC LIMIT 1",
            without_profile,
        )
        return self.commit(int(rows[0][0]), layout) if rows else None

    def roots(self, without_profile: str = "") -> Iterator[Root]:
        """Commits that stand behind no other one, newest first; claims are left out."""
        seq = self.head() + 1
        while True:
            rows = self._run(
                "SELECT c.seq, c.writer, c.written, s.changed FROM commits c "
                "LEFT JOIN safe s ON s.seq = c.seq AND s.checkpoint = c.checkpoint "
                "WHERE c.behind = 0 AND c.seq < ? AND c.checkpoint != '' AND c.profile != ? "
                "ORDER BY c.seq DESC LIMIT 1",
                seq,
                without_profile,
            )
            if not rows:
                return
            found, writer, written, changed = rows[0]
            seq = int(found)
            yield Root(seq, writer, int(written), None if changed is None else int(changed))

    def commits(self, layout: Layout) -> Iterator[CommitRecord]:
        """Every known commit but claims, newest first."""
        for seq in sorted(self.known_commits(), reverse=True):
            record = self.commit(seq, layout)
            if record and not record.is_claim:
                yield record

    def take(self, checkpoint: str) -> None:
        """A commit of this checkpoint has been seen in the store, some time."""
        self._run("INSERT OR IGNORE INTO taken VALUES (?)", checkpoint)

    def is_taken(self, checkpoint: str) -> bool:
        """Whether there ever was a commit of this checkpoint, be it gone by now."""
        return bool(self._run("SELECT 1 FROM taken WHERE checkpoint = ?", checkpoint))

    def ranks(self) -> Iterator[tuple[str, str, tuple[int, bool, int, int]]]:
        """Checkpoint, writer and rank of every known commit; claims are left out."""
        sql = "SELECT checkpoint, writer, seq, behind, written FROM commits WHERE checkpoint != ''"
        for checkpoint, writer, *numbers in self._run(sql):
            seq, behind, written = map(int, numbers)
            yield checkpoint, writer, (behind or seq, not behind, written, seq)

    def holds(self, key: str, sha256: str) -> bool:
        """Whether an object still is what a commit says of it, as far as is known."""
        sql = "SELECT 1 FROM objects WHERE key = ? AND sha256 = ? AND current LIMIT 1"
        return bool(self._run(sql, key, sha256))

    def named_by(self, key: str) -> list[tuple[int, str]]:
        """Commits that name the object ``key``: their numbers and the digest each expects."""
        rows = self._run("SELECT seq, sha256 FROM objects WHERE key = ? ORDER BY seq", key)
        return [(int(seq), sha256) for seq, sha256 in rows]

    def has_size(self, size: int) -> bool:
        """Whether any committed object has this size: only then can content be there already."""
        sql = "SELECT 1 FROM objects WHERE size = ? AND current LIMIT 1"
        return bool(self._run(sql, size))

    def doubt(self, key: str) -> None:
        """From now on ``key`` may hold other content than commits say."""
        self._run("UPDATE objects SET current = 0 WHERE key = ?", key)

    def object_with(self, size: int, sha256: str) -> Held | None:
        """A committed object with this content."""
        rows = self._run(
            "SELECT key, sha256, encoding, stored FROM objects "
            "WHERE size = ? AND sha256 = ? AND current ORDER BY seq DESC LIMIT 1",
            size,
            sha256,
        )
        if not rows:
            return None
        key, sha256, encoding, stored = rows[0]
        return Held(key, sha256, encoding, int(stored))

    # -- the files

    def is_safe(self, checkpoint: str, signature: str) -> bool:
        """Whether exactly this revision of a checkpoint is committed."""
        rows = self._run("SELECT signature FROM safe WHERE checkpoint = ?", checkpoint)
        return bool(rows) and rows[0][0] == signature

    def mark_safe(self, checkpoint: str, signature: str, seq: int, changed: int) -> None:
        """This revision, last changed on disk at ``changed``, is committed as number ``seq``."""
        sql = "INSERT OR REPLACE INTO safe VALUES (?, ?, ?, ?)"
        self._run(sql, checkpoint, signature, seq, changed)

    def safe_seq(self, checkpoint: str) -> int | None:
        """The commit that holds the local revision of a checkpoint, if it was ever committed."""
        rows = self._run("SELECT seq FROM safe WHERE checkpoint = ?", checkpoint)
        return int(rows[0][0]) if rows else None

    def safe(self) -> list[tuple[str, int]]:
        """Every checkpoint of this disk that was committed, with the number of its commit."""
        return [(path, int(seq)) for path, seq in self._run("SELECT checkpoint, seq FROM safe")]

    def forget_safe(self, checkpoint: str) -> None:
        """Look at this checkpoint afresh."""
        self._run("DELETE FROM safe WHERE checkpoint = ?", checkpoint)

    def digest(self, path: str, stat: str) -> str | None:
        """SHA-256 of a file whose stat is still what it was when it was read."""
        rows = self._run("SELECT sha256 FROM digests WHERE path = ? AND stat = ?", path, stat)
        return rows[0][0] if rows else None

    def add_digests(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """Remember digests: rows of path, stat and SHA-256."""
        with self.transaction():
            self._db.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", rows)

    def add_sent(self, sent: Sent) -> None:
        """Remember an object that is whole in the store, though no commit names it yet."""
        row = (sent.key, sent.path, sent.stat, sent.sha256, sent.version)
        with self.transaction():
            self._run("INSERT OR REPLACE INTO sent VALUES (?, ?, ?, ?, ?)", *row)
            self.end_uploads_to(sent.key, sent.version)

    def add_all_sent(self, several: Iterable[Sent]) -> None:
        """The same for several, at once."""
        rows = [(s.key, s.path, s.stat, s.sha256, s.version) for s in several]
        with self.transaction():
            self._db.executemany("INSERT OR REPLACE INTO sent VALUES (?, ?, ?, ?, ?)", rows)

    def find_sent(self, path: str, stat: str) -> Sent | None:
        """An object that holds this revision of a file already."""
        rows = self._run("SELECT * FROM sent WHERE path = ? AND stat = ?", path, stat)
        return Sent(*rows[0]) if rows else None

    def all_sent(self) -> list[Sent]:
        """Everything that was sent and that no commit names."""
        return [Sent(*row) for row in self._run("SELECT * FROM sent")]

    def drop_sent(self, key: str) -> None:
        """The object is not what it was."""
        self._run("DELETE FROM sent WHERE key = ?", key)

    # -- the same for many files at once

    def digests_of(self, paths: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Stat and SHA-256 of files, as far as they are known."""
        rows = self._each("SELECT path, stat, sha256 FROM digests WHERE path IN", paths)
        return {path: (stat, sha256) for path, stat, sha256 in rows}

    def sent_of(self, paths: Sequence[str]) -> dict[tuple[str, str], Sent]:
        """Objects that hold these files already, by path and stat."""
        found = (Sent(*row) for row in self._each("SELECT * FROM sent WHERE path IN", paths))
        return {(sent.path, sent.stat): sent for sent in found}

    def named_of(self, keys: Sequence[str]) -> set[str]:
        """Which of these objects a commit names."""
        return {key for (key,) in self._each("SELECT key FROM objects WHERE key IN", keys)}

    def _each(self, sql: str, values: Sequence[str]) -> Iterator[tuple[str, ...]]:
        for start in range(0, len(values), _TOGETHER):
            some = values[start : start + _TOGETHER]
            yield from self._run(f"{sql} ({','.join('?' * len(some))})", *some)

    # -- plain keys that wait for their refresh, and logs

    def add_stale(self, record: CommitRecord, stale: Iterable[tuple[str, str]]) -> None:
        """Plain keys that are behind a commit: rows of key and source ("" for: to be deleted)."""
        with self.transaction():
            for key, source in stale:
                self._run("INSERT OR REPLACE INTO stale VALUES (?, ?, ?)", key, source, record.seq)

    def stale(self) -> list[tuple[str, str, int]]:
        """Rows of plain key, the key to copy from, and the commit it belongs to."""
        return [(key, source, int(seq)) for key, source, seq in self._run("SELECT * FROM stale")]

    def refreshed(self, key: str) -> None:
        """A plain key holds the newest content again."""
        self._run("DELETE FROM stale WHERE key = ?", key)

    def logs(self) -> dict[str, LogSent]:
        """What is known of the objects of the logs, by the path of the file."""
        rows = self._run("SELECT * FROM log_objects")
        return {
            path: LogSent(path, key, int(size), mark, version, int(edge), bool(int(grew)), *rest)
            for path, key, size, mark, version, edge, grew, *rest in rows
        }

    def mark_log(self, log: LogSent) -> None:
        """An object of a log was written, or is about to be."""
        values = astuple(log)
        marks = ", ".join("?" * len(values))
        self._run(f"INSERT OR REPLACE INTO log_objects VALUES ({marks})", *values)  # noqa: S608


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
