"""Every tool that is built in: what it shows, hostile arguments, and what is not the model's fault."""

import functools
import importlib.metadata
import json
import math
import threading
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from posttrain.media.images import open_image, save_image
from posttrain.media.videos import read_frames
from posttrain.plugins import PluginError
from posttrain.rendering.tools import declared_specs
from posttrain.types import Block, EnvironmentReply, ImageRef, Message, Sample, VideoRef
from tools_env import ToolEnvironment, ToolResult, WorldError, load_tools
from tools_env import environment as tool_environment
from tools_env.kit.hostile import hostile_calls, typical_calls
from tools_env.search import Index, Passage, read_passages, words_of
from tools_env.sessions import AnyTool, SessionTool

ROOT = Path(__file__).parents[3]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["posttrain.tools"]
CORPUS = {
    "a.txt": "The tower is 42 metres high.\n\nA bridge crosses the river.",
    "b/c.md": "# Rivers\n\nThe river is wide, the river is deep.",
    "d.jsonl": '{"text": "A cat sleeps on the bridge."}\nbroken\n{"other": 1}\n',
    "e.bin": "tower tower tower",
}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name, text in CORPUS.items():
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "corpus"


@pytest.fixture
def film(tmp_path: Path, make_video: Callable[..., object]) -> Path:
    (tmp_path / "films").mkdir()
    make_video(tmp_path / "films" / "film.mp4")
    return tmp_path / "films"


@pytest.fixture
def load(corpus: Path, film: Path) -> Callable[..., list[AnyTool]]:
    usual: dict[str, dict[str, Any]] = {
        "search": {"path": str(corpus)},
        "video_frames": {"root": str(film)},
        "python": {"seconds": 0.3},
    }

    def make(name: str, **params: Any) -> list[AnyTool]:
        return load_tools([{"name": DECLARED[name], "params": usual.get(name, {}) | params}])

    return make


@pytest.fixture
def pictures(tmp_path: Path) -> list[ImageRef]:
    noise = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    return [
        save_image(Image.fromarray(noise), tmp_path),
        save_image(Image.new("RGB", (40, 80), "red"), tmp_path),
    ]


@pytest.fixture
def begin(load: Any, pictures: list[ImageRef], tmp_path: Path) -> Iterator[Callable[..., ToolEnvironment]]:
    begun: list[ToolEnvironment] = []

    def start(name: str, **params: Any) -> ToolEnvironment:
        environment = ToolEnvironment(load(name, **params), 10_000, tmp_path / "made")
        blocks = tuple(Block("image", image=ref) for ref in pictures)
        prompt = (Message("user", (*blocks, Block("text", text="?"))),)
        environment.start(Sample("row", prompt, columns={"video": "film.mp4"}))
        begun.append(environment)
        return environment

    yield start
    for environment in begun:
        environment.close()


def same(one: Any, other: Any) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def ask(environment: ToolEnvironment, tool: str, **arguments: Any) -> tuple[str, list[Image.Image]]:
    reply = environment.step(written(tool, arguments))
    assert reply.message is not None
    return reply.message.text, [open_image(ref.path) for ref in reply.message.images]


def written(tool: str, arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': tool, 'arguments': arguments})}</tool_call>"


@pytest.mark.parametrize("name", DECLARED)
def test_rows_can_name_it(name: str) -> None:
    if name not in {entry.name for entry in importlib.metadata.entry_points(group="posttrain.tools")}:
        pytest.skip("the package is installed without it")
    assert all(spec.description for spec in declared_specs(name))


@pytest.mark.parametrize("name", DECLARED)
def test_hostile_arguments_are_refused_and_nothing_breaks(begin: Any, load: Any, name: str) -> None:
    environment = begin(name)
    for tool in load(name):
        properties = tool.spec.parameters["properties"]
        assert all(each.get("description") for each in properties.values())
        base = next(typical_calls(tool.spec.parameters))
        for arguments in hostile_calls(tool.spec.parameters, base):
            check(environment.step(written(tool.spec.name, arguments)))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)


@pytest.mark.parametrize("name", DECLARED)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_arguments_are_answered(begin: Any, load: Any, name: str, data: st.DataObject) -> None:
    tool = data.draw(st.sampled_from(load(name)))
    names = st.sampled_from([*tool.spec.parameters["properties"], "x"])
    numbers = st.lists(st.floats(-100, 1100) | st.integers(0, 1000), min_size=2, max_size=4)
    values = JSON | st.integers(0, 2) | st.lists(numbers, max_size=3) | st.sampled_from(["red", "horizontal"])
    check(begin(name).step(written(tool.spec.name, data.draw(st.dictionaries(names, values)))))


def check(reply: EnvironmentReply) -> None:
    """A call is served, or refused by a reason that the tool itself gives."""
    assert reply.message is not None
    (call,) = reply.calls
    assert call.ok != bool(call.error)
    assert "failed (" not in call.error
    for ref in reply.message.images:
        assert all(open_image(ref.path).size)


