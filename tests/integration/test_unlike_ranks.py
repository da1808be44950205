"""Two ranks whose batches differ in kind, in every stage: they end, and learn what one rank does."""

import json
import math
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml

from posttrain.config import DatasetConfig, ModelConfig, RlStage, RunConfig
from posttrain.data.formats import write_canonical
from posttrain.inference.engine import TopTokens
from posttrain.rendering.rendering import Renderer
from posttrain.run.directory import RunDir
from posttrain.training.core.sharding import Sharding
from posttrain.training.on_policy.learner import Learner
from posttrain.training.stage_job import StageJob
from posttrain.training.supervised.answer_log import AnswerLine, AnswerLog
from posttrain.training.supervised.teacher_answers import COLUMN
from posttrain.training.supervised.trl_stage import StageTrainer
from posttrain.types import Message, Sample, Trajectory, VideoRef, text_message
from tests.stage_jobs import job_of, worker_of
from tests.unit.ranks import on_two_ranks
from tests.unit.unlike import KINDS, dialogues, rendered

STEPS = 3
#: How long a rank waits for the other before it gives up.
DEADLINE = timedelta(seconds=90)
STAGES: dict[str, dict[str, Any]] = {
    "sft": {"stage": "sft"},
    "packed": {"stage": "sft", "data": {"mixture": {"shown": 1.0}, "packing": True, "max_length": 80}},
    "distillation": {
        "stage": "distillation",
        "data": {"mixture": {"taught": 1.0}},
        "teacher": {"checkpoint": "Qwen/Qwen3-VL-8B-Instruct"},
        "loss": {"top_k": 5},
        "generation": {"max_new_tokens": 64},
    },
    "dpo": {"stage": "dpo", "data": {"mixture": {"pairs": 1.0}}},
    "dpo with adapters": {"stage": "dpo", "data": {"mixture": {"pairs": 1.0}}, "lora": {"rank": 4}},
}
WAYS: dict[str, tuple[Sharding, bool]] = {
    "frozen tower in shards": ("fsdp2", True),
    "trained tower in shards": ("fsdp2", False),
    "trained tower in replicas": ("none", False),
}


@pytest.fixture(scope="module")
def told(
    make_video: Callable[..., VideoRef], tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Message, ...]]:
    """Two dialogues of each kind, one after another."""
    return [*dialogues(tmp_path_factory.mktemp("shown"), make_video).values()] * 2


@pytest.fixture(scope="module")
def folder(told: list[tuple[Message, ...]], tiny_checkpoint: Path, tmp_path_factory: Any) -> Path:
    """The dialogues as samples, as pairs, and with a teacher's log-probs."""
    folder = tmp_path_factory.mktemp("data")
    renderer = Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl")
    generator = torch.Generator().manual_seed(0)
    shown, pairs, lines, tops = [], [], [], []
    for number, (asked, said) in enumerate(told):
        shown.append(Sample(f"s{number}", (asked, said)))
        other = text_message("assistant", "B" * (number % 4 + 1))
        pairs.append(Sample(f"p{number}", (asked,), chosen=(said,), rejected=(other,)))
        tokens = (*range(5, 8 + number % 3), renderer.end_token_id)
        logits = torch.randn(len(tokens), len(renderer.tokenizer), generator=generator)
        logprobs, ids = logits.log_softmax(1).topk(5)
        lines.append(AnswerLine(number, "?", tokens))
        tops.append(TopTokens(ids.int().numpy(), logprobs.numpy()))
    log = AnswerLog(folder)
    log.append(lines, tops)
    taught = [Sample(f"t{sample.id}", sample.messages) for sample in shown]
    for number, sample in enumerate(taught):
        sample.columns[COLUMN] = log.read(number).sampled()
    log.close()
    (folder / "datasets_cfg").mkdir()
    for name, samples in (("shown", shown), ("pairs", pairs), ("taught", taught)):
        write_canonical(samples, folder / f"{name}.jsonl")
        dataset = {"name": name, "description": "Rows.", "licence": "MIT"}
        source = {"source": {"path": str(folder / f"{name}.jsonl")}}
        (folder / "datasets_cfg" / f"{name}.yaml").write_text(yaml.safe_dump(dataset | source))
    return folder


