"""Protocols of rewards, tools and environments, as posttrain uses them.

`rewards` and `tools_env` are plugins: nothing below the command line imports them. The top
(`posttrain.first_party`) hands them down as the protocols of this module, and processes that need them get
them by pickling, which for classes and functions is by name.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from posttrain.types import EnvironmentReply, Message, RewardInput, RewardResult, Sample, Score, ToolSpec

#: A plugin's reference and parameters, and for a reward its weight and conditions, as plain data.
PluginSettings = Mapping[str, object]


class Tool(Protocol):
    """A tool as a task lists it."""

    @property
    def spec(self) -> ToolSpec:
        """What the model is told of it."""
        ...


class ToolLoader(Protocol):
    """Makes the tools that a task names."""

    def __call__(self, references: Iterable[PluginSettings], base_dir: Path | None = None) -> Sequence[Tool]:
        """Load tools by reference; raise PluginError for one that is not there or refuses its params."""
        ...


class Environment(Protocol):
    """The partner of one episode's dialogue, in messages; used once.

    Whatever fails that is not the model's mistake is raised as `posttrain.failures.WorldError`.
    """

    def start(self, sample: Sample) -> tuple[Message, ...]:
        """Return the messages before the model's first turn."""
        ...

    def step(self, assistant_text: str) -> EnvironmentReply:
        """Take a turn of the model, and return what it is shown next."""
        ...

    def close(self) -> Mapping[str, float] | None:
        """End the episode; called once, however it ended. Return what its state is worth, by name."""
        ...


class Game(Protocol):
    """An environment of a user's as a task names it."""

    @property
    def tools(self) -> Sequence[Tool]:
        """The tools that are its own."""
        ...


class GameLoader(Protocol):
    """Makes what a task's `environment` names."""

    def __call__(self, reference: PluginSettings, base_dir: Path | None = None) -> Game:
        """Load it; raise PluginError where it is not there or refuses its params."""
        ...


class EnvironmentFactory(Protocol):
    """Makes the environment of one episode."""

    def __call__(
        self, tools: Sequence[Any], max_turns: int, image_dir: Path, game: Any = None
    ) -> Environment:
        """Make an environment.

        Args:
            tools: What `ToolLoader` returned.
            max_turns: Most turns of the model.
            image_dir: Where its images go.
            game: What `GameLoader` returned, if the task has an environment of its own.
        """
        ...


class Reward(Protocol):
    """A loaded reward."""

    @property
    def low(self) -> float:
        """The least value."""
        ...

    @property
    def high(self) -> float:
        """The value of a perfect answer."""
        ...

    @property
    def group(self) -> bool:
        """Whether it judges all the episodes of a prompt at once."""
        ...

    @property
    def is_async(self) -> bool:
        """Whether it waits for a service."""
        ...

    @property
    def budgeted(self) -> bool:
        """Whether what it asks for is counted against the run's budget of judges."""
        ...

    @property
    def written(self) -> Callable[[object], Sequence[str] | None] | None:
        """What writes right answers to a ground truth as models would; None where nobody has said how."""
        ...

    def check(self, params: dict[str, object]) -> None:
        """Raise ValueError for parameters that the reward does not take."""
        ...

    def __call__(self, x: RewardInput, **params: object) -> Score | None:
        """Score one answer; None where the reward does not apply."""
        ...


class RewardLoader(Protocol):
    """Loads a reward by reference."""

    def __call__(self, reference: str, base_dir: Path | None = None) -> Reward:
        """Return the reward; raise PluginError where the reference leads to none."""
        ...


class RewardClient(Protocol):
    """Has finished groups scored."""

    def score(
        self,
        specs: Sequence[PluginSettings],
        inputs: Sequence[RewardInput],
        groups: Sequence[int] | None = None,
    ) -> list[RewardResult]:
        """Score answers; those with the same number in `groups` are of one prompt."""
        ...


class RewardClientFactory(Protocol):
    """Connects to a reward server."""

    def __call__(self, url: str, token: str, *, timeout: float, wait: float) -> RewardClient:
        """Make a client.

        Args:
            url: Such as "http://127.0.0.1:8901".
            token: The bearer token.
            timeout: Seconds that scoring one group may take.
            wait: Seconds to keep trying while the server does not answer.
        """
        ...


class RewardServer(Protocol):
    """A reward server that runs."""

    @property
    def url(self) -> str:
        """Where clients reach it."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class RewardServerStarter(Protocol):
    """Starts a reward server."""

    def __call__(
        self,
        references: Sequence[str],
        *,
        token: str,
        base_dir: Path,
        log: Path,
        host: str,
        judge_budget: Path | None,
    ) -> RewardServer:
        """Start a server of these rewards and no others at an address; its output goes to `log`.

        What judges may spend stands in the file `judge_budget`, if there is one.
        """
        ...


@runtime_checkable
class Generator(Protocol):
    """Draws a dataset."""

    def __call__(self, folder: Path, **params: Any) -> object:
        """Write `data.jsonl` and its images into a folder."""
        ...


class RewardScorer(Protocol):
    """Scores answers in processes of this machine, without a server."""

    async def score(
        self, name: str, params: Mapping[str, object], inputs: Sequence[RewardInput]
    ) -> list[RewardResult]:
        """Score answers by one reward, each by itself, in their order."""
        ...


class RewardScorerFactory(Protocol):
    """Starts the processes of a scorer."""

    def __call__(
        self, references: Sequence[str], base_dir: Path, judge_budget: Path | None = None
    ) -> AbstractContextManager[RewardScorer]:
        """Start processes that load these rewards; leaving the context ends them.

        What judges may spend stands in the file `judge_budget`, if there is one.
        """
        ...


@dataclass(frozen=True)
class Plugins:
    """Everything that the top hands down.

    Attributes:
        load_tools: Makes the tools of a task.
        load_game: Makes the environment that a task names.
        make_environment: Makes the environment of an episode.
        load_reward: Loads a reward in this process, to look at it.
        start_reward_server: Starts the server that scores a run's episodes.
        make_reward_client: Connects to it.
        make_scorer: Scores without a server.
    """

    load_tools: ToolLoader
    load_game: GameLoader
    make_environment: EnvironmentFactory
    load_reward: RewardLoader
    start_reward_server: RewardServerStarter
    make_reward_client: RewardClientFactory
    make_scorer: RewardScorerFactory
