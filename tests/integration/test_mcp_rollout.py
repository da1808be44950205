"""Episodes with an MCP server's pictures, on the session's engine: what it saw is what a learner sees."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import ModelConfig, TaskConfig
from posttrain.first_party import PLUGINS
from posttrain.inference.engine import stable_seed
from posttrain.rendering.rendering import Renderer
from posttrain.rollout.episode import EpisodeJob, Limits, TaskEnvironments
from posttrain.rollout.worker import RolloutSetup, task_environments
from posttrain.types import EnvironmentReply, Message, Sample, Trajectory
from tests.at_work import play
from tests.integration.conftest import ENGINE_CONFIG, MAX_LENGTH
from tests.integration.test_vllm_engine import TOLERANCE, largest_gap

SERVER = Path(__file__).parents[1] / "mcp_pictures.py"
LIMITS = Limits(max_new_tokens=24, max_length=MAX_LENGTH)


class Snaps:
    """The real environment, fed with calls of the server's tools whatever the model wrote."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment
        self._turns = 0

    def start(self, sample: Sample) -> tuple[Message, ...]:
        self._sample = sample
        return self._environment.start(sample)

    def step(self, assistant_text: str) -> EnvironmentReply:
        self._turns += 1
        shade = stable_seed(self._sample.id, self._turns) % 256
        arguments = {"shade": shade if self._turns == 1 else "dark"}  # the second call is refused
        call = {"name": "cam_snap", "arguments": arguments}
        return self._environment.step(
            f"<tool_call>{json.dumps(call)}</tool_call>" if self._turns < 3 else "done"
        )

    def close(self) -> Any:
        return self._environment.close()


@pytest.fixture
def play_task(
    vllm_engine: Any, renderer: Renderer, samples: list[Sample], talker: Path, tmp_path: Path
) -> Any:
    """Play two episodes of two prompts each with a server as a task's YAML has it."""

    def played(**server: Any) -> list[Trajectory]:
        tools = [{"mcp": "camera", "prefix": "cam_", "enabled_tools": ["snap"]} | server]
        task = TaskConfig.model_validate(
            {"data": "scenes", "tools": tools, "max_turns": 3, "rewards": ["answer_accuracy"]}
        )
        setup = RolloutSetup(
            model=ModelConfig(family="qwen3_vl", dtype="float32"),
            checkpoint=talker,
            engine_config=ENGINE_CONFIG,
            max_length=MAX_LENGTH,
            tasks=[task],
            image_dir=tmp_path / "images",
            load_tools=PLUGINS.load_tools,
            make_environment=PLUGINS.make_environment,
            base_dir=tmp_path,
        )
        made = task_environments(task, setup)
        tasks = {"scenes": TaskEnvironments(made.tools, lambda: Snaps(made.create()))}
        jobs = [
            EpisodeJob(sample, "scenes", group, index, stable_seed(11, group, index))
            for group, sample in enumerate(samples[:2])
            for index in range(2)
        ]
        return play(vllm_engine, renderer, tasks, jobs, LIMITS)

    return played


def test_pictures_of_a_server_are_seen_by_later_turns_and_by_the_learner_and_repeat_without_it(
    play_task: Any, talker: Path, renderer: Renderer
) -> None:
    server = {"command": sys.executable, "args": [str(SERVER)]}
    trajectories = play_task(**server, record="calls.jsonl")
    assert not any(each.failures for each in trajectories)
    shown = [each for each in trajectories if len(each.images) == 2]
    assert shown, "every episode was cut before its second turn"
    for each in shown:
        assert "cam_snap" in renderer.decode(each.token_ids)  # the prompt tells of the tool
        assert each.images[1].ref.sha256
        assert [call.ok for call in each.tool_calls][:1] == [True]
        assert each.sampled[each.images[1].offset :].count(True) > 0
    assert largest_gap(talker, trajectories, renderer) < TOLERANCE
    replayed = play_task(replay="calls.jsonl")
    assert replayed == trajectories
