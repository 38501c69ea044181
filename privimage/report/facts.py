"""What a run's folder tells a reader: read here, judged by nobody, drawn by the page."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from privimage import dp, durable
from privimage.data import ImageShape
from privimage.data.decode import decode_all
from privimage.data.formats import open_source
from privimage.dp import History, Mechanism, SubsampledGaussian
from privimage.report.pictures import strip
from privimage.run import RunFolder

_ROWS, _COLUMNS, _BARS, _POINTS = 24, 12, 6, 10
STAGES = {
    "classifier": "A classifier learnt the classes of the public images.",
    "query": "Each sensitive image voted for the public classes that it resembles; the counts were "
    "released with noise.",
    "selection": "For each label the public classes with the highest noisy counts were chosen.",
    "pretrain": "A diffusion network learnt to draw the chosen public images.",
    "finetune": "The network was fine-tuned on the sensitive images: every image's influence on a "
    "step was clipped, and noise added.",
    "synthetic": "The network drew the synthetic images.",
    "evaluation": "The synthetic images were measured on images that their owner declared public.",
}
SENSITIVE = ("query", "finetune")


@dataclass(frozen=True)
class Bar:
    """A noisy count: of a public class, whether it was chosen, and its share of the largest."""

    name: str
    count: int
    chosen: bool
    share: float


@dataclass(frozen=True)
class Row:
    """A label and what belongs to it: a strip of images, and counts if there was a query."""

    name: str
    picture: str
    bars: tuple[Bar, ...] = ()


def epsilon_curve(history: History) -> tuple[list[int], list[float]]:
    """ε (upper bound) after so many steps of the plan in force, on top of all else that was spent.

    The first point is that of all else alone: the query, and what an earlier plan has cost.
    """
    plan = history.plan_in_force()
    rate, noise = plan.finetune.sample_rate, plan.finetune.noise_multiplier
    total, other = 0, list[Mechanism]()
    for part in history.spent():
        if isinstance(part, SubsampledGaussian) and part == SubsampledGaussian(
            rate, noise, part.steps
        ):
            total += part.steps
        else:
            other.append(part)
    counts = sorted({max(1, round(total * part / _POINTS)) for part in range(1, _POINTS + 1)})
    steps = SubsampledGaussian(rate, noise, total)
    bounds = dp.epsilon_over_steps(steps, counts, plan.delta, other)
    first = dp.epsilon(other, plan.delta).upper
    return [0, *counts], [first, *(point.upper for point in bounds)]


def pretraining_curve(folder: RunFolder) -> tuple[list[int], list[float]]:
    """Steps and the mean loss on public images up to each; empty if it was not kept."""
    path = folder.stage("pretrain") / "losses.json"
    values = durable.read_json(path) if path.exists() else {"steps": [], "losses": []}
    return values["steps"], values["losses"]


def synthetic_rows(folder: RunFolder, shape: ImageShape, names: tuple[str, ...]) -> list[Row]:
    """The first synthetic images of each label, or some rows of unlabelled ones."""
    source = open_source("synthetic", folder.stage("synthetic") / "images.parquet")
    labels = min(max(len(names), 1), _ROWS)
    entries = list(islice(source.entries(), _COLUMNS * max(len(names), 1)))
    images, _ = decode_all((entry.content for entry in entries), len(entries), shape, None)
    found = torch.from_numpy(images)
    rows = []
    for label in range(labels):
        mine = [index for index, entry in enumerate(entries) if (entry.label or 0) == label]
        if mine:
            rows.append(Row(names[label] if names else "", strip(found[mine[:_COLUMNS]])))
    return rows


def query_rows(folder: RunFolder, names: tuple[str, ...]) -> list[Row]:
    """For each label the highest noisy counts, and public images of the classes chosen by them."""
    path = folder.stage("query") / "histogram.safetensors"
    if not path.exists():
        return []
    counts = durable.read_tensors(path)["histogram"]
    public = durable.read_json(folder.stage("classifier") / "classifier.json")["classes"]
    selection = durable.read_json(folder.stage("selection") / "selection.json")
    label_of = {int(index): label for index, label in selection["label_of"].items()}
    examples = _examples(folder)
    rows = []
    for label in range(min(max(len(names), 1), _ROWS)):
        order = torch.sort(counts[label], descending=True).indices[:_BARS].tolist()
        largest = max(int(counts[label].max()), 1)
        bars = []
        for index in order:
            count = int(counts[label, index])
            chosen = label_of.get(index) == label and not selection["fell_back"]
            bars.append(Bar(public[index], count, chosen, max(count, 0) / largest))
        mine = [index for index in order if label_of.get(index) == label]
        shown = [examples[index] for index in mine if index in examples]
        picture = strip(torch.cat(shown)) if shown else ""
        rows.append(Row(names[label] if names else "all images", picture, tuple(bars)))
    return rows


def _examples(folder: RunFolder) -> dict[int, torch.Tensor]:
    """Public images of the chosen classes, by number of the class; some have none."""
    path = folder.stage("pretrain") / "examples.safetensors"
    tensors = durable.read_tensors(path) if path.exists() else {}
    return {int(name): images for name, images in tensors.items()}


def costs(folder: RunFolder) -> Iterator[tuple[str, float, float | None]]:
    """Stage, seconds, and the process's peak memory (MiB) up to its end, in order."""
    for name in STAGES:
        record = folder.record(name)
        if record:
            yield name, record["seconds"], record.get("peak_memory_mib")


