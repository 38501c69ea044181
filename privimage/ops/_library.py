"""Loads the native operators, or registers the reference in their place and says so once."""

import importlib.util
import warnings
from collections.abc import Iterable

# Before the native library, which finds torch's symbols only where torch has loaded them.
import torch

from privimage.ops import reference

_SCHEMAS = {
    "random_words": "random_words(Tensor key, int step, int first, int count) -> Tensor",
    "gaussian_integers": (
        "gaussian_integers(Tensor key, int step, int first, int count, float std) -> Tensor"
    ),
    "private_update": (
        "private_update(Tensor clipped_sum, Tensor key, Tensor(a!) step, int first_index, "
        "Tensor(b!) parameters, Tensor(c!) momentum, Tensor(d!)? second_moment, "
        "Tensor(e!)? average, Tensor numbers, float noise_std, float scale) -> ()"
    ),
    "example_weight_grad": (
        "example_weight_grad(Tensor x, Tensor grad, Tensor(a!) weight, Tensor(b!)? bias, "
        "int[] stride, int[] padding, int[] dilation, int groups, bool accumulate) -> ()"
    ),
    "example_embedding_grad": (
        "example_embedding_grad(Tensor indices, Tensor grad, Tensor(a!) weight, int padding_idx, "
        "bool accumulate) -> ()"
    ),
    "example_embedding_norms": (
        "example_embedding_norms(Tensor indices, Tensor grad, int entries, int padding_idx) "
        "-> Tensor"
    ),
    "recomputed_embedding_sum": (
        "recomputed_embedding_sum(Tensor indices, Tensor grad, Tensor scales, "
        "Tensor(a!) weight_sum, int padding_idx) -> ()"
    ),
    "measured_weight_grads": (
        "measured_weight_grads(Tensor[] x, Tensor[] grad, Tensor(a!)[] weight, Tensor(b!)[] bias, "
        "int[] stride, int[] padding, int[] dilation, int groups) -> Tensor"
    ),
    "squared_norms": "squared_norms(Tensor parts, int[] columns) -> Tensor",
    "scaled_sum": (
        "scaled_sum(Tensor parts, Tensor scales, Tensor(a!) total, bool accumulate) -> ()"
    ),
    "example_weight_norms": (
        "example_weight_norms(Tensor x, Tensor grad, int examples, int[] taps, bool with_bias, "
        "int[] stride, int[] padding, int[] dilation, int groups) -> Tensor"
    ),
    "recomputed_sum": (
        "recomputed_sum(Tensor x, Tensor grad, Tensor scales, Tensor(a!) weight_sum, "
        "Tensor(b!)? bias_sum, int[] stride, int[] padding, int[] dilation, int groups, "
        "bool accumulate) -> ()"
    ),
    "gram_sums": (
        "gram_sums(Tensor x, Tensor grad, int examples, int[] taps, bool with_bias, int[] stride, "
        "int[] padding, int[] dilation, int groups) -> Tensor"
    ),
    "group_norm_silu": (
        "group_norm_silu(Tensor x, Tensor? weight, Tensor? bias, int groups, float eps, bool silu) "
        "-> (Tensor, Tensor)"
    ),
    "group_norm_silu_backward": (
        "group_norm_silu_backward(Tensor grad, Tensor x, Tensor moments, Tensor? weight, "
        "Tensor? bias, Tensor(a!)? grad_weight, Tensor(b!)? grad_bias, bool silu, bool accumulate) "
        "-> Tensor"
    ),
}
_NAMESPACE = "privimage"

_path = getattr(importlib.util.find_spec("privimage.ops._native"), "origin", None)
is_native = _path is not None

# Kept alive: an operator is forgotten when the library that registered it is.
_fallback = torch.library.Library(_NAMESPACE, "FRAGMENT")


def _register_reference(names: Iterable[str], keys: tuple[str, ...]) -> None:
    for name in names:
        for key in keys:
            _fallback.impl(name, getattr(reference, name), key)


if _path is not None:
    torch.ops.load_library(_path)
    from privimage import _host

    build: str = _host.build
    # Of a GPU's kernels these alone are missing: the first is two products in float64, which cuBLAS
    # does in a fixed order, and the plan never asks for it there; noise is drawn inside the update.
    without_kernels = ("gram_sums", "random_words", "gaussian_integers")
    _register_reference(without_kernels if build == "cuda" else _SCHEMAS, ("CUDA",))
else:
    build = "none"
    for _schema in _SCHEMAS.values():
        _fallback.define(_schema)
    _register_reference(_SCHEMAS, ("CPU", "CUDA"))
    warnings.warn(
        "privimage was installed without its native operators (no C++ compiler, or "
        "PRIVIMAGE_BUILD=none); the slower reference runs in their place",
        RuntimeWarning,
        stacklevel=2,
    )


def has_kernels(device: torch.device) -> bool:
    """Whether native operators compute there, whose norms and sums see the same bits."""
    return is_native and (device.type == "cpu" or build == device.type)


def describe_build() -> str:
    """One line about the native build, for `privimage doctor`."""
    if not is_native:
        return "none (the reference in plain PyTorch)"
    from privimage import _host

    return f"{build}, {_host.instruction_sets()[0]}, compiler {_host.compiler}"
