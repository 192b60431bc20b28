"""syncd: a sidecar that has every finished checkpoint safe in an object store moments later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syncd.cloudsync import CloudSync, get_cloud_sync_from_env

__all__ = ["CloudSync", "get_cloud_sync_from_env"]


def __getattr__(name: str) -> Any:
    """Import the Python face when it is asked for: the daemon does not need it."""
    if name in __all__:
        from syncd import cloudsync

        return getattr(cloudsync, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
