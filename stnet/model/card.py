"""The model card: what a model is, for people who find its file."""

import json

from stnet.console import printable
from stnet.model.detector import Detector
from stnet.model.provenance import PROVENANCE_KEY


def model_card(model: Detector, metadata: dict[str, str], source: str) -> str:
    """Return a short description in Markdown, as model hubs expect it.

    Args:
        model: what it is of.
        metadata: of its checkpoint.
        source: what it was made of.
    """
    facts = sorted(_fact(key, value) for key, value in metadata.items() if key != PROVENANCE_KEY)
    listed = "".join(fact for fact in facts if fact.startswith("- "))
    sections = "\n".join(fact for fact in facts if not fact.startswith("- "))
    return f"""---
license: apache-2.0
library_name: stnet
tags: [object-detection, ultrasound, video]
---
# STNet detector

Breast-lesion detection in ultrasound video (STNet, MICCAI 2023). Classes: {", ".join(model.config.class_names)}.
Parameters: {sum(p.numel() for p in model.parameters()):,}. Source: {source}.
{_provenance(model)}
```python
import stnet
model = stnet.load("model.safetensors")
```

Intended for research. Not a medical device; not for diagnosis. How it behaves on images of scanners and patients it
was not trained on is unknown.

{listed}
## model

```json
{model.config.to_json()}
```

{sections}"""


def _provenance(model: Detector) -> str:
    known = model.provenance
    if known is None:
        return "What it was trained on is unknown.\n"
    caution = f"Caution: {printable(known.caution)}.\n" if known.caution else ""
    return f"Trained on {printable(known.trained_on)}.\n{caution}"


def _fact(title: str, text: str) -> str:
    """Return a fact from the checkpoint: a line of a list, or a section for a JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if not isinstance(value, dict):
        return f"- {title}: {text}\n"
    return f"## {title}\n\n```json\n{json.dumps(value, indent=2)}\n```\n"
