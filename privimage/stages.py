"""What each of the seven stages reads and writes; their order is `pipeline`'s."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from privimage import data, durable, evaluate
from privimage.data import ImageSet, ImageShape
from privimage.diffusion.compact_unet import CompactUNet
from privimage.diffusion.denoiser import Denoiser
from privimage.diffusion.pretrain import Network, pretrain
from privimage.diffusion.unet import UNet, UNetShape
from privimage.dp import DEFAULT_MEMORY, Ledger
from privimage.errors import UserError
from privimage.evaluate import Evaluation, FeatureNetwork
from privimage.progress import Reporter
from privimage.recipe import Recipe
from privimage.release import Contents, data_card, privacy_statement
from privimage.run import RunFolder
from privimage.semantics import classifier
from privimage.semantics.query import noisy_histogram
from privimage.semantics.selection import select_all, select_semantic
from privimage.synthesis.finetune import finetune
from privimage.synthesis.sample import Order, synthesise, uniform_labels
from privimage.threads import Workers

_EXAMPLES, _MOST_EXAMPLE_CLASSES = 4, 200
SYNTHETIC_ROLE = "synthetic images"
"""What messages call them."""
# What leaves the stages that the ledger vouches for: their hashes stand in it.
RELEASES = {
    "query": "histogram.safetensors",
    "finetune": "network.safetensors",
    "synthetic": "images.parquet",
}


@dataclass
class Run:
    """What the stages share: the recipe, the folder, the images, the terminal, the cores."""

    recipe: Recipe
    folder: RunFolder
    reporter: Reporter
    workers: Workers
    device: torch.device
    max_memory: float = DEFAULT_MEMORY

    @cached_property
    def shape(self) -> ImageShape:
        """Declared size and channels of every image."""
        return ImageShape(self.recipe.data.image_size, self.recipe.data.channels)

    @cached_property
    def public(self) -> ImageSet:
        """The public images."""
        reporter = self.reporter
        return data.load_public(self.recipe.data.public, self.shape, reporter.warn, reporter.steps)

    @cached_property
    def sensitive(self) -> ImageSet:
        """The sensitive images, for `query` and `finetune` alone."""
        settings, person = self.recipe.data, self.recipe.data.person_key
        # A bar would tell the number of images, which is public only where images are counted and
        # no other number was declared.
        steps = None if settings.public_size or person else self.reporter.steps
        return data.load_sensitive(
            settings.sensitive, self.shape, settings.classes or None, steps=steps, person=person
        )

    @cached_property
    def test(self) -> ImageSet:
        """The images that their owner declared public."""
        test = data.load_sensitive(self.recipe.data.test, self.shape, self.names, "--test")
        evaluate.check_test_set(test, self.names)
        return test

    @cached_property
    def declared(self) -> dict[str, Any]:
        """What is public about the sensitive set: label names, number of images or persons."""
        return self.folder.declared()

    @property
    def names(self) -> tuple[str, ...]:
        """The sensitive labels; empty for unlabelled data."""
        return tuple(self.declared["names"])

    @property
    def public_size(self) -> int:
        """The number of sensitive images, or of persons, as a public number."""
        return int(self.declared["public_size"])

    @property
    def network_shape(self) -> UNetShape:
        """The UNet's shape: the recipe's network for the declared images and labels."""
        return self.recipe.network_shape(len(self.names))

    def network(self, weights: Path | None = None) -> Network:
        """The UNet on the run's device; from `weights`, or as the seed makes it."""
        with torch.random.fork_rng():
            torch.manual_seed(self.recipe.seed)
            build = CompactUNet if self.recipe.network.kind == "compact" else UNet
            network = build(self.network_shape)
        if weights is not None:
            network.load_state_dict(durable.read_tensors(weights))
        return network.to(self.device)


def classify(run: Run, folder: Path, ledger: Ledger) -> None:
    """Stage 1: public images → classifier/model.safetensors."""
    settings, seed, names = run.recipe.classifier, run.recipe.seed, run.public.names
    model = classifier.build(settings, run.shape.channels, len(names), seed).to(run.device)
    accuracy = classifier.train_classifier(
        model, run.public, settings, seed, folder / "checkpoints", run.reporter
    )
    durable.write_tensors(folder / "model.safetensors", model.state_dict())
    facts = {"accuracy_on_held_out_public_images": accuracy, "classes": names}
    durable.write_json(folder / "classifier.json", facts)
    run.reporter.say(f"  {accuracy:.1%} right on held-out public images")


