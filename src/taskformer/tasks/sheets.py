"""Sheets of pictures with headings, captions and legends."""

from collections.abc import Mapping, Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from taskformer.tasks.colors import Picture, Swatch

#: Size of the letters, height of a line of text and width of the lines between pictures, in pixels.
TEXT, LINE, GAP = 13, 20, 2
#: Height of a sheet's headings in pixels.
HEADER = LINE
#: Width of a legend's single colours and of its scales, their height, and the space after an entry, in pixels.
SWATCH, SCALE, BAR, SPACE = 18, 120, 12, 16

#: A row's pictures; None leaves a place empty.
Row = Sequence[Picture | None]
#: What the colours of each task mean, see :meth:`taskformer.tasks.Task.legend`.
Legends = Mapping[str, Sequence[Swatch]]


def contact_sheet(
    headings: Sequence[str],
    rows: Sequence[Row],
    width: int,
    captions: Sequence[Sequence[str]] = (),
    legends: Legends | None = None,
) -> Image.Image:
    """Lay pictures out in rows and columns of one width.

    Args:
        headings: The heading of each column.
        rows: The pictures; the first of a row that is there gives the height of all.
        width: Width of each picture in pixels.
        captions: What is written at the top of each row's pictures, or in its empty places; a row may have fewer.
        legends: What the colours of each task mean, written below; those of tasks without any are left out.

    Returns:
        The sheet.
    """
    heights = [_height(row, width) for row in rows]
    grid = HEADER + sum(heights) + GAP * len(rows)
    explained = {name: swatches for name, swatches in (legends or {}).items() if swatches}
    total = (width + GAP) * len(headings) - GAP
    titles = max((round(_font().getlength(name)) + SPACE for name in explained), default=0)
    lines = {name: _lines(swatches, total - titles) for name, swatches in explained.items()}
    sheet = Image.new("RGB", (total, grid + LINE * sum(map(len, lines.values()))), "white")
    draw = ImageDraw.Draw(sheet)
    for column, heading in enumerate(headings):
        draw.text((column * (width + GAP) + 3, 2), heading, fill="black", font=_font())
    top = HEADER
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for column, picture in enumerate(row):
            caption = "".join(captions[number][column : column + 1]) if captions else ""
            sheet.paste(_tile(picture, caption, (width, height)), (column * (width + GAP), top))
        top += height + GAP
    for name, parts in lines.items():
        draw.text((3, top + 2), name, fill="black", font=_font())
        for line in parts:
            _draw_line(sheet, line, titles, top)
            top += LINE
    return sheet


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(TEXT)


def _height(row: Row, width: int) -> int:
    """Return the height of a row's pictures at this width."""
    first = next(picture for picture in row if picture is not None)
    return round(width * (len(first) / len(first[0])))


def _tile(picture: Picture | None, caption: str, size: tuple[int, int]) -> Image.Image:
    """Draw one place of a sheet: a picture with its caption, or the caption alone."""
    if picture is None:
        tile = Image.new("RGB", size, "white")
        ImageDraw.Draw(tile).text((3, 2), caption, fill="black", font=_font())
        return tile
    tile = Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR)
    if caption:
        ImageDraw.Draw(tile).text((3, 2), caption, fill="white", font=_font(), stroke_width=1, stroke_fill="black")
    return tile


def _lines(swatches: Sequence[Swatch], width: int) -> list[list[Swatch]]:
    """Break a legend into lines of at most this width; at least one entry each."""
    lines: list[list[Swatch]] = [[]]
    used = 0.0
    for entry in swatches:
        length = sum(_parts(entry)) + SPACE
        if lines[-1] and used + length > width:
            lines.append([])
            used = 0.0
        lines[-1].append(entry)
        used += length
    return lines


def _parts(entry: Swatch) -> tuple[float, int, float]:
    """Return the widths of an entry's first text, its colours and its second text in pixels."""
    start = _font().getlength(f"{entry.start} ") if entry.start else 0.0
    return start, SCALE if entry.start else SWATCH, _font().getlength(f" {entry.meaning}")


def _draw_line(sheet: Image.Image, line: Sequence[Swatch], left: float, top: int) -> None:
    """Draw the entries of one line of a legend."""
    draw = ImageDraw.Draw(sheet)
    for entry in line:
        start, width, end = _parts(entry)
        draw.text((left, top + 2), entry.start, fill="black", font=_font())
        place = (round(left + start), top + (LINE - BAR) // 2)
        sheet.paste(Image.fromarray(entry.colors).resize((width, BAR), Image.Resampling.BILINEAR), place)
        draw.rectangle((*place, place[0] + width - 1, place[1] + BAR - 1), outline="gray")
        draw.text((place[0] + width, top + 2), f" {entry.meaning}", fill="black", font=_font())
        left += start + width + end + SPACE
