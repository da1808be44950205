"""What would stop a run when a stage begins, perhaps after hours, and can be known before it starts."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.plugins import PluginError
from posttrain.preflight import machine
from posttrain.preflight.findings import Findings
from posttrain.rendering.tools import tool_specs
from posttrain.types import Sample

ENDPOINT = {"endpoint": {"model": "m", "base_url": "http://127.0.0.1:1/v1"}}


def sft(data: str = "dialogues", **keys: Any) -> dict[str, Any]:
    return {"stage": "sft", "max_steps": 1, "data": {"mixture": {data: 1.0}}} | keys


def dpo(data: str = "pairs", **keys: Any) -> dict[str, Any]:
    return {"stage": "dpo", "data": {"mixture": {data: 1.0}}} | keys


def distillation(data: str = "prompts", **keys: Any) -> dict[str, Any]:
    teacher = {"checkpoint": "Qwen/Qwen3-VL-32B-Instruct"}
    return sft(data, stage="distillation", teacher=teacher) | keys


def rl(data: str = "prompts", **keys: Any) -> dict[str, Any]:
    task = {"data": data, "rewards": ["answer_accuracy"]} | keys
    return {"stage": "rl", "max_steps": 1, "tasks": [task]}


def only(findings: Findings) -> str:
    [problem] = findings.problems
    return str(problem)


SOUND = [sft(), sft("pictures"), dpo(), distillation(), distillation("tooled"), rl()]


@pytest.mark.parametrize("stage", SOUND)
def test_what_is_sound_is_valid(look, stage):
    assert look(stage).problems == []


@pytest.mark.parametrize(
    ("stage", "key", "reason"),
    [
        (dpo("dialogues"), "data.mixture.dialogues", 'needs both "chosen" and "rejected"'),
        (dpo(eval_dataset="dialogues"), "eval_dataset", 'needs both "chosen" and "rejected"'),
        (sft("prompts"), "data.mixture.prompts", "no assistant message to learn from"),
        (sft("lost"), "data.mixture.lost", "lost.jsonl:1: image 'gone.png' cannot be found"),
        (sft("twins"), "data.mixture.twins", "twins.jsonl:2: the id 'one' is an earlier row's"),
        (sft("filtered"), "data.mixture.filtered", "has no rows; the filters remove all 4"),
        (sft("mistooled"), "data.mixture.mistooled", "did you mean 'image_zoom_in'?"),
        (rl("miscolumned"), "tasks[0].data", 'the row has no "problem"'),
        (rl("goldless"), "tasks[0].rewards", "row '0' and those after it have no ground_truth"),
        (distillation("pictures", text_only=True), "data.mixture.pictures", "the stage is text_only"),
        (distillation("tooled", teacher=ENDPOINT), "data.mixture.tooled", "an endpoint is not told of them"),
        (distillation(num_prompts=9), "data.mixture.prompts", "num_prompts = 9 takes 9 prompts of dataset"),
    ],
)
def test_rows_that_the_stage_cannot_use(look, stage, key, reason):
    message = only(look(stage))
    assert f"mine.yaml: stages[0].{key}: " in message
    assert reason in message


@pytest.mark.parametrize(("share", "sound"), [(0.5, True), (0.1, False)])
def test_a_row_with_an_unknown_tool_counts_as_a_broken_one(look, folder, share, sound):
    path = folder / "datasets_cfg" / "mistooled.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "\n".join(json.dumps(row | {"tools": row["tools"][: number == 0]}) for number, row in enumerate(rows))
    )
    with (folder / "datasets_cfg" / "mistooled.yaml").open("a") as file:
        file.write(f"max_bad_share: {share}\n")
    found = look(sft("mistooled")).problems
    assert ["mistooled.jsonl:1: " in problem.reason for problem in found] == [True] * (not sound)


def test_prompts_with_videos_are_no_questions_to_an_endpoint(look, folder, make_video):
    make_video(folder / "datasets_cfg" / "film.mp4")
    asked = distillation("films", teacher=ENDPOINT)
    assert "an endpoint is shown texts and images" in only(look(asked))
    assert "the prompt has a video, and the stage is text_only" in only(
        look(distillation("films", text_only=True))
    )


CODE = ["evil.py:spec", "os:getcwd", "../evil.py:spec", "tools_env.zoom:ImageZoomIn"]


@pytest.mark.parametrize("name", CODE)
def test_rows_name_no_code(look, folder, name, tmp_path, monkeypatch):
    """Rows come from strangers: nothing that they name is run, here or when they are rendered."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nspec = 1\n")
    path = folder / "datasets_cfg" / "dialogues.jsonl"
    rows = [json.loads(line) | {"tools": [name]} for line in path.read_text().splitlines()]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert "is not the name of an installed one" in only(look(sft()))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(PluginError, match="not the name of an installed tool"):
        tool_specs(Sample("s", (), tools=(name,)))
    assert not (tmp_path / "ran").exists()


