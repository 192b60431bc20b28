"""The Python face, under the names that its first users know.

For scripts that move files by hand. A training loop needs none of it (the daemon does that work)
and is safe with it all the same: every method answers with a bool or a count, warns on failure
and never raises.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import TypeVar

from syncd.clock import SystemClock
from syncd.config import Environment, Settings, encrypt_key_in, load_settings
from syncd.errors import SettingsError, SyncdError
from syncd.filestat import Stat
from syncd.opening import open_resilient
from syncd.pace import RateLimit
from syncd.pathrules import safe_path
from syncd.scan import files_below
from syncd.stores.base import ObjectStore
from syncd.transfer import Transfer

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_PATIENCE = 300.0
"""Seconds without progress after which a call gives up."""


class CloudSync:
    """Files and directories to a bucket and back. ``provider`` and ``bucket_name`` are as given."""

    def __init__(
        self,
        provider: str = "local",
        bucket_name: str | None = None,
        project_name: str = "eigen2",
        *,
        patience: float = _PATIENCE,
    ) -> None:
        """``patience``: seconds without progress after which a call gives up."""
        self.provider = provider
        self.bucket_name = bucket_name
        self.project_name = project_name.strip("/")
        self._patience = patience
        self._background: list[Future[bool]] = []
        self._lock = threading.Lock()

    # -- one file

    def upload_file(
        self, local_path: str | Path, cloud_path: str | None = None, background: bool = False
    ) -> bool:
        """Upload one file; ``cloud_path`` is its whole key. True once it is there, whole.

        In the background: True once it is under way; ``wait_for_uploads`` tells the outcome.
        """
        path = Path(local_path)
        key = cloud_path or f"{self.project_name}/{path.as_posix()}"

        def work() -> bool:
            return self._with_store(False, lambda store: self._upload(store, [(path, key)]) == 1)

        return self._run(work, background)

    def download_file(self, cloud_path: str, local_path: str | Path) -> bool:
        """Download one object. True once it is there; until then the old file stays as it is."""

        def work(transfer: Transfer) -> bool:
            _download(transfer.store, cloud_path, Path(local_path))
            return True

        return self._with_store(False, work)

    # -- directories

    def upload_directory(
        self,
        local_dir: str | Path,
        cloud_prefix: str | None = None,
        background: bool = False,
        exclude_patterns: Iterable[str] = (),
    ) -> int:
        """Upload every file below a directory; the number of files that are there afterwards.

        ``exclude_patterns`` are globs. In the background: the number of files under way.
        """
        folder = Path(local_dir)
        prefix = (cloud_prefix or f"{self.project_name}/{folder.as_posix()}").strip("/")
        files = [
            (folder / path, f"{prefix}/{path}")
            for path in _files(folder, tuple(exclude_patterns or ()))
        ]
        if not files:
            log.warning("nothing to upload in %s", folder)
            return 0

        def work() -> int:
            return self._with_store(0, lambda store: self._upload(store, files))

        if background:
            self._run(lambda: work() == len(files), background=True)
            return len(files)
        return work()

    def download_directory(self, cloud_prefix: str, local_dir: str | Path) -> int:
        """Download everything below a prefix; the number of files that arrived.

        ``run1`` is not ``run10``: the prefix is taken as a directory.
        """
        prefix = cloud_prefix.strip("/") + "/"

        def work(transfer: Transfer) -> int:
            count = 0
            for info in transfer.store.list(prefix):
                path = info.key.removeprefix(prefix)
                if not safe_path(path) or info.key.startswith(f"{self.project_name}/.syncd/"):
                    continue
                try:
                    _download(transfer.store, info.key, Path(local_dir) / path)
                    count += 1
                except (SyncdError, OSError) as error:
                    log.warning("%s was not downloaded: %s", info.key, error)
            return count

        return self._with_store(0, work)

    # -- the two roots

    def sync_checkpoints(
        self,
        checkpoint_dir: str | Path = "checkpoints",
        background: bool = False,
        exclude_patterns: Iterable[str] = (),
    ) -> int:
        """Upload a checkpoint directory to where the daemon's ``aws s3 sync`` copy lies."""
        prefix = f"{self.project_name}/checkpoints"
        return self.upload_directory(checkpoint_dir, prefix, background, exclude_patterns)

    def download_checkpoints(self, checkpoint_dir: str | Path = "checkpoints") -> int:
        """Download all checkpoints as they are; ``python -m syncd restore`` proves them too."""
        return self.download_directory(f"{self.project_name}/checkpoints", checkpoint_dir)

    def sync_logs(self, log_dir: str | Path = "logs", background: bool = False) -> int:
        """Upload a log directory."""
        return self.upload_directory(log_dir, f"{self.project_name}/logs", background)

    # -- work in the background

    def wait_for_uploads(self, timeout: float | None = None) -> bool:
        """Wait for the work in the background; True if all of it has succeeded in time."""
        clock = SystemClock()
        until = None if timeout is None else clock.monotonic() + timeout
        with self._lock:
            jobs, self._background = self._background, []
        good = True
        for job in jobs:
            try:
                left = None if until is None else max(0.0, until - clock.monotonic())
                good &= job.result(left)
            except FutureTimeout:
                good = False
        return good

    def get_upload_status(self) -> tuple[int, int, int]:
        """Work in the background: how many are pending, completed and failed."""
        with self._lock:
            done = [job for job in self._background if job.done()]
            completed = sum(job.result() for job in done)
            return len(self._background) - len(done), completed, len(done) - completed

    def _run(self, work: Callable[[], bool], background: bool) -> bool:
        if not background:
            return work()
        future: Future[bool] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001 - nothing may reach the training loop
                log.warning("upload in the background failed: %s", error)
                future.set_result(False)

        with self._lock:
            self._background.append(future)
        # a daemon thread: it can never keep the training process from ending
        threading.Thread(target=run, name="cloudsync", daemon=True).start()
        return True

    # -- the store

    def _settings(self) -> Settings:
        if self.provider not in ("s3", "gcs", "azure", "local"):
            raise SettingsError([f"unknown provider {self.provider!r}"])
        environ = Environment().read()
        return Settings(
            cloud_provider=self.provider,
            cloud_bucket=self.bucket_name or "",
            cloud_prefix=self.project_name,
            encrypt_key=encrypt_key_in(environ),
            environ=environ,
        )

    def _with_store(self, failure: _T, work: Callable[[Transfer], _T]) -> _T:
        """Do ``work`` with the store open; ``failure`` and a warning instead of any error."""
        clock, abort = SystemClock(), threading.Event()
        progress = [clock.monotonic()]

        def advance(_key: str, _count: int) -> None:
            progress[0] = clock.monotonic()

        try:
            settings = self._settings()
            if not settings.copies:
                return failure
            store = open_resilient(settings, clock, abort, lambda: progress[0] + self._patience)
            transfer = Transfer(store, settings.concurrency, RateLimit(None, clock, abort), advance)
            try:
                return work(transfer)
            finally:
                transfer.close()
                store.close()
        except SyncdError as error:
            log.warning("cloud sync failed: %s", error.explain())
        except Exception as error:  # noqa: BLE001 - nothing may reach the training loop
            log.warning("cloud sync failed: %s: %s", type(error).__name__, error)
        return failure

    @staticmethod
    def _upload(transfer: Transfer, files: list[tuple[Path, str]]) -> int:
        def send(item: tuple[Path, str]) -> bool:
            path, key = item
            try:
                transfer.send(path, key, Stat.of(path.stat()))
            except (SyncdError, OSError) as error:
                log.warning("%s was not uploaded: %s", path, error)
                return False
            return True

        return sum(transfer.files.map(send, files))


def _files(folder: Path, exclude: tuple[str, ...]) -> Iterator[str]:
    for path, _ in files_below(folder):
        name = path.rpartition("/")[2]
        if not any(
            fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(path, glob) for glob in exclude
        ):
            yield path


def _download(store: ObjectStore, key: str, path: Path) -> None:
    info = store.head(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with fresh.open("wb") as file:
            for chunk in store.read(key, version=info.version):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if fresh.stat().st_size != info.size:
            raise SyncdError(f"{key} arrived with {fresh.stat().st_size} of {info.size} bytes")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def get_cloud_sync_from_env() -> CloudSync:
    """A CloudSync by CLOUD_PROVIDER, CLOUD_BUCKET and CLOUD_PREFIX."""
    try:
        settings = load_settings()
    except SettingsError as error:
        log.warning("cloud sync is off: %s", "; ".join(error.faults))
        return CloudSync()
    return CloudSync(settings.cloud_provider, settings.cloud_bucket or None, settings.cloud_prefix)
