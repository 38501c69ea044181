"""Runs the pipeline in forked children that are killed in every stage; reports as JSON.

A process of its own, because a child may only be forked before torch has started threads; what all
children need is imported and loaded here, once.
"""

import functools
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

from tiny import TINY

from privimage import audit, loop, pipeline, recipe
from privimage.data import digits, glyphs
from privimage.errors import UserError
from privimage.pipeline import schedule
from privimage.progress import Reporter
from privimage.run.folder import RunFolder
from privimage.semantics import query
from privimage.synthesis import finetune

CUT = {"classifier.steps": 5, "finetune.steps": 40, "finetune.sample_rate": 0.005}
RECIPE = recipe.preset("digits", TINY | CUT)
# Kills at a random write, and the number of writes from which it is drawn; private stages more.
RANDOM_KILLS = {"query": (3, 12), "finetune": (3, 90)}
OTHER_KILLS = (1, 12)
_write, _fsync, _replace = os.write, os.fsync, os.replace


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


class Killer:
    """Kills this process in the stage `target`: at its `event`-th write, or after `delay` s."""

    def __init__(self, target, event, delay, randomness):
        self._target, self._event, self._delay = target, event, delay
        self._randomness = randomness
        self._armed = False
        self._seen = 0

    def install(self):
        os.write, os.fsync, os.replace = self._torn_write, self._cut(_fsync), self._cut(_replace)
        work = RunFolder.work
        RunFolder.work = self._watched(work)

    def _watched(self, work):
        @contextmanager
        def watched(folder, name, *arguments):
            self._armed = name == self._target
            if self._armed and self._delay is not None:
                threading.Timer(self._delay, _die).start()
            with work(folder, name, *arguments) as partial:
                yield partial
            if self._armed:
                _die()

        return watched

    def _is_due(self):
        self._seen += self._armed
        return self._armed and self._seen == self._event

    def _cut(self, call):
        def cut(*arguments):
            is_due = self._is_due()
            if is_due and self._randomness.random() < 0.5:
                _die()
            result = call(*arguments)
            if is_due:
                _die()
            return result

        return cut

    def _torn_write(self, descriptor, data):
        if self._is_due():
            _write(descriptor, data[: self._randomness.randrange(len(data) + 1)])
            _die()
        return _write(descriptor, data)


def _record_touches(path):
    """Writes a line to `path` before sensitive images are touched; a kill can't take it back."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    count_votes, step = query.count_votes, finetune.Finetuner.step

    def counting(*arguments):
        _write(log, b"query\n")
        return count_votes(*arguments)

    def stepping(tuner):
        _write(log, b"step\n")
        return step(tuner)

    query.count_votes, finetune.Finetuner.step = counting, stepping


def _in_a_child(killer, folder, log):
    """Runs the pipeline in a child: its exit status, negative for the signal that ended it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        _record_touches(log)
        if killer is not None:
            killer.install()
        machine = pipeline.Machine("cpu", 1)
        pipeline.train(RECIPE, folder, machine, Reporter(quiet=True))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _state(folder, log):
    """What verification says, and what was touched so far."""
    touched = log.read_text().split() if log.exists() else []
    state = {"queries": touched.count("query"), "steps": touched.count("step")}
    try:
        return state | {"verified": audit.verify(folder)}
    except UserError as error:
        return state | {"refused": str(error)}


def _killers(name, randomness):
    """The first write, some random ones, a random moment."""
    kills, writes = RANDOM_KILLS.get(name, OTHER_KILLS)
    yield Killer(name, 1, None, randomness)
    for _ in range(kills):
        yield Killer(name, randomness.randrange(2, writes), None, randomness)
    yield Killer(name, None, 10 ** randomness.uniform(-3, 0), randomness)


def main(folder, log, seed):
    """Kills children in every stage, then lets one finish."""
    randomness = random.Random(seed)
    glyphs.glyphs()
    digits.train = functools.cache(digits.train)
    digits.train()
    loop._CHECKPOINT_INTERVAL_S = 0.0
    states, began = [], time.monotonic()
    for stage in schedule.STAGES:
        for killer in _killers(stage.name, randomness):
            status = _in_a_child(killer, folder, log)
            is_done = RunFolder(folder).is_done(stage.name)
            place = {"stage": stage.name, "status": status, "inside": not is_done}
            states.append(place | _state(folder, log))
            if is_done:
                break
    status = _in_a_child(None, folder, log)
    states.append({"stage": "end", "status": status, "inside": False} | _state(folder, log))
    seconds = time.monotonic() - began
    sys.stdout.write(json.dumps({"states": states, "seconds": seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
