"""Whole models: exact for each example, the same in threads, and no use of a parameter unseen."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from truth import one_at_a_time

from privimage.dp.gradients.engine import ExampleGradients
from privimage.dp.gradients.independence import check_independence
from privimage.errors import UserError


class Block(nn.Module):
    """A UNet in small: condition, residual branch, attention, a skip around a coarser level."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 8)
        self.project = nn.Linear(8, 8)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.q, self.k, self.v = (nn.Conv2d(8, 8, 1) for _ in range(3))
        self.out = nn.Conv2d(16, 3, 3, padding="same", bias=False)

    def forward(self, x, labels):
        skip = self.stem(x)
        h = self.down(F.silu(self.norm(skip)))
        h = h + self.project(F.silu(self.table(labels)))[:, :, None, None]
        q, k, v = (layer(h).flatten(2).mT[:, None] for layer in (self.q, self.k, self.v))
        h = h + F.scaled_dot_product_attention(q, k, v)[:, 0].mT.reshape(h.shape)
        return self.out(torch.cat([F.interpolate(h, scale_factor=2.0), skip], dim=1))


def denoising(model, x, noise, labels):
    return (model(x + noise, labels) - x).square().mean((1, 2, 3))


def images(rows, dtype=torch.float32):
    torch.manual_seed(rows)
    x, noise = torch.randn(2, rows, 3, 8, 8, dtype=dtype)
    return x, noise, torch.arange(rows) % 4


def row_sums(model, x):
    return model(x).flatten(1).sum(1)


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("examples", [1, 3])
# Sums of some thousand terms: a few hundred eps relative to the largest gradient.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_a_small_unet_gives_what_autograd_gives_for_each_example(examples, draws, dtype, tolerance):
    model = Block().to(dtype)
    batch = images(examples * draws, dtype)
    engine = ExampleGradients(model)
    gradients = engine(denoising, *batch, draws=draws)
    expected = one_at_a_time(model, denoising, batch, draws)
    assert gradients.dtype == dtype
    assert not gradients.requires_grad
    assert engine.names == tuple(name for name, _ in model.named_parameters())
    assert gradients.shape == (examples, engine.size)
    assert (gradients - expected).abs().max() <= tolerance * expected.abs().max()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_small_unet_keeps_its_examples_apart():
    check_independence(ExampleGradients(Block()), denoising, *images(6), draws=2)


def test_channels_last():
    model = Block().double().to(memory_format=torch.channels_last)
    x, noise, labels = images(6, torch.float64)
    batch = x.contiguous(memory_format=torch.channels_last), noise, labels
    gradients = ExampleGradients(model)(denoising, *batch, draws=2)
    torch.testing.assert_close(gradients, one_at_a_time(model, denoising, batch, 2))


def test_the_memory_format_changes_nothing_else():
    model, batch = Block().double(), images(6, torch.float64)
    asked = ExampleGradients(model, torch.channels_last)(denoising, *batch, draws=2)
    torch.testing.assert_close(asked, ExampleGradients(model)(denoising, *batch, draws=2))


def test_losses_may_be_means_over_the_draws_already():
    model, batch = Block(), images(6)
    engine = ExampleGradients(model)
    means = engine(lambda *a: denoising(*a).view(2, 3).mean(1), *batch, draws=3)
    torch.testing.assert_close(means, engine(denoising, *batch, draws=3))


def test_an_input_may_have_one_row_an_example():
    # The label is embedded once an example and then repeated for its draws.
    model = nn.ModuleList([nn.Embedding(3, 4), nn.Linear(4, 4)]).double()

    def losses(model, x, labels):
        repeats = len(x) // 2
        return (x * model[1](model[0](labels[::repeats])).repeat_interleave(repeats, 0)).sum(1)

    batch = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 0, 0, 2, 2, 2])
    gradients = ExampleGradients(model)(losses, *batch, draws=3)
    one = torch.autograd.grad(losses(model, *batch)[:3].mean(), list(model.parameters()))
    torch.testing.assert_close(gradients[0], torch.cat([g.flatten() for g in one]))


