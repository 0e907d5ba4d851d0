"""How much faster a head trains on a frozen encoder whose maps lie on disk, and whether the losses are the same.

Usage: python benchmarks/feature_cache.py [ENCODER] [IMAGES]

Trains on the first rooms, in batches of eight, for two epochs of the same images: with the encoder, with what it has
written to disk in the first epoch, and with the encoder in bfloat16. Prints the images per second of the second epoch's
training steps (encoder, head, losses, backward pass, optimizer), and the largest relative difference of a loss.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from taskformer.data import RoomsDataModule
from taskformer.modules import Baseline

BATCH = 8


def train(batches: Sequence[Any], encoder: str, **settings: Any) -> tuple[list[float], float]:
    """Train for two epochs; returns the losses of both and the images per second of the second."""
    torch.manual_seed(0)
    tasks = {"depth": {}, "normals": {}}
    model = Baseline(tasks, backbone=encoder, freeze="all", **settings).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    losses, start = [], 0.0
    for _ in range(2):
        start = time.perf_counter()
        for batch in batches:
            loss = model.compute_losses(model(batch["image"]), batch["targets"])["total"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, BATCH * len(batches) / (time.perf_counter() - start)


def main(encoder: str = "vit_small_patch14_dinov2", images: str = "64") -> None:
    """Print a row for each way."""
    data = RoomsDataModule(tasks=["depth", "normals"], batch_size=BATCH, num_workers=0)
    data.setup("fit")
    loader = iter(data.train_dataloader())
    batches = [next(loader) for _ in range(int(images) // BATCH)]
    with tempfile.TemporaryDirectory() as folder:
        expected, plain = train(batches, encoder)
        ways = {"from disk": {"feature_cache": {"folder": folder}}, "bfloat16": {"frozen_precision": "bfloat16"}}
        print(f"{encoder}, {len(batches) * BATCH} images of {tuple(batches[0]['image'].shape[-2:])}")
        print(f"{'encoded':10} {plain:8.1f} images/s")
        for name, settings in ways.items():
            losses, rate = train(batches, encoder, **settings)
            apart = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
            print(f"{name:10} {rate:8.1f} images/s, {rate / plain:.2f} times, losses differ by {apart:.1e}")
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
        print(f"{size / len(batches) / BATCH / 1e6:.2f} MB per image")


if __name__ == "__main__":
    main(*sys.argv[1:])
