"""What is found out before a run starts."""

import io
import json
import re
from pathlib import Path

import pyarrow.parquet
import pytest
from PIL import Image

from posttrain.config import build_run, read_run
from posttrain.config.curation import load_curation
from posttrain.curation.outcomes import CurationError
from posttrain.curation.pipeline import curate
from posttrain.first_party import PLUGINS
from posttrain.preflight import machine
from posttrain.preflight.examination import Findings, examine

RUN = """\
name: mine
model: {name_or_path: Qwen/Qwen3-VL-2B-Instruct}
stages:
  - stage: rl
    max_steps: 5
    tasks:
      - data: photos
        tools: [image_zoom_in]
        max_turns: 2
        rewards: [answer_accuracy, tool_calls]
"""
DATASET = "name: photos\ndescription: d\nlicence: MIT\nsource:\n  path: photos.jsonl\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(RUN)
    (tmp_path / "datasets_cfg").mkdir()
    (tmp_path / "datasets_cfg" / "photos.yaml").write_text(DATASET)
    write_rows(tmp_path, "A cup")
    return tmp_path


def write_rows(folder: Path, gold: object) -> None:
    row = {"id": "7", "messages": [{"role": "user", "content": "What is it?"}], "ground_truth": gold}
    (folder / "datasets_cfg" / "photos.jsonl").write_text(json.dumps(row) + "\n")


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def look(folder: Path) -> Findings:
    document = read_run(folder / "mine.yaml")
    return examine(build_run(document), document, PLUGINS)


def test_a_sound_run_has_no_problems(folder: Path) -> None:
    findings = look(folder)
    assert findings.problems == []
    assert findings.missing_here == []
    assert findings.notes == [
        "stages[0].tasks[0]: tool_calls also count where answer_accuracy is not reached, and teach what does "
        "not solve the task → add only_if: {answer_accuracy: 1}",
        "model: Qwen/Qwen3-VL-2B-Instruct is not on this machine; it is fetched from the hub at the start",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "data: photos",
            "data: photoz",
            "mine.yaml:7: stages[0].tasks[0].data: there is no such dataset as 'photoz'",
        ),
        ("image_zoom_in", "image_zoom", "mine.yaml:8: stages[0].tasks[0].tools[0]: no plugin 'image_zoom'"),
        ("image_zoom_in", "{name: image_zoom_in, params: {side: 3}}", "side"),
        (
            "answer_accuracy",
            "mine.py:neat",
            "mine.yaml:10: stages[0].tasks[0].rewards[0]: 'mine.py:neat': no such file",
        ),
        ("answer_accuracy", "'posttrain.plugins:resolve'", "not a reward"),
        ("answer_accuracy", "'os:system'", "standard library"),
        ("tool_calls", "{name: tool_calls, params: {goal: 2}}", "it takes: target"),
    ],
)
def test_bad_references_are_found_with_their_place(folder: Path, old: str, new: str, message: str) -> None:
    replace(folder / "mine.yaml", old, new)
    problems = look(folder).problems
    assert problems
    assert message in re.sub(r"\s+", " ", str(problems[0]))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("thinkin", "mine.yaml:7: stages[0].curation: there is no such curation recipe as 'thinkin'"),
        ("own.yaml", "own.yaml:4: steps[0].filter"),
        ("thinking", "curates 'markers_thinking', which the stage does not learn from"),
    ],
)
def test_a_curation_that_cannot_be_is_found(folder: Path, recipe: str, message: str) -> None:
    stage = f"stage: sft\n    data: {{mixture: {{photos: 1}}}}\n    max_steps: 1\n    curation: {recipe}\n"
    (folder / "mine.yaml").write_text(RUN.partition("stage: rl")[0] + stage)
    (folder / "own.yaml").write_text("name: own\ndata: photos\nsteps:\n  - {filter: quarry}\n")
    [problem] = look(folder).problems
    assert message in re.sub(r"\s+", " ", str(problem))
    replace(folder / "mine.yaml", recipe, "own.yaml")
    replace(folder / "own.yaml", "quarry", "query")
    assert look(folder).problems == []


