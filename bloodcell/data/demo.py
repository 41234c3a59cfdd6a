"""The demo set: rendered blood cells, so that everything runs at once, anywhere, offline.

Here belong the public call and how an image is put together; `demo_scene` holds the canvas and the optics,
`demo_cells` the eight cells. Nothing of TensorFlow: rendering must not wait for it.

An image is a pure function of (seed, part, index, size): asking for more images never changes the first ones. The
pictures have the classes, class frequencies and look of BloodMNIST's training set, but no diagnostic worth.
"""

from collections.abc import Callable

import numpy as np
import threadpoolctl

from bloodcell.data.demo_cells import PAINTERS, loose_platelet
from bloodcell.data.demo_scene import FRAME, Scene
from bloodcell.errors import InputError, did_you_mean

CLASS_NAMES: tuple[str, ...] = tuple(painter.__name__ for painter in PAINTERS)
PART_SIZES: dict[str, int] = {"train": 1024, "val": 256, "test": 256}
# How often each class occurs in BloodMNIST's training set.
_FREQUENCIES = np.array([852, 2181, 1085, 2026, 849, 993, 2330, 1643])
# Typical cell radius per class (frame pixels): red cells are laid first and keep about this far away.
_CLEARANCE = (30, 31, 22, 33, 25, 36, 32, 12)
_GOLDEN = (np.sqrt(5.0) - 1) / 2
_SMALLEST, _LARGEST = 16, 1024


def _generator(seed: int, part: str, *what: int) -> np.random.Generator:
    """The random stream of one image (or, without an index, of one part)."""
    return np.random.default_rng([seed % 2**64, tuple(PART_SIZES).index(part), *what])


def _labels(count: int, seed: int, part: str) -> np.ndarray:
    """Labels int64 [count] in the real proportions, in every prefix: a golden-ratio sequence read through the CDF."""
    offset = _generator(seed, part).random()
    position = (offset + np.arange(count) * _GOLDEN) % 1.0
    edges = np.cumsum(_FREQUENCIES)[:-1] / _FREQUENCIES.sum()
    return np.searchsorted(edges, position, side="right").astype(np.int64)


def _red_cells(scene: Scene, clearance: float) -> None:
    """Strews red cells around the centre, at the density and ripeness of this field of view."""
    pallor, depth = scene.between(0.1, 0.85), scene.between(0.85, 1.25)
    radius = scene.rng.normal(17, 1.3)
    placed: list[tuple[float, float]] = []
    for _ in range(int(scene.rng.integers(8, 30))):
        cx, cy = scene.rng.uniform(-12, FRAME + 12, 2)
        apart = min((np.hypot(cx - px, cy - py) for px, py in placed), default=FRAME)
        beside = np.hypot(cx - FRAME / 2, cy - FRAME / 2) > clearance + 0.8 * radius
        # Red cells touch and sometimes overlap, but they do not pile up.
        if beside and apart > radius * scene.between(1.1, 2.1):
            placed.append((cx, cy))
            own = float(np.clip(pallor + scene.rng.normal(0, 0.12), 0, 0.85))
            scene.red_cell(cx, cy, radius * scene.between(0.88, 1.12), pallor=own, depth=depth)


def _image(label: int, rng: np.random.Generator, size: int) -> np.ndarray:
    """One photograph uint8 [size, size, 3], painted from the background to the lens."""
    scene = Scene(rng, size)
    _red_cells(scene, _CLEARANCE[label])
    for _ in range(int(rng.poisson(0.35))):
        turn, ray = scene.between(0, 2 * np.pi), scene.between(_CLEARANCE[label] + 7, 60)
        loose_platelet(scene, FRAME / 2 + ray * np.cos(turn), FRAME / 2 + ray * np.sin(turn))
    PAINTERS[label](scene)
    return scene.photograph()


@threadpoolctl.threadpool_limits.wrap(limits=1, user_api="blas")  # small matrices: threads cost more than they save
def render(
    count: int,
    *,
    seed: int,
    part: str = "train",
    size: int = 96,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Renders Wright-Giemsa-stained blood cells of eight classes.

    Args:
        count: How many images; those of `PART_SIZES` make the demo set, any other number works.
        seed: Chooses the set; equal seeds give equal bytes on one machine.
        part: "train", "val" or "test": three sets that share no image.
        size: Side of the images in pixels, 16 to 1024.
        progress: Called as `progress(done, count)` after every image.

    Returns:
        Images uint8 [count, size, size, 3] (RGB) and labels int64 [count], which index `CLASS_NAMES`.

    Raises:
        InputError: When the part is unknown, or a number is out of range.
    """
    if part not in PART_SIZES:
        raise InputError(
            f"demo set: expected a part of {', '.join(PART_SIZES)}, received {part!r}, {did_you_mean(part, PART_SIZES)}"
        )
    if count < 0:
        raise InputError(f"demo set: expected a count of 0 or more, received {count}, try {PART_SIZES[part]}")
    if not _SMALLEST <= size <= _LARGEST:
        raise InputError(f"demo set: expected a size from {_SMALLEST} to {_LARGEST}, received {size}, try 96")
    labels = _labels(count, seed, part)
    images = np.empty((count, size, size, 3), np.uint8)
    for index, label in enumerate(labels):
        images[index] = _image(int(label), _generator(seed, part, index), size)
        if progress is not None:
            progress(index + 1, count)
    return images, labels
