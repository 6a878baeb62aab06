"""The command `stnet`, and `python -m stnet`: one for all that the package does.

Nothing but the standard library is imported here, so that Ctrl-C is understood from the first moment on.
"""

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "infer": ("stnet.inference.cli", "command", "find lesions in videos or stills"),
    "train": ("stnet.training.cli", "main", "train a model on annotated videos"),
    "evaluate": ("stnet.training.cli", "evaluate", "evaluate a model on annotated videos or stills"),
    "check": ("stnet.data.check_command", "main", "find what is wrong with a data set, and repair it"),
    "convert": ("stnet.data.convert_command", "main", "turn frames or videos with annotations into a data set"),
    "phantoms": ("stnet.data.phantom_command", "main", "write synthetic videos with known lesions as a data set"),
    "stills": ("stnet.data.stills_command", "main", "write still images with boxes as a data set"),
    "export": ("stnet.export_command", "main", "export a model to torch.export, ONNX and safetensors"),
    "tune": ("stnet.kernels.tune_command", "main", "measure launch tables of the kernels on this GPU"),
    "demo": ("stnet.demo_command", "main", "find lesions in phantom videos"),
}
"""Module, function and purpose of each command. A function takes the arguments and how it was called."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as of `stnet.command_line`, which is not imported yet."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command of `stnet`; return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0] if given else "--help"
    if name in ("-h", "--help"):
        print(_usage())
        return 0 if given else 2
    if name == "--version":
        from stnet import __version__

        print(f"stnet {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"stnet: error: {name!r} is no command; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return run(name, f"stnet {name}", given[1:] if arguments is not None else None)


def run(name: str, prog: str, arguments: Sequence[str] | None = None) -> int:
    """Run one of `COMMANDS`.

    Args:
        name: of the command.
        prog: how it was called, for its usage.
        arguments: None takes those of the process.
    """
    module, function, _ = COMMANDS[name]
    try:
        if arguments is None and prog == f"stnet {name}":
            del sys.argv[1]
        return getattr(importlib.import_module(module), function)(arguments, prog)
    except KeyboardInterrupt:  # while modules are imported
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _usage() -> str:
    lines = [f"  {name:<9} {purpose}" for name, (_, _, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: stnet COMMAND ...",
            "",
            "Breast-lesion detection in ultrasound video. Research software, not a medical device.",
            "",
            *lines,
            "",
            "`stnet COMMAND --help` tells more; --version prints the version.",
        ]
    )
