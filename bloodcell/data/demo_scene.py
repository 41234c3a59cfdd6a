"""The canvas of the demo set: coordinates, smooth noise, outlines, brushes, and the microscope's optics.

Here belongs what every stained image shares. The cells themselves are in `demo_cells`, the data set in `demo`.

Lengths are in pixels of a 96-pixel frame, whatever the size rendered, so one recipe serves every size. Colours are
written as they look on the reference slide and pass through `Scene.dye`, which gives each image its own slide: another
background and another strength of stain per channel (optical densities scale, after Beer and Lambert).
"""

import functools
from collections.abc import Sequence

import numpy as np

FRAME = 96.0
REFERENCE_BACKGROUND = np.array([250.0, 224.0, 196.0], np.float32)
# Optical density of one red cell on the reference slide: its salmon is this, times the cell's thickness.
RED_CELL_DENSITY = np.array([0.20, 0.27, 0.155], np.float32)

Colour = Sequence[float]


@functools.lru_cache(maxsize=8)
def _axis(size: int) -> np.ndarray:
    """Pixel centres of one axis in frame units, float32 [size]."""
    return ((np.arange(size) + 0.5) * (FRAME / size)).astype(np.float32)


@functools.lru_cache(maxsize=64)
def _spline(size: int, cells: int) -> np.ndarray:
    """Cubic B-spline weights float32 [size, cells + 3], scaled so that a surface of normal knots has unit variance."""
    position = _axis(size)[:, None] * (cells / FRAME)
    distance = np.abs(position - (np.arange(cells + 3)[None, :] - 1.0))
    weights = np.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, np.maximum(2 - distance, 0) ** 3 / 6)
    return (weights / np.sqrt(np.mean(np.sum(weights**2, axis=1)))).astype(np.float32)


def coverage(distance: np.ndarray, edge: float = 1.4) -> np.ndarray:
    """How much of each pixel lies inside (0..1), from the distance to the outline (inside is positive)."""
    return np.clip(distance * (1.0 / edge) + 0.5, 0.0, 1.0)


