"""Public sets as their authors publish them: folders of images and masks, with a table of patients and classes.

Every reader returns a COCO document, as if the set had been published that way: what is in it is checked by the same
code as any other file. Masks are white (above 127) where a lesion is; every connected component is one lesion.
"""

import csv
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import find_objects, label

from stnet.data.images import decode_image, image_size
from stnet.data.index import LESION_CLASSES
from stnet.data.path_guard import PathGuard
from stnet.data.still_sets.stills import Stills, stills_of
from stnet.errors import DataError

SPECK = 25
"""Components of a mask with fewer pixels are ignored."""

MAX_TABLE_BYTES = 32 * 2**20
MAX_UNPACKED_BYTES = 128 * 2**20
"""Of a workbook, which is an archive: a small one may hold what fills the memory."""

CATEGORIES = [{"id": number, "name": name} for number, name in enumerate(LESION_CLASSES, start=1)]


def published_reader(folder: Path) -> Callable[[], Stills] | None:
    """Return what reads a folder as one of the public sets, or None where it is none of them."""
    for reader in (_BUSBRA, _BUSUCLM, _BREAST, _BUSI):
        for place in (folder, folder / reader.folder):
            if all((place / name).exists() for name in reader.has):
                return lambda reader=reader, place=place: _read(reader, place)
    return None


@dataclass(frozen=True, kw_only=True)
class _Case:
    """An image as a table lists it: `boxes` are x0 y0 x1 y1 and a category id; `normal`: there is no lesion."""

    file_name: str
    patient: str | None
    boxes: list[tuple[np.ndarray, int]]
    normal: bool = False


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """A published set: its name, whatever its folder is called, its folder, what tells it from others, its cases."""

    name: str
    folder: str
    has: tuple[str, ...]
    cases: Callable[["_Folder"], Iterator[_Case]]


class _Folder:
    """Reads images, masks and tables inside one folder, and names what is wrong with them."""

    def __init__(self, root: Path):
        self.root = root
        self._guard = PathGuard(root)

    def path(self, name: str) -> Path:
        """Return the path of a name from a table, inside the folder."""
        if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{self.root}: {name!r:.80} is no name of a file in this folder; mend the table")
        try:
            return self._guard.path(name)
        except ValueError as error:
            raise DataError(f"{self.root}: {name!r:.80} {error}; copy the file inside") from error

    def size(self, name: str) -> tuple[int, int]:
        """Height and width of an image."""
        return image_size(self.path(name))

    def mask(self, name: str) -> np.ndarray:
        """Return a mask, uint8 `[H, W, C]`."""
        path = self.path(name)
        return decode_image(path, *image_size(path))

    def boxes(self, name: str, image: str) -> list[np.ndarray]:
        """Return the lesions of the black and white mask of an image."""
        mask, size = self.mask(name).max(axis=2), self.size(image)
        if mask.shape != size:
            raise DataError(
                f"{self.path(name)}: a mask of {mask.shape[1]} x {mask.shape[0]}, the image {image} is {size[1]} x "
                f"{size[0]}; download both again"
            )
        return components(mask > 127)

    def table(self, name: str, columns: tuple[str, ...], delimiter: str = ",") -> Iterator[dict[str, str]]:
        """Yield the rows of a table, every needed column present."""
        path = self.path(name)
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise DataError(f"{path}: {path.stat().st_size} bytes, of which only {MAX_TABLE_BYTES} are read")
        try:
            with path.open(encoding="utf-8-sig", newline="") as handle:
                rows = csv.DictReader(handle, delimiter=delimiter)
                _check_columns(path, rows.fieldnames or (), columns)
                yield from ({column: (row[column] or "").strip() for column in columns} for row in rows)
        except (csv.Error, UnicodeError) as error:
            raise DataError(f"{path}: not a table ({error}); download it again") from error

    def category(self, where: str, name: str) -> int:
        """Return the category id of a class name."""
        if name.lower() not in LESION_CLASSES:
            raise DataError(f"{self.root}: {where}: class {name!r:.40} is none of {', '.join(LESION_CLASSES)}")
        return 1 + LESION_CLASSES.index(name.lower())


