"""One process of the rollout pool: an engine, its episodes, and their rewards."""

import re
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.config import EngineConfig, ModelConfig, TaskConfig
from posttrain.inference.answers import AnswerSampling, Question, SampledAnswer, sample_answers
from posttrain.inference.engine import Engine, Request, stable_seed
from posttrain.plugins import resolve
from posttrain.rendering.rendering import Renderer
from posttrain.rollout.episode import Environment, EpisodeJob, Limits, TaskEnvironments, run_episodes
from posttrain.types import RewardInput, Sample, Trajectory

#: Groups that are scored at the same time.
REWARD_THREADS = 4
_THINKING = re.compile(r"<think>.*?(</think>|\Z)", flags=re.DOTALL)


@dataclass(frozen=True)
class RewardAccess:
    """How to reach the reward server.

    Attributes:
        url: Such as "http://127.0.0.1:8901".
        token: The bearer token.
        wait: Seconds to keep trying while the server does not answer.
        timeout: Seconds that scoring one group may take.
        client: Reference of the client's class.
    """

    url: str
    token: str
    wait: float = 60.0
    timeout: float = 1200.0
    client: str = "rewards.serving.client:RewardClient"


@dataclass(frozen=True)
class WorkerSetup:
    """What every worker of a pool is made from; plain data that each resolves by itself.

    Attributes:
        model: How the model is loaded.
        checkpoint: Directory with model and processor.
        engine_config: Memory and batch size of the engine.
        tasks: Every task that groups may belong to.
        limits: Lengths of turns and episodes.
        image_dir: Where tools store their images.
        rewards: The reward server, or None where nothing is to be scored.
        base_dir: Folder against which references to files are resolved.
        environment: Reference of the environment's class.
        tool_loader: Reference of the function that makes a task's tools.
        engine: Reference of the engine's class.
    """

    model: ModelConfig
    checkpoint: Path
    engine_config: EngineConfig
    tasks: Sequence[TaskConfig]
    limits: Limits
    image_dir: Path
    rewards: RewardAccess | None = None
    base_dir: Path | None = None
    environment: str = "tools_env.environment:ToolEnvironment"
    tool_loader: str = "tools_env.sdk:load_tools"
    engine: str = "posttrain.inference.vllm_engine:VllmEngine"


@dataclass(frozen=True)
class GroupJob:
    """The episodes of one prompt.

    Attributes:
        group: Index of the prompt in its batch.
        task: Name of its task.
        sample: The prompt.
        size: How many episodes to sample.
        seed: Of the group; see `stable_seed`.

    Example:
        GroupJob(3, "markers", sample, size=8, seed=stable_seed(run_seed, step, 3))
    """

    group: int
    task: str
    sample: Sample
    size: int
    seed: int


@dataclass
class Rollout:
    """Finished groups.

    Attributes:
        trajectories: Checked, and scored where the setup has rewards.
        reward_seconds: Time spent waiting for rewards after the last episode was over.
    """

    trajectories: list[Trajectory] = field(default_factory=list)
    reward_seconds: float = 0.0


