"""The quickstart's task: its scenes, its dialogues and its labelled views."""

import itertools
import json
import random
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.config.curation import load_curation
from posttrain.curation.pipeline import curate
from posttrain.data.formats import read_canonical
from posttrain.first_party import PLUGINS
from posttrain.media.images import open_image
from posttrain.models.supervised_head import IGNORED
from posttrain.quickstart import look_scenes, marker_scenes
from posttrain.quickstart import scenes as drawn
from posttrain.quickstart.dense_views import LEGIBLE_HEIGHT, NO_MARKER, VIEW_SIDE, dense_views
from posttrain.quickstart.scene_tasks import is_scene_task
from posttrain.types import Message, RewardInput, Sample, Score, ToolCall
from rewards.builtin.answer_accuracy import answer_accuracy
from rewards.builtin.tool_calls import tool_calls
from rewards.builtin.turn_readings import turn_readings
from rewards.sdk import load_reward
from tools_env.hermes import parse_calls


def scenes(split: str, seed: int, count: int) -> list[drawn.Scene]:
    return list(itertools.islice(drawn.scene_stream(split, seed), count))  # pyright: ignore


def test_splits_and_seeds_share_no_scene():
    seen = [set(scenes(split, seed, 200)) for split in drawn.SPLIT_STREAMS for seed in (0, 1)]
    assert all(not a & b for a, b in itertools.combinations(seen, 2))
    assert scenes("test", 0, 5) == scenes("test", 0, 5)


@pytest.mark.parametrize("kind", get_args(marker_scenes.Kind))
def test_rows_are_canonical(tmp_path: Path, kind: marker_scenes.Kind):
    prompts = ("question", "prompt", "pairs", "locate_question", "count_question", "lookup_question")
    marker_scenes.write(tmp_path, kind=kind, split="sft", count=3, seed=1, sloppiness=0.5)
    samples = list(read_canonical(tmp_path / "data.jsonl"))
    assert len({sample.id for sample in samples}) == len(samples) >= 3
    for sample in samples:
        for message in sample.messages:
            for image in message.images:
                assert open_image(image.path).size[0] <= drawn.SCENE_SIZE
        assert (sample.messages[-1].role == "assistant") == (kind not in (*prompts, "looks_question"))
        if kind != "list" and not is_scene_task(kind):
            assert set(sample.ground_truth) <= set(drawn.LETTERS)


@pytest.mark.parametrize(
    ("kind", "reward", "least"),
    [
        ("locate", ("grounding", {"family": "qwen3_vl"}), 0.35),  # a box on the grid, with a margin
        ("count", ("counting", {}), 1.0),
        ("lookup", ("grounding", {"family": "qwen3_vl"}), 1.0),
    ],
)
def test_what_is_demonstrated_earns_the_tasks_reward_and_another_answer_does_not(
    tmp_path: Path, kind: marker_scenes.Kind, reward: tuple[str, dict[str, Any]], least: float
):
    marker_scenes.write(tmp_path, kind=kind, split="test", count=20)
    samples = list(read_canonical(tmp_path / "data.jsonl"))
    name, params = reward
    judge = load_reward(name)
    for sample, other in itertools.pairwise(samples):
        asked, said = sample.messages
        assert bool(asked.images) == (kind != "lookup")

        def score(answer: str, asked: Message = asked, sample: Sample = sample) -> float:
            given = RewardInput(prompt=(asked,), response=(), answer=answer, ground_truth=sample.ground_truth)
            verdict = judge(given, **params)
            assert isinstance(verdict, Score)
            return verdict.value

        assert score(said.text) >= least
        if other.ground_truth != sample.ground_truth:
            assert score(other.messages[1].text) < score(said.text)
    if kind == "count":
        assert {sample.ground_truth for sample in samples} >= {1, 2, 3, 4, 5}