def components(mask: np.ndarray) -> list[np.ndarray]:
    """Return the boxes x0 y0 x1 y1 of the connected components (8 neighbours) of a mask bool `[H, W]`."""
    numbered, _ = label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(numbered.ravel())
    return [
        np.array([columns.start, rows.start, columns.stop, rows.stop], dtype=float)
        for number, (rows, columns) in enumerate(find_objects(numbered), start=1)
        if sizes[number] >= SPECK
    ]


def _read(layout: _Layout, root: Path) -> Stills:
    folder = _Folder(root)
    document: dict = {"categories": CATEGORIES, "images": [], "annotations": []}
    for number, case in enumerate(layout.cases(folder)):
        height, width = folder.size(case.file_name)
        image = {"id": number, "file_name": case.file_name, "height": height, "width": width}
        image["annotated"] = case.normal or bool(case.boxes)  # a lesion whose mask is empty is no lesion-free still
        document["images"].append(image if case.patient is None else image | {"patient": case.patient})
        for (x0, y0, x1, y1), category in case.boxes:
            box = [float(x0), float(y0), float(x1 - x0), float(y1 - y0)]
            document["annotations"].append({"image_id": number, "category_id": category, "bbox": box})
    return replace(stills_of(document, root, root), name=layout.name)


def _busbra(folder: _Folder) -> Iterator[_Case]:
    for row in folder.table("bus_data.csv", ("ID", "Case", "Pathology")):
        name = row["ID"]
        category = folder.category(name, row["Pathology"])
        image = f"Images/{name}.png"
        boxes = folder.boxes(f"Masks/{name.replace('bus_', 'mask_', 1)}.png", image)
        yield _Case(file_name=image, patient=f"busbra_{row['Case']}", boxes=[(box, category) for box in boxes])


def _busuclm(folder: _Folder) -> Iterator[_Case]:
    """Yield all but views with Doppler colours, two views side by side, and CHCO, a copy of patient CHVI."""
    columns = ("Image", "Label", "Doppler", "Combined")
    for row in folder.table("INFO.csv", columns, delimiter=";"):
        name, patient = row["Image"], row["Image"][:4]
        if row["Doppler"].lower() == "yes" or row["Combined"].lower() == "yes" or patient == "CHCO":
            continue
        boxes = []
        if row["Label"].lower() != "normal":
            size = folder.size(f"images/{name}")
            mask = folder.mask(f"masks/{name}")
            if mask.shape[:2] != size:
                resized = Image.fromarray(mask.squeeze()).resize(size[::-1], Image.Resampling.NEAREST)
                mask = np.asarray(resized).reshape(*size, -1)
            colours = np.broadcast_to(mask, (*size, 3)) > 127
            for channel, category in ((1, 1), (0, 2)):  # green benign, red malignant
                other = colours[..., 1 - channel]
                boxes += [(box, category) for box in components(colours[..., channel] & ~other)]
            if not boxes:  # a mask without colours: the class is that of the table
                boxes = [(box, folder.category(name, row["Label"])) for box in components(colours.any(axis=2))]
        normal = row["Label"].lower() == "normal"
        yield _Case(file_name=f"images/{name}", patient=f"busuclm_{patient}", boxes=boxes, normal=normal)


