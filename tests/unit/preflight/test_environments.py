"""Environments of tasks are loaded and tried before a run starts."""

import pytest

GAME = """
from tools_env import Environment, tool


class Game(Environment):
    def __init__(self, level=1):
        self.level = level

    @tool
    def image_zoom_in_tool(self) -> str:
        \"\"\"Act.\"\"\"
        return ""
"""


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({}, ""),
        ({"environment": {"name": "game.py:Game", "params": {"levl": 1}}}, "params {'levl': 1} do not fit"),
        ({"environment": "game.py:Gam"}, "did you mean 'Game'?"),
        ({"tools": ["image_zoom_in"]}, "two tools call themselves 'image_zoom_in_tool'"),
    ],
)
def test_an_environment_is_tried_before_the_run(look, folder, keys, reason):
    (folder / "game.py").write_text(GAME)
    task = {
        "data": "prompts",
        "environment": "game.py:Game",
        "max_turns": 3,
        "rewards": ["environment.won"],
    } | keys
    problems = look({"stage": "rl", "max_steps": 1, "tasks": [task]}).problems
    assert len(problems) == bool(reason)
    assert not reason or reason in str(problems[0])