def test_a_weight_used_twice_adds_its_parts():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode = nn.Embedding(5, 4)
            self.decode = nn.Linear(4, 5, bias=False)
            self.decode.weight = self.encode.weight

        def forward(self, indices):
            return self.decode(self.encode(indices).tanh()).log_softmax(-1)[..., 0]

    model, indices = Tied().double(), torch.tensor([[0, 1], [1, 1], [4, 0], [2, 2]])
    engine = ExampleGradients(model)
    assert engine.size == 20
    gradients = engine(row_sums, indices, draws=2)
    torch.testing.assert_close(gradients, one_at_a_time(model, row_sums, (indices,), 2))


def test_a_parameter_that_is_also_in_a_list_or_reached_around_the_model():
    model = nn.Linear(3, 3).double()
    model.kept = [model.weight]
    around = lambda _, x: F.linear(x, model.kept[0], model.bias).square().sum(1)  # noqa: E731
    x = torch.randn(4, 3, dtype=torch.float64)
    gradients = ExampleGradients(model)(around, x)
    torch.testing.assert_close(gradients, one_at_a_time(model, around, (x,), 1))


def test_only_trainable_parameters_have_gradients():
    # Low-rank updates beside a frozen layer that is otherwise used as any tensor is.
    class LowRank(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = nn.Linear(6, 5).requires_grad_(False)
            self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 5, bias=False)

        def forward(self, x):
            normalised = self.frozen.weight / self.frozen.weight.norm()
            return (x @ normalised.T + self.frozen.bias + self.up(self.down(x))).square()

    model, x = LowRank().double(), torch.randn(4, 6, dtype=torch.float64)
    engine = ExampleGradients(model)
    assert engine.names == ("down.weight", "up.weight")
    torch.testing.assert_close(engine(row_sums, x), one_at_a_time(model, row_sums, (x,), 1))


def test_an_unused_parameter_has_gradient_zero():
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 1)])
    gradients = ExampleGradients(model)(lambda m, x: m[1](x)[:, 0], torch.ones(3, 2))
    assert torch.equal(gradients, torch.tensor([[0.0] * 6 + [1.0] * 3] * 3))


def test_an_empty_batch_has_no_rows():
    engine = ExampleGradients(Block())
    assert engine(denoising, *(t[:0] for t in images(2)), draws=2).shape == (0, engine.size)


def test_gradients_are_wanted_where_the_caller_has_switched_them_off():
    model, x = nn.Linear(2, 2), torch.randn(3, 2)
    with torch.no_grad():
        gradients = ExampleGradients(model)(row_sums, x)
    assert torch.equal(gradients[:, :2], x)


def test_an_example_is_bitwise_the_same_whatever_its_neighbours_are():
    engine, batch = ExampleGradients(Block()), images(6)
    gradients = engine(denoising, *batch, draws=2)
    for hostile in (0.0, 1e30, float("inf"), float("nan")):
        others = [tensor.clone() for tensor in batch]
        others[0][2:4] = hostile
        changed = engine(denoising, *others, draws=2)
        assert torch.equal(changed[[0, 2]], gradients[[0, 2]])
        assert not torch.equal(changed[1], gradients[1])


def test_threads_share_an_engine():
    engine = ExampleGradients(Block())
    batches = [images(4 + 2 * i) for i in range(8)]
    run = lambda batch: engine(denoising, *batch, draws=2)  # noqa: E731
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = [run(batch) for batch in batches]
        with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            found = list(pool.map(run, batches * 3))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, found, expected * 3))


