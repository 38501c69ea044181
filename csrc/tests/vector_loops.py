"""`vector_loops.py CXX` compiles the loops of a normalisation for AVX2: each must become vectors.

A condition in one can prevent that. Its results stay the same then, so that no other test notices,
and it takes four times as long.
"""

import re
import subprocess
import sys
from pathlib import Path

HEADER = "cpu/group_norm_runs.h"
CSRC = Path(__file__).parents[1]
# Each loop once, with SiLU where it has that.
SOURCE = f"""
#include "{HEADER}"
using namespace privimage::cpu;
void loops(int64_t n, const float* x, const float* a, const float* b, const float* c, float* y,
           float* sums, float* products) {{
  add(n, x, sums);
  add_squares(n, x, a, sums);
  normalise<true>(n, x, a, b, y);
  add_slopes<true>(n, x, y, a, b, c, y, sums, products);
  combine(n, x, a, b, c, y);
}}
"""
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-mavx2"]
REPORT = ["-fopt-info-vec-optimized", "-S", "-o/dev/null"]

report = subprocess.run(
    [sys.argv[1], *FLAGS, *REPORT, f"-I{CSRC}", "-xc++", "-"],
    input=SOURCE,
    capture_output=True,
    text=True,
    check=True,
).stderr
are_vectors = set(re.findall(rf"{HEADER}:(\d+):.* vectorized using 32 byte vectors", report))
lines = enumerate((CSRC / HEADER).read_text().splitlines(), start=1)
loops = {str(at): line for at, line in lines if re.search(r"for \(.* i < count;", line)}
sys.stdout.write(f"{len(loops)} loops, {len(are_vectors & loops.keys())} of them vectors\n")
if len(loops) != 5 or (others := loops.keys() - are_vectors):
    sys.exit(f"{HEADER}: no vectors in the loops of line {', '.join(sorted(others))}")
