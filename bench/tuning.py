"""Tune the launch table key by key, the most used first, and keep what is there when time runs out.

python -m bench.tuning --out launch_table.json --seconds 120
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from stnet.errors import StnetError
from stnet.kernels.launch import DEFAULT_TABLE, read_table, write_table
from stnet.kernels.tune import merge, tune_key

HEAD_DIM = 32
# Kernel, dtype and whether the encoder's many queries: inference first, then training, then other people's models.
KEYS = (
    ("stda_forward", torch.float16, True),
    ("stda_forward", torch.float16, False),
    ("stda_backward", torch.bfloat16, True),
    ("stda_forward", torch.bfloat16, True),
    ("msda_forward", torch.float16, True),
    ("stda_backward", torch.bfloat16, False),
    ("stda_forward", torch.bfloat16, False),
    ("msda_backward", torch.float16, True),
    ("stda_forward", torch.float32, True),
    ("stda_backward", torch.float32, True),
    ("stda_backward", torch.float16, True),
    ("msda_forward", torch.float32, True),
    ("msda_backward", torch.float32, True),
    ("stda_forward", torch.float32, False),
    ("stda_backward", torch.float32, False),
    ("stda_backward", torch.float16, False),
    ("msda_forward", torch.float16, False),
    ("msda_backward", torch.float16, False),
)


def tune_in_time(
    out: Path, seconds: float, seconds_per_candidate: float, device: torch.device, report: Callable[[str], None]
) -> int:
    """Measure keys until `seconds` have passed, writing the table after each; returns how many were measured."""
    deadline = time.monotonic() + seconds
    table, measured = read_table(DEFAULT_TABLE), []
    write_table(out, table)
    for kernel, dtype, many in KEYS:
        if time.monotonic() > deadline:
            break
        try:
            measured.append(tune_key(kernel, dtype, HEAD_DIM, many, device, seconds_per_candidate, report=report))
        except Exception as error:  # whatever it is, the keys after it are worth their time
            report(f"error: {kernel} {dtype}: {type(error).__name__}: {error}")
            continue
        write_table(out, merge(measured, table))
    report(f"measured {len(measured)} of {len(KEYS)} keys")
    return len(measured)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.tuning", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="launch table to write")
    parser.add_argument("--seconds", type=float, default=120.0, help="begin no key after this time (%(default)g)")
    parser.add_argument("--per-candidate", type=float, default=0.05, help="seconds of timing each (%(default)g)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("error: the tuner measures on a GPU, and PyTorch finds none here", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        tune_in_time(options.out, options.seconds, options.per_candidate, device, lambda line: print(line, flush=True))
    except (StnetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