def test_two_tools_of_one_name(look, folder):
    (folder / "own.py").write_text(
        "from tools_env import tool\n\n\n@tool\ndef echo(text: str) -> str:\n"
        '    """Say it again.\n\n    Args:\n        text: What.\n    """\n    return text\n'
    )
    task = {"tools": ["own.py:echo", "./own.py:echo"], "max_turns": 2}
    assert "two tools call themselves 'echo'" in only(look(rl(**task)))


def test_workers_wait_for_a_core_each(look):
    message = only(look(sft(num_workers=3), cluster={"num_cpus": 2}))
    assert "stages[0].num_workers: 3 workers take one core each, and cluster.num_cpus is 2" in message
    assert look(sft(num_workers=2), rl(), cluster={"num_cpus": 2}).problems == []


def test_engines_of_the_evaluation_must_fit_the_machine(look):
    evaluation = {"tasks": [{"data": "prompts"}], "rollout": {"actors": 4}}
    message = only(look(sft(), evaluation=evaluation, cluster={"num_gpus": 2}))
    assert "evaluation.rollout.actors: 4 take one GPU each" in message


def test_a_text_model_is_shown_no_images(look):
    model = {"name_or_path": "someone/text", "family": "text"}
    assert "a text model sees none" in only(look(sft("pictures"), model=model))
    assert look(sft(), model=model).problems == []


def test_as_many_broken_rows_as_the_dataset_allows_are_left_out(look, folder):
    path = folder / "datasets_cfg" / "dialogues.yaml"
    rows = (folder / "datasets_cfg" / "dialogues.jsonl").read_text()
    (folder / "datasets_cfg" / "dialogues.jsonl").write_text(rows + "{}\n")
    assert "1 of the first 5 rows cannot be used" in only(look(sft()))
    path.write_text(path.read_text() + "max_bad_share: 0.2\n")
    assert look(sft()).problems == []


def test_of_a_larger_dataset_some_broken_rows_prove_nothing(look, folder):
    rows = (folder / "datasets_cfg" / "dialogues.jsonl").read_text().splitlines()
    more = [json.dumps(json.loads(rows[0]) | {"id": f"more {n}"}) for n in range(4000)]

    def write(broken: int, good: int) -> None:
        lines = ["{}"] * broken + more[:good]
        (folder / "datasets_cfg" / "dialogues.jsonl").write_text("\n".join(lines) + "\n")

    write(1, 120)
    assert look(sft()).problems == []
    assert look(distillation("dialogues", num_prompts=121)).problems == []
    assert "which has 121" in only(look(distillation("dialogues", num_prompts=122)))
    write(40, 3990)  # below 1 % of all, although the first rows are all broken
    assert look(sft()).problems == []
    write(2, 60)  # above 1 % of all
    assert "2 of the first 32 rows cannot be used" in only(look(sft()))


def recipe(folder: Path, *steps: dict[str, Any], **keys: Any) -> dict[str, Any]:
    own = {"name": "own", "data": "dialogues", "steps": list(steps)} | keys
    (folder / "own.yaml").write_text(yaml.safe_dump(own))
    return sft(curation="own.yaml")


@pytest.mark.parametrize(
    ("step", "keys", "reason"),
    [
        ({"filter": "reward", "reward": "nowhere.py:missing", "min": 1}, {}, "steps[0].reward: 'nowhere.py"),
        (
            {"filter": "reward", "reward": {"name": "repetition", "params": {"full_": 1}}, "max": 0},
            {},
            "(it takes: tolerated, full)",
        ),
        ({"filter": "reward", "reward": "answer_accuracy", "min": 2}, {}, "steps[0].min: 2 is more than"),
        ({"filter": "domain", "keep": ["mathematic"]}, {}, "steps[0].keep: 'mathematic' is neither"),
        ({"filter": "domain"}, {"taxonomy": "nowhere.yaml"}, "there is no such file"),
        (
            {"filter": "domain", "endpoint": "own"},
            {"endpoints": {"own": {"checkpoint": "someone/llava"}}},
            "endpoints.own: family: 'someone/llava' does not tell its family",
        ),
        (
            {
                "filter": "rejection_sampling",
                "endpoint": "own",
                "reward": "answer_accuracy",
                "checks": [{"reward": "repetitoin", "min": 0}],
            },
            {"endpoints": {"own": {"model": "m", "base_url": "http://127.0.0.1:1/v1"}}},
            "steps[0].checks[0].reward: no plugin 'repetitoin'",
        ),
    ],
)
def test_a_curation_is_looked_into(look, folder, step, keys, reason):
    message = only(look(recipe(folder, step, **keys)))
    assert "mine.yaml: stages[0].curation: " in message
    assert reason in message


