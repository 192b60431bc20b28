"""``status``: the documented JSON, what a person sees, and the metrics that others draw."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.console import Console

from syncd import statusview, words
from syncd.config import Settings
from syncd.errors import NeedsOperator
from syncd.health import Health, Waiting
from syncd.metrics import metrics
from syncd.records import CommitRecord
from tests.clocks import FakeClock

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA: dict[str, Any] = json.loads((DOCS / "status.schema.json").read_text())


def states() -> dict[str, Health]:
    """A daemon that has just begun, one at work, and one in need."""
    made = {name: Health(FakeClock(), "writer") for name in ("new", "busy", "red")}
    busy, red = made["busy"], made["red"]
    busy.store, busy.watching = "s3://bucket", "events and scans"
    busy.committed(CommitRecord(4, "run/gen-5", "w", "2027-01-15T08:00:00.000Z", "trainer"))
    waiting = [Waiting("run/gen-10", 4_000_000, "waits"), Waiting("run/gen-9", 10, "waits")]
    busy.waiting(waiting, [Waiting("run/gen-15", 5, "being written")])
    busy.begin(4_000_010)
    busy.sending("run/gen-10", 4_000_000)
    busy.sent("key", 1_000_000)
    busy.mirror = Health(FakeClock(), "writer")
    busy.mirror.store = "azure://container"
    busy.mirror.waiting(waiting, [])
    red.red("store", NeedsOperator("no such bucket", hint="make it"))
    return made


@pytest.mark.parametrize("name", ["new", "busy", "red"])
def test_json_is_what_the_schema_says(name: str) -> None:
    document = json.loads(statusview._as_json(states()[name].snapshot()))
    jsonschema.validate(document, SCHEMA)


def test_no_daemon_is_in_the_schema_too() -> None:
    jsonschema.validate(json.loads(statusview._as_json(None)), SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"running": True}, SCHEMA)


def test_every_field_is_explained() -> None:
    text = (DOCS / "status.md").read_text()

    def names(schema: dict[str, Any]) -> set[str]:
        found = set(schema.get("properties", {}))
        below = [schema["items"]] if "items" in schema else []
        for part in (*schema.get("properties", {}).values(), *below):
            found |= names(part)
        return found

    missing = {name for name in names(SCHEMA["oneOf"][1]) if f"`{name}`" not in text}
    assert missing == set()


def shown(health: Health, width: int = 100) -> str:
    out = Console(file=io.StringIO(), width=width, highlight=False)
    out.print(statusview._shown(Settings(), health.snapshot()))
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def test_person_sees_recovery_point_progress_and_remedies() -> None:
    text = shown(states()["busy"])
    for part in ("healthy", "run/gen-5, 0 s old (commit 4", "1.0 MB of 4.0 MB", "3 s left",
                 "run/gen-9", "run/gen-15: being written", "2 checkpoints, 4.0 MB",
                 "azure://container: nothing yet, 2 to come, 4.0 MB"):  # fmt: skip
        assert part in text, text
    text = shown(states()["red"])
    for part in ("needs attention", "no such bucket", "make it", "nothing is safe"):
        assert part in text, text
    assert "run/gen-5" in shown(states()["busy"], width=40)


def test_dashboard_and_documents_name_metrics_that_exist() -> None:
    health = states()["busy"]
    exist = set(re.findall(r"^(syncd_\w+) ", metrics(health).decode(), re.MULTILINE))
    dashboard = (DOCS / "grafana-dashboard.json").read_text()
    assert json.loads(dashboard)["panels"]
    assert set(re.findall(r"syncd_\w+", dashboard)) <= exist
    assert set(re.findall(r"`(syncd_\w+)`", (DOCS / "status.md").read_text())) == exist


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (60, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"),
     (90000, "1 d 1 h"), (86400, "1 d")],
)  # fmt: skip
def test_times_in_two_units(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_sizes() -> None:
    assert [words.size(n) for n in (5, 1500, 2.5e6, 3e9)] == ["5 B", "1.5 kB", "2.5 MB", "3.0 GB"]
