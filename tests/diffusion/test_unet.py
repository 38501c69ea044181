import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from privimage.diffusion.compact_unet import CompactUNet
from privimage.diffusion.unet import (
    ResidualBlock,
    SelfAttention,
    UNet,
    UNetShape,
    group_norm,
    resample,
    sinusoid,
)
from privimage.errors import UserError

CIFAR = UNetShape(32, 3, 32, (1, 2, 2), (16,), 10)
CELEBA_32 = UNetShape(32, 3, 32, (1, 2, 2), (16, 8))
CELEBA_64 = UNetShape(64, 3, 32, (1, 1, 2, 2), (16, 8))
CIFAR_WIDE = UNetShape(32, 3, 128, (1, 2, 2), (16,), 10)
BENCH_32 = UNetShape(32, 3, 32, (2, 4), (16,), 10)
BENCH_28 = UNetShape(28, 1, 32, (2, 2), (14,), 10)
DIGITS = UNetShape(8, 1, 16, (1, 2), (), 10, blocks_per_level=1)

SMALL = UNetShape(8, 2, 8, (1, 2), (4,), 3, blocks_per_level=1)
NETWORKS = [UNet, CompactUNet]


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def rows(shape, number=4, seed=0):
    random = torch.Generator().manual_seed(seed)
    size = (number, shape.image_channels, shape.image_size, shape.image_size)
    labels = torch.arange(number) % (shape.classes + 1)
    return torch.randn(size, generator=random), torch.linspace(-1.5, 1, number), labels


def awake(kind, shape, seed=0):
    """A network in which every layer matters; a new one hardly does anything."""
    network = kind(shape)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=random))
    return network


# Counts of the networks of DPDM, PrivImage and DPImageBench.
@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        (CIFAR, 1_754_499),
        (CELEBA_32, 1_804_451),
        (CELEBA_64, 1_999_907),
        (CIFAR_WIDE, 27_907_587),
        (BENCH_32, 3_835_619),
        (BENCH_28, 1_485_217),
        (UNetShape(28, 1, 32, (1, 2, 2), (14,), 10), 1_753_345),
        (UNetShape(32, 3, 192, (1, 2, 2, 2), (16,), 10), 88_578_819),
        (UNetShape(64, 3, 128, (1, 1, 2, 2), (16, 8)), 31_801_475),
    ],
)
def test_parameter_counts_are_the_published_ones(shape, parameters):
    with torch.device("meta"):
        assert count(UNet(shape)) == parameters


def test_compact_network_for_digits_has_61569_parameters():
    assert count(CompactUNet(DIGITS)) == 61_569


@pytest.mark.parametrize(
    ("shape", "gflop"),
    [
        (CIFAR, 0.90),
        (CELEBA_32, 0.91),
        (CELEBA_64, 2.15),
        (CIFAR_WIDE, 13.79),
        (BENCH_32, 3.25),
        (BENCH_28, 1.21),
    ],
)
def test_forward_flops_per_image(shape, gflop):
    size = (1, shape.image_channels, shape.image_size, shape.image_size)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        UNet(shape)(torch.empty(size), torch.empty(1), torch.zeros(1, dtype=torch.int64))
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, abs=0.005)


def test_cifar_network_has_98_weight_layers_and_47_group_norms():
    with torch.device("meta"):
        layers = list(UNet(CIFAR).modules())
    assert sum(isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding) for layer in layers) == 98
    assert sum(isinstance(layer, nn.GroupNorm) for layer in layers) == 47
    resolution_keeping = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert all(layer.stride == (1, 1) for layer in resolution_keeping)


@pytest.mark.parametrize("kind", NETWORKS)
def test_new_network_starts_near_zero_and_every_parameter_gets_a_gradient(kind):
    network = kind(SMALL)
    output = network(*rows(SMALL))
    assert output.shape == (4, 2, 8, 8)
    assert 0 < output.abs().max() < 1e-3
    for name, gradient in zip(
        dict(network.named_parameters()),
        torch.autograd.grad(output.square().sum(), list(network.parameters())),
        strict=True,
    ):
        # An attention bias on the keys cancels in the softmax: its gradient is rounding.
        assert gradient.abs().max() > 0 or name.endswith("k.bias"), name


@pytest.mark.parametrize("kind", NETWORKS)
def test_rows_do_not_see_each_other(kind):
    network = awake(kind, SMALL)
    x, noise, labels = rows(SMALL)
    alone = network(x, noise, labels)[0]
    x[1:], noise[1:] = 7.0, 0.3
    torch.testing.assert_close(network(x, noise, labels)[0], alone, rtol=0, atol=0)


@pytest.mark.parametrize("kind", NETWORKS)
def test_output_depends_on_image_noise_level_and_label(kind):
    network = awake(kind, SMALL)
    x, noise, labels = rows(SMALL)
    before = network(x, noise, labels)
    for other in (
        network(x + 0.1, noise, labels),
        network(x, noise + 0.1, labels),
        network(x, noise, (labels + 1) % 4),
    ):
        changed = (other - before).abs().amax(dim=(1, 2, 3))
        assert (changed > 1e-4).all()


