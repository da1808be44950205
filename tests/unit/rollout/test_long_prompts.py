"""Prompts that leave no room for an answer: replaced in training, left out of an evaluation, and counted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from posttrain.config import RlStage, RunConfig
from posttrain.data.formats import DataError
from posttrain.data.mixing import REPLACEMENTS
from posttrain.evaluation.evaluate import EvaluationError, evaluate_task, read_evaluations
from posttrain.rendering.rendering import Renderer
from posttrain.rollout.episode import EpisodeError, TaskEnvironments, prompt_tokens
from posttrain.rollout.jobs import GroupJob
from posttrain.run.directory import RunDir
from posttrain.training.on_policy.prompts import StepPrompts, stage_prompts
from posttrain.types import Block, ImageRef, Message, Sample
from tests.unit.rollout.local_pool import LocalPool

#: Room for the prompt of a small image, and not for that of a large one.
MAX_LENGTH = 120
SMALL, LARGE = (64, 64), (640, 640)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))


def write_dataset(folder: Path, name: str, sizes: Sequence[tuple[int, int]]) -> None:
    """Write a dataset whose rows show one image each, of these sizes."""
    rows = []
    for index, size in enumerate(sizes):
        file = f"{name}-{index}.png"
        Image.effect_noise(size, 60 + index).convert("RGB").save(folder / file)
        asked = [{"type": "image", "image": file}, {"type": "text", "text": "Which letter?"}]
        messages = [{"role": "user", "content": asked}]
        rows.append(json.dumps({"id": f"{name}-{index}", "messages": messages, "ground_truth": "K"}) + "\n")
    (folder / f"{name}.jsonl").write_text("".join(rows))
    (folder / "datasets_cfg").mkdir(exist_ok=True)
    dataset = {"name": name, "description": "rows", "licence": "MIT", "source": {"path": f"../{name}.jsonl"}}
    (folder / "datasets_cfg" / f"{name}.yaml").write_text(yaml.safe_dump(dataset))


def config_of(folder: Path, tasks: Sequence[tuple[str, float]] = (("rows", 1.0),)) -> RunConfig:
    rollout = {"max_new_tokens": 20, "max_length": MAX_LENGTH}
    rewards = [{"name": "answer_accuracy"}]
    stage = {
        "stage": "rl",
        "algorithm": {"name": "sapo", "group_size": 2},
        "tasks": [{"data": name, "ratio": ratio, "rewards": rewards} for name, ratio in tasks],
        "prompts_per_step": 4,
        "max_steps": 6,
        "rollout": rollout,
    }
    return RunConfig.model_validate(
        {
            "name": "run",
            "base_dir": str(folder),
            "model": {"name_or_path": "some/model", "family": "qwen3_vl"},
            "stages": [stage],
            "evaluation": {
                "tasks": [{"name": "held_out", "data": "rows", "rewards": rewards}],
                "rollout": rollout,
            },
        }
    )


def prompts_of(config: RunConfig, folder: Path, checkpoint: Path) -> StepPrompts:
    """The prompts of each step of a config's stage, as a real worker measures them."""
    stage = config.stages[0]
    assert isinstance(stage, RlStage)
    pool: Any = LocalPool(checkpoint, stage.tasks, stage.rollout.max_length, folder)
    return stage_prompts(config, stage, pool.prompt_tokens, checkpoint)


def ids(groups: Sequence[GroupJob]) -> list[str]:
    return [group.sample.id for group in groups]


