"""The commit record and the layout of the bucket: what docs/format.md freezes.

A record comes back from a bucket that others can write to, so reading one trusts nothing: a path
that leaves the checkpoint, a key outside the prefix or a size that is no number is Corrupt.
"""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from syncd.errors import Corrupt, Locked
from syncd.pathrules import SUFFIXES, is_ours, link_stays_inside, member, safe_path
from syncd.sealing import OTHER_KEY, sealed_with

FORMAT, ENCODED = 1, 2
"""A record is of the second format where a file of it is encoded: an older reader refuses it."""

_KEPT = "kept-"

UNREADABLE = "unreadable"
"""Writer of the stand-in for a record that cannot be read."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint: ``path`` below the checkpoint ("" for a lone file)."""

    path: str
    key: str
    size: int
    sha256: str
    mode: int
    mtime_ns: int
    encoding: str = ""
    """How the object holds the content, of which ``size`` and ``sha256`` are; "": as it is."""
    stored: int = 0
    """Bytes of the object, where it is encoded."""

    @property
    def at_rest(self) -> int:
        """Bytes of the object."""
        return self.stored if self.encoding else self.size


@dataclass(frozen=True)
class LinkEntry:
    """One symbolic link, kept as a link: ``path`` below the checkpoint ("" for a lone link)."""

    path: str
    target: str


@dataclass(frozen=True)
class CommitRecord:
    """One commit: every file of one checkpoint. ``checkpoint`` is its path under the root.

    A record without a checkpoint is a claim: a new writer that takes over a log begun by
    another one writes it first, so that the other learns that it is fenced. Readers skip it.
    """

    seq: int
    checkpoint: str
    writer: str
    committed_at: str
    profile: str
    files: tuple[FileEntry, ...] = ()
    links: tuple[LinkEntry, ...] = ()
    behind: int = 0
    """Number of the commit that this one is older than, though it was made later; 0: none.

    A backlog is sent newest first. What follows must not pass for the recovery point, not even
    for the moment between two requests.
    """

    beside: bool = False
    """Whether its files, ``checkpoint`` among them, are named relative to the folder of that."""

    def below(self, path: str) -> str:
        """A member's path under the root."""
        return member(self.checkpoint, path, self.beside)

    after: int | None = None
    """The highest number that its writer knew, where writers cannot be fenced; else None."""

    since: int | None = None
    """In a claim: all numbers from this one on to its own were pruned, by who has the key."""

    ranks: tuple[int, ...] = ()
    """How many of ``files`` each machine sent, in this order, where there are several."""

    @property
    def rank(self) -> tuple[int, bool, int, int]:
        """Sorts commits by the age of what they hold: the greatest is the recovery point."""
        written = max((entry.mtime_ns for entry in self.files), default=0)
        return self.behind or self.seq, not self.behind, written, self.seq

    @property
    def is_claim(self) -> bool:
        """Whether this only marks a change of writer."""
        return not self.checkpoint

    @property
    def moment(self) -> datetime.datetime:
        """When it was committed, by the writer's clock; ValueError if that cannot be read."""
        return datetime.datetime.fromisoformat(self.committed_at.replace("Z", "+00:00"))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)

    def to_json(self) -> bytes:
        """The record as stored, stable byte for byte."""
        encoded = any(entry.encoding for entry in self.files)
        document: dict[str, Any] = {
            "format": ENCODED if encoded else FORMAT,
            "seq": self.seq,
            "checkpoint": self.checkpoint,
            "writer": self.writer,
            "committed_at": self.committed_at,
            "profile": self.profile,
            "files": [],
            "links": [vars(entry) for entry in self.links],
        }
        if self.behind:
            document["behind"] = self.behind
        if self.after is not None:
            document["after"] = self.after
        if self.since is not None:
            document["since"] = self.since
        document |= {"beside": True} if self.beside else {}
        document |= {"ranks": list(self.ranks)} if self.ranks else {}
        text = json.dumps(document, indent=1, ensure_ascii=False)
        if self.files:  # the encoder that indents is not written in C: one call for each string
            files = ",".join(_indented(entry) for entry in self.files)
            text = text.replace('"files": []', f'"files": [{files}\n ]', 1)
        return (text + "\n").encode()


def _indented(entry: FileEntry) -> str:
    path, key, sha256 = (_quoted(text) for text in (entry.path, entry.key, entry.sha256))
    how = f',\n   "encoding": "{entry.encoding}",\n   "stored": {entry.stored}'
    return (
        f'\n  {{\n   "path": {path},\n   "key": {key},\n   "size": {entry.size},\n'
        f'   "sha256": {sha256},\n   "mode": {entry.mode},\n   "mtime_ns": {entry.mtime_ns}'
        f"{how if entry.encoding else ''}\n  }}"
    )


