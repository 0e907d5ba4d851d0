"""Videos to maps: each frame as a photograph of its own, upright, whole files or none."""

import json
import struct

import cv2
import numpy as np
import pytest

import taskformer
from taskformer.cli import main
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError
from taskformer.modules.photographs import predict
from taskformer.modules.video import frame_rate, read_frames, video_writer

RATE = 12.5
#: Of MPEG-4, which keeps flat colours nearly.
LOSS = 4


def color(number):
    """The flat colour of a frame, another one each."""
    return np.array([40 * number + 10, 200 - 30 * number, 100], np.uint8)


def write(path, count=5, height=48, width=64):
    """Write frames of flat colours, white in the upper left corner."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), RATE, (width, height))
    for number in range(count):
        frame = np.broadcast_to(color(number)[::-1], (height, width, 3)).copy()
        frame[:16, :16] = 255
        writer.write(frame)
    writer.release()
    return path


def numbers(path, **options):
    return [frame.number for frame in read_frames(path, **options)]


def test_frames_come_in_their_order_and_colours(tmp_path):
    path = write(tmp_path / "clip.mp4")
    frames = list(read_frames(path))
    assert [frame.number for frame in frames] == [0, 1, 2, 3, 4]
    for number, pixels in frames:
        assert pixels.shape == (48, 64, 3)
        np.testing.assert_allclose(pixels[24:, 32:].mean((0, 1)), color(number), atol=LOSS)
    assert frame_rate(path) == pytest.approx(RATE)


def test_some_of_the_frames(tmp_path):
    path = write(tmp_path / "clip.mp4")
    assert numbers(path, every=2) == [0, 2, 4]
    assert numbers(path, most=2) == [0, 1]
    assert numbers(path, every=3, most=9) == [0, 3]
    for wrong in ({"every": 0}, {"most": 0}):
        with pytest.raises(ConfigError, match="must be in"):
            next(read_frames(path, **wrong))


def test_a_video_that_was_held_upright_stands(tmp_path):
    """Telephones store lying frames and a matrix that turns them (ISO 14496-12, 8.3.2)."""
    path = write(tmp_path / "clip.mp4")
    one, full = 1 << 16, 1 << 30
    upright, quarter = (
        struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, full),
        struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, full),
    )
    content = path.read_bytes()
    place = content.index(upright, content.index(b"tkhd"))
    path.write_bytes(content[:place] + quarter + content[place + len(quarter) :])
    (frame,) = read_frames(path, most=1)
    assert frame.pixels.shape == (64, 48, 3)
    assert frame.pixels[:12, -12:].min() > 200  # the white corner is at the upper right
    assert frame.pixels[:12, :12].min() < 150


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (2, 3), (1, 1)])
def test_pictures_of_any_size_are_written(tmp_path, size):
    height, width = size
    with video_writer(tmp_path / "new" / "out.mp4", 10) as add:
        for number in range(3):
            add(np.broadcast_to(color(number), (height, width, 3)))
    frames = list(read_frames(tmp_path / "new" / "out.mp4"))
    assert len(frames) == 3
    assert frames[0].pixels.shape == (height + height % 2, width + width % 2, 3)
    for number, pixels in frames:
        np.testing.assert_allclose(pixels[-1, -1], color(number), atol=2 * LOSS)


def test_half_a_video_is_none(tmp_path):
    with pytest.raises(KeyboardInterrupt), video_writer(tmp_path / "out.mp4", 10) as add:  # noqa: PT012  # in the middle
        add(np.zeros((8, 8, 3), np.uint8))
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_what_is_no_video_is_a_sentence(tmp_path, capfd):
    with pytest.raises(DatasetNotFoundError, match=r"none.mp4 cannot be read \(no such file\)"):
        list(read_frames(tmp_path / "none.mp4"))
    whole = write(tmp_path / "clip.mp4").read_bytes()
    for content in (b"", b"not a video", whole[:1000]):
        (tmp_path / "broken.mp4").write_bytes(content)
        with pytest.raises(CorruptFileError, match=rf"broken.mp4 \({len(content)} bytes\) is truncated or not a video"):
            list(read_frames(tmp_path / "broken.mp4"))
    assert capfd.readouterr().err == ""


def test_a_video_that_ends_early_is_named(tmp_path, capsys):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), RATE, (64, 48))
    for _ in range(20):
        writer.write(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    writer.release()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    found = len(list(read_frames(path)))
    assert 5 <= found < 15
    assert f"clip.avi ends after {found} of 20 frames: it is damaged there" in capsys.readouterr().err


def test_each_frame_is_predicted_as_a_photograph(checkpoint, tmp_path, capsys):
    path = write(tmp_path / "clips" / "clip.mp4", height=47, width=63)
    out, model = tmp_path / "out", taskformer.load(checkpoint)
    main(["predict", str(checkpoint), str(path), f"--out={out}", "--every=2", "--raw=true"])
    assert "wrote depth, semseg of 3 frames of 1 video to " in capsys.readouterr().out
    frames = list(read_frames(path, every=2))
    drawn = {task: list(read_frames(out / task / "clip.mp4")) for task in model.tasks}
    for place, (number, pixels) in enumerate(frames):
        for name, values in model.predict_image(pixels).items():
            np.testing.assert_array_equal(np.load(out / "raw" / name / "clip" / f"{number:06d}.npy"), values)
            picture = drawn[name][place].pixels[: pixels.shape[0], : pixels.shape[1]].astype(int)
            expected = model.tasks[name].colorize(values)
            assert np.abs(picture.mean((0, 1)) - expected.mean((0, 1))).max() < LOSS
    assert [len(found) for found in drawn.values()] == [3, 3]
    assert len(list(read_frames(out / "overview" / "clip.mp4"))) == 3
    assert frame_rate(out / "depth" / "clip.mp4") == pytest.approx(RATE / 2)
    facts = json.loads((out / "predictions.json").read_text())
    assert (facts["every"], facts["tasks"]["depth"]) == (2, {})
    assert not (out / "overview.png").exists()


def test_photographs_and_videos_together(checkpoint, tmp_path, capsys):
    write(tmp_path / "a.mp4", count=2)
    (tmp_path / "b.mp4").write_bytes(b"none")
    cv2.imwrite(str(tmp_path / "c.png"), np.zeros((40, 60, 3), np.uint8))
    done = predict(checkpoint, [tmp_path / f for f in ("a.mp4", "b.mp4", "c.png")], tmp_path / "out", tile=64, scale=1)
    assert done.frames == {"a": 2}
    assert len(done.failed) == 1
    assert "of 1 photographs and 2 frames of 1 video" in done.summary()
    assert sorted(path.name for path in (tmp_path / "out" / "depth").iterdir()) == ["a.mp4", "c.png"]
    assert [path.name for path in (tmp_path / "out" / "raw" / "depth").iterdir()] == ["c.npy"]
    assert (tmp_path / "out" / "overview.png").exists()
