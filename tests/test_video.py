"""Frames of video files: which, when, how turned, and what is said of broken files."""

import math

import numpy as np
import pytest
from made_videos import HEIGHT, WIDTH, grey, grey_frames, make_video
from PIL import Image

from nkf.errors import ImageError, NkfError
from nkf.video import FrameSelection, Video, camera_frames

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".ts")


def read(file, selection=None):
    """Numbers, times and grey levels of the selected frames."""
    with Video(file) as video:
        frames = list(video.frames(selection))
    return [frame.number for frame in frames], [frame.time_s for frame in frames], [level(frame) for frame in frames]


def level(frame):
    assert frame.image_rgb.dtype == np.uint8
    assert frame.image_rgb.flags.c_contiguous
    return round(float(frame.image_rgb.mean()))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_frame_has_its_number_time_and_picture(tmp_path, suffix):
    file = make_video(tmp_path / f"clip{suffix}", grey_frames(30))
    numbers, times, levels = read(file)
    assert numbers == list(range(30))
    assert np.subtract(times, times[0]) == pytest.approx(np.arange(30) / 25, abs=1e-6)
    assert times[0] == pytest.approx(0.08 if suffix == ".ts" else 0)  # MPEG-TS does not begin at 0
    assert levels == pytest.approx([grey(number) for number in numbers], abs=2)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".mov"])
def test_a_variable_frame_rate_keeps_its_times(tmp_path, suffix):
    times_ms = np.cumsum([0, 33, 34, 8, 200, 17, 950, 33, 33, 41]).tolist()
    file = make_video(tmp_path / f"clip{suffix}", grey_frames(10), times_ms)
    numbers, times, levels = read(file)
    assert times == pytest.approx(np.array(times_ms) / 1000, abs=1e-9)
    assert levels == pytest.approx([grey(number) for number in numbers], abs=2)


def test_avi_with_frames_out_of_order(tmp_path):
    numbers, times, levels = read(make_video(tmp_path / "clip.avi", grey_frames(20), codec="libx264"))
    assert times == pytest.approx(np.arange(20) / 25)
    assert levels == pytest.approx([grey(number) for number in numbers], abs=2)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(("rotation", "corner"), [(0, (0, 0)), (90, (-1, 0)), (-90, (0, -1)), (180, (-1, -1))], ids=str)
