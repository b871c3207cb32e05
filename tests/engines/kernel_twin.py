"""The crop kernel's computation once more, in NumPy and FP64, written for clarity."""

import numpy as np

from convnextpose.crop import invert_affine
from engines.kernels.blocks import PixelFormat


def sample(plane, x, y):
    """A plane [H, W], interpolated bilinearly at positions; positions outside read the edge."""
    height, width = plane.shape
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    plane, fx, fy = plane.astype(np.float64), x - x0, y - y0
    return (plane[y0, x0] * (1 - fx) + plane[y0, x1] * fx) * (1 - fy) + (plane[y1, x0] * (1 - fx) + plane[y1, x1] * fx) * fy


def bgr_from_yuv(y, u, v, colours):
    """Values of YUV in 0..255 to BGR in 0..255, by the definition: R - Y and B - Y in proportion to V and U."""
    luma = y if colours.full_range else (y - 16) * 255 / 219
    scale = 1 if colours.full_range else 255 / 224
    red = luma + (v - 128) * scale * 2 * (1 - colours.red)
    blue = luma + (u - 128) * scale * 2 * (1 - colours.blue)
    green = (luma - colours.red * red - colours.blue * blue) / (1 - colours.red - colours.blue)
    return np.clip(np.stack([blue, green, red], -1), 0, 255)


def yuv_from_bgr(bgr, colours):
    """The inverse, rounded to whole numbers: [..., 3] to Y, U, V."""
    blue, green, red = np.moveaxis(np.asarray(bgr, np.float64), -1, 0)
    luma = colours.red * red + (1 - colours.red - colours.blue) * green + colours.blue * blue
    u, v = (blue - luma) / (2 * (1 - colours.blue)), (red - luma) / (2 * (1 - colours.red))
    if not colours.full_range:
        luma, u, v = 16 + luma * 219 / 255, u * 224 / 255, v * 224 / 255
    return tuple(np.clip(np.rint(plane), 0, 255).astype(np.uint8) for plane in (luma, u + 128, v + 128))


def crop(planes, width, height, pixels, colours, crop_from_image, side=256):
    """A frame's planes (BGR [H, W, 3]; or Y [H, W] and UV [h, w, 2]; or Y, U, V) to a crop, not rounded."""
    inverse = invert_affine(crop_from_image)
    ys, xs = np.mgrid[:side, :side].astype(np.float64)
    x, y = (inverse[row, 0] * xs + inverse[row, 1] * ys + inverse[row, 2] for row in (0, 1))
    inside = np.clip(np.minimum(1 + x, width - x), 0, 1) * np.clip(np.minimum(1 + y, height - y), 0, 1)
    if pixels is PixelFormat.BGR:
        bgr = np.stack([sample(planes[0][..., channel], x, y) for channel in range(3)], -1)
    else:
        u, v = (planes[1][..., 0], planes[1][..., 1]) if pixels is PixelFormat.NV12 else planes[1:]
        chroma = (sample(plane, x / 2, y / 2 - 0.25) for plane in (u, v))
        bgr = bgr_from_yuv(sample(planes[0], x, y), *chroma, colours)
    return bgr * inside[..., None]
