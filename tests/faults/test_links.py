"""The line does what it says: it is thin, and in a storm every kind of fault comes."""

from __future__ import annotations

import http.client
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.servers import links

pytestmark = pytest.mark.timed

BODY = b"x" * 100_000


class Server:
    """Keeps what it is sent."""

    def __init__(self) -> None:
        received = self.received = []  # type: list[bytes]

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                received.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:
                    self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


Lay = Callable[["float | None", "int | None"], int]


@pytest.fixture
def lay(server: Server) -> Iterator[Lay]:
    """Lines in processes of their own; their ports."""
    made = []

    def begin(rate: float | None, storm: int | None) -> int:
        listener = links.listener()
        work = (listener, server.port, rate, storm, 0.5)
        process = multiprocessing.get_context("spawn").Process(target=links.run, args=work)
        process.start()
        made.append(process)
        port = int(listener.getsockname()[1])
        assert put(port)  # it is up
        listener.close()
        server.received.clear()
        return port

    yield begin
    for process in made:
        process.kill()
        process.join()


def put(port: int) -> int | str:
    """One request on a connection of its own: its status, or the error it met."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("PUT", "/", BODY)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


def test_a_thin_line_takes_its_time(server: Server, lay: Lay) -> None:
    port = lay(400_000, None)
    began = time.monotonic()
    assert [put(port) for _ in range(4)] == [200] * 4
    assert 0.8 < time.monotonic() - began < 3.0
    assert server.received == [BODY] * 4


def test_every_kind_of_fault_comes_in_a_storm(server: Server, lay: Lay) -> None:
    port = lay(None, 3)
    answers = [put(port) for _ in range(80)]
    assert answers.count(200) > 25
    assert 503 in answers
    assert {answer for answer in answers if isinstance(answer, str)}
    whole = [body for body in server.received if len(body) == len(BODY)]
    assert len(whole) > answers.count(200)  # applied, and never acknowledged
    assert [body for body in whole if body != BODY]  # one bit was another one


_CHILDREN = """
import time
from tests.faults.children import Child, call

sleeper = Child(lambda: time.sleep(60))
assert sleeper.wait(0.01) is None
sleeper.kill()
assert sleeper.code == -9
assert Child(lambda: 3).wait(10) == 3
assert call(lambda: [1, 2]) == [1, 2]
try:
    call(lambda: 1 / 0)
except RuntimeError as error:
    assert "ZeroDivisionError" in str(error)
"""


def test_a_child_is_killed_at_once_and_says_how_it_ended() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _CHILDREN], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
