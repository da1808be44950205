"""Rows that cannot be shown to a checkpoint are found before anything is learned, and are broken rows."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from posttrain.cli.main import main
from posttrain.config import DatasetConfig, ModelConfig, RunConfig
from posttrain.config.data import Use
from posttrain.data.checking import check_rows
from posttrain.data.dataset import Dataset
from posttrain.data.formats import DataError
from posttrain.data.mixing import Mixture
from posttrain.data.renderable import without_unrenderable
from posttrain.data.sources import forget_opened, load_samples, open_mixture
from posttrain.quickstart.tiny import build_tiny
from posttrain.rendering.chat_templates import chat_template
from posttrain.rendering.rendering import Renderer
from posttrain.rendering.row_checks import KnownRenderer, RenderCheck, local_checkpoint, tools_fault
from posttrain.rendering.video_frames import VideoSettings
from posttrain.run.directory import RunDir
from posttrain.training.data_check import BROKEN_ROWS, check_run_data
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


def line(number: int, text: str, **more: object) -> str:
    said = [{"role": "user", "content": text}, {"role": "assistant", "content": "A mug."}]
    return json.dumps({"id": str(number), "messages": said} | more) + "\n"


def write(folder: Path, texts: list[str], **settings: object) -> DatasetConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(line(number, text) for number, text in enumerate(texts)))
    about = {"name": "rows", "description": "d", "licence": "MIT", "source": {"path": str(path)}}
    (folder / "rows.yaml").write_text(yaml.safe_dump(about | settings))
    return DatasetConfig.model_validate(about | settings)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(st.lists(st.booleans(), min_size=2, max_size=12).filter(any))
def test_draws_are_those_of_the_file_without_such_rows(
    renderers: dict[Family, Renderer], tmp_path: Path, good: list[bool]
) -> None:
    """So the order depends on the seed and the usable rows alone, whoever draws and from whichever cache."""
    check = RenderCheck(renderers["qwen3_vl"], "dialogues")
    lines = [line(number, "What?" if fine else "<|im_end|>") for number, fine in enumerate(good)]
    (tmp_path / "all.jsonl").write_text("".join(lines))
    (tmp_path / "some.jsonl").write_text(
        "".join(each for each, fine in zip(lines, good, strict=True) if fine)
    )
    (tmp_path / "file").touch()
    whole = Dataset(check_rows(tmp_path / "all.jsonl"), "dialogues")
    some = Dataset(check_rows(tmp_path / "some.jsonl"), "dialogues")
    expected = [Mixture({"d": some}, {"d": 1.0}, seed=3).index(draw)[1] for draw in range(30)]
    for folder in (tmp_path / "cache", tmp_path / "cache", tmp_path / "file" / "no folder"):
        left = without_unrenderable(whole, check, folder)
        mixture = Mixture({"d": left}, {"d": 1.0}, seed=3)
        assert [left[mixture.index(draw)[1]].id for draw in range(30)] == [some[row].id for row in expected]
        bad = [number for number, fine in enumerate(good, 1) if not fine]
        assert [row.place for row in left.broken] == [f"{tmp_path}/all.jsonl:{number}" for number in bad]
        assert left.fingerprint == whole.fingerprint
    shutil.rmtree(tmp_path / "cache")


def test_rows_count_in_the_share_and_are_named(
    renderers: dict[Family, Renderer], tmp_path: Path, cache: Path
) -> None:
    texts = ["What?"] * 60 + ["What does <|endoftext|> mean?"]
    check = RenderCheck(renderers["qwen3_vl"], "dialogues")
    with pytest.raises(
        DataError, match=r"1 of 61 rows are broken, more than 1\.0%(?s:.*)rows\.jsonl:61: user text"
    ):
        load_samples(write(tmp_path, texts), tmp_path, use="dialogues", check=check)
    config = write(tmp_path, texts, max_bad_share=0.02)
    opened = load_samples(config, tmp_path, use="dialogues", check=check)
    assert len(opened) == 60
    assert [row.place for row in opened.broken] == [f"{tmp_path}/rows.jsonl:61"]
    assert opened.place_of(3) == f"{tmp_path}/rows.jsonl:4"
    name = str(tmp_path / "rows.yaml")
    mixture = open_mixture({name: 1.0}, 0, tmp_path, use="dialogues", check=check)
    assert len(mixture) == 60
    lengths = load_samples(config, tmp_path, use="dialogues")
    assert lengths.identity != opened.identity


def test_a_row_is_named_where_it_came_from(
    renderers: dict[Family, Renderer], tmp_path: Path, cache: Path
) -> None:
    """In a file that was rewritten, too, beside rows that could not be."""
    said = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": "A"}]
        for text in ("a<|im_end|>", "b")
    ]
    rows = [{"messages": 1}, *({"messages": each} for each in said)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    about = {"name": "rows", "description": "d", "licence": "MIT", "source": {"path": "rows.jsonl"}}
    config = DatasetConfig.model_validate(about | {"format": "openai", "max_bad_share": 0.9})
    check = RenderCheck(renderers["qwen3_vl"], "dialogues")
    opened = load_samples(config, tmp_path, use="dialogues", check=check)
    assert [row.place for row in opened.broken] == [f"{tmp_path}/rows.jsonl:{number}" for number in (1, 2)]
    assert [sample.messages[0].text for sample in (opened[0],)] == ["b"]


@pytest.mark.parametrize(
    "damage", ["", "{", '{"rows": 1, "reasons": []}', '{"rows": 3, "reasons": [["x", 1]]}', "[]"]
)
def test_damaged_reasons_are_found_again(
    renderers: dict[Family, Renderer], tmp_path: Path, damage: str
) -> None:
    write(tmp_path, ["a", "<|im_end|>", "b"])
    whole = Dataset(check_rows(tmp_path / "rows.jsonl"), "dialogues")
    check = RenderCheck(renderers["qwen3_vl"], "dialogues")
    first = without_unrenderable(whole, check, tmp_path / "cache").broken
    [file] = (tmp_path / "cache").glob("renderable-*/reasons.json")
    file.write_text(damage)
    assert without_unrenderable(whole, check, tmp_path / "cache").broken == first


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


def test_a_run_and_validate_tell_of_them_at_once(
    checkpoints: dict[Family, Path], tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, ["What?"] * 9 + ["<|im_start|>"], max_bad_share=0.2)
    about = {
        "name": "mine",
        "output_dir": str(tmp_path / "runs"),
        "model": {"name_or_path": str(checkpoints["qwen3_vl"]), "dtype": "float32"},
        "cluster": {"num_gpus": 0},
        "stages": [{"stage": "sft", "data": {"mixture": {"rows.yaml": 1.0}}, "max_steps": 1}],
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(about))
    config = RunConfig.model_validate(about | {"base_dir": str(tmp_path)})
    run = RunDir.create(config, resume=False)
    check_run_data(config, run)
    [told] = [json.loads(each) for each in (run.path / BROKEN_ROWS).read_text().splitlines()]
    assert told["place"] == f"{tmp_path}/rows.jsonl:10"
    assert "<|im_start|>" in told["reason"]

    # What the run found is known to `validate`, which then need not load transformers.
    code = (
        "import sys; from posttrain.cli.main import main; code = main(['validate', sys.argv[1]]);"
        "sys.exit(code or 10 * bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "mine.yaml")], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found
    assert "1 of 10 rows are broken and were left out" in found.stderr
    write(tmp_path, ["What?"] * 9 + ["<|im_start|>"])
    assert main(["validate", str(tmp_path / "mine.yaml")]) == 2
    assert "rows.jsonl:10: user text contains the control token" in capsys.readouterr().err


def test_validate_says_what_it_could_not_look_at(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, ["<|im_start|>"])
    about = {
        "name": "mine",
        "model": {"name_or_path": "Qwen/Qwen3-VL-2B-Instruct"},
        "cluster": {"num_gpus": 0},
        "stages": [{"stage": "sft", "data": {"mixture": {"rows.yaml": 1.0}}, "max_steps": 1}],
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(about))
    assert local_checkpoint(ModelConfig(name_or_path="Qwen/Qwen3-VL-2B-Instruct")) is None
    assert main(["validate", str(tmp_path / "mine.yaml"), "--gpus", "1"]) == 0
    assert "seen when a stage starts: Qwen/Qwen3-VL-2B-Instruct is not here" in capsys.readouterr().out
    assert main(["validate", "quickstart"]) == 0
    assert "generated when the run starts were not looked at: " in capsys.readouterr().out


@pytest.mark.parametrize(("share", "code"), [(0.01, 1), (0.5, 0)])
def test_an_inspection_looks_at_every_row(
    checkpoints: dict[Family, Path],
    tmp_path: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    share: float,
    code: int,
) -> None:
    write(tmp_path, ["What?"] * 5 + ["<|im_start|>"] + ["What?"] * 4, max_bad_share=share)
    arguments = ["--model", str(checkpoints["qwen3_vl"]), "--output", str(tmp_path / "page.html")]
    few = ["--num-samples", "1", "--measure", "2"]
    assert main(["data", "inspect", str(tmp_path / "rows.yaml"), *arguments, *few]) == code
    told = capsys.readouterr().out
    assert "9 rows are usable, 1 broken; 2 were measured" in told
    assert "rows.jsonl:6: " in told
    assert "rows.jsonl:6" in (tmp_path / "page.html").read_text()
