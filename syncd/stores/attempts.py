"""Trying again: visible, bounded by a deadline or not at all, and one at a time.

Transient failures are tried again with exponential back-off and full jitter for as long as it
takes; every second or two once there is an end. While a store is down, its circuit is open: one
request probes it, the others wait for the outcome, so that an outage costs a probe now and then and
no stampede.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from syncd.clock import Clock
from syncd.errors import StoreError, Transient

_T = TypeVar("_T")

_FIRST, _LONGEST = 0.5, 60.0
"""Seconds: the back-off is drawn from nothing to this, doubling at each failure."""

_LONGEST_ASKED = 300.0
"""Seconds: a store that asks for a longer pause than this is asked sooner whether it is back."""

_LONGEST_AT_END = 2.0
"""Seconds: any pause once there is an end: what is not tried again before it is lost."""

_SLICE = 0.25
"""Seconds after which a wait looks whether it is still wanted."""

_OPEN_AFTER = 5
"""Failures in a row, of all threads together, that open the circuit."""


@dataclass
class Circuit:
    """How the store has been answering; ``since`` is None while it answers.

    ``failures`` counts the attempts in a row that failed; ``next_probe`` is the time, on the
    monotonic clock, before which no further one goes out once the circuit is open.
    """

    failures: int = 0
    since: float | None = None
    message: str = ""
    hint: str = ""
    next_probe: float = 0.0

    @property
    def open(self) -> bool:
        """Whether the store counts as down."""
        return self.failures >= _OPEN_AFTER


class Attempts:
    """Makes requests of one store until they are answered.

    ``deadline`` tells the time on the monotonic clock after which the last failure is raised;
    None: there is none. ``patience`` bounds it, too: so many seconds after the opening for as long
    as nothing was answered, and after the first failure since the last answer later on: what goes
    on for hours is not over at its first broken connection. ``abort`` ends every wait at once.
    ``on_change`` hears of each failure and of the first success after it.
    """

    def __init__(
        self,
        clock: Clock,
        abort: threading.Event,
        deadline: Callable[[], float | None] = lambda: None,
        on_change: Callable[[Circuit], None] = lambda _circuit: None,
        patience: float | None = None,
    ) -> None:
        self._clock = clock
        self._abort = abort
        self._deadline = deadline
        self._on_change = on_change
        self._lock = threading.Lock()
        self._prober: int | None = None
        self._patience = patience
        self._unanswered_since: float | None = clock.monotonic()
        self.circuit = Circuit()

    def go_well(self) -> bool:
        """Whether the last request was answered."""
        with self._lock:
            return not self.circuit.failures

    def make(self, request: Callable[[], _T]) -> _T:
        """Make a request until it is answered, or time is over."""
        try:
            return self._one_try(request)
        except Transient as error:
            return self._try_on(request, error)

    def _try_on(self, request: Callable[[], _T], error: Transient) -> _T:
        """Go on after a first failure; until there is one, tenacity is not even loaded."""
        from tenacity import RetryCallState, Retrying, retry_if_exception_type
        from tenacity.wait import wait_random_exponential

        backoff = wait_random_exponential(multiplier=_FIRST, max=_LONGEST)
        failed: list[Transient] = [error]

        def one() -> _T:
            if failed:
                raise failed.pop()
            return self._one_try(request)

        def pause(state: RetryCallState) -> float:
            """Full jitter, or the pause that the store asked for."""
            met = state.outcome.exception() if state.outcome else None
            asked = met.retry_after if isinstance(met, Transient) else None
            wait = backoff(state)
            return max(wait, min(asked, _LONGEST_ASKED)) if asked is not None else wait

        return Retrying(
            retry=retry_if_exception_type(Transient),
            wait=pause,
            stop=lambda _state: self._over(),
            sleep=self._sleep,
            reraise=True,
        )(one)

    def _one_try(self, request: Callable[[], _T]) -> _T:
        while not self._may_go():
            if self._over():
                raise Transient(self.circuit.message, hint=self.circuit.hint)
            self._sleep(max(_FIRST, self.circuit.next_probe - self._clock.monotonic()))
        try:
            return self._observed(request)
        finally:
            with self._lock:
                if self._prober == threading.get_ident():
                    self._prober = None

    def _may_go(self) -> bool:
        """Whether the circuit is closed, or this thread's request is to be its probe."""
        hurried = self._hurried()
        with self._lock:
            if not self.circuit.open:
                return True
            now = self._clock.monotonic()
            if hurried and self.circuit.next_probe > now + _LONGEST_AT_END:
                self.circuit.next_probe = now  # from before there was an end
            due = now >= self.circuit.next_probe
            if due and self._prober is None:
                self._prober = threading.get_ident()
                return True
            return False

    def _observed(self, request: Callable[[], _T]) -> _T:
        try:
            result = request()
        except StoreError as error:
            failed = error if isinstance(error, Transient) else error.__cause__
            if isinstance(failed, Transient):  # one of enough tries, too
                self.failed(failed)
            else:
                self.succeeded()  # a refusal is an answer: the store is there
            raise
        self.succeeded()
        return result

    def failed(self, error: Transient) -> None:
        """Note that a request was not answered."""
        hurried = self._hurried()
        with self._lock:
            circuit = self.circuit
            circuit.failures += 1
            circuit.since = circuit.since or self._clock.now()
            circuit.message, circuit.hint = error.message, error.hint
            if self._unanswered_since is None:
                self._unanswered_since = self._clock.monotonic()
            pause = min(_FIRST * 2 ** min(max(0, circuit.failures - _OPEN_AFTER), 10), _LONGEST)
            pause = max(pause, min(error.retry_after or 0.0, _LONGEST_ASKED))
            pause = min(pause, _LONGEST_AT_END) if hurried else pause
            circuit.next_probe = self._clock.monotonic() + pause
        self._on_change(circuit)

    def succeeded(self) -> None:
        """Note that a request was answered."""
        with self._lock:
            self._unanswered_since = None
            if not self.circuit.failures:
                return
            self.circuit = circuit = Circuit()
        self._on_change(circuit)

    def _end(self) -> float | None:
        """The time after which nothing is tried again, as things are now."""
        ends = [self._deadline()]
        with self._lock:
            if self._patience is not None and self._unanswered_since is not None:
                ends.append(self._unanswered_since + self._patience)
        return min((end for end in ends if end is not None), default=None)

    def _hurried(self) -> bool:
        """Whether there is an end, be it near or far."""
        return self._patience is not None or self._deadline() is not None

    def _over(self) -> bool:
        end = self._end()
        late = end is not None and self._clock.monotonic() >= end
        return late or self._abort.is_set()

    def _sleep(self, seconds: float) -> None:
        """Wait, in slices: the end may be moved meanwhile. When one comes, the wait is over."""
        hurried = self._hurried()
        until = self._clock.monotonic() + (min(seconds, _LONGEST_AT_END) if hurried else seconds)
        while (left := until - self._clock.monotonic()) > 0 and not self._over():
            if self._hurried() and not hurried:
                return
            end = self._end()
            if end is not None:
                left = min(left, max(0.0, end - self._clock.monotonic()))
            self._clock.wait(self._abort, min(left, _SLICE))
