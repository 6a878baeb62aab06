"""Values of JSON objects that come from strangers: each is checked where it is read, with the entry named."""

from stnet.data.annotations.entries import MAX_COORDINATE, MAX_ID, MAX_IMAGE_SIDE, MAX_NAME_LENGTH
from stnet.data.formats.marks import Size
from stnet.errors import DataError


def text(holder: dict, key: str, where: str) -> str:
    """Return a name or a label.

    Raises:
        DataError: it is missing, empty, too long or no text.
    """
    value = holder.get(key)
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_NAME_LENGTH:
        raise DataError(f"{where}: {key} is {_shown(holder, key)}, expected a text; export it again")
    return value


def number(holder: dict, key: str, where: str, default: float | None = None) -> float:
    """Return a coordinate, length or angle; `default` where the key may be left out.

    Raises:
        DataError: it is no finite number of a plausible size.
    """
    value = holder.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_COORDINATE:
        raise DataError(f"{where}: {key} is {_shown(holder, key)}, expected a number; export it again")
    return float(value)


def whole(holder: dict, key: str, where: str, least: int = 0) -> int:
    """Return a whole number, also one that is written as 3.0.

    Raises:
        DataError: it is something else, or less than `least`.
    """
    value = holder.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_ID:
        raise DataError(
            f"{where}: {key} is {_shown(holder, key)}, expected a whole number from {least}; export it again"
        )
    return value


def flag(holder: dict, key: str, where: str, default: bool | None = None) -> bool:
    """Return a truth value; `default` where the key may be left out.

    Raises:
        DataError: it is something else.
    """
    value = holder.get(key, default)
    if value not in (True, False) or isinstance(value, float):
        raise DataError(f"{where}: {key} is {_shown(holder, key)}, expected true or false; export it again")
    return bool(value)


def size(holder: dict, width: str, height: str, where: str) -> Size | None:
    """Return the size of a picture, None where neither side is stated.

    Raises:
        DataError: a side is missing or no number of pixels.
    """
    if holder.get(width) is None and holder.get(height) is None:
        return None
    sides = whole(holder, width, where, 1), whole(holder, height, where, 1)
    if max(sides) > MAX_IMAGE_SIDE:
        raise DataError(f"{where}: a picture of {sides[0]} x {sides[1]}, more than {MAX_IMAGE_SIDE} a side")
    return sides


def objects(holder: dict, key: str, where: str) -> list[dict]:
    """Return a list of objects.

    Raises:
        DataError: it is missing or something else.
    """
    value = holder.get(key)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f"{where}: {key} is {_shown(holder, key)}, expected a list of objects; export it again")
    return value


def points(holder: dict, key: str, where: str) -> list[tuple[float, float]]:
    """Return a list of points x, y.

    Raises:
        DataError: it is something else.
    """
    value = holder.get(key)
    if not isinstance(value, list) or not all(isinstance(point, list) and len(point) == 2 for point in value):
        raise DataError(f"{where}: {key} is {_shown(holder, key)}, expected a list of points [x, y]; export it again")
    return [
        (number({"x": point[0]}, "x", f"{where}: {key}"), number({"y": point[1]}, "y", f"{where}: {key}"))
        for point in value
    ]


def _shown(holder: dict, key: str) -> str:
    return f"{holder[key]!r:.60}" if key in holder else "missing"
