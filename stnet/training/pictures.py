"""Training batches and validation predictions as pictures, to see at a glance that boxes sit on lesions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from stnet.data.clips.dataset import ClipBatch
from stnet.data.clips.transforms import IMAGENET_MEAN, IMAGENET_STD
from stnet.data.frames import FrameReader
from stnet.data.index import Video
from stnet.evaluation.coco import ScoredFrame

# Okabe-Ito colours, told apart by colour-blind readers; category id 1 takes the first.
COLOURS = ((86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0))
TRUTH = (255, 255, 255)
SMALLEST_SIDE = 160  # smaller frames are enlarged, so that text stays readable
LARGEST_SIDE = 320
FRAMES_PER_VIDEO = 6
GAP = 4
CAPTION = 14


def draw_batch(batch: ClipBatch, class_names: Sequence[str], path: Path) -> None:
    """One row per clip, one column per frame; targets carry their boxes, the rest of the clip is dimmed."""
    rows = []
    for clip, images in enumerate(batch.images):
        pixels = images.permute(0, 2, 3, 1).cpu().numpy() * np.float32(IMAGENET_STD) + np.float32(IMAGENET_MEAN)
        pixels = np.nan_to_num(pixels * 255).clip(0, 255).astype(np.uint8)  # a batch that stops the run is shown too
        size = (~batch.padding_mask[clip]).cpu()
        height, width = int(size.any(1).sum()), int(size.any(0).sum())
        row = []
        for position, image in enumerate(pixels):
            target = position < len(batch.boxes[clip])
            panel = _Panel(image if target else image // 2)
            panel.caption(f"{batch.videos[clip]} #{batch.frames[clip][position]}")
            if target and not batch.annotated[clip][position]:
                panel.caption("not annotated", line=1)
            elif target:
                for box, label in zip(
                    batch.boxes[clip][position].tolist(), batch.labels[clip][position].tolist(), strict=True
                ):
                    cx, cy, w, h = box
                    corners = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
                    panel.box(corners, _colour(label), class_names[label - 1])
            row.append(panel.image)
        rows.append(row)
    _grid(rows).save(path)


def draw_predictions(
    video: Video, scored: Sequence[ScoredFrame], class_names: Sequence[str], threshold: float, path: Path
) -> None:
    """Frames spread over a video: known boxes in white, predictions scored at least `threshold` in colour."""
    by_id = {frame.image_id: frame for frame in video.frames}
    chosen = [scored[int(i)] for i in np.linspace(0, len(scored) - 1, min(FRAMES_PER_VIDEO, len(scored)))]
    reader = FrameReader(0)
    panels = []
    for result in chosen:
        frame = by_id[result.image_id]
        panel = _Panel(reader.read(frame))
        panel.caption(f"{video.name} #{frame.frame_id}")
        for box, label in zip(result.true_boxes, result.true_labels, strict=True):
            panel.box(box, TRUTH, class_names[label - 1], below=True)
        for box, score, label in zip(result.boxes, result.scores, result.labels, strict=True):
            if score >= threshold and label > 0:
                panel.box(box, _colour(label), f"{class_names[label - 1]} {score:.2f}")
        panels.append(panel.image)
    _grid([panels[:3], panels[3:]] if len(panels) > 3 else [panels]).save(path)


class _Panel:
    """One frame, scaled to a readable size, with boxes given in pixels of the frame."""

    def __init__(self, pixels: np.ndarray):
        height, width = pixels.shape[:2]
        self.scale = 1.0
        if min(height, width) < SMALLEST_SIDE:
            self.scale = SMALLEST_SIDE / min(height, width)
        elif max(height, width) > LARGEST_SIDE:
            self.scale = LARGEST_SIDE / max(height, width)
        size = (round(width * self.scale), round(height * self.scale))
        self.image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
        self.pen = ImageDraw.Draw(self.image)

    def caption(self, text: str, line: int = 0) -> None:
        self.pen.text((2, 1 + line * CAPTION), text, fill=TRUTH, stroke_width=1, stroke_fill=(0, 0, 0))

    def box(self, corners: Sequence[float], colour: tuple[int, int, int], text: str, below: bool = False) -> None:
        x0, y0, x1, y1 = (float(value) * self.scale for value in corners)
        x0, x1 = (min(max(x, 0), self.image.width - 1) for x in (x0, x1))
        y0, y1 = (min(max(y, 0), self.image.height - 1) for y in (y0, y1))
        if x1 < x0 or y1 < y0:
            return
        self.pen.rectangle((x0, y0, x1, y1), outline=colour)
        at = (x0, min(y1 + 1, self.image.height - CAPTION) if below else max(y0 - CAPTION, 0))
        self.pen.text(at, text, fill=colour, stroke_width=1, stroke_fill=(0, 0, 0))


def _colour(label: int) -> tuple[int, int, int]:
    return COLOURS[(int(label) - 1) % len(COLOURS)]


def _grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    width = max(image.width for row in rows for image in row) + GAP
    height = max(image.height for row in rows for image in row) + GAP
    sheet = Image.new("RGB", (width * max(map(len, rows)) - GAP, height * len(rows) - GAP))
    for top, row in enumerate(rows):
        for left, image in enumerate(row):
            sheet.paste(image, (left * width, top * height))
    return sheet
