"""What kind of file system a folder is on: over a network, events do not tell everything."""

from __future__ import annotations

import re
from pathlib import Path

_NETWORK = re.compile(
    r"nfs\d*|cifs|smb\d*|smbfs|9p|virtiofs|ceph|lustre|gpfs|beegfs\w*|glusterfs|afs|ocfs2|gfs2"
    r"|orangefs|davfs|fuse|fuse\..+|vboxsf|prl_fs|drvfs"
)
"""Types of file systems that others may write to unseen, as /proc/self/mountinfo calls them."""


def filesystem_of(path: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that ``path`` is on; "" where that cannot be told."""
    try:
        lines = mountinfo.read_text(errors="surrogateescape").splitlines()
        real = str(path.resolve())
    except OSError:
        return ""
    best, found = -1, ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), fields.split()[4])
        inside = real == point or real.startswith(f"{point.rstrip('/')}/")
        if inside and len(point) >= best:  # of two mounts at one place, the later one counts
            best, found = len(point), rest.split()[0]
    return found


def events_are_local_only(root: Path) -> str:
    """Words for a person where changes made by other machines raise no events; else ""."""
    kind = filesystem_of(root)
    if kind and _NETWORK.fullmatch(kind):
        return f"{root} is on {kind}: what others write there raises no events: scanning as well"
    return ""
