"""Bugs in the per-example gradients of other layers, and in how rows of gradients are stored."""

from bugs.bug import Bug


def plain(name: str, before: str, after: str) -> Bug:
    """A bug in the per-example weight gradient of other layers."""
    return Bug(name, "example_weight_grad", before, after)


def plain_bias(name: str, before: str, after: str) -> Bug:
    """A bug in the gradient of a bias in a launch of its own."""
    return Bug(name, "example_weight_grad", before, after, "kernels/bias_grad.cuh")


def rows(name: str, before: str, after: str) -> Bug:
    """A bug in how rows of gradients are stored, seen by what writes them."""
    return Bug(name, "example_weight_grad", before, after, "kernels/grad_rows.h")


def embedding(name: str, before: str, after: str) -> Bug:
    """A bug in the per-example gradient of an embedding table."""
    return Bug(name, "example_embedding_grad", before, after)


BUGS = [
    # Counting
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
    # Several layers in one launch
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
]
