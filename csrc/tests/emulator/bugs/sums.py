"""Bugs in norms, scales, scaled sums and the last pass of a step."""

from bugs.bug import Bug


def scaled(name: str, before: str, after: str) -> Bug:
    """A bug in the norms and the scaled sum of what is kept."""
    return Bug(name, "scaled_sum", before, after)


def tree(name: str, before: str, after: str) -> Bug:
    """A bug in how a block adds its threads up."""
    return Bug(name, "scaled_sum", before, after, "kernels/add_up.cuh")


def update(name: str, before: str, after: str) -> Bug:
    """A bug in the last pass of a step."""
    return Bug(name, "private_update", before, after)


BUGS = [
    # Synchronisation
    tree("no barrier inside the tree", "    block.barrier();\n", ""),
    # Halo and tails
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
    # Counting
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
    # Several layers in one launch
    tree("a quarter of the threads added", "half = 512", "half = 64"),
    scaled("examples of scale 0 added", "scale != 0.0 ? grid", "true ? grid"),
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
        "grid_coordinate(widen(value), scale) : 0",
        "static_cast<int64_t>(std::nearbyint(widen(value) * scale)) : 0",
    ),
]
