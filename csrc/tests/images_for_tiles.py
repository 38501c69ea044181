"""`images_for_tiles.py FILE` holds what a GPU's tiles read of a layer against the layer's images.

FILE is images_for_tiles.cpp as a library. No GPU is needed: the copy is PyTorch's on every device.
"""

import sys

import torch

torch.ops.load_library(sys.argv[1])
for_tiles = torch.ops.privimage_tests.for_tiles
# What nobody writes is then NaN.
torch.use_deterministic_algorithms(True)
LAST = torch.channels_last


def layouts(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, tuple[torch.Tensor, bool]]:
    """Images in the layouts that a caller may have, and whether tiles read those as they are."""
    images = torch.randn(shape).to(dtype)
    last = images.contiguous(memory_format=LAST)
    rows, channels, *size = shape
    is_whole, is_pixel = channels % vector(dtype) == 0, size == [1, 1]
    beside = torch.cat([last] * 16, dim=1).contiguous(memory_format=LAST)
    return {
        "channels first": (images, is_whole and is_pixel),
        "channels last": (last, is_whole),
        "height for width": (last.transpose(2, 3), is_whole and 1 in size),
        "every second row": (last[::2], is_whole and (rows < 3 or is_pixel)),
        "one row for all": (last[:1].expand(shape), is_whole and rows == 1),
        "first channels of more": (beside[:, :channels], True),
        "channels from the second on": (beside[:, 1 : 1 + channels], False),
    }


def vector(dtype: torch.dtype) -> int:
    """Values in 16 bytes."""
    return 16 // dtype.itemsize


def are_same(images: torch.Tensor, found: torch.Tensor) -> bool:
    """Whether that is the same memory, read in the same way."""
    return found.data_ptr() == images.data_ptr() and found.stride() == images.stride()


def fault(images: torch.Tensor, are_read: bool) -> str:
    """What is wrong with what the tiles of a 3x3 convolution get; empty if nothing."""
    found = for_tiles(images, 32, 3)
    if not torch.equal(found, images):
        return "other values"
    if are_same(images, found) != are_read:
        return "copied for nothing" if are_read else "not copied"
    if are_read:
        return ""
    rows, channels, height, width = images.shape
    pitch = -(-channels // vector(images.dtype)) * vector(images.dtype)
    whole = torch.empty(rows, height, width, pitch)
    pixels = found.as_strided(whole.shape, whole.stride())
    if not torch.equal(pixels[..., :channels], images.permute(0, 2, 3, 1)):
        return f"strides are {found.stride()}"
    return "" if not pixels[..., channels:].any() else "no zeros behind the channels"


def main() -> None:
    """Prints what is wrong; the exit status says whether anything is."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        for shape in [(6, 3, 5, 4), (1, 3, 4, 4), (6, 12, 1, 7), (6, 64, 4, 4), (6, 24, 1, 1)]:
            for name, given in layouts(shape, dtype).items():
                if problem := fault(*given):
                    found.append(f"{shape}, {dtype}, {name}: {problem}")
    # No tile takes these.
    images = torch.randn(6, 3, 5, 4)
    for name, given in {
        "float64": (images.double(), 32, 3),
        "five taps": (images, 32, 5),
        "no images": (images[:0], 32, 3),
    }.items():
        if not are_same(given[0], for_tiles(*given)):
            found.append(f"{name}: copied")
    sys.stdout.write("\n".join(found))
    sys.exit(bool(found))


main()