@pytest.mark.parametrize("kind", NETWORKS)
def test_network_without_classes_keeps_its_embedding_layers_and_ignores_labels(kind):
    unlabelled = awake(kind, UNetShape(8, 2, 8, (1, 2), (4,), 0, blocks_per_level=1))
    labelled = kind(SMALL)
    assert (
        count(labelled) - count(unlabelled)
        == labelled.get_submodule("condition.table" if kind is UNet else "table").weight.numel()
    )
    x, noise, labels = rows(SMALL)
    assert torch.equal(unlabelled(x, noise, labels), unlabelled(x, noise, labels * 0))


class UsesOfParameters(TorchFunctionMode):
    def __init__(self, network):
        super().__init__()
        self.known = {id(parameter) for parameter in network.parameters()}
        self.used_by = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(id(argument) in self.known for argument in (*args, *kwargs.values())):
            self.used_by.add(function)
        return function(*args, **kwargs)


@pytest.mark.parametrize("kind", NETWORKS)
def test_parameters_are_used_through_four_functions_only(kind):
    network = kind(SMALL)
    with UsesOfParameters(network) as uses:
        network(*rows(SMALL))
    allowed = {F.conv2d, F.linear, F.group_norm, F.embedding, torch.group_norm, torch.embedding}
    assert {F.conv2d, F.linear, F.group_norm, F.embedding} <= uses.used_by <= allowed


@pytest.mark.parametrize("kind", NETWORKS)
def test_double_precision_agrees_with_single(kind):
    network = awake(kind, SMALL)
    x, noise, labels = rows(SMALL)
    single = network(x, noise, labels)
    double = network.double()(x.double(), noise.double(), labels)
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)


def test_new_residual_block_passes_its_input_on_with_half_the_variance():
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    block = ResidualBlock(8, 8, 32, "same", attention=False)
    torch.testing.assert_close(block(x, torch.ones(2, 32)), x / 2**0.5, atol=1e-3, rtol=0)
    torch.testing.assert_close(SelfAttention(8)(x), x / 2**0.5, atol=1e-3, rtol=0)


def test_self_attention_is_softmax_of_scaled_products():
    layer = SelfAttention(8)
    nn.init.normal_(layer.o.weight)
    x = torch.randn(2, 8, 3, 5, generator=torch.Generator().manual_seed(0))
    h = layer.norm(x).flatten(2)  # [rows, channels, pixels]
    q, k, v, o = (part.weight.detach()[:, :, 0, 0] for part in (layer.q, layer.k, layer.v, layer.o))
    weights = ((q @ h).mT @ (k @ h) / 8**0.5).softmax(dim=2)  # [rows, to pixel, from pixel]
    expected = (x + (o @ v @ h @ weights.mT).reshape(x.shape)) / 2**0.5
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("maps", "groups"), [(16, 4), (32, 8), (96, 24), (128, 32), (384, 32)])
def test_group_norms_have_four_maps_a_group_and_at_most_32_groups(maps, groups):
    layer = group_norm(maps)
    assert (layer.num_groups, layer.eps) == (groups, 1e-6)


def test_resampling_averages_and_repeats():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert torch.equal(resample(x, "down")[0, 0], torch.tensor([[2.5, 4.5], [10.5, 12.5]]))
    assert torch.equal(resample(x, "up")[0, 0, 2:4, 2:4], torch.full((2, 2), 5.0))
    assert torch.equal(resample(x, "same"), x)


def test_sinusoid_has_falling_frequencies():
    values = sinusoid(torch.tensor([0.0, 1.0]), 4)
    assert torch.equal(values[0], torch.tensor([1.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(values[1, 2:], torch.tensor([1.0, 0.01]).sin())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"image_size": 30}, "halve"),
        ({"multipliers": ()}, "levels"),
        ({"multipliers": (1, 0, 2)}, "multipliers"),
        ({"channels": 30}, "multiple of 4"),
        ({"channels": 0}, "channels"),
        ({"attention": (12,)}, "attention"),
        ({"classes": -1}, "classes"),
        ({"blocks_per_level": 0}, "blocks_per_level"),
    ],
)
def test_impossible_shapes_are_refused_by_name(wrong, says):
    fields = {"image_size": 32, "image_channels": 3, "channels": 32, "multipliers": (1, 2, 2)}
    with pytest.raises(UserError, match=says):
        UNetShape(**(fields | wrong))


def test_maps_that_no_group_norm_divides_are_refused():
    with pytest.raises(UserError, match="multiple of 32"), torch.device("meta"):
        UNet(UNetShape(8, 1, 40, (4, 6)))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 3)])
def test_any_number_of_levels_and_blocks_keeps_the_shape(kind, multipliers):
    shape = UNetShape(12, 1, 8, multipliers, (12,), 3, blocks_per_level=2)
    assert kind(shape)(*rows(shape)).shape == (4, 1, 12, 12)
