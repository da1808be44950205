"""Loading runs and datasets: recipes, bases, overrides, and every refusal's message."""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import (
    ConfigError,
    RlStage,
    RunConfig,
    SftStage,
    dataset_names,
    load_dataset_config,
    load_run,
    missing_variable,
    recipe_names,
)

RUN = """\
name: mine
model: {name_or_path: Qwen/Qwen3-VL-2B-Instruct}
stages:
  - stage: sft
    data: {mixture: {markers_zoom: 1}}
    learning_rate: 1e-4
    max_steps: 10
  - stage: rl
    algorithm: {name: sapo, group_size: 8}
    tasks:
      - {data: markers_train, rewards: [answer_accuracy]}
    max_steps: 5
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RUN)
    return path


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads(name: str) -> None:
    assert load_run(name).name == name


@pytest.mark.parametrize("name", dataset_names())
def test_every_dataset_loads(name: str) -> None:
    assert load_dataset_config(name).name == name


def test_values_and_defaults(run_file: Path) -> None:
    config = load_run(run_file)
    sft, rl = config.stages
    assert isinstance(sft, SftStage)
    assert isinstance(rl, RlStage)
    assert (sft.name, sft.learning_rate, sft.global_batch_size) == ("sft", 1e-4, 1)
    assert (rl.algorithm.name, rl.episodes_per_step, rl.tolerance(config.model.dtype)) == ("sapo", 512, 0.05)
    assert rl.tasks[0].name == "markers_train"
    assert config.base_dir == str(run_file.parent)
    assert config.evaluation_rollout == rl.rollout


def test_tolerance_follows_the_precision_unless_set(run_file: Path) -> None:
    def tolerance(*overrides: str) -> float:
        config = load_run(run_file, overrides)
        stage = config.stages[1]
        assert isinstance(stage, RlStage)
        return stage.tolerance(config.model.dtype)

    assert tolerance() == 0.05
    assert tolerance("model.dtype=float32") == 1e-4
    assert tolerance("stages.rl.logprob_tolerance=0.01") == 0.01


def test_a_loaded_run_loads_again_from_its_own_dump(run_file: Path) -> None:
    config = load_run(run_file)
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("stages.rl.max_steps=7", ("stages", 1, "max_steps")),
        ("stages[1].max_steps=7", ("stages", 1, "max_steps")),
        ("stages.1.max_steps=7", ("stages", 1, "max_steps")),
        (
            "stages.rl.tasks.markers_train.rewards.answer_accuracy.weight=7",
            ("stages", 1, "tasks", 0, "rewards", 0, "weight"),
        ),
        ("seed=7", ("seed",)),
    ],
)
def test_overrides(run_file: Path, override: str, path: tuple[str | int, ...]) -> None:
    value: Any = load_run(run_file, [override]).model_dump()
    for part in path:
        value = value[part]
    assert value == 7


def test_a_file_derives_from_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "derived.yaml"
    path.write_text("base: quickstart\nname: derived\nstages: {rl: {max_steps: 3}}\n")
    config, original = load_run(path), load_run("quickstart")
    assert config.stages[:-1] == original.stages[:-1]
    assert config.stages[-1] == original.stages[-1].model_copy(update={"max_steps": 3})
    path.write_text("base: derived.yaml\n")
    with pytest.raises(ConfigError, match="circle"):
        load_run(path)
    path.write_text("base: quikstart\n")
    with pytest.raises(ConfigError, match=r"derived.yaml:1: base: .*\n.*did you mean quickstart\?"):
        load_run(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.rl.learning_rte=1", "stages[1].learning_rte: unknown key → did you mean learning_rate?"),
        ("stages.rl.num_generations=4", "it is called algorithm.group_size"),
        ("stages.rl.group_size=4", "it belongs in algorithm.group_size"),
        ("freeze_vision_tower=true", "it belongs in model.freeze_vision_tower"),
        ("stages.rl.rollout.top_p=0.9", "training samples from the whole distribution"),
        ("stages.rl.algorithm.clip_low=0.1", "stages[1].algorithm.clip_low: unknown key"),
        ("stages.rl.max_steps=many", "should be a whole number, not 'many'"),
        ("stages.rl.max_steps=1.5", "should be a whole number, not 1.5"),
        ("stages.rl.max_steps=true", "should be a whole number, not True"),
        ("stages.rl.max_steps=0", "should be greater than or equal to 1, not 0"),
        ("stages.rl.learning_rate='1e-4'", "should be a number, not '1e-4' → write 1e-4, without quotes"),
        ("stages.rl.learning_rate=.nan", "not nan"),
        ("stages.rl.learning_rate=.inf", "finite number"),
        ("model.freeze_merger=yes", "should be true or false, not 'yes' → write true or false"),
        ("stages.sft.beta=1", "only dpo stages have it; known here: "),
        ("rl.max_steps=5", "command line: rl: unknown key → did you mean stages.rl?"),
        ("stages.rl.markers_train.max_turns=5", "did you mean stages[1].tasks.markers_train?"),
        ("model.dtype=bf16", "did you mean bfloat16?"),
        ("stages.rl.algorithm.name=sappo", "did you mean sapo?"),
        ("stages.sft.stage=sftt", "did you mean sft?"),
        ("stages.sft.data=3", "should be a mapping of keys to values, not 3"),
        ("stages.sft.num_train_epochs=1", "exactly one of the two"),
        ("stages.sft.global_batch_size=12", "1 × 1 × 1 (per_device_batch_size ×"),
        ("stages.sft.data.mixture.markers_list=1", "sum to 2, not to 1 → scale them"),
        ("stages.rl.prompts_per_step=15", "cannot be split evenly into 2 mini_batches"),
        ("stages.rl.per_device_batch_size=1000", "as many episodes at once as fit a packed row → remove it"),
        ("stages.rl.max_batch_tokens=1000", "has to fit a row → raise it"),
        ("stages.rl.micro_batch_size=8", "an rl stage takes packed rows of max_batch_tokens"),
        ("stages.rl.lora.dropout=0.1", "engines sample without dropout"),
        ("stages.rl.lora.quantization=int8", "sample from another policy → use nf4"),
        ("stages.rl.num_train_epochs=1.0", "write max_steps"),
        ("stages.rl.gradient_accumulation_steps=2", "follows from prompts_per_step"),
        ("stages.rl.global_batch_size=99", "write prompts_per_step"),
        ("stages.rl.logging_steps=5", "every rollout batch has its row"),
        ("stages.rl.rollout.max_new_tokens=8192", "leaves no room for a prompt"),
        ("stages.rl.warmup_steps=5", "write warmup_ratio, a share of the steps"),
        ("stages.rl.name=sft", "the name 'sft' is taken by another stage"),
        ("stages.rl.name=images", "the name 'images' is reserved"),
        ("name=../../etc", "name: should be up to 64 letters, digits"),
        ("model.name_or_path=null", "there is no model to start from"),
        ("model.name_or_path=./nowhere", "there is no directory"),
        ("model.name_or_path=someone/llava", "model.family"),
        ("model.attn_implementation=flash_attn", "should be 'sdpa', 'flash_attention_2' or"),
        (
            "model={attn_implementation: flash_attention_2, dtype: float32}",
            "set dtype: bfloat16, or remove it",
        ),
        ("model.fused_layers=true", "model.fused_layers: should be 'none' or 'liger'"),
        ("cluster.num_gpus=1", "take one GPU each, and cluster.num_gpus is 1"),
        ("evaluation={tasks: [{data: markers_test}], stages: [tl]}", "there is no stage 'tl'"),
        ("evaluation={tasks: [{data: markers_test, max_turns: 3}]}", "without tools an episode is one turn"),
        ("evaluation={tasks: [{data: markers_test, tools: [image_zoom_in]}]}", "set it to 2 or more"),
        ("stages.2.max_steps=1", "there is no such entry to change"),
        ("max_steps", "an override is written key=value"),
        ("trackers=[consle]", "did you mean console?"),
        ("<<=1", "base:"),
    ],
)
def test_refusals_name_place_reason_and_remedy(run_file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run(run_file, [override])
    assert message in re.sub(r"\s+", " ", str(caught.value))


def test_all_problems_of_a_file_are_listed_with_their_lines(run_file: Path) -> None:
    text = RUN.replace("max_steps: 10", "max_steps: ten\n    lr: 1").replace("max_steps: 5", "")
    run_file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_run(run_file)
    places = {(problem.where, problem.key) for problem in caught.value.problems}
    assert places == {
        (f"{run_file}:7", "stages[0].max_steps"),
        (f"{run_file}:8", "stages[0].lr"),
        (f"{run_file}:9", "stages[1].max_steps"),
    }


def test_a_problem_of_a_base_names_the_base(tmp_path: Path, run_file: Path) -> None:
    run_file.write_text(RUN.replace("name: sapo", "name: sapoo"))
    derived = tmp_path / "derived.yaml"
    derived.write_text("base: mine.yaml\nseed: x\n")
    with pytest.raises(ConfigError) as caught:
        load_run(derived)
    assert {problem.where for problem in caught.value.problems} == {f"{run_file}:9", f"{derived}:2"}


@pytest.mark.parametrize("text", ["", "- a", "3", "name: x\nstages: []"])
def test_files_that_say_nothing_are_refused(run_file: Path, text: str) -> None:
    run_file.write_text(text)
    with pytest.raises(ConfigError):
        load_run(run_file)


def test_a_dataset_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "datasets_cfg").mkdir()
    path = tmp_path / "datasets_cfg" / "photos.yaml"
    path.write_text("name: photos\ndescription: d\nlicence: MIT\nsource:\n  path: rows/photos.jsonl\n")
    dataset = load_dataset_config("photos", tmp_path)
    assert dataset.source.path == str(tmp_path / "datasets_cfg" / "rows" / "photos.jsonl")
    path.write_text(path.read_text().replace("rows/", "${POSTTRAIN_TEST_DATA}/"))
    monkeypatch.delenv("POSTTRAIN_TEST_DATA", raising=False)
    assert missing_variable(load_dataset_config("photos", tmp_path)) == "POSTTRAIN_TEST_DATA"
    monkeypatch.setenv("POSTTRAIN_TEST_DATA", "/data")
    assert load_dataset_config("photos", tmp_path).source.path == "/data/photos.jsonl"
    path.write_text(path.read_text().replace("licence: MIT", "license: MIT"))
    with pytest.raises(ConfigError, match="it is called licence"):
        load_dataset_config("photos", tmp_path)
    with pytest.raises(ConfigError, match=r"did you mean photos\?"):
        load_dataset_config("photo", tmp_path)
    with pytest.raises(ConfigError, match="no such dataset"):
        load_dataset_config("../datasets_cfg/photos", tmp_path)
    for name in ("a" * 5000, "a/" * 3000, "a\0b"):
        with pytest.raises(ConfigError, match="no such dataset"):
            load_dataset_config(name, tmp_path)


@pytest.mark.parametrize(
    ("given", "remedy"),
    [("rows.jsonl", r"source: \{path: rows\.jsonl\}"), ("beside", r"mean beside\.yaml")],
)
def test_what_is_near_a_dataset_is_named(tmp_path: Path, given: str, remedy: str) -> None:
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "beside.yaml").touch()
    with pytest.raises(ConfigError, match=remedy):
        load_dataset_config(given, tmp_path)


def test_loading_is_quick() -> None:
    code = "from posttrain.config import load_run; load_run('quickstart')"
    begun = time.process_time(), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert time.perf_counter() - begun[1] < 10


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.system ['touch {canary}']",
        "name: !!python/name:os.system",
        "stages: [!!python/object/new:subprocess.Popen [['touch', '{canary}']]]",
        "name: run\nstages: [{{stage: tiny_model, name: ../../escaped}}]",
        "name: ../escaped\nstages: [{{stage: tiny_model}}]",
        "a: &a [{many}]\nb: &b [{of_a}]\nc: &c [{of_b}]\nd: [{of_c}]",
    ],
)
def test_a_hostile_recipe_is_refused(text: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    bombs = {f"of_{name}": ", ".join([f"*{name}"] * 50) for name in "abc"}
    recipe = tmp_path / "run.yaml"
    recipe.write_text(text.format(canary=canary, many=", ".join("x" * 50), **bombs))
    with pytest.raises(ConfigError):
        load_run(recipe)
    assert not canary.exists()
