"""bfloat16 models learn what float32 models learn: twelve small steps of every stage, judged in float32.

At this learning rate nearly every update is smaller than a rounding unit of bfloat16 weights. What a run has
learned is read from its masters, and measured by transformers' own forward pass in float32.
"""

import dataclasses
import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from posttrain.config import DatasetConfig, ModelConfig, RlStage, RunConfig
from posttrain.config.learning import OptimizerName
from posttrain.data.checking import check_rows
from posttrain.data.dataset import Dataset as Samples
from posttrain.models.load import load_model, save_model
from posttrain.quickstart import marker_scenes
from posttrain.rendering.collation import collate
from posttrain.rendering.rendering import Rendered, Renderer
from posttrain.run.directory import RunDir
from posttrain.training.core.sharding import Sharding
from posttrain.training.on_policy.learner import Learner
from posttrain.training.supervised.teacher_answers import COLUMN
from posttrain.types import Sample, Trajectory
from tests.stage_jobs import job_of, worker_of
from tests.unit.training.supervised.test_distillation import answers, renderer
from tests.unit.training.supervised.test_dpo_worker import write_pairs

__all__ = ["answers", "renderer"]  # fixtures

STEPS, RATE, BETA = 12, 1e-5, 0.1
Dtype = Literal["float32", "bfloat16"]


