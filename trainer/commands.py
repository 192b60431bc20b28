"""Commands beside training: make-data, evaluate, report, sweep."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from trainer.errors import UsageFault

SPLITS = ("validation", "hold-out", "train")
folder_option = click.option(
    "--checkpoint-dir", envvar="CHECKPOINT_DIR", default="checkpoints", show_default=True,
    type=click.Path(path_type=Path), help="Where a run is looked for by its name.",
)  # fmt: skip
data_option = click.option(
    "--data", type=click.Path(path_type=Path), help="Market data; by default the run's own."
)


@click.command("make-data")
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


@click.command("evaluate")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@folder_option
@data_option
@click.option("--split", "splits", multiple=True, type=click.Choice(SPLITS), help="Days to trade: "
              "may be given again. By default validation and hold-out.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False),
              help="Folder for the files; by default evaluation/RUN-gen-NNNNNN.")  # fmt: skip
@click.option("--capital", default=100_000.0, show_default=True,
              type=click.FloatRange(0, min_open=True), help="Equity at the start.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the statistics as JSON.")
def evaluate(
    checkpoint: Path, checkpoint_dir: Path, data: Path | None, splits: tuple[str, ...],
    out: Path | None, capital: float, as_json: bool,
) -> None:  # fmt: skip
    """Trade a CHECKPOINT's best actor and the baselines; write trades and statistics.

    CHECKPOINT is a checkpoint's folder, a run's folder (its newest) or a run's name.
    """
    import torch

    from trainer import assess
    from trainer.display import Display

    loaded, refused = assess.find(_place(checkpoint, checkpoint_dir))
    for line in refused:
        click.echo(f"checkpoint refused: {line}", err=True)
    subject = assess.open_subject(loaded, data, torch.device("cpu"))
    days = subject.splits()
    chosen = {name: subject.courses(days[name], capital) for name in splits or SPLITS[:2]}
    name = f"{loaded.state['run']}-{loaded.path.name}"
    paths = assess.write(out or Path("evaluation") / name, subject, chosen)
    if as_json:
        click.echo(paths[-1].read_text(), nl=False)
        return
    if not subject.same_data:
        click.echo("the data file is another than the one this run was trained on")
    Display().results({split: {one.name: sum(one.gains) for one in each}
                       for split, each in chosen.items()})  # fmt: skip
    for path in paths:
        click.echo(str(path))


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@folder_option
@click.option("--log-dir", envvar="LOG_DIR", default="logs", show_default=True,
              type=click.Path(path_type=Path), help="Where the page goes.")  # fmt: skip
@data_option
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False),
              help="The page; by default LOG_DIR/RUN/report.html.")  # fmt: skip
def report(
    run: Path, checkpoint_dir: Path, log_dir: Path, data: Path | None, out: Path | None
) -> None:
    """Draw a RUN (its name, its folder, or one checkpoint's) as one HTML page."""
    import torch

    from trainer import assess
    from trainer import report as drawing

    loaded, refused = assess.find(_place(run, checkpoint_dir))
    for line in refused:
        click.echo(f"checkpoint refused: {line}", err=True)
    subject, why_not = None, ""
    try:
        subject = assess.open_subject(loaded, data, torch.device("cpu"))
    except UsageFault as fault:
        if data is not None:
            raise
        why_not = str(fault)  # the fitness can be drawn without the data
    target = out or log_dir / str(loaded.state["run"]) / "report.html"
    drawing.write(target, drawing.page(loaded.state, subject, why_not))
    click.echo(str(target))


@click.command("sweep")
@click.option("--trials", default=50, show_default=True, type=click.IntRange(1),
              help="Trials that are finished or pruned when the sweep is over; several workers "
              "may make one more each.")  # fmt: skip
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 512),
              help="Processes on this machine that take trials.")  # fmt: skip
@click.option("--search", multiple=True, metavar="NAME=SPACE", help="A setting and what to try: "
              "LOW:HIGH, LOW:HIGH:log or A,B,C; may be given again.")  # fmt: skip
@click.option("--study", default="sweep", show_default=True, help="Name of the study and its runs.")
@click.option("--storage", default="sqlite:///sweep.db", show_default=True,
              help="Where the study lives: SQLite for one machine, "
              "postgresql+psycopg://... for several.")  # fmt: skip
@click.option("--pruning/--no-pruning", default=True, show_default=True,
              help="End trials that are behind the median of the others.")  # fmt: skip
@click.option("--sampler-seed", default=-1, help="Seed of what is tried; -1: another each time.")
@click.option("--worker", is_flag=True, hidden=True)
@click.pass_obj
def sweep(
    request: object, trials: int, workers: int, search: tuple[str, ...], study: str, storage: str,
    pruning: bool, sampler_seed: int, worker: bool,
) -> int:  # fmt: skip
    """Search for better settings with Optuna; each trial is a run with checkpoints.

    Settings given before the word sweep are those of every trial:

    \b
      python -m trainer --data FILE --generations 40 sweep --trials 50 \\
          --search hidden=32,64,128 --search actor_rate=1e-4:1e-2:log

    Started again, it goes on where it stopped; trials that were broken off continue from their
    newest checkpoints.
    """
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UsageFault("sweep needs Optuna: pip install optuna") from None
    from trainer import sweep as search_for
    from trainer.display import Display
    from trainer.session import Request

    assert isinstance(request, Request)  # noqa: S101  (what the group above has made)
    plan = search_for.Plan(
        study, storage, trials, search or search_for.DEFAULT_SPACE, pruning, sampler_seed
    )
    search_for.parse_space(plan.space)
    display = Display()
    if worker:
        return search_for.work(plan, request, display)
    search_for.create(plan)
    if workers > 1:
        code = search_for.start_workers(workers, sys.argv[1:])
    else:
        code = search_for.work(plan, request, display)
    search_for.summary(plan, display)
    return code


def _place(named: Path, checkpoint_dir: Path) -> Path:
    """A folder that is there, else the run of that name."""
    return named if named.is_dir() else checkpoint_dir / named