def test_all_faults_of_a_curation_are_told(look, folder):
    wrong = {"filter": "reward", "reward": "nowhere.py:missing", "min": 1}
    steps = (wrong, wrong | {"name": "again"}, {"filter": "domain", "keep": ["x"]})
    assert len(look(recipe(folder, *steps)).problems) == 3


def test_an_endpoint_without_an_address_is_missing_on_this_machine(look, folder, monkeypatch):
    stages = (
        distillation(teacher={"endpoint": {"model": "m"}}),
        recipe(folder, {"filter": "domain", "endpoint": "own"}, endpoints={"own": {"model": "m"}}),
    )
    findings = look(*stages)
    assert findings.problems == []
    keys = [problem.key for problem in findings.missing_here]
    assert keys == ["stages[1].curation", "stages[0].teacher.endpoint"]
    assert all("POSTTRAIN_ENDPOINT_URL" in problem.remedy for problem in findings.missing_here)
    monkeypatch.setenv("POSTTRAIN_ENDPOINT_URL", "http://127.0.0.1:1/v1")
    assert look(*stages).missing_here == []


@pytest.mark.parametrize(
    ("reward", "reason"),
    [
        ({"name": "counting", "params": {"how": "boxs"}}, "params: how: 'boxs' is none of number, "),
        ({"name": "tool_calls", "params": {"goal": 2}}, "it takes: target"),
    ],
)
def test_params_of_rewards_by_name_and_by_choice(look, reward, reason):
    message = only(look(rl(rewards=["answer_accuracy", reward])))
    assert "stages[0].tasks[0].rewards[1]: " in message
    assert reason in message


def test_a_bonus_without_a_condition_is_noted(look):
    rewards = ["answer_accuracy", {"name": "tool_calls", "weight": 0.3}, {"name": "truncation"}]
    [note] = [each for each in look(rl(rewards=rewards)).notes if "only_if" in each]
    assert note.startswith("stages[0].tasks[0]: tool_calls also count where answer_accuracy is not reached")
    assert note.endswith("add only_if: {answer_accuracy: 1}")
    rewards[1] = {"name": "tool_calls", "weight": 0.3, "only_if": {"answer_accuracy": 1}}
    assert not any("only_if" in each for each in look(rl(rewards=rewards)).notes)


UNEVEN = {"data": {"mixture": {"dialogues": 0.99995, "pictures": 5e-5}}}


def test_a_condition_that_no_answer_can_meet(look):
    rewards = ["answer_accuracy", {"name": "tool_calls", "only_if": {"answer_accuracy": 1.5}}]
    message = only(look(rl(rewards=rewards)))
    assert "rewards[1].only_if: answer_accuracy never gives 1.5, but 1 at most" in message


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        ({"trackers": ["trackio"]}, "trackers[0]: trackio is not installed"),
        ({"stages": [sft(lora={"target_modules": "("})]}, "target_modules: '(' is no regular expression"),
        ({"stages": [sft() | UNEVEN]}, "5e-05 of pictures is less than one draw in 10,000"),
    ],
)
def test_what_the_run_needs_besides(look, run, reason, monkeypatch):
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    assert reason in only(look(sft(), **run))


@pytest.mark.parametrize(
    ("keys", "gpus", "message"),
    [
        (
            {"attn_implementation": "flash_attention_2"},
            1,
            "model.attn_implementation: flash_attn is not installed\n    → pip install --no-build-isolation"
            " 'posttrain[flash-attention]', or remove the key",
        ),
        (
            {"fused_layers": "liger"},
            1,
            "model.fused_layers: liger_kernel is not installed\n    → pip install 'posttrain[liger]', or"
            " remove the key",
        ),
        (
            {"fused_layers": "liger"},
            0,
            "model.fused_layers: liger_kernel runs on GPUs, and cluster.num_gpus is 0\n    → raise it, or"
            " remove the key",
        ),
    ],
)
def test_kernels_that_the_machine_lacks(look, keys, gpus, message, monkeypatch):
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: object() if gpus == 0 else None)
    model = {"name_or_path": "Qwen/Qwen3-VL-2B-Instruct"} | keys
    assert message in only(look(sft(), model=model, cluster={"num_gpus": gpus}))


