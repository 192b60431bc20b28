"""The state in Prometheus' text format. docs/grafana-dashboard.json draws it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from syncd.health import Health

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metrics(health: Health) -> bytes:
    """Every metric, as it is now."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    state = health.snapshot()
    point, under_way = state["recovery_point"], state["under_way"] or {"bytes": 0, "total": 0}
    gauges = {
        "healthy": ("1 while nothing is wrong", float(state["healthy"])),
        "reasons": ("Reasons for red", len(state["reasons"])),
        "lag_seconds": ("Seconds that something newer than the recovery point has been complete",
                        state["lag_seconds"]),
        "backlog_checkpoints": ("Complete, not committed", len(state["backlog"])),
        "backlog_bytes": ("Bytes not committed", state["backlog_bytes"]),
        "incomplete_checkpoints": ("Not complete, or not to be copied", len(state["incomplete"])),
        "under_way_bytes": ("Bytes sent of the checkpoint under way", under_way["bytes"]),
        "under_way_total_bytes": ("Size of the checkpoint under way", under_way["total"]),
        "throughput_bytes_per_second": ("Bytes taken by the store, over a minute",
                                        state["throughput_bytes_per_second"]),
        "uptime_seconds": ("Seconds since the daemon began", state["uptime_seconds"]),
    }  # fmt: skip
    if point:
        gauges["recovery_point_age_seconds"] = ("What would be lost now", point["age_seconds"])
        gauges["recovery_point_seq"] = ("Number of the newest commit", point["seq"])
        gauges["recovery_point_bytes"] = ("Size of the newest commit", point["bytes"])
    if mirror := state["mirror"]:
        gauges["mirror_healthy"] = ("1 while nothing is wrong", float(mirror["healthy"]))
        gauges["mirror_lag_seconds"] = (
            "Seconds that something newer than the mirror's newest has been complete",
            mirror["lag_seconds"],
        )
        gauges["mirror_backlog_checkpoints"] = (
            "Complete, not in the mirror",
            mirror["backlog_checkpoints"],
        )
        gauges["mirror_backlog_bytes"] = ("Bytes not in the mirror", mirror["backlog_bytes"])
    counters = {
        "sent_bytes": ("Bytes taken by the store", state["sent_bytes"]),
        "commits": ("Checkpoints committed", state["commits"]),
        "errors": ("Errors met", state["errors"]),
    }

    class Collector:
        def collect(self) -> Iterator[Any]:
            for name, (words, value) in gauges.items():
                yield GaugeMetricFamily(f"syncd_{name}", words, value)
            for name, (words, value) in counters.items():
                yield CounterMetricFamily(f"syncd_{name}", words, value)

    registry = CollectorRegistry()
    registry.register(Collector())
    return bytes(generate_latest(registry))
