"""Small videos, annotations of them in COCO and CVAT, and what a conversion makes of both."""

import json

import av
import numpy as np
from PIL import Image

from stnet.data.convert import convert
from stnet.data.index import load_index

HEIGHT, WIDTH = 48, 64
CATEGORIES = [{"id": 1, "name": "benign"}, {"id": 2, "name": "malignant"}]


def frame_folder(folder, count: int, first: int = 0):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        Image.fromarray(np.full((HEIGHT, WIDTH), 5 * number % 256, np.uint8)).save(folder / f"{number:06d}.png")
    return folder


def video_file(path, count: int = 10):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "gray"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH), number, np.uint8), format="gray")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def coco(file, names, size=(WIDTH, HEIGHT), image=None, entry=None, **document):
    """One box [5 i + 1, 1, 10, 10] on the image i; `image` and `entry` are more keys for each of both."""
    images = [{"id": i, "file_name": n, "width": size[0], "height": size[1]} for i, n in enumerate(names)]
    images = [item | (image(i) if image else {}) for i, item in enumerate(images)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [5 * i + 1, 1, 10, 10]} for i in range(len(names))]
    boxes = [box | (entry or {}) for box in boxes]
    file.write_text(json.dumps({"images": images, "annotations": boxes, "categories": CATEGORIES} | document))
    return file


def box(frame, x, extra=""):
    return f'<box frame="{frame}" outside="0" keyframe="1" xtl="{x}" ytl="5" xbr="{x + 10}" ybr="15" {extra}/>'


def cvat(file, body, meta=""):
    meta = f"<meta><task>{meta}</task></meta>" if meta else ""
    file.write_text(f"<annotations><version>1.1</version>{meta}{body}</annotations>")
    return file


OUTSIDE = box(3, 1).replace('outside="0"', 'outside="1"')


def track(*boxes):
    return f'<track id="0" label="benign">{"".join(boxes)}</track>'


def table(tmp_path, source, annotations, **options):
    """Per frame: the boxes, "-" for a negative, "u" for a frame that is not annotated; and the remarks."""
    out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
    done = convert(source, annotations, out, split="train", **options)
    states = [
        [f.boxes.round(2).tolist() if len(f.boxes) else "-" if f.annotated else "u" for f in video.frames]
        for video in load_index(out, "train").videos
    ]
    return (states[0] if len(states) == 1 else states), "\n".join(done.remarks)


def squares(*numbers):
    return [[[5 * n + 1, 1, 5 * n + 11, 11]] for n in numbers]
