"""Bugs in the fused normalisation."""

from bugs.bug import Bug


def norm(name: str, before: str, after: str) -> Bug:
    """A bug in the fused normalisation."""
    return Bug(name, "group_norm_silu", before, after)


def slab(name: str, before: str, after: str) -> Bug:
    """A bug in how its blocks share and add up their values."""
    return Bug(name, "group_norm_silu", before, after, "kernels/group_norm_slab.cuh")


BUGS = [
    # Synchronisation
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
    # Several layers in one launch
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
]
