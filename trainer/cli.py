"""The command line: options are made from the settings, each with its TRAINER_* twin."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from trainer import commands, memory
from trainer.errors import UsageFault
from trainer.settings import check, from_file, settings_fields
from trainer.signals import STOP, Interrupted

EPILOG = """
\b
Examples:
  python -m trainer --demo                      see it work, on data of its own
  python -m trainer --demo --resume             go on where it stopped
  python -m trainer make-data data/toy.csv      write a small market data file
  python -m trainer --data data/toy.csv         train on it
  python -m trainer --resume                    continue the newest run, exactly
  python -m trainer report RUN                  one HTML page: fitness, equity, trades
  python -m trainer evaluate RUN                its trades and statistics as CSV and JSON
  python -m trainer --data FILE sweep           search for better settings

\b
Each option has an environment twin: --checkpoint-every is TRAINER_CHECKPOINT_EVERY. A file named by
--config (TRAINER_CONFIG) has them as well, such as checkpoint_every = 10.
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
    "--config",
    type=click.Path(path_type=Path),
    help="TOML file of settings; variables count more, options most.",
)
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
    config: Path | None,
    checkpoint_dir: Path,
    log_dir: Path,
    **options: str | None,
) -> None:
    """Train agents on market data by evolutionary reinforcement learning.

    A population of actors is evolved while DDPG learners follow gradients on everybody's
    experience. A checkpoint is written every few generations; a run that is killed at any moment
    continues exactly with --resume.
    """  # fmt: skip
    beside = click_context.invoked_subcommand
    if beside is not None and beside != "sweep":
        return
    given = from_file(config) if config else {}
    given |= {name: text for name, text in options.items() if text is not None}
    check(given, fresh=not resume, demo=demo)  # a slip is told at once, before torch loads
    memory.return_large_blocks()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # exact matrix products on a GPU
    os.environ.setdefault("MKL_DYNAMIC", "FALSE")  # as many threads as asked for, always
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning beside busy cores: 10 x slower
    from trainer.display import Display
    from trainer.session import Request, run

    STOP.check()
    request = Request(given, resume, demo, checkpoint_dir, log_dir)
    if beside is None:
        click_context.exit(run(request, Display()))
    click_context.obj = request


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


for command in (commands.make_data, commands.evaluate, commands.report, commands.sweep):
    cli.add_command(command)


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
