"""How fast training samples of NYUD-v2 are made: from files, from the decoded cache, and by a plain implementation.

Usage: python benchmarks/loading.py [--images 96] [--workers 2] [--epochs 3] [--photos FOLDER] [--json FILE]

All three follow ``configs/data/nyud.yaml`` (four tasks, crops of 425x560) on the same files, layout A, with the same
loader settings, one epoch each in turn. The plain implementation is what one writes with PIL, numpy and OpenCV when
following the published recipe step by step.

PHOTOS holds ``rgb/*.png``, ``depth_mm/*.png`` (16-bit millimetres) and ``semseg13/*.png`` of real NYU-v2 images, which
are not part of the repository; without them the images are drawn. Images are repeated under new names.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from taskformer.data import MultiTaskDataModule
from taskformer.data.configured import data_module as configured
from taskformer.data.images import write_npy, write_png
from taskformer.data.surfaces import plane_normals
from taskformer.datatools.miniature.nyud import write_nyud
from taskformer.files import write_json, write_text

ROOT = Path(__file__).parent.parent
PHOTOS = ROOT.parent / "shared" / "data" / "nyu10"
HEIGHT, WIDTH = 425, 560
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
Sample = dict[str, Any]


class PlainNYUD(Dataset[Sample]):
    """The recipe of ATRC, MQTransformer and InvPT in PIL, numpy and OpenCV: whole images, one step after the other.

    Args:
        root: Folder in layout A.
        split: ``"train"`` or ``"val"``.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.root = root
        self.ids = (root / "gt_sets" / f"{split}.txt").read_text().split()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Load and augment one sample."""
        maps = self._load(self.ids[index])
        for step in (random_scale, random_crop, random_flip, distort, standardize, pad_to_crop, mark_invalid):
            step(maps)
        targets = {
            "semseg": torch.from_numpy(maps["semseg"].astype(np.int64)),
            "depth": to_tensor(maps["depth"][..., None]),
            "normals": to_tensor(maps["normals"]),
            "edges": to_tensor(maps["edges"][..., None]),
        }
        return {"image": to_tensor(maps["image"]), "targets": targets, "meta": {"id": self.ids[index]}}

    def _load(self, name: str) -> Sample:
        labels = np.array(Image.open(self.root / "segmentation" / f"{name}.png"))
        normals = np.array(Image.open(self.root / "normals" / f"{name}.png").convert("RGB"), np.float32)
        return {
            "image": np.array(Image.open(self.root / "images" / f"{name}.png").convert("RGB")),
            "semseg": labels - 1,  # 0 becomes 255
            "depth": np.load(self.root / "depth" / f"{name}.npy").astype(np.float32),
            "normals": 2 * normals / 255 - 1,
            "edges": np.array(Image.open(self.root / "edge" / f"{name}.png"), np.float32) / 255,
        }


def random_scale(maps: Sample) -> None:
    """Resize the image bilinearly and the labels to the nearest; depth is divided by the factor."""
    scale = random.uniform(0.5, 2.0)
    size = (int(WIDTH * scale), int(HEIGHT * scale))
    for name, pixels in maps.items():
        method = cv2.INTER_LINEAR if name == "image" else cv2.INTER_NEAREST
        maps[name] = cv2.resize(pixels, size, interpolation=method)
    maps["depth"] /= scale


def random_crop(maps: Sample) -> None:
    """Cut a window of which no class covers three quarters, in at most ten more attempts."""
    for _ in range(11):
        top = random.randint(0, max(0, maps["image"].shape[0] - HEIGHT))
        left = random.randint(0, max(0, maps["image"].shape[1] - WIDTH))
        window = (slice(top, top + HEIGHT), slice(left, left + WIDTH))
        labels, counts = np.unique(maps["semseg"][window], return_counts=True)
        counts = counts[labels != 255]
        if len(counts) > 1 and counts.max() / counts.sum() < 0.75:
            break
    for name, pixels in maps.items():
        maps[name] = pixels[window]


def random_flip(maps: Sample) -> None:
    """Mirror left and right every second time."""
    if random.random() < 0.5:
        for name, pixels in maps.items():
            maps[name] = np.fliplr(pixels).copy()
        maps["normals"][..., 0] *= -1


def distort(maps: Sample) -> None:
    """Change brightness, contrast, saturation and hue, each every second time."""
    image = maps["image"]
    if random.random() < 0.5:
        image = linear(image, shift=random.uniform(-32, 32))
    contrast_first = random.random() < 0.5
    if contrast_first and random.random() < 0.5:
        image = linear(image, factor=random.uniform(0.5, 1.5))
    if random.random() < 0.5:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = linear(hsv[..., 1], factor=random.uniform(0.5, 1.5))
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if random.random() < 0.5:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + random.randint(-18, 17)) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if not contrast_first and random.random() < 0.5:
        image = linear(image, factor=random.uniform(0.5, 1.5))
    maps["image"] = image


def linear(values: NDArray[Any], factor: float = 1.0, shift: float = 0.0) -> NDArray[np.uint8]:
    """Multiply, add, clip to 8 bits."""
    changed: NDArray[np.uint8] = (values.astype(np.float32) * factor + shift).clip(0, 255).astype(np.uint8)
    return changed


def standardize(maps: Sample) -> None:
    """Normalise with ImageNet's mean and deviation."""
    maps["image"] = (maps["image"].astype(np.float32) / 255 - MEAN) / STD


