"""What the data check says about a data set before a training starts on it."""

from collections import defaultdict
from pathlib import Path

from stnet.console import Reporter
from stnet.data.check import check_dataset
from stnet.data.quality.findings import Finding


def report_findings(root: Path, reporter: Reporter) -> None:
    """Say in one line per kind of finding how many there are, an example and its remedy; frames stay closed.

    What makes a training impossible is told here too, but refused by `load_index`.

    Raises:
        DataError: where there is no annotation file that can be read.
    """
    kinds: dict[str, list[Finding]] = defaultdict(list)
    for finding in check_dataset(root, quick=True).findings:
        kinds[finding.kind].append(finding)
    if not kinds:
        return
    total = sum(map(len, kinds.values()))
    reporter.message(
        f"{root}: {total} finding{'s' if total > 1 else ''}; see them all with python -m stnet.data.check {root}"
    )
    for kind, findings in kinds.items():
        count = f"{len(findings)} x " if len(findings) > 1 else ""
        reporter.message(f"  {count}{kind}: {findings[0]}")
