"""The eight cells of the demo set, one function each, as a haematologist would describe them.

Here belongs what tells the classes apart: outline, cytoplasm, granules, nucleus. Sizes and colours were read off real
Wright-Giemsa smears (Acevedo et al., Data in Brief 30 (2020) 105474), by eye and by their means. The classes overlap
where they do in life: bands between immature granulocytes and neutrophils, dense granules between immature
granulocytes and basophils, late erythroblasts and small lymphocytes.
"""

from dataclasses import dataclass

import numpy as np

from bloodcell.data.demo_scene import FRAME, Colour, Scene, blob, coverage

CHROMATIN_DARK = (66, 30, 120)
CHROMATIN_LIGHT = (138, 80, 164)


@dataclass
class Body:
    """A cell's outline on its scene: centre, mean radius, distance to the outline and coverage [S, S]."""

    cx: float
    cy: float
    radius: float
    distance: np.ndarray
    inside: np.ndarray


def _body(scene: Scene, radius: float, *, wobble: float, rough: float = 0.0) -> Body:
    """Places a cell near the centre; `wobble` bends its outline, `rough` (pixels) frays it."""
    cx, cy = FRAME / 2 + scene.rng.normal(0, 2.2, 2)
    distance, _ = blob(scene.x - cx, scene.y - cy, radius, scene.waves(wobble))
    if rough:
        distance = distance + rough * scene.noise(44)
    return Body(float(cx), float(cy), radius, distance, coverage(distance))


def _cytoplasm(scene: Scene, body: Body, colour: Colour, *, mottle: float, rim: float, cells: int = 64) -> None:
    """Fills the cell: `mottle` is the texture's contrast, `rim` how much darker the membrane is."""
    tint = scene.dye(colour)
    shade = 1 + mottle * scene.noise(cells) + 0.6 * mottle * scene.noise(9)
    shade -= rim * np.exp(-np.maximum(body.distance, 0) / 1.6)
    scene.paint(body.inside, tint[:, None, None] * shade[None])


def _granules(scene: Scene, where: np.ndarray, colour: Colour, *, cells: int, level: float, strength: float) -> None:
    """Scatters granules: `cells` sets their size, `level` (standard deviations) how few they are."""
    mask = np.clip((scene.noise(cells) - level) * 1.6, 0, 1)
    scene.paint(mask * where * strength, scene.dye(colour))


def _nucleus(
    scene: Scene,
    body: Body,
    distance: np.ndarray,
    *,
    dark: Colour = CHROMATIN_DARK,
    light: Colour = CHROMATIN_LIGHT,
    texture: float = 0.3,
    cells: int = 84,
    wobble: float = 0.8,
) -> None:
    """Paints a nucleus clipped to its cell: dark chromatin, lighter flecks (`texture`), a dark membrane."""
    if wobble:
        distance = distance + wobble * scene.noise(13)
    distance = np.minimum(distance, body.distance - 0.8)
    fleck = 0.2 + texture * (scene.noise(cells) + 0.45 * scene.noise(26))
    fleck = np.clip(fleck, 0, 1.2) * np.clip(distance / 2.6 - 0.2, 0.0, 1)
    low, high = scene.dye(dark), scene.dye(light)
    scene.paint(coverage(distance), low[:, None, None] + (high - low)[:, None, None] * fleck[None])


def _vacuoles(scene: Scene, body: Body, count: int, colour: Colour = (232, 215, 205)) -> None:
    """Cuts small pale bubbles into the cell."""
    tint = scene.dye(colour)
    for _ in range(count):
        angle, ray = scene.between(0, 2 * np.pi), body.radius * scene.between(0.3, 0.9)
        bubble = scene.disc(body.cx + ray * np.cos(angle), body.cy + ray * np.sin(angle), scene.between(1.0, 2.6))
        scene.paint(coverage(np.minimum(bubble, body.distance - 1)) * scene.between(0.5, 0.95), tint)


