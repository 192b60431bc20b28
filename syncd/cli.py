"""The commands that a person types, and nothing else: each asks another module to do the work."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import click

from syncd.config import Environment, Settings, load_settings
from syncd.errors import SettingsError, SyncdError
from syncd.inflight import share_heap
from syncd.telling import let_go, say

EXIT_OK, EXIT_NOT_SAFE, EXIT_SETTINGS, EXIT_NOT_INTACT, EXIT_NO_DAEMON = 0, 1, 2, 3, 4

_EPILOG = """\b
Settings come from the environment and from .env in the working directory:
  CLOUD_PROVIDER   s3, gcs, azure or local      CLOUD_BUCKET   the bucket, container, directory
  CLOUD_PREFIX     first part of every key      CHECKPOINT_DIR, LOG_DIR   what is watched
.env.example explains every one of them.

\b
Exit codes: 0 fine, 1 something is not safe or not reachable, 2 bad settings or usage,
3 nothing in the store is intact, 4 no daemon is running.
"""


_CHILD = "syncd.child"

_mirror = click.option("--mirror", is_flag=True, help="The mirror (CLOUD_MIRROR) alone.")


class _Group(click.Group):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep what stands after ``--`` for the exec mode, unless a command comes before it."""
        options = args[: args.index("--")] if "--" in args else args
        if "--" in args and all(word.startswith("-") for word in options):
            ctx.meta[_CHILD] = args[len(options) + 1 :]
            args = options
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; errors become words and an exit code, never a traceback."""
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            for fault in error.faults:
                say(f"syncd: {fault}")
            say("syncd: these settings cannot be used; see .env.example")
            ctx.exit(EXIT_SETTINGS)
        except SyncdError as error:
            say(f"syncd: {error.message}")
            if error.hint:
                say(f"       {error.hint}")
            ctx.exit(EXIT_NOT_SAFE)


@click.group(cls=_Group, invoke_without_command=True, epilog=_EPILOG)
@click.option("--once", is_flag=True, help="Commit everything complete on disk now, then end.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="With --once: give up after so long without any progress.",
)
@click.option("--json", "as_json", is_flag=True, help="With --once: the report as JSON.")
@click.option(
    "--allow-new", is_flag=True, help="With --: run it also where nothing in the store is intact."
)
@click.option("-v", "--verbose", is_flag=True, help="Say more.")
@click.version_option(package_name="syncd", prog_name="syncd")
@click.pass_context
def cli(
    ctx: click.Context, once: bool, timeout: float, as_json: bool, allow_new: bool, verbose: bool
) -> None:
    """Have every finished checkpoint safe in an object store moments later.

    Without a command: the daemon, in the foreground. It watches CHECKPOINT_DIR and LOG_DIR,
    commits each checkpoint once it is complete, and never touches the trainer.

    With `-- PROGRAM ARGUMENTS`: restores, runs the program with a daemon beside it, flushes, and
    ends with the program's exit code.
    """
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        stream=sys.stdout if ctx.invoked_subcommand is None and not once else sys.stderr,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    for noisy in ("boto3", "botocore", "urllib3", "google", "azure", "waitress"):
        logging.getLogger(noisy).setLevel(logging.WARNING)  # their debug output shows headers
    share_heap()
    if ctx.invoked_subcommand is not None:
        return
    child = ctx.meta.get(_CHILD)
    if child is not None:
        if once or not child:
            raise click.UsageError("a program to run is expected after --, without --once")
        from syncd import execmode

        ctx.exit(execmode.run(load_settings(), child, allow_new))
    if once:
        from syncd import manual

        ctx.exit(manual.once(load_settings(), timeout, as_json))
    from syncd.daemon import Daemon

    code = Daemon(Environment()).run()
    # transfers that hang in a dead network must not hold the process at its end
    let_go(sys.stdout)
    os._exit(code)


def _settings(mirror: bool) -> Settings:
    """The settings, or those of the mirror alone."""
    settings = load_settings()
    if not mirror:
        return settings
    if settings.mirror is None:
        raise SettingsError(["CLOUD_MIRROR: not set, and --mirror is about it"])
    return settings.mirror


@cli.command()
@click.option("--to", type=click.Path(path_type=Path), help="Restore into this directory.")
@click.option("--at", metavar="NAME", help="This checkpoint, or #SEQ for one commit.")
@click.option("--all", "everything", is_flag=True, help="Every checkpoint in the store.")
@click.option("--force", is_flag=True, help="Replace what is there.")
@click.option(
    "--own", is_flag=True, help="Only what this machine (SYNCD_RANK) had sent, and machine 0."
)
@_mirror
@click.option(
    "--retry-for",
    envvar="SYNCD_RESTORE_RETRY",
    show_envvar=True,
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Give up on a store that cannot be reached after so long.",
)
def restore(
    to: Path | None,
    at: str | None,
    everything: bool,
    force: bool,
    own: bool,
    mirror: bool,
    retry_for: float,
) -> None:
    """Bring back the newest complete checkpoint, proven byte for byte.

    A checkpoint that is on disk already wins, unless RESUME_FROM=newest or --force is given and
    the store has a newer one. Where the store is of no use, and where the mirror is ahead of it
    beyond doubt, the mirror is taken. Exit 0: restored, or nothing to restore; 1: the store cannot
    be reached; 3: nothing in the store is intact.
    """
    from syncd import manual

    sys.exit(manual.restore(_settings(mirror), to, at, everything, force, retry_for, own))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON; docs/status.md describes it.")
@click.option("--watch", is_flag=True, help="Again each second, until Ctrl-C.")
def status(as_json: bool, watch: bool) -> None:
    """Recovery point and its age, what is under way, backlog, problems with their remedies.

    Exit 0: healthy; 1: not; 4: no daemon is running.
    """
    from syncd import statusview

    sys.exit(statusview.status(load_settings(), as_json, watch))


@cli.command()
@click.argument("rate", required=False)
def limit(rate: str | None) -> None:
    """Have the running daemon send at most RATE bytes a second from now on: 500K, 5M, or off.

    Without RATE: say which limit it keeps to. When the daemon starts again, SYNCD_BWLIMIT counts.
    Exit 0; 2: RATE is no number of bytes; 4: no daemon is running.
    """
    from syncd import statusview

    try:
        sys.exit(statusview.limit(load_settings(), rate))
    except ValueError as error:
        raise click.BadParameter(f"{error}, or off", param_hint="RATE") from None


@cli.command("ls")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@_mirror
def list_commits(as_json: bool, mirror: bool) -> None:
    """The commits in the store, newest first."""
    from syncd import manual

    sys.exit(manual.list_commits(_settings(mirror), as_json))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--newest", is_flag=True, help="Only the newest; there has to be one.")
@_mirror
def verify(as_json: bool, newest: bool, mirror: bool) -> None:
    """Read every committed object back and prove it. Exit 0, or 3 if one is not intact."""
    from syncd import manual

    sys.exit(manual.verify(_settings(mirror), as_json, newest))


@cli.group()
def data() -> None:
    """The training's data file, kept in the bucket as PREFIX/data/NAME."""


