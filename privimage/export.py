"""Gives a run's synthetic images or its network away, in the form asked for and with a card."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from privimage import durable
from privimage.data import ImageFile, ImageShape, write_parquet
from privimage.data.formats import open_source
from privimage.data.source import Source
from privimage.dp import History
from privimage.errors import UserError, check_choice, check_count
from privimage.hub import write_pipeline
from privimage.progress import Reporter
from privimage.recipe import Recipe
from privimage.release import (
    Contents,
    data_card,
    model_card,
    privacy_statement,
    write_folder,
    write_npz,
    write_zip,
)
from privimage.run import vouching
from privimage.run.folder import RunFolder

FORMS = ("folder", "zip", "parquet", "npz", "diffusers")


def export(path: Path, form: str, out: Path, reporter: Reporter, count: int | None = None) -> None:
    """Writes the synthetic images of a run, or its network; `out` appears whole or not at all.

    Memory grows with the number of images for a zip (some 50 bytes an image) and for the labels of
    a NumPy archive (8) alone.

    Args:
        path: the run folder.
        form: one of `FORMS`; "zip" makes one file with the data card in it, the others a folder;
            "diffusers" is the network.
        out: must not exist; folders that lead to it are made.
        reporter: for progress.
        count: how many images, the first ones, which are spread evenly over the labels; None for
            all.

    Raises:
        UserError: the run has no synthetic images, its ledger does not vouch for them, there are
            fewer than `count`, or `out` exists or can't be written.
    """
    check_choice("--to", form, FORMS)
    if out.exists():
        raise UserError(f"--out: '{out}' is there already; remove it, or choose another name")
    folder = RunFolder(path)
    recipe = folder.recipe()
    stage = "finetune" if form == "diffusers" else "synthetic"
    if not folder.is_done(stage):
        raise UserError(f"{path}: the stage '{stage}' is not finished; go on with train")
    history = History.read(folder.ledger)
    vouching.refuse_foreign_files(folder, history)
    statement = privacy_statement(history, recipe.sha256)
    durable.make_folder(out.parent)
    if form == "diffusers":
        _export_network(folder, recipe, out, statement)
    else:
        _export_images(folder, recipe, form, out, statement, count, reporter)


def _export_images(
    folder: RunFolder,
    recipe: Recipe,
    form: str,
    out: Path,
    statement: dict[str, Any],
    count: int | None,
    reporter: Reporter,
) -> None:
    source = open_source(str(folder.path), folder.release("synthetic"))
    wanted = source.count if count is None else count
    check_count("--count", wanted)
    if wanted > source.count:
        raise UserError(
            f"--count {wanted}: the run has made {source.count} images; make more with "
            "--set synthesis.images_per_label=… --from-stage synthetic"
        )
    shape = ImageShape(recipe.data.image_size, recipe.data.channels)
    files = _files(source, wanted, reporter)
    if form == "zip":
        contents = Contents(form, out.name, wanted, 0, source.names)
        with durable.whole_file(out) as partial:
            write_zip(partial, files, source.names, data_card(contents, statement))
        return
    with durable.whole_folder(out) as partial:
        name = "" if form == "folder" else f"images.{form}"
        if form == "folder":
            size = write_folder(partial, files, source.names)
        elif form == "npz":
            size = write_npz(partial / name, files, source.names, wanted, shape)
        else:
            write_parquet(partial / name, files, source.names, statement)
            size = (partial / name).stat().st_size
        contents = Contents(form, name, wanted, size, source.names)
        durable.write_text(partial / "README.md", data_card(contents, statement))


def _export_network(
    folder: RunFolder, recipe: Recipe, out: Path, statement: dict[str, Any]
) -> None:
    names = tuple(folder.declared()["names"])
    with durable.whole_folder(out) as partial:
        write_pipeline(
            partial,
            recipe.network.kind,
            recipe.network_shape(len(names)),
            durable.read_tensors(folder.release("finetune")),
            recipe.synthesis.sampler,
            names,
            statement,
        )
        durable.write_text(partial / "README.md", model_card(statement))


def _files(source: Source, count: int, reporter: Reporter) -> Iterator[ImageFile]:
    """The first `count` images as the PNG files that they are."""
    for _, entry in zip(reporter.steps("export", count), source.entries(), strict=False):
        yield bytes(entry.content), entry.label
