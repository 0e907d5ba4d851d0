"""A photograph as the network sees it, at once or in tiles, and its raw outputs back at the photograph's resolution."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from taskformer.errors import require
from taskformer.models.layers import resize
from taskformer.tasks import Task

#: Values of an enlarged raw output above which it is decoded in bands of rows: 256 MiB.
MAX_VALUES = 2**26
#: Largest ratio of the sides of what the network sees of a photograph.
MAX_ASPECT = 16
#: Tiles start at multiples of this, the coarsest stride of most encoders, so that their maps lie as the whole image's.
GRID = 32

#: Maps ``(B, 3, H, W)`` ImageNet-normalised images to raw outputs by task.
Network = Callable[[Tensor], Mapping[str, Tensor]]


class Piece(NamedTuple):
    """One side of a tile: where it begins and ends, and how much each of its pixels counts ``(stop - start,)``."""

    start: int
    stop: int
    shares: Tensor


@dataclass(frozen=True)
class View:
    """How the network sees a photograph: how large, and how much of it at once.

    >>> [(piece.start, piece.stop) for piece in View(tile=512).pieces(length=1000)]
    [(0, 512), (384, 896), (480, 1000)]

    Args:
        scale: Size of what the network sees over the photograph's own. None: as in the training: the shorter sides
            agree, unless the longer one would be more than :data:`MAX_ASPECT` times as long. 1 keeps all details.
        tile: Side in pixels of the squares that the network sees one at a time. None: it sees everything at once.
        overlap: Share of a tile that the next one shows too, at least. Of that a quarter on either side, where a tile
            lacks what is around it, counts nothing; over the half between them one tile's raw output fades into the
            next one's.

    Raises:
        ConfigError: If a setting is outside its range.
    """

    scale: float | None = None
    tile: int | None = None
    overlap: float = 0.25

    def __post_init__(self) -> None:
        require("(0, inf)", scale=self.scale)
        require(f"[{2 * GRID}, inf)", tile=self.tile)
        require("[0, 0.5]", overlap=self.overlap)

    def pieces(self, length: int) -> list[Piece]:
        """Cut one side of an image into those of tiles, whose shares add up to 1; the last may be a little longer."""
        if self.tile is None or self.tile >= length:
            return [Piece(0, length, torch.ones(length))]
        overlap = self.tile * self.overlap
        step, rest = int(self.tile - overlap) // GRID * GRID, length - self.tile
        starts = sorted({min(start, rest // GRID * GRID) for start in range(0, rest + step, step)})
        stops = [*(start + self.tile for start in starts[:-1]), length]
        seams = [(start + stop) / 2 for start, stop in zip(starts[1:], stops, strict=False)]
        begun = [torch.ones(length), *(_fade(length, seam, overlap / 2) for seam in seams), torch.zeros(length)]
        shares = [one - following for one, following in pairwise(begun)]
        return [Piece(a, b, share[a:b]) for a, b, share in zip(starts, stops, shares, strict=True)]


#: As in the training, everything at once.
WHOLE = View()


def _fade(length: int, middle: float, width: float) -> Tensor:
    """Rise smoothly from 0 to 1 over some pixels around a place: ``(length,)``."""
    place = (torch.arange(length) + 0.5 - middle) / max(width, 1e-6) + 0.5
    return (1 - (place.clamp(0, 1) * math.pi).cos()) / 2


def predict_maps(
    tasks: Mapping[str, Task], network: Network, image: Tensor, shorter: int, view: View = WHOLE
) -> dict[str, Tensor]:
    """Predict decoded maps of a photograph at its own resolution.

    What follows from another scale than the training's is undone: what looks larger looks closer. In tiles, tasks about
    the whole image still see it as a whole, as in the training.

    Args:
        tasks: The tasks by name.
        network: The network.
        image: The photograph ``(1, 3, H, W)``, ImageNet-normalised.
        shorter: Shorter side of the images of the training in pixels; 0 if there was none: then the photograph has the
            right size.
        view: How the network sees it.

    Returns:
        Maps ``(1, H, W)`` or ``(1, C, H, W)``; of whole images as their tasks decode them.
    """
    height, width = image.shape[-2:]
    trained = shorter / max(min(height, width), max(height, width) / MAX_ASPECT) or 1.0
    scale = view.scale or trained
    seen, zoom = _scaled(image, scale), scale / trained
    if view.tile is None:
        outputs = network(seen)
        return {
            name: decode_at(task, task.unzoomed(outputs[name], zoom), height, width) for name, task in tasks.items()
        }
    of_pixels = {name: task for name, task in tasks.items() if task.geometry != "image"}
    decoders = {name: RowDecoder(task, seen.shape[-2], height, width) for name, task in of_pixels.items()}
    for rows in tiled(network, seen, view, list(decoders)):
        for name, decoder in decoders.items():
            decoder.add(decoder.task.unzoomed(rows[name], zoom))
    decoded = {name: decoder.decoded() for name, decoder in decoders.items()}
    if len(decoded) < len(tasks):
        outputs = network(_scaled(image, trained))
        decoded |= {name: task.decode(outputs[name]) for name, task in tasks.items() if name not in decoded}
    return {name: decoded[name] for name in tasks}


def _scaled(image: Tensor, scale: float) -> Tensor:
    """Resample ``(B, C, H, W)`` to another scale, each side at least one pixel long."""
    size = [max(1, round(side * scale)) for side in image.shape[-2:]]
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)


def tiled(network: Network, image: Tensor, view: View, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Predict raw outputs tile by tile, and yield them from the top as soon as no further tile adds to them.

    No more of them is in memory than two rows of tiles.

    Args:
        network: The network.
        image: ``(B, 3, H, W)``.
        view: The size of the tiles and their overlap.
        names: The tasks whose outputs are wanted, each ``(B, C, H, W)``.

    Yields:
        The next rows ``(B, C, rows, W)`` of each task.
    """
    columns, rows = view.pieces(image.shape[-1]), view.pieces(image.shape[-2])
    begun: dict[str, Tensor] = {}
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        sums: dict[str, Tensor] = {}
        for column in columns:
            outputs = network(image[..., row.start : row.stop, column.start : column.stop])
            shares = (row.shares[:, None] * column.shares).to(image.device)
            for name in names:
                output = outputs[name].float()
                if name not in sums:
                    sums[name] = output.new_zeros(*output.shape[:-1], image.shape[-1])
                sums[name][..., column.start : column.stop] += output * shares
        for name, above in begun.items():
            sums[name][..., : above.shape[-2], :] += above
        done = (following.start if following else row.stop) - row.start
        begun = {name: x[..., done:, :].clone() for name, x in sums.items()}
        yield {name: x[..., :done, :] for name, x in sums.items()}