def test_metadata_of_a_parameter_stays_readable():
    def losses(model, x):
        w = model.weight
        assert (len(w), w.shape, w.size(1), w.dim(), w.numel()) == (2, (2, 3), 3, 2, 6)
        assert w.requires_grad
        assert w.is_leaf
        return model(x.to(w.device, w.dtype)).sum(1)

    x = torch.randn(4, 3, dtype=torch.float64)
    assert ExampleGradients(nn.Linear(3, 2))(losses, x).isfinite().all()


def scripted(x, weight):
    return x @ weight


class Hidden(nn.Module):
    """Uses its weight where a `TorchFunctionMode` sees it as well as where none can."""

    def __init__(self, hide):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3, 3))
        self.early_view = self.weight.mT
        self.hide = hide

    def forward(self, x):
        return F.linear(x, self.weight) + self.hide(self, x)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("how", ["script", "view", "thread"])
def test_a_hidden_use_of_a_parameter_is_found_and_named(how):
    hide = {
        "script": lambda: (lambda jit: lambda m, x: jit(x, m.weight))(torch.jit.script(scripted)),
        "view": lambda: lambda m, x: x @ m.early_view,
        "thread": lambda: _in_another_thread,
    }[how]()
    engine = ExampleGradients(nn.Sequential(Hidden(hide)))
    with pytest.raises(UserError, match=r"parameter '0\.weight' is used where .* can't see it"):
        engine(row_sums, torch.randn(2, 3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_model_is_refused_by_name():
    model = torch.jit.script(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(UserError, match=r"module '0' \(.*\): parameter '0.weight' .* \(torch.jit"):
        ExampleGradients(model)(row_sums, torch.randn(2, 3))


def _in_another_thread(model, x):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: F.linear(x, model.weight)).result()


class OwnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx, grad):
        return None, grad.mT @ ctx.saved_tensors[0]


def _without_gradients(model, x):
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize(
    "use",
    [
        _without_gradients,
        lambda m, x: OwnLinear.apply(x, m.weight),
        lambda m, x: checkpoint(m, x.requires_grad_(), use_reentrant=True),
    ],
)
def test_a_use_without_gradients_is_refused(use):
    # Autograd would not run, or not see, what these hide: the gradient would silently be too small.
    engine = ExampleGradients(nn.Linear(3, 3))
    with pytest.raises(UserError, match=r"parameter 'weight' in torch\..* switched off"):
        engine(lambda m, x: (m(x) + use(m, x)).sum(1), torch.randn(2, 3))


def _attacked(model, x, direction):
    return model(x + 0.1 * direction.sign()).square().sum(1)


def adversarial(model, x):
    nearby = x.clone().requires_grad_()
    return _attacked(model, x, torch.autograd.grad(model(nearby).square().sum(), nearby)[0])


def adversarial_by_backward(model, x):
    nearby = x.clone().requires_grad_()
    model(nearby).square().sum().backward()
    return _attacked(model, x, nearby.grad)


@pytest.mark.parametrize("losses", [adversarial, adversarial_by_backward])
@pytest.mark.parametrize("draws", [1, 2])
def test_losses_may_differentiate_by_their_input(losses, draws):
    # What is differentiated on the way is no part of an example's gradient.
    class Net(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 3))
            self.scale = nn.Parameter(torch.rand(3))

        def forward(self, x):
            return super().forward(x) * self.scale

    model, x = Net().double(), torch.randn(4, 1, 4, 4, dtype=torch.float64)
    found = ExampleGradients(model)(losses, x, draws=draws)
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(found, one_at_a_time(model, losses, (x,), draws))


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)),
        nn.Sequential(nn.Conv1d(1, 2, 1), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(8, 1)),
        nn.LSTM(4, 2, batch_first=True),
    ],
)
def test_a_second_derivative_is_right_or_refused(model):
    def penalty(model, x):
        nearby = x[:, None].clone().requires_grad_()
        output = model(nearby)
        output = output[0] if isinstance(output, tuple) else output
        slope = torch.autograd.grad(output.square().sum(), nearby, create_graph=True)[0]
        return slope.square().flatten(1).sum(1)

    with pytest.raises(UserError, match=r"create_graph=True.*no second derivative"):
        ExampleGradients(model)(penalty, torch.randn(3, 4))


