"""``taskformer predict``: maps and pictures of every task for photographs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from taskformer.checkpoints import load
from taskformer.commands.data import DataParser
from taskformer.errors import DatasetNotFoundError
from taskformer.files import replacing
from taskformer.tasks.colors import contact_sheet

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def main(argv: list[str]) -> None:
    """Parse the command line and predict."""
    parser = DataParser(prog="taskformer predict", description=__doc__)
    parser.add_argument("model", type=str, help="Run folder (e.g. runs/demo) or checkpoint file.")
    parser.add_argument("images", type=str, nargs="+", help="Image files, or folders of them.")
    parser.add_argument("--out", type=str, default="predictions", help="Folder to write to.")
    parser.add_argument("--raw", type=bool, default=True, help="Also write the values, as raw/TASK/NAME.npy.")
    parser.add_argument("--device", type=str, default="cpu", help="Device to predict on, e.g. cuda.")
    options = parser.parse_args(argv[1:])
    predict(options.model, options.images, Path(options.out), options.raw, options.device)


def predict(model: str, images: Iterable[str], out: Path, raw: bool = True, device: str = "cpu") -> None:
    """Predict every task for photographs; each is seen at the scale the model was trained at.

    Writes ``out/TASK/NAME.png`` (colours), ``out/raw/TASK/NAME.npy`` (class ids, metres, unit vectors, ...) and
    ``out/overview.png`` (everything side by side).

    Args:
        model: Run folder or checkpoint file.
        images: Image files, or folders of them.
        out: Folder to write to.
        raw: Whether to write the values too.
        device: Device to predict on.

    Raises:
        DatasetNotFoundError: If there are no such images.
        WeightsError: If there is no such model.
    """
    files = find_images(images)
    module = load(model, map_location=device)
    tasks = {name: task for name, task in module.tasks.items() if task.geometry != "image"}
    rows = []
    for file in track(files, description="predict"):
        pixels = np.asarray(Image.open(file).convert("RGB"))
        maps = module.predict_image(pixels)
        pictures = {name: task.colorize(maps[name]) for name, task in tasks.items()}
        for name, picture in pictures.items():
            with replacing(out / name / f"{file.stem}.png") as temporary:
                Image.fromarray(picture).save(temporary)
        for name, values in maps.items() if raw else ():
            _save_array(out / "raw" / name / f"{file.stem}.npy", values)
        rows.append([pixels, *pictures.values()])
    with replacing(out / "overview.png") as temporary:
        contact_sheet(["image", *tasks], rows, width=240).save(temporary)


def find_images(paths: Iterable[str]) -> list[Path]:
    """List image files, going into folders.

    Raises:
        DatasetNotFoundError: If a path does not exist or a folder holds no image.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES) if path.is_dir() else [path]
        if not inside or not path.exists():
            msg = f"no image at {str(path)!r}; expected image files, or folders of {', '.join(IMAGE_SUFFIXES)}"
            raise DatasetNotFoundError(msg)
        files += inside
    return files


def _save_array(path: Path, values: NDArray[Any]) -> None:
    """Write an array whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as handle:
        np.save(handle, values)
