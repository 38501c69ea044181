"""The recipe of a run as frozen dataclasses: read, overridden and checked in one place."""

import hashlib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any

import tomli_w
from pydantic import TypeAdapter, ValidationError

from privimage.data import PersonKey
from privimage.diffusion.pretrain import PretrainSettings
from privimage.diffusion.samplers import SamplerSettings
from privimage.diffusion.unet import UNetShape
from privimage.dp import UNITS, check_delta
from privimage.errors import UserError, check_choice, check_count, nearest
from privimage.evaluate import EvaluationSettings
from privimage.semantics.classifier import ClassifierSettings
from privimage.semantics.query import QuerySettings
from privimage.semantics.selection import MODES, SelectionSettings
from privimage.synthesis.finetuner import FinetuneSettings

_PRESETS = resources.files("privimage") / "presets"

MOST_CLASSES = 100_000
"""Labels that may be declared."""
WORDS = {"privacy.unit": UNITS, "selection.mode": MODES}
"""Values that are one of a few words."""


@dataclass(frozen=True)
class DataSettings:
    """The image sets and what is declared public about the sensitive one.

    Attributes:
        public: labelled public images; empty only where `selection.mode` is none.
        sensitive: the images to protect.
        test: images that their owner declares public, for the evaluation; empty for none.
        image_size: height and width that every image is brought to, pixels.
        channels: 1 for grey, 3 for RGB.
        classes: names of the sensitive labels; empty to take those that the set itself declares.
        public_size: number of sensitive images, or of persons where they are the unit of privacy,
            as a public number; 0 to use the count.
        person: what names the person of a sensitive image: column:NAME or folder:LEVEL; empty if
            images are the unit of privacy.
    """

    public: str = ""
    sensitive: str = ""
    test: str = ""
    image_size: int = 32
    channels: int = 3
    classes: tuple[str, ...] = ()
    public_size: int = 0
    person: str = ""

    def __post_init__(self) -> None:
        # Parsing is the check.
        _ = self.person_key
        check_count("data.image_size", self.image_size)
        if self.channels not in (1, 3):
            raise UserError(f"data.channels must be 1 (grey) or 3 (RGB), got {self.channels}")
        if len(self.classes) > MOST_CLASSES:
            raise UserError(
                f"--classes: more than {MOST_CLASSES:,} labels are none that a network can learn; "
                "name those that the images have"
            )
        if not all(name.strip() for name in self.classes):
            raise UserError("--classes: a name is empty; give one for each label, as in a,b,c")
        if len({*self.classes}) < len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise UserError(f"--classes: '{twice}' is there twice; give each label its own name")
        if self.public_size < 0:
            raise UserError(f"data.public_size must be at least 0, got {self.public_size}")

    @property
    def person_key(self) -> PersonKey | None:
        """`person`, parsed."""
        return PersonKey.parse(self.person) if self.person else None


@dataclass(frozen=True)
class PrivacySettings:
    """The promise: (ε, δ) for one `unit`, add/remove-one adjacency; ε = inf promises nothing.

    `unit` is image, or person: all images of a person together.
    """

    epsilon: float = 10.0
    delta: float = 1e-5
    unit: str = "image"

    def __post_init__(self) -> None:
        check_choice("privacy.unit", self.unit, UNITS)
        if not self.epsilon > 0:
            raise UserError(f"privacy.epsilon must be above 0, got {self.epsilon:g}")
        check_delta(self.delta)


@dataclass(frozen=True)
class NetworkSettings:
    """The UNet's shape, as far as the data does not decide it.

    `kind` is ncsnpp (the paper's network) or compact (half its cost on tiny images).
    """

    kind: str = "ncsnpp"
    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2, 2)
    attention: tuple[int, ...] = (16,)
    blocks_per_level: int = 2

    def __post_init__(self) -> None:
        check_choice("network.kind", self.kind, ("ncsnpp", "compact"))


