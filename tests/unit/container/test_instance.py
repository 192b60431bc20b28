"""ON_FINISH: the machine is ended only when all is proven; Vast.ai is a server on loopback here."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from syncd.container import instance, probe
from syncd.container.rundir import Outcome

KEY = "an-instances-own-key"
DONE = Outcome(0, "the trainer finished", True)


class Vast:
    """Notes what it is asked; answers with the statuses it is given, then 200."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, object, str]] = []
        self.answers: list[int] = []
        vast = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                told = self.headers.get("Authorization", "")
                vast.asked.append((self.command, self.path, json.loads(body), told))
                status = vast.answers.pop(0) if vast.answers else 200
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_PUT = do_DELETE = do_GET = answer

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def environ(self, action: str) -> dict[str, str]:
        return {
            "ON_FINISH": action,
            "CLOUD_PROVIDER": "s3",
            "CLOUD_BUCKET": "b",
            "CONTAINER_ID": "4711",
            "CONTAINER_API_KEY": KEY,
            "VAST_URL": f"http://127.0.0.1:{self.server.server_port}",
        }


@pytest.fixture
def vast(monkeypatch: pytest.MonkeyPatch) -> Iterator[Vast]:
    monkeypatch.setattr(probe, "newest_is_intact", lambda: True)
    vast = Vast()
    yield vast
    vast.server.shutdown()
    vast.server.server_close()


@pytest.mark.parametrize(
    ("action", "method", "body"),
    [("stop", "PUT", {"state": "stopped"}), ("destroy", "DELETE", {})],
)
def test_a_finished_and_proven_training_ends_its_machine(
    vast: Vast, action: str, method: str, body: object
) -> None:
    said = instance.finish(DONE, vast.environ(action))
    assert said == f"Vast.ai was asked to {action} instance 4711"
    assert vast.asked == [(method, "/api/v0/instances/4711/", body, f"Bearer {KEY}")]


@pytest.mark.parametrize(
    ("outcome", "changes"),
    [
        (DONE, {"ON_FINISH": ""}),
        (DONE, {"ON_FINISH": "nothing"}),
        (DONE, {"ON_FINISH": "explode"}),
        (Outcome(7, "crashed", True), {}),
        (None, {}),
        (Outcome(0, "finished", False), {}),
        (Outcome(0, "finished", None), {}),
        (Outcome(0, "finished", True, "last.pt is not complete and was not sent"), {}),
        (DONE, {"CLOUD_BUCKET": ""}),
        (DONE, {"CONTAINER_ID": "../1"}),
        (DONE, {"CONTAINER_API_KEY": ""}),
        (DONE, {"VAST_URL": "http://elsewhere.invalid"}),
    ],
)
def test_a_machine_is_left_alone_when_anything_is_in_doubt(
    vast: Vast, outcome: Outcome | None, changes: dict[str, str]
) -> None:
    said = instance.finish(outcome, {**vast.environ("destroy"), **changes})
    assert vast.asked == []
    assert KEY not in (said or "")


def test_a_bucket_on_the_machines_own_disk_does_not_outlive_it(
    vast: Vast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {**vast.environ("destroy"), "CLOUD_PROVIDER": "", "CLOUD_BUCKET": str(tmp_path)}
    here["CHECKPOINT_DIR"] = str(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").mkdir()
    for bucket in (tmp_path, tmp_path / "gone"):
        said = instance.finish(DONE, {**here, "CLOUD_BUCKET": str(bucket)})
        assert "own disk" in (said or "")
    assert vast.asked == []
    assert "asked to stop" in (instance.finish(DONE, {**here, "ON_FINISH": "stop"}) or "")
    elsewhere = {**here, "CLOUD_BUCKET": "/dev/shm"}  # a mount of its own, as a volume is
    assert "asked to destroy" in (instance.finish(DONE, elsewhere) or "")


def test_a_newest_commit_that_cannot_be_proven_keeps_the_machine(
    vast: Vast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "newest_is_intact", lambda: False)
    said = instance.finish(DONE, vast.environ("destroy"))
    assert said
    assert "could not be proven: the instance stays" in said
    assert vast.asked == []


def test_a_busy_service_is_asked_again_and_a_refusal_is_not(vast: Vast) -> None:
    vast.answers = [503, 429]
    assert "was asked to stop" in (instance.finish(DONE, vast.environ("stop"), pause=0) or "")
    assert len(vast.asked) == 3
    vast.answers = [403]
    assert "HTTP 403" in (instance.finish(DONE, vast.environ("stop"), pause=0) or "")
    assert len(vast.asked) == 4


def test_the_key_does_not_follow_a_redirect(vast: Vast) -> None:
    vast.answers = [302]
    assert "HTTP 302" in (instance.finish(DONE, vast.environ("stop"), pause=0) or "")
    assert len(vast.asked) == 1
