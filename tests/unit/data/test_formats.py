import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from posttrain.data import formats
from posttrain.data.formats import (
    DataError,
    canonical,
    canonical_row,
    image_path,
    parse_row,
    read_canonical,
    write_canonical,
)
from posttrain.types import Block, ImageRef, Message, Sample, ToolSpec, text_message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset's folder with one image, and a secret beside it."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "images" / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    return tmp_path / "data"


def row(**changes: Any) -> dict[str, Any]:
    content = [{"type": "image", "image": "images/a.png"}, {"type": "text", "text": "Which letter?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "K"}]
    return {"id": "1", "messages": messages, "ground_truth": "K"} | changes


def parse(folder: Path, **changes: Any) -> Sample:
    return parse_row(json.dumps(row(**changes)).encode(), folder)


def with_image(path: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": path}]}]


def test_a_row_becomes_a_sample(folder: Path):
    sample = parse(folder, tools=["image_zoom_in"], box=[1, 2, 3, 4])
    image = Block("image", image=ImageRef(str(folder / "images" / "a.png")))
    assert sample == Sample(
        "1",
        (Message("user", (image, Block("text", text="Which letter?"))), text_message("assistant", "K")),
        "K",
        ("image_zoom_in",),
        {"box": [1, 2, 3, 4]},
    )


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "images/../../secret.png",
        "linked/../../secret.png",
        "images/loop.png",
        "images/none.png",
        "images",
        "images/pipe.png",
        "images/notes.txt",
        "images/disguised.png",
        "/dev/zero",
        "/etc/passwd",
        "/proc/self/environ",
        "http://169.254.169.254/latest/meta-data/a.png",
        "https://localhost/a.png",
        "file:///etc/passwd",
        "s3://bucket/a.png",
        "data:image/png;base64,iVBORw0KGgo=",
        "a\0.png",
        "x" * 5000,
        "",
    ],
)
def test_paths_that_lead_astray_are_refused_unread(folder: Path, path: str, monkeypatch: pytest.MonkeyPatch):
    (folder / "images" / "loop.png").symlink_to("loop.png")
    (folder / "images" / "notes.txt").write_text("hello")
    (folder / "images" / "disguised.png").symlink_to("/etc/passwd")
    (folder / "linked").symlink_to(folder.parent)
    os.mkfifo(folder / "images" / "pipe.png")

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr("builtins.open", opened)
    with pytest.raises(DataError, match="image "):
        parse(folder, messages=with_image(path))


def test_paths_that_are_meant(folder: Path):
    (folder / "images" / "b.PNG").symlink_to("a.png")
    assert image_path("images/b.PNG", folder) == folder / "images" / "a.png"
    assert image_path(str(folder.parent / "secret.png"), folder) == folder.parent / "secret.png"


def turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": "text"} for role in roles]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": None}, '"id"'),
        ({"id": ""}, '"id"'),
        ({"id": 1.5}, '"id"'),
        ({"id": True}, '"id"'),
        ({"messages": None}, '"messages"'),
        ({"messages": "hello"}, '"messages"'),
        ({"messages": ["hello"]}, '"messages"'),
        ({"messages": []}, "no user message"),
        ({"messages": turns("system", "assistant")}, "no user message"),
        ({"messages": turns("human")}, "role 'human'"),
        ({"messages": turns("user", "system")}, "only come first"),
        ({"messages": turns("assistant", "user")}, "follows nothing"),
        ({"messages": turns("user", "assistant", "assistant")}, "follows assistant"),
        ({"messages": turns("user", "tool")}, "a tool message follows user"),
        ({"messages": [{"role": "user", "content": []}]}, "no content"),
        ({"messages": [{"role": "user", "content": None}]}, "must be a string or a list"),
        ({"messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.mp3"}]}]}, "neither"),
        ({"messages": [{"role": "user", "content": "<image>What is it?"}]}, "a block of the type image"),
        ({"tools": "image_zoom_in"}, '"tools"'),
        ({"tools": [{}]}, '"tools"'),
    ],
)
def test_rows_of_another_form_are_refused(folder: Path, changes: dict[str, Any], reason: str):
    with pytest.raises(DataError, match=reason):
        parse(folder, **changes)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "must be an object"),
        (b"7", "must be an object"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b'{"id": "1", "id": "2"}', "twice"),
        (b'{"id": "1", "score": NaN}', "NaN"),
        (b"[" * 100_000, "nested deeper"),
        (json.dumps(row(note="\ud800")).encode(), "surrogate"),
    ],
)
def test_lines_that_are_no_rows_are_refused(folder: Path, line: bytes, reason: str):
    with pytest.raises(DataError, match=reason):
        parse_row(line, folder)