@functools.cache
def gigabyte() -> str:
    return "x" * 10**9


def hang() -> None:
    threading.Event().wait(3)


def die() -> None:
    raise ConnectionResetError(104, "Connection reset by peer")


@pytest.mark.parametrize("name", DECLARED)
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (die, "Connection reset"),
        (hang, "did not return"),
        (lambda: {"text": "a lie"}, "returned {'text'"),
        (lambda: ToolResult(7), "returned ToolResult"),  # pyright: ignore[reportArgumentType]
        (lambda: ToolResult(gigabyte()), ""),
    ],
    ids=["dies", "hangs", "lies", "lies about its text", "returns a gigabyte"],
)
def test_the_world_s_failures_are_told_apart(
    begin: Any, load: Any, name: str, fault: Any, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadline = 0.2 if fault is hang else 20.0
    monkeypatch.setattr(tool_environment, "CALL_S", deadline)
    (tool, *_) = load(name)
    environment = begin(name)
    mine = environment._tools[tool.spec.name]
    if isinstance(mine, SessionTool):
        monkeypatch.setattr(type(mine.provider), "deadline_of", lambda self, tool: deadline)
        monkeypatch.setattr(mine.provider._made_of, "open", lambda self, episode: None)  # pyright: ignore
        monkeypatch.setattr(mine.provider._made_of, "call", lambda self, *_: fault())  # pyright: ignore
    else:
        broken = type("Broken", (), {"spec": mine.spec, "__call__": lambda self, *_: fault()})
        environment._tools[tool.spec.name] = broken()
    arguments = next(typical_calls(tool.spec.parameters))
    if told:
        with pytest.raises(WorldError, match=told) as caught:
            environment.step(written(tool.spec.name, arguments))
        assert caught.value.tool == tool.spec.name
    else:
        text, _ = ask(environment, tool.spec.name, **arguments)
        assert len(text) < 5000


def test_rotating_and_flipping_move_the_pixels(begin: Any, pictures: list[ImageRef]) -> None:
    whole = open_image(pictures[0].path)
    turned = begin("image_rotate")
    for degrees, expected in [
        (90, whole.rotate(-90, expand=True)),
        (-90.0, whole.rotate(90, expand=True)),
        (180, whole.rotate(180)),
        (0, whole),
        (720, whole),
    ]:
        text, (image,) = ask(turned, "image_rotate_tool", img_idx=0, degrees=degrees)
        assert same(image, expected)
    assert text == "Image 6"
    _, (image,) = ask(turned, "image_rotate_tool", img_idx=1, degrees=45)
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.size[0] > 80
    for direction, expected in [("horizontal", ImageOps.mirror(whole)), ("vertical", ImageOps.flip(whole))]:
        _, (image,) = ask(begin("image_flip"), "image_flip_tool", img_idx=0, direction=direction)
        assert same(image, expected)


def test_crops_come_together_in_their_order(begin: Any, pictures: list[ImageRef]) -> None:
    whole = open_image(pictures[0].path)
    boxes = [[0, 0, 50, 40], [50, 0, 100, 60]]
    text, crops = ask(
        begin("image_crops", frame="pixel_original"), "image_crops_tool", img_idx=0, boxes=boxes
    )
    assert text == "Image 2, Image 3"
    assert all(
        same(crop, whole.crop((box[0], box[1], box[2], box[3])))
        for crop, box in zip(crops, boxes, strict=True)
    )
    text, crops = ask(begin("image_crops"), "image_crops_tool", img_idx=0, boxes=[[0, 0, 500, 1000]] * 5)
    assert "give 1 to 4 boxes" in text
    assert crops == []


def test_what_is_drawn_is_where_it_was_asked_for(begin: Any, pictures: list[ImageRef]) -> None:
    environment = begin("image_draw")
    _, (image,) = ask(
        environment,
        "image_draw_tool",
        img_idx=1,
        boxes=[[100, 100, 900, 900]],
        points=[[500, 500]],
        colour="blue",
    )
    drawn, before = np.array(image), np.array(open_image(pictures[1].path))
    assert tuple(drawn[40, 20]) == (0, 0, 255)  # the point, at the middle of 40 × 80
    assert tuple(drawn[8, 20]) == tuple(drawn[40, 4]) == (0, 0, 255)  # the box's upper and left side
    assert np.array_equal(drawn[:6], before[:6])
    assert same(before, np.array(open_image(pictures[1].path)))
    assert "outside" in ask(environment, "image_draw_tool", img_idx=1, points=[[1001, 5]])[0]


def test_measuring_tells_size_and_colour(begin: Any) -> None:
    text, _ = ask(begin("image_measure"), "image_measure_tool", img_idx=1, points=[[1000, 1000], [0, 0]])
    assert text.splitlines() == [
        "40 × 80 pixels",
        "[1000, 1000]: rgb(255, 0, 0), #ff0000",
        "[0, 0]: rgb(255, 0, 0), #ff0000",
    ]


def by_a_loop(passages: list[Passage], query: str) -> list[float]:
    """BM25 as its formula says, for every passage."""
    counts = [Counter(words_of(passage.text)) for passage in passages]
    lengths = [sum(count.values()) for count in counts]
    mean = sum(lengths) / len(lengths) or 1.0
    scores = []
    for count, length in zip(counts, lengths, strict=True):
        score = 0.0
        for word in set(words_of(query)):
            having = sum(word in other for other in counts)
            idf = math.log(1 + (len(passages) - having + 0.5) / (having + 0.5))
            score += idf * count[word] * 2.2 / (count[word] + 1.2 * (0.25 + 0.75 * length / mean))
        scores.append(score)
    return scores


@given(
    st.lists(st.text("abc ", min_size=1, max_size=20), min_size=1, max_size=12), st.text("abc ", max_size=6)
)
def test_the_index_ranks_as_the_formula_does(texts: list[str], query: str) -> None:
    passages = [Passage(str(number), text) for number, text in enumerate(texts)]
    scores = by_a_loop(passages, query)
    found = Index(passages).search(query, len(texts))
    assert len(found) == sum(score > 0 for score in scores)
    ranked = [scores[int(passage.source)] for passage in found]
    assert ranked == pytest.approx(sorted((score for score in scores if score > 0), reverse=True))


def test_searching_reads_the_texts_below_a_folder(begin: Any, corpus: Path) -> None:
    assert [passage.source for passage in read_passages(corpus)] == [
        "a.txt:1",
        "a.txt:2",
        "b/c.md:1",
        "b/c.md:2",
        "d.jsonl:1",
    ]
    environment = begin("search", limit=2)
    assert ask(environment, "search_tool", query="How HIGH is the tower?")[0].startswith(
        "[a.txt:1]\nThe tower"
    )
    assert len(ask(environment, "search_tool", query="bridge")[0].split("\n\n")) == 2
    assert ask(environment, "search_tool", query="xyzzy")[0] == "Error: nothing is found; try other words"
    with pytest.raises(PluginError, match="there is no"):
        load_tools([{"name": DECLARED["search"], "params": {"path": str(corpus / "gone")}}])


def test_frames_of_a_video_by_time(begin: Any, film: Path, tmp_path: Path) -> None:
    environment = begin("video_frames")
    text, (first,) = ask(environment, "video_frame_tool", second=0)
    assert text.startswith("At 0.00 s of ")
    text, clip = ask(environment, "video_clip_tool", start=0, end=0.5, frames=3)
    assert len(clip) == 3
    assert same(clip[0], first)
    assert "the video lasts from 0.00 to" in ask(environment, "video_frame_tool", second=1e6)[0]
    assert "start must be before end" in ask(environment, "video_clip_tool", start=1, end=0)[0]


def test_frames_of_a_prompt_s_video_at_the_times_that_the_model_is_told(
    load: Any, film: Path, tmp_path: Path
) -> None:
    whole = VideoRef((str(film / "film.mp4"),))
    frames = list(read_frames(whole, range(30)))
    part = replace(whole, start=1.0, end=2.0)
    for shown, first, last, root in ((whole, 0, 29, str(film)), (part, 10, 20, None)):
        environment = ToolEnvironment(load("video_frames", root=root), 9, tmp_path / "made")
        environment.start(Sample("row", (Message("user", (Block("video", video=shown),)),)))
        text, clip = ask(environment, "video_clip_tool", start=first / 10, end=(last + 1) / 10, frames=2)
        assert text == f"At {first / 10:.2f} s, {last / 10:.2f} s of {(last + 1) / 10:.2f} s."
        assert same(clip[0], frames[first])
        assert same(clip[1], frames[last])
        told = f"the video lasts from {first / 10:.2f} to {(last + 1) / 10:.2f} s"
        assert told in ask(environment, "video_frame_tool", second=(last + 2) / 10)[0]
        environment.close()


@pytest.mark.parametrize("named", ["../secret.mp4", "gone.mp4", None, 7])
def test_a_row_s_video_lies_below_the_root(load: Any, tmp_path: Path, film: Path, named: Any) -> None:
    (tmp_path / "secret.mp4").write_bytes((film / "film.mp4").read_bytes())
    environment = ToolEnvironment(load("video_frames"), 3, tmp_path)
    environment.start(Sample("row", (Message("user", (Block("text", text="?"),)),), columns={"video": named}))
    with pytest.raises(WorldError, match="cannot be opened"):
        environment.step(written("video_frame_tool", {"second": 0}))
    environment.close()
