import math

import pytest
import torch

from privimage import recipe
from privimage.diffusion.unet import UNet
from privimage.errors import UserError


@pytest.mark.parametrize("name", recipe.preset_names())
def test_every_preset_is_sound_and_survives_its_own_file(name):
    chosen = recipe.preset(name)
    assert chosen.preset == name
    assert recipe.from_toml(chosen.toml(), "kept") == chosen


def test_overrides_replace_single_values():
    chosen = recipe.preset("digits", {"finetune.steps": 20, "privacy.epsilon": 1})
    assert (chosen.finetune.steps, chosen.privacy.epsilon) == (20, 1.0)
    assert chosen.finetune.draws == recipe.preset("digits").finetune.draws


def test_an_infinite_epsilon_survives_the_file():
    chosen = recipe.preset("digits", {"privacy.epsilon": math.inf})
    assert recipe.from_toml(chosen.toml(), "kept").privacy.epsilon == math.inf


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("finetune.steps=20", ("finetune.steps", 20)),
        ("network.multipliers=[1, 2]", ("network.multipliers", [1, 2])),
        ("pretrain.schedule=linear", ("pretrain.schedule", "linear")),
        ("privacy.epsilon=inf", ("privacy.epsilon", math.inf)),
        ("data.test=a=b", ("data.test", "a=b")),
    ],
)
def test_override_texts(text, expected):
    assert recipe.parse_override(text) == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"finetune.stepz": 3}, "did you mean 'finetune.steps'"),
        ({"finetune.steps": 2.5}, "finetune.steps = 2.5"),
        ({"finetune.steps": "many"}, "finetune.steps = 'many'"),
        ({"finetune.steps": 0}, "finetune.steps must be a whole number of at least 1"),
        ({"privacy.epsilon": 0}, "privacy.epsilon must be above 0"),
        ({"privacy.epsilon": math.nan}, "privacy.epsilon must be above 0"),
        ({"privacy.delta": 0.5}, "delta must lie in"),
        ({"selection.mode": "some"}, "selection.mode"),
        ({"data.channels": 2}, "data.channels must be 1"),
        ({"network": 3}, "no value of a recipe"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_name(overrides, message):
    with pytest.raises(UserError) as caught:
        recipe.preset("digits", overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_preset_with_a_typo_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'digits'"):
        recipe.preset("digit")


def test_an_override_without_a_value_is_refused():
    with pytest.raises(UserError, match="expected NAME=VALUE"):
        recipe.parse_override("finetune.steps")


def test_a_damaged_file_is_one_clear_line():
    with pytest.raises(UserError, match=r"runs/x: not readable as a recipe"):
        recipe.from_toml("seed = ", "runs/x")
    with pytest.raises(UserError, match="did you mean 'seed'"):
        recipe.from_toml('preset = "digits"\nseeds = 3', "runs/x")


def test_differences_name_what_changed():
    assert recipe.differences({"a": "1", "b": "2"}, {"a": "1", "b": "3"}) == ["b: 2 → 3"]


PAPER = {"classifier": (9384, 8192), "pretrain": (2048, 1e-4), "draws": 8}
BENCH = {"classifier": (62557, 2048), "pretrain": (1024, 3e-4), "draws": 32}


# The papers' numbers, for their numbers of labels; the public set is ImageNet's 1,281,167 images.
@pytest.mark.parametrize(
    ("name", "labels", "parameters", "images", "steps_an_epoch", "epochs", "pretraining", "size"),
    [
        ("cifar10", 10, 1_754_499, 50_000, 3, 50, 128_000, 50_000),
        ("cifar10-wide", 10, 27_907_587, 50_000, 3, 50, 128_000, 50_000),
        ("celeba32", 0, 1_804_451, 162_770, 9, 50, 42_000, 50_000),
        ("celeba64", 0, 1_999_907, 162_770, 20, 50, 42_000, 50_000),
        ("bench-mnist", 10, 1_485_217, 55_000, 14, 150, 198_000, 60_000),
        ("bench-fmnist", 10, 1_485_217, 55_000, 14, 150, 198_000, 60_000),
        ("bench-cifar10", 10, 3_835_619, 45_000, 11, 150, 198_000, 60_000),
        ("bench-cifar100", 100, None, 45_000, 11, 150, 198_000, 60_000),
        ("bench-eurosat", 10, 3_835_619, 21_000, 6, 150, 198_000, 60_000),
        ("bench-celeba", 2, None, 145_064, 36, 100, 198_000, 60_000),
        ("bench-camelyon", 2, None, 269_538, 66, 50, 198_000, 60_000),
    ],
)
def test_a_papers_recipe_has_the_papers_numbers(
    name, labels, parameters, images, steps_an_epoch, epochs, pretraining, size
):
    chosen, numbers = recipe.preset(name), BENCH if name.startswith("bench") else PAPER
    with torch.device("meta"):
        network = UNet(chosen.network_shape(labels))
    if parameters is not None:
        assert sum(weights.numel() for weights in network.parameters()) == parameters
    assert chosen.classifier.network == "resnet50"
    assert (chosen.classifier.steps, chosen.classifier.batch_size) == numbers["classifier"]
    assert (chosen.classifier.learning_rate, chosen.classifier.weight_decay) == (1e-2, 5e-4)
    assert chosen.pretrain.steps == pretraining
    assert (chosen.pretrain.batch_size, chosen.pretrain.learning_rate) == numbers["pretrain"]
    fine = chosen.finetune
    assert 1 / fine.sample_rate == pytest.approx(steps_an_epoch)
    assert fine.steps == steps_an_epoch * epochs
    assert (fine.draws, fine.max_grad_norm, fine.learning_rate) == (numbers["draws"], 1e-3, 3e-4)
    assert max(labels, 1) * chosen.synthesis.images_per_label == size
    assert chosen.privacy.delta < 1 / images
    if name.startswith("bench"):
        assert chosen.privacy.delta == pytest.approx(1 / (images * math.log(images)), rel=0.01)
        assert chosen.synthesis.sampler.steps == 250


def test_the_hash_is_of_what_decides_the_images():
    chosen = recipe.preset("digits")
    measured = {"data.test": "elsewhere", "evaluation.repeats": 7}
    assert recipe.override(chosen, measured).sha256 == chosen.sha256
    assert recipe.override(chosen, {"seed": 7}).sha256 != chosen.sha256