def test_a_tool_may_be_its_function_alone(folder: Path):
    function = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
    whole = parse(folder, tools=[{"type": "function", "function": function}])
    assert parse(folder, tools=[function]).tools == whole.tools == (ToolSpec(**function),)


def test_images_without_an_end_cost_nothing():
    begun = time.thread_time()
    canonical_row({"conversations": [{"from": "user", "value": "<img>" * 100_000}]}, "qwen")
    assert time.thread_time() - begun < 5  # quadratic time was four minutes


def test_errors_name_file_and_line(folder: Path):
    path = folder / "data.jsonl"
    path.write_text(json.dumps(row()) + "\n\n{broken\n")
    samples = read_canonical(path)
    assert next(samples).id == "1"
    with pytest.raises(DataError, match=r"data\.jsonl:3: not valid JSON"):
        next(samples)
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read: No such file"):
        next(read_canonical(folder / "none.jsonl"))


def test_overlong_lines_are_refused_and_skipped(folder: Path, monkeypatch: pytest.MonkeyPatch):
    path = folder / "data.jsonl"
    limit = len(json.dumps(row()).encode()) + 1
    monkeypatch.setattr(canonical, "MAX_ROW_BYTES", limit)
    good = json.dumps(row()).encode() + b"\n"
    path.write_bytes(good + b" " * limit * 3 + good + good + b"x" * (limit + 1))
    with path.open("rb") as file:
        lines = list(formats.rows(file))
    assert [number for number, _, _ in lines] == [1, 3, 4]  # 2 begins with blanks beyond the limit
    assert all(path.read_bytes()[offset:].startswith(line) for _, offset, line in lines)
    assert parse_row(lines[1][2], folder).id == "1"
    with pytest.raises(DataError, match="longer than"):
        parse_row(lines[2][2], folder)


def test_what_is_written_is_relative_and_can_be_moved(folder: Path):
    sample = parse(folder)
    write_canonical([sample], folder / "copy.jsonl")
    assert '"image": "images/a.png"' in (folder / "copy.jsonl").read_text()
    folder.rename(folder.with_name("moved"))
    (moved,) = read_canonical(folder.with_name("moved") / "copy.jsonl")
    assert moved.messages[0].images[0].path == str(folder.with_name("moved") / "images" / "a.png")


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (Sample("1", (text_message("user", "a"),), columns={"tools": 1}), "may not be called tools"),
        (Sample("1", (text_message("user", "a"),), columns={"x": float("nan")}), "sample 1: "),
        (Sample("1", (text_message("user", "a"),), columns={"x": {1, 2}}), "sample 1: "),
        (Sample("1", (text_message("tool", "a"),)), "sample 1: the dialogue has no user"),
        (Sample("1", (text_message("user", "\ud800"),)), "sample 1: "),
    ],
)
def test_a_failed_write_keeps_the_old_file(folder: Path, sample: Sample, reason: str):
    path = folder / "data.jsonl"
    write_canonical([parse(folder)], path)
    before = path.read_bytes()
    with pytest.raises(DataError, match=reason):
        write_canonical([parse(folder, id="2"), sample], path)
    assert path.read_bytes() == before
    assert {entry.name for entry in folder.iterdir()} == {"images", "data.jsonl"}


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SAID = TEXT.map("Q{}".format)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
TURN = st.tuples(SAID, st.booleans(), SAID)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(TURN, min_size=1, max_size=3),
    VALUE,
    st.lists(st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]*", fullmatch=True), max_size=2),
    st.dictionaries(TEXT.filter(lambda key: key not in formats.OWN_KEYS), VALUE, max_size=3),
)
def test_samples_survive_a_round_trip(folder: Path, dialogue: list, truth: Any, tools: list, columns: dict):
    image = Block("image", image=ImageRef(str(folder / "images" / "a.png"), "abc"))
    messages: list[Message] = []
    for asked, shows_image, answered in dialogue:
        blocks = (image, Block("text", text=asked)) if shows_image else (Block("text", text=asked),)
        messages += [Message("user", blocks), text_message("assistant", answered)]
    sample = Sample("id", tuple(messages), truth, tuple(tools), columns)
    write_canonical([sample, sample], folder / "data.jsonl")
    assert list(read_canonical(folder / "data.jsonl")) == [sample, sample]


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text('{}[]":,idmesagrolcntu \n0123').map(str.encode))
def test_any_line_is_a_sample_or_a_data_error(line: bytes):
    with contextlib.suppress(DataError):
        assert parse_row(line, Path()).id
