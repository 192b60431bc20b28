"""The command line: options are made from the settings, each with its TRAINER_* twin."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from trainer.errors import UsageFault
from trainer.settings import check, settings_fields
from trainer.signals import STOP, Interrupted

EPILOG = """
\b
Examples:
  python -m trainer --demo                      see it work, on data of its own
  python -m trainer --demo --resume             go on where it stopped
  python -m trainer make-data data/toy.csv      write a small market data file
  python -m trainer --data data/toy.csv         train on it
  python -m trainer --resume                    continue the newest run, exactly

\b
Each option has an environment twin: --checkpoint-every is TRAINER_CHECKPOINT_EVERY.
CHECKPOINT_DIR and LOG_DIR say where checkpoints and logs go. SIGTERM saves and stops.

\b
Exit codes: 0 finished, 1 failed, 2 bad usage, settings or data,
143 (130) stopped by SIGTERM (SIGINT) after saving a checkpoint.
"""


@click.group(
    invoke_without_command=True,
    epilog=EPILOG,
    context_settings={
        "auto_envvar_prefix": "TRAINER", "max_content_width": 100,
        "help_option_names": ["-h", "--help"],
    },
)  # fmt: skip
@click.option(
    "--resume",
    is_flag=True,
    help="Continue the run of --run, else the newest; without one start fresh.",
)
@click.option("--demo", is_flag=True, help="Small settings, and a data file of its own.")
@click.option(
    "--checkpoint-dir",
    envvar="CHECKPOINT_DIR",
    default="checkpoints",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where checkpoints go.",
)
@click.option(
    "--log-dir",
    envvar="LOG_DIR",
    default="logs",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where TensorBoard and JSON lines go.",
)
@click.pass_context
def cli(
    click_context: click.Context,
    /,
    resume: bool,
    demo: bool,
    checkpoint_dir: Path,
    log_dir: Path,
    **options: str | None,
) -> None:
    """Train agents on market data by evolutionary reinforcement learning.

    A population of actors is evolved while DDPG learners follow gradients on everybody's
    experience. A checkpoint is written every few generations; a run that is killed at any moment
    continues exactly with --resume.
    """  # fmt: skip
    if click_context.invoked_subcommand is not None:
        return
    given = {name: text for name, text in options.items() if text is not None}
    check(given, fresh=not resume, demo=demo)  # a slip is told at once, before torch loads
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # exact matrix products on a GPU
    os.environ.setdefault("MKL_DYNAMIC", "FALSE")  # as many threads as asked for, always
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning beside busy cores: 10 x slower
    from trainer.display import Display
    from trainer.session import Request, run

    STOP.check()
    click_context.exit(run(Request(given, resume, demo, checkpoint_dir, log_dir), Display()))


def _add_setting_options(command: click.Group) -> None:
    for item in settings_fields():
        meta = item.metadata
        kind = type(item.default)
        metavar = "|".join(meta["choices"]) or {int: "N", float: "X"}.get(kind, "TEXT")
        if item.name == "data":
            metavar = "FILE"
        shown = f" [default: {item.default:g}]" if kind in (int, float) else ""
        # no click types: texts are checked by the settings, all faults at once
        command.params.append(
            click.Option([f"--{item.name.replace('_', '-')}", item.name], metavar=metavar,
                         help=meta["help"] + shown)
        )  # fmt: skip


_add_setting_options(cli)


@cli.command("make-data")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--days", default=750, show_default=True, type=click.IntRange(30, 20_000))
@click.option("--tickers", default=6, show_default=True, type=click.IntRange(1, 5_000))
@click.option("--seed", default=7, show_default=True, type=click.IntRange(0))
def make_data(file: Path, days: int, tickers: int, seed: int) -> None:
    """Write a small market data FILE with a signal that can be learnt."""
    from trainer.synthetic import write_market

    try:
        write_market(file, days=days, tickers=tickers, seed=seed)
    except OSError as error:
        raise UsageFault(f"{file} cannot be written: {error.strerror}") from None
    click.echo(f"{file}: {days} days, {tickers} series")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    STOP.install()
    try:
        result: Any = cli.main(args=arguments, prog_name="python -m trainer", standalone_mode=False)
    except UsageFault as fault:
        for line in fault.faults:
            click.echo(f"trainer: {line}", err=True)
        return 2
    except Interrupted:
        return STOP.exit_code
    except click.ClickException as error:
        error.show(sys.stderr)
        return error.exit_code
    except click.Abort:
        return 130
    return int(result or 0)
