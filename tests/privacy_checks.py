"""Checks of what a self-test can't see: the query, the ledger, files, and what a run leaves.

Each takes a folder and raises AssertionError where a promise is broken. Statistical ones have a
false-alarm probability of at most 1e-6 each, and draw fresh randomness.
"""

import contextlib
import dataclasses
import io
import math
import os
import pickle
import re
import zipfile
from types import SimpleNamespace

import pytest
import torch
from disk import Disk
from PIL import Image
from scipy import stats
from torch import nn

from privimage import data, durable
from privimage.diffusion.ema import ema_decay
from privimage.dp import (
    GRID_UNITS,
    ClipRule,
    ExampleGradients,
    History,
    Ledger,
    Plan,
    SubsampledGaussian,
    plan,
    planned_clipped_sum,
)
from privimage.errors import UserError
from privimage.pipeline import stages
from privimage.progress import Reporter
from privimage.run import vouching
from privimage.run.folder import RunFolder
from privimage.selftest import probe
from privimage.selftest.checks import ALPHA
from privimage.semantics import query
from privimage.semantics.selection import SelectionSettings
from privimage.synthesis import finetune
from privimage.threads import Workers

WORKERS = Workers(1)
HASH = "ab" * 32
UNBOUNDED = Plan(math.inf, 1e-3, 0.0, SubsampledGaussian(0.5, 0.0, 8))


@contextlib.contextmanager
def refusal(words):
    """What is done in here must be refused, in a line with these `words`."""
    said = ""
    try:
        yield
    except UserError as error:
        said = str(error)
    assert words in said


