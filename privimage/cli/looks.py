"""The commands that show what there is: presets, an image set, this machine."""

from pathlib import Path
from typing import Annotated

import typer

from privimage import doctor, inspection, recipe
from privimage.cli import options
from privimage.data import ImageShape, PersonKey
from privimage.errors import check_choice, check_count

app = typer.Typer()
presets = typer.Typer(help="Lists the recipes, or shows one.")
app.add_typer(presets, name="presets")
data = typer.Typer(help="Looks at image sets.", no_args_is_help=True)
app.add_typer(data, name="data")


@presets.callback(invoke_without_command=True)
def list_presets(context: typer.Context) -> None:
    """Lists the recipes that `train --preset` knows."""
    if context.invoked_subcommand is None:
        for name in recipe.preset_names():
            typer.echo(f"{name:<16} {recipe.preset_title(name)}")


@presets.command("show")
def show_preset(
    name: Annotated[
        str,
        typer.Argument(
            help="One of those that `presets` lists.",
            autocompletion=options.one_of(recipe.preset_names),
        ),
    ],
) -> None:
    """Shows every value of a recipe, as TOML: what `--set` may change."""
    typer.echo(recipe.preset(name).toml(), nl=False)


@app.command("doctor")
def show_doctor() -> None:
    """Shows versions, the native build and the machine; status 1 if an operator is wrong."""
    for line in doctor.report():
        typer.echo(line)
    wrong = []
    for device, check in doctor.self_test():
        typer.echo(doctor.in_words(device, check))
        if not check.agrees:
            wrong.append(f"{check.name} on {device}")
    if wrong:
        typer.echo(
            f"error: {', '.join(wrong)} disagrees with the reference, so nothing that this build "
            "computes can be relied on; build it anew, or without native code "
            "(PRIVIMAGE_BUILD=none)",
            err=True,
        )
        raise SystemExit(options.FOUND_WRONG)


@data.command("inspect")
def inspect_data(
    path: Annotated[Path, typer.Argument(help="Image set: file, folder or pattern.")],
    person: options.Person = None,
    grid: Annotated[
        Path | None, typer.Option(help="PNG file to write: images of each class.")
    ] = None,
    image_size: Annotated[int, typer.Option(help="Height and width in the grid, pixels.")] = 32,
    channels: Annotated[int, typer.Option(help="1 for grey, 3 for RGB.")] = 3,
) -> None:
    """Shows format, classes and sizes of a public image set, and its damaged and odd images.

    Of sensitive images, nothing that this command prints or writes may be released: it is not
    covered by any ε.
    """
    check_count("--image-size", image_size)
    check_choice("--channels", str(channels), ("1", "3"))
    key = None if person is None else PersonKey.parse(person)
    found = inspection.inspect(path, ImageShape(image_size, channels), key)
    for line in inspection.report(found):
        typer.echo(line)
    if grid is not None:
        inspection.write_grid(grid, found)
        typer.echo(f"grid      {grid}")