def job(stage: dict[str, Any], way: str, ranks: int, place: tuple[Path, Path, Path]) -> StageJob[Any]:
    """A stage of three steps of four samples, each of which is a micro-batch, or packed into rows."""
    checkpoint, folder, output = place
    sharding, frozen = WAYS[way]
    loop = {
        "data": {"mixture": {"shown": 1.0}},
        "max_steps": STEPS,
        "save_steps": STEPS,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "gradient_checkpointing": True,
        "num_workers": ranks,
    }
    if "packing" in stage.get("data", {}):
        loop |= {"per_device_batch_size": 4 // ranks}
    else:
        loop |= {"per_device_batch_size": 1, "gradient_accumulation_steps": 4 // ranks}
    config = RunConfig.model_validate(
        {
            "name": f"{way} {ranks}".replace(" ", "-"),
            "output_dir": str(output),
            "base_dir": str(folder),
            "model": {
                "name_or_path": str(checkpoint),
                "dtype": "float32",
                "freeze_vision_tower": frozen,
            },
            "stages": [loop | stage | ({"sharding": sharding} if ranks > 1 else {})],
            "trackers": [],
        }
    )
    taught = yaml.safe_load((folder / "datasets_cfg" / "taught.yaml").read_text())
    run = RunDir.create(config, resume=False)
    return job_of(config, run, checkpoint, replaced={"taught": DatasetConfig.model_validate(taught)})


def begin(rank: int, store: Path) -> None:
    """Join the other rank, as Ray Train would."""
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
    os.environ.update({name: str(value) for name, value in here.items()})  # accelerate looks for these
    file = f"file://{store}"
    dist.init_process_group("gloo", init_method=file, rank=rank, world_size=2, timeout=DEADLINE)


def end() -> None:
    """Wait for the other rank, and leave it."""
    dist.barrier()
    dist.destroy_process_group()


def one_rank(rank: int, jobs: list[StageJob[Any]], store: Path) -> None:
    """Run jobs on this rank of two, and note what each micro-batch shows."""
    begin(rank, store)
    plain, noted = StageTrainer.micro_step, []

    def micro_step(self: Any, model: Any, inputs: Any, *more: Any, **keywords: Any) -> torch.Tensor:
        noted.append([name for name in ("pixel_values", "pixel_values_videos") if name in inputs])
        return plain(self, model, inputs, *more, **keywords)

    StageTrainer.micro_step = micro_step
    for given in jobs:
        worker_of(given.stage)(given)
    store.with_name(f"noted-{rank}").write_text(json.dumps(noted))
    end()


def figures(run: RunDir) -> dict[str, list[float]]:
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return {name: [row[name] for row in rows if name in row] for name in ("loss", "grad_norm")}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", STAGES)
def test_a_stage_learns_on_two_ranks_what_it_learns_on_one(
    kind: str, tiny_checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    place = (tiny_checkpoint, folder, tmp_path)
    runs, learned_alone = [], {}
    for way, (_, frozen) in WAYS.items():
        if frozen not in learned_alone:  # one rank has nothing to share, so it learns the same either way
            alone = learned_alone[frozen] = job(STAGES[kind], way, 1, place)
            worker_of(alone.stage)(alone)
        runs.append((way, learned_alone[frozen], job(STAGES[kind], way, 2, place)))
    on_two_ranks(one_rank, [shared for _, _, shared in runs], tmp_path / "store")
    noted = [json.loads((tmp_path / f"noted-{rank}").read_text()) for rank in range(2)]
    # At least once one has text alone, when the other has pictures.
    assert any(bool(ours) != bool(theirs) for ours, theirs in zip(*noted, strict=True))
    for way, alone, shared in runs:
        expected, found = figures(alone.run), figures(shared.run)
        assert len(expected["loss"]) == STEPS
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5, abs=1e-5), way
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4), way


def learned(
    sharding: Sharding, ranks: int, frozen: bool, checkpoint: Path, trajectories: list[Trajectory]
) -> list[list[float]]:
    """Losses, norms of gradients and entropies of three updates by this learner of some."""
    stage = RlStage.model_validate(
        {
            "stage": "rl",
            "algorithm": {"name": "grpo", "group_size": 5, "mini_batches": 1},
            "tasks": [{"data": "markers", "rewards": [{"name": "answer_accuracy"}]}],
            "prompts_per_step": 2,
            "max_steps": 10,
            "learning_rate": 1e-3,
            "rollout": {"max_length": 100, "max_new_tokens": 50},
            "gradient_checkpointing": True,
            "num_workers": ranks,
        }
    ).model_copy(update={"sharding": sharding})
    config = ModelConfig(family="qwen3_vl", dtype="float32", freeze_vision_tower=frozen)
    learner = Learner(config, stage, checkpoint, resume=False)
    learner.tolerance = math.inf  # no engine has sampled these episodes
    rows = [learner.update(trajectories) for _ in range(STEPS)]
    return [[row[name] for row in rows] for name in ("loss", "grad_norm", "entropy")]


def one_learner(rank: int, checkpoint: Path, trajectories: list[Trajectory], output: Path) -> None:
    """Be this rank of two learners."""
    begin(rank, output / "store")
    found = [learned(sharding, 2, frozen, checkpoint, trajectories) for sharding, frozen in WAYS.values()]
    (output / f"found-{rank}").write_text(json.dumps(found))
    end()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_learners_learn_on_two_ranks_what_one_learns(
    tiny_checkpoint: Path, told: list[tuple[Message, ...]], tmp_path: Path
) -> None:
    renderer = Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl")
    shown = rendered(renderer, dict(zip(KINDS, told, strict=False)))
    trajectories = [
        Trajectory(
            sample_id=kind,
            task="markers",
            group=0,
            episode=number,
            token_ids=shown[kind].token_ids,
            sampled=shown[kind].supervised,
            images=shown[kind].images,
            advantage=(-1.2, 0.3, 0.9, 0.4, -0.5)[number],
            logprobs=[-5.0 * sampled for sampled in shown[kind].supervised],
            versions=[0 if sampled else -1 for sampled in shown[kind].supervised],
            approximate=[False] * len(shown[kind].supervised),
        )
        for number, kind in enumerate(("text", "image", "images", "text", "image"))
    ]
    alone = {frozen: learned("none", 1, frozen, tiny_checkpoint, trajectories) for frozen in (False, True)}
    on_two_ranks(one_learner, tiny_checkpoint, trajectories, tmp_path)
    for rank in range(2):
        found = json.loads((tmp_path / f"found-{rank}").read_text())
        for (way, (_, frozen)), figures in zip(WAYS.items(), found, strict=True):
            for ours, one in zip(figures, alone[frozen], strict=True):
                assert ours == pytest.approx(one, rel=1e-4, abs=1e-5), way
