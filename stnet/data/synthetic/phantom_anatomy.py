"""The breast that a phantom video scans: tissue layers, ligaments, lesions and what may be mistaken for one.

Everything is a function of tissue coordinates in millimetres: x along the probe, y along the sweep (out of
the image), z into depth. Echogenicity is in decibels relative to glandular tissue, attenuation in decibels
per millimetre in excess of what the scanner's depth gain makes up for.
"""

from dataclasses import dataclass, field

import numpy as np

from stnet.data.synthetic.smooth import SmoothField

# A section of a lesion counts as visible, and gets a box, from this extent in both directions of the image
# ...
MIN_SECTION_MM = 4.0
# ... and contrast between its inside and its surroundings on.
MIN_CONTRAST_DB = 5.0

FAT_DB = -15.0
MUSCLE_DB = -9.0
CHEST_DB = -22.0
# Brightness and thickness of the lines below skin, fat, gland, retromammary fat and muscle.
INTERFACE_DB = (9.0, 5.0, 6.0, 11.0, 13.0)
INTERFACE_MM = (0.35, 0.3, 0.35, 0.45, 0.5)


@dataclass(frozen=True, kw_only=True, eq=False)
class Lesion:
    """An ellipsoid with a rough surface.

    `roughness` is the relative amplitude of the surface, `lumps` its spatial frequency; `margin_mm` how
    blurred the edge is; `rim_db` the brightness of a thin capsule (benign) or of a thick halo (malignant,
    `rim_mm`).
    """

    label: str
    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    inside_db: float
    texture_db: float
    attenuation: float
    roughness: float
    lumps: float
    margin_mm: float
    rim_db: float
    rim_mm: float
    spicules: float
    edge_shadow: float
    surface: SmoothField = field(repr=False)

    def window(self, x: np.ndarray, z: np.ndarray) -> tuple[slice, slice]:
        """Return the part of an image plane that the lesion, its rim and its spicules can reach."""
        reach_x, reach_z = (1.2 * radius + 5 for radius in (self.radii[0], self.radii[2]))
        near = (np.abs(x - self.centre[0]) < reach_x) & (np.abs(z - self.centre[2]) < reach_z)
        rows, columns = np.nonzero(near.any(axis=1))[0], np.nonzero(near.any(axis=0))[0]
        if not len(rows):
            return slice(0, 0), slice(0, 0)
        return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)

    def section(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cut the lesion with a plane of points `[H, W]`.

        Returns:
            Rank (distance from the centre, 1 at the surface), strength of the spicules, and lateral component of the
            direction from the centre, each `[H, W]`.
        """
        dx, dy, dz = ((c - m) / r for c, m, r in zip((x, y, z), self.centre, self.radii, strict=True))
        distance = np.sqrt(dx**2 + dy**2 + dz**2) + 1e-6
        direction = [component / distance for component in (dx, dy, dz)]
        bumps = self.surface(*(self.lumps * component for component in direction))
        radius = 1 + self.roughness * np.clip(bumps, -2, 2)
        spikes = np.zeros_like(radius)
        if self.spicules:
            # The same field elsewhere and finer: unrelated to the bumps.
            fine = self.surface(*(2.6 * self.lumps * component + 7 for component in direction))
            spikes = self.spicules * np.clip(fine - 0.6, 0, 1.2)
        return distance / radius, spikes, direction[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Tissue:
    """An image plane: echogenicity, share of coherent reflection (0 to 1), attenuation, each [H, W].

    `ranks` holds a map [H, W] per lesion, below 1 inside it.
    """

    echo_db: np.ndarray
    coherent: np.ndarray
    attenuation: np.ndarray
    ranks: tuple[np.ndarray, ...]


class Breast:
    """Layers, ligaments, confusers and lesions; `tissue` cuts an image plane out of it."""

    def __init__(self, rng: np.random.Generator, depth_mm: float, lesions: tuple[Lesion, ...]):
        self.lesions = lesions
        self._boundary_fields = [SmoothField(rng, (length, 18, 1)) for length in (22, 7, 10, 16, 30)]
        skin, fat = rng.uniform(1.3, 2.2), depth_mm * rng.uniform(0.14, 0.30)
        gland = fat + depth_mm * rng.uniform(0.32, 0.42)
        muscle = gland + rng.uniform(1.5, 4.0)
        chest = muscle + rng.uniform(6.0, 9.0)
        self._boundaries = list(zip((skin, fat, gland, muscle, chest), (0.12, 2.2, 1.8, 1.0, 1.0), strict=True))
        self._lobules = SmoothField(rng, (5.5, 6, 3.4))
        self._texture = SmoothField(rng, (2.6, 4, 1.6))
        self._patches = SmoothField(rng, (8, 9, 4))
        self._fibres = SmoothField(rng, (9, 9, 1.1))
        self._confusers = tuple(draw_confuser(rng, fat, gland) for _ in range(rng.integers(1, 4)))
        self._shadow_field = SmoothField(rng, (3, 5, 1))
        self._shadow_strength = rng.choice((0.0, 2.0, 4.0))
        self._rib_spacing = rng.uniform(18, 26)
        self._rib_phase = rng.uniform(0, 2 * np.pi)

    def tissue(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Tissue:
        """Return the tissue at the points of an image plane, coordinates [H, W] in millimetres."""
        skin, fat, gland, muscle, chest = self._layer_depths(x, y)
        in_fat, in_gland, in_retro, in_muscle, in_chest = _layer_shares(z, (skin, fat, gland, muscle, chest))
        stride = max(1, round(0.6 / abs(z[1, 0] - z[0, 0])))
        texture, patches, fibres, lobules = (
            smooth.sample(x, y, z, stride) for smooth in (self._texture, self._patches, self._fibres, self._lobules)
        )

        # Ligaments: the sheets on which the lobule field vanishes, brightest in fat.
        sheets = np.exp(-((lobules / 0.16) ** 2))
        echo = (
            in_fat * (FAT_DB + 1.0 * texture + 11 * sheets)
            + in_gland * (2.0 * texture + 2.5 * patches + 2.5 * np.clip(fibres, -2, 1) + 3 * sheets)
            + in_retro * (FAT_DB + 1 + 1.0 * texture + 5 * sheets)
            + in_muscle * (MUSCLE_DB + 7 * np.clip(fibres - 0.4, 0, 1.2) + 1.0 * texture)
            + in_chest * (CHEST_DB + 2 * texture)
        )
        coherent = 0.5 * sheets * in_fat + 0.4 * in_muscle * (fibres > 0.9)
        echo, coherent = _add_interfaces(echo, coherent, x, z, (skin, fat, gland, muscle, chest))
        attenuation = self._shadows(x, y, z, fat) + self._ribs(x, y, z, chest)
        for confuser in self._confusers:
            _embed(confuser, echo, coherent, attenuation, texture, x, y, z)
        ranks = tuple(_embed(lesion, echo, coherent, attenuation, texture, x, y, z) for lesion in self.lesions)
        return Tissue(echo_db=echo, coherent=coherent, attenuation=attenuation, ranks=ranks)

    def _layer_depths(self, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
        """Depth [1, W] of each boundary, in order; the lean of a column is ignored."""
        row_x, row_y = x[:1], y[:1]
        depths: list[np.ndarray] = []
        for smooth, (depth, amplitude) in zip(self._boundary_fields, self._boundaries, strict=True):
            here = depth + amplitude * smooth(row_x, row_y, np.zeros_like(row_x))
            depths.append(np.maximum(here, depths[-1] + 0.4) if depths else here)
        return depths

    def _shadows(self, x: np.ndarray, y: np.ndarray, z: np.ndarray, fat: np.ndarray) -> np.ndarray:
        """Shadows below steep ligaments: columns that start at the bottom of the fat."""
        if not self._shadow_strength:
            return np.zeros_like(z)
        column = np.clip(self._shadow_field(x[:1], y[:1], np.zeros_like(x[:1])) - 1.1, 0, 1)
        return self._shadow_strength * column * np.exp(-(((z - fat) / 1.5) ** 2))

    def _ribs(self, x: np.ndarray, y: np.ndarray, z: np.ndarray, chest: np.ndarray) -> np.ndarray:
        rib = np.cos(2 * np.pi * (x + 0.4 * y) / self._rib_spacing + self._rib_phase) > 0.5
        return np.where(rib & (z > chest), 2.5, 0.4 * (z > chest))


def _layer_shares(z: np.ndarray, depths: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    """How much of each point belongs to fat (with skin above it), gland, retromammary fat, muscle, chest."""
    below = [np.clip((z - depth) / 0.6 + 0.5, 0, 1) for depth in depths]
    shares = [1 - below[1], below[1] - below[2], below[2] - below[3], below[3] - below[4], below[4]]
    return [np.clip(share, 0, 1) for share in shares]


def _add_interfaces(
    echo: np.ndarray, coherent: np.ndarray, x: np.ndarray, z: np.ndarray, depths: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Add bright lines at the skin and the fasciae, strongest where they face the probe."""
    for depth, height, width in zip(depths, INTERFACE_DB, INTERFACE_MM, strict=True):
        slope = np.gradient(depth[0], x[0])
        line = np.exp(-(((z - depth) / width) ** 2)) * np.exp(-((slope / 0.5) ** 2))
        echo = echo + height * line
        coherent = np.maximum(coherent, 0.7 * line)
    return echo, coherent


def _embed(
    lesion: Lesion,
    echo: np.ndarray,
    coherent: np.ndarray,
    attenuation: np.ndarray,
    texture: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
) -> np.ndarray:
    """Put a lesion into the tissue maps, which it changes; return its rank map `[H, W]`."""
    ranks = np.full(x.shape, np.inf)
    part = lesion.window(x, z)
    strength = _section_strength(lesion, y[part])
    if not strength.any():
        return ranks
    rank, spikes, lateral = lesion.section(x[part], y[part], z[part])
    ranks[part] = np.where(strength > 0, rank, np.inf)
    outside_mm = (rank - 1) * min(lesion.radii[0], lesion.radii[2])
    inside = strength * np.clip(0.5 - outside_mm / lesion.margin_mm, 0, 1)
    beyond = np.maximum(outside_mm, 0)
    rim = strength * np.exp(-((beyond / lesion.rim_mm) ** 2)) * (1 - inside)
    spike = strength * np.clip(spikes * np.exp(-beyond / 1.8), 0, 1) * (outside_mm > 0)
    # Rims reflect most where they face the probe.
    echo[part] += lesion.rim_db * rim * (0.35 + 0.65 * (1 - lateral**2))
    for share, level in ((spike, lesion.inside_db + 4), (inside, lesion.inside_db)):
        echo[part] = echo[part] * (1 - share) + level * share
    echo[part] += lesion.texture_db * texture[part] * inside
    coherent[part] *= 1 - np.maximum(inside, spike)
    edge = np.exp(-(((rank - 1) / 0.07) ** 2)) * lateral**6
    attenuation[part] += lesion.attenuation * inside + lesion.edge_shadow * strength * edge
    return ranks


def _section_strength(lesion: Lesion, y: np.ndarray) -> np.ndarray:
    """Fade a lesion out where its section is too small for a box: the beam averages over its thickness."""
    across = np.abs(y - lesion.centre[1]) / lesion.radii[1]
    share = np.sqrt(np.clip(1 - across**2, 0, 1))
    diameter = 2 * share * min(lesion.radii[0], lesion.radii[2])
    return np.clip(diameter / MIN_SECTION_MM - 0.35, 0, 0.65) / 0.65


def draw_lesion(rng: np.random.Generator, label: str, centre: tuple[float, float, float]) -> Lesion:
    """Return a benign (fibroadenoma-like, one in four a cyst) or a malignant lesion."""
    if label == "malignant":
        rx = rng.uniform(3.4, 5.4)
        return Lesion(
            label=label,
            centre=centre,
            radii=(rx, rng.uniform(4.0, 7.0), rx * rng.uniform(1.1, 1.5)),
            inside_db=rng.uniform(-26, -20),
            texture_db=rng.uniform(1.5, 3.0),
            attenuation=rng.uniform(1.0, 2.0),
            roughness=rng.uniform(0.07, 0.12),
            lumps=rng.uniform(2.2, 3.2),
            margin_mm=rng.uniform(0.5, 1.0),
            rim_db=rng.uniform(5, 9),
            rim_mm=rng.uniform(1.2, 2.0),
            spicules=rng.uniform(0.6, 1.2),
            edge_shadow=0.0,
            surface=SmoothField(rng, (1, 1, 1)),
        )
    cyst = rng.random() < 0.25
    rz = rng.uniform(2.8, 4.6)
    return Lesion(
        label=label,
        centre=centre,
        radii=(rz * rng.uniform(1.4, 2.0), rng.uniform(4.0, 7.0), rz),
        inside_db=rng.uniform(-45, -36) if cyst else rng.uniform(-21, -16),
        texture_db=rng.uniform(0.5, 1.2),
        attenuation=rng.uniform(-1.1, -0.8) if cyst else rng.uniform(-0.8, -0.35),
        roughness=rng.uniform(0.015, 0.04),
        lumps=rng.uniform(0.8, 1.4),
        margin_mm=rng.uniform(0.2, 0.35),
        rim_db=rng.uniform(4, 8),
        rim_mm=rng.uniform(0.4, 0.6),
        spicules=0.0,
        edge_shadow=1.2,
        surface=SmoothField(rng, (1, 1, 1)),
    )


def draw_confuser(rng: np.random.Generator, fat: float, gland: float) -> Lesion:
    """Something dark that is no lesion: an island of fat in the gland, or a cyst too small to be marked."""
    centre = (rng.uniform(-24, 24), rng.uniform(-12, 12), rng.uniform(fat + 2, gland - 2))
    tiny = rng.random() < 0.4
    radius = rng.uniform(0.7, 1.1) if tiny else rng.uniform(1.6, 2.6)
    return Lesion(
        label="",
        centre=centre,
        radii=(radius * rng.uniform(1.0, 2.2), rng.uniform(2, 5), radius),
        inside_db=-30.0 if tiny else FAT_DB + rng.uniform(4, 7),
        texture_db=1.0,
        attenuation=0.0,
        roughness=0.05,
        lumps=1.2,
        margin_mm=0.5,
        rim_db=3.0,
        rim_mm=0.4,
        spicules=0.0,
        edge_shadow=0.0,
        surface=SmoothField(rng, (1, 1, 1)),
    )
