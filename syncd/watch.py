"""Events that make syncd quick: hints where to look, never the truth.

Events are lost on overflow and absent on network file systems, so a scan runs at an interval
whatever the events say. The scan itself places the watches: each folder is watched before it is
listed, so nothing that comes after the listing is missed. What is lost all the same is known to
be lost, and then the next scan looks at everything.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
from dataclasses import dataclass, field
from pathlib import Path

from inotify_simple import INotify, flags

from syncd.mounts import events_are_local_only
from syncd.scan import file_not_yet

log = logging.getLogger(__name__)

_MASK = (
    flags.CREATE | flags.CLOSE_WRITE | flags.MOVED_FROM | flags.MOVED_TO | flags.DELETE
    | flags.ATTRIB | flags.DELETE_SELF | flags.MOVE_SELF
    | flags.ONLYDIR | flags.DONT_FOLLOW | flags.EXCL_UNLINK
)  # fmt: skip
"""What can mean something. Not each write: a file that is open for writing is not complete."""

_MOST = 16_384
"""Watches at most: each costs memory here and in the kernel, and a user has a limited number."""

_SWARM_MS = 20
"""Events come in swarms: what comes within so many milliseconds is read at once."""

_MOST_CHANGES = 4096
"""More changed folders than this, and looking at everything is the simpler way."""

_RETRY = 60.0
"""Seconds after which a watch that could not be had is asked for again."""


@dataclass
class Changes:
    """What the events told since they were last asked; paths are relative to the root."""

    everything: bool = False
    """Some were lost, or the root is another one: nothing is known."""

    another: bool = False
    """The root is another folder than the one that was watched before, or the first.

    What it takes to look at it is not known either, and nothing below it is watched.
    """

    files_in: set[str] = field(default_factory=set)
    """Folders of which files came, went or changed."""

    folders: set[str] = field(default_factory=set)
    """Folders that came, went or changed as such."""

    def __bool__(self) -> bool:
        return self.everything or bool(self.files_in or self.folders)


class Watcher:
    """Watches folders below one root and sets ``wake`` when something changes there.

    ``most`` watches are placed; those of folders that hold checkpoints come before those of
    folders inside a checkpoint, and recently changed ones before old ones.
    """

    def __init__(self, root: Path, wake: threading.Event, most: int = _MOST) -> None:
        self._root = root
        self._wake = wake
        self._most = self._wanted = most
        self._lock = threading.Lock()
        self._changes = Changes()
        self._key: tuple[int, int] | None = None
        self._before: tuple[int, int] | None = None
        self._asked = 0.0
        self._reader: _Reader | None = None
        self._told = ""
        self._limited = ""
        self._failed = ""
        self._network = ""

    # -- the life of the watch

    @property
    def problem(self) -> str:
        """Why events do not tell everything; "" while they do."""
        return self._failed or self._limited or self._network

    def ensure(self, now: float) -> None:
        """Watch the root if it is there and is not watched yet, or is another one by now.

        ``now`` is the time on the monotonic clock. This is quick; the watches below the root
        are placed by the scan that follows.
        """
        try:
            found = self._root.stat()
        except OSError:
            if self._key is not None:
                self.close()
                self._lost("the root is gone")
            return
        key = (found.st_dev, found.st_ino)
        reader = self._reader
        if key == self._key and reader and reader.works:
            return
        if key == self._key and not reader and now < self._asked + _RETRY:
            return  # watching was tried here, in vain: the scans go on
        if reader and reader.fault:
            log.warning("the watch of %s failed (%s): starting it again", self._root, reader.fault)
        self.close()
        self._key, self._asked = key, now
        self._network = events_are_local_only(self._root)
        self._failed = self._limited = ""
        try:
            self._reader = _Reader(self)
        except OSError as error:
            words = error.strerror or str(error)
            self._failed = f"no events for {self._root} ({words}): scanning only"
        else:
            self.before_listing("")
            self._reader.keep("")
        self._tell()
        another, self._before = self._before != key, key
        self._lost("the watch is new", another)  # what came before it stood is found by a scan

    def _tell(self) -> None:
        if self.problem and self.problem != self._told:
            log.warning("%s", self.problem)
        self._told = self.problem

    def close(self) -> None:
        """Stop watching."""
        reader, self._reader = self._reader, None
        self._key = None
        if reader:
            reader.stop()

    # -- what has changed

    def take(self) -> Changes:
        """What has changed since this was last asked."""
        with self._lock:
            taken, self._changes = self._changes, Changes()
        return taken

    def changed(self, path: str, is_folder: bool) -> None:
        """A folder came, went or changed, or a file in it did."""
        with self._lock:
            kind = self._changes.folders if is_folder else self._changes.files_in
            kind.add(path)
            if len(kind) > _MOST_CHANGES:
                self._changes = Changes(everything=True, another=self._changes.another)
        self._wake.set()

    def _lost(self, why: str, another: bool = False) -> None:
        log.debug("%s: looking at everything below %s", why, self._root)
        with self._lock:
            another |= self._changes.another
            self._changes = Changes(everything=True, another=another)
        self._wake.set()

    def overflow(self) -> None:
        """The kernel dropped events."""
        self._lost("events were lost")

    # -- where watches are placed, by the scan

    def before_listing(self, path: str, often: bool = True) -> None:
        """A folder is about to be listed; ``often`` where changes are to be expected in it."""
        reader = self._reader
        if reader:
            self._place(reader, path, self._most if often else self._most // 2)

    def holds_checkpoints(self, path: str) -> None:
        """A folder that was listed is no checkpoint but holds some: new ones appear there."""
        reader = self._reader
        if reader is None or reader.keep(path):
            return
        for _ in range(2):  # the first time shows perhaps how many there can be
            self._place(reader, path, self._most)
            if reader.keep(path):
                self.changed(path, is_folder=False)  # between the listing and the watch
                return
        if not self._limited:
            self._limit("there are too many")

    def begin_full(self) -> None:
        """A scan of everything begins: whether watches are lacking is seen afresh."""
        self._limited = ""
        self._most = self._wanted
        if self._reader:
            self._reader.begin()

    def end_full(self) -> None:
        """A scan of everything is over: watches of folders that it did not see are given back."""
        if self._reader:
            self._reader.sweep()
        self._tell()

    def _place(self, reader: _Reader, path: str, most: int) -> None:
        if (
            not reader.has(path)
            and reader.placed >= most
            and not reader.make_room(most, self._most)
        ):
            return
        try:
            reader.add(path, f"{self._root}/{path}")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                self._most = max(1, reader.placed)
                self._limit("the system's limit, fs.inotify.max_user_watches, is reached")

    def _limit(self, why: str) -> None:
        self._limited = f"not every folder of {self._root} is watched ({why}): scanning as well"
        self._tell()


class _Reader:
    """One inotify instance, its watches, and the thread that reads its events."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._notify = INotify(nonblocking=True)
        self._end, self._stop = os.pipe()
        self._lock = threading.Lock()
        self._paths: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        self._spare: dict[str, None] = {}
        self._unseen: set[int] = set()
        self._gone = False
        self.fault = ""
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    @property
    def works(self) -> bool:
        """Whether events are read and the root is still the one that is watched."""
        return self._thread.is_alive() and not self._gone

    def stop(self) -> None:
        """End the thread and give all watches back."""
        os.close(self._stop)
        self._thread.join()
        os.close(self._end)
        self._notify.close()

    # -- watches

    @property
    def placed(self) -> int:
        """How many folders are watched."""
        return len(self._numbers)

    def has(self, path: str) -> bool:
        """Whether a folder of this path is watched."""
        return path in self._numbers

    def add(self, path: str, full: str) -> None:
        """Watch a folder, or the one that has taken its place; OSError if it cannot be."""
        with self._lock:
            number = self._notify.add_watch(full, _MASK)
            before = self._paths.get(number)
            if before is not None and before != path:  # it was moved here
                self._forget(number, before)
            fresh = path not in self._numbers
            self._paths[number] = path
            self._numbers[path] = number
            if fresh:
                self._spare[path] = None
            self._unseen.discard(number)

    def keep(self, path: str) -> bool:
        """Do not give up this watch for another; False if the folder is not watched."""
        self._spare.pop(path, None)
        return path in self._numbers

    def make_room(self, most: int, limit: int) -> bool:
        """Give the oldest watch back that can be spared, if that helps."""
        if most < limit or not self._spare:
            return False
        with self._lock:
            path = next(iter(self._spare))
            self._drop(self._numbers[path], path)
        return True

    def _drop(self, number: int, path: str) -> None:
        del self._paths[number]
        self._unseen.discard(number)
        self._forget(number, path)
        try:
            self._notify.rm_watch(number)
        except OSError as error:
            log.debug("watch %d of %s went by itself: %s", number, path, error)

    def _forget(self, number: int, path: str) -> None:
        """This is not the watch of ``path`` any more; that of a folder made there since stays."""
        if self._numbers.get(path) == number:
            del self._numbers[path]
            self._spare.pop(path, None)

    def begin(self) -> None:
        """From now on it is noted which watches are asked for again."""
        self._unseen = set(self._paths)

    def sweep(self) -> None:
        """Give back the watches that were not asked for since ``begin``."""
        with self._lock:
            for number in list(self._unseen):
                path = self._paths.get(number)
                if path:
                    self._drop(number, path)

    # -- events

    def _run(self) -> None:
        try:
            poll = select.poll()
            poll.register(self._notify.fileno(), select.POLLIN)
            poll.register(self._end, select.POLLIN | select.POLLHUP)
            while all(fd != self._end for fd, _ in poll.poll()):
                select.select([self._end], [], [], _SWARM_MS / 1000)
                for number, mask, _, name in self._notify.read(timeout=0):
                    self._tell(number, mask, name)
        except Exception as error:  # noqa: BLE001 - whatever it is: started again by ensure()
            self.fault = f"{type(error).__name__}: {error}"
            self._watcher.overflow()

    def _tell(self, number: int, mask: int, name: str) -> None:
        if mask & flags.Q_OVERFLOW:
            self._watcher.overflow()
            return
        path = self._paths.get(number)
        if path is None:
            return
        if mask & (flags.IGNORED | flags.UNMOUNT):
            with self._lock:
                self._paths.pop(number, None)
                self._forget(number, path)
            self._gone |= not path
        if not path and mask & (flags.IGNORED | flags.UNMOUNT | flags.MOVE_SELF):
            self._watcher.overflow()
        elif name and not mask & flags.ISDIR:
            if not file_not_yet(name):
                self._watcher.changed(path, is_folder=False)
        elif path or name:
            self._watcher.changed("/".join(p for p in (path, name) if p), is_folder=True)