_quoted = json.JSONEncoder(ensure_ascii=False).encode


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise Corrupt(f"commit record: {what} is not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Corrupt(f"commit record: {what} {value!r} is not valid Unicode") from None
    return value


def _whole(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise Corrupt(f"commit record: {what} is not a whole number")
    return value


def _flag(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise Corrupt(f"commit record: {what} is neither true nor false")
    return value


def parse_record(data: bytes, seq: int, prefix: str) -> CommitRecord:
    """A record from its JSON; Corrupt, with the reason, for anything that cannot be trusted."""
    try:
        document = json.loads(data)
        if "sealed" in document and (sealed := sealed_with(data)):
            raise Locked(f"commit {seq} is encrypted with key {sealed[0]}", hint=OTHER_KEY)
        encoded = any(item.get("encoding") for item in document["files"])
        if document["format"] != (ENCODED if encoded else FORMAT):
            raise Corrupt(
                f"commit {seq} has format {document['format']!r}",
                hint="a newer syncd wrote it: update this one",
            )
        files = tuple(_parse_file(item, prefix) for item in document["files"])
        links = tuple(
            LinkEntry(_text(item["path"], "path"), _text(item["target"], "target"))
            for item in document["links"]
        )
        record = CommitRecord(
            seq=_whole(document["seq"], "seq"),
            checkpoint=_text(document["checkpoint"], "checkpoint"),
            writer=_text(document["writer"], "writer"),
            committed_at=_text(document["committed_at"], "committed_at"),
            profile=_text(document["profile"], "profile"),
            files=files,
            links=links,
            behind=_whole(document.get("behind", 0), "behind"),
            after=_whole(document["after"], "after") if "after" in document else None,
            since=_whole(document["since"], "since") if "since" in document else None,
            beside=_flag(document.get("beside", False), "beside"),
            ranks=tuple(_whole(count, "ranks") for count in document.get("ranks", ())),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Corrupt(f"commit {seq} is not a commit record ({error!r})") from None
    check_record(record, seq)
    return record


def _parse_file(item: dict[str, Any], prefix: str) -> FileEntry:
    entry = FileEntry(
        path=_text(item["path"], "path"),
        key=_text(item["key"], "key"),
        size=_whole(item["size"], "size"),
        sha256=_text(item["sha256"], "sha256"),
        mode=_whole(item["mode"], "mode") & 0o777,
        mtime_ns=_whole(item["mtime_ns"], "mtime_ns"),
        encoding=_text(item.get("encoding", ""), "encoding"),
        stored=_whole(item.get("stored", 0), "stored"),
    )
    if entry.encoding not in SUFFIXES:
        raise Corrupt(
            f"commit record: {entry.path!r} is encoded by {entry.encoding!r}",
            hint="a newer syncd wrote it: update this one",
        )
    if not _SHA256.fullmatch(entry.sha256):
        raise Corrupt(f"commit record: {entry.path!r} has no SHA-256")
    if not entry.key.startswith(f"{prefix}/") or not safe_path(entry.key):
        raise Corrupt(f"commit record: key {entry.key!r} is outside the prefix {prefix!r}")
    return entry


def check_record(record: CommitRecord, seq: int) -> None:
    """Corrupt for a record that no reader may trust, and so no writer may write."""
    try:
        record.moment.timestamp()
    except (ValueError, OverflowError):
        raise Corrupt(f"commit {seq}: {record.committed_at!r} is no time") from None
    if record.seq != seq:
        raise Corrupt(f"commit {seq} says that it is {record.seq}")
    if record.ranks and sum(record.ranks) != len(record.files):
        raise Corrupt(f"commit {seq} does not say which machine sent which file")
    if record.after is not None and record.after >= seq:
        raise Corrupt(f"commit {seq} says that it comes after {record.after}, which came later")
    if record.behind >= seq:
        raise Corrupt(f"commit {seq} says that it is behind {record.behind}, which came later")
    if record.since is not None and not (record.is_claim and 0 < record.since <= seq):
        raise Corrupt(f"commit {seq} says that {record.since} and what follows was pruned")
    if record.is_claim:
        if record.files or record.links:
            raise Corrupt(f"commit {seq} has files but no checkpoint")
        return
    _check_paths(record, seq)


def _check_paths(record: CommitRecord, seq: int) -> None:
    """Corrupt unless every path stays where it belongs."""
    if not safe_path(record.checkpoint) or is_ours(record.checkpoint):
        raise Corrupt(f"commit {seq}: path {record.checkpoint!r} leaves the root")
    paths = [entry.path for entry in record.files] + [link.path for link in record.links]
    if not paths:
        raise Corrupt(f"commit {seq} names no file")
    lone = paths == [""] and not record.beside
    if record.beside and (
        record.links
        or any("/" in path or is_ours(path) for path in paths)
        or record.checkpoint.rpartition("/")[2] not in paths
    ):
        raise Corrupt(f"commit {seq} is no set of files that lie beside each other")
    for path in paths:
        if not lone and not safe_path(path):
            raise Corrupt(f"commit {seq}: path {path!r} leaves the checkpoint")
    if len(set(paths)) != len(paths):
        raise Corrupt(f"commit {seq} names a path twice")
    taken = set(paths)
    folders = {path.rpartition("/")[0] for path in paths} - {""}
    if any(str(p) in taken for folder in folders for p in (folder, *PurePosixPath(folder).parents)):
        raise Corrupt(f"commit {seq}: a path leads through a link or a file")
    for link in record.links:
        if not link_stays_inside(link.path or record.checkpoint, link.target):
            raise Corrupt(f"commit {seq}: link {link.path!r} leaves the checkpoint")


@dataclass(frozen=True)
class Layout:
    """Where things lie in the bucket, below the prefix."""

    prefix: str

    @property
    def commits(self) -> str:
        """Prefix of the commit log."""
        return f"{self.prefix}/.syncd/commits/"

    @property
    def versions(self) -> str:
        """Prefix of content that must not overwrite what a commit names."""
        return f"{self.prefix}/.syncd/versions/"

    @property
    def pruning(self) -> str:
        """Prefix of records whose objects are being deleted; empty but for a crash."""
        return f"{self.prefix}/.syncd/pruning/"

    @property
    def began(self) -> str:
        """Key of the mark of the first daemon: what came to plain keys after it needs a commit."""
        return f"{self.prefix}/.syncd/began"

    @property
    def probe(self) -> str:
        """Prefix of the objects by which a store is tried; empty but for a crash."""
        return f"{self.prefix}/.syncd/probe/"

    @property
    def writers(self) -> str:
        """Prefix of the marks that writers leave where they cannot be fenced."""
        return f"{self.prefix}/.syncd/writers/"

    @property
    def checkpoints(self) -> str:
        """Prefix of the checkpoints under their own names."""
        return f"{self.prefix}/checkpoints/"

    @property
    def logs(self) -> str:
        """Prefix of the logs under their own names."""
        return f"{self.prefix}/logs/"

    @property
    def pieces(self) -> str:
        """Prefix of what is on its way to the end of a log; empty but for a crash."""
        return f"{self.prefix}/.syncd/pieces/"

    def commit(self, seq: int) -> str:
        """Key of one commit record."""
        return f"{self.commits}{seq:020d}.json"

    def plain(self, path: str, encoding: str = "") -> str:
        """Key of a checkpoint's file, by its path under the root: its own name.

        Of a compressed one with the end that tools know it by.
        """
        return self.checkpoints + path + SUFFIXES[encoding]

    def plain_of(self, record: CommitRecord, entry: FileEntry) -> str:
        """The plain key of a file of a commit."""
        return self.plain(record.below(entry.path), entry.encoding)

    def version(self, seq: int, path: str, writer: str = "") -> str:
        """Key for content of commit ``seq`` that cannot lie at its plain key.

        A writer adds its id: two writers may prepare the same ``seq``, and the one that loses
        must not have touched the winner's objects.
        """
        folder = f"{seq:020d}-{writer}" if writer else f"{seq:020d}"
        return f"{self.versions}{folder}/{path}"

    def kept(self, seq: int, path: str, token: str) -> str:
        """Key for what commit ``seq`` names at a plain key that is about to get other content.

        ``path`` is the plain key's own, under the checkpoints. No two attempts share a key: one
        that slept in the middle must not replace what another has saved in the meantime.
        """
        return f"{self.versions}{seq:020d}-{_KEPT}{token}/{path}"

    def writer_of(self, key: str) -> str:
        """Id of the writer that a key under ``versions`` was made for; "" where none is named."""
        if not key.startswith(self.versions):
            return ""
        return key.removeprefix(self.versions)[21:].partition("/")[0].partition(".")[0]

    def beside(self, seq: int) -> str:
        """Prefix of all that lies under the number of a commit."""
        return f"{self.versions}{seq:020d}"

    def kept_for(self, key: str) -> tuple[int, str] | None:
        """The commit a key keeps content for, and the path it keeps; None for other keys."""
        folder, _, path = key.removeprefix(self.versions).partition("/")
        match = re.fullmatch(rf"(\d{{20}})(-{_KEPT}.*)?", folder)
        return (int(match[1]), path) if match else None

    def pruned(self, seq: int) -> str:
        """Key of a record whose objects are being deleted."""
        return f"{self.pruning}{seq:020d}.json"

    def seq_of(self, key: str) -> int | None:
        """The number in the key of a commit record; None for any other key."""
        match = re.fullmatch(r"(\d{20})\.json", key.removeprefix(self.commits))
        return int(match[1]) if match else None
