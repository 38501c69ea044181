"""Several processes take the steps of one: three of them, joined by gloo, on this machine."""

import group
import pytest
import torch

from privimage.dp.noise import TEST_KEY
from privimage.errors import UserError


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each process found, by the name of the case."""
    return group.in_processes(tmp_path_factory.mktemp("group"))


@pytest.fixture
def alone(monkeypatch):
    """The model after all steps of one process, by the key that the three have."""
    monkeypatch.setenv(TEST_KEY, "known")
    return group.trained


def assert_same(found, expected):
    """Bit by bit, in whatever these networks hold."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", group.OPTIMIZERS)
def test_several_processes_take_the_steps_of_one_bit_for_bit(found, alone, optimizer):
    """Sample, clipped sum and noise: each example once, the noise once, the same in all."""
    expected = alone(optimizer=group.OPTIMIZERS[optimizer])
    for each in found:
        assert_same(each["all"][optimizer], expected)


def test_so_do_recorded_ones_and_some_of_all(found, alone):
    expected = alone()
    for each in found:
        assert_same(each["recorded"], expected)
    for each in found[:2]:
        assert_same(each["pair"], expected)
    assert "not in the process_group" in found[2]["outside"]


def test_a_step_without_examples_is_a_step(found, alone):
    expected = alone(sample_rate=1e-9, expected_batch_size=20.0)
    for each in found:
        assert_same(each["no examples"], expected)
    assert not torch.equal(expected["head.weight"], group.Network(0).head.weight)


def test_all_go_on_from_the_model_of_the_first(found, alone):
    """Frozen layers and buffers included."""
    expected = alone(seed=0)
    for each in found:
        assert_same(each["handed out"], expected)


def test_no_two_processes_draw_the_same_random_numbers(found):
    drawn = [number for each in found for number in each["random numbers"]]
    assert len(drawn) > 15
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("what", group.DIFFERENCES)
def test_processes_that_differ_take_no_step(found, what):
    for each in found:
        message, steps = each[what]
        assert "the processes differ in privacy" in message
        assert steps == 0


def test_the_first_process_has_the_ledger(found):
    """What another can't begin costs nothing, and what nothing pays for begins nowhere."""
    first, second, third = (each["ledger"] for each in found)
    assert second["closed"] == "the engine is closed; make another one"
    assert first["closed"] == third["closed"] == second["used up"] == third["used up"]
    assert "another process could not take the step" in first["closed"]
    assert first["spent when closed"] == 0
    assert first["spent"] == group.STEPS
    assert "the privacy budget pays for 0 more steps" in first["used up"]
    assert [each["steps then"] for each in (first, second, third)] == [0, 0, 0]
    assert second["own ledger"].startswith(
        "the ledger belongs to the first process; this is rank 1"
    )


def test_the_first_process_has_epsilon_and_state(found):
    assert found[0]["alone"] == ["nothing", "nothing"]
    for rank in (1, 2):
        where = f"belongs to the first process; this is rank {rank} of 3"
        assert found[rank]["alone"] == [f"epsilon() {where}", f"state_dict() {where}"]


@pytest.mark.parametrize("alone", [True, False])
def test_a_run_goes_back_to_a_state_of_its_own(found, alone):
    """Whether the first alone loads it or all; the steps since then stay counted."""
    answers, steps, states = zip(*(each["gone back"][alone] for each in found), strict=True)
    assert answers == ("nothing",) * 3
    assert steps == (3,) * 3
    for each in states[1:]:
        assert_same(each, states[0])


def test_buffers_of_any_type_and_layout_are_handed_out(found):
    values = torch.arange(6).view(2, 3)
    expected = {str(dtype).split(".")[1]: values.to(dtype) for dtype in group.ODD_TYPES}
    expected |= {"expanded": torch.zeros(2, 3), "turned": values.mT}
    for each in found:
        buffers = each["unlike any other"]
        assert list(buffers) == list(expected)
        for name, buffer in buffers.items():
            assert buffer.dtype == expected[name].dtype
            assert buffer.to(torch.complex64).equal(expected[name].to(torch.complex64))


@pytest.mark.parametrize(("where", "at"), group.CUT_OFF.items())
def test_a_step_that_fails_in_one_process_fails_in_all(found, where, at):
    """And the next one is of one model again."""
    answers, steps, states = zip(*(each["cut off"][where] for each in found), strict=True)
    assert answers[at] == "no memory"
    for rank in {0, 1, 2} - {at}:
        assert "another process could not take the step" in answers[rank]
    assert steps == (3,) * 3
    for each in states[1:]:
        assert_same(each, states[0])


def test_an_engine_that_does_not_know_of_the_others_takes_no_step(monkeypatch):
    """It was made before init_process_group: each process would train a model of its own."""
    made = group.engine()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 2)
    with pytest.raises(UserError, match="make the engine after init_process_group"):
        made.step()
    assert made.steps_spent == 0
    monkeypatch.undo()
    made.step()
    assert made.steps_spent == 1
