"""The object in each process of a rollout pool: an engine that plays episodes and has them scored."""

import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from posttrain.config import TaskConfig
from posttrain.inference.engine import stable_seed
from posttrain.inference.worker import EngineSetup, InferenceWorker
from posttrain.joints import Environment, EnvironmentFactory, RewardClient, RewardClientFactory, ToolLoader
from posttrain.messages import without_thinking
from posttrain.rollout.episode import EpisodeJob, Limits, TaskEnvironments, prompt_tokens, run_episodes
from posttrain.rollout.jobs import GroupJob, Rollout
from posttrain.types import RewardInput, Sample, Trajectory

#: Groups that are scored at the same time.
REWARD_THREADS = 4


@dataclass(frozen=True)
class RewardAccess:
    """How to reach the reward server.

    Attributes:
        url: Such as "http://127.0.0.1:8901".
        token: The bearer token.
        make_client: Connects to it.
        wait: Seconds to keep trying while the server does not answer.
        timeout: Seconds that scoring one group may take.
    """

    url: str
    token: str
    make_client: RewardClientFactory
    wait: float = 60.0
    timeout: float = 1200.0


@dataclass(frozen=True, kw_only=True)
class RolloutSetup(EngineSetup):
    """What every worker of a rollout pool is made from.

    Attributes:
        tasks: Every task that groups may belong to.
        image_dir: Folder in which tools store their images.
        load_tools: Makes a task's tools.
        make_environment: Makes the environment of an episode.
        rewards: The reward server; None if nothing is to be scored.
        base_dir: Folder against which references to files are resolved; the working directory if None.
    """

    tasks: Sequence[TaskConfig]
    image_dir: Path
    load_tools: ToolLoader
    make_environment: EnvironmentFactory
    rewards: RewardAccess | None = None
    base_dir: Path | None = None


class RolloutWorker(InferenceWorker):
    """Runs groups of episodes and has each group scored while the others still run."""

    def start(self, setup: EngineSetup, published: tuple[Path, int] | None) -> int:
        """Load tools, reward client, renderer and engine; see `InferenceWorker.start`."""
        assert isinstance(setup, RolloutSetup)
        names = [task.name for task in setup.tasks]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"tasks must have names of their own; repeated: {', '.join(sorted(repeated))}")
        self._environments = {task.name: _environments(task, setup) for task in setup.tasks}
        self._rewards = {task.name: [reward.model_dump() for reward in task.rewards] for task in setup.tasks}
        self._client = _client(setup.rewards)
        return super().start(setup, published)

    def prompt_tokens(self, groups: Sequence[GroupJob]) -> dict[int, int]:
        """Count the tokens of each group's prompt, by the group's index; no image is decoded."""
        renderer = self.renderer.counting()
        return {
            group.group: prompt_tokens(renderer, self._environments, group.sample, group.task)
            for group in groups
        }

    def rollout(self, groups: Sequence[GroupJob], limits: Limits) -> Rollout:
        """Run and score whole groups.

        Args:
            groups: With distinct indices.
            limits: Lengths and temperature of this rollout; `max_length` is at most the setup's.

        Raises:
            Exception: The reward client's error if its server does not answer; it says what to do.
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
                self.engine, self.renderer, self._environments, jobs, limits, on_finished
            )
            waiting_since = time.perf_counter()
            for future in scoring:
                future.result()
        return Rollout(trajectories, time.perf_counter() - waiting_since)

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
    """Make what rewards are shown of a finished episode."""
    turns = [message for message in trajectory.response if message.role == "assistant"]
    sampled = zip(trajectory.token_ids, trajectory.sampled, strict=True)
    return RewardInput(
        prompt=trajectory.prompt,
        response=tuple(trajectory.response),
        answer=without_thinking(turns[-1].text) if turns else "",
        ground_truth=sample.ground_truth,
        columns=sample.columns,
        tool_calls=tuple(trajectory.tool_calls),
        truncated=trajectory.stop_reason != "answer",
        completion_ids=tuple(token for token, own in sampled if own),
    )


def _environments(task: TaskConfig, setup: RolloutSetup) -> TaskEnvironments:
    """Load a task's tools, which its episodes share; each episode gets an environment of its own."""
    tools = setup.load_tools([tool.model_dump() for tool in task.tools], setup.base_dir)

    def create() -> Environment:
        return setup.make_environment(tools, task.max_turns, setup.image_dir)

    return TaskEnvironments([tool.spec for tool in tools], create)


def _client(access: RewardAccess | None) -> RewardClient | None:
    """Connect to the reward server, if there is one."""
    if access is None:
        return None
    return access.make_client(access.url, access.token, timeout=access.timeout, wait=access.wait)