@pytest.mark.parametrize("task", ["locate", "count", "lookup"])
def test_prompts_of_a_task_ask_as_its_demonstrations_do_and_share_nothing_with_held_out_ones(
    tmp_path: Path, task: str
):
    def rows(kind: Any, split: Any) -> list[Sample]:
        folder = tmp_path / f"{kind}-{split}"
        folder.mkdir()
        marker_scenes.write(folder, kind=kind, split=split, count=30)
        return list(read_canonical(folder / "data.jsonl"))

    def asked(samples: list[Sample]) -> set[str]:
        return {sample.messages[0].text.rpartition("\n")[2] for sample in samples}

    def scenes_of(samples: list[Sample]) -> set[str]:
        shown = [sample.messages[0] for sample in samples]
        return {Path(each.images[0].path).name if each.images else each.text for each in shown}

    demonstrated, train, test = (
        rows(kind, split)
        for kind, split in ((task, "sft"), (f"{task}_question", "train"), (f"{task}_question", "test"))
    )
    assert asked(demonstrated) == asked(train) == asked(test)
    assert not scenes_of(train) & scenes_of(test)
    assert not scenes_of(demonstrated) & (scenes_of(train) | scenes_of(test))


def test_a_demonstrated_call_is_one_that_the_environment_would_run(tmp_path: Path):
    marker_scenes.write(tmp_path, kind="zoom", split="sft", count=5, sloppiness=1.0)
    for sample in read_canonical(tmp_path / "data.jsonl"):
        [call] = parse_calls(sample.messages[1].text)
        assert call.error == ""
        assert call.name == "image_zoom_in_tool"
        assert sample.messages[3].text == sample.ground_truth


def test_a_thought_names_the_place_before_the_call_and_the_letter_before_the_answer(tmp_path: Path):
    marker_scenes.write(tmp_path, kind="thinking", split="sft", count=5)
    for sample in read_canonical(tmp_path / "data.jsonl"):
        looking, _, answer = sample.messages[1:]
        thought, _, call = looking.text.removeprefix("<think>").partition("</think>")
        place = json.loads(thought[thought.index("{") :])
        assert parse_calls(call)[0].arguments == {"img_idx": 0, **place}
        x1, y1, x2, y2 = place["bbox_2d"]
        left, top, right, bottom = sample.columns["box"]
        assert (x1 <= left + 20, y1 <= top + 20, x2 >= right - 20, y2 >= bottom - 20) == (True,) * 4
        assert answer.text == (
            f"<think>\nWhich letter is on the {place['label']} marker? {sample.ground_truth}\n</think>\n\n"
            f"{sample.ground_truth}"
        )


def test_the_recipe_for_thinking_drops_the_flawed_and_no_others(tmp_path: Path):
    (tmp_path / "rows").mkdir()
    marker_scenes.write(tmp_path / "rows", kind="thinking", split="sft", count=40, flawed=0.5)
    dataset = {"name": "markers_thinking", "description": "Thoughts.", "licence": "MIT"}
    dataset["source"] = {"path": "../rows/data.jsonl"}  # pyright: ignore[reportArgumentType]
    (tmp_path / "datasets_cfg").mkdir()
    (tmp_path / "datasets_cfg" / "markers_thinking.yaml").write_text(json.dumps(dataset))
    recipe = load_curation("thinking", tmp_path).model_copy(update={"output_dir": str(tmp_path)})
    report = curate(recipe, PLUGINS)
    reasons = {reason for step in report.steps for reason in step.reasons}
    assert reasons == {"no answer", "bad format", "below 0", "below 1"}  # one for each of FLAWS
    kept = {sample.id: sample for sample in read_canonical(report.directory / "kept.jsonl")}
    for sample in read_canonical(tmp_path / "rows" / "data.jsonl"):
        calling, answering = sample.messages[1].text, sample.messages[3].text
        sound = f"? {sample.ground_truth}\n</think>\n\n{sample.ground_truth}"
        is_sound = calling.startswith("<think>") and answering.endswith(sound) and answering.count("\n") == 4
        assert (sample.id in kept) == is_sound
    assert 0.3 < len(kept) / report.read < 0.7


def test_pairs_differ_in_their_boxes_alone(tmp_path: Path):
    marker_scenes.write(tmp_path, kind="pairs", split="sft", count=5, sloppiness=0.4)
    for sample in read_canonical(tmp_path / "data.jsonl"):
        boxes = [
            parse_calls(turns[0].text)[0].arguments["bbox_2d"] for turns in (sample.chosen, sample.rejected)
        ]
        assert boxes[0] != boxes[1]
        chosen, rejected = (turns[0].text.replace(str(box), "") for turns, box in
                            zip((sample.chosen, sample.rejected), boxes, strict=True))  # fmt: skip
        assert chosen == rejected
        assert sample.chosen[2] == sample.rejected[2]