def pad_to_crop(maps: Sample) -> None:
    """Pad around the centre: image, depth and normals with 0, semseg and edges with 255."""
    height, width = maps["image"].shape[:2]
    top, left = (HEIGHT - height) // 2, (WIDTH - width) // 2
    borders = [(top, HEIGHT - height - top), (left, WIDTH - width - left), (0, 0)]
    for name, pixels in maps.items():
        fill = 255 if name in ("semseg", "edges") else 0
        maps[name] = np.pad(pixels, borders[: pixels.ndim], constant_values=fill)


def mark_invalid(maps: Sample) -> None:
    """Replace what stands for unknown by NaN."""
    maps["depth"][maps["depth"] == 0] = np.nan
    maps["edges"][maps["edges"] == 255] = np.nan
    maps["normals"][np.linalg.norm(maps["normals"], axis=-1) == 0] = np.nan


def to_tensor(pixels: NDArray[Any]) -> torch.Tensor:
    """Turn ``(H, W, C)`` into a tensor ``(C, H, W)``."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def write_data(root: Path, photos: Path, images: int) -> str:
    """Write a data set in layout A; returns where its images come from."""
    names = [f"{number:04d}" for number in range(1, images + 1)]
    found = sorted((photos / "rgb").glob("*.png"))
    if found:
        for name, file in zip(names, found, strict=False):
            write_photo(root, name, photos, file.name)
    else:
        write_nyud(root, counts={"train": min(images, 10)}, size=(HEIGHT, WIDTH))
    originals = sorted(path.stem for path in (root / "images").iterdir())
    for position, name in enumerate(names):
        for file in list(root.glob(f"*/{originals[position % len(originals)]}.*")):
            if not (copy := file.with_stem(name)).exists():
                shutil.copy(file, copy)
    write_text(root / "gt_sets" / "train.txt", "\n".join(names) + "\n")
    write_text(root / "gt_sets" / "val.txt", names[0] + "\n")
    source = f"photographs from {photos}" if found else f"drawn images, as there are no photographs in {photos}"
    return f"{images} samples from {len(originals)} {source}"


def write_photo(root: Path, name: str, photos: Path, file: str) -> None:
    """Write one photograph with its labels, without its white frame; edges and normals are computed."""
    inside = (slice(27, 27 + HEIGHT), slice(40, 40 + WIDTH))
    image = np.array(Image.open(photos / "rgb" / file).convert("RGB"))[inside]
    semseg = np.array(Image.open(photos / "semseg13" / file))[inside]
    depth = (np.array(Image.open(photos / "depth_mm" / file))[inside] / 1000).astype(np.float32)
    normals = np.nan_to_num(plane_normals(depth, (519.0, 519.0), (286.0, 227.0)), nan=0.0)
    edges = np.zeros(semseg.shape, np.uint8)
    edges[:-1][semseg[:-1] != semseg[1:]] = 255
    edges[:, :-1][semseg[:, :-1] != semseg[:, 1:]] = 255
    write_png(root / "images" / f"{name}.png", image)
    write_png(root / "segmentation" / f"{name}.png", semseg)
    write_png(root / "normals" / f"{name}.png", np.rint((normals + 1) * 127.5).astype(np.uint8))
    write_png(root / "edge" / f"{name}.png", edges)
    write_npy(root / "depth" / f"{name}.npy", depth)


def data_module(root: Path, workers: int, cache_dir: Path | None = None) -> MultiTaskDataModule:
    """Build the data module of ``configs/data/nyud.yaml`` on another folder."""
    cache = str(cache_dir) if cache_dir else None
    module = configured(ROOT / "configs" / "data" / "nyud.yaml", root=str(root), num_workers=workers, cache_dir=cache)
    module.prepare_data()
    module.setup("fit")
    return module


def plain_loader(root: Path, workers: int, batch_size: int) -> DataLoader[Sample]:
    """Load the plain implementation's samples as a data module loads its own."""
    return DataLoader(
        PlainNYUD(root, "train"),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        worker_init_fn=one_thread,
        persistent_workers=workers > 0,
    )


