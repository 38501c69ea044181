"""Bugs in what becomes of the sums of a tiled weight gradient, and in what it asks of memory."""

from bugs.bug import Bug


def write_out(name: str, before: str, after: str) -> Bug:
    """A bug in what becomes of a tile's sums."""
    return Bug(name, "conv_weight_grad", before, after, "kernels/conv_write_out.cuh")


def bias(name: str, before: str, after: str) -> Bug:
    """A bug in what becomes of a bias's gradient, seen by a convolution."""
    return Bug(name, "conv_weight_grad", before, after, "kernels/bias_grad.cuh")


def traffic(name: str, before: str, after: str, file: str) -> Bug:
    """A bug in what that gradient asks of memory, which no value shows."""
    return Bug(name, "conv_traffic", before, after, f"kernels/{file}")


BUGS = [
    # Synchronisation
    write_out(
        "no barrier before the warps are added",
        "    block_.barrier();\n    if (block_",
        "    if (block_",
    ),
    write_out(
        "threads leave before the barrier",
        "    block_.barrier();\n    if (block_.thread() != 0) return;",
        "    if (block_.thread() != 0) return;\n    block_.barrier();",
    ),
    write_out(
        "no barrier before stages become rooms",
        "    block_.barrier();\n    if (mine_.has_bias) share",
        "    if (mine_.has_bias) share",
    ),
    write_out(
        "no barrier before a piece is read",
        "    block_.barrier();\n    const GradRows",
        "    const GradRows",
    ),
    write_out("all pieces in one room", "piece % 2 * Tile::kPieceBytes", "0"),
    write_out(
        "no barrier before the bias is read",
        "    } else {\n      block_.barrier();  // before the shares of the bias are read\n    }",
        "    }",
    ),
    # Halo and tails
    write_out("inputs that don't exist written", "if (start + 32 * j < width) body", "body"),
    write_out("outputs that don't exist written", "i < 8 && out + i < outputs_", "i < 8"),
    write_out("inputs that don't exist looked at", " || in >= inputs_)", ")"),
    write_out("rows shorter than what is ahead", "ahead < width ? ahead : 0", "ahead"),
    write_out("bias of outputs that don't exist", " || channel >= outputs_)", ")"),
    # Fragments and taps
    write_out("channels looked up transposed", "(out) * inputs_ + in)", "(in) * outputs_ + out)"),
    write_out("taps of all rows in the first", "+ mine_.tap_row * Tile::kSide;", ";"),
    write_out("neighbouring inputs swapped", "odd ? odd_input : even_input", "even_input"),
    traffic(
        "neighbouring inputs in the same banks",
        "odd = lane / 4 % 2 != 0",
        "odd = false",
        "conv_write_out.cuh",
    ),
    write_out("one half of the outputs for both", "[piece / 2][in][piece % 2 * 2];", "[0][in][0];"),
    write_out("outputs of a piece where the first one's are", "+ piece * 8;", ";"),
    write_out("tiles of inputs over each other", "+ mine_.first_in * kTaps;", ";"),
    traffic("rows from the first place on", "ahead < width ? ahead : 0", "0", "conv_write_out.cuh"),
    write_out("what lies ahead after the row", "column : column - width", "column : column"),
    write_out(
        "read at the wrong pitch",
        "* 8 + i) * Tile::kPiecePitch",
        "* 8 + i) * (Tile::kPiecePitch - 4)",
    ),
    write_out(
        "warps write each other's outputs", "kStep = Tile::kIn / Tile::kWarpIn;", "kStep = 1;"
    ),
    traffic(
        "outputs of a piece in the same banks",
        "kIn * kSide * kSide + 4",
        "kIn * kSide * kSide",
        "conv_tile.h",
    ),
    traffic(
        "pixels lie in the same banks", "kOutPitch = kOut + 8", "kOutPitch = kOut", "conv_tile.h"
    ),
    traffic(
        "rows of a band in the same banks",
        "band.pitch = band.width + 8",
        "band.pitch = band.x_width",
        "conv_tile.h",
    ),
    # Counting
    write_out("first warp counted twice", "double total = 0.0;", "double total = squares;"),
    write_out("half of the lanes not counted", "mask = 16;", "mask = 8;"),
    write_out("squares rounded to fp32", "const double value = sums", "const float value = sums"),
    write_out("squares in a neighbour's slot", "at(block_.x(), slot)", "at(block_.x(), 0)"),
    write_out(
        "squares before what was there is added",
        "    settle(sums);\n    double squares = "
        "job_.squares.values != nullptr ? add_squares(sums) : 0.0;\n",
        "    double squares = job_.squares.values != nullptr ? add_squares(sums) : 0.0;\n"
        "    settle(sums);\n",
    ),
    write_out("rounded for the rows alone", "sum = rows.settled(", "rows.settled("),
    write_out("sum unscaled", "grid_coordinate(value, scale)", "grid_coordinate(value, 1.0)"),
    write_out(
        "added to nearest",
        "int64_t{grid_coordinate(value, scale)}",
        "static_cast<int64_t>(std::nearbyint(value * scale))",
    ),
    write_out(
        "examples that are not finite added", "    if (scale != 0.0) {", "    if (job_.sum) {"
    ),
    write_out(
        "sum written instead of added",
        "block_.add(to, int64_t{grid_coordinate(value, scale)})",
        "*to = grid_coordinate(value, scale)",
    ),
    bias(
        "sum written instead of added",
        "block.add(job.sum + channel, int64_t{grid_coordinate(value, scale)})",
        "job.sum[channel] = grid_coordinate(value, scale)",
    ),
    write_out("bias of half of the lanes", "bias[i] += block_.shuffle_xor", "block_.shuffle_xor"),
    write_out("turns at the bias over each other", "store(turn * Tile::kOut + out", "store(out"),
    write_out(
        "the last turn at the bias left out", "turn < Tile::kTurns;", "turn + 1 < Tile::kTurns;"
    ),
    write_out("bias not squared", "squares += use_bias(scale)", "use_bias(scale)"),
    bias("examples that are not finite added", " && scale != 0.0", ""),
    bias("rounded for the rows alone", "value = job.rows.keep(", "job.rows.keep("),
]
