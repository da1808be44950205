"""Rows that cannot be shown to a checkpoint are found before anything is learned, and are broken rows."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from posttrain.config import ModelConfig
from posttrain.config.data import Use
from posttrain.data.sources import forget_opened
from posttrain.quickstart.tiny import build_tiny
from posttrain.rendering.chat_templates import chat_template
from posttrain.rendering.rendering import Renderer
from posttrain.rendering.row_checks import KnownRenderer, RenderCheck, tools_fault
from posttrain.rendering.video_frames import VideoSettings
from posttrain.training.supervised.dpo import RenderedPairs
from posttrain.types import Block, Family, ImageRef, Message, Sample, ToolSpec, text_message

FAMILIES: tuple[Family, ...] = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
#: Text of every kind, and whether it is structure: to every family, or to all but Qwen2-VL.
STRUCTURE = [
    "<|endoftext|>",
    "<|im_start|>",
    "a<|im_end|>",
    "<|image_pad|>",
    "<|vision_start|>",
    "<|video_pad|>",
]
WRITTEN_BY_QWEN2 = [
    "the <|object_ref_start|>mug<|object_ref_end|>",
    "<|box_start|>(125,132),(416,937)<|box_end|>",
    "<|quad_start|>(1,2)<|quad_end|>",
]
PLAIN = [
    "A mug.",
    "",
    "<think>\nhm\n</think>\n\nA mug.",
    "<| im_end |>",
    "＜|im_end|＞",
    "</tool_call>",
    "{{ x }}",
    "#!",
]
ASK, TELL = text_message("user", "What?"), text_message("assistant", "A mug.")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Path]:
    folders: dict[Family, Path] = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    for family, folder in folders.items():
        build_tiny(family, folder)
    return folders


@pytest.fixture(scope="module")
def renderers(checkpoints: dict[Family, Path]) -> dict[Family, Renderer]:
    return {family: Renderer.from_pretrained(path, family) for family, path in checkpoints.items()}


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Block:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.new("RGB", (40, 30)).save(path)
    return Block("image", image=ImageRef(str(path)))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    forget_opened()
    return tmp_path / "cache"


def problem(renderer: Renderer, sample: Sample, use: Use | None = "dialogues") -> str:
    try:
        RenderCheck(renderer, use)(sample)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool", "schema"])
@pytest.mark.parametrize("text", [*STRUCTURE, *WRITTEN_BY_QWEN2, *PLAIN])
def test_texts_that_would_be_read_as_structure(
    renderers: dict[Family, Renderer], role: str, text: str
) -> None:
    messages = {
        "system": (text_message("system", text), ASK, TELL),
        "user": (text_message("user", text), TELL),
        "assistant": (ASK, text_message("assistant", text)),
        "tool": (ASK, TELL, text_message("tool", text), TELL),
    }.get(role, (ASK, TELL))
    tools = (ToolSpec("weigh", text, {"type": "object"}),) if role == "schema" else ()
    for family, renderer in renderers.items():
        refused = text in STRUCTURE or (text in WRITTEN_BY_QWEN2 and family != "qwen2_vl")
        found = problem(renderer, Sample("s", messages, tools=tools))
        assert bool(found) == refused, (family, found)
        if refused:
            assert "control token" in found


TURNS = st.builds(
    lambda text, shows: (text, shows),
    st.sampled_from([*STRUCTURE[:2], *WRITTEN_BY_QWEN2[:1], *PLAIN]),
    st.sampled_from([False, False, False, True]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(TURNS, TURNS), min_size=1, max_size=2), TURNS, st.booleans(), st.sampled_from(FAMILIES)
)
def test_the_check_says_what_rendering_says(
    renderers: dict[Family, Renderer],
    picture: Block,
    turns: list[Any],
    other: Any,
    named: bool,
    family: Family,
) -> None:
    """Whatever rendering refuses is refused, and nothing else: of dialogues, prompts and pairs."""

    def message(role: Any, turn: tuple[str, bool]) -> Message:
        return Message(role, (*([picture] if turn[1] else []), Block("text", text=turn[0])))

    renderer = renderers[family].counting()
    messages = tuple(
        message(role, turn) for pair in turns for role, turn in zip(("user", "assistant"), pair, strict=True)
    )
    tools = ("image_zoom_in" if named else "image_zoom_inn",) if other[1] else ()
    chosen, rejected = messages[-1:], (message("assistant", other),)
    pair = Sample("s", messages[:-1], tools=tools, chosen=chosen, rejected=rejected)

    def refuses(function: Any, *arguments: Any) -> bool:
        try:
            function(*arguments)
        except ValueError:
            return True
        return False

    unknown = bool(tools) and not named
    dialogue = Sample("s", messages, tools=tools)
    assert bool(problem(renderer, dialogue)) == (unknown or refuses(renderer.render, messages))
    whole = object.__new__(RenderedPairs)
    whole._renderer = renderer
    assert bool(problem(renderer, pair, "pairs")) == refuses(whole._show, "d", pair)
    prompt_refused = refuses(renderer.render, messages[:-1], (), True)
    assert bool(problem(renderer, dialogue, "prompts")) == (unknown or prompt_refused)
    assert bool(problem(renderer, pair, "episodes")) == prompt_refused


def test_what_else_is_refused(
    checkpoints: dict[Family, Path], picture: Block, make_video: Any, tmp_path: Path
) -> None:
    renderer = Renderer.from_pretrained(checkpoints["qwen3_vl"], "qwen3_vl")
    shown = Message("assistant", (picture, Block("text", text="A mug.")))
    assert "1 images" in problem(renderer, Sample("s", (ASK, shown)))
    assert "no_such" in problem(renderer, Sample("s", (ASK, TELL), tools=("no_such",)))
    assert "drops the system text" in problem(
        renderer, Sample("s", (ASK, text_message("system", "late"), TELL))
    )
    clip = Message("user", (Block("video", video=make_video(tmp_path / "a.mp4", 30, (640, 16))),))
    tight = VideoSettings(max_tokens=1)
    few = Renderer.from_pretrained(checkpoints["qwen3_vl"], "qwen3_vl", videos=tight)
    assert "raise model.video_max_tokens" in problem(few, Sample("s", (clip, TELL)))
    assert problem(renderer, Sample("s", (clip, TELL))) == ""
    processor = renderer.processor
    processor.chat_template = chat_template("qwen3_vl_thinking")
    thinking = Renderer(processor, "qwen3_vl")
    assert "does not begin with '<think>" in problem(thinking, Sample("s", (ASK, TELL)))
    thought = text_message("assistant", "<think>\nhm\n</think>\n\nA mug.")
    assert problem(thinking, Sample("s", (ASK, thought))) == ""
    assert problem(thinking, Sample("s", (ASK, TELL, ASK)), "prompts") == ""
    text = Renderer(renderer.processor.tokenizer, "text")
    assert "a text model sees none" in problem(text, Sample("s", (Message("user", (picture,)), TELL)))
    assert "control token" in tools_fault(renderer, [ToolSpec("a", "<|im_end|>", {})])
    assert tools_fault(renderer, [ToolSpec("a", "b", {})]) == ""


def test_one_look_reads_no_pixels_and_no_tokens(
    renderers: dict[Family, Renderer], picture: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it is not to be done")

    renderer = renderers["qwen3_vl"].counting()
    monkeypatch.setattr(renderer, "_encode", never)
    monkeypatch.setattr("posttrain.rendering.pixel_making.open_image", never)
    assert problem(renderer, Sample("s", (Message("user", (picture,)), TELL))) == ""


def test_verdicts_belong_to_a_checkpoint_its_settings_and_a_use(checkpoints: dict[Family, Path]) -> None:
    def identity(family: Family, use: Use, **model: Any) -> str:
        config = ModelConfig(name_or_path=str(checkpoints[family]), **model)
        return RenderCheck(KnownRenderer(checkpoints[family], config), use).identity

    same = identity("qwen3_vl", "dialogues")
    assert identity("qwen3_vl", "dialogues", dtype="float32") == same
    others = [
        identity("qwen2_vl", "dialogues"),
        identity("qwen3_vl", "pairs"),
        identity("qwen3_vl", "dialogues", earlier_thinking="strip"),
        identity("qwen3_vl", "dialogues", max_pixels=100_000),
        identity("qwen3_vl", "dialogues", video_max_tokens=100),
    ]
    assert len({same, *others}) == 6


def test_a_known_renderer_is_not_loaded_again_unless_its_files_changed(
    checkpoints: dict[Family, Path], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoints["qwen3_vl"], folder)
    model = ModelConfig(name_or_path=str(folder))
    first = KnownRenderer(folder, model).identity
    assert first == Renderer.from_config(folder, model).identity
    loaded: list[int] = []
    load = Renderer.from_config
    monkeypatch.setattr(Renderer, "from_config", lambda *given: loaded.append(1) or load(*given))
    assert KnownRenderer(folder, model).identity == first
    assert loaded == []
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{# another #}")
    assert KnownRenderer(folder, model).identity != first
    assert loaded == [1]
