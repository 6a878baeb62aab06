"""Compile report: what the compiler makes of every kernel and candidate of the launch table, without a GPU.

    python -m bench.compile_report                          every candidate for sm_90 and gfx942, as a table
    python -m bench.compile_report --target sm_80 --json    another target, as JSON
    python -m bench.compile_report --check                  compare a fresh report with the committed one
    python -m bench.compile_report --check --exact          and list whatever differs, better or worse
    python -m bench.compile_report --all --renew            renew the committed one

A row is one kernel compiled for one layer's shapes, dtype, candidate and target: registers, shared memory, spills,
vector widths of gathers and reductions, warp instructions per (query, head, sample), and the cache lines a gather
touches. Counts are those of `bench.sass`, over all launches of a call, softmax, prologue and stores included, divided
by the samples of full tiles. They are trusted only where the gathers come out as the known number: `gathered_rows`,
corner rows read per sample, is 4 (`reduced_rows`: rows of the value gradient added to, likewise).

NVIDIA's assembler allocates registers a little differently where nothing but the line numbers of the source moved:
`stda_forward encoder bfloat16` for sm_90 takes 180, 182 or, without line information, 178 registers for the same PTX.
To compare two versions of the source to the instruction, compile both with TRITON_DISABLE_LINE_INFO=1: with `--output`
in one checkout, then with `--check FILE --exact` in the other.
"""
