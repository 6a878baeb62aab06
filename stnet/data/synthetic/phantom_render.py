"""How a phantom breast looks on a scanner: speckle, attenuation, depth gain, log compression, motion.

Scatterers are complex Gaussian amplitudes fixed in the tissue. A frame gathers those in the thickness of its
beam, weights them with the echogenicity, blurs them with a point spread function that widens with depth, and
takes the envelope: fully developed speckle, which moves with the tissue and decorrelates as the plane moves
on.
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft
from scipy.ndimage import gaussian_filter1d

from stnet.data.synthetic.phantom_anatomy import MIN_CONTRAST_DB, MIN_SECTION_MM, Breast

SLICE_MM = 0.35  # distance of the scatterer slices along the sweep
MARGIN_MM = 2.5  # rendered around the image, so that no blur wraps around its edges


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """Settings that differ from one examination to the next.

    Widths in millimetres are standard deviations: of the pulse, of the beam at the focus and how much it
    widens per millimetre from there, and of the beam's thickness along the sweep.
    """

    depth_mm: float
    pulse_mm: float
    beam_mm: float
    spread: float
    focus_mm: float
    thickness_mm: float
    looks: int
    dynamic_range_db: float
    gain_db: float
    depth_gain_db: float
    noise_db: float
    persistence: float


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where the image plane lies in the tissue at one frame, and how far the probe presses (share of depth)."""

    x_mm: float
    y_mm: float
    turn: float
    tilt: float
    press: float


def draw_scanner(rng: np.random.Generator) -> Scanner:
    """Return a scanner with the settings of some examiner."""
    depth_mm = rng.uniform(34, 42)
    return Scanner(
        depth_mm=depth_mm,
        pulse_mm=rng.uniform(0.16, 0.26),
        beam_mm=rng.uniform(0.28, 0.42),
        spread=rng.uniform(0.006, 0.012),
        focus_mm=depth_mm * rng.uniform(0.35, 0.6),
        thickness_mm=rng.uniform(0.7, 1.0),
        looks=int(rng.integers(2, 5)),
        dynamic_range_db=rng.uniform(50, 62),
        gain_db=rng.uniform(-3, 3),
        depth_gain_db=rng.uniform(-6, 1),
        noise_db=rng.uniform(-54, -46),
        persistence=rng.uniform(0, 0.3),
    )


class Scatterers:
    """White complex Gaussian noise on slices of the tissue, made when the plane comes near and then dropped."""

    def __init__(self, seed: tuple[int, ...], height: int, width: int):
        self._seed = seed
        self._shape = (height, width)
        self._slices: dict[int, np.ndarray] = {}

    def beam(self, y_mm: float, thickness_mm: float) -> np.ndarray:
        """Return the scatterers in a beam at `y_mm`, complex64 [H, W] of unit power."""
        reach = 2.5 * thickness_mm / SLICE_MM
        position = y_mm / SLICE_MM
        near = range(int(np.ceil(position - reach)), int(np.floor(position + reach)) + 1)
        for index in [index for index in self._slices if index not in near]:
            del self._slices[index]
        weights = np.exp(-0.5 * ((np.array(near) - position) * SLICE_MM / thickness_mm) ** 2)
        weights = (weights / np.sqrt((weights**2).sum())).astype(np.float32)
        return sum(weight * self._slice(index) for weight, index in zip(weights, near, strict=True))

    def _slice(self, index: int) -> np.ndarray:
        if index not in self._slices:
            # Slice indices may be negative; seeds may not.
            rng = np.random.default_rng((*self._seed, index + 2**31))
            pair = rng.standard_normal((*self._shape, 2), dtype=np.float32) * np.float32(np.sqrt(0.5))
            self._slices[index] = pair.view(np.complex64)[..., 0]
        return self._slices[index]


