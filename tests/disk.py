"""A disk that fails where a test wants it to, and loses what was not synced when power goes."""

import os
from pathlib import Path

from privimage import durable
from privimage.dp.ledger import log


class PowerCut(BaseException):
    """The machine stops here; nothing after this call happens."""


class Disk:
    """Stands in for `os` where a ledger is written: real files, and a record of what is durable.

    `calls` counts the calls that change or sync something. At call number `cut_at` the power goes:
    before the call has any effect, or after it if `late`. `fail` maps a call's name to what is to
    be done instead of it. Used for one file and its folder.
    """

    def __init__(self, path, cut_at=None, late=False):
        self._path = Path(path)
        self._cut_at, self._late = cut_at, late
        self.calls = 0
        self.fail = {}
        exists = self._path.exists()
        self.durable = self._path.read_bytes() if exists else b""
        self.name_is_durable = exists

    def replace_os(self, patch):
        """Puts it where a ledger is written and synced, as long as `patch` lasts."""
        for module in (durable, log):
            patch.setattr(module, "os", self)

    def __getattr__(self, name):
        return getattr(os, name)

    def write(self, descriptor, data):
        return self._do("write", lambda: os.write(descriptor, data))

    def ftruncate(self, descriptor, size):
        return self._do("ftruncate", lambda: os.ftruncate(descriptor, size))

    def fsync(self, descriptor):
        def sync():
            os.fsync(descriptor)
            target = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if target == self._path:
                self.durable = target.read_bytes()
            elif target == self._path.parent:
                self.name_is_durable = self._path.exists()

        return self._do("fsync", sync)

    def after_power_cut(self, kept=0):
        """Makes the real file what a disk holds after the cut.

        Of what was written but not synced the first `kept` bytes have reached it.
        """
        if not self.name_is_durable:
            self._path.unlink(missing_ok=True)
            return
        written = self._path.read_bytes()
        extends = written.startswith(self.durable)
        self._path.write_bytes(written[: len(self.durable) + kept] if extends else self.durable)

    def _do(self, name, call):
        self.calls += 1
        is_last = self.calls == self._cut_at
        if is_last and not self._late:
            raise PowerCut
        result = self.fail.get(name, call)()
        if is_last:
            raise PowerCut
        return result
