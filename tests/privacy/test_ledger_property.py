"""Any interleaving of reservations, steps, crashes and restarts: never understated, never over."""

import contextlib
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from toy_accountant import adding_up

from privimage.dp import History, Ledger, Plan, SubsampledGaussian
from privimage.errors import UserError

# A toy accountant, so that thousands of cases are quick: a step costs 1, a query costs 3.
STEPS = SubsampledGaussian(0.5, 1.0, 12)
PLAN = Plan(epsilon=20.0, delta=1e-4, query_noise_multiplier=3.0, finetune=STEPS)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(1, 5)),
        st.tuples(st.just("step"), st.integers(1, 5)),
        st.tuples(st.just("query"), st.just(0)),
        st.tuples(st.just("raise"), st.integers(1, 9)),
        # A crash may tear that many bytes off a record that was just being written.
        st.tuples(st.just("crash"), st.integers(0, 400)),
    ),
    max_size=25,
)


def _cost(mechanism):
    return getattr(mechanism, "steps", 3)


class Run:
    """A run that does what it is told, and counts what it has released."""

    def __init__(self, path):
        self.path = path
        self.released, self.taken, self.ready = 0, 0, 0
        self.ledger, self.budget = None, None
        self.open()

    def open(self):
        self.ledger = Ledger(self.path)
        self.ledger.set_plan(self.ledger.plan or PLAN)
        self.budget = self.ledger.step_budget(12, self.taken)

    def crash(self, torn):
        """The process dies; perhaps in the middle of one more reservation, under which nothing
        was released."""
        if torn:
            before = self.path.stat().st_size
            try:
                self.budget.reserve(1)
            except UserError:
                before = self.path.stat().st_size
            self.ledger.__exit__()
            with self.path.open("r+b") as file:
                file.truncate(max(before, self.path.stat().st_size - torn))
        self.ledger.__exit__()
        self.ready = 0
        self.open()

    def do(self, action, number):
        if action == "reserve":
            self.budget.reserve(number)
            self.ready += number
        elif action == "step":
            taken = min(number, self.ready)
            self.ready -= taken
            self.taken += taken
            self.released += taken
        elif action == "query":
            self.ledger.reserve_query()
            self.released += 3
            self.budget = self.ledger.step_budget(12, self.taken)
        elif action == "raise":
            plan = self.ledger.plan
            self.ledger.set_plan(
                Plan(plan.epsilon + number, plan.delta, plan.query_noise_multiplier, STEPS)
            )
            self.budget = self.ledger.step_budget(12, self.taken)
        else:
            self.crash(number)


@given(actions=ACTIONS)
@settings(max_examples=60)
def test_no_interleaving_understates_or_exceeds_the_budget(actions):
    with adding_up(_cost), tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "ledger.jsonl")
        for action, number in actions:
            with contextlib.suppress(UserError):
                run.do(action, number)
            spent = run.ledger.epsilon(1e-4).upper
            assert run.released + run.ready <= spent
            assert spent <= run.ledger.plan.epsilon
        run.ledger.__exit__()


def test_the_property_finds_a_ledger_that_refunds(tmp_path, monkeypatch):
    real = History.spent
    with adding_up(_cost):
        run = Run(tmp_path / "ledger.jsonl")
        for action in (("reserve", 4), ("step", 4), ("crash", 0)):
            run.do(*action)
        assert run.released == run.ledger.epsilon(1e-4).upper == 4
        monkeypatch.setattr(History, "spent", lambda history: real(history)[:-1])
        assert run.released > run.ledger.epsilon(1e-4).upper
        run.ledger.__exit__()
