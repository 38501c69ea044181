"""The operators: arguments are checked once before the native code or the reference runs."""

from privimage.ops import fakes
from privimage.ops._library import describe_build, has_kernels
from privimage.ops.embedding import (
    example_embedding_grad,
    example_embedding_norms,
    recomputed_embedding_sum,
)
from privimage.ops.layers import (
    ConvGeometry,
    as_multiplied,
    as_taken,
    example_weight_grad,
    group_norm_silu,
    group_norm_silu_backward,
    measured_weight_grads,
)
from privimage.ops.reference import GRID_BITS
from privimage.ops.release import (
    LARGEST_STD,
    DeviceRule,
    UpdateRule,
    UpdateState,
    clipped_sum,
    gaussian_integers,
    private_update,
    random_words,
)
from privimage.ops.scaled import (
    example_weight_norms,
    gram_sums,
    recomputed_sum,
    scaled_sum,
    squared_norms,
)
from privimage.ops.self_test import Check, self_test

__all__ = [
    "GRID_BITS",
    "LARGEST_STD",
    "Check",
    "ConvGeometry",
    "DeviceRule",
    "UpdateRule",
    "UpdateState",
    "as_multiplied",
    "as_taken",
    "clipped_sum",
    "describe_build",
    "example_embedding_grad",
    "example_embedding_norms",
    "example_weight_grad",
    "example_weight_norms",
    "gaussian_integers",
    "gram_sums",
    "group_norm_silu",
    "group_norm_silu_backward",
    "has_kernels",
    "measured_weight_grads",
    "private_update",
    "random_words",
    "recomputed_embedding_sum",
    "recomputed_sum",
    "scaled_sum",
    "self_test",
    "squared_norms",
]

fakes.register()
