"""A bug that is planted in a CUDA kernel."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Bug:
    """What is wrong, which test sees it, and how: `before` stands once in `file`."""

    name: str
    test: str
    before: str
    after: str
    header: str = ""

    @property
    def file(self) -> Path:
        """Where the bug is planted, below csrc."""
        return Path(self.header or f"kernels/{self.test}.cuh")
