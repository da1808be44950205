"""What tests of publishing share: engines with faults, learners that learn without a rollout."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from posttrain.config import ModelConfig, RlStage
from posttrain.inference.engine import EngineUse
from posttrain.inference.weights import Weights
from posttrain.inference.worker import EngineSetup, InferenceWorker
from posttrain.run.actors import Actor
from posttrain.training.on_policy.learner_group import LearnerGroup
from posttrain.training.on_policy.publishing import Publisher
from posttrain.types import Trajectory
from tests.integration.conftest import ENGINE_CONFIG, MAX_LENGTH
from tests.integration.faulty_engine import FAULT_FILE

TASK = {"data": "markers_train", "rewards": [{"name": "answer_accuracy"}]}
MODEL = ModelConfig(dtype="float32", freeze_vision_tower=False)


def make_stage(**settings: Any) -> RlStage:
    return RlStage.model_validate(
        {
            "stage": "rl",
            "algorithm": {"name": "sapo", "group_size": 4, "mini_batches": 1},
            "tasks": [TASK],
            "prompts_per_step": 4,
            "max_steps": 50,
            "learning_rate": 1e-3,
        }
        | settings
    )


@dataclass
class Engines:
    """Workers as a pool has them; a fault is turned on for one of them by its file."""

    workers: list[Actor[InferenceWorker]]
    faults: list[Path]
    published: list[Weights] = field(default_factory=list)

    def publish(self, weights: Weights) -> None:
        self.published.append(weights)
        weights.bring(self.workers)

    def score(self, sequences: Sequence[Trajectory]) -> list[list[list[float]]]:
        calls = [worker.call(InferenceWorker.score, list(sequences)) for worker in self.workers]
        return ray.get(calls, timeout=60)


def start_engines(checkpoint: Path, faults: list[Path], use: EngineUse) -> Engines:
    """Start an engine for each of the files that turn a fault on."""
    setup = EngineSetup(
        model=MODEL,
        checkpoint=checkpoint,
        engine_config=ENGINE_CONFIG,
        max_length=MAX_LENGTH,
        use=use,
        engine="tests.integration.faulty_engine:FaultyEngine",
    )
    environment = {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    workers = [
        Actor(InferenceWorker, use_gpu=False, environment=environment | {FAULT_FILE: str(path)}, watched=True)
        for path in faults
    ]
    ray.get([worker.call(InferenceWorker.start, setup) for worker in workers], timeout=300)
    return Engines(workers, faults)


def batch(sequences: Sequence[Trajectory], learners: LearnerGroup) -> list[Trajectory]:
    """What an engine of the present weights would have sampled, half of it good and half bad."""
    made = []
    for group, (sequence, scores) in enumerate(zip(sequences, learners.score(sequences), strict=True)):
        given = iter(scores)
        logprobs = [next(given) if sampled else 0.0 for sampled in sequence.sampled]
        for episode in range(4):
            known = dict(vars(sequence), group=group, episode=episode, logprobs=logprobs)
            versions = [0 if sampled else -1 for sampled in sequence.sampled]
            approximate = [False] * len(versions)
            advantage = 1.0 if episode % 2 else -0.5
            made.append(
                Trajectory(
                    **known | {"versions": versions, "approximate": approximate, "advantage": advantage}
                )
            )
    return made


def learn(learners: LearnerGroup, sequences: Sequence[Trajectory]) -> None:
    learners.update(batch(sequences, learners))


def publisher(
    learners: LearnerGroup, engines: Engines, sequences: Sequence[Trajectory], adapters: bool = False
) -> Publisher:
    made = Publisher(learners, engines, make_stage(), "float32", use_gpu=False, adapters=adapters)
    made.prove_by(sequences)
    return made
