"""The page in docs/ lists what the tests go through, and nothing else."""

import re

from stnet.integrations import functions
from tests.integrations.covered import PACKAGES
from tests.integrations.write_list import PAGE, covered


def test_the_list_is_that_of_the_tables():
    assert covered() in PAGE.read_text(), "run python -m tests.integrations.write_list"
    assert set(PACKAGES) == {row[0].split(".")[0] for row in functions.TABLE}


def test_lines_of_the_page_can_be_imported():
    lines = re.findall(r"^(?:from|import) stnet[^\n;]*", PAGE.read_text().replace("`", "\n"), re.MULTILINE)
    assert len(lines) >= 7
    for line in set(lines):
        exec(line, {})