def test_a_folder_of_results_that_cannot_be(look, folder):
    assert "is not a folder" in only(look(sft(), output_dir=str(folder / "datasets_cfg" / "pairs.jsonl")))


def checkpoint(folder: Path, *files: str, **config: object) -> dict[str, str]:
    own = folder / "own"
    own.mkdir()
    (own / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"} | config))
    for name in files:
        (own / name).write_text("{}")
    return {"name_or_path": "./own"}


WEIGHTS, TOKENS, IMAGES = "model.safetensors", "tokenizer.json", "preprocessor_config.json"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ((TOKENS, IMAGES), "has no *.safetensors weights"),
        ((WEIGHTS, IMAGES), "has no tokenizer"),
        ((WEIGHTS, TOKENS), "has no image processor"),
        ((WEIGHTS, TOKENS, IMAGES), ""),
    ],
)
def test_a_checkpoint_that_is_not_whole(look, folder, files, reason):
    model = checkpoint(folder, *files)
    problems = [str(problem) for problem in look(sft(), model=model).problems]
    assert len(problems) == bool(reason)
    assert all(f"model.name_or_path: {folder}/own {reason}" in problem for problem in problems)
    teacher = {"checkpoint": "./own"}
    assert len(look(distillation(teacher=teacher)).problems) == bool(reason)


def test_parts_of_weights_that_are_not_there(look, folder):
    model = checkpoint(folder, TOKENS, IMAGES, "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "own" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks 1 of 2 files of weights, such as model-2.safetensors" in only(look(sft(), model=model))


@pytest.mark.parametrize(("config", "count"), [({}, 2), ({"rope_scaling": {"factor": 2.0}}, 0)])
def test_more_tokens_than_the_model_takes(look, folder, config, count):
    text = {"max_position_embeddings": 4096} | config
    model = checkpoint(folder, WEIGHTS, TOKENS, IMAGES, text_config=text)
    teaching = distillation(teacher={"checkpoint": "./own"})
    problems = [str(problem) for problem in look(rl(), teaching, model=model).problems]
    assert len(problems) == count
    keys = ("stages[0].rollout.max_length", "stages[1].data.max_length")
    for key, problem in zip(keys, problems, strict=False):
        assert f"mine.yaml: {key}: " in problem
        assert "own can take (4,096, max_position_embeddings)" in problem


@pytest.mark.parametrize(
    ("rollout", "problems"),
    [({}, 1), ({"rollout": {"max_length": 5000}}, 1), ({"rollout": {"max_length": 4096}}, 0)],
)
@pytest.mark.parametrize("own", [True, False])
def test_an_evaluation_longer_than_the_model_takes(look, folder, own, rollout, problems):
    """Also where the evaluation says nothing, and no rl stage has a length that it would share."""
    model = checkpoint(folder, WEIGHTS, TOKENS, IMAGES, text_config={"max_position_embeddings": 4096})
    stages = [sft()] if own else [{"stage": "tiny_model", "max_steps": 1}, sft()]
    evaluation = {"tasks": [{"data": "prompts"}]} | rollout
    found = look(*stages, model=model if own else {}, evaluation=evaluation).problems
    assert len(found) == problems
    for problem in found:
        assert problem.key == "evaluation.rollout.max_length"
        assert problem.remedy == "write at most 4096"


def test_a_checkpoint_of_a_curation(look, folder):
    checkpoint(folder, TOKENS, IMAGES)
    step = {"filter": "domain", "endpoint": "own"}
    message = only(look(recipe(folder, step, endpoints={"own": {"checkpoint": "./own"}})))
    assert "own.yaml: endpoints.own: " in message
    assert "has no *.safetensors weights" in message


def test_a_key_that_goes_nowhere_is_noted(look, monkeypatch):
    teacher = {"endpoint": {"model": "m", "base_url": "https://models.example/v1"}}
    monkeypatch.setenv("POSTTRAIN_ENDPOINT_API_KEY", "secret")
    stage = distillation(teacher=teacher)
    assert "no key is sent to https://models.example/v1" in " ".join(look(stage).notes)
    monkeypatch.setenv("POSTTRAIN_ENDPOINT_URL", "https://models.example/v1")
    assert "no key" not in " ".join(look(stage).notes)


def test_adapters_of_a_model_that_is_gone(look, folder):
    (folder / "own").mkdir()
    (folder / "own" / "adapter_config.json").write_text('{"base_model_name_or_path": "/gone/qwen3-vl"}')
    message = only(look(sft(), model={"name_or_path": "./own"}))
    assert "holds adapters for /gone/qwen3-vl, which is not there" in message