def _lobes(scene: Scene, body: Body, count: int, *, lobe: float, bridge: float, arc: float, ray: float) -> np.ndarray:
    """Lobes along an arc, joined by bridges; lengths are fractions of the cell's radius, `arc` is in radians."""
    start = scene.between(0, 2 * np.pi)
    angles = start + np.linspace(0, arc, count) + scene.rng.normal(0, 0.12, count)
    rays = body.radius * ray * scene.rng.uniform(0.75, 1.2, count)
    drift = scene.rng.normal(0, 0.07 * body.radius, 2)
    centres = np.stack([np.cos(angles), np.sin(angles)], 1) * rays[:, None] + (body.cx, body.cy) + drift
    distance = np.full((scene.size, scene.size), -FRAME, np.float32)
    for i, centre in enumerate(centres):
        tangent = angles[i] + np.pi / 2 + scene.rng.normal(0, 0.5)
        half = np.array([np.cos(tangent), np.sin(tangent)]) * body.radius * scene.between(0.04, 0.2)
        width = body.radius * lobe * scene.between(0.82, 1.15)
        distance = np.maximum(distance, scene.capsule(centre - half, centre + half, width))
        if i:
            distance = np.maximum(distance, scene.capsule(centres[i - 1], centre, body.radius * bridge))
    return distance


def _kidney(scene: Scene, body: Body, *, size: float, notch: float) -> np.ndarray:
    """An ellipse with a bite: `size` and the bite's depth `notch` are fractions of the cell's radius."""
    turn = scene.between(0, 2 * np.pi)
    away = np.array([np.cos(turn), np.sin(turn)])
    cx, cy = np.array([body.cx, body.cy]) + away * body.radius * scene.between(0.0, 0.25) * (1 - size / 1.2)
    axes = (body.radius * size * scene.between(0.82, 0.95), body.radius * size * scene.between(0.95, 1.1))
    whole = scene.ellipse(cx, cy, axes, turn)
    bite = body.radius * 0.45
    reach = axes[0] + bite - body.radius * notch
    return np.minimum(whole, -scene.disc(cx - away[0] * reach, cy - away[1] * reach, bite))


def basophil(scene: Scene) -> float:
    """Coarse, dark purple granules over an obscure nucleus."""
    body = _body(scene, scene.rng.normal(30.5, 2.3), wobble=0.06, rough=0.9)
    if scene.chance(0.25):  # burst cells spill pink
        spill = coverage(body.distance + scene.between(3, 9) + 3 * scene.noise(9), 8)
        scene.paint(spill * scene.between(0.2, 0.6), scene.dye((205, 130, 170)))
    _cytoplasm(scene, body, (176, 120, 176), mottle=0.08, rim=0.05)
    nucleus = _lobes(
        scene, body, int(scene.rng.integers(2, 4)), lobe=scene.between(0.4, 0.55), bridge=0.3, arc=2.6, ray=0.33
    )
    _nucleus(scene, body, nucleus, dark=(80, 38, 130), texture=0.25, wobble=1.5)
    dense = scene.between(-0.8, 0.3)
    _granules(scene, body.inside, (66, 28, 118), cells=int(scene.rng.integers(54, 84)), level=dense, strength=0.93)
    _granules(scene, body.inside, (186, 122, 182), cells=80, level=0.9, strength=0.6)
    return body.radius


def eosinophil(scene: Scene) -> float:
    """Two lobes amid many orange-red granules."""
    body = _body(scene, scene.rng.normal(31.5, 2.5), wobble=0.05)
    _cytoplasm(scene, body, (204, 134, 146), mottle=0.07, rim=0.08)
    patch = body.inside * np.clip(0.9 + 0.45 * scene.noise(8), 0, 1)
    _granules(scene, patch, (172, 82, 104), cells=74, level=scene.between(-0.6, 0.4), strength=0.75)
    _granules(scene, patch, (228, 160, 158), cells=80, level=0.8, strength=0.6)
    _vacuoles(scene, body, int(scene.rng.integers(0, 3)))
    count = 2 if scene.chance(0.72) else 3
    arc = scene.between(1.7, 3.1) if count == 2 else scene.between(2.2, 3.6)
    lobe = scene.between(0.34, 0.42) if count == 2 else scene.between(0.27, 0.34)
    nucleus = _lobes(scene, body, count, lobe=lobe, bridge=scene.between(0.06, 0.2), arc=arc, ray=0.5)
    _nucleus(scene, body, nucleus, dark=(60, 28, 116), texture=0.38, wobble=1.0)
    return body.radius