def one_thread(worker_id: int) -> None:
    """Keep OpenCV from starting threads in every process, and give each a random stream of its own."""
    cv2.setNumThreads(0)
    pl_worker_init_function(worker_id)


class Contender:
    """One way to make samples, with its processes and what was measured of them.

    Args:
        name: What it is.
        loader: Its batches.
    """

    def __init__(self, name: str, loader: DataLoader[Sample]) -> None:
        self.name = name
        self.loader = loader
        self.processes: list[int] = []
        self.rates: list[float] = []
        self.milliseconds: list[float] = []
        self.resident: list[float] = []
        self.private: list[float] = []

    def warm_up(self) -> None:
        """Start the processes and let them fill their memory for a batch each."""
        before = {process.pid for process in multiprocessing.active_children()}
        for _ in self.loader:
            pass
        now = {process.pid for process in multiprocessing.active_children()}
        self.processes = sorted(process for process in now - before if process is not None)

    def run(self) -> None:
        """Load one epoch; note images per second, processor time and, after it, memory per process."""
        started, busy = time.perf_counter(), sum(map(processor_time, self.processes))
        images = sum(len(batch["image"]) for batch in self.loader)
        self.rates.append(images / (time.perf_counter() - started))
        self.milliseconds.append(1000 * (sum(map(processor_time, self.processes)) - busy) / images)
        memory = [process_memory(process) for process in self.processes]
        if memory:
            resident, private = np.mean(memory, axis=0)
            self.resident.append(float(resident))
            self.private.append(float(private))


def processor_time(process: int) -> float:
    """Return the seconds that a process has had a processor (Linux only)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def process_memory(process: int) -> tuple[float, float]:
    """Return a process's resident memory and the part of it that it shares with no other, in MB (Linux only)."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {key: int(rest.split()[0]) for key, rest in (line.split(":", 1) for line in lines)}
    return kilobytes["Rss"] / 1000, (kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]) / 1000


def measure(root: Path, workers: int, epochs: int, batch_size: int = 8) -> dict[str, Contender]:
    """Load a few epochs with each contender, one epoch each in turn."""
    files, cached = (data_module(root, workers, cache) for cache in (None, root / "cache"))
    for data in (files, cached):
        data.batch_size = batch_size
    makers: dict[str, Callable[[], DataLoader[Sample]]] = {
        "plain": lambda: plain_loader(root, workers, batch_size),
        "files": files.train_dataloader,
        "cache": cached.train_dataloader,
    }
    contenders = {name: Contender(name, make()) for name, make in makers.items()}
    for contender in contenders.values():
        contender.warm_up()
    for _ in range(epochs):
        for contender in contenders.values():
            contender.run()
    return contenders


def report(contenders: dict[str, Contender]) -> dict[str, Any]:
    """Print images/s, processor time per image and memory per process of each epoch; returns the numbers."""
    table = Table("each epoch", "images/s", "x plain", "CPU ms", "x plain", "RSS MB", "private MB")
    plain = contenders["plain"]
    results: dict[str, Any] = {}
    for name, contender in contenders.items():
        rate, time_share = (
            float(np.median(values) / np.median(base))
            for values, base in ((contender.rates, plain.rates), (plain.milliseconds, contender.milliseconds))
        )
        results[name] = {
            "images_per_second": contender.rates,
            "times_plain": rate,
            "cpu_ms_per_image": contender.milliseconds,
            "times_plain_by_cpu": time_share,
            "resident_mb": contender.resident,
            "private_mb": contender.private,
        }
        rates, milliseconds, resident, private = map(
            numbers, (contender.rates, contender.milliseconds, contender.resident, contender.private)
        )
        table.add_row(name, rates, f"{rate:.2f}", milliseconds, f"{time_share:.2f}", resident, private)
    for column in table.columns:
        column.no_wrap = True
    Console().print(table)
    return results


def numbers(values: list[float]) -> str:
    """Write numbers one after the other."""
    return " ".join(f"{value:.0f}" for value in values) or "-"


def main() -> None:
    """Read the command line, write the data, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=96, help="samples per epoch")
    parser.add_argument("--workers", type=int, default=2, help="loader processes; 0 loads in the main one")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(write_data(Path(folder), options.photos, options.images))
        results = report(measure(Path(folder), options.workers, options.epochs))
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()