def blob(x: np.ndarray, y: np.ndarray, radius: float, waves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An irregular disc about the origin whose outline is a low-frequency Fourier series.

    Args:
        x: Coordinates, broadcastable with `y`.
        y: Coordinates.
        radius: Mean radius.
        waves: Cosine and sine amplitudes [K, 2] of the frequencies 2..K+1, as fractions of the radius.

    Returns:
        The distance to the outline along the ray from the origin, positive inside, and the position on that ray
        (0 at the origin, 1 on the outline).
    """
    rho = np.sqrt(x * x + y * y) + 1e-3
    cosine, sine = x / rho, y / rho
    ck, sk = cosine, sine
    outline = np.ones_like(rho)
    for a, b in waves:
        ck, sk = ck * cosine - sk * sine, sk * cosine + ck * sine
        outline += a * ck + b * sk
    outline *= radius
    return outline - rho, rho / outline


def blur(planes: np.ndarray, sigma: float) -> np.ndarray:
    """Separable Gaussian blur of [C, S, S] planes with repeated borders; `sigma` in pixels of the planes."""
    if sigma < 0.2:  # the kernel would be a single one
        return planes
    reach = max(1, int(np.ceil(2.5 * sigma)))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for axis in (1, 2):
        pad = [(0, 0), (0, 0), (0, 0)]
        pad[axis] = (reach, reach)
        padded, length = np.pad(planes, pad, mode="edge"), planes.shape[axis]
        taps = [padded[:, i : i + length] if axis == 1 else padded[:, :, i : i + length] for i in range(kernel.size)]
        planes = taps[reach] * kernel[reach]
        for i in range(reach):
            planes += kernel[i] * (taps[i] + taps[-1 - i])
    return planes


class Scene:
    """One image in the making: float32 planes [3, S, S] in grey levels, painted from back to front."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        """Draws a slide and lays its background."""
        self.rng = rng
        self.size = size
        self.x = _axis(size)[None, :]
        self.y = _axis(size)[:, None]
        # A few slides were photographed under bluish light and a little out of focus, as in the real set.
        self.cool = rng.random() < 0.05
        base = np.array([229.0, 223.0, 229.0]) if self.cool else REFERENCE_BACKGROUND
        self.background = (base * (1 + rng.normal(0, 0.012)) + rng.normal(0, 1.8, 3)).clip(150, 253).astype(np.float32)
        gain = rng.normal(1.0, 0.09) * (1 + rng.normal(0, 0.035, 3))
        self.stain = np.clip(gain * (0.85 if self.cool else 1.0), 0.65, 1.3).astype(np.float32)
        slope, turn = rng.uniform(0, 0.035), rng.uniform(0, 2 * np.pi)
        light = slope * (np.cos(turn) * (self.x - FRAME / 2) + np.sin(turn) * (self.y - FRAME / 2)) / FRAME
        light = 1 + light + 0.006 * self.noise(4)
        self.planes = self.background[:, None, None] * light[None]

    def between(self, low: float, high: float) -> float:
        """A uniform draw."""
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return bool(self.rng.random() < probability)

    def dye(self, colour: Colour, spread: float = 4.0) -> np.ndarray:
        """A reference colour as this slide shows it, float32 [3]; `spread` is the variation between cells."""
        drawn = np.clip(np.asarray(colour) + self.rng.normal(0, spread) + self.rng.normal(0, spread / 2, 3), 8, 250)
        return (self.background * (drawn / REFERENCE_BACKGROUND) ** self.stain).astype(np.float32)

    def noise(self, cells: int) -> np.ndarray:
        """Smooth noise [S, S] of about unit variance; `cells` is how many knots span the frame."""
        weights = _spline(self.size, cells)
        knots = self.rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
        return weights @ knots @ weights.T

    def waves(self, amplitude: float, frequencies: int = 5) -> np.ndarray:
        """Random Fourier amplitudes for `blob` that fall with frequency."""
        return self.rng.normal(0, 1, (frequencies, 2)) * (amplitude / np.arange(1.0, frequencies + 1.0) ** 1.5)[:, None]

    def paint(self, mask: np.ndarray, colour: np.ndarray) -> None:
        """Lays an opaque colour ([3], or planes [3, S, S]) over the canvas where `mask` [S, S] is 1."""
        target = colour if colour.ndim == 3 else colour[:, None, None]
        self.planes += mask[None] * (target - self.planes)

    def red_cell(self, cx: float, cy: float, radius: float, *, pallor: float, depth: float) -> None:
        """A biconcave red cell, absorbing light: where two overlap, the slide gets darker."""
        reach = radius * 1.35
        across = slice(*np.searchsorted(self.x[0], (cx - reach, cx + reach)))
        down = slice(*np.searchsorted(self.y[:, 0], (cy - reach, cy + reach)))
        x, y = self.x[:, across] - cx, self.y[down] - cy
        if not x.size or not y.size:
            return
        distance, ray = blob(x, y, radius, self.waves(0.065, 4))
        thickness = 0.95 + 0.32 * np.exp(-(((ray - 0.84) / 0.18) ** 2)) - pallor * np.exp(-((ray / 0.55) ** 4))
        thickness *= coverage(distance, 1.8) * depth
        density = RED_CELL_DENSITY * self.stain * (1 + self.rng.normal(0, 0.06, 3))
        self.planes[:, down, across] *= np.exp(-density[:, None, None].astype(np.float32) * thickness)

    def disc(self, cx: float, cy: float, radius: float) -> np.ndarray:
        """Distance [S, S] to a circle, positive inside."""
        return radius - np.sqrt((self.x - cx) ** 2 + (self.y - cy) ** 2)

    def capsule(self, a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
        """Distance [S, S] to all points within `radius` of the segment from `a` to `b` ([x, y]), positive inside."""
        along = b - a
        px, py = self.x - a[0], self.y - a[1]
        t = np.clip((px * along[0] + py * along[1]) / max(float(along @ along), 1e-6), 0, 1)
        return radius - np.sqrt((px - t * along[0]) ** 2 + (py - t * along[1]) ** 2)

    def ellipse(self, cx: float, cy: float, axes: tuple[float, float], turn: float) -> np.ndarray:
        """Approximate distance [S, S] to an ellipse with the given half-axes, positive inside."""
        x, y = self.x - cx, self.y - cy
        u = (np.cos(turn) * x + np.sin(turn) * y) / axes[0]
        v = (np.cos(turn) * y - np.sin(turn) * x) / axes[1]
        return (1 - np.sqrt(u * u + v * v)) * min(axes)

    def photograph(self) -> np.ndarray:
        """Defocus, sensor noise and quantisation: uint8 [S, S, 3]."""
        sigma = self.between(0.9, 1.3) if self.cool else abs(self.rng.normal(0.25, 0.25))
        planes = blur(self.planes, sigma * self.size / FRAME)
        planes = planes + self.rng.standard_normal(planes.shape, dtype=np.float32) * self.between(0.6, 2.0)
        return np.ascontiguousarray(np.rint(planes).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