@dataclass(frozen=True)
class SynthesisSettings:
    """How many images of each label, and how they are sampled."""

    images_per_label: int = 1000
    batch_size: int = 500
    sampler: SamplerSettings = field(default_factory=SamplerSettings)

    def __post_init__(self) -> None:
        check_count("synthesis.images_per_label", self.images_per_label)
        check_count("synthesis.batch_size", self.batch_size)

    def count(self, labels: int) -> int:
        """Images in all; unlabelled ones (`labels` 0) are as many as those of one label."""
        return max(labels, 1) * self.images_per_label


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a run computes; nothing that only decides how fast.

    `seed` reaches initialisation, pre-training and sampling; never DP noise or DP sampling.
    """

    preset: str
    seed: int = 0
    data: DataSettings = field(default_factory=DataSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    classifier: ClassifierSettings = field(default_factory=ClassifierSettings)
    query: QuerySettings = field(default_factory=QuerySettings)
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    synthesis: SynthesisSettings = field(default_factory=SynthesisSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def __post_init__(self) -> None:
        if self.privacy.unit == "person" and not self.data.person:
            raise UserError(
                "--unit person: say what names the person of an image, with --person column:NAME "
                "or --person folder:LEVEL"
            )
        if self.data.person and self.privacy.unit != "person":
            raise UserError(
                f"--person {self.data.person} has no effect by image; add --unit person"
            )

    def network_shape(self, classes: int) -> UNetShape:
        """The UNet's shape for images with so many labels; 0 for unlabelled ones.

        Raises:
            UserError: the network does not fit the images.
        """
        settings = self.network
        return UNetShape(
            image_size=self.data.image_size,
            image_channels=self.data.channels,
            channels=settings.channels,
            multipliers=settings.multipliers,
            attention=settings.attention,
            classes=classes,
            blocks_per_level=settings.blocks_per_level,
        )

    def flat(self) -> dict[str, Any]:
        """Every value under its dotted name, such as `finetune.steps`."""
        return dict(_flatten(asdict(self)))

    def toml(self) -> str:
        """The recipe as a TOML file that `from_toml` reads back."""
        return tomli_w.dumps(asdict(self))

    @property
    def sha256(self) -> str:
        """What names in a statement all that decides the synthetic images: a hash of its TOML.

        How they are measured is left out: that may still change when their card is written.
        """
        values = asdict(self)
        del values["evaluation"], values["data"]["test"]
        return hashlib.sha256(tomli_w.dumps(values).encode()).hexdigest()


def preset_names() -> list[str]:
    """The names that `preset` knows."""
    files = _PRESETS.iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def preset_title(name: str) -> str:
    """What the recipe `name` is for: the first line of its file."""
    return _preset_text(name).partition("\n")[0].removeprefix("# ")


def preset(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The preset `name` with some values replaced.

    Args:
        name: one of `preset_names()`.
        overrides: dotted names to values, such as {"finetune.steps": 20}.

    Raises:
        UserError: the preset, a name or a value is wrong; offers the nearest name.
    """
    if name not in preset_names():
        raise UserError(f"there is no preset '{name}'; {nearest(name, preset_names())}")
    values = {"preset": name, **tomllib.loads(_preset_text(name))}
    return _overridden(values, overrides or {}, f"preset '{name}'")


def override(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """`recipe` with some values replaced, as in `preset`.

    Raises:
        UserError: a name or a value is wrong; offers the nearest name.
    """
    return _overridden(asdict(recipe), overrides, f"preset '{recipe.preset}'")


def from_toml(text: str, origin: str) -> Recipe:
    """The recipe that `toml` wrote.

    Raises:
        UserError: the text is damaged or of another version; names `origin`.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{origin}: not readable as a recipe ({error})") from error
    return _checked(values, origin)


def parse_override(text: str) -> tuple[str, Any]:
    """Splits `finetune.steps=20` into its name and its value (TOML; bare words are strings).

    Raises:
        UserError: there is no "=".
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: expected NAME=VALUE, such as --set finetune.steps=20")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The values in which two recipes differ, as `name: old → new`."""
    return [
        f"{key}: {old.get(key)} → {new.get(key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _preset_text(name: str) -> str:
    return (_PRESETS / f"{name}.toml").read_text(encoding="utf-8")


def _overridden(values: dict[str, Any], overrides: Mapping[str, Any], origin: str) -> Recipe:
    known = Recipe("").flat()
    for key, value in overrides.items():
        if key not in known:
            raise UserError(f"'{key}' is no value of a recipe; {nearest(key, known)}")
        _put(values, key.split("."), value)
    return _checked(values, origin)


def _checked(values: Mapping[str, Any], origin: str) -> Recipe:
    known = Recipe("").flat()
    for key, _ in _flatten(values):
        if key not in known:
            raise UserError(f"{origin}: '{key}' is no value of a recipe; {nearest(key, known)}")
    try:
        return TypeAdapter(Recipe).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{origin}: {place} = {first['input']!r}: {first['msg'].lower()}"
        ) from error


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", tuple(value) if isinstance(value, list) else value


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        values = values.setdefault(name, {})
    values[path[-1]] = value
