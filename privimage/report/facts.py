"""What a run's folder tells a reader: read here, judged by nobody, drawn by the page."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch

from privimage import dp, durable
from privimage.data import ImageShape
from privimage.data.decode import decode_all
from privimage.data.formats import open_source
from privimage.dp import History, Mechanism, SubsampledGaussian
from privimage.evaluate import Evaluation, in_order
from privimage.evaluate.result import Accuracy, Score, SetScores
from privimage.evaluate.scores import NAMES
from privimage.evaluate.settings import LABELS
from privimage.report.pictures import strip
from privimage.run import results
from privimage.run.folder import STAGE_NAMES, RunFolder

_ROWS, _COLUMNS, _BARS, _POINTS = 24, 12, 6, 10


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


def synthetic_rows(folder: RunFolder, shape: ImageShape, names: tuple[str, ...]) -> list[Row]:
    """The first synthetic images of each label, or some rows of unlabelled ones."""
    source = open_source("synthetic", folder.release("synthetic"))
    labels = min(max(len(names), 1), _ROWS)
    entries = list(islice(source.entries(), _COLUMNS * max(len(names), 1)))
    images, _ = decode_all((entry.content for entry in entries), len(entries), shape)
    found = torch.from_numpy(images)
    rows = []
    for label in range(labels):
        mine = [index for index, entry in enumerate(entries) if (entry.label or 0) == label]
        if mine:
            rows.append(Row(names[label] if names else "", strip(found[mine[:_COLUMNS]])))
    return rows


def query_rows(folder: RunFolder, names: tuple[str, ...]) -> list[Row]:
    """For each label the highest noisy counts, those of its classes, and public images of these."""
    path = folder.release("query")
    if not path.exists():
        return []
    counts = durable.read_tensors(path, "histogram")["histogram"]
    public, chosen_for = results.public_classes(folder), results.selection(folder)
    label_of = chosen_for.label_of
    examples = _examples(folder)
    rows = []
    for label in range(min(max(len(names), 1), _ROWS)):
        order = torch.sort(counts[label], descending=True).indices.tolist()
        # Other labels may have got all classes that have most votes of this one.
        mine = [index for index in order if label_of.get(index) == label][:_BARS]
        largest = max(int(counts[label].max()), 1)
        bars = []
        for rank, index in enumerate(order):
            if rank < _BARS or index in mine:
                count = int(counts[label, index])
                chosen = label_of.get(index) == label and not chosen_for.fell_back
                bars.append(Bar(public[index], count, chosen, max(count, 0) / largest))
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
    for name in STAGE_NAMES:
        record = folder.record(name)
        if record:
            yield name, record["seconds"], record.get("peak_memory_mib")


@dataclass(frozen=True)
class Metric:
    """A row of the report's table of numbers, as text; `before` is empty if it was not measured."""

    label: str
    before: str
    value: str
    note: str


def metrics(found: Evaluation) -> Iterator[Metric]:
    """The numbers of an evaluation, in the order of the tables on the terminal."""
    now, before = found.synthetic, found.pretrained or SetScores()
    for kind, accuracy in in_order(now.accuracy, LABELS):
        earlier = (before.accuracy or {}).get(kind)
        yield Metric(
            f"accuracy, {accuracy.label}",
            _percent(earlier.over_test_images.value) if earlier else "",
            _percent(accuracy.over_test_images.value),
            _note_of_accuracy(accuracy, (found.ceiling or {}).get(kind)),
        )
    for name, score in in_order(now.scores, NAMES):
        was = (before.scores or {}).get(name)
        yield Metric(
            score.label,
            f"{was.value:.3g}" if was else "",
            f"{score.value:.3g}",
            _note_of_score(score),
        )


def _note_of_accuracy(accuracy: Accuracy, ceiling: Accuracy | None) -> str:
    over = accuracy.over_test_images
    note = f"{accuracy.n_test:,} real test images"
    if over.low is not None and over.high is not None:
        note += f"; 95 % interval {_percent(over.low)} to {_percent(over.high)}"
    if ceiling is not None:
        value = _percent(ceiling.over_test_images.value)
        note += f"; {value} if trained on the sensitive images themselves, OUTSIDE ε"
    return note


def _note_of_score(score: Score) -> str:
    note = f"{score.n_synthetic:,} synthetic, {score.n_real:,} real images"
    if (floor := score.floor) is not None:
        note += (
            f"; with {floor.n:,} on either side {floor.synthetic.value:.3g}, real against real "
            f"{floor.real.value:.3g}"
        )
    return f"{note}; {'lower' if score.lower_is_better else 'higher'} is better"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
