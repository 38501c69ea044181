"""A finished run's network in Python: as many synthetic images as are wanted, for no more ε."""

import secrets
from pathlib import Path
from typing import Any

import torch

from privimage.data import ImageSet
from privimage.diffusion.denoiser import Denoiser
from privimage.dp import History
from privimage.errors import UserError, check_count, nearest
from privimage.progress import Reporter
from privimage.release import privacy_statement, promise
from privimage.run import vouching
from privimage.run.context import Run
from privimage.run.folder import RunFolder
from privimage.seeds import generator
from privimage.synthesis.sample import make_images
from privimage.threads import Workers


class Synthesizer:
    """Samples from the fine-tuned network of a run; `load` makes one.

    Sampling is post-processing of what the run has released: it costs no privacy, whatever is asked
    and however often.

    Attributes:
        names: of the labels; empty for an unlabelled run.
        statement: what was promised: the fields of `metrics.json`, such as `unit` and `delta`.
    """

    def __init__(self, run: Run, statement: dict[str, Any]) -> None:
        self.names = run.names
        self.statement = statement
        self._run = run
        self._denoise = Denoiser(run.network(run.folder.release("finetune")).eval())

    @property
    def epsilon(self) -> float | None:
        """The upper bound of ε; None where nothing is promised."""
        epsilon: float | None = self.statement["epsilon"]
        return epsilon

    def __repr__(self) -> str:
        """What was promised, in a sentence."""
        return f"<{promise(self.statement)}>"

    def sample(
        self, label: int | str | None = None, n: int = 16, seed: int | None = None
    ) -> ImageSet:
        """Makes `n` images.

        Args:
            label: the number or name of a label; None for each label in turn.
            n: how many.
            seed: the same seed makes the same images on the same machine; None for others every
                time.

        Returns:
            `images` uint8 [n, channels, height, width], their `labels` and the `names`.

        Raises:
            UserError: there is no such label, or `n` is below 1.
        """
        check_count("n", n)
        labels = self._in_turn(n)
        if label is not None:
            labels.fill_(self._number(label))
        run, seed = self._run, secrets.randbits(62) if seed is None else seed
        order, sampler = run.order(labels, seed), run.recipe.synthesis.sampler
        pieces = [
            make_images(self._denoise, order, sampler, piece, generator(seed, "sample", index))
            for index, piece in enumerate(labels.split(order.piece))
        ]
        return ImageSet(torch.cat(pieces), labels, self.names)

    def _in_turn(self, n: int) -> torch.Tensor:
        return torch.arange(n, device="cpu") % max(len(self.names), 1)

    def _number(self, label: int | str) -> int:
        """The number of a label that is given by number or name."""
        if isinstance(label, str):
            if label not in self.names:
                raise UserError(f"there is no label '{label}'; {nearest(label, self.names)}")
            return self.names.index(label)
        if not 0 <= label < len(self.names):
            raise UserError(f"label {label}: the run's labels are 0 … {len(self.names) - 1}")
        return label


def load(path: str | Path, device: str | None = None) -> Synthesizer:
    """Opens the run folder at `path` to sample from.

    Args:
        path: of a run whose fine-tuning is done.
        device: "cpu" or "cuda"; default "cpu".

    Raises:
        UserError: there is no such run, it is not far enough, or its ledger does not vouch for it.
    """
    folder = RunFolder(Path(path))
    recipe = folder.recipe()
    if not folder.is_done("finetune"):
        raise UserError(f"{path}: fine-tuning is not finished; go on with `privimage train`")
    history = History.read(folder.ledger)
    vouching.refuse_foreign_files(folder, history)
    run = Run(recipe, folder, Reporter(quiet=True), Workers(), torch.device(device or "cpu"))
    return Synthesizer(run, privacy_statement(history, recipe.sha256))
