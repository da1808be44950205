"""The reward server of a pool's tasks."""

import secrets
from collections.abc import Sequence
from pathlib import Path

from posttrain.config.tasks import EpisodeTask
from posttrain.joints import Plugins, RewardServer
from posttrain.rollout.worker import RewardAccess
from posttrain.run.node import node_address


def start_reward_server(
    plugins: Plugins,
    tasks: Sequence[EpisodeTask],
    base_dir: Path,
    log: Path,
    wait: float = RewardAccess.wait,
    judge_budget: Path | None = None,
) -> tuple[RewardServer, RewardAccess]:
    """Start a reward server in a process of its own, which serves the rewards of tasks and no others.

    It listens where the engines of every node reach it, and nowhere else.

    Args:
        plugins: Start and reach it.
        tasks: Whose rewards it serves.
        base_dir: Folder against which references to files are resolved.
        log: Where its output goes.
        wait: Seconds that clients keep trying while it does not answer.
        judge_budget: File of what judges may spend; None for no limit.
    """
    references = sorted({reward.name for task in tasks for reward in task.rewards})
    token = secrets.token_urlsafe(24)
    server = plugins.start_reward_server(
        references,
        token=token,
        base_dir=base_dir,
        log=log,
        host=node_address(),
        judge_budget=judge_budget,
    )
    return server, RewardAccess(server.url, token, plugins.make_reward_client, wait=wait)