@data.command("put")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def put_data(file: Path) -> None:
    """Send FILE to the bucket, and its SHA-256 beside it."""
    from syncd import datafile

    say(f"syncd: {datafile.put(load_settings(), file)}")


@data.command("get")
@click.argument("name")
@click.option("--to", type=click.Path(path_type=Path, dir_okay=False), help="Instead of data/NAME.")
def get_data(name: str, to: Path | None) -> None:
    """Fetch NAME from the bucket, prove it by its SHA-256 and put it into its place."""
    from syncd import datafile

    target = to or Path("data") / name
    say(f"syncd: {datafile.get(load_settings(), name, target)}")


@cli.group()
def key() -> None:
    """The key that SYNCD_ENCRYPT_KEY_FILE names: all in the bucket is encrypted with it."""


@key.command("new")
@click.argument("file", type=click.Path(path_type=Path))
def new_key(file: Path) -> None:
    """Write a fresh key to FILE, which only its owner can read. It is not shown.

    Keep a copy of it where no rented machine is: without it nothing can be restored.
    """
    from syncd import keys

    keys.new_key(file)
    say(f"syncd: wrote a key to {file}; set SYNCD_ENCRYPT_KEY_FILE={file}")
    say("       keep a copy elsewhere: without it nothing can be restored")


@cli.command()
def check() -> None:
    """Prove the settings against the real store, step by step, before money is spent.

    With a mirror, both stores are proven.
    """
    from syncd import checks

    sys.exit(checks.run(load_settings()))


@cli.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--keep", type=click.IntRange(min=1), help="Instead of SYNCD_KEEP_LAST.")
@click.option(
    "--unnamed",
    is_flag=True,
    help="Also objects beside the checkpoints that no commit names: of uploads that were cut off, "
    "and all else that was put there a day ago or more. Look with --dry-run first.",
)
@_mirror
def prune(dry_run: bool, keep: int | None, unnamed: bool, mirror: bool) -> None:
    """Retention now: old commits by SYNCD_KEEP_LAST, orphaned versions, forgotten uploads."""
    from syncd import manual

    sys.exit(manual.prune(_settings(mirror), dry_run, keep, unnamed))


def main() -> None:
    """Entry point of ``syncd`` and ``python -m syncd``."""
    threading.excepthook = _log_thread_failure
    # a lease that is held for microseconds must not end the process when a writer comes
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        cli(prog_name="syncd")
    finally:
        let_go(sys.stderr)  # of stdout the failure counts: that is where answers go


def _log_thread_failure(args: threading.ExceptHookArgs) -> None:
    logging.getLogger(__name__).error(
        "thread %s failed",
        args.thread.name if args.thread else "?",
        exc_info=(args.exc_type, args.exc_value, args.exc_traceback) if args.exc_value else None,
    )
