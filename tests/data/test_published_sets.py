"""Public sets as their authors publish them, on made files: boxes, classes, patients, what is left out or wrong."""

import numpy as np
import pytest
from PIL import Image

from stnet.data.index import load_index
from stnet.data.still_sets import published
from stnet.data.still_sets.published import components, published_reader
from stnet.data.still_sets.repeats import leave_out_repeats
from stnet.data.still_sets.splits import check_apart, split_by_patient
from stnet.data.stills import read_sets
from stnet.data.stills_command import main
from stnet.errors import DataError


def picture(path, *, seed: int = 0, size=(60, 80), mode: str = "L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def mask(path, *boxes, size=(60, 80), mode: str = "L", colour=255):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new(mode, size[::-1])
    for x0, y0, x1, y1 in boxes:
        image.paste(colour, (x0, y0, x1, y1))
    image.save(path)


def facts(stills) -> dict:
    """By stem: boxes, labels, patient, whether it is annotated."""
    return {
        video.frames[0].path.stem: (
            video.frames[0].boxes.tolist(),
            video.frames[0].labels.tolist(),
            stills.patients.get(video.name),
            video.frames[0].annotated,
        )
        for video in stills.index.videos
    }


@pytest.fixture
def busbra(tmp_path):
    root = tmp_path / "BUSBRA"
    for number, name in enumerate(("bus_0001-l", "bus_0001-r", "bus_0002-s")):
        picture(root / "Images" / f"{name}.png", seed=number)
        mask(root / "Masks" / f"{name.replace('bus', 'mask')}.png", (10, 20, 30 + number, 40), (70, 5, 73, 8))
    (root / "bus_data.csv").write_text(
        "ID,Case,Histology,Pathology,BIRADS,Device,Width,Height,Side,BBOX\n"
        'bus_0001-l,1,Fibroadenoma,benign,4,GE,80,60,l,"[10,20,20,20]"\n'
        'bus_0001-r,1,Fibroadenoma,benign,4,GE,80,60,r,"[10,20,21,20]"\n'
        'bus_0002-s,2,Carcinoma,malignant,5,GE,80,60,s,"[10,20,22,20]"\n'
    )
    return root


@pytest.fixture
def busuclm(tmp_path):
    root = tmp_path / "BUS-UCLM"
    rows = ["\ufeffImage;Resolution;Label;Doppler;Marks;Combined"]
    for number, (name, label, doppler, combined) in enumerate(
        (
            ("ALWI_000", "Normal", "No", "No"),
            ("ALWI_001", "Malignant", "No", "No"),
            ("HESN_000", "Benign", "No", "No"),
            ("HESN_001", "Benign", "Yes", "No"),
            ("HESN_002", "Benign", "No", "Yes"),
            ("CHCO_000", "Benign", "No", "No"),
        )
    ):
        picture(root / "images" / f"{name}.png", seed=number, mode="RGB")
        mask(root / "masks" / f"{name}.png", mode="RGB", colour=(0, 0, 0))
        rows.append(f"{name}.png;80x60;{label};{doppler};No;{combined}")
    mask(root / "masks" / "ALWI_001.png", (8, 8, 20, 20), mode="RGB", colour=(255, 0, 0))
    mask(root / "masks" / "HESN_000.png", (10, 10, 20, 20), size=(30, 40), mode="RGB", colour=(0, 255, 0))
    (root / "INFO.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


@pytest.fixture
def breast(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    root = tmp_path / "breast_set"
    images = root / "BrEaST-Lesions_USG-images_and_masks"
    book = openpyxl.Workbook()
    book.active.append(
        ["CaseID", "Image_filename", "Mask_tumor_filename", "Mask_other_filename", "Classification", "BIRADS"]
    )
    for case, kind, masks in ((1, "benign", 1), (2, "malignant", 2), (3, "normal", 0), (22, "benign", 1)):
        picture(images / f"case{case:03d}.png", seed=case, mode="RGBA")
        names = [f"case{case:03d}_tumor{number or ''}.png" for number in range(masks)]
        for number, name in enumerate(names):
            mask(images / name, (5 + 40 * number, 5, 25 + 40 * number, 25), mode="RGBA", colour=(255, 255, 255, 255))
        book.active.append([case, f"case{case:03d}.png", "&".join(names) or None, None, kind, "4a"])
    book.save(root / "BrEaST-Lesions-USG-clinical-data-Dec-15-2023.xlsx")
    return root


@pytest.fixture
def busi(tmp_path):
    root = tmp_path / "Dataset_BUSI_with_GT"
    for number, name in enumerate(("benign (1)", "benign (2)", "malignant (1)", "normal (1)", "normal (2)")):
        kind = name.split()[0]
        picture(root / kind / f"{name}.png", seed=number, mode="RGB")
        if kind != "normal":
            mask(root / kind / f"{name}_mask.png", (10, 20, 30, 40), mode="1", colour=1)
    mask(root / "benign" / "benign (1)_mask_1.png", (50, 20, 70, 40))
    mask(root / "normal" / "normal (1)_mask.png")
    return root


def test_busbra(busbra):
    found = facts(published_reader(busbra)())
    assert found == {
        "bus_0001-l": ([[10, 20, 30, 40]], [1], "busbra_1", True),
        "bus_0001-r": ([[10, 20, 31, 40]], [1], "busbra_1", True),
        "bus_0002-s": ([[10, 20, 32, 40]], [2], "busbra_2", True),
    }
    assert facts(published_reader(busbra.parent)()) == found


def test_busuclm_leaves_out_doppler_combined_and_the_copied_patient(busuclm):
    assert facts(published_reader(busuclm)()) == {
        "ALWI_000": ([], [], "busuclm_ALWI", True),
        "ALWI_001": ([[8, 8, 20, 20]], [2], "busuclm_ALWI", True),
        "HESN_000": ([[20, 20, 40, 40]], [1], "busuclm_HESN", True),
    }


def test_breast_joins_masks_and_leaves_out_unstated_lesions(breast):
    assert facts(published_reader(breast)()) == {
        "case001": ([[5, 5, 25, 25]], [1], "breast_001", True),
        "case002": ([[5, 5, 25, 25], [45, 5, 65, 25]], [2, 2], "breast_002", True),
        "case003": ([], [], "breast_003", True),
    }


def test_busi_has_no_patients(busi):
    assert facts(published_reader(busi)()) == {
        "benign (1)": ([[10, 20, 30, 40], [50, 20, 70, 40]], [1, 1], None, True),
        "benign (2)": ([[10, 20, 30, 40]], [1], None, True),
        "malignant (1)": ([[10, 20, 30, 40]], [2], None, True),
        "normal (1)": ([], [], None, True),
        "normal (2)": ([], [], None, True),
    }


def test_a_lesion_without_a_mask_is_no_lesion_free_still(busbra):
    mask(busbra / "Masks" / "mask_0001-l.png", (3, 3, 6, 6))
    assert facts(published_reader(busbra)())["bus_0001-l"] == ([], [], "busbra_1", False)


def test_components_are_joined_over_corners_and_specks_ignored():
    drawn = np.zeros((40, 50), dtype=bool)
    drawn[5:10, 5:10] = drawn[10:20, 10:20] = True
    drawn[30:34, 30:36] = True
    assert [box.tolist() for box in components(drawn)] == [[5, 5, 20, 20]]
    assert components(np.zeros((4, 4), dtype=bool)) == []


def test_splits_keep_patients_and_near_duplicates_together(busbra, busi):
    stills = published_reader(busbra)()
    for seed in range(6):
        train, val = split_by_patient(stills, 0.5, seed)
        assert len(train) + len(val) == 3
        assert not set(train.patients.values()) & set(val.patients.values())
    assert len({len(split_by_patient(stills, 0.5, seed)[1]) for seed in range(12)}) > 1
    pixels = np.array(Image.open(busi / "benign" / "benign (1).png"))
    smooth = np.array(Image.fromarray(pixels).resize((8, 6)).resize((80, 60)))
    for kind, name in (("benign", "benign (1)"), ("normal", "normal (2)")):
        Image.fromarray(smooth).save(busi / kind / f"{name}.png")
    stills = published_reader(busi)()
    for seed in range(10):
        sides = [facts(side) for side in split_by_patient(stills, 0.5, seed)]
        assert any({"benign (1)", "normal (2)"} <= set(side) for side in sides)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda text: text.replace("Pathology", "Class", 1), "bus_data.csv: no column 'Pathology'"),
        (lambda text: text.replace("malignant", "unknown"), "bus_0002-s: class 'unknown' is none of benign, malignant"),
        (lambda text: text.replace("bus_0002-s", "../bus"), "is no name of a file in this folder"),
        (lambda text: text.replace("bus_0002-s", "bus_0009"), "mask_0009.png: no such file"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(busbra, change, message):
    table = busbra / "bus_data.csv"
    table.write_text(change(table.read_text()))
    with pytest.raises(DataError, match=message):
        published_reader(busbra)()


def test_damaged_files_are_named(busbra, busi, tmp_path):
    (busbra / "Masks" / "mask_0001-l.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"mask_0001-l\.png: cannot be decoded"):
        published_reader(busbra)()
    (busi / "benign" / "benign (2)_mask.png").unlink()
    (busbra / "bus_data.csv").write_bytes(b"ID,Case,Pathology\n\xff\xfe,1,benign\n")
    with pytest.raises(DataError, match=r"bus_data\.csv: not a table"):
        published_reader(busbra)()
    with pytest.raises(DataError, match=r"benign \(2\).png: no mask"):
        published_reader(busi)()
    with pytest.raises(DataError, match=r"neither train\.json nor val\.json"):
        read_sets([tmp_path / "nothing"], 0.2, 0)


def test_a_broken_workbook_is_named(breast):
    (breast / "BrEaST-Lesions-USG-clinical-data-Dec-15-2023.xlsx").write_bytes(b"PK\x03\x04 no")
    with pytest.raises(DataError, match="not a readable workbook"):
        published_reader(breast)()


def test_a_workbook_that_unpacks_to_much_is_not_unpacked(breast, monkeypatch):
    monkeypatch.setattr(published, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(DataError, match=r"unpacks to .* bytes, of which only 1000 are read"):
        published_reader(breast)()


def test_the_command_takes_published_sets_and_leaves_out_repeats(busbra, busi, tmp_path, capsys):
    out = tmp_path / "out"
    options = [str(out), "--held", "--longest", "64", "--sets", str(busbra), str(busi), "--val-share", "0"]
    assert main(options) == 0
    said = capsys.readouterr().out
    assert "Dataset_BUSI_with_GT: normal_001 left out: it repeats benign_269" in said and "7 train videos" in said
    index = load_index(out, "train")
    assert [len(video.frames) for video in index.videos] == [1] * 7
    assert not (out / "val.json").exists()
    assert main([*options, "--overwrite", "--val-share", "2"]) == 2
    assert "--val-share 2.0" in capsys.readouterr().err


def test_a_set_is_known_by_what_it_holds_whatever_its_folder_is_called(busi, tmp_path, capsys):
    (train, _) = split_by_patient(published_reader(busi)(), 0.5, 0)
    renamed = busi.rename(tmp_path / "BUSI")
    stills = published_reader(renamed)()
    assert facts(split_by_patient(stills, 0.5, 0)[0]) == facts(train)
    kept, lines = leave_out_repeats(stills)
    assert len(kept) == 4 and lines == [
        "Dataset_BUSI_with_GT: normal_001 left out: it repeats benign_269, which has a lesion"
    ]
    (renamed / "val.json").write_text("{}")
    with pytest.raises(DataError, match="BUSI: holds annotation files beside a public set as published"):
        read_sets([renamed], 0.2, 0)


def test_masks_of_another_size_than_their_image_are_refused(busbra, busi):
    for root, name in ((busbra, "Masks/mask_0001-l.png"), (busi, "benign/benign (1)_mask.png")):
        mask(root / name, (10, 20, 30, 30), size=(30, 40))
        with pytest.raises(DataError, match=r"_?mask.*\.png: a mask of 40 x 30, the image .* is 80 x 60"):
            published_reader(root)()


def test_a_set_given_twice_is_refused(busbra):
    splits = read_sets([busbra, busbra.parent / "BUSBRA"], 0.2, 0)
    with pytest.raises(DataError, match="BUSBRA: given twice"):
        check_apart(splits)
