"""Steadiness over time: an image that only moves gives 0, what changes is measured in the task's unit."""

import json

import cv2
import numpy as np
import pytest
import torch

from taskformer.cli import main
from taskformer.data.images import write_npy, write_png
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError, UnknownNameError
from taskformer.evaluation import evaluate_sequence
from taskformer.evaluation.sequences import motion, warped
from taskformer.files import write_json
from taskformer.tasks import build_tasks

SPECS = {"semseg": {"classes": ["a", "b", "c"]}, "depth": {}, "normals": {}, "edges": {}}
HEIGHT, WIDTH = 96, 128


def texture(height, width, seed=0):
    noise = np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return np.uint8(255 * (smooth - smooth.min()) / np.ptp(smooth))


def at(whole, x, y):
    """What a camera sees of a large picture or map that is moved along."""
    return np.ascontiguousarray(whole[..., y : y + HEIGHT, x : x + WIDTH])


def scene():
    """A large picture and its true maps: stripes of classes that face other ways, and depth that rises to the right."""
    height, width = HEIGHT + 40, WIDTH + 40
    columns = np.broadcast_to(np.arange(width), (height, width))
    labels = columns // 16 % 3
    directions = np.array([[0, 0, -1], [0.6, 0, -0.8], [0, -1, 0]], np.float32)
    maps = {
        "semseg": labels.astype(np.int64),
        "depth": (1 + columns[None] / 100).astype(np.float32),
        "normals": np.moveaxis(directions[labels], -1, 0),
        "edges": np.zeros((1, height, width), np.float32),
    }
    return texture(height, width), maps


def save(folder, frames, specs=SPECS):
    """Write pictures and maps as `predict` names them."""
    for number, (picture, maps) in enumerate(frames):
        write_png(folder / "frames" / f"{number}.png", picture)
        for task, values in maps.items():
            write_npy(folder / "out" / "raw" / task / f"{number}.npy", values)
    write_json(folder / "out" / "predictions.json", {"tasks": specs, "every": 1})
    return folder / "out", folder / "frames"


def moving(steps):
    picture, maps = scene()
    planes = np.moveaxis(picture, -1, 0)
    return [(np.moveaxis(at(planes, x, y), 0, -1), {k: at(v, x, y) for k, v in maps.items()}) for x, y in steps]


def still(*changes):
    """The same picture, with other maps each time."""
    frames = moving([(0, 0)] * len(changes))
    return [(picture, maps | change) for (picture, maps), change in zip(frames, changes, strict=True)]


def test_an_image_that_moves_has_steady_maps(tmp_path):
    found = evaluate_sequence(*save(tmp_path, moving([(0, 0), (3, 2), (9, 4), (5, 10)])))
    assert found.results["semseg"] == found.results["edges"] == 0
    assert found.results["depth"] < 5e-4  # a twentieth of a pixel
    assert found.results["normals"] < 0.5  # bilinear at the stripes' rims
    for share, (x, y) in zip(found.compared, [(3, 2), (6, 2), (4, 6)], strict=True):
        overlap = (1 - x / WIDTH) * (1 - y / HEIGHT)
        assert share == pytest.approx(overlap, abs=0.03)
    # The same maps without the motion are not steady.
    static = [(moving([(0, 0)])[0][0], maps) for _, maps in moving([(0, 0), (3, 2)])]
    unsteady = evaluate_sequence(*save(tmp_path / "static", static)).results
    assert unsteady["semseg"] == pytest.approx(3 / 16, abs=0.03)
    assert unsteady["depth"] == pytest.approx(0.03, abs=1e-4)


def test_changes_are_in_the_unit_of_the_task(tmp_path):
    maps = moving([(0, 0)])[0][1]
    labels = maps["semseg"].copy()
    labels[:24] = (labels[:24] + 1) % 3
    turn = np.radians(10)
    turned = np.array([[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]])
    facing = np.broadcast_to(np.float32([0, 0, -1]).reshape(3, 1, 1), maps["normals"].shape).copy()
    rotated = np.einsum("ij,jhw->ihw", turned, facing).astype(np.float32)
    later = {"semseg": labels, "depth": maps["depth"] + 0.5, "normals": rotated, "edges": maps["edges"] + 0.25}
    found = evaluate_sequence(*save(tmp_path, still({"normals": facing}, later)))
    assert found.compared == [1]
    expected = {"semseg": 0.25, "depth": 0.5, "normals": 10, "edges": 0.25}
    assert found.results == pytest.approx(expected, rel=1e-5)
    units = {name: task.difference_unit for name, task in found.tasks.items()}
    assert units == {"semseg": "%", "depth": "m", "normals": "deg", "edges": ""}


