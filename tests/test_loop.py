import pytest
import torch

from privimage.checkpoint import Checkpoints
from privimage.errors import UserError
from privimage.loop import resumable_steps
from privimage.progress import Reporter, Stopped


class Counter:
    """Adds up the steps that it was given."""

    def __init__(self):
        self.total = torch.zeros(1)

    def state(self):
        return {"total": self.total}, {"kind": "counter"}

    def restore(self, tensors, state):
        assert state == {"kind": "counter"}
        self.total = tensors["total"]


def _run(counter, folder, reporter, total=10, stop_at=None):
    for step in resumable_steps(counter, total, folder, "counting", reporter):
        counter.total += step
        if step == stop_at:
            reporter.request_stop()


def test_a_stopped_loop_goes_on_where_it_was(tmp_path):
    with pytest.raises(Stopped, match="counting stopped after 4 of 10 steps"):
        _run(Counter(), tmp_path, Reporter(quiet=True), stop_at=3)
    counter = Counter()
    _run(counter, tmp_path, Reporter(quiet=True))
    assert counter.total == sum(range(10))


def test_a_stop_at_the_last_step_finishes(tmp_path):
    counter = Counter()
    _run(counter, tmp_path, Reporter(quiet=True), stop_at=9)
    assert counter.total == sum(range(10))


def test_time_is_up_at_a_step_boundary(tmp_path):
    with pytest.raises(Stopped, match="after 1 of 10"):
        _run(Counter(), tmp_path, Reporter(quiet=True, max_seconds=0.0))


def test_progress_lines_have_an_eta(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("privimage.progress._LINE_INTERVAL_S", 0.0)
    _run(Counter(), tmp_path, Reporter())
    assert "counting: 1/10, 0 s to go" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_passed_over_and_said_so(tmp_path):
    said = []
    checkpoints = Checkpoints(tmp_path, said.append)
    for step in (1, 2, 3):
        checkpoints.save(step, {"x": torch.tensor([float(step)])}, {})
    assert checkpoints.load().step == 3
    assert len(list(tmp_path.iterdir())) == 4
    newest = tmp_path / "step-00000003.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\x00")
    found = checkpoints.load()
    assert (found.step, found.tensors["x"].item()) == (2, 2.0)
    assert "step-00000003" in said[0]
    (tmp_path / "step-00000002.json").write_text("{}")
    with pytest.raises(UserError, match="no checkpoint in it is readable"):
        checkpoints.load()


def test_a_checkpoint_without_its_record_does_not_exist(tmp_path):
    checkpoints = Checkpoints(tmp_path, lambda text: pytest.fail(text))
    checkpoints.save(1, {"x": torch.zeros(1)}, {"a": 1})
    checkpoints.save(2, {"x": torch.ones(1)}, {"a": 2})
    (tmp_path / "step-00000002.json").unlink()
    assert checkpoints.load().state == {"a": 1}
    assert Checkpoints(tmp_path / "empty", lambda text: pytest.fail(text)).load() is None