def test_rotation_is_applied(tmp_path, suffix, rotation, corner):
    """Row and column of the corner that was the upper left one."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[: HEIGHT // 2, : WIDTH // 2] = 255
    with Video(make_video(tmp_path / f"clip{suffix}", [image] * 3, rotation=rotation)) as video:
        assert (video.info.height, video.info.width) == ((HEIGHT, WIDTH) if rotation % 180 == 0 else (WIDTH, HEIGHT))
        assert video.info.rotation_deg == rotation % 360
        for frame in video.frames():
            assert frame.image_rgb.shape == (video.info.height, video.info.width, 3)
            assert {c: frame.image_rgb[c].mean() > 128 for c in ((0, 0), (0, -1), (-1, 0), (-1, -1))} == {
                c: c == corner for c in ((0, 0), (0, -1), (-1, 0), (-1, -1))
            }


def test_info(tmp_path):
    info = Video(make_video(tmp_path / "clip.mp4", grey_frames(25))).info
    assert (info.path, info.width, info.height, info.codec) == (str(tmp_path / "clip.mp4"), WIDTH, HEIGHT, "h264")
    assert (info.fps, info.duration_s, info.frames) == (pytest.approx(25), pytest.approx(1), 25)


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (FrameSelection(stride=7), [0, 7, 14, 21, 28]),
        (FrameSelection(start_s=0.4), list(range(10, 30))),
        (FrameSelection(end_s=0.4), list(range(10))),
        (FrameSelection(stride=4, start_s=0.2, end_s=0.8), [5, 9, 13, 17]),
        (FrameSelection(start_s=5), []),
    ],
)
def test_selection(tmp_path, selection, expected):
    numbers, times, levels = read(make_video(tmp_path / "clip.mp4", grey_frames(30)), selection)
    assert numbers == expected
    assert times == pytest.approx([number / 25 for number in expected])
    assert levels == pytest.approx([grey(number) for number in expected], abs=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride is 0; expected 1"),
        ({"start_s": 2, "end_s": 2}, "expected an end after the start"),
        ({"start_s": math.nan}, "expected an end after the start"),
    ],
)
def test_a_selection_that_takes_nothing(options, message):
    with pytest.raises(NkfError, match=message):
        FrameSelection(**options)


@pytest.mark.parametrize(
    ("suffix", "share"), [(".mp4", 0.9), (".mov", 0.9), (".mkv", 0.7), (".webm", 0.7), (".avi", 0.7)]
)
def test_a_file_that_is_cut_off_gives_the_frames_before(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 255, (40, HEIGHT, WIDTH, 3), np.uint8)
    file = make_video(tmp_path / f"clip{suffix}", list(noise), faststart=suffix in (".mp4", ".mov"))
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    frames = []
    with Video(file) as video, pytest.raises(ImageError, match=rf"^{file}: cut off after frame \d+ \(\d\.\d\d s\)$"):
        frames.extend(video.frames())
    assert 15 < len(frames) < 40
    assert [frame.number for frame in frames] == list(range(len(frames)))


def test_a_file_that_is_cut_at_the_border_of_a_frame(tmp_path):
    """FFmpeg takes this for the end of the video."""
    file = make_video(tmp_path / "clip.mkv", grey_frames(30))
    whole = file.read_bytes()
    import av

    with av.open(str(file)) as container:
        ends = [packet.pos + packet.size for packet in container.demux() if packet.size]
    file.write_bytes(whole[: ends[20]])
    with Video(file) as video, pytest.raises(ImageError, match="cut off after frame"):
        list(video.frames())


@pytest.mark.parametrize("behind", [b"TAG" + bytes(125), b"SEFH" + bytes(30) + b"SEFT", b"\n" * 9])
def test_what_was_put_behind_a_whole_file_is_no_missing_part(tmp_path, behind):
    file = make_video(tmp_path / "clip.mp4", grey_frames(10))
    file.write_bytes(file.read_bytes() + behind)
    with Video(file) as video:
        assert len(list(video.frames())) == 10


def test_damage_in_the_middle_ends_the_video_there(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, HEIGHT, WIDTH, 3), np.uint8)
    file = make_video(tmp_path / "clip.mp4", list(noise))
    data = bytearray(file.read_bytes())
    start, end = len(data) * 4 // 10, len(data) * 6 // 10
    data[start:end] = bytes(end - start)
    file.write_bytes(data)
    frames = []
    with Video(file) as video, pytest.raises(ImageError, match=r"clip.mp4: damaged .*after frame \d+"):
        frames.extend(video.frames())
    assert 5 < len(frames) < 30


def test_a_selection_that_ends_before_the_damage_is_fine(tmp_path):
    file = make_video(tmp_path / "clip.webm", grey_frames(40))
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * 0.7)])
    assert read(file, FrameSelection(end_s=0.2))[0] == [0, 1, 2, 3, 4]


def bytes_of_an_mp4_without_index(tmp_path):
    whole = make_video(tmp_path / "whole.mp4", grey_frames(40)).read_bytes()
    return whole[: len(whole) // 2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.mp4", b"hello\n" * 100, "not a video that can be read"),
        ("text.txt", b"hello\n" * 100, "not a video that can be read"),
        ("empty.mp4", b"", "not a video that can be read"),
        ("list.m3u8", b"#EXTM3U\n#EXTINF:1,\nother.ts\n", "not a video that can be read"),
        ("list.mp4", b"ffconcat version 1.0\nfile other.mp4\n", "not a video that can be read"),
        ("short.mkv", b"\x1a\x45\xdf\xa3", "not a video that can be read"),
        ("short.avi", b"RIFF", "not a video that can be read"),
        ("broken.gif", b"GIF89a" + bytes(20), "not a video that can be read"),
        ("no_index.mp4", bytes_of_an_mp4_without_index, "cut off, its index is missing"),
    ],
)
def test_what_is_no_video(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content(tmp_path) if callable(content) else content)
    with pytest.raises(ImageError, match=rf"^{file}: {message} \([^\n]+\)$"):
        Video(file)


def test_an_unknown_coding(tmp_path):
    file = make_video(tmp_path / "clip.mp4", grey_frames(3))
    file.write_bytes(file.read_bytes().replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"))
    with pytest.raises(ImageError, match=r"clip\.mp4: a video in a coding that is not known here$"):
        Video(file)


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_frames_that_are_too_large(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("nkf.video_sources.MAX_FRAME_PIXELS", WIDTH * HEIGHT - 1)
    file = tmp_path / f"clip{suffix}"
    if suffix == ".gif":
        Image.fromarray(grey_frames(1)[0]).save(file)
    else:
        make_video(file, grey_frames(2))
    with pytest.raises(ImageError, match=r"frames of 96x64 pixels, at most 6,143"):
        Video(file)


def test_text_in_a_foreign_encoding_is_no_obstacle(tmp_path):
    import av

    file = tmp_path / "clip.mkv"
    with av.open(str(file), "w") as container:
        container.metadata["title"] = "title with mark"
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(grey_frames(1)[0], format="rgb24")))
        container.mux(stream.encode(None))
    file.write_bytes(file.read_bytes().replace(b"title with mark", b"title w\xeeth mark"))
    assert read(file)[0] == [0]


def test_without_pyav(tmp_path, monkeypatch):
    monkeypatch.setattr("nkf.video.find_spec", lambda name: None)
    with pytest.raises(NkfError, match=r"^videos need PyAV: pip install av$"):
        Video(tmp_path / "clip.mp4")


def test_sound_alone_is_no_video(tmp_path):
    import av

    file = tmp_path / "sound.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ImageError, match="no video in it"):
        Video(file)


@pytest.mark.parametrize(("name", "message"), [("missing.mp4", "No such file"), (".", "Is a directory")])
def test_what_is_no_file(tmp_path, name, message):
    with pytest.raises(NkfError, match=message) as caught:
        Video(tmp_path / name)
    assert not isinstance(caught.value, ImageError)


@pytest.mark.parametrize(("suffix", "options"), [(".gif", {}), (".png", {}), (".webp", {"lossless": True})])
def test_animations(tmp_path, suffix, options):
    frames = [Image.fromarray(image) for image in grey_frames(4)]
    file = tmp_path / f"clip{suffix}"
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=[100, 50, 400, 100], **options)
    numbers, times, levels = read(file)
    assert numbers == [0, 1, 2, 3]
    assert times == pytest.approx([0, 0.1, 0.15, 0.55])
    assert levels == pytest.approx([grey(number) for number in range(4)], abs=3)


def test_a_gif_that_is_cut_off_gives_the_frames_before(tmp_path):
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)) for _ in range(6)]
    file = tmp_path / "clip.gif"
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=100)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    found = []
    with Video(file) as video, pytest.raises(ImageError, match=r"clip\.gif: (damaged|cut off)"):
        found.extend(video.frames())
    assert 0 < len(found) < 6


def test_a_name_that_looks_like_an_address_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "clip.mp4", grey_frames(3)).rename("pipe:0.mp4")
    assert read("pipe:0.mp4")[0] == [0, 1, 2]


def test_no_camera():
    with pytest.raises(NkfError, match=r"^/dev/no_camera: no camera that can be read"):
        next(camera_frames("/dev/no_camera"))
