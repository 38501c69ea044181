"""What each system says its own way; macOS is played, since these tests run on Linux."""

import fcntl
import os
import resource
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from privimage import machine
from privimage.data import decode as decode_module
from privimage.data.decode import decode_all
from privimage.data.images import ImageShape
from privimage.dp.ledger.log import LockedLog

FULL = 51  # What fcntl.F_FULLFSYNC is on macOS.


@pytest.fixture
def on_macos(monkeypatch):
    """What fcntl was asked, with None in place of a descriptor."""
    asked = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", FULL, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda _, command: asked.append(command))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "posix_fallocate")
    return asked


def test_cores_are_those_that_a_process_may_run_on(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6})
    assert machine.cores() == 3


@pytest.mark.usefixtures("on_macos")
def test_on_macos_cores_are_all(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 11)
    assert machine.cores() == 11


@pytest.mark.parametrize(("system", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_bytes(monkeypatch, system, unit):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=4096))
    assert machine.peak_memory() == 4096 * unit


def test_on_macos_a_line_is_on_the_disk_and_not_in_the_disk_s_memory(tmp_path, on_macos):
    log = LockedLog(tmp_path / "log")
    on_macos.clear()
    log.append(b"line\n")
    assert on_macos == [FULL]
    log.close()


@pytest.mark.usefixtures("on_macos")
def test_a_file_system_that_can_t_is_asked_as_elsewhere(tmp_path, monkeypatch):
    def cannot(*_):
        raise OSError(45, "Operation not supported")

    synced = []
    monkeypatch.setattr(fcntl, "fcntl", cannot)
    monkeypatch.setattr(os, "fsync", synced.append)
    log = LockedLog(tmp_path / "log")
    synced.clear()
    log.append(b"line\n")
    assert len(synced) == 1
    log.close()


@pytest.mark.usefixtures("on_macos")
def test_on_macos_a_large_set_has_its_room_on_the_disk(monkeypatch):
    monkeypatch.setattr(decode_module, "_MOST_IN_MEMORY", 0)
    monkeypatch.setattr(decode_module, "_ZEROS", 7)
    pixels = np.arange(16 * 3, dtype=np.uint8).reshape(4, 4, 3)
    found, is_good = decode_all([pixels] * 3, 3, ImageShape(4, 3))
    assert isinstance(found, np.memmap)
    assert is_good.all()
    assert (found == pixels.transpose(2, 0, 1)).all()
