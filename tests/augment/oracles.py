"""Independent implementations, one an op: Pillow, OpenCV or NumPy, given the draws that our op made.

`ORACLES[name](image uint8 [H, W, 3], draws of this image, options)` returns uint8 [H, W, 3] or float grey levels.
`EXACT` ops must agree to the grey level; the others within one.
"""

import io
import math

import cv2
import numpy as np
import scipy.ndimage
import skimage.color
import skimage.exposure
from PIL import Image, ImageEnhance, ImageOps

EXACT = {"flip", "rot90", "invert", "posterize", "solarize", "autocontrast", "equalize", "gray", "channel_shuffle",
         "channel_shift", "cutout", "sharpness", "brightness", "contrast", "solarize_add", "random_erasing", "jpeg"}


def _pil(function):
    return lambda image, draws, options: np.asarray(function(Image.fromarray(image), draws))


def flip(image, draws, options):
    image = image[:, ::-1] if draws["horizontal"] else image
    return image[::-1] if draws["vertical"] else image


def rot90(image, draws, options):
    return np.rot90(image, int(draws["turns"]))


def _affine(image, matrix, options):
    """Pillow's transform; `matrix` maps output offsets from the centre to source offsets, then shifts."""
    height, width = image.shape[:2]
    (a, b, dx), (c, d, dy) = matrix
    cx, cy = width / 2, height / 2  # Pillow's pixel centres lie at halves
    data = (a, b, cx - a * cx - b * cy + dx, c, d, cy - c * cx - d * cy + dy)
    how = Image.Resampling.BILINEAR if options["interpolation"] == "bilinear" else Image.Resampling.NEAREST
    fill = (int(options["value"]),) * 3
    warped = Image.fromarray(image).transform((width, height), Image.Transform.AFFINE, data, how, fillcolor=fill)
    return np.asarray(warped)


def rotate(image, draws, options):
    how = Image.Resampling.BILINEAR if options["interpolation"] == "bilinear" else Image.Resampling.NEAREST
    fill = (int(options["value"]),) * 3
    return np.asarray(Image.fromarray(image).rotate(float(draws["degrees"]), how, fillcolor=fill))


def shear(image, draws, options):
    return _affine(image, ((1, float(draws["x"]), 0), (float(draws["y"]), 1, 0)), options)


def translate(image, draws, options):
    height, width = image.shape[:2]
    return _affine(image, ((1, 0, float(draws["x"]) * width), (0, 1, float(draws["y"]) * height)), options)


def zoom(image, draws, options):
    scale = float(draws["scale"])
    return _affine(image, ((1 / scale, 0, 0), (0, 1 / scale, 0)), options)


def hue(image, draws, options):
    """Rotation in the plane of I and Q, each pixel through the NTSC's forward matrix and its inverse."""
    forward = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    y, i, q = np.moveaxis(image.astype(np.float64) @ forward.T, -1, 0)
    angle = 2 * math.pi * float(draws["turn"])
    i, q = i * math.cos(angle) - q * math.sin(angle), i * math.sin(angle) + q * math.cos(angle)
    return np.clip(np.stack([y, i, q], -1) @ np.linalg.inv(forward).T, 0, 255)


def gray(image, draws, options):
    return np.repeat(np.asarray(Image.fromarray(image).convert("L"))[..., None], 3, axis=-1)


def channel_shuffle(image, draws, options):
    order = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))[int(draws["permutation"])]
    return image[..., list(order)]


def channel_shift(image, draws, options):
    shifted = image.astype(np.float32) + (draws["shift"].astype(np.float32) + np.float32(0.5))
    return np.floor(np.clip(shifted, 0, 255)).astype(np.uint8)


def cutout(image, draws, options):
    height, width = image.shape[:2]
    box_h, box_w = int(np.round(draws["size"] * height)), int(np.round(draws["size"] * width))
    left = math.floor(draws["centre_x"] * width) - box_w // 2
    top = math.floor(draws["centre_y"] * height) - box_h // 2
    out = image.copy()
    out[max(top, 0):max(top + box_h, 0), max(left, 0):max(left + box_w, 0)] = round(options["value"])
    return out


def gridmask(image, draws, options):
    """The paper's section 3.2: unit of d pixels, (1 - r) d of each side dropped, offsets below d; then a rotation."""
    height, width = image.shape[:2]
    d = max(round(float(draws["period"]) * min(height, width)), 2)
    dropped = d - round(float(np.float32(d) * draws["ratio"]))
    side = 4 * max(height, width)
    offset_x, offset_y = math.floor(draws["offset_x"] * d), math.floor(draws["offset_y"] * d)
    rows = (np.arange(-side, side) - offset_y) % d < dropped
    columns = (np.arange(-side, side) - offset_x) % d < dropped
    drop = rows[:, None] & columns[None, :]  # the unturned grid, large enough for any rotation
    angle = math.radians(float(draws["degrees"]))
    cy, cx = (height - 1) / 2, (width - 1) / 2
    y, x = np.mgrid[:height, :width].astype(np.float64)
    u = cx + math.cos(angle) * (x - cx) + math.sin(angle) * (y - cy)
    v = cy - math.sin(angle) * (x - cx) + math.cos(angle) * (y - cy)
    hidden = drop[np.floor(v + 1e-4).astype(int) + side, np.floor(u + 1e-4).astype(int) + side]
    return np.where(hidden[..., None], np.uint8(round(options["value"])), image)


