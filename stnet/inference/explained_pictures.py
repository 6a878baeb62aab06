"""`explained/`: a picture for each explained lesion: where the model looked for it, frame by frame."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from stnet.console import printable
from stnet.files import PARTIAL
from stnet.inference.clip_reader import VideoEnd
from stnet.inference.draw import colour, dashed_rectangle, letters
from stnet.inference.explanation import Explanation, LookedAt
from stnet.inference.frame_results import FrameResult, class_name
from stnet.inference.sink import RunFacts, Sink, VideoFacts

OWN, OTHER = (255, 209, 102), (94, 201, 255)
"""Colours of points in the frame of the detection, and in the other frames."""

TILE, LARGEST_TILE = 320, 480
"""Longer side of a frame in the picture, in pixels; the larger one where there are few."""

COLUMNS = 6
"""Frames side by side; all of them may be as large as fits into the width that these take."""

LEAST_WIDTH = 820
"""Pixels that the longest line above the frames takes."""

LARGEST_POINT, SMALLEST_POINT = 7.5, 1.3
"""Radii in pixels of the point with the most weight, and of those with hardly any."""

MARGIN, TITLE, CAPTION = 12, 20, 15
"""Pixels between frames, and heights of letters."""

GROUND, TEXT, QUIET = (14, 17, 22), (232, 237, 243), (154, 167, 181)

BANDS = (
    ("decoder", "Decoder: where the query of this detection sampled (last layer)", 160),
    ("encoder", "Encoder: where the positions under the box sampled (last layer)", 80),
)
"""What is shown, its title, and the least opacity of a point in 255ths: those of the encoder are many and overlap."""


class ExplainedPictures(Sink):
    """Writes `lesion-1.png` and so on into a folder that appears whole; it holds none where nothing was explained."""

    file_name = "explained"

    def __init__(self, run: RunFacts) -> None:
        self._names = run.class_names
        self._video: VideoFacts | None = None
        self._explained: Sequence[Explanation] = ()

    def begin(self, video: VideoFacts) -> None:
        """Start a video."""
        self._video, self._explained = video, ()
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir()

    def write(self, result: FrameResult) -> None:
        """Do nothing: lesions are explained at the end."""

    def explained(self, found: Sequence[Explanation]) -> None:
        """Take in the explanations."""
        self._explained = found

    def end(self, end: VideoEnd) -> None:
        """Write the folder."""
        for one in self._explained:
            name = printable(class_name(self._names, one.label))
            draw_explanation(one, name).save(self._partial / f"lesion-{one.lesion}.png")
        self._partial.replace(self._video.folder / self.file_name)
        self._video = None

    def abandon(self, error: BaseException) -> None:
        """Leave what there is of the folder."""
        self._video = None

    @property
    def _partial(self) -> Path:
        return self._video.folder / f"{self.file_name}{PARTIAL}"


def draw_explanation(explanation: Explanation, class_name: str) -> Image.Image:
    """Return a picture of the frames of the clip with the points in them: those of the decoder, then of the encoder.

    The area of a point tells its weight; the colour, whether it lies in the frame of the detection or in another one.
    """
    frames = explanation.frames
    height, width = frames[0].image.shape[:2]
    columns = min(COLUMNS, len(frames))
    scale = min(LARGEST_TILE, COLUMNS * TILE // columns) / max(height, width)
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    rows = -(-len(frames) // columns)
    tile_height = high + CAPTION + MARGIN + 6
    band_height = TITLE + MARGIN + rows * tile_height
    head = TITLE + 3 * MARGIN
    size = (max(columns * (wide + MARGIN) + MARGIN, LEAST_WIDTH), head + len(BANDS) * band_height + MARGIN)
    sheet = Image.new("RGB", size, GROUND)
    pen = ImageDraw.Draw(sheet)
    title = f"Lesion {explanation.lesion}: {class_name} {explanation.score:.2f}"
    pen.text((MARGIN, MARGIN), title, fill=TEXT, font=letters(TITLE))
    place = f"frame {explanation.frame}, {explanation.time:.2f} s"
    pen.text((MARGIN + 16 + pen.textlength(title, letters(TITLE)), MARGIN + 3), place, QUIET, letters(CAPTION + 1))
    for band, (part, text, opacity) in enumerate(BANDS):
        top = head + band * band_height
        samples = [getattr(frame, part) for frame in frames]
        most = max(points[:, 2].max(initial=0.0) for points in samples)
        outside = 1 - sum(points[:, 2].sum() for points in samples)
        missed = f"; {outside:.0%} of the weight lies outside of the frames" if outside >= 0.005 else ""
        pen.text((MARGIN, top), text + missed, fill=QUIET, font=letters(CAPTION + 1))
        for number, (frame, points) in enumerate(zip(frames, samples, strict=True)):
            x = MARGIN + number % columns * (wide + MARGIN)
            y = top + TITLE + 8 + number // columns * tile_height
            tile = _with_points(frame, points, (wide, high), scale, most, opacity)
            sheet.paste(_with_box(tile, frame, scale, colour(explanation.label)), (x, y))
            share = f"{points[:, 2].sum():.0%}"
            # Short videos repeat frames in a clip.
            name = "own frame" if frame.own else "again frame" if frame.frame == explanation.frame else "frame"
            told = f"{name} {frame.frame}: {share}"
            pen.text((x, y + high + 3), told, fill=OWN if frame.own else OTHER, font=letters(CAPTION))
    return sheet


def _with_points(
    frame: LookedAt, points: np.ndarray, size: tuple[int, int], scale: float, most: float, opacity: int
) -> Image.Image:
    """Return a frame with points; `most` is the weight of the heaviest one of the clip."""
    tile = Image.fromarray(frame.image).resize(size, Image.Resampling.BICUBIC).convert("RGBA")
    # Twice as large, for edges without steps.
    cover = Image.new("RGBA", (2 * size[0], 2 * size[1]), (*(OWN if frame.own else OTHER), 0))
    pen = ImageDraw.Draw(cover)
    for x, y, weight in sorted(points.tolist(), key=lambda point: point[2]):
        radius = 2 * max(SMALLEST_POINT, LARGEST_POINT * (weight / most) ** 0.5)
        x, y = x * scale * 2, y * scale * 2
        fill = (*(OWN if frame.own else OTHER), opacity + round((190 - opacity) * weight / most))
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    tile.alpha_composite(cover.resize(size, Image.Resampling.BOX))
    return tile.convert("RGB")


def _with_box(tile: Image.Image, frame: LookedAt, scale: float, edge: tuple[int, int, int]) -> Image.Image:
    """Return a frame with the box of the lesion: dashed in other frames than that of the detection."""
    if frame.box is None:
        return tile
    x0, y0, x1, y1 = (round(value * scale) for value in frame.box)
    pen = ImageDraw.Draw(tile)
    if frame.own:
        pen.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=edge, width=2)
    else:
        dashed_rectangle(pen, (x0, y0, max(x0, x1), max(y0, y1)), edge, 1)
    return tile
