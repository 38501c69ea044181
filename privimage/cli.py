"""The command line: parse, call, print."""

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from privimage import assessment, audit, doctor, inspection, pipeline, recipe
from privimage import budget as budgeting
from privimage import export as exporting
from privimage import selftest as testing
from privimage.data import ImageShape
from privimage.errors import UserError, check_choice, check_count
from privimage.progress import Reporter, Stopped
from privimage.report import write_report

_USER_ERROR, _FOUND_WRONG = 2, 1

app = typer.Typer(
    help="Labelled synthetic image data sets under differential privacy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)
ledger_app = typer.Typer(help="What a run has spent.", no_args_is_help=True)
app.add_typer(ledger_app, name="ledger")
presets_app = typer.Typer(help="Recipes.")
app.add_typer(presets_app, name="presets")
data_app = typer.Typer(help="Image sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@app.command()
def train(
    preset: Annotated[str, typer.Option(help="Recipe to start from; see `presets`.")] = "digits",
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/PRESET.")] = None,
    sensitive: Annotated[str | None, typer.Option(help="Images to protect.")] = None,
    public: Annotated[str | None, typer.Option(help="Labelled public images.")] = None,
    test: Annotated[str | None, typer.Option(help="Images you declare public, to test on.")] = None,
    classes: Annotated[
        str | None, typer.Option(help="Sensitive labels: a,b,c or a number.")
    ] = None,
    public_size: Annotated[
        int | None, typer.Option(help="Number of sensitive images or persons, made public.")
    ] = None,
    unit: Annotated[str | None, typer.Option(help="Whom ε protects: image or person.")] = None,
    person: Annotated[
        str | None, typer.Option(help="Names an image's person: column:NAME or folder:LEVEL.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Height and width, pixels.")] = None,
    channels: Annotated[int | None, typer.Option(help="1 for grey, 3 for RGB.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="Privacy budget; inf for none.")] = None,
    delta: Annotated[float | None, typer.Option(help="Below 1 / number of units.")] = None,
    selection: Annotated[str | None, typer.Option(help="semantic, all or none.")] = None,
    seed: Annotated[int | None, typer.Option(help="For everything but privacy.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any recipe value: finetune.steps=20.")
    ] = None,
    from_stage: Annotated[
        str | None, typer.Option(help="Repeat this stage and later ones.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="The last stage to do.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would do, cost and take.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object, nothing else.")] = False,
    max_minutes: Annotated[float | None, typer.Option(help="Stop cleanly after so long.")] = None,
    threads: Annotated[int | None, typer.Option(help="Cores to use; default all.")] = None,
    max_memory: Annotated[
        float | None, typer.Option(help="MB for a core's share of a private step.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default what is there.")] = None,
    quiet: Annotated[bool, typer.Option(help="Warnings and errors only.")] = False,
) -> None:
    """Turns sensitive images into a synthetic data set; run it again to go on."""
    overrides = _given(
        {
            "data.sensitive": sensitive,
            "data.public": public,
            "data.test": test,
            "data.classes": None if classes is None else _class_names(classes),
            "data.public_size": public_size,
            "data.person": person,
            "privacy.unit": unit,
            "data.image_size": image_size,
            "data.channels": channels,
            "privacy.epsilon": epsilon,
            "privacy.delta": delta,
            "selection.mode": selection,
            "seed": seed,
        },
        set_,
    )
    chosen = recipe.preset(preset, overrides)
    reporter = _reporter(quiet or json_, max_minutes)
    machine = pipeline.Machine(device, threads, max_memory)
    path = out or Path("runs") / preset
    if dry_run:
        plan, found = pipeline.dry_run(chosen, path, machine, reporter)
        result = {"plan": asdict(plan), **asdict(found)}
    else:
        pipeline.train(chosen, path, machine, reporter, from_stage, until)
        metrics = path / "evaluation" / "metrics.json"
        result = json.loads(metrics.read_text()) if metrics.exists() else {}
    if json_:
        typer.echo(json.dumps({"run": str(path), **result}, indent=2, ensure_ascii=False))


@app.command()
def evaluate(
    target: Annotated[Path, typer.Argument(help="Run folder, or a set of synthetic images.")],
    test: Annotated[str | None, typer.Option(help="Real images, public; of a run its own.")] = None,
    public: Annotated[str | None, typer.Option(help="Public images, for near duplicates.")] = None,
    classes: Annotated[str | None, typer.Option(help="Labels: a,b,c or a number.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Height and width, pixels.")] = None,
    channels: Annotated[int | None, typer.Option(help="1 for grey, 3 for RGB.")] = None,
    features: Annotated[
        str | None, typer.Option(help="efficientnet-lite0, inception or torchvision:NETWORK.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="File of their weights; default torch's hub cache.")
    ] = None,
    classifiers: Annotated[
        str | None, typer.Option(help="Of cnn, resnet9, wrn40_4, mlp, logistic: a,b,c.")
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="Trainings of each classifier.")] = None,
    ceiling: Annotated[
        bool | None,
        typer.Option("--ceiling", help="Also train on a run's sensitive images: OUTSIDE ε."),
    ] = None,
    sensitive_duplicates: Annotated[
        bool | None,
        typer.Option("--sensitive-duplicates", help="Near duplicates of them: OUTSIDE ε."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides every random choice.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any other value: evaluation.splits=9.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Stop cleanly after so long.")] = None,
    threads: Annotated[int | None, typer.Option(help="Cores to use; default all.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default what is there.")] = None,
    quiet: Annotated[bool, typer.Option(help="Warnings and errors only.")] = False,
) -> None:
    """Measures synthetic images on real ones: accuracies, FID and its kin, near duplicates."""
    overrides = _given(
        {
            "data.test": test,
            "data.public": public,
            "data.classes": None if classes is None else _class_names(classes),
            "data.image_size": image_size,
            "data.channels": channels,
            "evaluation.features": features,
            "evaluation.weights": weights,
            "evaluation.classifiers": None if classifiers is None else _listed(classifiers),
            "evaluation.repeats": repeats,
            "evaluation.ceiling": ceiling,
            "evaluation.sensitive_duplicates": sensitive_duplicates,
            "seed": seed,
        },
        set_,
    )
    reporter = _reporter(quiet, max_minutes)
    machine = pipeline.Machine(device=device, threads=threads)
    assessment.assess(target, overrides, machine, reporter, out)


@app.command()
def budget(
    delta: Annotated[float, typer.Option(help="Below 1 / number of units.")],
    sample_rate: Annotated[
        float | None, typer.Option(help="Probability that a step takes a unit.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="DP-SGD steps.")] = None,
    noise_multiplier: Annotated[float | None, typer.Option(help="σ of a step.")] = None,
    query_noise: Annotated[
        float | None, typer.Option(help="σ of the query, relative to its sensitivity.")
    ] = None,
    target_epsilon: Annotated[
        float | None, typer.Option(help="Find the noise multiplier or the steps left out.")
    ] = None,
    group_size: Annotated[
        int | None, typer.Option(help="State ε also for so many images of one person.")
    ] = None,
    unit: Annotated[str, typer.Option(help="Whom ε protects: image or person.")] = "image",
    plot: Annotated[Path | None, typer.Option(help="PNG file: ε over steps.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object, nothing else.")] = False,
) -> None:
    """Says what a plan costs, or what a budget pays for, before any data is touched."""
    question = budgeting.Question(
        delta, sample_rate, steps, noise_multiplier, query_noise, target_epsilon, unit
    )
    answer = budgeting.answer(question)
    if plot is not None:
        budgeting.plot(answer, plot)
    if json_:
        typer.echo(json.dumps(budgeting.as_json(answer, group_size), indent=2))
        return
    for line in budgeting.explain(answer, group_size):
        typer.echo(line)


@presets_app.callback(invoke_without_command=True)
def presets(context: typer.Context) -> None:
    """Lists the recipes that `train --preset` knows."""
    if context.invoked_subcommand is None:
        for name in recipe.preset_names():
            typer.echo(f"{name:<16} {recipe.preset_title(name)}")


@presets_app.command("show")
def show_preset(name: Annotated[str, typer.Argument(help="One of those listed.")]) -> None:
    """Shows every value of a recipe, as TOML: what `--set` may change."""
    typer.echo(recipe.preset(name).toml(), nl=False)


@app.command("doctor")
def show_doctor() -> None:
    """Shows versions, the native build and what the machine offers."""
    for line in doctor.report():
        typer.echo(line)


@app.command()
def selftest(
    privacy: Annotated[
        bool, typer.Option("--privacy", help="Check noise, sampling and clipping.")
    ] = False,
    run: Annotated[Path | None, typer.Option(help="Run whose ledger shall say so.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default what is there.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object, nothing else.")] = False,
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
        typer.echo(json.dumps({**asdict(found), "checks": checks}, indent=2, ensure_ascii=False))
    if found.failed:
        raise SystemExit(_FOUND_WRONG)


RunArgument = Annotated[Path, typer.Argument(help="Run folder.")]


@app.command("export")
def export_images(
    run: RunArgument,
    to: Annotated[
        str, typer.Option(help="folder, zip, parquet or npz; diffusers for the network.")
    ],
    out: Annotated[Path, typer.Option(help="File (zip) or folder to make.")],
    count: Annotated[int | None, typer.Option(help="The first so many; default all.")] = None,
    quiet: Annotated[bool, typer.Option(help="Warnings and errors only.")] = False,
) -> None:
    """Writes a run's synthetic images, or its network, with a card that says what is promised."""
    exporting.export(run, to, out, Reporter(quiet), count)


@app.command("report")
def make_report(run: RunArgument) -> None:
    """Writes a run's report.html anew: what was done and what is promised, for any reader."""
    typer.echo(write_report(run))


@ledger_app.command("show")
def show_ledger(run: RunArgument) -> None:
    """Shows when what was reserved and released, and ε so far."""
    for line in audit.show(run):
        typer.echo(line)


@ledger_app.command("verify")
def verify_ledger(run: RunArgument) -> None:
    """Recomputes ε from the ledger and holds it against what the run has made; JSON."""
    result = audit.verify(run)
    typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
    if result["problems"]:
        raise SystemExit(_FOUND_WRONG)


@ledger_app.command("compose")
def compose_ledgers(
    runs: Annotated[list[Path], typer.Argument(help="Run folders on the same people.")],
    delta: Annotated[
        float | None, typer.Option(help="δ of the joint ε; default the runs' smallest.")
    ] = None,
) -> None:
    """States the joint ε of several runs on the same people; JSON."""
    typer.echo(json.dumps(audit.compose(runs, delta), indent=2, ensure_ascii=False))


@data_app.command("inspect")
def inspect_data(
    path: Annotated[Path, typer.Argument(help="Image set: file, folder or pattern.")],
    grid: Annotated[Path | None, typer.Option(help="PNG to write: images of each class.")] = None,
    image_size: Annotated[int, typer.Option(help="Height and width in the grid, pixels.")] = 32,
    channels: Annotated[int, typer.Option(help="1 for grey, 3 for RGB.")] = 3,
) -> None:
    """Shows format, classes and sizes of a public image set, and its damaged and odd images.

    Of sensitive images, nothing that this command prints or writes may be released: it is not
    covered by any ε.
    """
    check_count("--image-size", image_size)
    check_choice("--channels", str(channels), ("1", "3"))
    found = inspection.inspect(path, ImageShape(image_size, channels))
    for line in inspection.report(found):
        typer.echo(line)
    if grid is not None:
        inspection.write_grid(grid, found)
        typer.echo(f"grid      {grid}")


def _class_names(text: str) -> tuple[str, ...]:
    """`a,b,c` as it stands; a number n as "0" … "n - 1"."""
    if text.isdecimal():
        return tuple(str(label) for label in range(int(text)))
    return _listed(text)


def _listed(text: str) -> tuple[str, ...]:
    """The parts of `a,b,c`."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _given(options: dict[str, Any], settings: list[str] | None) -> dict[str, Any]:
    """The recipe values that options and --set have given."""
    given = {name: value for name, value in options.items() if value is not None}
    return given | dict(recipe.parse_override(text) for text in settings or [])


def _reporter(quiet: bool, max_minutes: float | None) -> Reporter:
    """One that stops a loop after so long, or on a signal."""
    reporter = Reporter(quiet, None if max_minutes is None else 60 * max_minutes)
    _stop_cleanly_on_signals(reporter)
    return reporter


def _stop_cleanly_on_signals(reporter: Reporter) -> None:
    """The first Ctrl-C or SIGTERM stops at a step boundary, the second at once."""

    def stop(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        reporter.warn("stopping at the next step; once more to stop at once")
        reporter.request_stop()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


def main() -> None:
    """Entry point: a user's mistake ends in one line and status 2."""
    try:
        sys.exit(app(standalone_mode=False))
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(_USER_ERROR)
    except TyperException as error:
        if message := error.format_message():
            typer.echo(f"error: {message}", err=True)
        sys.exit(_USER_ERROR)
    except Stopped as stopped:
        typer.echo(f"{stopped}; nothing is lost. Run the same command again to go on.")