@pytest.fixture(scope="module")
def start(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with weights that bfloat16 can hold, so that both runs begin alike."""
    directory = tmp_path_factory.mktemp("start")
    processor = Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl").processor
    save_model(load_model(tiny_checkpoint, dtype="bfloat16"), processor, directory)
    return directory


@pytest.fixture(scope="module")
def folder(answers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes to learn from, preference pairs, and a teacher's answers."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "scenes").mkdir()
    marker_scenes.write(folder / "scenes", kind="list", split="sft", count=8)
    write_pairs(folder, "pairs", "train", 8)
    for name, path in (("scenes", "../scenes/data.jsonl"), ("taught", str(answers / "data.jsonl"))):
        dataset = {"name": name, "description": "Rows.", "licence": "MIT", "source": {"path": path}}
        (folder / "datasets_cfg" / f"{name}.yaml").write_text(yaml.safe_dump(dataset))
    return folder


STAGES: dict[str, dict[str, Any]] = {
    "sft": {"data": {"mixture": {"scenes": 1.0}, "packing": True, "max_length": 2048}},
    "distillation": {
        "data": {"mixture": {"taught": 1.0}},
        "teacher": {"checkpoint": "Qwen/Qwen3-VL-8B-Instruct"},
        "loss": {"top_k": 5},
        "generation": {"max_new_tokens": 64},
    },
    "dpo": {"data": {"mixture": {"pairs": 1.0}}, "beta": BETA},
}


@dataclasses.dataclass(frozen=True)
class Way:
    """How a model is trained."""

    dtype: Dtype
    sharding: Sharding = "none"
    optimizer: OptimizerName = "adamw"


WAYS = [
    Way("bfloat16"),
    Way("bfloat16", "fsdp2"),
    Way("bfloat16", "fsdp2", "adamw_bf16"),
    *[Way("bfloat16", "fsdp2", "adamw_8bit")] * (importlib.util.find_spec("bitsandbytes") is not None),
]


def trained(kind: str, start: Path, folder: Path, output: Path, way: Way) -> Path:
    """Run a stage's worker for twelve steps; return the checkpoint."""
    loop = {"max_steps": STEPS, "save_steps": STEPS, "logging_steps": 1, "per_device_batch_size": 4}
    rate = {"learning_rate": RATE, "lr_scheduler_type": "constant", "warmup_ratio": 0.0}
    config = RunConfig.model_validate(
        {
            "name": "-".join((kind, *dataclasses.astuple(way))),
            "output_dir": str(output),
            "base_dir": str(folder),
            "model": {"name_or_path": str(start), "dtype": way.dtype},
            "stages": [{"stage": kind, "optimizer": way.optimizer} | STAGES[kind] | loop | rate],
            "trackers": [],
        }
    )
    run = RunDir.create(config, resume=False)
    # The settings refuse to share among one worker; shards of one rank compute as those of many.
    stage: Any = config.stages[0].model_copy(update={"sharding": way.sharding})
    taught = DatasetConfig.model_validate(
        yaml.safe_load((folder / "datasets_cfg" / "taught.yaml").read_text())
    )
    job = job_of(config, run, start, replaced={"taught": taught})
    worker_of(stage)(dataclasses.replace(job, stage=stage))
    found = run.newest_checkpoint(kind)
    assert found is not None
    return found


def learned(checkpoint: Path) -> torch.nn.Module:
    """Load a checkpoint's weights in float32, as exactly as its run holds them."""
    model = load_model(checkpoint, dtype="float32").eval()
    masters: dict[str, Tensor] = {}
    for path in (checkpoint / "state").glob("*.safetensors"):
        masters |= load_file(path)
    exact = {name.removesuffix(".master"): tensor for name, tensor in masters.items() if ".master" in name}
    assert not model.load_state_dict(exact, strict=False).unexpected_keys
    return model


def shown(kind: str, folder: Path, renderer: Renderer) -> list[Rendered]:
    """Render what a stage learns from; of pairs the preferred answers, then the others."""
    name = {"sft": "scenes", "distillation": "taught", "dpo": "pairs"}[kind]
    source = yaml.safe_load((folder / "datasets_cfg" / f"{name}.yaml").read_text())["source"]["path"]
    rows = check_rows(folder / "datasets_cfg" / source)
    found = Samples(rows)
    samples: list[Sample] = [found[place] for place in range(len(found))]
    if kind == "dpo":
        answers = [sample.chosen for sample in samples] + [sample.rejected for sample in samples]
        prompts = [sample.messages for sample in (*samples, *samples)]
        return [renderer.render((*p, *a)) for p, a in zip(prompts, answers, strict=True)]
    if kind == "sft":
        return [renderer.render(sample.messages) for sample in samples]
    items = [renderer.render(sample.messages[:-1], add_generation_prompt=True) for sample in samples]
    for item, sample in zip(items, samples, strict=True):
        tokens = sample.columns[COLUMN]["token_ids"]
        item.supervised = [False] * len(item.token_ids) + [True] * len(tokens)
        item.token_ids = item.token_ids + list(tokens)
    return items


def likelihoods(model: Any, items: Sequence[Rendered | Trajectory], renderer: Renderer) -> Tensor:
    """Return [items] log-probs of the supervised tokens, or of those that were sampled, by transformers."""
    found = []
    for item in items:
        batch = collate([item], renderer)
        counted = torch.tensor((item.supervised if isinstance(item, Rendered) else item.sampled)[1:])
        with torch.no_grad():
            logprobs = model(**batch).logits[0, :-1].log_softmax(-1)
        found.append(logprobs.gather(1, batch["input_ids"][0, 1:, None])[counted].sum())
    return torch.stack(found)


def loss(kind: str, now: Tensor, before: Tensor) -> float:
    """Compute what a stage lowers, from the log-probs of its items now and at the start."""
    if kind == "dpo":
        chosen, rejected = (now - before).chunk(2)
        return -torch.nn.functional.logsigmoid(BETA * (chosen - rejected)).mean().item()
    return -now.mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("kind", STAGES)
def test_a_bfloat16_model_improves_as_a_float32_model_does(kind, start, folder, renderer, tmp_path):
    items = shown(kind, folder, renderer)
    before = likelihoods(load_model(start, dtype="float32"), items, renderer)
    at_first = loss(kind, before, before)
    gained = {}
    full = Way("float32")
    for way in (full, *WAYS):
        checkpoint = trained(kind, start, folder, tmp_path, way)
        now = likelihoods(learned(checkpoint), items, renderer)
        gained[way] = at_first - loss(kind, now, before)
    wanted = gained.pop(full)
    assert wanted > 0
    for way, gain in gained.items():
        assert gain / wanted == pytest.approx(1, abs=0.05), way


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_rl_in_bfloat16_improves_as_in_float32(
    start: Path, trajectories: list[Trajectory], stage: RlStage, tmp_path: Path, way: Way
) -> None:
    renderer = Renderer.from_pretrained(start, "qwen3_vl")
    advantages = torch.tensor([each.advantage for each in trajectories])
    before = likelihoods(load_model(start, dtype="float32"), trajectories, renderer)
    gained = {}
    for how in (Way("float32"), way):
        config = ModelConfig(family="qwen3_vl", dtype=how.dtype)
        keys = {"learning_rate": 1e-6, "sharding": how.sharding, "optimizer": how.optimizer}
        learner = Learner(config, stage.model_copy(update=keys), start, resume=False)
        learner.tolerance = math.inf  # these episodes are another model's
        for _ in range(STEPS):
            learner.update(trajectories)
        learner.write_checkpoint(tmp_path / how.dtype)
        now = likelihoods(learned(tmp_path / how.dtype), trajectories, renderer)
        gained[how.dtype] = (advantages * (now - before)).sum().item()
    assert gained["float32"] > 0
    assert gained["bfloat16"] / gained["float32"] == pytest.approx(1, abs=0.05)


def test_the_first_dpo_loss_in_bfloat16_is_that_of_equal_models(start, folder, tmp_path):
    """Policy and reference compute alike, and their log-probs are added up in float32."""
    ways: list[Sharding] = ["none", "fsdp2"]
    for sharding in ways:
        checkpoint = trained("dpo", start, folder, tmp_path, Way("bfloat16", sharding))
        rows = [json.loads(line) for line in (checkpoint.parents[1] / "metrics.jsonl").open()]
        assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-7)
        assert rows[0]["rewards/margins"] == 0
