"""The commands that make a run, whole or stage by stage, measure its images, give them away."""

import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from privimage import assessment, export, pipeline, recipe
from privimage.cli import options
from privimage.errors import UserError
from privimage.pipeline.schedule import STAGES, Scope, Stage
from privimage.progress import Reporter
from privimage.report import write_report
from privimage.run.folder import RunFolder

app = typer.Typer()
_DEFAULT_PRESET = "digits"
_BY_STAGE = "One stage of a run"
_stages = options.one_of(lambda: (stage.name for stage in STAGES))


@app.command()
def train(
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"Recipe, one of `presets`; default: the run's, or else {_DEFAULT_PRESET}.",
            autocompletion=options.one_of(recipe.preset_names),
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/PRESET.")] = None,
    sensitive: Annotated[str | None, typer.Option(help="Images to protect.")] = None,
    public: options.Public = None,
    test: options.Test = None,
    classes: options.Classes = None,
    public_size: Annotated[
        int | None,
        typer.Option(
            help="Number of sensitive images or persons; default: their count, made public."
        ),
    ] = None,
    unit: options.Unit = None,
    person: options.Person = None,
    image_size: options.ImageSize = None,
    channels: options.Channels = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Privacy budget; inf for no privacy.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="Below 1 / number of images or persons.")
    ] = None,
    selection: Annotated[
        str | None,
        typer.Option(
            help="How public classes are chosen: semantic, all or none.",
            autocompletion=options.one_of(lambda: recipe.WORDS["selection.mode"]),
        ),
    ] = None,
    seed: options.Seed = None,
    set_: options.Set = None,
    from_stage: Annotated[
        str | None,
        typer.Option(help="Repeat this stage and the later ones.", autocompletion=_stages),
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="The last stage to do.", autocompletion=_stages)
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be done, its ε and its time; do nothing."),
    ] = False,
    json_: options.Json = False,
    max_minutes: options.MaxMinutes = None,
    threads: options.Threads = None,
    max_memory: options.MaxMemory = None,
    device: options.Device = None,
    quiet: options.Quiet = False,
) -> None:
    """Turns sensitive images into a synthetic data set; run it again to go on."""
    _train(locals(), Scope(from_stage, until))


def _train(given: dict[str, Any], scope: Scope) -> None:
    """What `train` does with its options, for some or all stages."""
    path = given["out"] or Path("runs") / (given["preset"] or _DEFAULT_PRESET)
    values = options.recipe_values(given, given["set_"])
    if given["preset"] is None and (path / "recipe.toml").exists():
        chosen = recipe.override(RunFolder(path).recipe(), values)
    else:
        chosen = _new_recipe(given["preset"], values, path)
    reporter = options.reporter(given["quiet"] or given["json_"], given["max_minutes"])
    machine = pipeline.Machine(given["device"], given["threads"], given["max_memory"])
    if given["dry_run"]:
        plan, found = pipeline.dry_run(chosen, path, machine, reporter, scope)
        result = {"plan": None if plan is None else asdict(plan), **asdict(found)}
    else:
        pipeline.train(chosen, path, machine, reporter, scope)
        metrics = path / "evaluation" / "metrics.json"
        result = json.loads(metrics.read_text(encoding="utf-8")) if metrics.exists() else {}
    if given["json_"]:
        options.print_json({"run": str(path), **result})


def _new_recipe(preset: str | None, values: dict[str, Any], path: Path) -> recipe.Recipe:
    """The recipe of a run that has none yet; nobody's own images get the demo's by default."""
    if preset is None and RunFolder(path).ledger.exists():
        raise UserError(
            f"{path}: this run was stopped before it had begun, so it has no recipe yet; give its "
            "options again, --preset among them"
        )
    if preset is None and values.get("data.sensitive"):
        raise UserError("--sensitive: say how with --preset; `privimage presets` lists the recipes")
    chosen = recipe.preset(preset or _DEFAULT_PRESET, values)
    if (
        values.get("data.sensitive")
        and "data.public" not in values
        and chosen.selection.mode != "none"
    ):
        raise UserError(
            "--sensitive: name the public images too, with --public PATH, or use --selection none; "
            "`privimage presets` lists the recipes"
        )
    return chosen


def _stage_command(stage: Stage) -> Callable[..., None]:
    """A command with the options of `train` that does one stage."""

    @functools.wraps(train)
    def command(**given: Any) -> None:
        _train(given, Scope(only=stage.name))

    signature = inspect.signature(train)
    kept = [p for p in signature.parameters.values() if p.name not in ("from_stage", "until")]
    command.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    command.__doc__ = f"{stage.work.__doc__} Takes the options of `train`."
    return command


for _stage in STAGES:
    if _stage.name != "evaluation":
        app.command(_stage.command, rich_help_panel=_BY_STAGE)(_stage_command(_stage))


@app.command(rich_help_panel=_BY_STAGE)
def evaluate(
    target: Annotated[Path, typer.Argument(help="Run folder, or a set of synthetic images.")],
    test: options.Test = None,
    public: options.Public = None,
    classes: options.Classes = None,
    image_size: options.ImageSize = None,
    channels: options.Channels = None,
    features: Annotated[
        str | None,
        typer.Option(help="Features: efficientnet-lite0, inception or torchvision:NETWORK."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="File of the features' weights; default: torch's hub cache.")
    ] = None,
    classifiers: Annotated[
        str | None, typer.Option(help="Some of cnn, resnet9, wrn40_4, mlp, logistic: a,b,c.")
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="Trainings of each classifier.")] = None,
    ceiling: Annotated[
        bool | None,
        typer.Option("--ceiling", help="Also train on a run's sensitive images: OUTSIDE ε."),
    ] = None,
    sensitive_duplicates: Annotated[
        bool | None,
        typer.Option(
            "--sensitive-duplicates", help="Also find near duplicates of those: OUTSIDE ε."
        ),
    ] = None,
    seed: options.Seed = None,
    set_: options.Set = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON file for the figures; lets a stopped call go on.")
    ] = None,
    max_minutes: options.MaxMinutes = None,
    threads: options.Threads = None,
    device: options.Device = None,
    quiet: options.Quiet = False,
) -> None:
    """Measures synthetic images on real ones: accuracies, FID and its kin, near duplicates."""
    values = options.recipe_values(locals(), set_)
    machine = pipeline.Machine(device=device, threads=threads)
    assessment.assess(target, values, machine, options.reporter(quiet, max_minutes), out)


@app.command("export")
def export_images(
    run: options.Run,
    to: Annotated[
        str,
        typer.Option(
            help="folder, zip, parquet or npz; diffusers for the network.",
            autocompletion=options.one_of(lambda: export.FORMS),
        ),
    ],
    out: Annotated[Path, typer.Option(help="File (zip) or folder to make.")],
    count: Annotated[
        int | None, typer.Option(help="Only the first so many images; default: all.")
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Writes a run's synthetic images, or its network, with a card that says what is promised."""
    export.export(run, to, out, Reporter(quiet), count)


@app.command("report")
def make_report(run: options.Run) -> None:
    """Writes a run's report.html anew: what was done and what is promised, for any reader."""
    typer.echo(write_report(run))