def gamma(image, draws, options):
    return skimage.exposure.adjust_gamma(image, float(draws["exponent"]))


def solarize_add(image, draws, options):
    added = np.minimum(image.astype(int) + int(draws["addition"]), 255)
    return np.where(image < options["threshold"], added, image)


def resized_crop(image, draws, options):
    """Pillow's own crop-and-resize box, as an affine map without its low-pass filter."""
    height, width = image.shape[:2]
    data = (draws["width"], 0, draws["left"] * width, 0, draws["height"], draws["top"] * height)
    return np.asarray(Image.fromarray(image).transform(
        (width, height), Image.Transform.AFFINE, [float(value) for value in data], Image.Resampling.BILINEAR))


def perspective(image, draws, options):
    """OpenCV finds the map from the moved corners to the image's; Pillow samples in double precision."""
    height, width = image.shape[:2]
    corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], np.float32)
    inwards = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    moved = corners + inwards * draws["shifts"].reshape(4, 2) * (width - 1, height - 1)
    matrix = cv2.getPerspectiveTransform(moved.astype(np.float32), corners)
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # Pillow's pixel centres lie at halves
    data = half @ matrix @ np.linalg.inv(half)
    data = (data / data[2, 2]).ravel()[:8]
    return np.asarray(Image.fromarray(image).transform(
        (width, height), Image.Transform.PERSPECTIVE, list(data), Image.Resampling.BILINEAR,
        fillcolor=(int(options["value"]),) * 3))


def random_erasing(image, draws, options):
    height, width = image.shape[:2]
    area = float(np.float32(draws["area"]) * np.float32(height * width))
    box_h = min(round(math.sqrt(area * draws["aspect"])), height)
    box_w = min(round(math.sqrt(area / draws["aspect"])), width)
    left, top = (int(draws["left"] * (width - box_w + 1)), int(draws["top"] * (height - box_h + 1)))
    out = image.copy()
    out[top:top + box_h, left:left + box_w] = round(options["value"])
    return out


def blur(image, draws, options):
    sigma = float(draws["sigma"])
    return scipy.ndimage.gaussian_filter(image.astype(np.float64), (sigma, sigma, 0), mode="reflect", truncate=4)


def _filter2d(image, kernel):
    return cv2.filter2D(image.astype(np.float64), -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)


def defocus(image, draws, options):
    y, x = np.mgrid[-9:10, -9:10]
    return _filter2d(image, np.clip(float(draws["radius"]) + 0.5 - np.hypot(y, x), 0, 1))


def streak_kernel(length, degrees):
    """Walks from the middle to either end, a pixel of the major axis a step; each step is shared by two pixels."""
    kernel = np.zeros((29, 29))
    x, y = math.cos(math.radians(degrees)), -math.sin(math.radians(degrees))
    reach = length / 2 * max(abs(x), abs(y))
    x, y = x / max(abs(x), abs(y)), y / max(abs(x), abs(y))
    for step in range(-13, 14):
        weight = min(max(reach + 1 - abs(step), 0), 1)
        left, top = math.floor(step * x), math.floor(step * y)
        right, low = step * x - left, step * y - top
        kernel[14 + top, 14 + left] += weight * (1 - right) * (1 - low)  # one of `right` and `low` is 0
        kernel[14 + top, 15 + left] += weight * right * (1 - low)
        kernel[15 + top, 14 + left] += weight * (1 - right) * low
    return kernel


def motion_blur(image, draws, options):
    return _filter2d(image, streak_kernel(float(draws["length"]), float(draws["degrees"])))


def pixelate(image, draws, options):
    height, width = image.shape[:2]
    cells = [max(round(float(draws["scale"] * np.float32(side))), 1) for side in (width, height)]
    small = Image.fromarray(image).resize(cells, Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST))