def test_a_step_takes_the_next_prompt_in_place_of_one_that_is_too_long(
    tmp_path: Path, tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_dataset(tmp_path, "rows", [SMALL, LARGE, SMALL, LARGE, SMALL, SMALL])
    prompts = prompts_of(config_of(tmp_path), tmp_path, tiny_checkpoint)
    drawn = [prompts.of_step(step) for step in (1, 2, 3)]
    for step in drawn:
        assert [group.group for group in step.groups] == [0, 1, 2, 3]
        assert not {"rows-1", "rows-3"} & set(ids(step.groups))
    assert sum(step.left_out for step in drawn) >= 4  # two of the six rows, in twelve draws
    (warning,) = [record.message for record in caplog.records if "leaves no room" in record.message]
    assert "dataset rows has a prompt of 1613 tokens" in warning
    assert "rollout.max_length = 120" in warning
    assert "model.max_pixels" in warning

    # A run that is resumed at any step plays the same prompts with the same seeds.
    assert prompts_of(config_of(tmp_path), tmp_path, tiny_checkpoint).of_step(3) == drawn[2]


def test_a_replacement_is_of_the_same_task(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_dataset(tmp_path, "rows", [LARGE, SMALL, LARGE])
    write_dataset(tmp_path, "others", [SMALL] * 3)
    config = config_of(tmp_path, [("rows", 0.5), ("others", 0.5)])
    drawn = prompts_of(config, tmp_path, tiny_checkpoint).of_step(1)
    groups = drawn.groups
    assert drawn.left_out > 0
    assert sorted(group.task for group in groups) == ["others", "others", "rows", "rows"]
    assert [group.sample.id for group in groups if group.task == "rows"] == ["rows-1", "rows-1"]


def test_a_task_has_lengths_of_its_own(
    tmp_path: Path, tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A prompt that fits the rollout, but not its task, is replaced; the other task keeps it."""
    write_dataset(tmp_path, "rows", [SMALL] * 3)
    write_dataset(tmp_path, "others", [LARGE, LARGE, LARGE, SMALL])
    config = config_of(tmp_path, [("rows", 0.5), ("others", 0.5)])
    stage = config.stages[0].model_dump(exclude_unset=True)
    stage["rollout"]["max_length"] = 2000
    stage["tasks"][1]["max_length"] = 500
    config = RunConfig.model_validate(config.model_dump(exclude_unset=True) | {"stages": [stage]})
    drawn = prompts_of(config, tmp_path, tiny_checkpoint).of_step(1)
    groups = drawn.groups
    assert drawn.left_out > 0
    assert {group.sample.id for group in groups if group.task == "others"} == {"others-3"}
    assert "stage rl: row" in caplog.text
    assert "tasks[1].max_length = 500" in caplog.text


def test_nothing_is_left_out_where_all_prompts_fit(
    tmp_path: Path, tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_dataset(tmp_path, "rows", [SMALL] * 4)
    drawn = prompts_of(config_of(tmp_path), tmp_path, tiny_checkpoint).of_step(1)
    assert drawn.left_out == 0
    assert sorted(ids(drawn.groups)) == [f"rows-{index}" for index in range(4)]
    assert not caplog.records


def test_a_dataset_of_which_no_prompt_fits_is_an_error_that_says_what_to_do(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    write_dataset(tmp_path, "rows", [LARGE] * 2)
    prompts = prompts_of(config_of(tmp_path), tmp_path, tiny_checkpoint)
    with pytest.raises(
        DataError,
        match=rf"dataset rows: {REPLACEMENTS + 1} prompts .* row 'rows-\d', has 1613 tokens\. Raise"
        r" stages\.rl\.rollout\.max_length = 120, lower model\.max_pixels or model\.video_max_tokens, or"
        " filter",
    ):
        prompts.of_step(1)


def test_an_evaluation_leaves_long_prompts_out_and_counts_them(
    tmp_path: Path, tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_dataset(tmp_path, "rows", [SMALL, LARGE, SMALL])
    config = config_of(tmp_path)
    assert config.evaluation is not None
    task = config.evaluation.tasks[0]
    pool: Any = LocalPool(tiny_checkpoint, [task], MAX_LENGTH, tmp_path)
    run = RunDir(tmp_path / "run")
    row = evaluate_task(pool, config, task, run, "base", 0)
    assert (row.n, row.accuracy, row.metrics["left_out"]) == (2, 1.0, 1.0)
    assert read_evaluations(run) == [row]
    assert "1 of 3 samples of dataset rows" in caplog.text
    assert "row 'rows-1' with 1613 tokens" in caplog.text

    write_dataset(tmp_path, "rows", [SMALL] * 3)
    assert "left_out" not in evaluate_task(pool, config, task, run, "sft", 1).metrics
    write_dataset(tmp_path, "rows", [LARGE])
    with pytest.raises(EvaluationError, match=r"1 of 1 samples of dataset rows .* raise it, or lower"):
        evaluate_task(pool, config, task, run, "rl", 2)


def test_prompts_are_measured_from_headers_as_episodes_show_them(
    renderer: Renderer, zoom_task: dict[str, TaskEnvironments], tmp_path: Path
) -> None:
    file = tmp_path / "large.png"
    Image.effect_noise((300, 200), 60).convert("RGB").save(file)
    blocks = (Block("image", image=ImageRef(str(file))), Block("text", text="Which letter?"))
    sample = Sample("large", (Message("user", blocks),))
    shown = renderer.render(sample.messages, zoom_task["markers"].tools, add_generation_prompt=True)
    file.write_bytes(file.read_bytes()[:200])  # no pixel of it can be decoded now
    found = prompt_tokens(renderer.counting(), zoom_task, sample, "markers")
    assert found == len(shown.token_ids)
    file.unlink()
    with pytest.raises(EpisodeError, match="sample 'large' of task 'markers' cannot be shown"):
        prompt_tokens(renderer.counting(), zoom_task, sample, "markers")
