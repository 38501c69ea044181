"""Random numbers by secret words: their distribution, and that each row has its own."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.fx.experimental.proxy_tensor import make_fx

from privimage.diffusion.words import child, children, normals, uniforms

WORDS = torch.randint(-(2**63), 2**63 - 1, (200,), generator=torch.Generator().manual_seed(0))


def splitmix64(state, count):
    """The published generator, in Python's own integers."""
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        x = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        yield x ^ (x >> 31)


def test_children_are_the_stream_of_splitmix64():
    found = children(WORDS, 5)
    assert found.dtype == torch.int64
    for word, row in zip(WORDS.tolist(), found.tolist(), strict=True):
        assert [x % 2**64 for x in row] == list(splitmix64(word % 2**64, 5))
    # The first of the stream from 1234567, as published with the generator.
    assert next(splitmix64(1234567, 1)) == 6457827717110365317
    assert torch.equal(child(WORDS, torch.tensor(4)), found[:, 4])


def test_what_is_computed_from_an_index_alone_has_32_bits():
    """Else Triton's code does not compile: it takes all of that for an index, whatever its type."""
    from_index = set()
    for node in make_fx(lambda words: normals(words, 7))(WORDS).graph.nodes:
        is_index = "arange" in str(node.target)
        if is_index or (node.all_input_nodes and from_index.issuperset(node.all_input_nodes)):
            from_index.add(node)
            assert all(abs(arg) < 2**31 for arg in node.args if isinstance(arg, int)), node
    assert len(from_index) > 1


def test_a_row_s_numbers_are_a_function_of_its_word():
    for draw in (lambda words: normals(words, 7), lambda words: children(words, 7), uniforms):
        whole = draw(WORDS)
        assert torch.equal(draw(WORDS[50:60]), whole[50:60])
        assert len(whole.unique(dim=0)) == len(WORDS)
    assert torch.equal(normals(WORDS, 8)[:, :4], normals(WORDS, 7)[:, :4])


@pytest.mark.parametrize("count", [1, 2, 999])
def test_normals_are_unit_gaussians(count):
    words = children(WORDS, -(-40_000 // (count * len(WORDS)))).flatten()
    found = normals(words, count)
    assert found.dtype == torch.float32
    assert found.shape == (len(words), count)
    values = found.flatten().double().numpy()
    assert stats.kstest(values, "norm").pvalue > 0.01
    assert stats.kstest(values, stats.norm(0, 1.05).cdf).pvalue < 0.01
    assert found.isfinite().all()


def test_a_word_s_complement_has_the_opposite_normals():
    assert (WORDS < 0).any()
    assert (WORDS >= 0).any()
    assert torch.equal(normals(~WORDS, 7), -normals(WORDS, 7))


def test_normals_of_neighbours_are_uncorrelated():
    """Across places of a row, which come in pairs, across rows, and across neighbouring words."""
    neighbours = WORDS[:1] + torch.arange(300)
    for words in (WORDS, neighbours):
        found = np.corrcoef(normals(words, 400).double().numpy())
        np.fill_diagonal(found, 0)
        assert abs(found).max() < 6 / 400**0.5
        found = np.corrcoef(normals(words, 100).double().numpy().T)
        np.fill_diagonal(found, 0)
        assert abs(found).max() < 6 / len(words) ** 0.5
    one, other = normals(WORDS, 400).double().chunk(2, 1)
    assert abs(np.corrcoef(one.square().flatten(), other.square().flatten())[0, 1]) < 6 / 200


def test_uniforms_are_even_and_below_one():
    found = uniforms(children(WORDS, 200))
    assert found.min() >= 0
    assert found.max() < 1
    assert stats.kstest(found.flatten().double().numpy(), "uniform").pvalue > 0.01
    assert uniforms(torch.tensor([-1, 0])).tolist() == [1 - 2.0**-24, 0.0]
