"""A pool of one worker in this process, with the scripted engine: real but for Ray and vLLM."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from posttrain.config import EngineConfig, ModelConfig, TaskConfig
from posttrain.first_party import PLUGINS
from posttrain.joints import PluginSettings
from posttrain.rollout.episode import Limits
from posttrain.rollout.jobs import GroupJob, Rollout
from posttrain.rollout.play import MeasurePrompts, PlayGroup
from posttrain.rollout.worker import RewardAccess, RolloutSetup, RolloutWorker
from posttrain.types import RewardInput, RewardResult
from tests.at_work import do


class FullMarks:
    """A reward client that finds every answer right."""

    def __init__(self, url: str, token: str, *, timeout: float, wait: float) -> None:
        pass

    def score(
        self,
        specs: Sequence[PluginSettings],
        inputs: Sequence[RewardInput],
        groups: Sequence[int] | None = None,
    ) -> list[RewardResult]:
        return [RewardResult(1.0, values={"answer_accuracy": 1.0}) for _ in inputs]


class LocalPool:
    """What a step or an evaluation asks of a `RolloutPool`.

    Attributes:
        played: The groups of each rollout.
    """

    def __init__(self, checkpoint: Path, tasks: Sequence[TaskConfig], max_length: int, images: Path) -> None:
        self.played: list[list[GroupJob]] = []
        self._worker = RolloutWorker()
        setup = RolloutSetup(
            # The tiny model shows every image at the same size, unless it is told otherwise.
            model=ModelConfig(family="qwen3_vl", dtype="float32", min_pixels=32**2, max_pixels=1024**2),
            checkpoint=checkpoint,
            engine_config=EngineConfig(),
            tasks=tasks,
            max_length=max_length,
            image_dir=images,
            load_tools=PLUGINS.load_tools,
            load_game=PLUGINS.load_game,
            make_environment=PLUGINS.make_environment,
            rewards=RewardAccess("", "", FullMarks),
            engine=f"{Path(__file__).with_name('scripted_engine.py')}:ScriptedEngine",
        )
        self._worker.start(setup)

    def prompt_tokens(self, groups: Sequence[GroupJob]) -> Mapping[int, int]:
        return do(self._worker, [MeasurePrompts(groups)])[0]

    def rollout(self, groups: Sequence[GroupJob], limits: Limits) -> Rollout:
        self.played.append(list(groups))
        played = do(self._worker, [PlayGroup(group, limits) for group in groups])
        return Rollout([trajectory for group in played for trajectory in group.trajectories])