def erythroblast(scene: Scene) -> float:
    """A small round nucleus, nearly black, in grey-blue to pinkish cytoplasm."""
    early = scene.chance(0.3)
    radius = scene.rng.normal(28, 2.5) if early else scene.rng.normal(22, 3)
    body = _body(scene, max(14.0, radius), wobble=0.08, rough=0.4)
    grey_blue, pinkish = np.array([136, 122, 172]), np.array([208, 182, 192])
    ripe = scene.between(0.0, 0.55) if early else scene.between(0.15, 1.0)
    _cytoplasm(scene, body, grey_blue + (pinkish - grey_blue) * ripe, mottle=0.04, rim=0.1)
    size = body.radius * (scene.between(0.66, 0.8) if early else scene.between(0.45, 0.68))
    x, y = np.array([body.cx, body.cy]) + scene.rng.normal(0, 0.09 * body.radius, 2)
    nucleus = scene.ellipse(x, y, (size, size * scene.between(0.88, 1.0)), scene.between(0, np.pi))
    if not early and scene.chance(0.12):  # dividing, or losing its nucleus
        turn = scene.between(0, 2 * np.pi)
        nucleus = np.maximum(nucleus, scene.disc(x + size * np.cos(turn), y + size * np.sin(turn), size * 0.75))
    texture = scene.between(0.25, 0.4) if early else scene.between(0.05, 0.3)
    _nucleus(scene, body, nucleus, dark=(52, 26, 98), light=(150, 104, 166), texture=texture, cells=58, wobble=0.3)
    return body.radius


def immature_granulocyte(scene: Scene) -> float:
    """A large round or indented nucleus, purple granules, bluish-pink cytoplasm."""
    body = _body(scene, scene.rng.normal(33.5, 2.8), wobble=0.05, rough=0.3)
    bluish, pink = np.array([164, 142, 184]), np.array([206, 168, 184])
    _cytoplasm(scene, body, bluish + (pink - bluish) * scene.between(0, 1), mottle=0.06, rim=0.08)
    heavy = scene.chance(0.22)  # promyelocytes: granules over the nucleus too
    stage = scene.between(0, 1)
    if stage < 0.8:
        nucleus = _kidney(
            scene, body, size=scene.between(0.7, 0.9) - 0.1 * stage, notch=scene.between(-0.1, 0.5) * stage
        )
    else:  # a metamyelocyte that is nearly a band
        nucleus = _lobes(
            scene, body, 3, lobe=scene.between(0.32, 0.4), bridge=0.3, arc=scene.between(1.4, 2.4), ray=0.42
        )
    level, strength = scene.between(0.4, 1.4), scene.between(0.25, 0.75)
    if not heavy:
        _granules(scene, body.inside, (126, 66, 148), cells=84, level=level, strength=strength)
    _nucleus(scene, body, nucleus, dark=(68, 28, 118), light=(160, 96, 172), texture=0.46, wobble=1.0)
    if heavy:
        _granules(scene, body.inside, (84, 40, 128), cells=80, level=scene.between(0.0, 0.6), strength=0.8)
    return body.radius


def lymphocyte(scene: Scene) -> float:
    """A dense round nucleus that leaves a thin blue rim."""
    large = scene.chance(0.25)
    body = _body(scene, scene.rng.normal(29, 2) if large else scene.rng.normal(24, 1.6), wobble=0.06, rough=0.7)
    _cytoplasm(scene, body, (122, 112, 172), mottle=0.09, rim=0.16)
    fill = scene.between(0.74, 0.87) if large else scene.between(0.86, 1.0)
    x, y = np.array([body.cx, body.cy]) + scene.rng.normal(0, 0.06 * body.radius, 2)
    nucleus, _ = blob(scene.x - x, scene.y - y, body.radius * fill, scene.waves(0.05, 3))
    _nucleus(scene, body, nucleus, dark=(62, 28, 108), light=(122, 66, 142), texture=0.34, cells=80, wobble=0.8)
    return body.radius