def test_a_second_derivative_of_plain_arithmetic():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.rand(3).double())

        def forward(self, x):
            return (x * self.scale).tanh()

    def penalty(model, x):
        nearby = x.clone().requires_grad_()
        slope = torch.autograd.grad(model(nearby).sum(), nearby, create_graph=True)[0]
        return slope.square().sum(1)

    model, x = Scale(), torch.randn(4, 3).double()
    found = ExampleGradients(model)(penalty, x, draws=2)
    torch.testing.assert_close(found, one_at_a_time(model, penalty, (x,), 2))


def test_a_layer_that_is_computed_again_is_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.GroupNorm(1, 3), nn.SiLU(), nn.Linear(3, 1))
    losses = lambda m, x: checkpoint(m, x, use_reentrant=False)[:, 0]  # noqa: E731
    with pytest.raises(UserError, match=r"torch\.utils\.checkpoint .* smaller micro-batches"):
        ExampleGradients(model)(losses, torch.randn(2, 3))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize(
    ("use", "problem"),
    [
        (lambda m, x: torch.func.vmap(m)(x), "first dimension of its input"),
        (lambda m, x: torch.func.jvp(m, (x,), (x,))[1], r"torch\.func can't transform"),
        (
            lambda m, x: torch.func.grad(lambda x: m(x).square().sum())(x),
            r"torch\.func can't transform",
        ),
    ],
)
def test_transformations_of_functions_are_refused(use, problem):
    engine = ExampleGradients(nn.Linear(3, 3))
    with pytest.raises(UserError, match=rf"parameter 'weight' in torch\..*{problem}"):
        engine(lambda m, x: use(m, x).square().sum(1), torch.randn(2, 3))


def test_a_functional_call_is_a_call():
    model, x = nn.Linear(3, 3).double(), torch.randn(4, 3).double()

    def losses(model, x):
        weights = dict(model.named_parameters())
        return torch.func.functional_call(model, weights, (x,)).square().sum(1)

    found = ExampleGradients(model)(losses, x)
    torch.testing.assert_close(found, one_at_a_time(model, losses, (x,)))


# What dynamo does to find its way around has warnings of its own.
@pytest.mark.filterwarnings("ignore")
def test_compiled_code_runs_as_it_was_written():
    # Compiled, a rule would not write into its slot, and the gradient would silently be zero.
    model = nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.SiLU(), nn.Linear(4, 2)).double()
    x = torch.randn(4, 3).double()
    expected = one_at_a_time(model, row_sums, (x,))
    for compile_first in (True, False):
        torch.compiler.reset()
        compiled = torch.compile(model, backend="aot_eager")
        if compile_first:
            compiled(x)
        torch.testing.assert_close(ExampleGradients(compiled)(row_sums, x), expected)
    losses = torch.compile(row_sums, backend="eager")
    torch.testing.assert_close(ExampleGradients(model)(losses, x), expected)
    whole = torch.compile(model, backend="eager", fullgraph=True)
    with pytest.raises(UserError, match="fullgraph=True can't be watched; give the engine"):
        ExampleGradients(whole)(row_sums, x)
    torch.compiler.reset()


