"""Choose the calibration and the operating points of a model on stills, and write them into its checkpoint.

    python -m stnet.evaluation.calibrate runs/a/best.safetensors --data a/val.json b/val.json --output new.safetensors

The stills must be validation data: their patients may not have trained the model.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save as serialize

from stnet import command_line, files
from stnet.choices import OPERATING_POINTS
from stnet.console import Reporter
from stnet.devices import resolve_device
from stnet.errors import CheckpointError
from stnet.evaluation.figures_table import percent, rate
from stnet.evaluation.operating import PointResult, choose, cross_judge, judge
from stnet.evaluation.predict import predict_frames
from stnet.evaluation.scored_stills import read_still_files, scored_set
from stnet.model.checkpoint import CONFIG_KEY, load, read_checkpoint, resolve
from stnet.model.operating_points import OPERATING_POINTS_KEY, OperatingPoints


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m stnet.evaluation.calibrate",
        description="Choose calibration and operating points on validation stills and write them into a checkpoint.",
    )
    parser.add_argument("model", help="checkpoint file, or the name of a shipped one")
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="FILE", help="COCO files of validation stills"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="checkpoint to write, .safetensors")
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda or cuda:N")
    options = parser.parse_args(arguments)
    return command_line.run(lambda: _calibrate(options))


def _calibrate(options: argparse.Namespace) -> None:
    if options.output.suffix != ".safetensors":
        raise CheckpointError(f"--output {options.output}: must end in .safetensors")
    if options.output.exists():
        raise CheckpointError(f"--output {options.output}: exists; choose another name")
    options.output.parent.mkdir(parents=True, exist_ok=True)  # a place that cannot be is told at once
    model = load(options.model, device=resolve_device(options.device))
    names = model.config.class_names
    sets = []
    with Reporter() as reporter:
        for name, stills in read_still_files(options.data, names).items():
            reporter.start(name, len(stills))
            sets.append(scored_set(name, stills, predict_frames(model, stills.index, advance=reporter.advance)))
        reporter.stop()
        frames = [frame for scored in sets for frame in scored.frames]
        patients = {video: patient for scored in sets for video, patient in scored.patients.items()}
        points = choose(frames, names, ", ".join(f"{scored.name} ({len(scored.frames)} stills)" for scored in sets))
        write_points(options.model, points, options.output)
        _show(points, judge(frames, points, patients), cross_judge(frames, names, patients).points, reporter)
        reporter.message(f"{options.output} written")


def _show(
    points: OperatingPoints, same: dict[str, PointResult], halves: dict[str, PointResult], reporter: Reporter
) -> None:
    def cells(result: PointResult | None) -> tuple[str, str]:
        return ("-", "-") if result is None else (percent(result.recall), rate(result.per_image))

    reporter.table(
        f"chosen on {points.chosen_on}; the last two columns: on one half of the patients, judged on the other",
        (
            "operating point",
            "threshold",
            "recall, %",
            "false positives an image",
            "recall, %",
            "false positives an image",
        ),
        [
            (name, f"{points.threshold(name):.3f}", *cells(same.get(name)), *cells(halves.get(name)))
            for name in OPERATING_POINTS
        ],
    )


def write_points(source: str | Path, points: OperatingPoints, path: Path) -> None:
    """Write a checkpoint with operating points; its weights stay what they are, in the same precision.

    Raises:
        CheckpointError: `source` cannot be read.
        OSError: `path` cannot be written.
    """
    checkpoint = read_checkpoint(resolve(source))
    metadata = {**checkpoint.metadata, CONFIG_KEY: checkpoint.config.to_json()}
    metadata[OPERATING_POINTS_KEY] = points.to_json()
    with files.replacing(path) as temporary:
        temporary.write_bytes(serialize(checkpoint.state, metadata=metadata))


if __name__ == "__main__":
    sys.exit(main())
