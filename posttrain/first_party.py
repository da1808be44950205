"""The rewards and tools that ship with posttrain, as the rest of it is given them.

Only the top (the command line and whoever starts a run) imports this module; everything below knows the
protocols of `posttrain.joints` alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from posttrain.joints import Plugins
from posttrain.reward_spec import RewardSpec
from posttrain.types import RewardInput, RewardResult
from rewards.budget import read_budget
from rewards.sdk import load_reward
from rewards.serving.client import RewardClient
from rewards.serving.launch import start_server
from rewards.workers.scorer import Scorer
from tools_env.environment import ToolEnvironment
from tools_env.loading import load_game, load_tools


class SingleScorer:
    """Scores answers by one reward at a time; a context manager that ends its processes.

    Args:
        references: The rewards that may be asked for.
        base_dir: Folder against which file references are resolved.
        judge_budget: File of what judges may spend; None for no limit.
    """

    def __init__(self, references: Sequence[str], base_dir: Path, judge_budget: Path | None = None) -> None:
        budget = None if judge_budget is None else read_budget(judge_budget)
        self._scorer = Scorer(references, base_dir=base_dir, judge_budget=budget)

    def __enter__(self) -> "SingleScorer":
        return self

    def __exit__(self, *_: object) -> None:
        self._scorer.close()

    async def score(
        self, name: str, params: Mapping[str, object], inputs: Sequence[RewardInput]
    ) -> list[RewardResult]:
        """Score answers, each by itself, in their order.

        Raises:
            ValueError: If an answer cannot be handed to the reward.
        """
        return await self._scorer.submit([RewardSpec(name, params=dict(params))], inputs).wait()


PLUGINS = Plugins(
    load_tools=load_tools,
    load_game=load_game,
    make_environment=ToolEnvironment,
    load_reward=load_reward,
    start_reward_server=start_server,
    make_reward_client=RewardClient,
    make_scorer=SingleScorer,
)