def query(run: Run, folder: Path, ledger: Ledger) -> None:
    """Stage 2: classifier and sensitive images → query/histogram.safetensors, noisy."""
    path = folder / RELEASES["query"]
    # A crash after the release leaves it here; asking again would only be charged again.
    if path.exists() and ledger.completed("query", durable.sha256(path)):
        return
    model = load_classifier(run)
    settings = run.recipe.query
    histogram = noisy_histogram(
        ledger,
        run.sensitive,
        lambda images: classifier.predict(model, images),
        len(public_names(run)),
        settings,
    )
    noise_multiplier = ledger.spent()[-1].noise_multiplier
    facts = {
        "noise_multiplier": noise_multiplier,
        "noise_std": settings.noise_std(noise_multiplier),
        "votes_per_image": settings.votes_per_image,
        "ledger_head": ledger.head,
    }
    durable.write_json(folder / "query.json", facts)
    durable.write_tensors(path, {"histogram": histogram})
    ledger.complete("query", durable.sha256(path))


def select(run: Run, folder: Path, ledger: Ledger) -> None:
    """Stage 3: noisy histogram → selection/selection.json: public class → sensitive label."""
    settings, labels, public = run.recipe.selection, len(run.names), public_names(run)
    if settings.mode == "all":
        selection = select_all(len(public), labels)
    else:
        asked = run.folder.stage("query")
        selection = select_semantic(
            durable.read_tensors(asked / "histogram.safetensors")["histogram"],
            durable.read_json(asked / "query.json")["noise_std"],
            labels,
            settings.classes_per_label,
        )
    if selection.fell_back:
        run.reporter.say("  the counts don't rise above the noise: all public classes are kept")
    rows = [*run.names, "no label"]
    chosen: dict[str, list[str]] = {}
    for public_class, label in selection.label_of.items():
        chosen.setdefault(rows[label], []).append(public[public_class])
    facts = {
        "mode": settings.mode,
        "fell_back": selection.fell_back,
        "label_of": selection.label_of,
        "chosen": chosen,
    }
    durable.write_json(folder / "selection.json", facts)


def pretrain_network(run: Run, folder: Path, ledger: Ledger) -> None:
    """Stage 4: selected public images → pretrain/network.safetensors."""
    chosen = durable.read_json(run.folder.stage("selection") / "selection.json")["label_of"]
    label_of = torch.full((len(run.public.names),), -1)
    for public_class, label in chosen.items():
        label_of[int(public_class)] = label
    labels = label_of[run.public.labels]
    kept = labels >= 0
    run.reporter.say(f"  {int(kept.sum())} of {len(kept)} public images")
    weights, losses = pretrain(
        run.network(),
        run.public.images if kept.all() else run.public.images[kept],
        labels[kept],
        run.recipe.pretrain,
        run.recipe.seed,
        folder / "checkpoints",
        run.workers,
        run.reporter,
    )
    durable.write_tensors(folder / "network.safetensors", weights)
    durable.write_json(folder / "losses.json", losses)
    durable.write_tensors(folder / "examples.safetensors", _examples(run.public, label_of))


def _examples(public: ImageSet, label_of: torch.Tensor) -> dict[str, torch.Tensor]:
    """Some public images of each chosen class, by its number, for the report."""
    chosen = torch.nonzero(label_of >= 0).flatten().tolist()[:_MOST_EXAMPLE_CLASSES]
    return {
        str(number): public.images[public.labels == number][:_EXAMPLES].contiguous()
        for number in chosen
    }


def finetune_network(run: Run, folder: Path, ledger: Ledger) -> None:
    """Stage 5: pre-trained weights and sensitive images → finetune/network.safetensors."""
    path = folder / RELEASES["finetune"]
    # A crash after the release may leave it here without the checkpoints that led to it.
    if path.exists() and ledger.completed("finetune", durable.sha256(path)):
        return
    pretrained = run.folder.stage("pretrain") / "network.safetensors"
    network = run.network(pretrained if pretrained.exists() else None)
    weights, steps = finetune(
        ledger,
        run.sensitive,
        network,
        run.recipe.finetune,
        run.public_size,
        folder / "checkpoints",
        run.workers,
        run.reporter,
        run.max_memory,
    )
    torch.nn.utils.vector_to_parameters(weights, network.parameters())
    durable.write_tensors(path, network.state_dict())
    durable.write_json(folder / "finetune.json", {"steps": steps, **privacy_statement(ledger)})
    ledger.complete("finetune", durable.sha256(path), steps)


def synthesise_images(run: Run, folder: Path, ledger: Ledger) -> None:
    """Stage 6: fine-tuned weights → synthetic/images.parquet and its data card."""
    pieces = _sample(run, "finetune", folder / "checkpoints", "synthesis")
    path, statement = folder / RELEASES["synthetic"], privacy_statement(ledger)
    statement["recipe_sha256"] = run.recipe.sha256
    files = (file for piece in pieces for file in data.image_files(piece))
    data.write_parquet(path, files, run.names, statement)
    count = max(len(run.names), 1) * run.recipe.synthesis.images_per_label
    contents = Contents("parquet", path.name, count, path.stat().st_size, run.names)
    durable.write_text(folder / "README.md", data_card(contents, statement))
    ledger.complete("synthetic", durable.sha256(path))


