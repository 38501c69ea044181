"""How many examples a micro-batch has, and how much memory it may take, if nobody says more."""

import math

import torch

_USUAL = 64
# Bytes that a processor has near it, more or less: of small examples so many are faster than 64.
_NEAR = 2.0**25
_USUAL_MEMORY = 2.0**30
_ROWS_THAT_FILL_A_GPU = 512


def most_examples(
    device: torch.device, draws: int, expected: float = math.inf, size: float = math.inf
) -> int:
    """Of a micro-batch; `draws` rows each, which take `size` bytes.

    A layer's weight gradient is at least one block of threads an example, and one is all that a
    multiprocessor takes at a time: so on a GPU it is the smallest multiple of its multiprocessors
    that has 512 rows. Batches of `expected` examples seldom exceed that by two standard deviations,
    and what is missing in a micro-batch is computed for nothing: on a CPU so large a batch is cut
    into equal parts, of 64 examples or of as many as its caches hold.
    """
    large = max(expected + 2 * math.sqrt(expected), 1)
    if device.type != "cpu":
        wave = torch.cuda.get_device_properties(device).multi_processor_count
        return math.ceil(min(wave * math.ceil(_ROWS_THAT_FILL_A_GPU / (draws * wave)), large))
    usual = max(_USUAL, int(_NEAR / size))
    return usual if math.isinf(large) else math.ceil(large / math.ceil(large / usual))


def usual_memory(device: torch.device) -> float:
    """Bytes: half of what a GPU has free, 1 GiB elsewhere."""
    return _USUAL_MEMORY if device.type == "cpu" else torch.cuda.mem_get_info(device)[0] / 2
