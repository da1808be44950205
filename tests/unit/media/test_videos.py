"""Decoding: every kind of video, and what is refused before or while it is decoded."""

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from posttrain.media import videos
from posttrain.media.suffixes import VIDEO_SUFFIXES
from posttrain.media.videos import VideoError, check_video, read_frames, video_files, video_hash, video_info
from posttrain.types import VideoRef

SIZE = (96, 64)
MakeVideo = Callable[..., VideoRef]


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_every_container_gives_the_frames_that_were_written(
    suffix: str, tmp_path: Path, make_video: MakeVideo
):
    ref = make_video(tmp_path / f"a{suffix}") if suffix != ".m4v" else make_video(tmp_path / "a.mp4")
    if suffix == ".m4v":
        (tmp_path / "a.mp4").rename(tmp_path / "a.m4v")
        ref = VideoRef((str(tmp_path / "a.m4v"),))
    info = video_info(ref)
    assert (info.frames, info.fps, info.width, info.height) == (range(30), 10.0, *SIZE)
    check_video(ref)
    frames = list(read_frames(ref, [0, 7, 7, 29]))
    assert all(frame.shape == (64, 96, 3) and frame.dtype == np.uint8 for frame in frames)
    for frame, number in zip(frames, (0, 7, 7, 29), strict=True):
        assert abs(frame.mean() - 4 * number) < 6


def test_colours_are_red_green_blue(tmp_path: Path):
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, SIZE)
    for _ in range(3):
        writer.write(np.full((64, 96, 3), (0, 0, 255), dtype=np.uint8))  # red, in OpenCV's order
    writer.release()
    (frame,) = read_frames(VideoRef((str(tmp_path / "a.avi"),)), [1])
    assert frame[..., 0].mean() > 240 > 20 > frame[..., 2].mean()


def test_a_part_is_cut_by_time(tmp_path: Path, make_video: MakeVideo):
    path = make_video(tmp_path / "a.mp4").paths
    assert video_info(VideoRef(path, start=0.95, end=2.0)).frames == range(10, 21)
    assert video_info(VideoRef(path, start=2.0)).frames == range(20, 30)
    with pytest.raises(VideoError, match="shows 0 frames, of 30 in total"):
        video_info(VideoRef(path, start=5.0))
    with pytest.raises(ValueError, match="no part of it"):
        VideoRef(path, start=3.0, end=3.0)
    with pytest.raises(ValueError, match="rates above 0"):
        VideoRef(path, fps=float("nan"))


def test_frames_are_ordered_as_people_number_them(clips: list[VideoRef], tmp_path: Path):
    folder, some = clips[2], clips[3]
    assert [Path(file).name for file in video_files(folder)] == [f"{number}.png" for number in range(13)]
    assert (video_info(folder).fps, video_info(some).fps) == (3.0, videos.FRAME_RATE)
    (of_folder,) = read_frames(folder, [10])
    (of_list,) = read_frames(some, [1])
    assert np.array_equal(of_folder, of_list)
    assert video_hash(folder) != video_hash(some)
    linked = tmp_path / "linked"
    linked.mkdir()
    for number in (2, 10):
        (linked / f"{number}.png").symlink_to(video_files(folder)[number])
    assert video_files(VideoRef((str(linked),))) == [video_files(folder)[number] for number in (2, 10)]
    (linked / "11.png").symlink_to("/etc/passwd")
    with pytest.raises(VideoError, match="it is a link to passwd"):
        video_files(VideoRef((str(linked),)))


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".webm"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_truncated_files_are_refused_by_the_check_and_by_the_reader(
    suffix: str, share: float, tmp_path: Path, make_video: MakeVideo
):
    whole = Path(make_video(tmp_path / f"whole{suffix}", 60).paths[0]).read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(whole[: int(len(whole) * share)])
    ref = VideoRef((str(tmp_path / f"cut{suffix}"),))
    with pytest.raises(VideoError, match=f"cut{suffix}.* cannot be used: "):
        check_video(ref)
    with pytest.raises(VideoError, match=f"cut{suffix}.* cannot be used: "):
        list(read_frames(ref, range(60)))


def written(path: Path, content: bytes) -> VideoRef:
    path.write_bytes(content)
    return VideoRef((str(path),))


def renamed(ref: VideoRef, path: Path) -> VideoRef:
    Path(ref.paths[0]).rename(path)
    return VideoRef((str(path),))


def without_frames(ref: VideoRef) -> VideoRef:
    data = Path(ref.paths[0]).read_bytes()
    return written(Path(ref.paths[0]), data[: data.index(b"movi") + 4])


def pictures(folder: Path, *sides: int) -> VideoRef:
    for side in sides:
        cv2.imwrite(str(folder / f"{side}.png"), np.zeros((side, 40, 3), np.uint8))
    return VideoRef(tuple(str(folder / f"{side}.png") for side in sides))


def a_pipe(folder: Path) -> VideoRef:
    os.mkfifo(folder / "a.mp4")
    return VideoRef((str(folder / "a.mp4"),))


