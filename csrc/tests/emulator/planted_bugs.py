"""Plants bugs in the CUDA kernels, one at a time, and fails unless the emulator's tests kill each.

A bug is a piece of a kernel's text and what stands there instead. The kernels themselves know
nothing of it. `planted_bugs.py COMPILER LIBRARY` takes the C++ compiler and the emulator as built.
"""

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).parents[2]
FLAGS = ["-std=c++17", "-O0", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-w"]
# Seconds after which a kernel that does not end counts as killed; whole tests take five.
LIMIT = 120


@dataclass(frozen=True)
class Bug:
    """What is wrong, which test sees it, and how: `before` stands once in `file`."""

    name: str
    test: str
    before: str
    after: str
    header: str = ""

    @property
    def file(self) -> Path:
        """Where the bug is planted, below csrc."""
        return Path(self.header or f"kernels/{self.test}.cuh")


def conv(name: str, before: str, after: str) -> Bug:
    """A bug in the per-example weight gradient."""
    return Bug(name, "conv_weight_grad", before, after)


def stages(name: str, before: str, after: str) -> Bug:
    """A bug in how its bands come into shared memory."""
    return Bug(name, "conv_weight_grad", before, after, "kernels/conv_stages.cuh")


def tile(name: str, before: str, after: str) -> Bug:
    """A bug in how that gradient is cut into bands."""
    return Bug(name, "conv_weight_grad", before, after, "kernels/conv_tile.h")


def write_out(name: str, before: str, after: str) -> Bug:
    """A bug in what becomes of a tile's sums."""
    return Bug(name, "conv_weight_grad", before, after, "kernels/conv_write_out.cuh")


def plain(name: str, before: str, after: str) -> Bug:
    """A bug in the per-example weight gradient of other layers."""
    return Bug(name, "example_weight_grad", before, after)


def slots(name: str, before: str, after: str) -> Bug:
    """A bug in where squares go."""
    return Bug(name, "conv_weight_grad", before, after, "kernels/weight_grad.h")


def bias(name: str, before: str, after: str) -> Bug:
    """A bug in what becomes of a bias's gradient, seen by a convolution."""
    return Bug(name, "conv_weight_grad", before, after, "kernels/bias_grad.cuh")


def plain_bias(name: str, before: str, after: str) -> Bug:
    """A bug in the gradient of a bias in a launch of its own."""
    return Bug(name, "example_weight_grad", before, after, "kernels/bias_grad.cuh")


def embedding(name: str, before: str, after: str) -> Bug:
    """A bug in the per-example gradient of an embedding table."""
    return Bug(name, "example_embedding_grad", before, after)


def rows(name: str, before: str, after: str) -> Bug:
    """A bug in how rows of gradients are stored, seen by what writes them."""
    return Bug(name, "example_weight_grad", before, after, "kernels/grad_rows.h")


def slab(name: str, before: str, after: str) -> Bug:
    """A bug in how its blocks share and add up their values."""
    return Bug(name, "group_norm_silu", before, after, "kernels/group_norm_slab.cuh")


def update(name: str, before: str, after: str) -> Bug:
    """A bug in the last pass of a step."""
    return Bug(name, "private_update", before, after)


def clip(name: str, before: str, after: str) -> Bug:
    """A bug in the scales of the clipped sum."""
    return Bug(name, "clipped_sum", before, after)


def scaled(name: str, before: str, after: str) -> Bug:
    """A bug in the norms and the scaled sum of what is kept."""
    return Bug(name, "scaled_sum", before, after)


def tree(name: str, before: str, after: str) -> Bug:
    """A bug in how a block adds its threads up."""
    return Bug(name, "scaled_sum", before, after, "kernels/add_up.cuh")


def norm(name: str, before: str, after: str) -> Bug:
    """A bug in the fused normalisation."""
    return Bug(name, "group_norm_silu", before, after)


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
    tree("no barrier inside the tree", "    block.barrier();\n", ""),
    slab(
        "no barrier before the parts are added",
        "    block_.barrier();\n    for_each_channel",
        "    for_each_channel",
    ),
    slab("no barrier before the totals are read", "    });\n    block_.barrier();\n", "    });\n"),
    slab("reads before the copies land", "wait<0>", "wait<1>"),
    norm(
        "no barrier before the means are read",
        "(mean_of_totals(c))); });\n  block.barrier();",
        "(mean_of_totals(c))); });",
    ),
    norm(
        "no barrier before the offsets are read",
        "- mean * scale);\n    slab.set(kRstd, c, rstd);\n  });\n  block.barrier();",
        "- mean * scale);\n    slab.set(kRstd, c, rstd);\n  });",
    ),
    norm(
        "no barrier before the moments are read",
        "  block.barrier();\n  slab.wait_for_arrays();",
        "  slab.wait_for_arrays();",
    ),
    norm(
        "no barrier before the shifts are read",
        "(slab.get(kCentre, c))));\n  });\n  block.barrier();",
        "(slab.get(kCentre, c))));\n  });",
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
    write_out("inputs that don't exist written", "if (start + 32 * j < width) body", "body"),
    write_out("outputs that don't exist written", "i < 8 && out + i < outputs_", "i < 8"),
    write_out("inputs that don't exist looked at", " || in >= inputs_)", ")"),
    write_out("rows shorter than what is ahead", "ahead < width ? ahead : 0", "ahead"),
    write_out("bias of outputs that don't exist", " || channel >= outputs_)", ")"),
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
    clip("an example too many", "i < job.examples", "i <= job.examples"),
    scaled(
        "one parameter too many",
        "column * kSumThreads < kept.parameters",
        "column * kSumThreads <= kept.parameters",
    ),
    scaled(
        "a piece into the next one",
        "const int64_t end = first + kPiece < columns->end ? first + kPiece : columns->end;",
        "const int64_t end = kept.parameters;",
    ),
    scaled("values beyond the row", "place < end ? row[place] : Scalar{}", "row[place]"),
    scaled("rows beyond the last", "example + kRows <= kept", "example < kept"),
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
    write_out("channels looked up transposed", "(out) * inputs_ + in)", "(in) * outputs_ + out)"),
    write_out("taps of all rows in the first", "+ mine_.tap_row * Tile::kSide;", ";"),
    write_out("neighbouring inputs swapped", "odd ? odd_input : even_input", "even_input"),
    write_out("neighbouring inputs in the same banks", "odd = lane / 4 % 2 != 0", "odd = false"),
    write_out("one half of the outputs for both", "[piece / 2][in][piece % 2 * 2];", "[0][in][0];"),
    write_out("outputs of a piece where the first one's are", "+ piece * 8;", ";"),
    write_out("tiles of inputs over each other", "+ mine_.first_in * kTaps;", ";"),
    write_out("rows from the first place on", "ahead < width ? ahead : 0", "0"),
    write_out("what lies ahead after the row", "column : column - width", "column : column"),
    write_out(
        "read at the wrong pitch",
        "* 8 + i) * Tile::kPiecePitch",
        "* 8 + i) * (Tile::kPiecePitch - 4)",
    ),
    write_out(
        "warps write each other's outputs", "kStep = Tile::kIn / Tile::kWarpIn;", "kStep = 1;"
    ),
    tile("outputs of a piece in the same banks", "kIn * kSide * kSide + 4", "kIn * kSide * kSide"),
    tile("no room for the last piece", "2 * kPieceBytes + kTurns", "kPieceBytes + kTurns"),
    conv(
        "strided columns not kept apart",
        "return tap % Tile::kStride * stages_.band().phase + tap / Tile::kStride;",
        "return tap;",
    ),
    stages("a single tap that ignores its stride", "column * right;", "column;"),
    conv(
        "tf32 fragments of the gradient swapped",
        "i / 4 * 16 + i % 2 * 8",
        "i / 4 * 16 + i / 2 % 2 * 8",
    ),
    conv(
        "tf32 pixels in the wrong order",
        "places.load(pixel + member + 4)",
        "places.load(pixel + member)",
    ),
    conv("fp32 neighbours swapped", "input.at[i % 2]", "input.at[1 - i % 2]"),
    tile("pixels lie in the same banks", "kOutPitch = kOut + 8", "kOutPitch = kOut"),
    tile(
        "rows of a band in the same banks",
        "band.pitch = band.width + 8",
        "band.pitch = band.x_width",
    ),
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
    write_out("first warp counted twice", "double total = 0.0;", "double total = squares;"),
    write_out("half of the lanes not counted", "mask = 16;", "mask = 8;"),
    write_out("squares rounded to fp32", "const double value = sums", "const float value = sums"),
    write_out("squares in a neighbour's slot", "at(block_.x(), slot)", "at(block_.x(), 0)"),
    stages(
        "draws of different examples mixed",
        "block_.x() * shape_.draws + draw",
        "draw * shape_.examples + block_.x()",
    ),
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
    update("noise of one step for ever", "static_cast<uint64_t>(*job.step)", "uint64_t{77}"),
    update(
        "numbers of a capture for ever",
        "scale, job.numbers)",
        "scale, [&] { static const std::vector<double> kept(job.numbers, job.numbers + 8); "
        "return kept.data(); }())",
    ),
    update("step never counted", "++*job.step", "*job.step"),
    update("every thread counts the step", "if (block.thread() == 0) ++", "++"),
    update("a shard draws the first one's noise", "job.update.first_index / kTile * kLanes", "0"),
    update("the last tile forgotten", "update.first_index % kTile + update.count", "update.count"),
    plain("blocks of an example mixed", "block.x() % blocks", "block.x() / blocks"),
    plain("one weight too many", "if (i < weights)", "if (i <= weights)"),
    plain("groups read the first one's channels", "output / shape.outputs * shape.inputs", "0"),
    plain("taps of a weight mixed", "i / shape.inputs % taps;\n    value", "i % taps;\n    value"),
    plain("rounded for the rows alone", "value = job.weight.keep(", "job.weight.keep("),
    plain(
        "squares of a thread without a weight",
        "Wide<Scalar> value = 0;",
        "Wide<Scalar> value = 1;",
    ),
    plain("blocks of an example share a slot", "at(example, slot)", "at(example, 0)"),
    plain(
        "squares rounded to fp32", "double(value) * double(value)", "float(value) * float(value)"
    ),
    plain("an example of scale 0 added", " && job.scales[example] != 0.0", ""),
    plain("one example's scale for all", "(value, job.scales[example])", "(value, job.scales[0])"),
    plain_bias("gaps between rows read", "dense = gs.height ==", "dense = true || gs.height =="),
    plain_bias(
        "no barrier before the lanes are added",
        "  block.barrier();\n  for (int half",
        "  for (int half",
    ),
    plain_bias("half of the lanes forgotten", "half = kLanes / 2;", "half = kLanes / 4;"),
    plain_bias("bias of channels that don't exist", "if (channel < job.channels) {", "if (true) {"),
    plain_bias("groups of channels share a slot", "at(example, group)", "at(example, 0)"),
    plain_bias("rounded for the rows alone", "value = job.rows.keep(", "job.rows.keep("),
    rows("what was there not added", "if (wide != nullptr && accumulate) ", "if (false) "),
    rows("what was there in bfloat16 not added", "if (accumulate) ", "if (false) "),
    rows("norms before rounding", "return to_float(to_bfloat16", "return float("),
    rows("rows in bfloat16 over each other", "half + example * stride + place", "half + place"),
    bias(
        "sum written instead of added",
        "block.add(job.sum + channel, int64_t{grid_coordinate(value, scale)})",
        "job.sum[channel] = grid_coordinate(value, scale)",
    ),
    conv("bias of half of the pixels", "lane() / kLanes * 4;", "lane() * 0;"),
    conv("every warp has the first turn at the bias", "pixel = turn * 8;", "pixel = 0;"),
    conv("bias in every tile of inputs", "channels > 0 && stages_.first_in() == 0", "channels > 0"),
    write_out("bias of half of the lanes", "bias[i] += block_.shuffle_xor", "block_.shuffle_xor"),
    write_out("turns at the bias over each other", "store(turn * Tile::kOut + out", "store(out"),
    write_out(
        "the last turn at the bias left out", "turn < Tile::kTurns;", "turn + 1 < Tile::kTurns;"
    ),
    write_out("bias not squared", "squares += use_bias(scale)", "use_bias(scale)"),
    bias("examples that are not finite added", " && scale != 0.0", ""),
    bias("rounded for the rows alone", "value = job.rows.keep(", "job.rows.keep("),
    # Several layers in one launch
    conv("the first layer's tensors for all", "jobs.layers[layer],", "jobs.layers[0],"),
    conv("blocks counted from the first layer on", "- jobs.first_block[layer])", "- 0)"),
    conv(
        "the last layer's blocks as its neighbour's",
        "layer + 1 < jobs.count",
        "layer + 2 < jobs.count",
    ),
    conv(
        "a layer's first block as the last one's",
        "block.y() >= jobs.first_block",
        "block.y() > jobs.first_block",
    ),
    tile(
        "a layer's blocks where the first one's are",
        "first_block[together.count] = shape.blocks_y",
        "first_block[together.count] = 0",
    ),
    tile(
        "shared memory of the last layer alone",
        "std::max(shape.shared_bytes, alone.shared_bytes)",
        "alone.shared_bytes",
    ),
    slots("a layer's squares over another's", "first + slots}", "slots}"),
    slots(
        "squares of all in the first slots",
        "example * count + first + slot",
        "example * count + slot",
    ),
    tree("a quarter of the threads added", "half = 512", "half = 64"),
    scaled("examples of scale 0 added", "scale != 0.0 ? grid", "true ? grid"),
    scaled("an exponent's lowest bit lost", "0x8fffffffu;", "0x8fefffffu;"),
    scaled("a float's last bits lost", "<< 32 | static_cast<uint32_t>(bits) << 29", "<< 32"),
    scaled(
        "the last rows left out", "example < kept.examples; ++example", "example < 0; ++example"
    ),
    scaled("sums of one column in all", "row[column * kSumThreads]", "row[0 * column]"),
    scaled("norms over the gap", "block.x() * kept.stride", "block.x() * kept.parameters"),
    scaled("sums over the gap", "(first + i) * kept.stride", "(first + i) * kept.parameters"),
    scaled(
        "pieces of different examples mixed",
        "block.x() * job.pieces",
        "block.x()",
    ),
    scaled("pieces of the second launch over those of the first", " + job.first_piece", ""),
    scaled(
        "every range from its second piece on",
        "columns->begin + piece *",
        "columns->begin + (piece + 1) *",
    ),
    scaled("a piece beyond its range", "kPiece < columns->end ?", "kPiece < kept.parameters ?"),
    scaled(
        "squares of the last values alone",
        "i += kAhead * kSumThreads",
        "i += 2 * kAhead * kSumThreads",
    ),
    scaled(
        "the first pieces alone added",
        "i < job.count; i += kSumThreads",
        "i < job.count; i += job.count",
    ),
    scaled(
        "rounded to nearest",
        "grid_coordinate(value, scale) : 0",
        "static_cast<int64_t>(std::nearbyint(value * scale)) : 0",
    ),
    slab("lanes of a warp left out", "mask < end;", "mask < end / 2;"),
    slab("columns of a warp added together", "last() ? plan_.across : 1, end", "1, end"),
    slab("a part left out", "for (int part = 0;", "for (int part = 1;"),
    slab("warps in one place", "(i / kChannels * parts() + part)", "(i / kChannels * parts())"),
    slab("sums of threads without a column", " || column.index >= columns_) return", ") return"),
    slab("every row's first slab", "(static_cast<int>(block.x()) - row_ * plan.slabs)", "0"),
    slab("last slab as wide as the others", "groups_(least(plan.slab_groups, ", "groups_(("),
    slab("one group's moments for all", "first_group_ + group;", "first_group_;"),
    slab("the first group's sums for all", "group(of_slab) * width_", "0 * of_slab"),
    slab(
        "neighbours of a vector as the first",
        "(place(column.index * kChannels + i))",
        "(place(column.index * kChannels))",
    ),
    slab("vectors in one place", "      slot += plan_.threads;", "      slot += 0;"),
    slab(
        "columns of a warp in the same banks",
        "return (of_column / kAtOnce",
        "return channel; (of_column / kAtOnce",
    ),
    slab("pixels left out", "position += lanes_)", "position += 2 * lanes_)"),
    Bug(
        "halves of a pair swapped",
        "group_norm_silu",
        "i % 2 == 0 ? pairs",
        "i % 2 != 0 ? pairs",
        "kernels/vector.h",
    ),
    norm("channels of a vector mixed", "sums[1][c] = std::fma(s", "sums[1][0] = std::fma(s"),
    norm(
        "variance about 0",
        "const Real difference = values.at[i] - centre.at[c]",
        "const Real difference = values.at[i]",
    ),
    norm("SiLU's slope without its value", "std::fma(value, Real(1) - s, Real(1))", "Real(1) - s"),
    norm("the weight left out of the mean", "static_cast<double>(slab.get(kScale, of)) *", "1.0 *"),
    norm("draws of an example counted once", "draw < draws; ++draw", "draw < 1; ++draw"),
    norm(
        "shift's rows with the scale's sums",
        "keep(block, example, channel, for_bias)",
        "keep(block, example, channel, for_weight)",
    ),
    norm("sum along x forgotten", "std::fma(tilt.at[c], values.at[i], shift.at[c])", "shift.at[c]"),
    embedding("one column too many", "column >= job.width", "column > job.width"),
    embedding("what is read twice written over", "job.width] += widen", "job.width] = widen"),
    embedding("what was there kept", "if (!job.accumulate)", "if (false)"),
    embedding("padding not left out", "adds(job, index)", "(index >= 0 && index < job.entries)"),
    embedding("indices that don't exist", "adds(job, index)", "(index != job.padding)"),
    embedding("one example's positions for all", "first = block.x() * job", "first = 0 * job"),
    embedding("an entry counted at every position", "is_first = indices[i] != entry;", ";"),
    embedding("what is read twice counted once", "i < read.positions; ++i", "i <= position; ++i"),
    embedding("padding not left out by entry", "is_first = adds(read, entry)", "is_first = true"),
    embedding("the first columns alone", "column += kEmbeddingThreads", "column += read.width"),
    embedding(
        "by entry one example's positions for all",
        "read.indices + example * read.positions",
        "read.indices + 0 * example",
    ),
    embedding("an example of scale 0 added", "if (scale != 0.0) {", "{"),
    embedding(
        "one example's scale for all", "? job.scales[example] : 0.0", "? job.scales[0] : 0.0"
    ),
    embedding("squares in another's place", "job.squares[block.x()]", "job.squares[example]"),
    clip("blocks after the first forgotten", "block.x() * kScaleThreads + ", ""),
]


def run(name: str, file: Path, text: str, compiler: str, library: str) -> str:
    """What the test `name` says if a file's text is this: an empty string if it passes."""
    with tempfile.TemporaryDirectory() as folder:
        planted = Path(folder) / file
        planted.parent.mkdir()
        planted.write_text(text)
        test = CSRC / f"tests/emulator/test_{name}.cpp"
        program = Path(folder) / "test"
        # Our folder stands first: it shadows the kernel and nothing else.
        command = [compiler, *FLAGS, f"-I{folder}", f"-I{CSRC}", test, library, "-o", program]
        subprocess.run(command, check=True)
        try:
            done = subprocess.run(
                [program], capture_output=True, text=True, timeout=LIMIT, check=False
            )
        except subprocess.TimeoutExpired:
            return f"does not end in {LIMIT} s"
        if done.returncode == 0:
            return ""
        last = done.stderr.strip().rpartition("\n")[2]
        return last.removeprefix("  what():  ") or f"killed by signal {-done.returncode}"


def plant(bug: Bug, compiler: str, library: str) -> str:
    """What kills the bug: an empty string if nothing does."""
    text = (CSRC / bug.file).read_text()
    if text.count(bug.before) != 1:
        sys.exit(f"{bug.name}: {bug.before!r} stands {text.count(bug.before)} times in {bug.file}")
    return run(bug.test, bug.file, text.replace(bug.before, bug.after), compiler, library)


def main(compiler: str, library: str) -> int:
    """Plants every bug; 0 if all of them are killed."""
    for name, file in sorted({bug.test: bug.file for bug in BUGS}.items()):
        found = run(name, file, (CSRC / file).read_text(), compiler, library)
        if found:
            sys.exit(f"{name}: fails without any bug: {found}")
    killed = 0
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda bug: plant(bug, compiler, library), BUGS)
        for bug, what in zip(BUGS, found, strict=True):
            killed += what != ""
            sys.stdout.write(f"{bug.test}: {bug.name}: {what or 'SURVIVES'}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{killed} of {len(BUGS)} planted bugs killed\n")
    return 0 if killed == len(BUGS) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
