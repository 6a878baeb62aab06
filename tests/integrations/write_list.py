"""Write the list of what is covered into docs/integrations.md: `python -m tests.integrations.write_list`.

It is made from the tables that the tests run through.
"""

import re
from pathlib import Path

from tests.integrations.covered import HUGGING_FACE, MMDET, PACKAGES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "integrations.md"
PATTERN = re.compile(r"(<!-- list:covered -->\n).*?(<!-- /list -->)", re.DOTALL)


def covered() -> str:
    """Return the table in Markdown."""
    rows = [("`transformers`", ", ".join(HUGGING_FACE), "`install(model)`")]
    rows += [("`mmdet`, `mmcv-lite`", ", ".join(MMDET) + ", mmcv's own tests of the operator", "`mmcv.install()`")]
    rows += [(f"`{name}`", ", ".join(models), f'`functions.install("{name}")`') for name, models in PACKAGES.items()]
    lines = ["| package | tested | line |", "| :-- | :-- | :-- |", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(PATTERN.sub(lambda match: match[1] + covered() + match[2], PAGE.read_text()))


if __name__ == "__main__":
    main()
