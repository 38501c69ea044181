"""A function of tensors, watched once and then called as the graph of its operators.

torch.compile can't follow what a training step does besides calling a network: it differentiates,
and `privimage.dp` watches every call meanwhile. All of that depends on shapes alone, so one pass
over data that has nothing but a shape says it: forward, backward, and for private steps the
operators that write gradients, norms, scales and sums.
"""

from collections.abc import Callable

import torch

_ALIASES = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)
"""Of no meaning where nothing is differentiated."""


def record(
    function: Callable[..., torch.Tensor], *made_up: torch.Tensor
) -> Callable[..., torch.Tensor]:
    """The operators of `function`, without the Python between them and without gradients.

    Nothing is computed meanwhile, and no memory taken for it.

    Formal guarantee: as that of `function`: the same operators see the same values, bit for bit
    (tests/dp/test_recording.py::test_a_recorded_sum_is_the_sum_bit_for_bit); parameters are read
    where they are (tests/dp/test_recording.py::test_a_recorded_sum_sees_the_parameters_of_today).

    Args:
        function: of tensors alone; whatever else it reads must stay where it is. Its Python may
            depend on shapes, never on values: PyTorch raises where a value decides.
        made_up: of the shapes, types and strides that will be given; no sensitive data.
    """
    # Nobody who records nothing should wait for it, a second.
    from torch.fx.experimental.proxy_tensor import make_fx

    def given(*tensors: torch.Tensor) -> torch.Tensor:  # It would count a method's `self`.
        return function(*tensors)

    recorded = make_fx(given, tracing_mode="fake", _allow_non_fake_inputs=True)(*made_up)
    for node in recorded.graph.nodes:
        if node.target in _ALIASES:
            node.replace_all_uses_with(node.args[0])
            recorded.graph.erase_node(node)
    recorded.graph.eliminate_dead_code()
    recorded.recompile()
    graph: Callable[..., torch.Tensor] = torch.no_grad()(recorded.forward)
    return graph