class RolloutWorker:
    """Runs groups of episodes and has each group scored while the others still run."""

    def start(self, setup: WorkerSetup, published: tuple[Path, int] | None) -> int:
        """Load engine, renderer, tools and reward client.

        Args:
            setup: What the worker is made from.
            published: Weights to take before the first use, and their version; else the checkpoint's, as 0.

        Returns:
            The version served.
        """
        self._renderer = Renderer.from_config(setup.checkpoint, setup.model)
        names = [task.name for task in setup.tasks]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"tasks must have names of their own; repeated: {', '.join(sorted(repeated))}")
        self._environments = {task.name: _environments(task, setup) for task in setup.tasks}
        self._rewards = {task.name: [reward.model_dump() for reward in task.rewards] for task in setup.tasks}
        self._client = _client(setup.rewards)
        make_engine: Any = resolve(setup.engine, "posttrain.engines")
        self._engine: Engine = make_engine(
            setup.checkpoint,
            self._renderer.end_token_id,
            self._renderer.banned_token_ids,
            max_length=setup.limits.max_length,
            dtype=setup.model.dtype,
            config=setup.engine_config,
        )

        if published is not None:
            self._engine.load_weights(*published)
        return self._engine.version

    def load_weights(self, path: Path, version: int) -> int:
        """Take a checkpoint's weights; returns the version now served."""
        self._engine.load_weights(path, version)
        return self._engine.version

    def probe(self) -> int:
        """Generate one token, the one proof that an engine works; returns the version that sampled it."""
        token_ids = [self._renderer.end_token_id]
        self._engine.submit(Request(id="probe", token_ids=token_ids, max_tokens=1, temperature=0.0, seed=0))
        while True:
            for completion in self._engine.step():
                return completion.version

    def step_seconds(self) -> float:
        """For how long the engine has been in its present step (may be called while a rollout runs)."""
        began = self._engine.step_began
        return 0.0 if began is None else time.monotonic() - began

    def rollout(self, groups: Sequence[GroupJob], limits: Limits) -> Rollout:
        """Run and score whole groups.

        Args:
            groups: With distinct indices.
            limits: Of this rollout; `max_length` at most the setup's.

        Raises:
            Exception: What scoring raised where the reward server stays away; its message says what to do.
        """
        samples = {group.group: group.sample for group in groups}
        sizes = {group.group: group.size for group in groups}
        jobs = [
            EpisodeJob(group.sample, group.task, group.group, index, stable_seed(group.seed, index))
            for group in groups
            for index in range(group.size)
        ]
        finished: dict[int, list[Trajectory]] = defaultdict(list)
        scoring: list[Future[None]] = []

        with ThreadPoolExecutor(REWARD_THREADS, thread_name_prefix="rewards") as threads:

            def on_finished(trajectory: Trajectory) -> None:
                members = finished[trajectory.group]
                members.append(trajectory)
                if len(members) == sizes[trajectory.group]:
                    scoring.append(threads.submit(self._score, members, samples[trajectory.group]))
                for future in scoring:
                    if future.done():
                        future.result()

            trajectories = run_episodes(
                self._engine, self._renderer, self._environments, jobs, limits, on_finished
            )
            waiting_since = time.perf_counter()
            for future in scoring:
                future.result()
        return Rollout(trajectories, time.perf_counter() - waiting_since)

    def answer(self, questions: Sequence[Question], sampling: AnswerSampling) -> list[SampledAnswer]:
        """Answer questions, in their order; nothing is scored."""
        return sample_answers(self._engine, self._renderer, questions, sampling)

    def _score(self, members: list[Trajectory], sample: Sample) -> None:
        """Score a finished group in one request."""
        rewards = self._rewards[members[0].task]
        if self._client is None or not rewards:
            return
        inputs = [reward_input(member, sample) for member in members]
        results = self._client.score(rewards, inputs, groups=[0] * len(inputs))
        for member, result in zip(members, results, strict=True):
            member.reward = result


def reward_input(trajectory: Trajectory, sample: Sample) -> RewardInput:
    """What rewards see of a finished episode."""
    turns = [message for message in trajectory.response if message.role == "assistant"]
    return RewardInput(
        prompt=trajectory.prompt,
        response=tuple(trajectory.response),
        answer=_THINKING.sub("", turns[-1].text).strip() if turns else "",
        ground_truth=sample.ground_truth,
        columns=sample.columns,
        tool_calls=tuple(trajectory.tool_calls),
        truncated=trajectory.stop_reason != "answer",
    )


def _environments(task: TaskConfig, setup: WorkerSetup) -> TaskEnvironments:
    """Resolve a task's tools and environment; tools are shared by its episodes, environments are not."""
    load_tools: Any = resolve(setup.tool_loader, "posttrain.tools")
    make_environment: Any = resolve(setup.environment, "posttrain.tools", setup.base_dir)
    tools = load_tools([tool.model_dump() for tool in task.tools], setup.base_dir)

    def create() -> Environment:
        return make_environment(tools, task.max_turns, setup.image_dir)

    return TaskEnvironments([tool.spec for tool in tools], create)


def _client(access: RewardAccess | None) -> Any:
    if access is None:
        return None
    make_client: Any = resolve(access.client, "posttrain.rewards")
    return make_client(access.url, access.token, timeout=access.timeout, wait=access.wait)