def evaluate_images(run: Run, folder: Path, ledger: Ledger) -> None:
    """Stage 7: synthetic and test images → evaluation/metrics.json and comparison.png."""
    synthetic = made_images(run)
    before = None
    if run.folder.is_done("pretrain"):
        pieces = _sample(run, "pretrain", folder / "checkpoints", "before fine-tuning")
        before = _joined(pieces)
    found = assess(run, synthetic, before, ledger)
    metrics = privacy_statement(ledger) | evaluate.as_json(found)
    evaluate.comparison_picture(folder / "comparison.png", synthetic, before)
    durable.write_json(folder / "metrics.json", metrics)


def made_images(run: Run) -> ImageSet:
    """The synthetic images of a run whose stage 6 is done."""
    made = run.folder.stage("synthetic") / RELEASES["synthetic"]
    return data.load_sensitive(str(made), run.shape, run.names, SYNTHETIC_ROLE)


def assess(
    run: Run, synthetic: ImageSet, before: ImageSet | None, ledger: Ledger | None
) -> Evaluation:
    """Measures synthetic images, and as many from before DP fine-tuning, as the recipe says.

    Formal guarantee: the sensitive images are touched only where `evaluation.ceiling` or
    `evaluation.sensitive_duplicates` asks for it, both off by default; then the ledger says so, on
    disk, before they are (tests/evaluate/test_outside_epsilon.py).

    Raises:
        UserError: the recipe asks for what lies outside ε, and there is no ledger to say so.
        Stopped: the reporter asked for it.
    """
    recipe, settings = run.recipe, run.recipe.evaluation
    material = evaluate.Material(
        synthetic=synthetic,
        test=run.test if recipe.data.test else None,
        pretrained=before,
        public=run.public if recipe.data.public and settings.near_duplicates else None,
        features=load_features(run) if recipe.data.test and settings.features else None,
        # Last, when nothing else can be wrong any more.
        sensitive=_sensitive_outside_epsilon(run, ledger),
    )
    resources = evaluate.Resources(run.device, run.workers, run.reporter)
    return evaluate.evaluate(material, settings, recipe.seed, resources)


def load_features(run: Run) -> FeatureNetwork:
    """The network whose features the recipe's scores are on.

    Raises:
        UserError: it is not known, or its weights are missing or others.
    """
    settings = run.recipe.evaluation
    weights = Path(settings.weights) if settings.weights else None
    return evaluate.load_features(settings.features, weights, settings.input_size, run.device)


def public_names(run: Run) -> tuple[str, ...]:
    """The public classes, as the classifier knows them."""
    path = run.folder.stage("classifier") / "classifier.json"
    return tuple(durable.read_json(path)["classes"]) if path.exists() else run.public.names


def load_classifier(run: Run) -> torch.nn.Module:
    """The trained semantic query function."""
    settings, classes = run.recipe.classifier, len(public_names(run))
    model = classifier.build(settings, run.shape.channels, classes, run.recipe.seed)
    weights = run.folder.stage("classifier") / "model.safetensors"
    model.load_state_dict(durable.read_tensors(weights))
    return model.eval().to(run.device)


def _sensitive_outside_epsilon(run: Run, ledger: Ledger | None) -> ImageSet | None:
    """The sensitive images, after the ledger has said what will be computed on them."""
    settings = run.recipe.evaluation
    asked = {
        "accuracy of classifiers trained on the sensitive images, and their number": (
            settings.ceiling
        ),
        "distances of synthetic images to the nearest sensitive ones": (
            settings.sensitive_duplicates
        ),
    }
    if not any(asked.values()):
        return None
    if ledger is None:
        raise UserError(
            "a ceiling or near duplicates of sensitive images lie outside ε and must stand in a "
            "run's ledger: name the folder of a run"
        )
    for what, is_asked in asked.items():
        if is_asked:
            ledger.record_nonprivate(what)
    return run.sensitive


def _sample(run: Run, stage: str, folder: Path, label: str) -> Iterator[ImageSet]:
    """Images from the network of `stage`, as many of each label as the recipe says, in pieces."""
    settings, size = run.recipe.synthesis, run.shape.size
    network = run.network(run.folder.stage(stage) / "network.safetensors").eval()
    order = Order(
        labels=uniform_labels(len(run.names), settings.images_per_label),
        shape=(run.shape.channels, size, size),
        no_label=len(run.names),
        piece=settings.batch_size,
        seed=run.recipe.seed,
        device=run.device,
    )
    pieces = synthesise(
        Denoiser(network), order, settings.sampler, folder, run.workers, run.reporter, label
    )
    labels = order.labels.split(order.piece)
    return (ImageSet(*piece, run.names) for piece in zip(pieces, labels, strict=True))


def _joined(pieces: Iterator[ImageSet]) -> ImageSet:
    """The pieces as one set, all in memory."""
    parts = list(pieces)
    images = torch.cat([part.images for part in parts])
    return ImageSet(images, torch.cat([part.labels for part in parts]), parts[0].names)
