"""Where each output pixel of a warp comes from, computed from the draws in float64 and not by the product's code.

Pixel centres lie at whole numbers, so an image of width W has its frame at -0.5 and W - 0.5.
"""

import math

import cv2
import numpy as np


def _about_centre(linear, size, shift=(0.0, 0.0)):
    """The 3x3 map of a 2x2 one about the image's centre, then a shift (dx, dy) in pixels."""
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    centre = np.array([(size[1] - 1) / 2, (size[0] - 1) / 2])
    matrix[:2, 2] = centre - matrix[:2, :2] @ centre + shift
    return matrix


def rotate(draws, size):
    angle = math.radians(float(draws["degrees"]))
    return _about_centre([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], size)


def shear(draws, size):
    return _about_centre([[1, float(draws["x"])], [float(draws["y"]), 1]], size)


def translate(draws, size):
    return _about_centre(np.eye(2), size, (float(draws["x"]) * size[1], float(draws["y"]) * size[0]))


def zoom(draws, size):
    return _about_centre(np.eye(2) / float(draws["scale"]), size)


def resized_crop(draws, size):
    """The box's left edge is seen at the left edge of the output, half a pixel left of the first centre."""
    box = {key: float(value) for key, value in draws.items()}
    return np.array([[box["width"], 0, box["left"] * size[1] + box["width"] / 2 - 0.5],
                     [0, box["height"], box["top"] * size[0] + box["height"] / 2 - 0.5], [0, 0, 1]])


def perspective(draws, size):
    """OpenCV's map from the moved corners (of pixel centres) to the image's own."""
    right, low = size[1] - 1, size[0] - 1
    corners = np.array([[0, 0], [right, 0], [right, low], [0, low]], np.float32)
    inwards = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    moved = corners + inwards * draws["shifts"].reshape(4, 2).astype(np.float64) * (right, low)
    matrix = cv2.getPerspectiveTransform(moved.astype(np.float32), corners)
    depths = np.column_stack([moved, np.ones(4)]) @ matrix[2]
    return matrix * np.sign(np.sign(depths).sum())  # a map has no sign; the corners are what is seen


MATRICES = {"rotate": rotate, "shear": shear, "shear_x": shear, "shear_y": shear, "translate": translate,
            "translate_x": translate, "translate_y": translate, "zoom": zoom, "resized_crop": resized_crop,
            "perspective": perspective}


def sources(name, draws, size):
    """Returns the source x and y of every output pixel, float64 [B, H, W] each, for the draws of each image.

    The third value, bool [B, H, W], is whether the pixel lies before the horizon. Corners moved by more than a third of
    the side may form a quadrilateral that is not convex; then a part of the image lies behind it.
    """
    m = np.stack([MATRICES[name](of_image, size) for of_image in draws])[:, :, :, np.newaxis, np.newaxis]
    y, x = np.mgrid[:size[0], :size[1]].astype(np.float64)
    depth = m[:, 2, 0] * x + m[:, 2, 1] * y + m[:, 2, 2]
    return ((m[:, 0, 0] * x + m[:, 0, 1] * y + m[:, 0, 2]) / depth,
            (m[:, 1, 0] * x + m[:, 1, 1] * y + m[:, 1, 2]) / depth, depth > 0)


def near_frame(x, y, size, reach):
    """Returns bool [B, H, W]: pixels whose source lies within `reach` pixels of the frame, inside or outside."""
    beyond = np.maximum(np.abs(x - (size[1] - 1) / 2) - size[1] / 2, np.abs(y - (size[0] - 1) / 2) - size[0] / 2)
    return np.abs(beyond) <= reach
