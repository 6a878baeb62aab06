"""Masks that lie beside the images they belong to, told by their names."""

import re
from collections.abc import Sequence
from pathlib import Path

_MASK = re.compile(
    r"(?P<of>.+?)[ _.-]+"
    r"(?:(?:mask|masks|tumou?r|lesion|seg|segmentation|gt|ground_?truth|label|annotation)(?:[ _.-]?\d{1,4})?|other\d+)",
    re.IGNORECASE,
)


def split_masks(images: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the images that are no masks, and the masks: `a_mask.png`, `a_mask_1.png`, `a_tumor.png` beside `a.png`.

    An image is a mask only where the image it is called after lies in the same folder and is none itself.
    """
    stems = {(path.parent, path.stem) for path in images}
    masks = [path for path in images if (match := _MASK.fullmatch(path.stem)) and (path.parent, match["of"]) in stems]
    return [path for path in images if path not in set(masks)], masks


def mask_note(masks: Sequence[Path]) -> str:
    """Return what a user should know of masks that are left out."""
    number = f"{len(masks)} of its images are" if len(masks) > 1 else "one of its images is"
    return f"{number} named like masks of others ({masks[0].name}) and left out; name files one by one to use them"