PLAYLIST = b"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10.0,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
#: What must be refused, by the reason.
HOSTILE: dict[str, Callable[[Path, MakeVideo], VideoRef]] = {
    "No such file": lambda folder, make: VideoRef((str(folder / "none.mp4"),)),
    "not a regular file": lambda folder, make: a_pipe(folder),
    "not that of a .mp4 file": lambda folder, make: written(folder / "a.mp4", PLAYLIST),
    "not that of a .mov file": lambda folder, make: renamed(make(folder / "a.avi"), folder / "a.mov"),
    "not that of a .webm file": lambda folder, make: renamed(pictures(folder, 9), folder / "a.webm"),
    "must end in one of": lambda folder, make: written(folder / "a.txt", b"text"),
    "it is damaged": lambda folder, make: written(folder / "a.mp4", b"\0\0\0\x18ftypmp42" + bytes(4000)),
    "shows 1 frames": lambda folder, make: make(folder / "a.mp4", 1),
    "damaged|none of its frames|shows 0|tells of": lambda folder, make: without_frames(
        make(folder / "a.avi", 3)
    ),
    "remove frame_rate": lambda folder, make: VideoRef(make(folder / "a.mp4").paths, frame_rate=2.0),
    "more than the 100 allowed": lambda folder, make: make(folder / "a.mp4", 101, (32, 32)),
    "pixels allowed": lambda folder, make: make(folder / "a.mp4", 2, (1024, 1040)),
    "41.png is 40×41, the others 40×40": lambda folder, make: pictures(folder, 40, 41),
    "none of PNG": lambda folder, make: VideoRef(written(folder / "a.png", b"no picture").paths * 2),
    "has no .png": lambda folder, make: VideoRef((str(folder),)),
}


@pytest.mark.parametrize("reason", HOSTILE)
def test_hostile_videos_are_refused_and_named(
    reason: str, tmp_path: Path, make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(videos, "MAX_FRAMES", 100)
    monkeypatch.setattr(videos, "MAX_FRAME_PIXELS", 1 << 20)
    ref = HOSTILE[reason](tmp_path, make_video)
    with pytest.raises(VideoError, match=reason) as refused:
        read_all(ref)
    assert ref.paths[0][-100:] in str(refused.value)


def read_all(ref: VideoRef) -> None:
    check_video(ref)
    assert list(read_frames(ref, video_info(ref).frames))


def test_a_header_that_tells_of_a_hundred_thousand_frames_is_refused_at_once(
    tmp_path: Path, make_video: MakeVideo
):
    path = Path(make_video(tmp_path / "a.avi").paths[0])
    data = bytearray(path.read_bytes())
    at = data.index(b"strh") + 8 + 32  # dwLength of the stream's header
    assert int.from_bytes(data[at : at + 4], "little") == 30
    data[at : at + 4] = (100_000).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(VideoError, match="100,000 frames, more than"):
        check_video(VideoRef((str(path),)))


def test_frames_are_decoded_one_at_a_time(tmp_path: Path, make_video: MakeVideo):
    ref = make_video(tmp_path / "a.avi", frames=60, size=(640, 480))
    one = 640 * 480 * 3
    tracemalloc.start()
    for frame in read_frames(ref, range(60)):
        assert frame.nbytes == one
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * one


def test_the_hash_is_that_of_the_content(tmp_path: Path, make_video: MakeVideo):
    ref = make_video(tmp_path / "a.mp4")
    first = video_hash(ref)
    Path(ref.paths[0]).rename(tmp_path / "b.mp4")
    assert video_hash(VideoRef((str(tmp_path / "b.mp4"),))) == first
    assert video_hash(make_video(tmp_path / "c.mp4", frames=31)) != first


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([(40, 30), (40, 30), (30, 40), (41, 30)]), min_size=2, max_size=6),
    st.lists(st.booleans(), min_size=6, max_size=6),
    st.sampled_from([".png", ".jpg", ".webp"]),
)
def test_pictures_of_two_sizes_are_found_by_the_check(
    tmp_path: Path, sizes: list[tuple[int, int]], turned: list[bool], suffix: str
) -> None:
    """Exactly where reading all of them fails; the size is that of the picture as it is shown."""
    paths = []
    for number, (size, turn) in enumerate(zip(sizes, turned, strict=False)):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6 if turn else 1
        paths.append(str(tmp_path / f"{number}{suffix}"))
        Image.new("RGB", size).save(paths[-1], exif=exif)
    ref = VideoRef(tuple(paths))
    shown = [size[::-1] if turn else size for size, turn in zip(sizes, turned, strict=False)]
    if len(set(shown)) == 1:
        read_all(ref)
        return
    with pytest.raises(VideoError, match=r"frame .*/\d\.\w+ is \d+×\d+, the others \d+×\d+") as refused:
        check_video(ref)
    number = int(Path(str(refused.value).partition("frame ")[2].split()[0]).stem)
    assert f"is {shown[number][0]}×{shown[number][1]}" in str(refused.value)
    assert shown.count(shown[number]) <= len(shown) / 2
    with pytest.raises(VideoError):
        list(read_frames(ref, range(len(paths))))
