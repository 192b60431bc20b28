"""A data file in whichever form, which is found by its name and its header.

`warm` reads it in a process of its own, which leaves the numbers in the cache: Arrow and what it
works with are a hundred megabytes that training would otherwise carry to its end. So this module
and all it imports do without torch.
"""

from __future__ import annotations

import contextlib
import csv
import os
import subprocess
import sys
from pathlib import Path

from trainer import cache, wide_reader
from trainer.csv_reader import read_csv
from trainer.signals import STOP
from trainer.table import Table


def read(path: Path) -> Table:
    """A data file, long or wide, CSV or Parquet; BadData says where it is bad."""
    from trainer import arrow_reader

    if path.suffix.lower() in (".parquet", ".pq"):
        header = arrow_reader.parquet_header(path)
        if wide_reader.is_wide(header):
            return wide_reader.read_wide_parquet(path, header)
        return arrow_reader.long_parquet(path, header)
    quick = arrow_reader.long_csv(path)
    if quick is not None:
        return quick
    with contextlib.suppress(OSError, UnicodeDecodeError, csv.Error):
        if wide_reader.is_wide(arrow_reader.csv_header(path)):
            return wide_reader.read_wide_csv(path)
    return read_csv(path)


def warm(path: Path) -> None:
    """See that the cache has this file's numbers; where it fails, who needs them reads the file.

    BadData when the file cannot be read at all, Interrupted after a signal.
    """
    if cache.find(path, cache.content_hash(path)) is not None:
        return
    home = str(Path(__file__).resolve().parents[1])
    places = [home, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    child = subprocess.Popen(
        [sys.executable, "-m", "trainer.reading", str(path)], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))},
    )  # fmt: skip
    try:
        while child.poll() is None:
            STOP.check()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(0.1)
    finally:
        child.kill()
        child.wait()


if __name__ == "__main__":
    cache.prepared(Path(sys.argv[1]), read)
