"""What each of the seven stages reads and writes; their order is `schedule`'s."""

from collections.abc import Iterator
from pathlib import Path

import torch

from privimage import data, durable, evaluate
from privimage.acceleration import inference
from privimage.data import ImageSet
from privimage.diffusion.denoiser import Denoiser
from privimage.diffusion.pretrain import pretrain
from privimage.dp import Ledger
from privimage.errors import UserError
from privimage.evaluate import Parts
from privimage.pipeline.measurement import made_images, measure
from privimage.release import Contents, data_card, privacy_statement
from privimage.run import results
from privimage.run.context import Run
from privimage.run.folder import CHECKPOINTS, RELEASES
from privimage.semantics import classifier
from privimage.semantics.query import noisy_histogram
from privimage.semantics.selection import select_all, select_semantic
from privimage.synthesis.finetune import finetune
from privimage.synthesis.sample import synthesise, uniform_labels

_EXAMPLES, _MOST_EXAMPLE_CLASSES = 4, 200
# Times the accuracy of guessing.
_HARDLY = 3


def classify(run: Run, folder: Path) -> None:
    """Stage 1: public images → classifier/model.safetensors."""
    settings, seed, names = run.recipe.classifier, run.recipe.seed, run.public.names
    model = classifier.build(settings, run.shape.channels, len(names), seed).to(run.device)
    accuracy = classifier.train_classifier(
        model, run.public, settings, seed, folder / CHECKPOINTS, run.reporter
    )
    durable.write_tensors(folder / "model.safetensors", model.state_dict())
    facts = {"accuracy_on_held_out_public_images": accuracy, "classes": names}
    durable.write_json(folder / "classifier.json", facts)
    run.reporter.say(f"  {accuracy:.1%} right on held-out public images")
    if accuracy < _HARDLY / len(names):
        run.reporter.say(
            f"  hardly more than by chance ({1 / len(names):.1%}), so its votes will say little: "
            "raise --set classifier.steps=…, or try another classifier.learning_rate"
        )


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
        lambda images: classifier.predict(model, images, run.counted_steps),
        len(run.public_names),
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


def select(run: Run, folder: Path) -> None:
    """Stage 3: noisy histogram → selection/selection.json: public class → sensitive label."""
    settings, labels, public = run.recipe.selection, len(run.names), run.public_names
    if settings.mode == "all":
        selection = select_all(len(public), labels)
    else:
        selection = select_semantic(
            durable.read_tensors(run.folder.release("query"), "histogram")["histogram"],
            results.query_noise_std(run.folder),
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
        "public_classes": public,
    }
    durable.write_json(folder / "selection.json", facts)


def pretrain_network(run: Run, folder: Path) -> None:
    """Stage 4: selected public images → pretrain/network.safetensors."""
    chosen = results.selection(run.folder)
    # Earlier versions kept the classes beside the classifier alone.
    if (chosen.public_classes or run.public_names) != run.public.names:
        raise UserError(
            f"--public: its classes are not those that {run.folder.stage('selection')} chose from; "
            "restore the set, or begin a new run with --out"
        )
    label_of = torch.full((len(run.public.names),), -1)
    for public_class, label in chosen.label_of.items():
        label_of[public_class] = label
    labels = label_of[run.public.labels]
    kept = labels >= 0
    run.reporter.say(f"  {int(kept.sum())} of {len(kept)} public images")
    weights, losses = pretrain(
        run.network(),
        run.public.images if kept.all() else run.public.images[kept],
        labels[kept],
        run.recipe.pretrain,
        run.recipe.seed,
        folder / CHECKPOINTS,
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
        folder / CHECKPOINTS,
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
    pieces = _sample(run, "finetune", folder / CHECKPOINTS, "synthesis")
    path, statement = folder / RELEASES["synthetic"], privacy_statement(ledger, run.recipe.sha256)
    files = (file for piece in pieces for file in data.image_files(piece))
    data.write_parquet(path, files, run.names, statement)
    count = run.recipe.synthesis.count(len(run.names))
    contents = Contents("parquet", path.name, count, path.stat().st_size, run.names)
    durable.write_text(folder / "README.md", data_card(contents, statement))
    ledger.complete("synthetic", durable.sha256(path))


def evaluate_images(run: Run, folder: Path, ledger: Ledger) -> None:
    """Stage 7: synthetic and test images → evaluation/metrics.json and comparison.png."""
    checkpoints, synthetic, before = folder / CHECKPOINTS, made_images(run), None
    if run.folder.is_done("pretrain"):
        # No more than are measured of the others.
        pieces = _sample(run, "pretrain", checkpoints, "before fine-tuning", len(synthetic))
        before = _joined(pieces)
    found = measure(run, synthetic, before, ledger, Parts(checkpoints / "parts"))
    metrics = privacy_statement(ledger) | evaluate.as_json(found)
    evaluate.comparison_picture(folder / "comparison.png", synthetic, before)
    durable.write_json(folder / "metrics.json", metrics)


def load_classifier(run: Run) -> torch.nn.Module:
    """The trained semantic query function."""
    settings, classes = run.recipe.classifier, len(run.public_names)
    model = classifier.build(settings, run.shape.channels, classes, run.recipe.seed)
    durable.load_weights(model, run.folder.stage("classifier") / "model.safetensors")
    return model.eval().to(run.device)


def _sample(
    run: Run, stage: str, folder: Path, label: str, most: int | None = None
) -> Iterator[ImageSet]:
    """Images from the network of `stage`, in pieces.

    As many of each label as the recipe says, or the first `most` of them, the labels in turn.
    """
    settings = run.recipe.synthesis
    network = run.network(run.folder.stage(stage) / "network.safetensors").eval()
    labels = uniform_labels(len(run.names), settings.images_per_label)[:most]
    order = run.order(labels, run.recipe.seed)
    calls = -(-len(order.labels) // order.piece) * settings.sampler.evaluations()
    pieces = synthesise(
        Denoiser(inference(network, calls)),
        order,
        settings.sampler,
        folder,
        run.workers,
        run.reporter,
        label,
    )
    parts = labels.split(order.piece)
    return (ImageSet(*piece, run.names) for piece in zip(pieces, parts, strict=True))


def _joined(pieces: Iterator[ImageSet]) -> ImageSet:
    """The pieces as one set, all in memory."""
    parts = list(pieces)
    images = torch.cat([part.images for part in parts])
    return ImageSet(images, torch.cat([part.labels for part in parts]), parts[0].names)
