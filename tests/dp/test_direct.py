"""Parameters without a layer, and what is computed from them alone, against autograd."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from truth import one_at_a_time

from privimage.dp import ExampleGradients, check_independence
from privimage.dp.rules.slots import DerivedSlot
from privimage.errors import UserError


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(1)


class Own(nn.Module):
    """Two parameters, a buffer and what a test does with them."""

    def __init__(self, use, *shapes):
        super().__init__()
        self.w, self.v = (nn.Parameter(torch.rand(shape) + 0.1) for shape in (*shapes, (1,))[:2])
        self.register_buffer("mask", torch.arange(3.0) % 2)
        self.use = use

    def forward(self, x):
        return self.use(self, x)


def losses(model, x):
    return model(x).flatten(1).cumsum(1).sin().sum(1)


def assert_exact(model, x, draws):
    model, x = model.double(), x.double()
    expected = one_at_a_time(model, losses, (x,), draws)
    assert expected.abs().max() > 0
    found = ExampleGradients(model)(losses, x, draws=draws)
    # Both are float64 sums of at most some thousand terms, in another order.
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    if len(x) > draws:
        check_independence(ExampleGradients(model), losses, x, draws=draws)


PAIRS = (torch.arange(4)[:, None] - torch.arange(4)).abs()


def overwritten(m, x):
    """A scale and its views, used before and after what they hold is overwritten."""
    scale = 2 * m.w
    before, first = x + scale, scale[:1]
    scale.mul_(m.v).clamp_(max=0.7)
    between = x.cos() + first
    first += 1
    return before + between + scale.sin() + first.sin()


def put_into_constants(m, x):
    """A table of zeros and parameters, which a view of it is changed by, too."""
    table = torch.zeros(4, 3).double()
    table[1:] = m.w[:3]
    row = table[0]
    x = x + 2 * row
    row += m.v
    return x + table.cos() + table[0]


def put_into_data(m, x):
    """Learned tokens in the place of some, of a column and of some numbers."""
    x = x.sin().masked_fill(x > 0.5, m.v)
    x[x[..., 0] > 0] = m.w
    x[:, 1:2] = m.w.exp()
    x[..., -1].copy_(m.w[0])
    return x.cos()


def repeated_and_changed(m, x):
    """A token for each row, of which the first stands for all of them only while it is one."""
    token = m.w.repeat(len(x), 4, 1)
    token.data.mul_(2)  # Not seen by autograd.
    shift = x + token
    token.mul_(m.v)
    positions = F.embedding(torch.arange(4).expand(len(x), 4), m.v.expand(4, 3))
    y = x * positions
    positions += token
    return shift + y * token + positions.sin()


def parts(m, x):
    """Two results of one operation."""
    first, second = m.w.sin().chunk(2)
    return x * first + x.cos() * second


def turned(m, x):
    """A square matrix, used as it was and turned."""
    matrix = m.w + m.v
    y = x + matrix[0]
    matrix.t_()
    return y + x @ matrix


# x has 6 rows [4, 3] each.
USES = {
    "scale": (lambda m, x: x * m.w, (3,)),
    "scale from the left": (lambda m, x: m.w * x, (4, 3)),
    "shift": (lambda m, x: x + m.w - 2 * m.v, (4, 1), (3,)),
    "number": (lambda m, x: x / m.w, ()),
    "number repeated": (lambda m, x: x[:, 0, :1] * m.w.expand(2) + m.v.repeat(2), (), (1,)),
    "reversed": (lambda m, x: m.w / (x.abs() + 1) - m.v, (1, 4, 3), (3,)),
    "power": (lambda m, x: x.abs() ** m.w + m.v ** x.cos(), (3,), (3,)),
    "two powers": (lambda m, x: (2**m.w) * x, (3,)),
    "clamped": (lambda m, x: x.clamp(max=m.w) + torch.maximum(x, m.v), (3,), (3,)),
    "chosen": (lambda m, x: torch.where(x > 0, m.w, x * m.v), (3,), (4, 3)),
    "in place": (lambda m, x: x.exp().mul_(m.w).add_(m.v, alpha=2), (3,), (4, 3)),
    "overwritten": (overwritten, (3,), (3,)),
    "put into constants": (put_into_constants, (4, 3), (3,)),
    "put into data": (put_into_data, (3,), ()),
    "repeated and changed": (repeated_and_changed, (3,), (3,)),
    "parts": (parts, (2, 3)),
    "turned": (turned, (3, 3), (3,)),
    "nothing left of it": (lambda m, x: x * m.v + (2 * m.w).zero_(), (3,), (3,)),
    "filled where data says": (lambda m, x: x * m.w.masked_fill(x > 0, 0.5), (3,)),
    "mixed": (lambda m, x: torch.lerp(x, x.sin(), m.w), (3,)),
    "matrix": (lambda m, x: x @ m.w, (3, 5)),
    "matrix before": (lambda m, x: m.w @ x, (5, 4)),
    "transposed": (lambda m, x: F.linear(x, m.w.T), (3, 5)),
    "vector": (lambda m, x: x @ m.w, (3,)),
    "vector before": (lambda m, x: m.w @ x, (4,)),
    "matrices": (lambda m, x: x.flatten(1) @ m.w @ m.v, (12, 5), (5, 2)),
    "matrix of heads": (lambda m, x: x[:, None] @ m.w, (2, 3, 5)),
    "heads before": (lambda m, x: m.w @ x[:, None], (2, 5, 4)),
    "mm": (lambda m, x: torch.mm(x[:, 0], m.w), (3, 2)),
    "addmm": (lambda m, x: torch.addmm(m.v, x[:, 0], m.w, beta=2, alpha=3), (3, 2), (2,)),
    "linear with a number": (lambda m, x: F.linear(x, m.w, m.v), (5, 3), (1,)),
    "complex matrix": (
        lambda m, x: torch.view_as_real((x + 1j * x.cos()) @ torch.view_as_complex(m.w)),
        (3, 5, 2),
    ),
    "complex addmm": (
        lambda m, x: torch.view_as_real(
            torch.addmm(m.v.to(torch.complex128), x[:, 0] + 0j, torch.view_as_complex(m.w))
        ),
        (3, 5, 2),
        (5,),
    ),
    "addmm number": (lambda m, x: torch.addmm(m.v, x[:, 0], m.w), (3, 2), (1,)),
    "addmm rows": (lambda m, x: torch.addmm(m.v, x[:, 0], m.w), (3, 2), (1, 2)),
    "addmm bias": (lambda m, x: torch.addmm(m.v, x[:, 0], m.mask.diag()), (1,), (3,)),
    "baddbmm": (
        lambda m, x: torch.baddbmm(m.v, x, m.w.expand(len(x), -1, -1)),
        (3, 5),
        (4, 5),
    ),
    "bmm": (lambda m, x: torch.bmm(x, m.w.expand(len(x), -1, -1)), (1, 3, 5)),
    "distances": (lambda m, x: torch.cdist(x, m.w) * torch.cdist(m.v, x.exp()).mT, (5, 3), (5, 3)),
    "distances of one point": (lambda m, x: torch.cdist(x[:, 0], m.w, 1.5), (6, 3)),
    "einsum": (lambda m, x: torch.einsum("btd,de->bte", x, m.w), (3, 5)),
    "einsum of two": (lambda m, x: torch.einsum("btd,hdk,t->bhk", x, m.w, m.v), (2, 3, 5), (4,)),
    "einsum of any": (lambda m, x: torch.einsum("...d, de -> ...e", x, m.w), (3, 2)),
    "attention": (
        lambda m, x: F.scaled_dot_product_attention(m.w.expand(len(x), -1, -1), x, x),
        (1, 2, 3),
    ),
    "attention bias": (
        lambda m, x: F.scaled_dot_product_attention(x, x, x, attn_mask=m.w[None]),
        (4, 4),
    ),
    "class token": (
        lambda m, x: torch.cat([m.w.expand(x.shape[0], -1, -1), x], dim=1) + m.v,
        (1, 1, 3),
        (1, 5, 3),
    ),
    "class token repeated": (
        lambda m, x: torch.cat([m.w.repeat(x.shape[0], 2, 1), x], dim=-2),
        (1, 3),
    ),
    "class token from ones": (
        lambda m, x: torch.cat([x, torch.ones(len(x), 1, 1) * m.w], dim=1),
        (3,),
    ),
    "class token from zeros like the data": (
        lambda m, x: torch.cat([x, torch.zeros_like(x[:, :1]) + m.w], dim=1),
        (3,),
    ),
    "stacked": (lambda m, x: torch.stack([x[:, 0], m.w.expand(len(x), 3)], dim=1), (3,)),
    "class token like the data": (
        lambda m, x: torch.cat([m.w.expand_as(x[:, :1]), x.type_as(m.w)], dim=1),
        (1, 1, 3),
    ),
    "like others": (
        lambda m, x: F.linear(x.to(m.w), m.w.to(x)) + m.v.type_as(x).reshape_as(x[0, :3, :1]).mT,
        (3, 3),
        (3,),
    ),
    "positions": (lambda m, x: x + m.w[: x.shape[1]], (9, 3)),
    "position look-up": (lambda m, x: x + m.w[torch.arange(4)], (9, 3)),
    "positions of an embedding": (lambda m, x: x + F.embedding(torch.arange(4), m.w), (9, 3)),
    "positions in a row": (lambda m, x: x + F.embedding(torch.arange(4)[None], m.w), (9, 3)),
    "positions for each row": (
        lambda m, x: x + F.embedding(torch.arange(4).expand(len(x), 4), m.w),
        (9, 3),
    ),
    "distances of positions": (
        lambda m, x: F.embedding(PAIRS, m.w).permute(2, 0, 1) @ x[:, None],
        (7, 2),
    ),
    "a network of positions": (
        lambda m, x: x + F.linear(F.layer_norm(F.linear(PAIRS.to(x), m.w), (3,)), m.v),
        (3, 4),
        (3, 3),
    ),
    "convolved constants": (
        lambda m, x: x + F.conv2d(m.mask.expand(1, 1, 4, 3), m.w, padding="same")[0],
        (1, 1, 3, 3),
    ),
    "tokens of all rows": (
        lambda m, x: torch.addmm(m.v, x.view(-1, 3), m.w).view(-1, 4, 5),
        (3, 5),
        (5,),
    ),
    "windows": (
        lambda m, x: F.layer_norm(x.reshape(-1, 2, 3) + m.v, (3,), m.w).view_as(x),
        (3,),
        (2, 3),
    ),
    "windows of windows": (
        lambda m, x: F.linear(torch.flatten(x.reshape(-1, 2, 3), 0, 1), m.w).reshape(x.shape),
        (3, 3),
    ),
    "a scale without gradient": (lambda m, x: x * m.w / m.w.norm().detach(), (3,)),
    "look-up": (lambda m, x: m.w[(x[:, :, 0] > 0).long()], (2, 5)),
    "look-up of numbers": (lambda m, x: x[:, 0] * m.w[(x[:, 0] > 0).long()], (2,)),
    "look-up from behind": (lambda m, x: m.w[-1 - (x[:, 0] > 0).long()], (2, 5, 2)),
    "tokens": (lambda m, x: F.linear(x + m.w[:, None].unbind()[0], m.v), (2, 3), (2, 3)),
    "normalised": (lambda m, x: F.linear(x, m.w / m.w.norm(dim=1, keepdim=True)), (5, 3)),
    "standardised": (
        lambda m, x: F.conv2d(x[:, None], F.layer_norm(m.w, (1, 2, 2))),
        (5, 1, 2, 2),
    ),
    "masked": (lambda m, x: F.linear(x, m.w * m.mask), (5, 3)),
    "low rank": (lambda m, x: F.linear(x, m.w @ m.v), (5, 2), (2, 3)),
    "put together": (lambda m, x: F.linear(x, torch.cat([m.w, m.v.exp()])), (2, 3), (1, 3)),
    "used in three ways": (lambda m, x: F.linear(x * m.w[0], m.w) @ (m.w + m.w.T), (3, 3)),
    "number made of a number": (lambda m, x: x * m.w.exp(), ()),
    "number made of several": (lambda m, x: x / m.w.square().sum() - m.v.mean(), (3,), (2, 2)),
    "softplus": (lambda m, x: x / F.softplus(m.w), (3,)),
    "largest": (lambda m, x: x * m.w.max(dim=0).values, (4, 3)),
    "group norm's": (lambda m, x: F.group_norm(x, 2, m.w.exp(), m.v * 2), (4,), (4,)),
    "a condition": (lambda m, x: x * m.w if m.w.sum() > 0 else x, (3,)),
    "made by a parameter": (lambda m, x: F.linear(x, F.linear(m.w, m.v)), (5, 2), (3, 2)),
    "in a format": (lambda m, x: x * m.w.to(x.dtype).contiguous().view(1, 1, 3), (3,)),
    "in a type by name": (lambda m, x: x * m.w.to(dtype=x.dtype), (3,)),
}


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize(("examples", "draws"), [(6, 1), (2, 3), (1, 1)])
def test_a_parameter_without_a_layer(name, examples, draws):
    use, *shapes = USES[name]
    assert_exact(Own(use, *shapes), torch.randn(examples * draws, 4, 3), draws)


def test_where_the_sizes_coincide():
    # As many rows as tokens, as inputs and as entries of a parameter.
    names = ["scale", "matrix", "masked", "einsum", "class token"]
    for name in names + [name for name in USES if "positions" in name or "windows" in name]:
        use, *shapes = USES[name]
        for rows in (3, 4, 5):
            assert_exact(Own(use, *shapes), torch.randn(rows, 4, 3), 1)
    tall = lambda m, x: F.linear(x, m.w.expand(4, 3))  # noqa: E731
    for rows in (2, 3, 4):
        assert_exact(Own(tall, (3,)), torch.randn(rows, 4, 3), 1)


def test_a_layer_reads_a_table_of_positions_as_long_as_the_batch():
    """Row t of its input is position t, not example t."""
    table = torch.arange(12.0).view(4, 3).sin().double()
    model = Own(lambda m, x: x * m.layer(table.to(x.dtype)), (1,))
    model.layer = nn.Linear(3, 3)
    for rows in (3, 4, 5):
        assert_exact(model, torch.randn(rows, 4, 3), 1)


@pytest.mark.parametrize("leave", [torch.Tensor.numpy, torch.vmap(torch.sin)])
def test_what_was_seen_being_made_is_a_constant_even_where_data_has_left(leave):
    def use(m, x):
        leave(x.detach())
        shift = F.embedding(torch.arange(4), m.w) + m.frozen(m.table)
        return x * m.layer(m.table) + shift

    model = Own(use, (9, 3))
    model.layer, model.frozen = nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False)
    model.register_buffer("table", torch.arange(12.0).view(4, 3).sin())
    for rows in (3, 4, 5):
        assert_exact(model, torch.randn(rows, 4, 3), 1)


@pytest.mark.parametrize(
    "away",
    [
        lambda x: torch.from_numpy(2 * x.numpy()),
        lambda x: torch.tensor(x.tolist(), dtype=x.dtype),
        lambda x: torch.from_numpy(np.from_dlpack(x) + 1),
        lambda x: torch.as_tensor(np.asarray(x)[:, ::-1].copy()),
        torch.vmap(lambda row: row.flip(0) * torch.rand(()), randomness="different"),
        torch.vmap(lambda row: row.softmax(0)),
    ],
)
def test_data_that_leaves_pytorch_comes_back_as_data(away):
    """As augmentation does; no loss can be computed by rows of what would be a constant."""
    model, x = nn.Linear(3, 4).double(), torch.randn(6, 4, 3).double()
    labels = torch.arange(4).repeat(6, 1)

    def classified(model, x):
        torch.manual_seed(3)
        return F.cross_entropy(model(away(x)).mT, labels, reduction="none").sum(1)

    found = ExampleGradients(model)(classified, x, draws=2)
    means = classified(model, x).view(3, 2).mean(1)
    expected = [torch.autograd.grad(m, model.parameters(), retain_graph=True) for m in means]
    torch.testing.assert_close(
        found, torch.stack([torch.cat([w.flatten(), b]) for w, b in expected])
    )


@pytest.mark.parametrize(
    "layer",
    [
        nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True),
        nn.Sequential(
            nn.Conv1d(3, 3, 2), nn.GroupNorm(1, 3), nn.SiLU(), nn.ConvTranspose1d(3, 3, 2)
        ),
        nn.EmbeddingBag(9, 4, mode="sum", padding_idx=1),
        nn.PReLU(3),
    ],
)
def test_any_layer_may_read_constants(layer):
    constants = torch.randn(1, 3, 4).double()
    if isinstance(layer, nn.EmbeddingBag):
        constants = torch.arange(9).view(3, 3)
    model = Own(lambda m, x: x.mT * m.layer(constants), (1,))
    model.layer = layer
    for rows in (3, 5):
        assert_exact(model, torch.randn(rows, 4, 3), 1)


@pytest.mark.parametrize("draws", [1, 3])
def test_parametrised_weights(draws):
    weight_norm = parametrizations.weight_norm(nn.Linear(3, 5))
    conv = parametrizations.weight_norm(nn.Conv1d(4, 2, 2))
    orthogonal = parametrizations.orthogonal(nn.Linear(3, 3), orthogonal_map="cayley")
    pruned = prune.random_unstructured(nn.Linear(3, 3), "weight", 0.5)
    for model in (weight_norm, conv, orthogonal, nn.Sequential(pruned, nn.Tanh())):
        assert_exact(model, torch.randn(6, 4, 3), draws)


def test_a_learned_first_state():
    def use(m, x):
        return m.lstm(x, tuple((x.new_zeros(len(x), 1, 2) + m.w).transpose(0, 1) for _ in "hc"))[0]

    model = Own(use, (2,))
    model.lstm = nn.LSTM(3, 2, batch_first=True)
    assert_exact(model, torch.randn(6, 4, 3), 2)


def test_a_learned_number_fills_data_of_another_type():
    model, x = Own(lambda m, x: x.masked_fill(x > 0, m.w.exp()), ()), torch.randn(6, 4, 3).half()
    model.double()
    assert model(x).dtype == torch.half
    numbers = (x > 0).flatten(1).sum(1, keepdim=True)
    found = ExampleGradients(model)(lambda model, x: model(x).flatten(1).sum(1), x)
    torch.testing.assert_close(found[:, :1], numbers * model.w.exp().detach())


def put(x, index, value):
    x[index] = value
    return x


@pytest.mark.parametrize(
    ("use", "shape", "problem"),
    [
        (lambda m, x: x.exp().addcmul_(x, m.w), (3,), "addcmul_: no per-example gradient .* use"),
        (lambda m, x: (2 * m.w).add_(x), (4, 3), "add_: a parameter is changed in place"),
        (lambda m, x: torch.kron(x, m.w), (4, 3), "kron: no per-example gradient"),
        (lambda m, x: torch.cdist(m.w, x[:, 0]), (2, 3), "cdist: its second input has no dim"),
        (lambda m, x: x * m.w.detach(), (3,), "detach: its values would be used where"),
        (lambda m, x: x * m.w.data, (3,), "data.*: its values would be used where"),
        (lambda m, x: x * m.w.item(), (), "item: its values would be used"),
        (lambda m, x: x * m.w[:1].mul_(3), (3,), "mul_: it is changed in place"),
        (lambda m, x: [part.mul_(3) for part in m.w.exp().chunk(3)], (3,), "mul_: it is changed"),
        (lambda m, x: x * m.w.exp().detach_(), (3,), "detach_: its values would be used where"),
        (lambda m, x: put(x.exp(), 0, m.w), (3,), "by a mask .* or by x.:, i. alone"),
        (lambda m, x: put(x.exp(), (slice(None), True), m.w), (3,), "or by x.:, i. alone"),
        (lambda m, x: put(x.exp(), x > 0, m.w), (4,), "by a mask .* or by x.:, i. alone"),
        (lambda m, x: put(2 * m.w, slice(2), x[0]), (4, 3), "a parameter is changed in place"),
        (lambda m, x: put(m.w.expand(2, 4, 3) + 1, x > 0, 0.0), (3,), "is changed in place"),
        (lambda m, x: x + F.embedding(PAIRS, m.w, max_norm=1e9)[0], (4, 3), "changed in place"),
        (lambda m, x: x * m.w.exp_(), (3,), "exp_: it is changed in place"),
        (lambda m, x: x * m.w[:1].detach(), (3,), "detach: its values would be used where"),
        (lambda m, x: F.linear(m.w, x[0]), (4, 3), "can't be the input.*new_zeros"),
        (lambda m, x: m.w @ x[:, 0].mT, (4, 3), "no dimension for the examples"),
        (
            lambda m, x: x.mT.reshape(3, 8) @ m.w.mT,
            (3, 8),
            r"first dimension of its input \[3, 8\]",
        ),
        (lambda m, x: x.transpose(0, 1).reshape(8, 3) @ m.w, (3, 3), r"its input \[8, 3\]"),
        (lambda m, x: F.embedding(m.mask.long(), m.w, sparse=True) + x[0], (3, 3), "sparse"),
        (lambda m, x: F.cross_entropy(torch.ones(2, 4) * m.w, x[:, :, 0]), (4,), r"x\.item\(\)"),
        (lambda m, x: x.transpose(0, 1) * m.w, (3,), r"first dimension of its input \[4, 2, 3\]"),
        (lambda m, x: x.mean() * m.w, (3,), "no dimension for the examples"),
        (lambda m, x: x * m.w, (5, 1, 4, 3), r"\[5, 1, 4, 3\] does not belong to each row"),
        (lambda m, x: torch.cat([m.w.expand(2, 4, 3), x]), (3,), "first dimension belongs to"),
        (lambda m, x: torch.stack([m.w.expand(2, 4, 3), x]), (3,), "first dimension belongs to"),
        (lambda m, x: torch.einsum("btd,d", x, m.w), (3,), "must say what comes out"),
        (lambda m, x: torch.einsum("tbd,d->bt", x, m.w), (3,), "must have the rows first in 'tbd'"),
        (lambda m, x: torch.einsum("btd,bd->bt", x, m.w), (2, 3), "takes a parameter by rows"),
        (lambda m, x: m.w[(x[:, 0, 0] > 0)], (2, 3), "by one tensor of integers alone"),
        (lambda m, x: m.w[x[:, 0, 0].long(), 0], (2, 3), "by one tensor of integers alone"),
        (lambda m, x: torch.matmul(input=x, other=m.w), (3, 3), "matmul: its rule .* by position"),
        (lambda m, x: torch.prelu(weight=m.w, x=x), (3,), "prelu: its rule .* input is missing"),
        (lambda m, x: torch.randn(3, 3) @ m.w + x, (3, 3), "has to be|must be that of the 2 rows"),
        (lambda m, x: (2 * m.w).copy_(x), (4, 3), "copy_: a parameter is changed in place"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(use, shape, problem):
    model = nn.ModuleDict({"head": Own(use, shape)})
    before = model["head"].w.clone()
    with pytest.raises(
        UserError, match=rf"module 'head' \(Own\): parameter 'head.w' in .*{problem}"
    ):
        ExampleGradients(model)(lambda m, x: m["head"](x).flatten(1).sum(1), torch.randn(2, 4, 3))
    assert torch.equal(model["head"].w, before)


def test_data_written_into_what_parameters_made_is_refused():
    """The layer that made it would not see the gradient that goes on from there."""

    def use(m, x):
        table = torch.zeros(len(x), 3)
        left, right = table[:, :2], table[:, 2:]
        left.copy_(m.w)
        assert right.grad_fn  # Without asking, PyTorch refuses the next line.
        right.copy_(m.layer(x[:, 0]))
        return x[:, 0] * table

    model = Own(use, (2,))
    model.layer = nn.Linear(3, 1)
    with pytest.raises(UserError, match="data is written through a view into what was computed"):
        ExampleGradients(model)(losses, torch.randn(6, 4, 3))


def test_a_parameter_without_gradient_is_a_constant():
    model = Own(lambda m, x: x * m.w * (m.w > 0.5), (3,))
    assert_exact(model, torch.randn(6, 4, 3), 2)


def test_rows_of_their_own_go_to_their_examples():
    def placed(model, x):
        places = torch.arange(1.0, 1 + len(x)).double()[:, None, None]
        return torch.cat([x, places * model.w], dim=1).flatten(1).cumsum(1).sin().sum(1)

    model, x = Own(None, (3,)).double(), torch.randn(6, 4, 3).double()
    found = ExampleGradients(model)(placed, x, draws=2)
    means = placed(model, x).view(3, 2).mean(1)
    expected = [torch.autograd.grad(mean, model.w, retain_graph=True)[0] for mean in means]
    torch.testing.assert_close(found[:, :3], torch.stack(expected))


@pytest.mark.parametrize(
    ("name", "largest"),
    [("class token", 50 * 3), ("masked", 50 * 15), ("positions for each row", 50 * 12)],
)
def test_repeated_tokens_take_no_table_of_examples_by_examples(monkeypatch, name, largest):
    # The token of each row belongs to its example: [rows, ...] and not [examples, rows, ...].
    seen, rows = [0], DerivedSlot.rows.fget
    noting = property(lambda slot: (seen.append(rows(slot).numel()), rows(slot))[1])
    monkeypatch.setattr(DerivedSlot, "rows", noting)
    use, *shapes = USES[name]
    ExampleGradients(Own(use, *shapes))(losses, torch.randn(50, 4, 3))
    assert max(seen) == largest
