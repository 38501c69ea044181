"""A run's folder: which stages are done or begun, from which recipe, and what may not change."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from privimage import durable, machine
from privimage.errors import UserError
from privimage.recipe import Recipe, differences, from_toml

_RECORD = "stage.json"
_FIELDS = {"recipe": dict[str, str], "seconds": float, "peak_memory_mib": int | None}
_DECLARED = {
    "names": list[str],
    "public_size": int,
    "public_size_was_declared": bool,
}
CHECKPOINTS = "checkpoints"

STAGE_NAMES = (
    "classifier",
    "query",
    "selection",
    "pretrain",
    "finetune",
    "synthetic",
    "evaluation",
)
"""Those of `schedule.STAGES`, in their order; a run may leave some out."""

# What leaves the stages that the ledger vouches for: their hashes stand in it.
RELEASES = {
    "query": "histogram.safetensors",
    "finetune": "network.safetensors",
    "synthetic": "images.parquet",
}


class RunFolder:
    """One folder a stage; it bears its name when it is whole, and `.NAME.partial` before."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def ledger(self) -> Path:
        """The privacy ledger."""
        return self.path / "ledger.jsonl"

    @property
    def report(self) -> Path:
        """The page that states what the run has done and promises."""
        return self.path / "report.html"

    def stage(self, name: str) -> Path:
        """Where the finished stage `name` is."""
        return self.path / name

    def release(self, name: str) -> Path:
        """What the finished stage `name`, one of `RELEASES`, has released."""
        return self.stage(name) / RELEASES[name]

    def partial(self, name: str) -> Path:
        """Where the stage `name` works until it is finished."""
        return self.path / f".{name}.partial"

    def checkpoints(self, name: str) -> Path:
        """Where the stage `name` keeps what it needs to go on; gone when it is finished."""
        return self.partial(name) / CHECKPOINTS

    def is_done(self, name: str) -> bool:
        """Whether the stage `name` is finished."""
        return (self.stage(name) / _RECORD).exists()

    def record(self, name: str) -> dict[str, Any]:
        """What is known of a finished or begun stage; empty if there is none."""
        for folder in (self.stage(name), self.partial(name)):
            if (folder / _RECORD).exists():
                return durable.read_record(folder / _RECORD, **_FIELDS)
        return {}

    def changed_files(self) -> list[Path]:
        """The files of finished stages that are missing or not what their stage wrote."""
        return [
            record.parent / file
            for record in sorted(self.path.glob(f"[!.]*/{_RECORD}"))
            for file, digest in _files(record).items()
            if not (record.parent / file).is_file()
            or durable.sha256(record.parent / file) != digest
        ]

    def foreign_inputs(self) -> Iterator[tuple[Path, str]]:
        """The finished and begun stages that were made from another result, and of which stage.

        A stage that is not there may come to the same result again. Stages of earlier versions say
        nothing of what they were made from.
        """
        # What a crash has left of removed stages is none.
        finished, begun = (f"{folders}/{_RECORD}" for folders in ("[!.]*", ".*.partial"))
        for record in sorted([*self.path.glob(finished), *self.path.glob(begun)]):
            for name, files in _inputs(record).items():
                if self.is_done(name) and files != self._results(name):
                    yield record.parent, name

    def _results(self, name: str) -> dict[str, str]:
        """The files of the stage `name` and their hashes; empty if it is not finished."""
        return _files(self.stage(name) / _RECORD) if self.is_done(name) else {}

    def recipe(self) -> Recipe:
        """The recipe that the run was last started with.

        Raises:
            UserError: there is no run here.
        """
        path = self.path / "recipe.toml"
        if not path.exists():
            raise UserError(f"{self.path}: there is no run in this folder (no recipe.toml)")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: not readable as text ({error}); restore it from a backup"
            ) from error
        return from_toml(text, str(path))

    def refuse_strangers(self) -> None:
        """Refuses a folder of somebody's own that has something under the name of a stage.

        The stage would take its place.

        Raises:
            UserError: names it.
        """
        if self.ledger.exists() or (self.path / "recipe.toml").exists():
            return
        for name in STAGE_NAMES:
            if os.path.lexists(self.stage(name)) and not self.is_done(name):
                raise UserError(
                    f"{self.path}: '{name}' in it was made by no run, and a stage of that name "
                    "would take its place; choose another --out"
                )

    def write_recipe(self, recipe: Recipe) -> None:
        """Keeps the recipe that the run was started with."""
        durable.write_text(self.path / "recipe.toml", recipe.toml())

    def declared(self) -> dict[str, Any]:
        """What is public about the sensitive set: see `write_declared`."""
        return durable.read_record(self.path / "declared.json", **_DECLARED)

    @property
    def is_declared(self) -> bool:
        """Whether `write_declared` was called."""
        return (self.path / "declared.json").exists()

    def write_declared(self, declared: dict[str, Any]) -> None:
        """Keeps `names` (of the labels), `public_size` and its unit for the later stages."""
        durable.write_json(self.path / "declared.json", declared)

    def refuse_changes(self, name: str, recipe: Recipe, reads: Sequence[str]) -> None:
        """Raises UserError if stage `name` was made or begun with other values of what it reads."""
        record = self.record(name)
        if not record:
            return
        # Earlier versions kept fewer values.
        part = _part(recipe, reads)
        kept = {key: value for key, value in part.items() if key in record["recipe"]}
        changes = differences(record["recipe"], kept)
        if changes:
            raise UserError(
                f"{self.path}: the stage '{name}' was made with another recipe "
                f"({'; '.join(changes)}); repeat it with --from-stage {name}, or begin a new run "
                "with --out"
            )

    @contextmanager
    def work(
        self, name: str, recipe: Recipe, reads: Sequence[str], inputs: Sequence[str] = ()
    ) -> Iterator[Path]:
        """Gives the stage `name` its folder, and publishes it when the stage returns.

        A stage that is stopped or killed finds its files there when it is run again. Of what it
        was made from, its record names the values `reads` and the results of the stages `inputs`.
        """
        partial = self.partial(name)
        durable.make_folder(partial)
        record = {
            "stage": name,
            "version": version("privimage"),
            "recipe": _part(recipe, reads),
            "inputs": {each: self._results(each) for each in inputs},
            "seconds": self.record(name).get("seconds", 0.0),
        }
        durable.write_json(partial / _RECORD, record)
        began = time.monotonic()
        try:
            yield partial
        finally:
            record["seconds"] = round(record["seconds"] + time.monotonic() - began, 2)
            record["peak_memory_mib"] = -(-machine.peak_memory() // 2**20)
            durable.write_json(partial / _RECORD, record)
        durable.remove_folder(partial / CHECKPOINTS)
        files = sorted(path for path in partial.iterdir() if path.name != _RECORD)
        record["files"] = {path.name: durable.sha256(path) for path in files}
        durable.write_json(partial / _RECORD, record)
        # Only a folder that was copied here in part can be in the way: it has no record.
        durable.remove_folder(self.stage(name))
        durable.publish_folder(partial, self.stage(name))
        # What a crash has left of one that was forgotten.
        durable.remove_folder(partial)

    def forget(self, names: Sequence[str]) -> None:
        """Removes the stages `names`, finished or begun; the ledger keeps what they cost.

        The last one first: a crash in between leaves no stage without those that it was made from.
        """
        for name in reversed(names):
            durable.remove_folder(self.stage(name))
            durable.remove_folder(self.partial(name))


def _files(record: Path) -> dict[str, str]:
    """The files of a finished stage and their hashes, as its record has them."""
    # Earlier versions kept none.
    return durable.read_record(record, files=dict[str, str] | None).get("files") or {}


def _inputs(record: Path) -> dict[str, dict[str, str]]:
    """The results that a stage was made from, by stage, and the hashes of their files."""
    kept = durable.read_record(record, inputs=dict[str, dict[str, str]] | None)
    return kept.get("inputs") or {}


def _part(recipe: Recipe, reads: Sequence[str]) -> dict[str, str]:
    """The values of `recipe` below the dotted names `reads`, as text."""
    return {
        key: str(value)
        for key, value in recipe.flat().items()
        if any(key == prefix or key.startswith(f"{prefix}.") for prefix in reads)
    }
