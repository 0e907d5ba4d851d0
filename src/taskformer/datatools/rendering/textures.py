"""Drawn surfaces: paint, wallpaper, planks, tiles, carpets, rugs, pictures and the view through a window.

Every function returns ``(n, n, 3)`` float32 sRGB in 0..1, row 0 at the top, and depends on its arguments only.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from taskformer.datatools.rendering.room import Surface
from taskformer.errors import ConfigError

Image = NDArray[np.float32]
Rng = np.random.Generator
Draw = Callable[[Rng, Image, Image], Image]

PIXELS = 256


def noise(rng: Rng, size: int = PIXELS, octaves: int = 4) -> Image:
    """Smooth noise, about unit spread, ``(size, size)``."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        coarse = rng.normal(size=(2 ** (octave + 2),) * 2).astype(np.float32)
        total += cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC) / 2**octave
    return total / 1.3


def _flat(color: Image) -> Image:
    return np.ones((PIXELS, PIXELS, 3), np.float32) * color


def _plain(rng: Rng, color: Image, accent: Image) -> Image:
    del rng, accent
    return _flat(color)


def _paint(rng: Rng, color: Image, accent: Image) -> Image:
    del accent
    return _flat(color) * (1 + 0.008 * noise(rng)[..., None])


def _stripes(rng: Rng, color: Image, accent: Image) -> Image:
    period = int(rng.choice([16, 32, 64]))
    band = (np.arange(PIXELS) // (period // 2) % 2).astype(np.float32)[None, :, None]
    return np.asarray(_paint(rng, color, accent) * (1 - 0.3 * band) + 0.3 * band * accent, np.float32)


def _wallpaper(rng: Rng, color: Image, accent: Image) -> Image:
    wall = _paint(rng, color, accent)
    period = int(rng.choice([32, 64]))
    rows, columns = np.mgrid[0:PIXELS, 0:PIXELS]
    shift = (rows // period % 2) * period // 2
    x, y = (columns + shift) % period - period / 2, rows % period - period / 2
    figure = np.abs(x) + np.abs(y) < period * 0.22 if rng.random() < 0.5 else np.hypot(x, y) < period * 0.2
    return np.where(figure[..., None], 0.5 * wall + 0.5 * accent, wall)


def _planks(rng: Rng, color: Image, accent: Image) -> Image:
    del accent
    floor = _flat(color)
    grain = noise(rng, octaves=5)
    width = int(rng.choice([16, 32]))
    for top in range(0, PIXELS, width):
        rows = slice(top, top + width)
        streaks = 0.1 * np.roll(grain[:1], int(rng.integers(PIXELS)), 1) + 0.05 * rng.normal(size=(width, 1))
        floor[rows] *= (rng.uniform(0.8, 1.15) * (1 + streaks))[..., None].astype(np.float32)
        floor[top] *= 0.65
        for joint in rng.integers(0, PIXELS, 2):
            floor[rows, joint] *= 0.65
    return floor


def _tiles(rng: Rng, color: Image, accent: Image) -> Image:
    period = int(rng.choice([32, 64]))
    tiles = _flat(color) * (1 + 0.03 * noise(rng)[..., None])
    count = PIXELS // period
    shade = rng.normal(1.0, 0.03, (count, count, 1)).astype(np.float32).repeat(period, 0).repeat(period, 1)
    tiles *= shade
    for offset in (0, 1):
        tiles[offset::period] = accent
        tiles[:, offset::period] = accent
    return tiles


def _checker(rng: Rng, color: Image, accent: Image) -> Image:
    cells = np.add.outer(np.arange(PIXELS) // 64, np.arange(PIXELS) // 64) % 2
    return np.where(cells[..., None] == 0, _paint(rng, color, accent), _paint(rng, accent, color))


def _carpet(rng: Rng, color: Image, accent: Image) -> Image:
    del accent
    fibres = 0.07 * rng.normal(size=(PIXELS, PIXELS, 1)) + 0.05 * noise(rng)[..., None]
    return np.asarray(_flat(color) * (1 + fibres), np.float32)


def _rug(rng: Rng, color: Image, accent: Image) -> Image:
    rug = _flat(color)
    third = rng.uniform(0.25, 0.85, 3).astype(np.float32)
    if rng.random() < 0.5:
        rug[20:-20, 20:-20] = accent
        rug[36:-36, 36:-36] = third if rng.random() < 0.5 else color
    else:
        step = int(rng.choice([32, 64]))
        for row in range(0, PIXELS, step):
            rug[row : row + step // 2] = accent
            rug[row : row + 6] = third
    return _carpet(rng, np.ones(3, np.float32), color) * rug


def _landscape(rng: Rng, color: Image, accent: Image) -> Image:
    """Sky above hills in two shades."""
    rows = np.linspace(0, 1, PIXELS, dtype=np.float32)[:, None, None]
    view = (1 - rows) * color + rows * (0.5 + 0.5 * color)
    view = np.broadcast_to(view, (PIXELS, PIXELS, 3)).copy()
    for layer, level in enumerate((0.5, 0.7)):
        ridge = (level + 0.08 * noise(rng)[0]) * PIXELS
        below = np.arange(PIXELS)[:, None] > ridge[None, :]
        view[below] = accent * (1.0 - 0.3 * layer)
    return view


def _picture(rng: Rng, color: Image, accent: Image) -> Image:
    style = int(rng.integers(3))
    if style == 0:
        image = _landscape(rng, color, accent)
    elif style == 1:
        image = np.stack([noise(rng) for _ in range(3)], -1) * 0.2 + color
    else:
        image = _flat(color)
        for _ in range(int(rng.integers(3, 8))):
            left, top = rng.integers(0, 200, 2)
            width, height = rng.integers(30, 140, 2)
            image[top : top + height, left : left + width] = rng.uniform(0.1, 0.95, 3)
    frame = rng.choice(np.array([0.08, 0.35, 0.9]))
    border = 14
    for edge in (np.s_[:border], np.s_[-border:], np.s_[:, :border], np.s_[:, -border:]):
        image[edge] = frame
    return image


def _view(rng: Rng, color: Image, accent: Image) -> Image:
    """Outdoors, slightly out of focus: bright sky, trees or houses, ground."""
    view = _landscape(rng, color, accent)
    for _ in range(int(rng.integers(2, 7))):
        x, y, radius = int(rng.integers(0, PIXELS)), int(rng.integers(120, 200)), int(rng.integers(15, 45))
        shade = tuple(float(value) for value in accent * rng.uniform(0.5, 1.2))
        if rng.random() < 0.7:
            cv2.circle(view, (x, y), radius, shade, -1)
        else:
            wall = float(rng.uniform(0.5, 0.9))
            cv2.rectangle(view, (x, y - radius), (x + radius, PIXELS), (wall, wall * 0.93, wall * 0.85), -1)
    return np.asarray(cv2.GaussianBlur(view, (0, 0), 4.0), np.float32)


PATTERNS: dict[str, Draw] = {
    "plain": _plain,
    "paint": _paint,
    "stripes": _stripes,
    "wallpaper": _wallpaper,
    "planks": _planks,
    "tiles": _tiles,
    "checker": _checker,
    "carpet": _carpet,
    "rug": _rug,
    "picture": _picture,
    "view": _view,
}


def draw(surface: Surface) -> Image:
    """Draw a surface.

    Raises:
        ConfigError: If its pattern is unknown.
    """
    if surface.pattern not in PATTERNS:
        msg = f"unknown surface pattern {surface.pattern!r}; expected one of {sorted(PATTERNS)}"
        raise ConfigError(msg)
    rng = np.random.default_rng(surface.seed)
    color, accent = np.array(surface.color, np.float32), np.array(surface.accent, np.float32)
    return np.clip(PATTERNS[surface.pattern](rng, color, accent), 0.0, 1.0).astype(np.float32)
