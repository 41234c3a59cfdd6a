"""How a cost grows, against a straight line: a fixed part and a part in proportion to the size.

What belongs here: the line, and how far a cost departs from it. What is measured, at which sizes, is the suite's.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

CLIFF = 1.5  # times the line, from which a departure is called a cliff
_FIXED = 4001  # fixed parts tried, from nothing to far more than the whole


@dataclasses.dataclass(frozen=True)
class Line:
    """The straight line below all costs that the worst of them exceeds by the least ratio.

    fixed: what nothing would cost. each: what one more costs. deviation: the largest ratio of a cost to the line,
    1.0 where all lie on it; worst: the size at which that is.
    """

    fixed: float
    each: float
    deviation: float
    worst: float

    @property
    def cliff(self) -> bool:
        """Returns whether a cost lies more than CLIFF times above the line."""
        return self.deviation > CLIFF


def line(sizes: Sequence[float], costs: Sequence[float]) -> Line:
    """Finds the line under costs at sizes.

    Neither part of the line is negative, so what grows faster than in proportion departs from it, and so does what
    falls; what two sizes cost can do neither but by falling, or by growing out of proportion.

    Args:
      sizes: positive and different, two at least.
      costs: positive, of the same number.

    Raises:
      ValueError: sizes or costs are not as said.
    """
    x, t = np.asarray(sizes, float), np.asarray(costs, float)
    if x.shape != t.shape or x.ndim != 1 or len(x) < 2 or len(set(sizes)) < len(x) or not (x > 0).all() \
            or not ((t > 0) & np.isfinite(t)).all():
        raise ValueError(f"expected two or more different sizes and their costs, all positive, received {sizes} and "
                         f"{costs}")
    # The line is `each * (extra + x)`: for a given fixed part, in units of size, its height follows from the lowest
    # cost, so that one number is left to search. Hundredths of the least size to hundreds of the largest.
    extra = np.concatenate([[0.0], np.geomspace(x.min() / 100, x.max() * 1000, _FIXED)])
    ratios = t / (extra[:, np.newaxis] + x)
    best = int(np.argmin(ratios.max(axis=1) / ratios.min(axis=1)))
    each = float(ratios[best].min())
    return Line(fixed=each * float(extra[best]), each=each, deviation=float(ratios[best].max()) / each,
                worst=float(x[np.argmax(ratios[best])]))