def monocyte(scene: Scene) -> float:
    """A large folded or kidney-shaped nucleus with lacy chromatin in grey-blue cytoplasm with vacuoles."""
    body = _body(scene, scene.rng.normal(38.5, 3), wobble=0.14, rough=0.4)
    _cytoplasm(scene, body, (150, 132, 178), mottle=0.08, rim=0.06)
    _granules(scene, body.inside, (112, 84, 154), cells=84, level=0.5, strength=0.4)
    if scene.chance(0.6):
        nucleus = _kidney(scene, body, size=scene.between(0.7, 0.86), notch=scene.between(0.1, 0.6))
    else:
        nucleus = _lobes(
            scene, body, 3, lobe=scene.between(0.36, 0.45), bridge=0.36, arc=scene.between(1.8, 3.6), ray=0.42
        )
    if scene.chance(0.65):
        _vacuoles(scene, body, int(scene.rng.integers(1, 12)))
    _nucleus(scene, body, nucleus, dark=(78, 36, 122), light=(154, 96, 168), texture=0.44, wobble=1.9)
    if scene.chance(0.3):
        _vacuoles(scene, body, int(scene.rng.integers(1, 4)))
    return body.radius


def neutrophil(scene: Scene) -> float:
    """Three to five lobes on thin bridges, or a band, in pale pink cytoplasm with fine granules."""
    body = _body(scene, scene.rng.normal(32, 2.5), wobble=0.05)
    _cytoplasm(scene, body, (220, 182, 184), mottle=0.045, rim=0.1)
    _granules(
        scene, body.inside, (172, 116, 158), cells=84, level=scene.between(0.7, 1.3), strength=scene.between(0.25, 0.65)
    )
    if scene.chance(0.35):
        shape = dict(lobe=scene.between(0.22, 0.29), bridge=scene.between(0.19, 0.24), arc=scene.between(2.8, 4.6))
        nucleus = _lobes(scene, body, 4, ray=0.52, **shape)
    else:
        count = int(scene.rng.integers(3, 6))
        lobe = scene.between(0.28, 0.33) - 0.025 * (count - 3)
        arc = scene.between(0.95, 1.35) * (count - 1)
        nucleus = _lobes(scene, body, count, lobe=lobe, bridge=scene.between(0.05, 0.13), arc=arc, ray=0.5)
    _nucleus(scene, body, nucleus, dark=(60, 22, 116), light=(150, 100, 172), texture=0.3, cells=66, wobble=1.1)
    return body.radius


def platelet(scene: Scene) -> float:
    """A tiny granular purple body without a nucleus; sometimes a clump or a giant."""
    radius = scene.between(15, 21) if scene.chance(0.12) else scene.rng.normal(12.2, 1.8)
    body = _body(scene, max(7.5, radius), wobble=0.06, rough=0.6)
    _cytoplasm(scene, body, (178, 138, 178), mottle=0.09, rim=0.08)
    middle = np.clip(body.distance / (0.6 * body.radius) + scene.between(0.2, 0.7), 0, 1) * body.inside
    _granules(scene, middle, (96, 44, 138), cells=88, level=scene.between(-1.1, 0.1), strength=0.85)
    return body.radius


def loose_platelet(scene: Scene, cx: float, cy: float) -> None:
    """A small platelet beside the cell that the image is about."""
    distance = scene.disc(cx, cy, scene.between(2.5, 6.0)) + 0.8 * scene.noise(44)
    tint = scene.dye((136, 88, 160))
    shade = 1 + 0.25 * scene.noise(66)
    scene.paint(coverage(distance) * 0.9, tint[:, None, None] * shade[None])


PAINTERS = (
    basophil,
    eosinophil,
    erythroblast,
    immature_granulocyte,
    lymphocyte,
    monocyte,
    neutrophil,
    platelet,
)