def decode_at(task: Task, output: Tensor, height: int, width: int) -> Tensor:
    """Decode a raw output at another resolution, in bands of rows where all classes of all pixels would not fit.

    Args:
        task: The task.
        output: ``(B, channels, h, w)``, or ``(B, channels)`` of whole images.
        height: Height of the maps.
        width: Width of the maps.

    Returns:
        The decoded maps ``(B, height, width)`` or ``(B, C, height, width)``; of whole images as they are.
    """
    if output.ndim != 4:
        return task.decode(output)
    if output.shape[0] * output.shape[1] * width * height <= MAX_VALUES:
        return task.decode(resize(output, (height, width)))
    decoder = RowDecoder(task, output.shape[-2], height, width)
    decoder.add(output)
    return decoder.decoded()


class RowDecoder:
    """Decodes a raw output at another resolution while its rows come in from the top.

    Args:
        task: The task.
        rows: Rows of the whole raw output.
        height: Height of the decoded map.
        width: Its width.
    """

    def __init__(self, task: Task, rows: int, height: int, width: int) -> None:
        self.task = task
        self.rows = rows
        self.width = width
        # Where each row of the map lies in the raw output, bilinearly.
        self.places = ((torch.arange(height) + 0.5) * (rows / height) - 0.5).clamp(0, rows - 1)
        self.first = 0  # row of the raw output that is the first one kept
        self.kept: Tensor | None = None
        self.parts: list[Tensor] = []
        self.done = 0

    def add(self, output: Tensor) -> None:
        """Take the next rows ``(B, channels, r, w)``, and decode what lies between those that have come."""
        self.kept = output if self.kept is None else torch.cat([self.kept, output], dim=-2)
        there = self.first + self.kept.shape[-2]
        ready = len(self.places) if there == self.rows else int((self.places < there - 1).sum())
        band = max(1, MAX_VALUES // (output.shape[0] * output.shape[1] * self.width))
        for begin in range(self.done, ready, band):
            places = self.places[begin : min(begin + band, ready)]
            between = _at_rows(self.kept, places.to(output.device) - self.first)
            self.parts.append(self.task.decode(resize(between, (len(places), self.width))))
        self.done = max(self.done, ready)
        if self.done < len(self.places):
            unneeded = min(int(self.places[self.done]), there - 1) - self.first
            self.kept, self.first = self.kept[..., unneeded:, :], self.first + unneeded

    def decoded(self) -> Tensor:
        """Return the whole map, when all rows have come."""
        return torch.cat(self.parts, dim=-2)


def _at_rows(x: Tensor, places: Tensor) -> Tensor:
    """Compute rows of ``(B, C, h, w)`` at places between its own, bilinearly: ``(B, C, len(places), w)``."""
    above = places.long()
    below = (above + 1).clamp(max=x.shape[-2] - 1)
    return torch.lerp(x[..., above, :], x[..., below, :], (places - above).to(x.dtype)[:, None])