def _breast(folder: _Folder) -> Iterator[_Case]:
    """Cases whose further masks are lesions of unstated class are left out."""
    unstated = {22, 36, 85, 140, 151}
    columns = ("CaseID", "Image_filename", "Mask_tumor_filename", "Classification")
    for row in _sheet(folder, _BREAST_TABLE, columns):
        if row["CaseID"].isdigit() and int(row["CaseID"]) in unstated:
            continue
        boxes, image = [], f"{_BREAST_IMAGES}/{row['Image_filename']}"
        if row["Classification"].lower() != "normal":
            category = folder.category(f"case {row['CaseID']}", row["Classification"])
            names = [name.strip() for name in row["Mask_tumor_filename"].split("&")]
            boxes = [(box, category) for name in names for box in folder.boxes(f"{_BREAST_IMAGES}/{name}", image)]
        normal = row["Classification"].lower() == "normal"
        yield _Case(file_name=image, patient=f"breast_{row['CaseID'].zfill(3)}", boxes=boxes, normal=normal)


def _busi(folder: _Folder) -> Iterator[_Case]:
    for kind in ("benign", "malignant", "normal"):
        for path in sorted((folder.root / kind).glob("*.png")):
            if "_mask" in path.stem:
                continue
            boxes = []
            if kind != "normal":
                masks = sorted((folder.root / kind).glob(f"{_literal(path.stem)}_mask*.png"))
                if not masks:
                    raise DataError(f"{path}: no mask {path.stem}_mask.png beside it; download it again")
                found = [box for mask in masks for box in folder.boxes(f"{kind}/{mask.name}", f"{kind}/{path.name}")]
                boxes = [(box, folder.category(path.name, kind)) for box in found]
            yield _Case(file_name=f"{kind}/{path.name}", patient=None, boxes=boxes, normal=kind == "normal")


def _literal(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _sheet(folder: _Folder, name: str, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Yield the rows of the first sheet of a workbook."""
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise DataError(f"{folder.root / name}: reading .xlsx needs openpyxl; pip install 'stnet[stills]'") from error
    path = folder.path(name)
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise DataError(f"{path}: {path.stat().st_size} bytes, of which only {MAX_TABLE_BYTES} are read")
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DataError(f"{path}: not a readable workbook ({error}); download it again") from error
    if unpacked > MAX_UNPACKED_BYTES:
        raise DataError(f"{path}: unpacks to {unpacked} bytes, of which only {MAX_UNPACKED_BYTES} are read")
    try:
        book = load_workbook(path, read_only=True, data_only=True)
        rows = iter(list(book.worksheets[0].iter_rows(values_only=True)))
        book.close()
    except Exception as error:  # openpyxl raises whatever its parsers do on a damaged file
        raise DataError(f"{path}: not a readable workbook ({error}); download it again") from error
    header = [str(cell or "").strip() for cell in next(rows, ())]
    _check_columns(path, header, columns)
    for row in rows:
        values = {key: "" if cell is None else str(cell).strip() for key, cell in zip(header, row, strict=False)}
        if any(values.values()):
            yield {column: values.get(column, "") for column in columns}


def _check_columns(path: Path, found: object, needed: tuple[str, ...]) -> None:
    missing = [column for column in needed if column not in list(found)]
    if missing:
        raise DataError(f"{path}: no column {missing[0]!r}; expected {', '.join(needed)}")


_BREAST_TABLE = "BrEaST-Lesions-USG-clinical-data-Dec-15-2023.xlsx"
_BREAST_IMAGES = "BrEaST-Lesions_USG-images_and_masks"
_BUSBRA = _Layout(name="BUSBRA", folder="BUSBRA", has=("bus_data.csv", "Images", "Masks"), cases=_busbra)
_BUSUCLM = _Layout(name="BUS-UCLM", folder="BUS-UCLM", has=("INFO.csv", "images", "masks"), cases=_busuclm)
_BREAST = _Layout(name="BrEaST", folder=".", has=(_BREAST_TABLE, _BREAST_IMAGES), cases=_breast)
_BUSI = _Layout(
    name="Dataset_BUSI_with_GT",
    folder="Dataset_BUSI_with_GT",
    has=("benign", "malignant", "normal"),
    cases=_busi,
)
