"""The object in each process of a rollout pool: an engine that plays episodes and has them scored."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from posttrain.config import TaskConfig
from posttrain.inference.worker import EngineSetup, InferenceWorker
from posttrain.joints import (
    Environment,
    EnvironmentFactory,
    GameLoader,
    RewardClient,
    RewardClientFactory,
    ToolLoader,
)
from posttrain.messages import without_thinking
from posttrain.rollout.episode import TaskEnvironments
from posttrain.run.home import send_home
from posttrain.types import RewardInput, Sample, Trajectory

#: Groups that are scored at the same time.
REWARD_THREADS = 16


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
        load_game: Makes the environments that tasks name; None if none does.
    """

    tasks: Sequence[TaskConfig]
    image_dir: Path
    load_tools: ToolLoader
    make_environment: EnvironmentFactory
    rewards: RewardAccess | None = None
    base_dir: Path | None = None
    load_game: GameLoader | None = None


class RolloutWorker(InferenceWorker):
    """Plays groups of episodes and has each group scored while others still run.

    Attributes:
        environments: The environments of each task, by its name.
        rewards: Threads that have groups scored.
    """

    environments: Mapping[str, TaskEnvironments]
    rewards: ThreadPoolExecutor

    def start(self, setup: EngineSetup) -> int:
        """Load tools, reward client, renderer and engine; see `InferenceWorker.start`."""
        assert isinstance(setup, RolloutSetup)
        names = [task.name for task in setup.tasks]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"tasks must have names of their own; repeated: {', '.join(sorted(repeated))}")
        self.environments = {task.name: task_environments(task, setup) for task in setup.tasks}
        self.rewards = ThreadPoolExecutor(REWARD_THREADS, thread_name_prefix="rewards")
        self._specs = {task.name: [reward.model_dump() for reward in task.rewards] for task in setup.tasks}
        self._client = _client(setup.rewards)
        self._image_dir = setup.image_dir.absolute()
        return super().start(setup)

    def close(self) -> None:
        """Cancel every job, and end the threads."""
        super().close()
        self.rewards.shutdown()

    def reward(self, members: Sequence[Trajectory], sample: Sample) -> None:
        """Score a finished group in one request; called in a thread of `rewards`.

        Episodes that the world failed are not scored. The images of its tools come to the run's home node
        first, where rewards see them.

        Raises:
            Exception: The reward client's error if its server does not answer; it says what to do.
        """
        images = (Path(image.ref.path) for member in members for image in member.images)
        send_home(path for path in images if path.parent == self._image_dir)
        specs = self._specs[members[0].task]
        played = [member for member in members if not member.failed]
        if self._client is None or not specs or not played:
            return
        inputs = [reward_input(member, sample) for member in played]
        results = self._client.score(specs, inputs, groups=[0] * len(inputs))
        for member, result in zip(played, results, strict=True):
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
        outcome=trajectory.outcome,
    )


def task_environments(task: TaskConfig, setup: RolloutSetup) -> TaskEnvironments:
    """Load a task's tools, which its episodes share; each episode gets an environment of its own."""
    tools = setup.load_tools([tool.model_dump() for tool in task.tools], setup.base_dir)
    game = None
    if task.environment is not None:
        assert setup.load_game is not None
        game = setup.load_game(task.environment.model_dump(), setup.base_dir)

    def create() -> Environment:
        return setup.make_environment(tools, task.max_turns, setup.image_dir, game)

    announced = [*tools, *(game.tools if game is not None else ())]
    return TaskEnvironments([tool.spec for tool in announced], create)


def _client(access: RewardAccess | None) -> RewardClient | None:
    """Connect to the reward server, if there is one."""
    if access is None:
        return None
    return access.make_client(access.url, access.token, timeout=access.timeout, wait=access.wait)
