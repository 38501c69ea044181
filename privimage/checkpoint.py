"""The last two checkpoints of a loop: safetensors plus JSON, each whole or not at all."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from privimage import durable
from privimage.errors import UserError

_KEPT = 2


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a loop needs to go on: `step` steps are done."""

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints in one folder; a damaged one is passed over for the one before it."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._folder = folder
        self._warn = warn

    def save(
        self, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]
    ) -> None:
        """Makes the checkpoint after `step` steps durable, then forgets all but the last two."""
        durable.make_folder(self._folder)
        weights = self._folder / f"step-{step:08d}.safetensors"
        durable.write_tensors(weights, tensors)
        # The JSON is the mark that the pair is whole: it is written last and names the hash.
        record = {"step": step, "sha256": _hash(weights, step, state), "state": dict(state)}
        durable.write_json(weights.with_suffix(".json"), record)
        for outdated in self._records()[_KEPT:]:
            outdated.unlink()
            outdated.with_suffix(".safetensors").unlink(missing_ok=True)

    def load(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None where there never was one.

        Raises:
            UserError: there are checkpoints, but not one of them is whole.
        """
        records = self._records()
        for record in records:
            try:
                return _read(record)
            except UserError as error:
                self._warn(f"damaged checkpoint passed over: {error}")
        if records:
            raise UserError(
                f"{self._folder}: no checkpoint in it is readable; "
                "remove the folder to repeat this stage from its beginning"
            )
        return None

    def _records(self) -> list[Path]:
        """The JSON files, newest first."""
        return sorted(self._folder.glob("step-*.json"), reverse=True)


def _read(record: Path) -> Checkpoint:
    weights = record.with_suffix(".safetensors")
    fields = durable.read_record(record, step=int, sha256=str, state=dict)
    if not weights.exists():
        raise UserError(f"{weights}: is missing")
    if _hash(weights, fields["step"], fields["state"]) != fields["sha256"]:
        raise UserError(f"{weights}: its content, or that of its record, is not what was saved")
    return Checkpoint(fields["step"], durable.read_tensors(weights), fields["state"])


def _hash(weights: Path, step: int, state: Mapping[str, Any]) -> str:
    """Covers the tensors and what the record says beside them."""
    content = [durable.sha256(weights), step, dict(state)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
