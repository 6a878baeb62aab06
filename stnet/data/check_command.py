"""The command `stnet check`: what is misspelt is told before anything that computes is imported."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from stnet import command_line
from stnet.console import Reporter, printable
from stnet.data.named import REPAIRS_FILE, require_data_folder
from stnet.errors import ConfigError
from stnet.files import write_json

if TYPE_CHECKING:
    from stnet.data.check import Report
    from stnet.data.quality.findings import Finding


def main(arguments: Sequence[str] | None = None, prog: str = "python -m stnet.data.check") -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Find what is wrong with a data set in the layout of BUV.",
        epilog="Exit status 0: nothing found; 1: findings (after --repair: left ones); 2: unusable or not repaired.",
    )
    parser.add_argument("dir", type=Path, help="data set folder, with train.json, val.json or both")
    parser.add_argument("--quick", action="store_true", help="do not open the frames")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write findings and fingerprint as JSON")
    parser.add_argument(
        "--fingerprint", type=Path, metavar="FOLDER", help="also write fingerprint.json and fingerprint.png there"
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help=f"correct the annotation files (originals kept as *.original, changes listed in {REPAIRS_FILE})",
    )
    parser.add_argument(
        "--accept-loss",
        action="store_true",
        help="repair even where that leaves out a tenth of the boxes, frames, videos or of a class",
    )
    parser.add_argument(
        "--limit", type=_count, default=20, metavar="N", help="findings of a kind printed (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    return command_line.run(lambda: _run(options))


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} must be 0 or more")
    return value


def _run(options: argparse.Namespace) -> int:
    if options.accept_loss and not options.repair:
        raise ConfigError("--accept-loss says how much a repair may leave out: add --repair, or leave it out")
    require_data_folder(options.dir)
    from stnet.data.check import repair_dataset  # takes seconds

    report = _check_with_progress(options.dir, options.quick)
    _print_findings(report.findings, options.limit)
    print(_summary(report.findings))
    if options.repair:
        for file in repair_dataset(report, accept_loss=options.accept_loss):
            print(printable(f"corrected {file} (changes: {REPAIRS_FILE})"))
        report = _check_with_progress(options.dir, options.quick)
        print(f"after the repair: {_summary(report.findings)}")
        _print_findings(report.findings, options.limit)
    _write_outputs(options, report)
    return 1 if report.findings else 0


def _check_with_progress(root: Path, quick: bool) -> "Report":
    from stnet.data.check import check_dataset

    with Reporter(stderr=True) as reporter:
        reporter.start("Reading frames", None)
        return check_dataset(root, quick=quick, on_frame=reporter.advance)


def _print_findings(findings: "Sequence[Finding]", limit: int) -> None:
    shown: Counter[str] = Counter()
    for finding in findings:
        shown[finding.kind] += 1
        if shown[finding.kind] <= limit:
            print(printable(f"[{finding.kind}] {finding}"))
    for kind, count in shown.items():
        if count > limit:
            print(f"[{kind}] and {count - limit} more (--limit {count} or --json show all)")


def _summary(findings: "Sequence[Finding]") -> str:
    if not findings:
        return "nothing found"
    counts = Counter(finding.kind for finding in findings)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    return f"{len(findings)} finding{'s' if len(findings) > 1 else ''}: {kinds}"


def _write_outputs(options: argparse.Namespace, report: "Report") -> None:
    if options.json is None and options.fingerprint is None:
        return
    from stnet.data.quality.fingerprint import draw_fingerprint, fingerprint

    prints = {split.name: fingerprint(split) for split in report.splits}
    if options.json is not None:
        findings = [asdict(finding) for finding in report.findings]
        write_json(options.json, {"findings": findings, "fingerprint": prints})
    if options.fingerprint is not None:
        options.fingerprint.mkdir(parents=True, exist_ok=True)
        write_json(options.fingerprint / "fingerprint.json", prints)
        draw_fingerprint(prints, options.fingerprint / "fingerprint.png")


if __name__ == "__main__":
    sys.exit(main())
