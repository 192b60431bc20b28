"""What supervisord starts as the trainer: it adds the arguments, then becomes the trainer.

The arguments come in TRAINER_ARGS, quoted as in a shell, because supervisord.conf must not expand
variables. From its second start in one life of the container the trainer resumes.
"""

from __future__ import annotations

import os
import shlex
import sys

from syncd.container.rundir import RunDir


def trainer_command(first_start: bool, arguments: str) -> list[str]:
    """Build the command line; ValueError when ``arguments`` has a quote without its twin."""
    words = shlex.split(arguments)
    if not first_start and "--resume" not in words:
        words.insert(0, "--resume")
    return [sys.executable, "-m", "trainer", *words]


def main() -> None:
    """Become the trainer; an exit code comes from here only when that cannot be."""
    try:
        command = trainer_command(RunDir.of().first_start(), os.environ.get("TRAINER_ARGS", ""))
    except ValueError as error:
        sys.stderr.write(f"trainer: TRAINER_ARGS cannot be read: {error}\n")
        sys.exit(2)
    os.execv(command[0], command)  # noqa: S606 - our own command, as a list


if __name__ == "__main__":
    main()