def test_a_curation_may_have_an_earlier_stage_play(folder: Path) -> None:
    recipe = """name: own
data: photos
endpoints: {agent: {stage: rl}}
steps:
  - filter: rejection_sampling
    endpoint: agent
    task: {tools: [image_zoom_in], max_turns: 2, rewards: [answer_accuracy]}
"""
    (folder / "own.yaml").write_text(recipe)
    stage = "  - {stage: sft, data: {mixture: {photos: 1}}, max_steps: 1, curation: own.yaml}\n"
    text = (folder / "mine.yaml").read_text()
    (folder / "mine.yaml").write_text(text + stage)
    assert look(folder).problems == []
    replace(folder / "own.yaml", "{stage: rl}", "{stage: sft}")  # the stage itself is not yet done
    [problem] = look(folder).problems
    assert "endpoints.agent.stage: no earlier stage is called 'sft'" in re.sub(r"\s+", " ", str(problem))
    with pytest.raises(CurationError, match="no run here that has a stage"):
        curate(load_curation(folder / "own.yaml"), PLUGINS)


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("path: photo.jsonl", "there is no file"),
        ("path: ${POSTTRAIN_TEST_DATA}", None),
        ("generator: markers", "no plugin 'markers'"),
        (
            "generator: marker_scenes\n  params: {kind: zoomm, split: sft, count: 3}",
            "'zoomm' is none of zoom",
        ),
        (
            "generator: marker_scenes\n  params: {kind: zoom, split: sft, cuont: 3}",
            "it takes: kind, split, count",
        ),
    ],
)
def test_missing_data(folder: Path, new: str, message: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POSTTRAIN_TEST_DATA", raising=False)
    replace(folder / "datasets_cfg" / "photos.yaml", "path: photos.jsonl", new)
    findings = look(folder)
    if message is None:
        assert findings.problems == []
        assert "POSTTRAIN_TEST_DATA" in findings.missing_here[0].remedy
    else:
        assert message in str(findings.problems[0])
        assert "stages[0].tasks[0].data" in str(findings.problems[0])


@pytest.mark.parametrize("gold", ["A cup", ["A cup", "a mug"], 3])
def test_golds_that_earn_full_marks(folder: Path, gold: object) -> None:
    write_rows(folder, gold)
    assert look(folder).problems == []


@pytest.mark.parametrize(("gold", "message"), [("", "row '7'"), ({"a": 1}, "row '7'")])
def test_golds_that_no_reward_can_mark(folder: Path, gold: object, message: str) -> None:
    write_rows(folder, gold)
    assert message in look(folder).problems[0].reason


FORMS = {
    "photos.jsonl": "format: easyr1\ncolumns: {problem: question}\n",
    "photos.json": "format: alpaca\ncolumns: {instruction: question, output: none, ground_truth: answer}\n",
    "photos.parquet": "format: easyr1\ncolumns: {problem: question}\nfilters: [{column: kind, equals: a}]\n",
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("gold", ["A cup", ""])
def test_golds_of_every_form_are_tried(folder: Path, name: str, gold: str) -> None:
    rows = [{"question": "<image>What is it?", "answer": gold, "kind": "a"}] * 3
    target = folder / "datasets_cfg" / name
    (folder / "datasets_cfg" / "photos.jsonl").unlink()
    if target.suffix == ".parquet":
        image = io.BytesIO()
        Image.new("RGB", (40, 30)).save(image, "PNG")
        held = [row | {"images": [{"bytes": image.getvalue(), "path": None}]} for row in rows]
        wrong = {"question": "What?", "answer": "", "kind": "b", "images": []}
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([wrong, *held]), target)
    else:
        rows = [row | {"question": "What is it?"} for row in rows]
        lines = "\n".join(map(json.dumps, rows))
        target.write_text(lines if target.suffix == ".jsonl" else json.dumps(rows))
    cfg = folder / "datasets_cfg" / "photos.yaml"
    cfg.write_text(DATASET.replace("photos.jsonl", name) + FORMS[name])
    problems = look(folder).problems
    if gold:
        assert problems == []
    else:
        assert f"{name}: row '{name}:" in problems[0].reason
        assert "gold answer" in problems[0].reason


TASKS = {
    "math": ["#### 72", "She sold 2 + 2 = <<2+2=4>>4 of them.\n#### 72", "\\boxed{1,2}", "x > 5", 3, [1, 2]],
    "answer_accuracy": ["<answer>a cup</answer>", "\\boxed{red}", "not enough information"],
    "multiple_choice": ["(B)", "Answer: B", "B. red"],
    "clock": ["The answer is 10:08."],
    "counting": ["#### 5", 5, "five"],
    "anls": ["", "Mozart"],
}


@pytest.mark.parametrize(
    ("reward", "gold"), [(name, gold) for name, golds in TASKS.items() for gold in golds]
)
def test_golds_that_a_model_can_answer(folder: Path, reward: str, gold: object) -> None:
    replace(folder / "mine.yaml", "[answer_accuracy, tool_calls]", f"[{reward}]")
    write_rows(folder, gold)
    assert look(folder).problems == []


@pytest.mark.parametrize(
    ("rewards", "gold", "named"),
    [
        ("[math]", "She sold 48 clips in April, and half of them in May.\nSo she sold many.", "math"),
        ("[math]", "One can see that the graph is symmetric with respect to the y axis here", "math"),
        ("[answer_accuracy, math]", "It was built by a king, which is known to all who read books", "math"),
    ],
)
def test_golds_that_no_model_would_write(folder: Path, rewards: str, gold: str, named: str) -> None:
    replace(folder / "mine.yaml", "[answer_accuracy, tool_calls]", rewards)
    write_rows(folder, gold)
    reason = look(folder).problems[0].reason
    assert f"row '7': reward '{named}' gives full marks to no answer" in reason
    assert "correct the row" in reason


def test_a_reward_of_ones_own_says_how_its_answers_are_written(folder: Path) -> None:
    (folder / "mine.py").write_text(
        "from rewards import reward\n\n"
        "@reward('framed', written=lambda gold: [f'<<{gold}>>'])\n"
        "def framed(x):\n    return float(x.answer == f'<<{x.ground_truth}>>' and x.ground_truth != 'odd')\n"
    )
    replace(folder / "mine.yaml", "[answer_accuracy, tool_calls]", "['mine.py:framed']")
    assert look(folder).problems == []
    write_rows(folder, "odd")
    assert "such as '<<odd>>'" in look(folder).problems[0].reason


def test_golds_that_are_yet_to_be_generated_are_a_note(folder: Path) -> None:
    generator = "generator: marker_scenes\n  params: {kind: question, split: train, count: 3}"
    replace(folder / "datasets_cfg" / "photos.yaml", "path: photos.jsonl", generator)
    findings = look(folder)
    assert findings.problems == []
    assert any(note.endswith("generated when the run starts: photos") for note in findings.notes)


def test_a_reward_that_gives_gold_no_full_marks(folder: Path) -> None:
    (folder / "mine.py").write_text(
        "from rewards import reward\n\n"
        "@reward('shy')\ndef shy(x):\n    return 0.9 * (x.answer == x.ground_truth)\n"
    )
    replace(folder / "mine.yaml", "[answer_accuracy, tool_calls]", "['mine.py:shy']")
    assert "earns full marks from no reward" in look(folder).problems[0].reason


@pytest.mark.parametrize(
    "rewards",
    [
        "[{name: cosine_length, params: {limit: 1000, correct: answer_accuracy}}]",
        "[answer_accuracy, {name: overlong, params: {limit: 1000, soft: 100, unit: tokens}}]",
        "[answer_accuracy, {name: format, weight: 0.1}, {name: tag_count, weight: 0.1}]",
    ],
)
def test_rewards_of_length_and_format_let_golds_pass(folder: Path, rewards: str) -> None:
    replace(folder / "mine.yaml", "[answer_accuracy, tool_calls]", rewards)
    assert look(folder).problems == []


def test_rows_that_cannot_be_read(folder: Path) -> None:
    (folder / "datasets_cfg" / "photos.jsonl").write_text("{\n")
    assert "photos.jsonl:1" in look(folder).problems[0].reason


@pytest.mark.parametrize(
    ("setting", "key", "extra"),
    [
        ("lora: {quantization: nf4}", "lora.quantization", "qlora"),
        ("optimizer: adamw_8bit", "optimizer", "adamw-8bit"),
    ],
)
def test_a_package_that_a_setting_needs_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, setting: str, key: str, extra: str
) -> None:
    stage = f"  - {{stage: sft, max_steps: 1, data: {{mixture: {{dialogues: 1}}}}, {setting}}}\n"
    (folder / "mine.yaml").write_text(RUN + stage)
    (folder / "datasets_cfg" / "dialogues.yaml").write_text(DATASET.replace("photos", "dialogues"))
    turns = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A cup"}]
    (folder / "datasets_cfg" / "dialogues.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: object())
    assert look(folder).problems == []
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    (problem,) = look(folder).problems
    assert str(problem).endswith(f"pip install 'posttrain[{extra}]', or remove the key")
    assert f"mine.yaml:11: stages[1].{key}" in str(problem)