def test_an_activation_that_is_changed_in_place_is_refused():
    def overwriting(model, x):
        h = model[0](x)
        y = model[1](h)
        h += 1
        return (y + h).sum(1)

    engine = ExampleGradients(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    with pytest.raises(UserError, match=r"changed in place after it was used; look for \+="):
        engine(overwriting, torch.randn(2, 3))


def test_a_parameter_that_is_changed_in_place_is_refused_with_its_module():
    class Restless(nn.Linear):
        def forward(self, x):
            with torch.no_grad():
                self.weight.mul_(0.9)
            return super().forward(x)

    engine = ExampleGradients(nn.Sequential(Restless(3, 3)))
    with pytest.raises(UserError, match=r"module '0' \(Restless\): parameter '0\.weight' .*mul_"):
        engine(row_sums, torch.randn(2, 3))


def test_a_refused_call_leaves_nothing_behind():
    model, x = nn.Linear(3, 3), torch.randn(2, 3)
    engine = ExampleGradients(model)
    with pytest.raises(UserError, match="parameter 'weight' in torch"):
        engine(lambda m, x: torch.kron(x, m.weight).sum(1), x)
    assert torch.equal(x @ model.weight, x.matmul(model.weight))
    assert engine(row_sums, x).shape == (2, 12)


@pytest.mark.parametrize(
    ("losses", "batch", "draws", "problem"),
    [
        (lambda m, x: m(x).sum(), [torch.ones(4, 3)], 1, r"shape \[4\], one a row"),
        (lambda m, x: m(x), [torch.ones(4, 3)], 1, "several losses, their mean"),
        (row_sums, [torch.ones(4, 3)], 3, "4 rows does not hold 3 draws"),
        (row_sums, [torch.ones(4, 3)], 0, "draws must be a whole number of at least 1"),
        (row_sums, [], 1, "as many rows each"),
        (row_sums, [torch.ones(4, 3), torch.ones(3)], 1, "as many rows each"),
        (row_sums, [torch.tensor(1.0)], 1, "as many rows each"),
        (lambda m, x: x.sum(1), [torch.ones(4, 3)], 1, "don't depend on any trainable"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(losses, batch, draws, problem):
    with pytest.raises(UserError, match=problem):
        ExampleGradients(nn.Linear(3, 3))(losses, *batch, draws=draws)


def test_models_that_cannot_be_trained_are_refused():
    with pytest.raises(UserError, match="no trainable parameter"):
        ExampleGradients(nn.Linear(3, 3).requires_grad_(False))
    with pytest.raises(UserError, match=r"parameter '0\.weight' has no shape yet"):
        ExampleGradients(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(UserError, match="parameter 'weight' is complex; keep real numbers"):
        ExampleGradients(nn.Linear(3, 3, dtype=torch.cfloat))
    hooked = nn.Linear(3, 3)
    hooked.bias.register_hook(torch.zeros_like)
    with pytest.raises(UserError, match="parameter 'bias' has a hook on its gradient"):
        ExampleGradients(hooked)
    born = ExampleGradients(nn.Linear(3, 3))
    with torch.inference_mode():
        unborn = nn.Linear(3, 3)
        with pytest.raises(UserError, match=r"inference_mode rules gradients out; call"):
            born(row_sums, torch.ones(2, 3))
    with pytest.raises(UserError, match="parameter 'weight' was made in"):
        ExampleGradients(unborn)


def test_a_frozen_backbone_may_normalise_by_what_it_has_learned():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3)
    norm(torch.randn(20, 3))
    model = nn.Sequential(norm.requires_grad_(False).eval(), nn.Linear(3, 2)).double()
    x = torch.randn(4, 3).double()
    engine = ExampleGradients(model)
    check_independence(engine, row_sums, x)
    torch.testing.assert_close(engine(row_sums, x), one_at_a_time(model, row_sums, (x,)))
    model.train()
    with pytest.raises(UserError, match=r"module '0' \(BatchNorm1d\) mixes .* call its eval\(\)"):
        engine(row_sums, x)


def test_a_model_that_is_wrapped_for_several_processes_is_refused():
    class Wrapped(nn.parallel.DistributedDataParallel):
        def __init__(self, module):
            nn.Module.__init__(self)
            self.module = module

    with pytest.raises(UserError, match=r"\(Wrapped\): give its \.module"):
        ExampleGradients(Wrapped(nn.Linear(3, 2)))
