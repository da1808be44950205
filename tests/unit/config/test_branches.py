"""Stages that branch, metrics of their own, tasks that are not measured everywhere, and removed entries."""

from pathlib import Path

import pytest

from posttrain.config import ConfigError, RunConfig, SftStage, load_run
from posttrain.config.loader import read_run

SFT = "data: {mixture: {markers_zoom: 1}}, max_steps: 10"
RUN = f"""\
name: mine
stages:
  - stage: tiny_model
  - {{stage: sft, {SFT}, metric: all_stages}}
  - {{stage: sft, name: beside, start_from: tiny_model, {SFT}}}
  - {{stage: sft, name: after, {SFT}}}
evaluation:
  stages: [tiny_model, sft, after]
  tasks:
    - {{name: all_stages, data: markers_test}}
    - {{name: some, data: markers_test, stages: [sft, beside, after]}}
"""
ON_A_MODEL = "model={name_or_path: Qwen/Qwen3-VL-2B-Instruct}"


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RUN)
    return path


def test_each_stage_starts_from_the_one_before_unless_told_otherwise(run_file: Path):
    config = load_run(run_file)
    assert config.origins == {"sft": "tiny_model", "beside": "tiny_model", "after": "beside"}
    config = load_run(run_file, ["stages.tiny_model=null", "stages.beside.start_from=base", ON_A_MODEL,
                                 "evaluation.stages=[all]"])  # fmt: skip
    assert config.origins == {"sft": "base", "beside": "base", "after": "beside"}


def test_a_task_is_measured_where_both_lists_name_the_stage(run_file: Path):
    config = load_run(run_file)
    measured = {
        name: [task.name for task in config.tasks_after(name)]
        for name in ("tiny_model", "sft", "beside", "after", "base")
    }
    assert measured == {
        "tiny_model": ["all_stages"],
        "sft": ["all_stages", "some"],
        "beside": [],
        "after": ["all_stages", "some"],
        "base": [],
    }
    alone = load_run(run_file, ["evaluation=null", "stages.sft.metric=null"])
    assert alone.tasks_after("sft") == []


@pytest.mark.parametrize(
    ("override", "key", "message"),
    [
        ("stages.beside.start_from=after", "stages[2].start_from", "choose among sft, tiny_model"),
        ("stages.beside.start_from=base", "stages[2].start_from", "there is no 'base' before this stage"),
        ("stages.sft.metric=some", "stages[1].metric", "(all_stages is)"),
        ("stages.after.metric=some", "stages[3].metric", "(no task is)"),
        ("stages.beside.eval_epochs=1.0", "stages[2].eval_epochs", "nothing is measured after this stage"),
        ("evaluation.tasks.some.stages=[stf]", "evaluation.tasks[1].stages", "there is no stage 'stf'"),
        ("stages.before=null", "stages.before", "there is no such entry to change"),
    ],
)
def test_what_cannot_be_is_refused(run_file: Path, override: str, key: str, message: str):
    with pytest.raises(ConfigError) as refused:
        load_run(run_file, [override])
    [problem] = refused.value.problems
    assert problem.key == key
    assert message in str(problem)


def test_a_dpo_stage_is_judged_by_its_own_pairs(run_file: Path):
    dpo = "{stage: dpo, data: {mixture: {p: 1}}, eval_dataset: held_out, metric: held_out}"
    assert load_run(run_file, [f"stages=[{{stage: tiny_model}}, {dpo}]", "evaluation=null"])
    with pytest.raises(ConfigError, match="not measured both before and after"):
        load_run(run_file, [f"stages=[{{stage: tiny_model}}, {dpo.replace('metric: h', 'metric: H')}]",
                            "evaluation=null"])  # fmt: skip


def test_evaluations_between_epochs_leave_out_the_end():
    def steps(epochs: float | None, rows: int, **length: float) -> list[int]:
        stage = {"stage": "sft", "data": {"mixture": {"a": 1.0}}, "per_device_batch_size": 8}
        return SftStage.model_validate(stage | {"eval_epochs": epochs} | length).evaluation_steps(rows)

    assert steps(None, 80, max_steps=40) == []
    assert steps(1.0, 80, max_steps=40) == [10, 20, 30]
    assert steps(1.0, 80, num_train_epochs=2.5) == [10, 20]
    assert steps(0.01, 80, num_train_epochs=0.5) == [1, 2, 3, 4]


def test_a_layer_removes_an_entry_by_null_and_places_follow(tmp_path: Path, run_file: Path):
    layer = tmp_path / "layer.yaml"
    layer.write_text("base: ./mine.yaml\nname: fewer\nstages:\n  sft: null\n  after: {max_steps: 7}\n")
    document = read_run(layer)
    assert [stage.get("name", stage["stage"]) for stage in document.data["stages"]] == [
        "tiny_model", "beside", "after",
    ]  # fmt: skip
    assert document.place(("stages", 1, "start_from")) == f"{run_file}:5"
    assert document.place(("stages", 2, "data")) == f"{run_file}:6"
    assert document.place(("stages", 2, "max_steps")) == f"{layer}:5"
    assert not any(key[:2] == ("stages", 3) for key in document.places)


def test_the_supervised_recipe_is_the_quickstart_without_rl():
    quickstart, supervised = load_run("quickstart"), load_run("supervised")
    assert [stage.name for stage in supervised.stages] == [
        "tiny_model",
        "sft",
        "cold_start",
        "distillation",
        "dpo",
    ]
    assert quickstart.origins["rl"] == quickstart.origins["distillation"] == "sft"
    assert lengths(supervised) | {"rl": lengths(quickstart)["rl"]} == lengths(quickstart)


def lengths(config: RunConfig) -> dict[str, int]:
    """Steps by stage."""
    return {stage.name: getattr(stage, "max_steps", None) or stage.steps for stage in config.stages}  # pyright: ignore
