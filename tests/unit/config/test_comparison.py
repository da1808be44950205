"""A stage that varies settings becomes a stage for each combination, all from one checkpoint."""

import re
from pathlib import Path

import pytest

from posttrain.config import ConfigError, RlStage, RunConfig, load_run, read_run
from posttrain.config.arithmetic import batch_arithmetic
from posttrain.run.record import RunRecord

RUN = """\
name: mine
stages:
  - stage: tiny_model
  - stage: rl
    tasks: [{data: markers_train, rewards: [answer_accuracy]}]
    algorithm: {name: sapo, group_size: 4}
    prompts_per_step: 8
    max_steps: 5
    metric: all_stages
    vary:
      seed: [0, 1]
      rollout: {max_staleness: [0, 2]}
      algorithm: [{name: sapo}, {name: grpo, clip_high: 0.28}]
evaluation:
  tasks:
    - {name: all_stages, data: markers_test}
    - {name: some, data: markers_test, stages: [tiny_model, rl]}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RUN)
    return path


def cells(config: RunConfig) -> list[RlStage]:
    return [stage for stage in config.stages if isinstance(stage, RlStage)]


def test_every_combination_is_a_stage_from_the_same_checkpoint(run_file: Path):
    config = load_run(run_file)
    assert [stage.name for stage in cells(config)] == [
        f"rl-seed{seed}-max_staleness{staleness}-{name}"
        for seed in (0, 1)
        for staleness in (0, 2)
        for name in ("sapo", "grpo")
    ]
    assert {config.origins[stage.name] for stage in cells(config)} == {"tiny_model"}
    for stage in cells(config):
        assert stage.cell is not None
        assert stage.cell.comparison == "rl"
        settings = stage.cell.settings
        assert (stage.seed, stage.rollout.max_staleness) == (
            settings["seed"],
            settings["rollout.max_staleness"],
        )
        assert stage.algorithm.group_size == 4  # what is not varied stays
        assert config.seed_of(stage) == settings["seed"]
        assert getattr(stage.algorithm, "clip_high", 0.28) == 0.28
    # With one seed all cells draw the same prompts and random numbers.
    assert {stage.shared_name for stage in cells(config)} == {"rl"}


def test_evaluations_that_name_the_stage_measure_its_cells(run_file: Path):
    config = load_run(run_file)
    assert [task.name for task in config.tasks_after("rl-seed1-max_staleness2-grpo")] == [
        "all_stages",
        "some",
    ]
    assert config.evaluation is not None
    assert config.evaluation.tasks[1].stages == ["tiny_model", *(stage.name for stage in cells(config))]


def test_engines_of_other_settings_measure_where_they_are_alike_in_what_counts(run_file: Path):
    config = load_run(run_file)
    last = cells(config)[-1]
    assert config.measuring_rollout(last.name) == last.rollout
    assert config.evaluation_rollout != last.rollout
    varied = load_run(run_file, ["stages.rl.vary.rollout.max_new_tokens=[8, 9]"])
    measured = {varied.measuring_rollout(stage.name).max_new_tokens for stage in cells(varied)}
    assert measured == {8}  # however long the answers that were learned from, all are measured alike


def test_overrides_change_what_is_varied_and_what_is_not(run_file: Path):
    fewer = load_run(
        run_file, ["stages.rl.vary.seed=[7]", "stages.rl.vary.rollout=null", "stages.rl.max_steps=9"]
    )
    assert [stage.name for stage in cells(fewer)] == ["rl-seed7-sapo", "rl-seed7-grpo"]
    assert {stage.max_steps for stage in cells(fewer)} == {9}
    assert [stage.name for stage in cells(load_run(run_file, ["stages.rl.vary=null"]))] == ["rl"]


def test_a_run_records_its_cells(run_file: Path):
    config = load_run(run_file)
    record = RunRecord.from_json(config.model_dump(mode="json"))
    assert [stage.comparison for stage in record.stages] == [""] + ["rl"] * 8
    assert record.stages[-1].settings["algorithm"] == {"name": "grpo", "clip_high": 0.28}
    assert record.judges == {"all_stages": "answer_accuracy", "some": "answer_accuracy"}


def test_what_cells_share_is_told_once(run_file: Path):
    rows = batch_arithmetic(load_run(run_file))
    assert (
        "rl: cells",
        "seed 0, 1 × max_staleness 0, 2 × algorithm sapo, grpo = 8 stages, each from tiny_model",
    ) in rows
    assert [text for name, text in rows if name == "rl: episodes a step"] == ["8 prompts × 4 = 32"]
    assert len([text for name, text in rows if name == "rl: episodes in flight"]) == 2


@pytest.mark.parametrize(
    ("override", "key", "says", "remedy"),
    [
        ("vary.learning_rate=1e-4", "vary.learning_rate", "should list the values", "write [0.0001]"),
        ("vary.seed=[]", "vary.seed", "lists no value", "remove it"),
        ("vary.seed=[1, 1]", "vary.seed", "1 is listed twice", "once"),
        ("vary.name=[a, b]", "vary.name", "cannot be varied", "alike"),
        ("vary.tasks=[[], []]", "vary.tasks", "cannot be varied", "alike"),
        ("vary={seed: [0], rollout: null, algorithm: null}", "vary", "make 1 stage,", "list more"),
        ("vary.seed=" + str([*range(65)]), "vary", "make 65 × 2 × 2 = 260 stages", "several runs"),
        ("vary.lora=[{rank: 8}, {rank: 16}]", "vary", "letters", "shorter"),
        ("vary.algorithm.nam=[a]", "algorithm.nam", "unknown key", "name"),
        ("vary.prompts_per_step=[8, 9]", "prompts_per_step", "9 prompts cannot be split", "use 10"),
        ("learning_rat=1", "learning_rat", "unknown key", "learning_rate"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_once_where_it_is_written(
    run_file: Path, override: str, key: str, says: str, remedy: str
):
    if override.startswith("vary.algorithm"):
        run_file.write_text(re.sub(r"algorithm: \[.*\]", "algorithm: {mini_batches: [1, 2]}", RUN))
    if override.startswith("vary.lora"):
        name = "r" * 40
        run_file.write_text(
            RUN.replace("stage: rl\n", f"stage: rl\n    name: {name}\n").replace(", rl]", "]")
        )
        override = f"{name}.{override}"
    else:
        override = f"rl.{override}"
    with pytest.raises(ConfigError) as caught:
        load_run(run_file, [f"stages.{override}"])
    (problem,) = caught.value.problems
    assert problem.key == f"stages[1].{key}"
    assert says in problem.reason
    assert remedy in problem.remedy


def test_nothing_starts_from_a_comparison(run_file: Path):
    after = "  - {stage: sft, data: {mixture: {markers_zoom: 1}}, max_steps: 3}\nevaluation:"
    run_file.write_text(RUN.replace("evaluation:", after))
    with pytest.raises(ConfigError, match="'rl' is a comparison"):
        load_run(run_file)
    assert load_run(run_file, ["stages.sft.start_from=tiny_model"]).origins["sft"] == "tiny_model"


def test_a_problem_of_a_value_points_to_its_line(run_file: Path):
    run_file.write_text(RUN.replace("max_staleness: [0, 2]", "max_staleness: [0, 9]"))
    with pytest.raises(ConfigError) as caught:
        load_run(run_file)
    line = 1 + RUN.splitlines().index("      rollout: {max_staleness: [0, 2]}")
    assert caught.value.problems[0].where == f"{run_file}:{line}"
    assert caught.value.problems[0].key == "stages[1].rollout.max_staleness"


def test_data_without_a_file_know_no_vary():
    document = read_run("quickstart")
    document.data["stages"][-1]["vary"] = {"seed": [0, 1]}
    with pytest.raises(ValueError, match="becomes stages when a file is read"):
        RunConfig.model_validate(document.data)


VARIANTS = """\
variants:
        - {name: whole}
        - {name: from_scratch, start_from: tiny_model, learning_rate: 1.0e-3}
        - name: bare
          tasks: [{name: bare_task, data: markers_train, rewards: [counting]}]
          algorithm: {group_size: 2}