class Renderer:
    """Renders image planes of one breast on one scanner at one image size."""

    def __init__(self, breast: Breast, scanner: Scanner, height: int, width: int, seed: tuple[int, ...]):
        self.breast, self.scanner = breast, scanner
        self.height, self.width = height, width
        self.pixel_mm = scanner.depth_mm / height
        self.margin = int(np.ceil(MARGIN_MM / self.pixel_mm))
        rows = np.arange(height + self.margin) + 0.5
        columns = np.arange(-self.margin, width + self.margin) + 0.5 - width / 2
        self._z, self._x = np.meshgrid(rows * self.pixel_mm, columns * self.pixel_mm, indexing="ij")
        self._spread = self._lateral_filter()
        self._pulse = self._axial_filter()
        self._slice_shape = (len(rows) + self.margin, len(columns) + self.margin)
        self._scatterers = [Scatterers((*seed, look), *self._slice_shape) for look in range(scanner.looks)]
        self._noise = np.random.default_rng((*seed, 99))
        self._previous: np.ndarray | None = None

    def render(self, pose: Pose) -> tuple[np.ndarray, list[np.ndarray | None]]:
        """Return a frame uint8 [H, W] and, per lesion, its box x0 y0 x1 y1 in pixels, None where it is not visible."""
        x, y, z = self._tissue_coordinates(pose)
        tissue = self.breast.tissue(x, y, z)
        loss = np.cumsum(tissue.attenuation, axis=0) * self.pixel_mm
        loss = gaussian_filter1d(loss, 0.5 / self.pixel_mm, axis=1)
        echo_db = np.minimum(tissue.echo_db, 14) - np.clip(loss, -9, 40)
        amplitude = (10 ** (echo_db / 20)).astype(np.float32)
        field = (amplitude * (1 - tissue.coherent)).astype(np.complex64)
        mirror = (0.6 * amplitude * tissue.coherent).astype(np.complex64)
        neighbours = self._neighbours(x, z)
        envelope = np.zeros(amplitude.shape, dtype=np.float32)
        for scatterers in self._scatterers:
            noise = _gather(scatterers.beam(pose.y_mm, self.scanner.thickness_mm), neighbours)
            envelope += self._envelope(field * noise + mirror)
        envelope /= len(self._scatterers)
        frame = self._display(envelope)
        boxes = [self._box(rank, echo_db) for rank in tissue.ranks]
        return frame, boxes

    def _tissue_coordinates(self, pose: Pose) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        z = self._z * (1 + pose.press)
        x = self._x * np.cos(pose.turn) + pose.x_mm
        y = pose.y_mm + self._x * np.sin(pose.turn) + pose.tilt * z
        return x, y, z

    def _neighbours(self, x: np.ndarray, z: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """For bilinear interpolation at tissue coordinates: flat indices into a slice, weights of unit power."""
        rows, columns = z / self.pixel_mm, x / self.pixel_mm
        top, left = np.floor(rows).astype(np.intp), np.floor(columns).astype(np.intp)
        fy, fx = (rows - top).astype(np.float32), (columns - left).astype(np.float32)
        height, width = self._slice_shape
        power = np.sqrt(((1 - fy) ** 2 + fy**2) * ((1 - fx) ** 2 + fx**2))
        return [
            ((top + dy) % height * width + (left + dx) % width, wy * wx / power)
            for dy, wy in ((0, 1 - fy), (1, fy))
            for dx, wx in ((0, 1 - fx), (1, fx))
        ]

    def _envelope(self, field: np.ndarray) -> np.ndarray:
        """Blur the scatterers with the point spread function and take the magnitude."""
        field = fft.ifft(fft.fft(field, axis=1) * self._spread, axis=1)
        return np.abs(fft.ifft(fft.fft(field, axis=0) * self._pulse, axis=0))

    def _lateral_filter(self) -> np.ndarray:
        """Transfer function of the beam in each row, [H', W'], of unit noise power."""
        depth = self._z[:, :1]
        sigma = self.scanner.beam_mm + self.scanner.spread * np.abs(depth - self.scanner.focus_mm)
        sigma = np.maximum(sigma / self.pixel_mm, 0.6)
        frequency = np.fft.fftfreq(self._x.shape[1])[None]
        transfer = np.exp(-2 * (np.pi * frequency * sigma) ** 2)
        return (transfer / np.sqrt((transfer**2).mean(axis=1, keepdims=True))).astype(np.float32)

    def _axial_filter(self) -> np.ndarray:
        sigma = max(self.scanner.pulse_mm / self.pixel_mm, 0.5)
        transfer = np.exp(-2 * (np.pi * np.fft.fftfreq(self._z.shape[0])[:, None] * sigma) ** 2)
        return (transfer / np.sqrt((transfer**2).mean())).astype(np.float32)

    def _display(self, envelope: np.ndarray) -> np.ndarray:
        """Add the receiver's noise, apply gain, compress to 8 bits and let the last frame linger."""
        scanner = self.scanner
        view = envelope[: self.height, self.margin : self.margin + self.width]
        noise = self._noise.rayleigh(10 ** (scanner.noise_db / 20), view.shape)
        depth = self._z[: self.height, :1] / scanner.depth_mm
        gain = scanner.gain_db + scanner.depth_gain_db * depth
        level = 20 * np.log10(view + noise * (1 + 2 * depth) + 1e-6) + gain
        gray = np.clip((level + scanner.dynamic_range_db - 14) / scanner.dynamic_range_db, 0, 1)
        if self._previous is not None:
            gray = (1 - scanner.persistence) * gray + scanner.persistence * self._previous
        self._previous = gray
        return (255 * gray + 0.5).astype(np.uint8)

    def _box(self, rank: np.ndarray, echo_db: np.ndarray) -> np.ndarray | None:
        """Return the box of a section when it is large and dark enough to be seen."""
        view = (slice(0, self.height), slice(self.margin, self.margin + self.width))
        inside = rank[view] < 1
        if not inside.any():
            return None
        rows, columns = np.nonzero(inside.any(axis=1))[0], np.nonzero(inside.any(axis=0))[0]
        box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float32)
        if (box[2:] - box[:2]).min() * self.pixel_mm < MIN_SECTION_MM:
            return None
        around = (rank[view] > 1.15) & (rank[view] < 1.6)
        if not around.any() or echo_db[view][around].mean() - echo_db[view][inside].mean() < MIN_CONTRAST_DB:
            return None
        return box


def _gather(noise: np.ndarray, neighbours: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    flat = noise.ravel()
    return sum(weight * flat[index] for index, weight in neighbours)
