"""XML streamed through expat without trusting it: no document type, hence no entities; bounded size and depth."""

import math
from abc import ABC, abstractmethod
from pathlib import Path
from xml.parsers import expat

from stnet.data.annotations.entries import MAX_COORDINATE, MAX_FILE_BYTES, MAX_ID, MAX_NAME_LENGTH
from stnet.errors import DataError

MAX_DEPTH = 32


def read_bytes(file: Path) -> bytes:
    """Read a whole annotation file of bounded size.

    Raises:
        DataError: it is too large, no plain file or cannot be read.
    """
    try:
        if not file.is_file():
            raise DataError(f"{file}: {'not a regular file' if file.exists() else 'no such file'}; check the path")
        size = file.stat().st_size
        if size > MAX_FILE_BYTES:
            raise DataError(f"{file}: {size} bytes, of which only {MAX_FILE_BYTES} are read; split it")
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check the path") from error


class XmlReader(ABC):
    """Walks one XML file; subclasses take its elements as they begin and end."""

    root: str
    """The outermost element."""

    def __init__(self, file: Path):
        self.file = file
        self.path: list[str] = []
        """Names of the elements that are open, the root first."""
        self._text: list[list[str]] = []

    def parse(self, content: bytes) -> None:
        """Walk the whole file.

        Raises:
            DataError: naming the file, and the line where there is one.
        """
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._refuse_doctype
        self._parser.StartElementHandler = self._enter
        self._parser.EndElementHandler = self._leave
        self._parser.CharacterDataHandler = lambda text: self._text[-1].append(text)
        try:
            self._parser.Parse(content, True)
        except (expat.ExpatError, ValueError, LookupError) as error:
            # ValueError and LookupError: encodings that are unknown, or that lie about the bytes.
            raise DataError(f"{self.file}: not valid XML ({error}); export it again") from error

    @abstractmethod
    def started(self, name: str, attributes: dict[str, str]) -> None:
        """Take an element that begins; `self.path` ends with its name."""

    @abstractmethod
    def ended(self, name: str, text: str) -> None:
        """Take an element that ends, and the text directly in it; `self.path` ends with its name."""

    @property
    def line(self) -> str:
        """The place in the file, for messages."""
        return f"line {self._parser.CurrentLineNumber}"

    def refuse(self, what: str) -> DataError:
        """Return the error for something at the present line."""
        return DataError(f"{self.file}: {self.line}: {what}; export it again")

    def text_of(self, attributes: dict[str, str], key: str) -> str:
        """Return an attribute that must be there."""
        value = attributes.get(key)
        if not value or len(value) > MAX_NAME_LENGTH:
            raise self.refuse(f"{key} is {'missing' if value is None else 'empty or too long'}")
        return value

    def number(self, attributes: dict[str, str], key: str, default: float | None = None) -> float:
        """Return an attribute that is a coordinate, a length or an angle; `default` where it may be left out."""
        if default is not None and key not in attributes:
            return default
        return self.to_number(key, self.text_of(attributes, key))

    def integer(self, attributes: dict[str, str], key: str, least: int = 0) -> int:
        """Return an attribute that is a whole number."""
        return self.to_integer(key, self.text_of(attributes, key), least)

    def to_number(self, key: str, text: str) -> float:
        """Return the finite number that a text writes."""
        try:
            value = float(text) if text.isascii() and "_" not in text else math.nan  # Python reads 1_5 as 15
        except ValueError:
            value = math.nan
        if not abs(value) <= MAX_COORDINATE:
            raise self.refuse(f"{key} is {text!r:.40}, not a coordinate")
        return value

    def to_integer(self, key: str, text: str, least: int = 0) -> int:
        """Return the whole number that a text writes, also as `12.0`."""
        digits = text.strip().removesuffix(".0")
        if not (digits.isascii() and digits.isdecimal()) or len(digits) > 16 or not least <= int(digits) <= MAX_ID:
            raise self.refuse(f"{key} is {text!r:.40}, not a whole number from {least}")
        return int(digits)

    def _enter(self, name: str, attributes: dict[str, str]) -> None:
        if len(self.path) >= MAX_DEPTH:
            raise self.refuse("nested too deeply for an annotation file")
        if not self.path and name != self.root:
            raise self.refuse(f"<{name:.40}> where <{self.root}> is expected")
        self.path.append(name)
        self._text.append([])
        self.started(name, attributes)

    def _leave(self, name: str) -> None:
        self.ended(name, "".join(self._text.pop()).strip())
        self.path.pop()

    def _refuse_doctype(self, *_: object) -> None:
        raise self.refuse("has a document type, which annotation files have not")