"""


def with_variants(path: Path, variants: str) -> Path:
    more = "  - {stage: sft, data: {mixture: {markers_zoom: 1}}, max_steps: 3}\n  - stage: rl\n"
    text = RUN.replace("algorithm: [{name: sapo}, {name: grpo, clip_high: 0.28}]\n", variants)
    path.write_text(
        text.replace("  - stage: rl\n", more).replace("      rollout: {max_staleness: [0, 2]}\n", "")
    )
    return path


def test_variants_have_keys_of_their_own_tasks_and_origins_among_them(run_file: Path):
    config = load_run(with_variants(run_file, VARIANTS))
    found = {stage.name: stage for stage in cells(config)}
    assert list(found) == [
        f"rl-seed{seed}-{name}" for seed in (0, 1) for name in ("whole", "from_scratch", "bare")
    ]
    whole, scratch, bare = (found[f"rl-seed0-{name}"] for name in ("whole", "from_scratch", "bare"))
    assert whole.cell is not None
    assert whole.cell.settings == {"seed": 0, "variant": "whole"}
    assert [config.origins[each.name] for each in (whole, scratch, bare)] == ["sft", "tiny_model", "sft"]
    assert [each.learning_rate for each in (whole, scratch)] == [whole.learning_rate, 1e-3]
    assert [task.name for task in bare.tasks] == ["bare_task"]
    assert (bare.algorithm.group_size, bare.algorithm.name, whole.algorithm.group_size) == (2, "sapo", 4)
    told = dict(batch_arithmetic(config))
    assert told["rl: cells"].endswith("= 6 stages, each from sft or tiny_model")


@pytest.mark.parametrize(
    ("variants", "key", "says"),
    [
        ("variants: bare", "vary.variants", "should list variants"),
        ("variants: [bare, whole]", "vary.variants[0]", "has no name"),
        ("variants: [{name: a}, {start_from: sft}]", "vary.variants[1]", "has no name"),
        ("variants: [{name: a}, {name: 3}]", "vary.variants[1]", "has no name"),
        ("variants: [{name: a, metric: some}, {name: b}]", "vary.variants[0].metric", "cannot be varied"),
        ("variants: [{name: a, cell: 1}, {name: b}]", "vary.variants[0].cell", "cannot be varied"),
        ("variants: [{name: a}, {name: a, max_steps: 3}]", "vary", "two cells would be called"),
    ],
)
def test_variants_that_say_nothing_are_refused(run_file: Path, variants: str, key: str, says: str):
    with pytest.raises(ConfigError) as caught:
        load_run(with_variants(run_file, variants + "\n"))
    (problem,) = caught.value.problems
    assert (problem.key, says in problem.reason) == (f"stages[2].{key}", True)


def test_tasks_of_one_name_that_differ_between_variants_are_refused(run_file: Path):
    other = VARIANTS.replace("name: bare_task, ", "")
    with pytest.raises(ConfigError, match="another task is named 'markers_train' too"):
        load_run(with_variants(run_file, other))
