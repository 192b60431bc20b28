"""One trial: write, copy, lose the machine, restore on an empty disk, look at every byte."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path

from tests.faults.children import call
from tests.faults.controls import CONTROLS, bring_home
from tests.faults.hosts import SETTLE, Host
from tests.faults.judge import Commit, inspect, loss, sent_again
from tests.faults.ledger import Finding, Ledger, files_below
from tests.faults.places import Bucket
from tests.faults.plans import Plan
from tests.faults.writers import WRITERS, Writer

SECOND = 100_000
"""Saves of the second machine count from here."""

_START = 2.0
"""Seconds within which a daemon has looked at its disk for the first time."""


@dataclass
class Trial:
    """What one trial showed."""

    writer: str
    seed: int
    plan: str
    verdict: str = "nothing"
    faults: list[str] = field(default_factory=list)
    """What must not be, in words; the first word is its kind."""

    behind: int = 0
    """Saves that had ended and did not come back."""

    age: float = 0.0
    """Seconds that the oldest of them had been complete."""

    late: str = ""
    """What was lost though there had been time for it, in words."""

    starved: str = ""
    """The same, where the daemon waited for a processor for at least as long as it was late."""

    void: str = ""
    """Why it proves nothing: the machine that it ran on was too busy."""

    commits: int = 0
    seconds: float = 0.0

    @property
    def seen(self) -> list[str]:
        """All that a person should look at."""
        slow = {"late": self.late, "starved": self.starved}
        return [*self.faults, *(f"{kind} {words}" for kind, words in slow.items() if words)]

    def add(self, finding: Finding, where: str) -> None:
        """Take note of what was found somewhere."""
        if not finding.good:
            self.faults.append(f"{finding.verdict} {where}: {finding.words}")


def run_trial(
    writer: str, seed: int, home: Path, bucket: Bucket, control: str | None = None
) -> Trial:
    """From the first save to the judgement; everything lies below ``home``."""
    began = time.monotonic()
    manner = WRITERS[writer]
    plan = Plan.draw(seed, manner)
    trial = Trial(writer, seed, plan.words())
    try:
        if control:
            _control(trial, plan, manner, home, bucket, control)
        else:
            _Scene(trial, plan, manner, home, bucket).play()
    except (AssertionError, RuntimeError, OSError, ValueError) as error:
        trial.faults.append(f"rig {type(error).__name__}: {error}")
    trial.seconds = time.monotonic() - began
    return trial


def _live(host: Host, plan: Plan) -> float:
    """The life of the first machine up to the moment at which it is lost; that moment."""
    host.start_writer(1)
    host.start_backup()
    acts: list[tuple[float, str]] = [(at, "kill") for at in plan.kills]
    acts += [(plan.writer_dies, "die")] if plan.writer_dies is not None else []
    acts += [(plan.writer_again, "again")] if plan.writer_again is not None else []
    began = time.monotonic()
    # by time alone: at one moment a writer dies first, and another goes on then
    for at, act in sorted([*acts, (plan.lost, "lost")], key=itemgetter(0)):
        time.sleep(max(0.0, began + at - time.monotonic()))
        if act == "kill":
            host.kill("backup")
            host.start_backup()
        elif act == "die":
            host.kill("writer")
        elif act == "again":
            host.start_writer(max(Ledger.read(host.saves).saves, default=0) + 1)
    return time.monotonic()


class _Scene:
    """A trial of syncd."""

    def __init__(
        self, trial: Trial, plan: Plan, writer: Writer, home: Path, bucket: Bucket
    ) -> None:
        self._trial = trial
        self._plan = plan
        self._writer = writer
        self._home = home
        self._bucket = bucket
        self._hosts: list[Host] = []
        self._unproven = False
        self._compares = False
        """Whether the last machine had an earlier save to compare its first one with."""

    def play(self) -> None:
        """All of it; the machines are gone afterwards."""
        plan, trial = self._plan, self._trial
        try:
            one = self._host("one")
            lost = _live(one, plan)
            ledger = Ledger.read(one.saves)
            lives = one.lives
            if plan.second:
                lost, lives = self._second(one)
                ledger = Ledger.read(*(host.saves for host in self._hosts))
            for host in self._hosts:
                host.lose()
        finally:
            for host in self._hosts:
                host.lose()
        ledger = Ledger.read(*(host.saves for host in self._hosts))
        gap = max((save.gap for save in ledger.saves.values()), default=0.0)
        if not self._writer.proven and gap > 0.8 * SETTLE:
            trial.void = f"{gap:.2f} s between two files of a save without a marker"
        settings = self._bucket.settings()
        commits = call(lambda: inspect(settings, ledger, self._home / "scratch"))
        last = self._empty("last")
        self._restore(last, ledger)
        finding = ledger.judge(files_below(last.checkpoints))
        if finding.good and finding.save not in {commit.finding.save for commit in commits}:
            # the store may have had the last request of a machine, and not done it before the look
            commits = call(lambda: inspect(settings, ledger, self._home / "scratch-again"))
        trial.verdict = finding.verdict
        trial.add(finding, "after the restore" + " of plain keys" * self._unproven)
        self._judge_log(commits, finding, ledger)
        ended = [save for save in ledger.finished if save > finding.save]
        trial.behind = len(ended)
        if finding.good and not trial.void:
            self._judge_loss(ledger, lives, finding, lost)
        if finding.verdict == "intact" and not self._unproven:
            environ, disk = last.environ(), last.disk
            again = call(lambda: sent_again(environ, disk))
            if again:
                trial.faults.append(f"resent {again} bytes after the restore")

    def _host(self, name: str) -> Host:
        """A machine at the end of a thin line."""
        settings = self._bucket.settings()
        if not self._bucket.port:
            settings["SYNCD_BWLIMIT"] = "2500K"
        host = Host(self._home / name, settings, self._plan, self._writer)
        self._hosts.append(host)
        if self._bucket.port:
            host.lay_line(self._bucket.port, self._bucket.at_port)
        return host

    def _empty(self, name: str) -> Host:
        """A machine with an empty disk and a good line."""
        return Host(self._home / name, self._bucket.settings(), self._plan, self._writer)

    def _restore(self, host: Host, ledger: Ledger) -> None:
        """``syncd restore``, killed as often as the plan says and then left to end."""
        for after in self._plan.restores_killed:
            code, _ = host.syncd("restore", kill_after=after)
            if code is None and host.checkpoints.is_dir():
                half = ledger.judge(files_below(host.checkpoints))
                self._trial.add(half, "after a restore that was killed")
        code, words = host.syncd("restore")
        self._unproven = "UNPROVEN" in words
        if code != 0 or "NOT INTACT" in words:
            self._trial.faults.append(f"restore ended with {code}: {words}")

    def _second(self, one: Host) -> tuple[float, list[list[float]]]:
        """Another machine goes on from the store while the first one is still alive."""
        two = self._host("two")
        self._restore(two, Ledger.read(one.saves))
        self._compares = bool(files_below(two.checkpoints))
        two.start_backup()
        two.start_writer(SECOND)
        time.sleep(self._plan.second or 0.0)
        return time.monotonic(), two.lives

    def _judge_log(self, commits: list[Commit], restored: Finding, ledger: Ledger) -> None:
        """Each commit is whole, the newest came back, and nobody spoke after being fenced.

        What the second machine saved before its daemon looked for the first time passes for
        older than what the first one has done since: no fault.
        """
        trial = self._trial
        trial.commits = len(commits)
        for commit in commits:
            trial.add(commit.finding, f"in commit {commit.seq}")
        own = [c for c in commits if not self._plan.second or c.finding.save >= SECOND]
        self._compares |= bool(own)
        looked = self._hosts[-1].lives[0][0] + _START
        whole = [
            commit
            for commit in commits
            if not commit.companion
            and commit.finding.verdict == "intact"
            and (commit.finding.save < SECOND or ledger.saves[commit.finding.save].began > looked)
        ]
        newest = max((commit.finding.save for commit in whole), default=0)
        if restored.save >= SECOND > newest:
            newest = restored.save
        if restored.good and restored.save != newest and not self._unproven:
            trial.faults.append(f"order: save {restored.save} came back, {newest} was committed")
        taken_over = False
        for commit in whole:
            taken_over |= commit.finding.save >= SECOND
            if taken_over and commit.finding.save < SECOND:
                trial.faults.append(f"fence: commit {commit.seq} is of the machine that was lost")

    def _judge_loss(
        self, ledger: Ledger, lives: list[list[float]], restored: Finding, lost: float
    ) -> None:
        trial, plan = self._trial, self._plan
        if plan.second:
            ledger = Ledger({n: save for n, save in ledger.saves.items() if n >= SECOND})
        gone = loss(ledger, lives, restored.save, lost)
        trial.age = gone.seconds
        # Without a marker quiet time alone tells that a save has ended, and of the very first
        # one, with nothing to compare it with, five times as much.
        quiet = SETTLE if self._compares else 5 * SETTLE
        tells = self._writer.proven or (self._compares and not self._writer.quiet)
        if gone.late and (tells or plan.pause[0] > quiet) and plan.storm is None:
            waited = self._hosts[-1].waited
            words = f"{gone.seconds:.1f} s, where {gone.bound:.1f} s are enough"
            words += f"; the daemon's threads waited {waited:.1f} s for a processor"
            if gone.seconds > gone.bound + waited:
                trial.late = words
            else:
                trial.starved = words


def _control(
    trial: Trial, plan: Plan, writer: Writer, home: Path, bucket: Bucket, control: str
) -> None:
    """The same with another tool instead of the daemon, and a plain download."""
    plan = replace(plan, storm=None)  # slow, and that is all: no excuse
    host = Host(home / "one", bucket.settings(), plan, writer, CONTROLS[control])
    try:
        host.lay_line(bucket.port, bucket.at_port)
        _live(host, plan)
    finally:
        host.lose()
    ledger = Ledger.read(host.saves)
    settings, brought = bucket.settings(), home / "brought"
    call(lambda: bring_home(settings, brought))
    finding = ledger.judge_plain(files_below(brought))
    trial.verdict = finding.verdict
    trial.add(finding, "after the download")
    trial.behind = len([save for save in ledger.finished if save > finding.save])