def metric_rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The numbers of an evaluation, a row each, and its caveats.

    A row has `label`, `value` and, where known, `before` (before DP fine-tuning), `note`,
    `is_fraction`. What a later version adds is left out rather than shown without its meaning.
    """
    if not path.exists():
        return [], []
    metrics = durable.read_json(path)
    now, before = metrics.get("synthetic", metrics), metrics.get("pretrained") or {}
    rows = []
    for kind, value in (now.get("accuracy") or {}).items():
        old = (before.get("accuracy") or {}).get(kind)
        rows.append(_accuracy(kind, value) | {"before": _number(old)})
    earlier = _scores_of(before)
    for name, score in _scores_of(now).items():
        rows.append(_score(score) | {"before": _number(earlier.get(name))})
    return rows, list(metrics.get("caveats") or ())


def _scores_of(values: dict[str, Any]) -> dict[str, Any]:
    scores = values.get("scores") or {"fid": values.get("fid")}
    return {name: score for name, score in scores.items() if score}


def _number(value: Any) -> float | None:
    """The number in an accuracy or a score, however it is wrapped."""
    if isinstance(value, dict):
        return _number(value.get("value", value.get("over_test_images")))
    return None if value is None else float(value)


def _accuracy(kind: str, value: Any) -> dict[str, Any]:
    facts = value if isinstance(value, dict) else {}
    interval = facts.get("over_test_images") or {}
    note = f"{facts['n_test']:,} real test images" if "n_test" in facts else "on real test images"
    if interval.get("low") is not None:
        note += f"; 95 % interval {interval['low']:.1%} to {interval['high']:.1%}"
    label = f"accuracy, {facts.get('label', kind)}"
    return {"label": label, "value": _number(value), "note": note, "is_fraction": True}


def _score(score: dict[str, Any]) -> dict[str, Any]:
    note = f"{score['n_synthetic']:,} synthetic, {score['n_real']:,} real images"
    floor = score.get("floor")
    if floor:
        real, synthetic = (_number(floor[name]) for name in ("real", "synthetic"))
        note += (
            f"; with {floor['n']:,} on either side {synthetic:.3g}, real against real {real:.3g}"
        )
    return {
        "label": score["label"],
        "value": _number(score),
        "note": note,
        "is_fraction": False,
        "lower_is_better": score.get("lower_is_better", True),
    }
