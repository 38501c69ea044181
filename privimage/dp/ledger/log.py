"""The file of a ledger: lines that one process at a time extends, each on disk before it counts."""

import errno
import fcntl
import os
import weakref
from pathlib import Path

from privimage import durable


class LockedLog:
    """A file of lines that one process at a time extends; an appended line is on disk on return.

    The lock belongs to the open file: it ends with the process, however that dies. Programs that
    the process starts don't inherit the descriptor (O_CLOEXEC), and a forked child closes its copy
    at once, so no worker that outlives its parent can hold the lock.
    """

    def __init__(self, path: Path) -> None:
        """Opens or creates `path`, locks it, and makes its name and content durable.

        Raises:
            BlockingIOError: another process holds the lock.
            OSError: the disk or the permissions refuse.
        """
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor: int | None = os.open(path, flags, 0o600)
        _open_logs.add(self)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._size = os.fstat(self._descriptor).st_size
            # Whoever wrote last may have died before its own sync.
            durable.flush(self._descriptor)
            durable.sync(path.parent)
        except BaseException:
            self.close()
            raise

    @property
    def is_open(self) -> bool:
        """Whether it still holds the file."""
        return self._descriptor is not None

    def read(self) -> bytes:
        """All that the file holds."""
        return self.path.read_bytes()

    def truncate(self, size: int) -> None:
        """Cuts the file down to `size` bytes; durable with the next `append`."""
        os.ftruncate(self._checked_descriptor(), size)
        self._size = size

    def append(self, data: bytes) -> None:
        """Appends `data` and returns only when it has reached the disk.

        Raises:
            OSError: it may or may not have reached the disk, or the file is not what was opened.
        """
        descriptor = self._checked_descriptor()
        self._size += len(data)
        while data:
            written = os.write(descriptor, data)
            if written == 0:
                raise OSError(errno.EIO, "the disk took nothing")
            data = data[written:]
        durable.flush(descriptor)

    def close(self) -> None:
        """Closes the file, which ends the lock; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _checked_descriptor(self) -> int:
        """The descriptor, if the file is still the one under `path` and nobody else wrote to it."""
        if self._descriptor is None:
            raise OSError(errno.EBADF, "it is closed, or was opened by the parent process")
        mine, there = os.fstat(self._descriptor), os.stat(self.path)
        if (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino) or mine.st_size != self._size:
            raise OSError(errno.ESTALE, "it was replaced or changed while it was open")
        return self._descriptor


_open_logs: weakref.WeakSet[LockedLog] = weakref.WeakSet()


def is_open_here(path: Path) -> bool:
    """Whether a `LockedLog` of this process holds the file."""
    return any(log.is_open and log.path.resolve() == path.resolve() for log in _open_logs)


def _close_logs_in_child() -> None:
    for log in list(_open_logs):
        log.close()


os.register_at_fork(after_in_child=_close_logs_in_child)