class _Products(nn.Module):
    """A layer and a table; an example brings along what goes in and its output's gradient."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8, bias=False)
        self.table = nn.Embedding(40, 8)

    def forward(self, x, grad, words):
        """[rows, 24, 8] twice, [rows, 24] -> [rows]."""
        return ((self.layer(x) + self.table(words)) * grad).sum((1, 2))


def check_ghosts_and_tables(folder):
    """An example whose products cancel, and one that reads a word again and again, are clipped."""
    x, grad = torch.randn(1, 8, 8), (64 * torch.randn(2, 1, 8, 8)).round() / 64
    cancelling = 64 * x.repeat(1, 3, 1), torch.cat([*grad, -grad.sum(0)], 1)
    repeating = torch.zeros(1, 24, 8), torch.ones(1, 24, 8)
    words = torch.arange(24)[None], torch.full((1, 24), 7)
    for (x, grad), read in zip((cancelling, repeating), words, strict=True):
        model, batch = _Products(), (x, grad, read)
        chosen = plan(model, batch, losses=lambda model, *batch: model(*batch))
        chosen = chosen.choosing("layer", "ghost").choosing("table", "recompute")
        total = planned_clipped_sum(
            ExampleGradients(model),
            lambda model, *batch: model(*batch),
            *batch,
            plan=chosen,
            rule=ClipRule(2.0**-20, "per_layer"),
        )
        norms = [float(part.double().norm()) for part in total.split([64, 320])]
        assert max(norms) <= GRID_UNITS / 2**0.5
        assert max(norms) > 0.1 * GRID_UNITS


def check_micro_batches(folder):
    """How a batch is cut does not matter, but for the rounding of a convolution."""
    with probe.known_key():
        one, other = probe.tuner(probe.images(9)), probe.tuner(probe.images(9))
        other._plan = dataclasses.replace(other._plan, examples=2)
        difference = probe.gradients(one, 3, probe.PUBLIC_SIZE) - probe.gradients(
            other, 3, probe.PUBLIC_SIZE
        )
    assert difference.abs().max() < 1e-3


def check_release(folder):
    """What is released is the average over all steps, whatever they did for the images."""
    system = probe.tuner(probe.images(8))
    average = system.tensors()["parameters"].double()
    for update in range(1, 7):
        system.step()
        decay = ema_decay(update, 0.9)
        average = decay * average + (1 - decay) * system.tensors()["parameters"].double()
    assert torch.allclose(system.released().double(), average, atol=1e-6)


def check_checkpoint(folder):
    """A checkpoint holds weights, moments, average and step: no key, no count, no raw gradient."""
    system = probe.tuner(probe.images(8))
    system.step()
    assert system.tensors().keys() == {"parameters", "step", "exp_avg", "exp_avg_sq", "ema"}


def finetuned(folder, count, steps=3):
    """What DP fine-tuning on `count` images prints, and the files it leaves with their sizes."""
    settings = finetune.FinetuneSettings(sample_rate=0.5, steps=steps, draws=1)
    out = io.StringIO()
    folder.mkdir()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
        Ledger(folder / "ledger.jsonl") as ledger,
    ):
        ledger.set_plan(UNBOUNDED)
        finetune.finetune(
            ledger,
            probe.images(count),
            probe.Network(),
            settings,
            probe.PUBLIC_SIZE,
            folder / "checkpoints",
            WORKERS,
            Reporter(),
        )
    files = {
        str(file.relative_to(folder)): file.stat().st_size
        for file in folder.rglob("*")
        if file.is_file()
    }
    return re.sub(r"\d+ s to go", "", out.getvalue()), files


def check_public_traces(folder):
    """What is printed, and which files of what size there are, is the same with an image more."""
    one, other = (finetuned(folder / f"of{count}", count) for count in (8, 9))
    assert one == other
    assert "DP fine-tuning: 3/3" in one[0]
    assert len(one[1]) == 5


def ask(folder, sensitive, votes=2, classes=50, predict=None):
    """A noisy histogram with σ_q = 3 and a ledger of its own."""
    steps = SubsampledGaussian(0.1, 5.0, 10)
    path = folder / f"{len(list(folder.iterdir()))}.jsonl"
    with Ledger(path) as ledger:
        ledger.set_plan(Plan(10.0, 1e-3, 3.0, steps))
        logits = torch.randn(64, classes, generator=torch.Generator().manual_seed(3))
        logits[8:] = math.nan
        settings = query.QuerySettings(votes_per_image=votes)
        predict = predict or (lambda pixels: logits[: len(pixels)])
        return query.noisy_histogram(ledger, sensitive, predict, classes, settings)


def check_query_sensitivity(folder):
    """One image more adds one vote to each of k1 cells of one row, also where logits are NaN."""
    with probe.known_key():
        for count in (7, 8):
            change = ask(folder, probe.images(count + 1)) - ask(folder, probe.images(count))
            assert change.min() == 0
            assert change.max() == 1
            assert change.sum() == 2
            assert (change.sum(1) > 0).sum() == 1


def check_query_noise(folder):
    """The counts of no image are noise with a standard deviation of σ_q √k1, fresh every time."""
    one, other = (ask(folder, probe.images(0), classes=20_000).double() for _ in range(2))
    assert not torch.equal(one, other)
    for counts in (one, other):
        chi2 = float(counts.square().sum()) / (9.0 * 2)
        tail = min(stats.chi2.cdf(chi2, counts.numel()), stats.chi2.sf(chi2, counts.numel()))
        assert tail > ALPHA


def check_query_is_reserved(folder):
    """The ledger on disk has the query before anybody looks at an image."""
    seen = []

    def predict(pixels):
        (path,) = folder.iterdir()
        seen.append(sum('"query"' in line and '"reserve"' in line for line in lines(path)))
        return torch.zeros(len(pixels), 50)

    ask(folder, probe.images(8), predict=predict)
    assert seen == [1]


def selected(folder, histogram):
    """Which label each public class goes to, by the stage that selects, from this noisy file."""
    run = SimpleNamespace(
        recipe=SimpleNamespace(selection=SelectionSettings("semantic", 2)),
        names=probe.NAMES,
        public_names=tuple(str(number) for number in range(histogram.shape[1])),
        folder=RunFolder(folder),
        reporter=Reporter(quiet=True),
    )
    for stage in ("query", "selection"):
        (folder / stage).mkdir(parents=True)
    durable.write_tensors(folder / "query/histogram.safetensors", {"histogram": histogram})
    durable.write_json(folder / "query/query.json", {"noise_std": 1.0})
    stages.select(run, folder / "selection")
    return durable.read_json(folder / "selection/selection.json")["label_of"]


def check_selection(folder):
    """The selection follows the noisy file, and nothing else that may be about."""
    noisy = torch.randint(0, 1000, (4, 50), generator=torch.Generator().manual_seed(4))
    one = selected(folder / "one", noisy)
    other = selected(folder / "other", noisy.flip(1))
    assert other == {str(49 - int(number)): label for number, label in one.items()}


def check_cached_query(folder):
    """A result is used only if its head and its hash are in this very ledger."""
    run = RunFolder(folder)
    histogram = run.stage("query") / "histogram.safetensors"
    histogram.parent.mkdir()
    durable.write_tensors(histogram, {"histogram": torch.zeros(1)})
    with Ledger(folder / "other.jsonl") as other:
        other.set_plan(UNBOUNDED)
        other.reserve_query()
        foreign = other.head
    with Ledger(run.ledger) as ledger:
        ledger.set_plan(UNBOUNDED)
        ledger.reserve_query()
        durable.write_json(histogram.with_name("query.json"), {"ledger_head": ledger.head})
        with refusal("is not what"):
            vouching.refuse_foreign_files(run, ledger)
        ledger.complete("query", durable.sha256(histogram))
        vouching.refuse_foreign_files(run, ledger)
        durable.write_json(histogram.with_name("query.json"), {"ledger_head": foreign})
        with refusal("is older than"):
            vouching.refuse_foreign_files(run, ledger)


def check_durability(folder):
    """A reservation that has returned is there after a power cut."""
    path = folder / "ledger.jsonl"
    disk = Disk(path)
    with pytest.MonkeyPatch.context() as patch:
        disk.replace_os(patch)
        with Ledger(path) as ledger:
            ledger.set_plan(UNBOUNDED)
            ledger.reserve_query()
            ledger.step_budget(4).reserve(4)
    disk.after_power_cut()
    assert len(History.read(path).spent()) == 2


def check_no_refunds(folder):
    """What was reserved stays spent, whatever became of it, the query too."""
    path = folder / "ledger.jsonl"
    for start in range(3):
        with Ledger(path) as ledger:
            ledger.set_plan(UNBOUNDED)
            assert len(ledger.spent()) == 2 * start
            ledger.reserve_query()
            ledger.step_budget(8).reserve(2)
    assert len(History.read(path).spent()) == 6


def check_budget(folder):
    """However often a run starts again, ε of all that it reserved is within the budget."""
    path = folder / "ledger.jsonl"
    for start in range(3):
        with Ledger(path) as ledger:
            ledger.set_plan(Plan(1.0, 1e-3, None, SubsampledGaussian(0.2, 4.0, 200)))
            budget = ledger.step_budget(200)
            with refusal("pays for"):
                budget.reserve(budget.left + 1)
            if start < 2 and budget.left:
                budget.reserve(budget.left // (2 - start))
    assert History.read(path).epsilon(1e-3).upper <= 1.0


def check_reservations(folder):
    """Before a step draws its noise, the ledger on disk has it; a resumed run pays again."""
    steps = SubsampledGaussian(0.5, 3.0, 8)
    settings = finetune.FinetuneSettings(sample_rate=0.5, steps=8, draws=1, reservation=2)
    path, seen = folder / "reserved.jsonl", []
    step = finetune.Finetuner.step

    def watched(system):
        reserved = sum('"finetune"' in line and '"reserve"' in line for line in lines(path))
        seen.append(2 * reserved)
        return step(system)

    finetune.Finetuner.step = watched
    try:
        with Ledger(path) as ledger:
            ledger.set_plan(Plan(math.inf, 1e-3, None, steps))
            finetune.finetune(
                ledger,
                probe.images(8),
                probe.Network(),
                settings,
                probe.PUBLIC_SIZE,
                folder / "checkpoints",
                WORKERS,
                Reporter(quiet=True),
            )
    finally:
        finetune.Finetuner.step = step
    assert len(seen) == 8
    assert all(reserved >= taken for taken, reserved in enumerate(seen, start=1))


class Bomb:
    """Whoever unpickles it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def check_untrusted_weights(folder):
    """A pickle that calls itself safetensors is refused, and nothing in it is called."""
    path = folder / "model.safetensors"
    path.write_bytes(pickle.dumps(Bomb(folder / "exploded")))
    with contextlib.suppress(UserError):
        durable.read_tensors(path)
    assert not (folder / "exploded").exists()


def check_untrusted_archive(folder):
    """The images of an archive are read in memory; no file of it reaches the disk."""
    picture = io.BytesIO()
    Image.new("L", (4, 4)).save(picture, "PNG")
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for name in ("a/1.png", "b/2.png", "../c/3.png", "notes.txt"):
            archive.writestr(name, picture.getvalue())
    found = data.load_sensitive(str(folder / "images.zip"), data.ImageShape(4, 1), None)
    assert len(found) == 2
    assert [path.name for path in folder.iterdir()] == ["images.zip"]


def lines(path):
    """The lines of a ledger as they are on disk."""
    return path.read_text().splitlines()
