"""Count the warp instructions a compiled kernel issues, without a GPU.

From a Triton kernel compiled ahead of time (in a process without TRITON_INTERPRET):

    from bench.sass import analyse_kernel
    compiled = triton.compile(ASTSource(...), target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
    analysis = analyse_kernel(compiled, {"frames": 6, "frame_table": table, ...}, program=(3, 0, 0))
    analysis.executed / (queries_per_program * samples)     # N: warp instructions per (query, head, sample)
    analysis.gathers, analysis.reductions, analysis.classes   # {16: 896}, {"F32x4": 3584}, {"fp32": ...}

Arguments are by parameter name: ints and floats as the launcher would pass them, a numpy array for a pointer whose
contents decide the control flow (spatial shapes on the device, say), a tuple for a tuple parameter. Pointers may be
left out: each gets an address of its own, aligned to 16 bytes, with unknown contents. Choose a `program` inside the
grid whose tile is full, since the walk follows its bounds checks.

From any cubin, with the kernel's parameters as raw values in order (`_` leaves one unknown):

    python -m bench.sass kernel.cubin --arguments 0x1000 0x2000 6 _ --num-warps 1 --samples 1792

How it counts: every warp of one program is walked from entry to exit (`bench.sass.walk`), evaluating the integer and
predicate instructions of all lanes, so trip counts of unrolled loops and their remainders follow from the arguments.
An issued instruction counts once however many lanes are active, also when its guard is false, because it takes an
issue slot. A forward branch on an unknown value goes the way that issues fewer instructions and is listed in
`Analysis.assumptions`; a loop on an unknown value needs `trips`. Whoever reports a number checks it against one known
beforehand: gathers and reductions per sample (`Analysis.gathers`, `Analysis.reductions`).
"""

from bench.sass.analysis import Analysis, analyse, analyse_kernel, ordered_arguments
from bench.sass.cubin import CubinError, read_cubin, triton_tool
from bench.sass.walk import WalkError

__all__ = [
    "Analysis",
    "CubinError",
    "WalkError",
    "analyse",
    "analyse_kernel",
    "ordered_arguments",
    "read_cubin",
    "triton_tool",
]
