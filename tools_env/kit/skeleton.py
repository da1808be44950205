"""The files that `posttrain tools new` writes: a tool or an environment to change, and its test."""

import keyword
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from posttrain.plugins import declared
from tools_env.loading import ENVIRONMENTS, TOOLS

TOOL = '''"""{title}: a tool for posttrain. Change it, then try it:

    posttrain tools check {name}.py:{name} --arguments '{{"img_idx": 0, "word": "corner"}}'
"""

from typing import Annotated

from posttrain.media.images import open_image
from tools_env import ToolError, tool


@tool
def {name}(
    img_idx: Annotated[int, "Which image, counted from 0."],
    word: Annotated[str, "What to look up: size or corner."],
    images: list,
) -> str:
    """Tell something about an image. This text is what the model is told."""
    if not 0 <= img_idx < len(images):
        raise ToolError(f"there are {{len(images)}} images")  # the model reads this, and can do better
    # Raise tools_env.WorldError for what the model is not to blame for, such as a dead server.
    image = open_image(images[img_idx].path)
    if word == "size":
        return f"{{image.width}} × {{image.height}} pixels"
    if word == "corner":
        return f"the pixel at the top left is {{image.getpixel((0, 0))}}"
    raise ToolError("word must be size or corner")
'''

ENVIRONMENT = '''"""{title}: an environment for posttrain. Change it, then try it:

    posttrain tools check {name}.py:{class_name} --columns '{{"number": 7}}' --say 3 --say 7
"""

from tools_env import Environment


class {class_name}(Environment):
    """A partner in the dialogue; each episode has an object of its own."""

    def __init__(self, highest: int = 9) -> None:
        self.highest = highest  # a task says: {{name: {name}.py:{class_name}, params: {{highest: 99}}}}

    def start(self, sample):
        """Show something at the end of the row's messages: a text, a PIL image, or a list of them."""
        self.number, self.solved = int(sample.columns.get("number", 5)), False
        return f"Guess my number, from 1 to {{self.highest}}. You have {{self.turns_left}} turns."

    def step(self, said):
        """Answer a turn of the model; None ends the episode."""
        guess = said.strip()
        if not (guess.isascii() and guess.isdigit() and len(guess) < 9):
            return "Say a number."
        self.solved = int(guess) == self.number
        if self.solved:
            return None
        return "Too low." if int(guess) < self.number else "Too high."

    def rewards(self):
        """Return what the state is worth; a task weighs it as environment.solved."""
        return {{"solved": float(self.solved)}}
'''

TEST = '''"""Run with: pytest test_{name}.py (pip install pytest)"""

from pathlib import Path

from tools_env.kit.check import check_plugin


def test_keeps_the_contract() -> None:
    report = check_plugin("{name}.py:{attribute}", {{}}, base_dir=Path(__file__).parent, {tried})
    assert report.passed, [finding for finding in report.findings if finding.failures]
'''


class SkeletonError(ValueError):
    """A skeleton that cannot be written; the message says why."""


def write_skeleton(name: str, directory: Path, *, environment: bool) -> list[Path]:
    """Write `NAME.py` and `test_NAME.py`.

    Args:
        name: A Python identifier, which becomes the tool's name, or in capitals the environment's.
        directory: Where to.
        environment: Whether it is an environment, and not a tool.

    Raises:
        SkeletonError: If the name is none or is taken, or a file is there already.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise SkeletonError(f"{name!r} cannot name a Python function; use letters, digits and underscores")
    if name in {**declared(TOOLS), **declared(ENVIRONMENTS)}:
        raise SkeletonError(f"there is a tool or an environment {name!r} already; choose another name")
    if _is_module(name):
        raise SkeletonError(f"Python has a module {name!r}, which {name}.py would hide; choose another name")
    class_name = "".join(part.capitalize() for part in name.split("_"))
    filled = {"name": name, "title": name.replace("_", " ").capitalize(), "class_name": class_name}
    if environment:
        tried = 'columns={"number": 7}, turns=["3", "7"]'
        made = ENVIRONMENT.format(**filled)
    else:
        tried = 'right=[{"img_idx": 0, "word": "corner"}]'
        made = TOOL.format(**filled)
    attribute = class_name if environment else name
    files = {
        directory / f"{name}.py": made,
        directory / f"test_{name}.py": TEST.format(name=name, attribute=attribute, tried=tried),
    }
    if taken := [str(path) for path in files if path.exists()]:
        raise SkeletonError(f"{', '.join(taken)}: there already; choose another name, or remove it")
    directory.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return list(files)


def _is_module(name: str) -> bool:
    """Tell whether Python or an installed package has a top-level module of a name."""
    if name in sys.stdlib_module_names or name in ("posttrain", "rewards", "tools_env"):
        return True
    here = {"", str(Path.cwd())}
    return PathFinder.find_spec(name, [place for place in sys.path if place not in here]) is not None