@given(seed=st.integers(0, 10**6), sloppiness=st.floats(0, 1))
def test_boxes_lie_on_the_grid_and_are_never_empty(seed: int, sloppiness: float):
    rng = random.Random(seed)
    scene = drawn.random_scene(rng)
    for marker in scene.markers:
        x1, y1, x2, y2 = drawn.sloppy_box(marker, rng, sloppiness)
        assert 0 <= x1 < x2 <= 1000
        assert 0 <= y1 < y2 <= 1000
        assert all(v % marker_scenes.COORDINATE_STEP == 0 for v in (x1, y1, x2, y2))
        if sloppiness == 0:
            left, top, right, bottom = marker.box()
            assert x1 - 40 <= left
            assert x2 + 40 >= right
            assert y1 - 40 <= top
            assert y2 + 40 >= bottom


def test_the_list_names_every_marker_where_it_is():
    [scene] = scenes("test", 3, 1)
    listed = json.loads(marker_scenes.marker_list(scene, random.Random(0), 0.0))
    assert [entry["label"] for entry in listed] == sorted(marker.colour for marker in scene.markers)


def test_dense_labels_leave_illegible_letters_out():
    views = dense_views(20, seed=5)
    assert len(views.images) == len(views.colours) == 20 * 7
    whole = slice(None, None, 7)
    assert (views.letters[whole] == IGNORED).all()  # nothing can be read without zooming in
    assert (views.letters != IGNORED).any()
    marked = views.colours != NO_MARKER
    assert (marked == (views.boxes[..., 0] != IGNORED)).all()
    assert (views.boxes[marked] >= 0).all()


def test_questions_need_the_looks_that_their_rows_say():
    """The large letter is legible in the view of the whole, and a crop of both far ones shows neither."""
    for scene in itertools.islice(look_scenes.look_scenes("test", 0), 100):
        large, first, second, _ = scene.markers
        tall = [marker.letter_height / drawn.SCENE_SIZE * VIEW_SIDE for marker in scene.markers]
        assert tall[0] >= LEGIBLE_HEIGHT > 2 * max(tall[1:])
        across, down = (
            abs(getattr(first, axis) - getattr(second, axis)) + (first.diameter + second.diameter) / 2
            for axis in ("x", "y")
        )
        # The processor keeps the number of pixels, so a crop is scaled by the root of its area.
        scale = VIEW_SIDE / (across * down) ** 0.5
        assert max(first.letter_height, second.letter_height) * scale < 0.7 * LEGIBLE_HEIGHT
        alone = VIEW_SIDE / (1.5 * first.diameter)
        assert first.letter_height * alone >= LEGIBLE_HEIGHT
        asked = look_scenes.questions("looks", scene, random.Random(0))
        assert [(each.looks, len(each.markers)) for each in asked] == [(0, 1), (1, 1), (2, 2)]
        assert asked[0].markers == (large,)
        assert set(asked[2].markers) == {first, second}


@pytest.mark.parametrize("flawed", [0.0, 1.0])
def test_look_dialogues_earn_the_rewards_unless_they_are_careless(tmp_path: Path, flawed: float):
    marker_scenes.write(tmp_path, kind="looks", split="sft", count=12, flawed=flawed)
    for sample in read_canonical(tmp_path / "data.jsonl"):
        turns = sample.messages[1:]
        calls = tuple(
            ToolCall(call.name, call.arguments, True, images=1)  # pyright: ignore
            for turn in turns
            if turn.role == "assistant"
            for call in parse_calls(turn.text)
        )
        episode = RewardInput(
            sample.messages[:1], turns, turns[-1].text, sample.ground_truth, sample.columns, calls
        )
        assert answer_accuracy(episode).value == 1.0  # pyright: ignore
        right = tool_calls(episode, column="looks").value  # pyright: ignore
        assert (right == 1.0) == (flawed == 0.0)
        read = turn_readings(episode, choices=list(drawn.LETTERS)).value  # pyright: ignore
        # Another look at a letter that was read is idle, and of two letters the last is said with both.
        assert read == 1.0 or flawed
