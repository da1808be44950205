"""Rows with videos: every format's way to name them, what is refused, and what is set aside."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import DatasetConfig
from posttrain.data.checking import check_rows
from posttrain.data.dataset import Dataset
from posttrain.data.formats import (
    DataError,
    canonical_row,
    parse_row,
    read_canonical,
    sample_of,
    write_canonical,
)
from posttrain.data.sources import load_samples
from posttrain.messages import message_from_json, message_to_json
from posttrain.rendering.pixels import ImageChangedError
from posttrain.rendering.rendering import Renderer
from posttrain.types import Block, Message, VideoRef, text_message
from posttrain.viewer.pictures import PictureBook

ASKED = "What happens?"
PLACE = f"<video>{ASKED}"


@pytest.fixture
def folder(tmp_path: Path, clips: list[VideoRef]) -> Path:
    """a.mp4, b.mp4 and the frames of a walk."""
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(clips[0].paths[0], tmp_path / name)
    shutil.copytree(clips[2].paths[0], tmp_path / "walk")
    return tmp_path


def blocks(*videos: Any) -> list[dict[str, Any]]:
    return [*videos, {"type": "text", "text": ASKED}]


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def human(content: Any) -> list[dict[str, Any]]:
    return [{"from": "human", "value": content}]


PLAIN, OTHER = VideoRef(("a.mp4",)), VideoRef(("b.mp4",))
TURN = {"role": "assistant", "content": "A cup falls."}
#: Format, row, and the videos before the question.
ROWS: list[tuple[str, dict[str, Any], list[VideoRef]]] = [
    (
        "canonical",
        {"messages": user(PLACE), "videos": ["a.mp4"]},
        [PLAIN],
    ),
    (
        "canonical",
        {
            "messages": [{"role": "user", "content": f"<video><video>{ASKED}"}],
            "videos": [{"video": "a.mp4", "start": 1, "end": 2.5, "fps": 4}, ["walk/0.png", "walk/1.png"]],
        },
        [VideoRef(("a.mp4",), fps=4, start=1, end=2.5), VideoRef(("walk/0.png", "walk/1.png"))],
    ),
    (
        "canonical",
        {
            "messages": [
                {"role": "user", "content": blocks({"type": "video", "video": "walk", "frame_rate": 5})}
            ]
        },
        [VideoRef(("walk",), frame_rate=5)],
    ),
    (
        "ms_swift",
        {"query": ASKED, "response": "A cup falls.", "videos": ["a.mp4", "b.mp4"]},
        [PLAIN, VideoRef(("b.mp4",))],
    ),
    (
        "ms_swift",
        {"messages": [*user(PLACE), TURN], "videos": "a.mp4"},
        [PLAIN],
    ),
    (
        "sharegpt",
        {"conversations": human(PLACE), "videos": ["a.mp4"]},
        [PLAIN],
    ),
    ("alpaca", {"instruction": f"<video>{ASKED}", "output": "A cup falls.", "videos": ["a.mp4"]}, [PLAIN]),
    ("qwen", {"conversations": human(PLACE), "video": "a.mp4"}, [PLAIN]),
    (
        "qwen",
        {
            "conversations": human(
                blocks(
                    {"type": "video", "video": ["walk/2.png", "walk/3.png"], "sample_fps": 1},
                    {"type": "video", "video": "file://a.mp4", "video_start": 1, "video_end": 3, "fps": 1},
                )
            )
        },
        [VideoRef(("walk/2.png", "walk/3.png"), frame_rate=1), VideoRef(("a.mp4",), fps=1, start=1, end=3)],
    ),
    (
        "openai",
        {
            "messages": [
                {"role": "user", "content": blocks({"type": "video_url", "video_url": {"url": "a.mp4"}})}
            ]
        },
        [PLAIN],
    ),
    ("easyr1", {"problem": f"<video>{ASKED}", "answer": "A cup", "videos": ["a.mp4"]}, [PLAIN]),
    ("trl", {"messages": user(blocks({"type": "video", "path": "a.mp4"}))}, [PLAIN]),
]


@pytest.mark.parametrize(("format_name", "row", "expected"), ROWS)
def test_every_format_names_videos(
    format_name: str, row: dict[str, Any], expected: list[VideoRef], folder: Path
):
    sample = sample_of({"id": "1"} | canonical_row(row, format_name), folder)
    asked = sample.messages[0]
    assert asked.text == ASKED
    assert [block.type for block in asked.content] == ["video"] * len(expected) + ["text"]
    root = folder.resolve()
    for found, wanted in zip(asked.videos, expected, strict=True):
        assert found.paths == tuple(str(root / path) for path in wanted.paths)
        assert (found.fps, found.frame_rate, found.start, found.end) == (
            *(wanted.fps, wanted.frame_rate),
            *(wanted.start, wanted.end),
        )
    write_canonical([sample], folder / "out.jsonl")
    assert list(read_canonical(folder / "out.jsonl")) == [sample]
    assert str(root) not in (folder / "out.jsonl").read_text()
    assert message_from_json(message_to_json(asked)) == asked


def shown(video: Any) -> dict[str, Any]:
    return {"messages": user(blocks({"type": "video", "video": video}))}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (shown("https://example.org/a.mp4"), "is a URL"),
        (shown("../a.mp4"), "cannot be found|leads out"),
        (shown("outside/../../a.mp4"), "leads out of"),
        (shown(["walk/0.png", "outside/a.png"]), "cannot be found"),
        (shown("none.mp4"), "cannot be found"),
        (shown("rows.txt"), "must end in one of .mp4"),
        (shown(["walk/0.png", "a.mp4"]), "must end in one of .png"),
        (shown([]), "rates above 0|needs a path"),
        (shown(7), "a path or a list"),
        (
            {"messages": user(PLACE)},
            'says "<video>" and the row has no video',
        ),
        (
            {"messages": [{"role": "user", "content": ASKED}], "videos": ["a.mp4"]},
            r'lists 1 video \(videos, video\) and its text has 0 places \("<video>"\)',
        ),
        (
            {
                "messages": user("<video>"),
                "videos": [{"video": "a.mp4", "fps": "2"}],
            },
            "number",
        ),
        (
            {"messages": user("<video>"), "videos": [{"video": "a.mp4", "fps": 0}]},
            "above 0",
        ),
        ({"messages": user("<video>"), "videos": "a.mp4"}, "must be a list"),
    ],
)
def test_rows_that_name_no_video_of_theirs_are_refused(
    row: dict[str, Any], reason: str, folder: Path, tmp_path_factory: pytest.TempPathFactory
):
    (folder / "outside").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    shutil.copy(folder / "a.mp4", folder / "outside" / "a.mp4")
    (folder / "rows.txt").write_text("text")
    with pytest.raises(DataError, match=reason):
        parse_row(json.dumps({"id": "1"} | row).encode(), folder)


def test_broken_videos_are_set_aside_with_their_place(folder: Path):
    whole = (folder / "a.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "other.avi").write_bytes(whole)
    (folder / "empty").mkdir()
    names = ["a.mp4", "cut.mp4", "walk", "other.avi", "empty", "a.mp4"]
    rows = [
        {"id": str(number), "messages": [*shown(name)["messages"], TURN]} for number, name in enumerate(names)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = Dataset(check_rows(folder / "rows.jsonl"))
    assert [sample.id for sample in dataset] == ["0", "2", "5"]  # pyright: ignore[reportGeneralTypeIssues]
    lines = [(row.place.rpartition(":")[2], row.reason) for row in dataset.broken]
    assert [line for line, _ in lines] == ["2", "4", "5"]
    assert "damaged" in lines[0][1]
    assert "not that of a .avi file" in lines[1][1]
    assert "has no .png" in lines[2][1]
    fingerprint = dataset.fingerprint
    (folder / "a.mp4").write_bytes((folder / "b.mp4").read_bytes() + b"\0" * 8)
    assert Dataset(check_rows(folder / "rows.jsonl")).fingerprint != fingerprint


def test_rollouts_and_evaluations_take_prompts_with_videos(folder: Path):
    rows = [{"id": str(number), "messages": [text_json("hi")]} for number in range(3)]
    rows.append({"id": "film"} | shown("a.mp4"))
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DatasetConfig.model_validate(
        {"name": "films", "description": "Films.", "licence": "MIT", "source": {"path": str(path)}}
    )
    assert len(load_samples(config, folder)) == 4
    assert load_samples(config, folder, use="episodes")[3].messages[0].videos


def text_json(text: str) -> dict[str, Any]:
    return message_to_json(text_message("user", text))


def test_a_video_that_changes_under_way_is_noticed(folder: Path, tiny_checkpoint: Path):
    renderer = Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl")
    ref = VideoRef((str(folder / "a.mp4"),))
    rendered = renderer.render([Message("user", (Block("video", video=ref),))])
    known = rendered.videos[0].ref
    assert len(known.sha256) == 64
    assert renderer.media.load_video(known) is renderer.media.load_video(known)
    (folder / "a.mp4").write_bytes((folder / "a.mp4").read_bytes() + b"\0" * 8)
    with pytest.raises(ImageChangedError, match=r"a\.mp4: the content has hash"):
        renderer.media.load_video(known)


def test_the_page_says_why_frames_are_missing(folder: Path, make_video: Callable[..., VideoRef]):
    ref = make_video(folder / "c.avi", 40)
    book = PictureBook(Path())
    assert all(picture.uri for picture in book.frames(ref, [0, 20, 39]))
    data = Path(ref.paths[0]).read_bytes()
    Path(ref.paths[0]).write_bytes(data[: len(data) // 2])
    first, *others = book.frames(ref, [0, 38, 39])
    assert first.uri
    assert all("breaks off" in picture.problem for picture in others)