def threefry(key, counter):
    """Threefry-2x32 with 20 rounds, from section 3.3 of the paper and its table of rotations; uint32 pairs."""
    rotations = (13, 15, 26, 6, 17, 29, 16, 24)
    keys = [np.uint32(word) for word in key]
    keys.append(keys[0] ^ keys[1] ^ np.uint32(0x1BD11BDA))
    a, b = (np.asarray(word, np.uint32) for word in counter)
    with np.errstate(over="ignore"):
        for number in range(20):
            if number % 4 == 0:  # a key is injected before every fourth round, and after the last
                a, b = a + keys[number // 4 % 3], b + keys[(number // 4 + 1) % 3] + np.uint32(number // 4)
            a, r = a + b, np.uint32(rotations[number % 8])
            b = (b << r | b >> np.uint32(32) - r) ^ a
        return a + keys[5 % 3], b + keys[6 % 3] + np.uint32(5)


def _hash(image, draws):
    pixel = np.arange(image.shape[0] * image.shape[1]).reshape(image.shape[:2])
    return threefry(draws["key"], (pixel, np.zeros_like(pixel)))


def noise(image, draws, options):
    """Box and Muller; of each word the upper half is the radius, the lower one the angle, whose quadrants fold."""
    normals = []
    for word in _hash(image, draws):
        radius = np.sqrt(-2 * np.log((np.float64(word >> 16) + 0.5) / 2**16))
        quadrant, rest = word >> 14 & 3, word & 0x3FFF
        angle = (rest + 0.5) / 2**14 * math.pi / 2
        normals += [radius * np.cos(angle) * np.where(quadrant & 1, -1, 1),
                    radius * np.sin(angle) * np.where(quadrant & 2, -1, 1)]
    return np.clip(np.floor(image + float(draws["std"]) * np.stack(normals[:3], axis=-1) + 0.5), 0, 255)


def elastic_field(image, draws, options):
    """Rows and columns of displacement; the scale that makes 1 pixel is what SciPy's filter does to single pixels."""
    def smooth(x):
        return scipy.ndimage.gaussian_filter1d(x, options["sigma"], axis=0, mode="reflect", truncate=4)
    spread = [np.square(smooth(np.eye(side))).sum() / side for side in image.shape[:2]]
    scale = float(draws["alpha"]) / np.sqrt(spread[0] * spread[1] / 3)
    dx, dy = (scale * smooth(smooth((word >> 8) / 2**23 - 1).T).T for word in _hash(image, draws))
    return dy, dx


def elastic(image, draws, options):
    rows, columns = np.mgrid[:image.shape[0], :image.shape[1]] + elastic_field(image, draws, options)
    mode = {"constant": "nearest", "edge": "nearest", "reflect": "reflect"}[options["fill"]]
    out = np.stack([scipy.ndimage.map_coordinates(channel, (rows, columns), order=1, mode=mode)
                    for channel in np.moveaxis(image.astype(np.float64), -1, 0)], axis=-1)
    height, width = image.shape[:2]
    outside = (rows < -0.5) | (rows >= height - 0.5) | (columns < -0.5) | (columns >= width - 0.5)
    if options["fill"] == "constant":
        out[outside] = options["value"]
    return np.floor(out + 0.5)


def stain(image, draws, options):
    """scikit-image's matrices, without its clamp of negative amounts, and with our least level."""
    density = -np.log(np.maximum(image, 0.25) / 255)
    amounts = density @ skimage.color.hed_from_rgb * draws["scale"] + draws["shift"]
    return np.clip(np.floor(255 * np.exp(-(amounts @ skimage.color.rgb_from_hed)) + 0.5), 0, 255)


def jpeg(image, draws, options):
    if draws["quality"] >= 100:
        return image
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(draws["quality"]))
    return np.asarray(Image.open(file))


ORACLES = {
    "flip": flip, "rot90": rot90, "rotate": rotate, "shear": shear, "shear_x": shear, "shear_y": shear,
    "translate": translate, "translate_x": translate, "translate_y": translate, "zoom": zoom,
    "brightness": _pil(lambda image, draws: ImageEnhance.Brightness(image).enhance(float(draws["factor"]))),
    "contrast": _pil(lambda image, draws: ImageEnhance.Contrast(image).enhance(float(draws["factor"]))),
    "color": _pil(lambda image, draws: ImageEnhance.Color(image).enhance(float(draws["factor"]))),
    "sharpness": _pil(lambda image, draws: ImageEnhance.Sharpness(image).enhance(float(draws["factor"]))),
    "autocontrast": _pil(lambda image, draws: ImageOps.autocontrast(image)),
    "equalize": _pil(lambda image, draws: ImageOps.equalize(image)),
    "invert": _pil(lambda image, draws: ImageOps.invert(image)),
    "posterize": _pil(lambda image, draws: ImageOps.posterize(image, int(draws["bits"]))),
    "solarize": _pil(lambda image, draws: ImageOps.solarize(image, math.ceil(float(draws["threshold"])))),
    "hue": hue, "gray": gray, "channel_shuffle": channel_shuffle, "channel_shift": channel_shift,
    "cutout": cutout, "gridmask": gridmask, "random_erasing": random_erasing, "gamma": gamma,
    "solarize_add": solarize_add, "resized_crop": resized_crop, "perspective": perspective,
    "noise": noise, "elastic": elastic, "stain": stain, "jpeg": jpeg,
    "blur": blur, "defocus": defocus, "motion_blur": motion_blur, "pixelate": pixelate,
}


def opencv_warp(image, matrix, value=128):
    """OpenCV's warpPerspective of an output-to-source map (pixel centres at whole numbers)."""
    height, width = image.shape[:2]
    return cv2.warpPerspective(image, np.asarray(matrix, np.float64), (width, height),
                               flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_CONSTANT,
                               borderValue=(value,) * 3)
