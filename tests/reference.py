"""The pages under docs/reference and docs/licences.md, made from the code.

``python -m tests.reference`` writes them anew; tests/unit/test_reference.py fails while they
are old.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, files, metadata
from pathlib import Path

import click

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


from syncd.cli import cli as syncd
from syncd.container.launcher import launch
from trainer.cli import cli as trainer

ROOT = Path(__file__).parents[1]
_VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
_MADE = f"Version {_VERSION}. Made from the code by `python -m tests.reference`; do not edit."


def commands() -> str:
    """Every command with its help."""
    parts = ["# Commands", _MADE]
    tops = (("python -m syncd", syncd), ("python -m trainer", trainer))
    for name, command in (*tops, ("python -m syncd.container", launch)):
        for title, text in _helps(name, command):
            parts += [f"## `{title}`", f"```text\n{text}\n```"]
    return "\n\n".join(parts) + "\n"


def _helps(
    word: str, command: click.Command, parent: click.Context | None = None
) -> Iterator[tuple[str, str]]:
    width = {"max_content_width": 100, "terminal_width": 100}
    settings = {**command.context_settings, **width}
    context = click.Context(command, parent=parent, info_name=word, **settings)
    text = command.get_help(context)
    if isinstance(command, click.Group) and command.invoke_without_command:
        text = text.replace(" COMMAND [ARGS]", " [COMMAND] [ARGS]", 1)  # as Click 8.5 has it
    yield context.command_path, "\n".join(line.rstrip() for line in text.splitlines())
    if isinstance(command, click.Group):
        for below in sorted(command.commands):
            yield from _helps(below, command.commands[below], context)


def settings() -> str:
    """Every variable with its default and its explanation, as .env.example has them."""
    parts = ["# Settings", _MADE]
    words: list[str] = []
    for line in (ROOT / ".env.example").read_text().splitlines():
        section = re.match(r"# ---- (.*?) -*$", line)
        variable = re.match(r"#?([A-Z][A-Z0-9_]+)=(.*)$", line)
        if section:
            parts.append(f"## {section[1]}")
            words = []
        elif variable:
            default = f"default `{variable[2]}`" if variable[2] else "no default"
            text = " ".join(words) or "(see the one before)"
            parts.append(f"**`{variable[1]}`** ({default}): {text}")
            words = []
        elif line.startswith("# "):
            words.append(line[2:])
        else:
            words = []
    return "\n\n".join(parts) + "\n"


def licences() -> str:
    """The licence that each direct dependency states."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"syncd": project["dependencies"], **project["optional-dependencies"]}
    rows = ["| package | for | licence |", "|---|---|---|"]
    wanted: dict[str, list[str]] = {}
    for group, requirements in groups.items():
        for requirement in requirements:
            name = re.split(r"[^A-Za-z0-9_.-]", requirement)[0]
            if "python_version <" not in requirement:  # it may not be installed here
                wanted.setdefault(name, []).append(group)
    for name in sorted(wanted, key=str.lower):
        rows.append(f"| {name} | {', '.join(wanted[name])} | {licence(name)} |")
    return "\n\n".join(["# Licences of the dependencies", _MADE, "\n".join(rows)]) + "\n"


def licence(name: str) -> str:
    """What a package says of itself, in its newest form first."""
    try:
        said = metadata(name)
    except PackageNotFoundError:
        return "not installed here"
    classifiers = [
        each.rpartition(" :: ")[2]
        for each in said.get_all("Classifier") or []
        if each.startswith("License ::")
    ]
    stated = [*(said.get_all("License-Expression") or []), ", ".join(classifiers)]
    stated += said.get_all("License") or []
    words = next((each for each in stated if each.strip()), "") or _first_line_of_its_file(name)
    return words.strip().splitlines()[0].strip() if words.strip() else "not stated"


def _first_line_of_its_file(name: str) -> str:
    places = [each for each in files(name) or [] if "licenses" in each.parts]
    return "".join(Path(str(each.locate())).read_text().lstrip("# ") for each in places[:1])


PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/commands.md": commands,
    "docs/reference/settings.md": settings,
    "docs/licences.md": licences,
}

if __name__ == "__main__":
    for page, make in PAGES.items():
        (ROOT / page).parent.mkdir(exist_ok=True)
        (ROOT / page).write_text(make())
