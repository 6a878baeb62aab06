"""What a set of weights has seen, told to whoever uses it; it travels in the metadata of the checkpoint, as JSON."""

import dataclasses
import json
from dataclasses import dataclass

from stnet.json_settings import settings_from_json

PROVENANCE_KEY = "stnet_provenance"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where weights come from.

    Attributes:
        trained_on: the training material, for people.
        caution: what everyone who uses the weights has to know; empty: nothing beyond that.
    """

    trained_on: str
    caution: str = ""

    def to_json(self) -> str:
        """Return what `from_json` reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str, what: str) -> "Provenance":
        """Read what `to_json` wrote; `what` names its source in messages.

        Raises:
            ConfigError: for anything else.
        """
        return settings_from_json(cls, text, what)
