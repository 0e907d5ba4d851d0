"""Photographs in tiles: the whole image's prediction where the network sees no further than a tile's rim."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from taskformer.errors import ConfigError
from taskformer.modules.base import MultiTaskModule
from taskformer.modules.prediction import GRID, WHOLE, RowDecoder, View, predict_maps, tiled
from taskformer.tasks import build_tasks

TASKS = build_tasks({"depth": {}, "semseg": {"classes": ["a", "b", "c"]}})


class Local(nn.Module):
    """Looks a few pixels around each one, and at patches of the coarsest stride, as an encoder does."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.near = nn.Conv2d(3, 4, kernel_size=5, padding=2)
        self.patch = nn.Conv2d(3, 4, kernel_size=GRID, stride=GRID)
        self.seen = []

    def forward(self, image):
        self.seen.append(tuple(image.shape[-2:]))
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % GRID, 0, -height % GRID))
        far = F.interpolate(self.patch(padded), scale_factor=GRID)[..., :height, :width]
        both = self.near(image) + far
        return {"depth": both[:, :1] + 1, "semseg": both[:, 1:]}


@pytest.mark.parametrize("tile", [64, 96, 100, 257])
@pytest.mark.parametrize("overlap", [0, 0.1, 0.25, 0.5])
def test_shares_add_up_to_one_and_leave_out_the_rims(tile, overlap):
    for length in (1, tile - 1, tile, tile + 1, tile + 31, tile + 32, 2 * tile - 1, 2 * tile, 3 * tile + 5, 7 * tile):
        pieces = View(tile=tile, overlap=overlap).pieces(length)
        total = torch.zeros(length)
        for piece in pieces:
            total[piece.start : piece.stop] += piece.shares
            assert len(piece.shares) == piece.stop - piece.start <= min(length, tile + GRID - 1)
            assert piece.start % GRID == 0
        torch.testing.assert_close(total, torch.ones(length), atol=1e-6, rtol=0)
        assert (pieces[0].start, pieces[-1].stop) == (0, length)
        rim = int(tile * overlap / 4)
        for piece, following in pairwise(pieces):
            assert piece.stop - following.start >= int(tile * overlap)
            assert not piece.shares[len(piece.shares) - rim :].any()
            assert not following.shares[:rim].any()


@pytest.mark.parametrize("size", [(64, 64), (130, 333), (257, 96), (50, 300)])
def test_tiles_give_the_prediction_of_the_whole_image(size):
    network, image = Local(), torch.rand(1, 3, *size)
    with torch.no_grad():
        whole = network(image)
        network.seen.clear()
        rows = list(tiled(network, image, View(tile=128, overlap=0.5), ["depth", "semseg"]))
    for name, expected in whole.items():
        torch.testing.assert_close(torch.cat([part[name] for part in rows], dim=-2), expected, atol=1e-5, rtol=1e-5)
    assert max(max(sides) for sides in network.seen) < 128 + GRID
    assert max(part["depth"].shape[-2] for part in rows) < 128 + GRID


@pytest.mark.parametrize("shorter", [0, 96, 200])
def test_maps_of_tiles_are_those_of_the_whole_photograph(shorter):
    """Also where the photograph is seen smaller or larger than it is, and rows are decoded between those that came."""
    network, image = Local(), torch.rand(1, 3, 170, 301)
    with torch.no_grad():
        expected = predict_maps(TASKS, network, image, shorter)
        found = predict_maps(TASKS, network, image, shorter, View(tile=64, overlap=0.5))
    assert found["semseg"].shape == (1, 170, 301)
    assert (found["semseg"] == expected["semseg"]).float().mean() > 0.9999
    torch.testing.assert_close(found["depth"], expected["depth"], atol=1e-5, rtol=1e-5)


def test_tiles_fade_into_each_other():
    """A network that says each tile's own number: no pixel jumps further than a cosine over the overlap does."""
    numbers = iter(range(100))

    def network(image):
        return {"depth": torch.full((1, 1, *image.shape[-2:]), float(next(numbers)))}

    (rows,) = tiled(network, torch.zeros(1, 3, 128, 320), View(tile=128, overlap=0.5), ["depth"])
    line = rows["depth"][0, 0, 0]
    assert (line[0], line[-1]) == (0, 3)
    assert line.diff().min() >= 0
    assert line.diff().max() < 1.05 * torch.pi / 2 / 32  # the steepest of a fade over 32 pixels


def test_rows_come_in_any_portions():
    task, output = TASKS["semseg"], torch.rand(1, 3, 23, 10)
    for height in (7, 23, 24, 100):
        expected = task.decode(F.interpolate(output, size=(height, 17), mode="bilinear"))
        for portions in ([23], [1] * 23, [5, 1, 10, 7]):
            decoder = RowDecoder(task, 23, height, 17)
            for part in output.split(portions, dim=-2):
                decoder.add(part)
                assert decoder.kept.shape[-2] <= part.shape[-2] + 2
            assert (decoder.decoded() == expected).float().mean() > 0.99, (height, portions)


def test_tasks_about_the_image_see_all_of_it():
    class Sizes(nn.Module):
        def forward(self, image):
            *_, height, width = image.shape
            return {"scene": torch.tensor([[float(height), width]]), "depth": torch.zeros(1, 1, height, width)}

    model = MultiTaskModule({"scene": {"type": "classification", "classes": ["a", "b"]}, "depth": {}}, Sizes())
    model.train_size.copy_(torch.tensor([100, 120]))
    pixels = torch.rand(3, 200, 400)
    in_tiles = model.predict_image(pixels, View(scale=1, tile=64))
    assert list(in_tiles) == ["scene", "depth"]
    assert (in_tiles["scene"] == model.predict_image(pixels)["scene"]).all()


def test_the_scale_is_the_trainings_or_the_one_asked_for():
    network = Local()
    for view, size in ((WHOLE, (50, 75)), (View(scale=1), (200, 300)), (View(scale=0.5, tile=4096), (100, 150))):
        network.seen.clear()
        predict_maps(TASKS, network, torch.rand(1, 3, 200, 300), shorter=50, view=view)
        assert network.seen == [size]


@pytest.mark.parametrize("tile", [None, 64])
def test_what_looks_four_times_larger_is_not_four_times_closer(tile):
    def network(image):
        return dict.fromkeys(tasks, torch.full((1, 1, *image.shape[-2:]), 2.0))

    tasks = build_tasks({"depth": {}, "inverse_depth": {}, "edge_texture": {}})
    maps = predict_maps(tasks, network, torch.rand(1, 3, 200, 300), shorter=50, view=View(scale=1, tile=tile))
    for name, expected in {"depth": 8.0, "inverse_depth": 0.5, "edge_texture": 2.0}.items():
        torch.testing.assert_close(maps[name], torch.full((1, 1, 200, 300), expected))


@pytest.mark.parametrize("wrong", [{"tile": 63}, {"overlap": 0.6}, {"overlap": -0.1}, {"scale": 0}])
def test_views_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must be in "):
        View(**wrong)
