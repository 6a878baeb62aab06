"""What a file is by its first bytes, where it is something else than what was asked for."""

from pathlib import Path

HEAD_BYTES = 4096
"""How much of a file `describe` wants to see."""

_UNPACK = "unpack it first"
_MAGICS = {
    b"\x89HDF": ("an HDF5 file (of Keras or MATLAB)", ""),
    b"\x1f\x8b": ("a compressed archive (gzip)", _UNPACK),
    b"7z\xbc\xaf": ("a compressed archive (7z)", _UNPACK),
    b"Rar!": ("a compressed archive (RAR)", _UNPACK),
    b"BZh": ("a compressed archive (bzip2)", _UNPACK),
    b"\xfd7zXZ": ("a compressed archive (xz)", _UNPACK),
    b"(\xb5/\xfd": ("a compressed archive (Zstandard)", _UNPACK),
    b"PK\x03\x04": ("an archive (zip)", _UNPACK),
    b"PK\x05\x06": ("an empty archive (zip)", ""),
    b"\x93NUMPY": ("an array of NumPy", ""),
    b"GGUF": ("a GGUF file", ""),
    b"%PDF": ("a PDF file", ""),
    b"\x89PNG": ("an image (PNG)", ""),
    b"\xff\xd8\xff": ("an image (JPEG)", ""),
    b"II*\0": ("an image (TIFF)", ""),
    b"MM\0*": ("an image (TIFF)", ""),
    b"BM": ("an image (BMP)", ""),
    b"\xd0\xcf\x11\xe0": ("a document of Microsoft Office", ""),
}


def describe(head: bytes) -> tuple[str, str] | None:
    """Return what a file that begins with `head` is, and the remedy (may be empty); None where that is not known."""
    if not head:
        return "an empty file (0 bytes)", "download or copy it again"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        return "a pointer of git-lfs, not the file itself", "run `git lfs pull`"
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page", "the download failed or needs a login"
    if text.startswith(b"<?xml"):
        return "an XML text", ""
    if text.startswith((b"{", b"[")):
        return "a JSON text", ""
    return next((found for magic, found in _MAGICS.items() if head.startswith(magic)), None)


def misnamed(path: Path, expected: str) -> str | None:
    """Return the words for a file that turns out to be something else than `expected`; None where it is not known."""
    try:
        with open(path, "rb") as file:
            found = describe(file.read(HEAD_BYTES))
    except OSError:
        return None
    if found is None:
        return None
    what, remedy = found
    return f"is {what}, not {expected}" + (f"; {remedy}" if remedy else "")
