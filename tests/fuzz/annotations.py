"""Mutated annotation files through check and convert.

    python -m tests.fuzz.annotations --seed 0 --files 300

Each file is one of two small videos in which something was changed. Files with harmless changes (order and number of
keys, integral floats, encodings) must convert completely. Of the others it is asked that no command ends in a
traceback, and, of COCO and CVAT files, that no box and no negative stands on a frame for which the file does not name
it. Every seventh file is of another format.
"""

import argparse
import contextlib
import io
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from stnet.data import check_command, convert_command
from stnet.data.index import load_index
from stnet.errors import StnetError
from tests.fuzz.annotation_cases import (
    HEIGHT,
    LENGTH,
    VIDEOS,
    WIDTH,
    Case,
    coco_case,
    cvat_case,
    frame_of,
    other_case,
    shares_of,
)


class Fuzzer:
    """Runs cases in a folder and collects what goes wrong."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.converted = self.refused = 0
        self.failures: list[str] = []
        for number, video in enumerate(VIDEOS):
            (folder / "src" / video).mkdir(parents=True)
            for frame in range(LENGTH):
                pixels = np.full((HEIGHT, WIDTH), 10 + 40 * frame + number, np.uint8)
                Image.fromarray(pixels).save(folder / "src" / video / f"{frame:06d}.png")
        shutil.copytree(folder / "src", folder / "set" / "rawframes")
        (folder / "classes.txt").write_text("benign\nmalignant\n")

    def run(self, case: Case) -> None:
        """Convert a case, and check it where it is a data set."""
        file = self.folder / case.name
        file.write_bytes(case.content)
        alone = case.claims is None or case.name == f"{VIDEOS[0]}.xml"
        source = self.folder / "src" / VIDEOS[0] if alone else self.folder / "src"
        out = self.folder / "out"
        arguments = [str(source), str(file), str(out), "--split", "train"]
        status = self._command(case, "convert", lambda: convert_command.main(arguments))
        if status == 0:
            self.converted += 1
            self._compare(case, out)
        else:
            self.refused += 1
            if status != 2 or case.harmless:
                self._fail(case, f"convert ends with {status}: {self._said[-300:]}")
            if out.exists():
                self._fail(case, "a refused conversion leaves files")
        shutil.rmtree(out, ignore_errors=True)
        file.unlink()
        if case.name == "coco.json":
            (self.folder / "set" / "train.json").write_bytes(case.content)
            status = self._command(case, "check", lambda: check_command.main([str(self.folder / "set")]))
            if status not in (0, 1, 2):
                self._fail(case, f"check ends with {status}")
            self._compare(case, self.folder / "set")

    def _command(self, case: Case, name: str, command: Callable[[], int]) -> int | None:
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                status = command()
            except BaseException:  # whatever comes out is what is looked for
                self._fail(case, f"{name}: {traceback.format_exc(limit=-3)}")
                status = None
        self._said = said.getvalue()
        return status

    def _compare(self, case: Case, root: Path) -> None:
        """Every box and every negative of a data set is named by the file for this frame."""
        try:
            index = load_index(root, "train", errata=False)
        except StnetError:
            if root.name == "out":
                self._fail(case, "what was converted does not load")
            return
        if case.claims is None:
            return
        claims = case.claims(case.content)
        found = 0
        for video in index.videos:
            for frame in video.frames:
                place = frame_of(f"{frame.path.parent.name}/{frame.path.name}")
                found += len(frame.boxes)
                for box in frame.boxes:
                    mine = np.array(shares_of(tuple(box), frame.width, frame.height))
                    if not any(np.abs(mine - other).max() < 0.002 for other in claims.boxes.get(place, ())):
                        self._fail(
                            case, f"{root.name}: {box} on {place}, for which the file names {claims.boxes.get(place)}"
                        )
                if frame.annotated and place not in claims.listed:
                    self._fail(case, f"{root.name}: {place} counts as annotated, but the file does not list it")
        if case.harmless and found != sum(map(len, claims.boxes.values())) - (case.name == f"{VIDEOS[0]}.xml") * 2:
            self._fail(case, f"{root.name}: {found} boxes of {sum(map(len, claims.boxes.values()))}")

    def _fail(self, case: Case, what: str) -> None:
        self.failures.append(f"{case.name} ({case.change}): {what}")


def fuzz(seed: int, files: int, folder: Path) -> Fuzzer:
    """Run `files` cases that follow from `seed`."""
    fuzzer = Fuzzer(folder)
    for number in range(files):
        rng = random.Random(f"{seed} {number}")
        fuzzer.run((other_case if number % 7 == 6 else (coco_case, cvat_case)[number % 2])(rng))
    return fuzzer


def main() -> int:
    """Run the command line; return the exit status: 1 after a failure."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.annotations", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files (default: 0)")
    parser.add_argument("--files", type=int, default=300, help="how many files (default: 300)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = fuzz(options.seed, options.files, Path(folder))
    for failure in fuzzer.failures:
        print(failure.encode("ascii", "backslashreplace").decode())
    counts = f"{fuzzer.converted} converted, {fuzzer.refused} refused, {len(fuzzer.failures)} failures"
    print(f"{options.files} files: {counts}")
    return 1 if fuzzer.failures else 0


if __name__ == "__main__":
    sys.exit(main())
