"""What each of three processes does for tests/dp/test_processes.py; they import it by its name."""

import copy
import os
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn import functional as F

from privimage.dp import DPSGD, DPAdam, Ledger, Privacy, PrivateEngine
from privimage.dp.noise import TEST_KEY
from privimage.errors import UserError

PROCESSES = 3
STEPS = 4
ODD_TYPES = (torch.bool, torch.int16, torch.uint16, torch.float8_e5m2, torch.complex64)
CUT_OFF = {"losses": 1, "interrupted losses": 1, "optimizer": 0}
"""Where a step fails, and in which process."""
OPTIMIZERS = {"DPAdam": DPAdam, "SGD": partial(torch.optim.SGD, momentum=0.9)}


class Network(nn.Module):
    """A layer behind a frozen one and a buffer."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.frozen = nn.Linear(4, 6).requires_grad_(False)
        self.register_buffer("shift", torch.randn(6))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.frozen(x) + self.shift))


def losses(model, x, y):
    return F.cross_entropy(model(x), y, reduction="none")


def engine(
    optimizer=DPSGD, own_losses=losses, seed=0, examples=41, options=None, own_model=None, **changes
):
    """In micro-batches of 4, of which a step has about 5 and a process 1 or 2."""
    model = own_model or Network(seed)
    random = torch.Generator().manual_seed(1)
    x, y = torch.randn(64, 4, generator=random), torch.randint(3, (64,), generator=random)
    numbers = {"noise_multiplier": 1.0, "sample_rate": 0.5, "steps": STEPS, "max_grad_norm": 0.3}
    return PrivateEngine(
        model,
        optimizer(model.parameters(), lr=0.1),
        own_losses,
        (x[:examples], y[:examples]),
        Privacy(**numbers | changes),
        **{"micro_batch": 4} | (options or {}),
    )


def state(made):
    return {name: tensor.clone() for name, tensor in made._model.state_dict().items()}


def trained(**options):
    """The model after all steps."""
    made = engine(**options)
    for _ in range(STEPS):
        made.step()
    return state(made)


def refusal(call):
    """What a call that must be refused says."""
    try:
        call()
    except (UserError, KeyboardInterrupt) as problem:
        return str(problem)
    return "nothing"


def in_processes(folder):
    """What `_found` returns in each of the processes."""
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        found = [pool.submit(_joined, rank, folder) for rank in range(PROCESSES)]
        return [future.result() for future in found]


def _joined(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        f"file://{folder}/rendezvous",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=60),
    )
    try:
        return _found(rank, folder)
    finally:
        distributed.destroy_process_group()


def _found(rank, folder):
    os.environ[TEST_KEY] = "known"
    pair = distributed.new_group([0, 1])
    found = {
        "all": {name: trained(optimizer=one) for name, one in OPTIMIZERS.items()},
        "recorded": trained(options={"recorded": True}),
        "handed out": trained(seed=rank),
        "random numbers": _random_numbers(),
        "no examples": trained(sample_rate=1e-9, expected_batch_size=20.0),
        "outside": refusal(lambda: engine(options={"process_group": pair})),
        "alone": _refused_alone(),
        "ledger": _with_a_ledger(rank, folder),
        "gone back": {alone: _gone_back(rank, alone) for alone in (True, False)},
        "unlike any other": _of_odd_types(rank),
        "cut off": {where: _cut_off(rank, where) for where in CUT_OFF},
    }
    if rank < 2:
        found["pair"] = trained(options={"process_group": pair})
    for what, changes in DIFFERENCES.items():
        made = engine(**(changes if rank == 1 else {}))
        if rank == 1 and what in _CHANGES:
            _CHANGES[what](made._model)
        found[what] = refusal(made.step), made.steps_spent
    return found


DIFFERENCES = {
    "clipping norm": {"max_grad_norm": 3.0},
    "draws": {"options": {"draws_per_example": 2}},
    "number of examples": {"examples": 40},
    "a frozen layer's size": {},
    "a buffer": {},
    "eval()": {},
}


def _widened(model):
    model.frozen, model.shift = nn.Linear(4, 7).requires_grad_(False), torch.randn(7)
    model.head.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, :6],))


_CHANGES = {
    "a frozen layer's size": _widened,
    "a buffer": lambda model: model.register_buffer("another", torch.zeros(3)),
    "eval()": nn.Module.eval,
}


def _gone_back(rank, alone):
    """A step to which the first alone or all go back, and a step from there."""
    made = engine(steps=9)
    made.step()
    saved = [made.state_dict() if rank == 0 else None, state(made)]
    saved[0] = copy.deepcopy(saved[0])
    distributed.broadcast_object_list(saved, 0)
    made.step()
    if rank == 0 or not alone:
        made._model.load_state_dict(saved[1])
        made.load_state_dict(saved[0])
    answer = refusal(made.step)
    return answer, made.steps_spent, state(made)


def _of_odd_types(rank):
    """The buffers after a step, of types and layouts of which some can't be sent as they are."""
    model = Network(0)
    values = torch.arange(6).view(2, 3) + rank
    for dtype in ODD_TYPES:
        model.register_buffer(str(dtype).split(".")[1], values.to(dtype))
    model.register_buffer("expanded", torch.full((1, 3), float(rank)).expand(2, 3))
    model.register_buffer("turned", values.mT)
    made = engine(own_model=model)
    made.step()
    return {name: buffer.clone() for name, buffer in model.named_buffers() if name != "shift"}


def _cut_off(rank, where):
    """What a step is told that fails in one process, and the model after another one."""
    fails = []

    def failing(model, x, y):
        if fails and rank == 1 and where != "optimizer":
            raise UserError("no memory") if where == "losses" else KeyboardInterrupt("no memory")
        return losses(model, x, y)

    made = engine(own_losses=failing, steps=9)
    made.step()
    if rank == 0 and where == "optimizer":
        update = made._optimizer.apply

        def half(total):
            update(total)
            if fails:
                raise UserError("no memory")

        made._optimizer.apply = half
    fails.append(True)
    answer = refusal(made.step)
    fails.clear()
    made.step()
    return answer, made.steps_spent, state(made)


def _random_numbers():
    """Those that the losses draw for the examples of a step, in this process."""
    drawn = []

    def noisy(model, x, y):
        noise = torch.randn(len(x))
        drawn.extend(noise.tolist())
        return losses(model, x, y) * noise

    made = engine(own_losses=noisy)
    made.check()
    drawn.clear()
    made.step()
    return drawn


def _refused_alone():
    """What each process is told where the first alone can answer."""
    made = engine()
    made.step()
    return [refusal(lambda: made.epsilon(1e-5)), refusal(made.state_dict)]


def _with_a_ledger(rank, folder):
    """A step that the second process can't begin, all steps, and one that nothing pays for."""
    ledger = Ledger(Path(folder) / "ledger.jsonl") if rank == 0 else None
    options = {"ledger": ledger}
    made = engine()
    if ledger is not None:
        ledger.set_plan(made.privacy.plan(1e-5))

    def spent():
        return None if ledger is None else sum(part.steps for part in ledger.spent())

    closed = engine(options=options)
    if rank == 1:
        closed.close()
    found = {"closed": refusal(closed.step), "spent when closed": spent()}
    made = engine(options=options)
    for _ in range(STEPS):
        made.step()
    found["spent"] = spent()
    more = engine(options=options)
    found |= {"used up": refusal(more.step), "steps then": more.steps_spent}
    if rank == 1:
        with Ledger(Path(folder) / "another.jsonl") as other:
            found["own ledger"] = refusal(lambda: engine(options={"ledger": other}))
    return found
