"""Bugs in how a tiled weight gradient is cut, brought and multiplied."""

from bugs.bug import Bug


def conv(name: str, before: str, after: str) -> Bug:
    """A bug in the per-example weight gradient."""
    return Bug(name, "conv_weight_grad", before, after)


def stages(name: str, before: str, after: str) -> Bug:
    """A bug in how its bands come into shared memory."""
    return Bug(name, "conv_weight_grad", before, after, "kernels/conv_stages.cuh")


def tile(name: str, before: str, after: str) -> Bug:
    """A bug in how that gradient is cut into bands."""
    return Bug(name, "conv_weight_grad", before, after, "kernels/conv_tile.h")


def fp32(name: str, before: str, after: str) -> Bug:
    """A bug in how float32 is multiplied there."""
    return Bug(name, "conv_weight_grad_fp32", before, after, "kernels/conv_weight_grad.cuh")


def layers(name: str, before: str, after: str, file: str = "conv_weight_grad.cuh") -> Bug:
    """A bug in how several layers share a launch."""
    return Bug(name, "conv_one_launch", before, after, f"kernels/{file}")


BUGS = [
    # Synchronisation
    conv(
        "no barrier after the wait",
        "      block_.barrier();\n      stages_.bring",
        "      stages_.bring",
    ),
    conv(
        "copies start before the barrier",
        "block_.barrier();\n      stages_.bring(i + Tile::kStages - 1, bands);",
        "stages_.bring(i + Tile::kStages - 1, bands);\n      block_.barrier();",
    ),
    stages(
        "no barrier before the tables are read",
        "    block_.barrier();\n    const int bands",
        "    const int bands",
    ),
    conv("waits for a group too few", "wait<Tile::kStages - 2>", "wait<Tile::kStages - 1>"),
    stages(
        "loads into the live stage",
        " grads(i % Tile::kStages)",
        " grads(i % (Tile::kStages - 1))",
    ),
    stages(
        "no group after the last band", "    }\n    block_.commit();", "    block_.commit();\n    }"
    ),
    # Halo and tails
    stages("halo off by one", "static_cast<int>(shape_.width.padding);", "1;"),
    stages(
        "lower halo not loaded",
        "i < band_.x_width * band_.x_height << bits;",
        "i < band_.x_width * (band_.x_height - 1) << bits;",
    ),
    stages("tail pixels not zeroed", "pixel < band_.width * band_.height && y", "y"),
    stages(
        "rows below the image not zeroed",
        "inside = 0 <= y && y < height && ",
        "inside = 0 <= y && ",
    ),
    stages(
        "channels that don't exist not zeroed",
        "channels_left < kVector ? channels_left : kVector",
        "kVector",
    ),
    stages("pieces that no pixel has not zeroed", "if (chunk >> bits == 0) continue;", "continue;"),
    stages(
        "pieces of the last pixels not zeroed",
        "i < pixels * kChunks; i",
        "i < (pixels - 1) * kChunks; i",
    ),
    stages("zeros over what is brought", "if (chunk >> bits == 0) continue;", ""),
    stages("a stage not zeroed", "i < Tile::kStages && i < bands", "i < 2 && i < bands"),
    stages(
        "a piece too few",
        "&& kVector << bits < channels_left",
        "&& kVector << bits < channels_left - 1",
    ),
    stages(
        "pixels as near as their channels",
        "pitch = static_cast<int>(job_.x.pitch)",
        "pitch = inputs_",
    ),
    stages(
        "images as near as their channels",
        "shape_.height.inputs * shape_.width.inputs * job_.x.pitch",
        "shape_.height.inputs * shape_.width.inputs * inputs_",
    ),
    conv(
        "tap shift of the wrong pitch",
        "kStride + tap_row_) * stages_.band().pitch",
        "kStride + tap_row_) * stages_.band().x_width",
    ),
    # Fragments and taps
    conv(
        "gradient's fragments swapped",
        "grad_pixel = lane / 16 * 8",
        "grad_pixel = lane / 8 % 2 * 8",
    ),
    conv(
        "input's fragments swapped",
        "2 * in], grad[out], input[0], input[1]",
        "2 * in], grad[out], input[0], input[2]",
    ),
    conv(
        "taps in reverse",
        "(slot + tap_shift(tap)) * Tile::kInPitch + input_channel",
        "(slot + tap_shift(Tile::kSide - 1 - tap)) * Tile::kInPitch + input_channel",
    ),
    tile("no room for the last piece", "2 * kPieceBytes + kTurns", "kPieceBytes + kTurns"),
    conv(
        "strided columns not kept apart",
        "return tap % Tile::kStride * stages_.band().phase + tap / Tile::kStride;",
        "return tap;",
    ),
    stages("a single tap that ignores its stride", "column * right;", "column;"),
    fp32(
        "tf32 fragments of the gradient swapped",
        "i / 4 * 16 + i % 2 * 8",
        "i / 4 * 16 + i / 2 % 2 * 8",
    ),
    fp32(
        "tf32 pixels in the wrong order",
        "places.load(pixel + member + 4)",
        "places.load(pixel + member)",
    ),
    fp32("fp32 neighbours swapped", "input.at[i % 2]", "input.at[1 - i % 2]"),
    stages(
        "bands as large as everywhere",
        "conv_band<Tile>(job.geometry, job.band_pixels)",
        "conv_band<Tile>(job.geometry, Tile::kMostPixels)",
    ),
    tile("bands that do not fit", "pixels /= 2;", "break;"),
    tile(
        "a band of a row too few",
        "band.rows = empty ? 0 : static_cast<int>((shape.height.outputs + band.height - 1)",
        "band.rows = empty ? 0 : static_cast<int>((shape.height.outputs)",
    ),
    # Counting
    stages(
        "last draw not added",
        "bands = static_cast<int>(shape_.draws)",
        "bands = static_cast<int>(shape_.draws > 1 ? shape_.draws - 1 : shape_.draws)",
    ),
    stages(
        "draws of different examples mixed",
        "block_.x() * shape_.draws + draw",
        "draw * shape_.examples + block_.x()",
    ),
    conv("bias of half of the pixels", "lane() / kLanes * 4;", "lane() * 0;"),
    conv("every warp has the first turn at the bias", "pixel = turn * 8;", "pixel = 0;"),
    conv("bias in every tile of inputs", "channels > 0 && stages_.first_in() == 0", "channels > 0"),
    # Several layers in one launch
    layers("the first layer's tensors for all", "jobs.layers[layer],", "jobs.layers[0],"),
    layers("blocks counted from the first layer on", "- jobs.first_block[layer])", "- 0)"),
    layers(
        "the last layer's blocks as its neighbour's",
        "layer + 1 < jobs.count",
        "layer + 2 < jobs.count",
    ),
    layers(
        "a layer's first block as the last one's",
        "block.y() >= jobs.first_block",
        "block.y() > jobs.first_block",
    ),
    layers(
        "a layer's blocks where the first one's are",
        "first_block[together.count] = shape.blocks_y",
        "first_block[together.count] = 0",
        "conv_tile.h",
    ),
    layers(
        "shared memory of the last layer alone",
        "std::max(shape.shared_bytes, alone.shared_bytes)",
        "alone.shared_bytes",
        "conv_tile.h",
    ),
    layers("a layer's squares over another's", "first + slots}", "slots}", "weight_grad.h"),
    layers(
        "squares of all in the first slots",
        "example * count + first + slot",
        "example * count + slot",
        "weight_grad.h",
    ),
]
