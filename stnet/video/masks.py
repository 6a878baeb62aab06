"""Masks that lie beside the images they belong to, told by their names."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_MASK = re.compile(
    r"(?P<of>.+?)[ _.-]+"
    r"(?:(?:mask|masks|tumou?r|lesion|seg|segmentation|gt|ground_?truth|label|annotation)(?:[ _.-]?\d{1,4})?|other\d+)",
    re.IGNORECASE,
)

ImageKey = tuple[Path, str]
"""Folder and stem of an image."""


def split_masks(images: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the images that are no masks, and the masks: `a_mask.png`, `a_mask_1.png`, `a_tumor.png` beside `a.png`.

    An image is a mask only where the image it is called after lies in the same folder and is none itself.
    """
    stems = {(path.parent, path.stem) for path in images}
    others, masks = [], []
    for path in images:
        of = _image_of(path)
        (masks if of is not None and of in stems else others).append(path)
    return others, masks


def masks_by_image(masks: Iterable[Path]) -> dict[ImageKey, list[Path]]:
    """Return masks by the folder and the stem of the image they belong to."""
    found: dict[ImageKey, list[Path]] = {}
    for mask in masks:
        of = _image_of(mask)
        if of is not None:
            found.setdefault(of, []).append(mask)
    return found


def _image_of(mask: Path) -> ImageKey | None:
    match = _MASK.fullmatch(mask.stem)
    return None if match is None else (mask.parent, match["of"])


def mask_note(masks: Sequence[Path]) -> str:
    """Return what a user should know of masks that are left out."""
    number = f"{len(masks)} of its images are" if len(masks) > 1 else "one of its images is"
    return f"{number} named like masks of others ({masks[0].name}) and left out; name files one by one to use them"