def test_the_same_normals_are_no_angle_apart():
    vectors = torch.nn.functional.normalize(torch.randn(3, 20, 30), dim=0).numpy()
    apart = build_tasks(SPECS)["normals"].difference(vectors, 3 * vectors)
    assert apart.max() < 1e-5


def test_invalid_pixels_do_not_count(tmp_path):
    maps = moving([(0, 0)])[0][1]
    unknown = {name: values.copy() for name, values in maps.items()}
    unknown["semseg"][:, :64] = 255
    unknown["depth"][..., :64] = np.nan
    unknown["edges"][:] = np.nan
    later = {"semseg": (maps["semseg"] + 1) % 3, "depth": maps["depth"] + 1}
    found = evaluate_sequence(*save(tmp_path, still(unknown, later)), tasks=["semseg", "depth", "edges"])
    assert found.results["semseg"] == 1
    assert found.results["depth"] == pytest.approx(1)
    assert np.isnan(found.results["edges"])


def test_what_was_hidden_does_not_count():
    background, square = texture(HEIGHT, WIDTH), texture(32, 32, seed=1)
    frames = []
    for left in (40, 50):
        frame = background.copy()
        frame[32:64, left : left + 32] = square
        frames.append(frame)
    moved = motion(*frames)
    assert moved.seen[34:62, 41:48].mean() < 0.1  # what the square uncovers
    assert moved.seen[:24].mean() > 0.99
    assert moved.seen[36:60, 56:78].mean() > 0.95  # the square itself
    np.testing.assert_allclose(moved.x[48, 60:76], np.arange(60, 76) - 10, atol=0.2)
    places = warped(np.broadcast_to(np.arange(WIDTH), (HEIGHT, WIDTH)), moved)
    np.testing.assert_allclose(places[48, 60:76], np.arange(60, 76) - 10, atol=1)


def test_from_the_video_to_the_table(tmp_path, capsys):
    """A video whose image does not change: whatever the network says, it says it again."""
    from taskformer.modules import Baseline

    torch.manual_seed(0)
    model = Baseline({"depth": {}, "semseg": {"classes": ["a", "b", "c"]}}, embed_dim=8, head_dim=4)
    state = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(state)
    torch.save(state, tmp_path / "model.ckpt")
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 10, (WIDTH, HEIGHT))
    for _ in range(4):
        writer.write(texture(HEIGHT, WIDTH))
    writer.release()
    out = tmp_path / "out"
    main(["predict", str(tmp_path / "model.ckpt"), str(clip), f"--out={out}", "--raw=true", "--every=2"])
    main(["evaluate", "sequence", str(out), str(clip), "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["pairs"] == 1
    assert found["warped_difference"] == {"depth": 0, "semseg": 0}
    # The title is broken where the terminal ends.
    assert "clip.avi:1pairsofframes" in "".join(capsys.readouterr().out.split())


def test_what_is_no_sequence_is_a_sentence(tmp_path):
    out, frames = save(tmp_path, moving([(0, 0), (1, 1)]))
    with pytest.raises(DatasetNotFoundError, match=r"has no predictions\.json; give the folder that"):
        evaluate_sequence(frames, frames)
    with pytest.raises(UnknownNameError, match="unknown task of"):
        evaluate_sequence(out, frames, tasks=["depths"])
    write_png(frames / "1.png", texture(HEIGHT, WIDTH + 1))
    with pytest.raises(CorruptFileError, match=r"1.npy is 96x128 and its frame 96x129 \(height x width\)"):
        evaluate_sequence(out, frames)
    write_npy(out / "raw" / "depth" / "1.npy", np.zeros((1, HEIGHT, WIDTH + 1), np.float32))
    with pytest.raises(ConfigError, match="one size of at least 16 pixels, got 96x128 and 96x129"):
        evaluate_sequence(out, frames, tasks=["depth"])
    (frames / "1.png").unlink()
    with pytest.raises(DatasetNotFoundError, match="no values of two frames"):
        evaluate_sequence(out, frames)
