"""Commands beside training: make-data, evaluate, report."""

from __future__ import annotations

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


def _place(named: Path, checkpoint_dir: Path) -> Path:
    """A folder that is there, else the run of that name."""
    return named if named.is_dir() else checkpoint_dir / named
