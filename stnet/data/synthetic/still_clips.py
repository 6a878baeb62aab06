"""Training clips from stills, drawn on the fly: motion, other machines, and nothing around a lesion to rely on.

A clip of a held still (every frame the same) becomes a moving one. The order is that of the real thing: the tissue
(pasted lesions), what was burned into the still (marks, painted and painted over), the machine (texture), the probe
(views, shadows), the display (brightness, range, grain), and the screen around it. A clip that moves by itself keeps
its motion and is looked at through a view that does not.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from stnet.choices import DEFENCE_GROUPS
from stnet.data.augment import BrightnessJitter, SpeckleNoise
from stnet.data.clips.transforms import FrameStack, flip, resized_size
from stnet.data.index import DatasetIndex
from stnet.data.synthetic.machines import DynamicRange, Shadow, Texture
from stnet.data.synthetic.marks import imagined_lesion, paint_marks, paint_over
from stnet.data.synthetic.pasting import Donors, PasteLesions
from stnet.data.synthetic.screens import cut_sector, draw_layout, place_on_screen
from stnet.data.synthetic.views import Motion, draw_path, draw_view, render_views

MOST_ENLARGED = 1.6
"""A view has at most so many pixels per pixel of the still along its short side: more would only be blurred."""

LEAST_LESION = 6.0
"""Shorter side in pixels from which on a lesion of a training clip can be expected to be found."""


@dataclass(frozen=True, kw_only=True)
class Defences:
    """How often, as a share of the clips, and how strongly each defence acts; 0 switches one off.

    Attributes:
        painted_over: thin bright strokes (calipers, text) are replaced by their surroundings.
        false_marks: calipers, text, arrows, rulers, body marks where no lesion is.
        true_marks: calipers about the outline of a lesion, not on it.
        pasted_lesions: a lesion of another still is pasted in, often a small one.
        decoys: a piece without a lesion is pasted in, as lesions are.
        lesion_free: the view is looked for where no lesion is.
        shadows: a shadow falls where no lesion is.
        textures: grain of another machine.
        screens: margins, pillar boxes or an interface surround the scan.
        sectors: the scan is cut to the sector of a curved or steered probe.
        dynamic_range: see `DynamicRange.cut`.
        brightness: of gain, gamma, contrast and depth gain, see `BrightnessJitter`.
        speckle: see `SpeckleNoise`.
    """

    painted_over: float = 0.4
    false_marks: float = 0.35
    true_marks: float = 0.12
    pasted_lesions: float = 0.25
    decoys: float = 0.2
    lesion_free: float = 0.15
    shadows: float = 0.15
    textures: float = 0.35
    screens: float = 0.3
    sectors: float = 0.12
    dynamic_range: float = 0.16
    brightness: float = 0.35
    speckle: float = 0.15

    def without(self, *names: str) -> "Defences":
        """Return these defences with some switched off.

        Raises:
            ValueError: for a name that is none of `DEFENCES`.
        """
        unknown = sorted(set(names) - set(DEFENCES))
        if unknown:
            raise ValueError(f"defence {unknown[0]!r} is none of {', '.join(DEFENCES)}")
        return replace(self, **{setting: 0.0 for name in names for setting in DEFENCES[name]})


_SETTINGS = (
    ("painted_over", "false_marks", "true_marks"),
    ("pasted_lesions", "decoys"),
    ("lesion_free", "shadows"),
    ("textures", "dynamic_range", "brightness", "speckle"),
    ("screens", "sectors"),
)
DEFENCES = dict(zip(DEFENCE_GROUPS, _SETTINGS, strict=True))
"""Groups of defences that are compared with one another, by name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StillClips:
    """Turn the frames of a held still into a training clip; a transform for `ClipDataset`.

    Attributes:
        size: short side of a clip at test time; training draws it from 0.8 to 1.15 of that.
        longest: longest side of a clip.
        defences: what is added.
        donors: lesions to paste, or None.
        motion: how the view moves.
    """

    size: int
    longest: int
    defences: Defences = field(default_factory=Defences)
    donors: Donors | None = None
    motion: Motion = field(default_factory=Motion)

    def __call__(self, stack: FrameStack, rng: np.random.Generator) -> FrameStack:
        """Draw one clip."""
        count = len(stack.frames)
        held = bool((stack.frames == stack.frames[:1]).all())
        if held:
            stack = self._still(_first_frame(stack), rng)
        if rng.random() < 0.5:
            stack = flip(stack)
        motion = replace(self.motion, lesion_free=self.defences.lesion_free)
        boxes = np.concatenate(stack.boxes)
        view = draw_view(rng, boxes, stack.height, stack.width, motion)
        path = draw_path(rng, view, boxes, count, motion if held else replace(motion, constant=1.0))
        short = round(min(self.size * rng.uniform(0.8, 1.15), MOST_ENLARGED * min(view.height, view.width)))
        height, width = (min(side, self.longest) for side in resized_size(view.height, view.width, short, self.longest))
        layout = draw_layout(rng, height, width) if rng.random() < self.defences.screens else None
        if layout is not None and not _visible(boxes, view.height / layout.rows, view.width / layout.columns):
            layout = None
        rows, columns = (layout.rows, layout.columns) if layout else (height, width)
        stack = self._display(render_views(stack, path, rows, columns), rng)
        if rng.random() < self.defences.sectors:
            stack = cut_sector(stack, rng)
        return place_on_screen(stack, layout, rng) if layout else stack

    def _still(self, still: FrameStack, rng: np.random.Generator) -> FrameStack:
        """Return the tissue, what was burned in, and the machine, on the only frame of a still."""
        defences = self.defences
        pixels = still.frames[0]
        if rng.random() < defences.painted_over:
            pixels = paint_over(pixels, rng)
        still = FrameStack(frames=pixels[None], boxes=still.boxes, labels=still.labels)
        if self.donors is not None:
            paste = PasteLesions(donors=self.donors, probability=defences.pasted_lesions, decoys=defences.decoys)
            still = paste(still, rng)
        places = []
        if rng.random() < defences.false_marks:
            places += [imagined_lesion(rng, still.height, still.width) for _ in range(int(rng.integers(3)))]
            places = places or [None]  # text and arrows alone
        if len(still.boxes[0]) and rng.random() < defences.true_marks:
            places.append(still.boxes[0][rng.integers(len(still.boxes[0]))])
        if places:
            marked = paint_marks(still.frames[0], rng, [place for place in places if place is not None])
            still = FrameStack(frames=marked[None], boxes=still.boxes, labels=still.labels)
        return Texture(probability=defences.textures)(still, rng)

    def _display(self, stack: FrameStack, rng: np.random.Generator) -> FrameStack:
        defences, strength = self.defences, self.defences.brightness
        stack = Shadow(probability=defences.shadows)(stack, rng)
        stack = BrightnessJitter(gain=strength, gamma=strength, contrast=strength, depth=strength)(stack, rng)
        stack = DynamicRange(cut=defences.dynamic_range, sway=0.1 * strength)(stack, rng)
        return SpeckleNoise(amplitude=defences.speckle)(stack, rng)


def still_training_transform(
    size: int, longest: int, *, index: DatasetIndex | None = None, defences: Defences | None = None
) -> StillClips:
    """Return the transform that trains on stills, and on videos beside them.

    Args:
        size: short side at test time in pixels.
        longest: longest side in pixels.
        index: whose lesions are pasted into other stills; None: none are.
        defences: what is added (default: all of it).
    """
    donors = Donors(index) if index is not None else None
    return StillClips(size=size, longest=longest, defences=defences or Defences(), donors=donors)


def _first_frame(stack: FrameStack) -> FrameStack:
    return FrameStack(frames=stack.frames[:1], boxes=stack.boxes[:1], labels=stack.labels[:1])


def _visible(boxes: np.ndarray, down: float, across: float) -> bool:
    """Return whether all lesions keep `LEAST_LESION` pixels when the still is shrunk by these factors."""
    size = (boxes[:, 2:] - boxes[:, :2]) / (across, down)
    return bool((size >= LEAST_LESION).all())
