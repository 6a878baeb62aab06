"""Values as the JSON of results and pages: compact, and Unicode whatever names hold."""

import json
import re


def json_text(value: object) -> str:
    """Return compact JSON; what of a name is no Unicode (a file name in another encoding) is written as an escape."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\\\u{ord(found[0]):04x}", text)
