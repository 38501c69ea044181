"""The commands that say what is promised and check it: budget, ledger, selftest."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from privimage import audit, pipeline
from privimage import budget as budgeting
from privimage import selftest as testing
from privimage.cli import options
from privimage.errors import UserError

app = typer.Typer()
ledger = typer.Typer(help="Shows and checks what a run has spent.", no_args_is_help=True)
app.add_typer(ledger, name="ledger")


@app.command()
def budget(
    delta: Annotated[float, typer.Option(help="Below 1 / number of images or persons.")],
    sample_rate: Annotated[
        float | None, typer.Option(help="Probability that a step takes an image or person.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="DP-SGD steps.")] = None,
    noise_multiplier: Annotated[float | None, typer.Option(help="σ of a step.")] = None,
    query_noise: Annotated[
        float | None, typer.Option(help="σ of the query, relative to its sensitivity.")
    ] = None,
    target_epsilon: Annotated[
        float | None,
        typer.Option(help="Find the noise multiplier or the steps, whichever is left out."),
    ] = None,
    group_size: Annotated[
        int | None, typer.Option(help="State ε for so many images of one person, too.")
    ] = None,
    unit: Annotated[str, typer.Option(help="Whom ε protects: image or person.")] = "image",
    plot: Annotated[Path | None, typer.Option(help="PNG file to write: ε over steps.")] = None,
    json_: options.Json = False,
) -> None:
    """Says what a plan costs, or what a budget pays for, before any data is touched."""
    question = budgeting.Question(
        delta, sample_rate, steps, noise_multiplier, query_noise, target_epsilon, unit
    )
    answer = budgeting.answer(question)
    if plot is not None:
        budgeting.plot(answer, plot)
    if json_:
        options.print_json(budgeting.as_json(answer, group_size))
        return
    for line in budgeting.explain(answer, group_size):
        typer.echo(line)


@app.command()
def selftest(
    privacy: Annotated[
        bool, typer.Option("--privacy", help="Check noise, sampling and clipping.")
    ] = False,
    run: Annotated[
        Path | None, typer.Option(help="Run folder whose ledger records the outcome.")
    ] = None,
    device: options.Device = None,
    json_: options.Json = False,
) -> None:
    """Checks what privacy rests on, on this machine and build; status 1 if anything is wrong."""
    if not privacy:
        raise UserError("what shall be tested? give --privacy")
    where = pipeline.Machine(device=device).torch_device()
    if run is not None:
        audit.check_run(run)
    outcomes = []
    for outcome in testing.run(where):
        outcomes.append(outcome)
        if not json_:
            verdict = f"FAILED  {outcome.problem}" if outcome.problem else outcome.promise
            typer.echo(f"{outcome.name:<14} {outcome.seconds:4.1f} s  {verdict}")
    found = testing.record(outcomes, where)
    if run is not None:
        audit.record_selftest(run, found)
    if json_:
        checks = [asdict(outcome) for outcome in outcomes]
        options.print_json({**asdict(found), "checks": checks})
    if found.failed:
        raise SystemExit(options.FOUND_WRONG)


@ledger.command("show")
def show_ledger(run: options.Run) -> None:
    """Shows what was reserved and released, when, and ε so far."""
    for line in audit.show(run):
        typer.echo(line)


@ledger.command("verify")
def verify_ledger(run: options.Run) -> None:
    """Computes ε again from the ledger and checks what the run has made against it; JSON."""
    result = audit.verify(run)
    options.print_json(result)
    if result["problems"]:
        raise SystemExit(options.FOUND_WRONG)


@ledger.command("compose")
def compose_ledgers(
    runs: Annotated[list[Path], typer.Argument(help="Run folders on the same people.")],
    delta: Annotated[
        float | None, typer.Option(help="δ of the joint ε; default: the runs' smallest.")
    ] = None,
) -> None:
    """States the joint ε of several runs on the same people; JSON."""
    options.print_json(audit.compose(runs, delta))
