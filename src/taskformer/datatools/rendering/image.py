"""From noisy linear radiance to an 8-bit photograph: despeckle, denoise, tone mapping, a little camera noise."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
TAPS = (0.0625, 0.25, 0.375, 0.25, 0.0625)
TARGET_KEY = 0.28


def despeckle(radiance: Floats, factor: float = 4.0) -> Floats:
    """Pull pixels down that are ``factor`` times brighter than the median of their 3x3 neighbourhood.

    Args:
        radiance: Linear RGB ``(H, W, 3)``.
        factor: How much brighter a pixel may be.
    """
    light = (radiance @ LUMINANCE).astype(np.float32)
    median = cv2.medianBlur(light, 3)
    gain = np.where(light > factor * median + 0.05, median / np.maximum(light, 1e-6), 1.0)
    return np.asarray(radiance * gain[..., None])


def denoise(
    radiance: Floats,
    albedo: Floats,
    normals: Floats,
    depth: Floats,
    labels: Ints,
    passes: int = 3,
    strength: float = 1.0,
) -> Floats:
    """Joint a-trous bilateral filter on the illumination, guided by noise-free geometry.

    The image is divided by the albedo first, so textures are not blurred. Each pass doubles the tap spacing.

    Args:
        radiance: Linear RGB ``(H, W, 3)``.
        albedo: Reflectance ``(H, W, 3)``.
        normals: Unit normals ``(H, W, 3)``.
        depth: Metres ``(H, W)``.
        labels: Integers ``(H, W)``; light never flows between different labels.
        passes: Number of passes.
        strength: Width of the brightness kernel.
    """
    base = np.clip(albedo, 0.03, 1.0)
    light = np.log1p(np.clip(radiance, 0.0, None) / base)
    for index in range(passes):
        light = _a_trous(light, normals, depth, labels, 2**index, strength * 0.35 / 2**index)
    return np.asarray(np.expm1(light) * base)


def _a_trous(light: Floats, normals: Floats, depth: Floats, labels: Ints, step: int, sigma: float) -> Floats:
    height, width = depth.shape
    pad = 2 * step
    grey = light.mean(-1)

    def padded(array: NDArray[Any]) -> NDArray[Any]:
        return np.pad(array, [(pad, pad), (pad, pad)] + [(0, 0)] * (array.ndim - 2), mode="edge")

    wide = [padded(array) for array in (light, normals, depth, labels, grey)]
    total = np.zeros_like(light)
    weights = np.zeros_like(depth)
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            window = np.s_[pad + dy * step : pad + dy * step + height, pad + dx * step : pad + dx * step + width]
            light_n, normals_n, depth_n, labels_n, grey_n = (array[window] for array in wide)
            weight = TAPS[dy + 2] * TAPS[dx + 2] * np.clip((normals * normals_n).sum(-1), 0.0, 1.0) ** 32
            weight *= np.exp(-np.abs(depth - depth_n) / (0.03 * np.maximum(depth, 0.1) * step))
            weight *= (labels == labels_n) * np.exp(-np.abs(grey - grey_n) / sigma)
            total += weight[..., None] * light_n
            weights += weight
    return np.asarray(total / np.maximum(weights, 1e-6)[..., None])


def tone_map(radiance: Floats, key: float = TARGET_KEY) -> Floats:
    """Expose to a fixed mean brightness, roll highlights off softly, encode as sRGB.

    Args:
        radiance: Linear RGB ``(H, W, 3)``.
        key: Log-mean luminance after exposure.

    Returns:
        sRGB in 0..1, same shape.
    """
    light = radiance @ LUMINANCE
    mean = float(np.exp(np.mean(np.log(np.clip(light, 1e-3, None)))))
    exposed = np.clip(radiance, 0.0, None) * (key / mean)
    rolled = exposed * (1 + exposed / 16) / (1 + 0.5 * exposed)
    srgb = np.where(rolled <= 0.0031308, 12.92 * rolled, 1.055 * np.maximum(rolled, 1e-8) ** (1 / 2.4) - 0.055)
    return np.clip(srgb, 0.0, 1.0)


def shrink(image: Floats, factor: int) -> Floats:
    """Mean over blocks of ``factor`` x ``factor`` pixels of an ``(H, W, C)`` image."""
    height, width, channels = image.shape
    blocks = image.reshape(height // factor, factor, width // factor, factor, channels)
    return np.asarray(blocks.mean(axis=(1, 3)))


def develop(srgb: Floats, rng: np.random.Generator, noise: float = 0.006) -> NDArray[np.uint8]:
    """Quantise to 8 bits with a little sensor noise, stronger in the shadows, and a small white-balance error.

    Args:
        srgb: Image in 0..1, ``(H, W, 3)``.
        rng: Source of the noise.
        noise: Standard deviation of the noise in mid-grey.
    """
    balance = rng.normal(1.0, 0.015, 3)
    grain = rng.normal(0.0, 1.0, srgb.shape) * noise * (1.4 - srgb)
    return (np.clip(srgb * balance + grain, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)
