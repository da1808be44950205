"""The files that `posttrain rewards new` writes: a reward to change, its samples and its test."""

import keyword
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from posttrain.plugins import declared

REWARD = '''"""{title}: a reward for posttrain. Change it, then try it:

    posttrain rewards check {name}.py:{name} --data {name}_samples.jsonl
"""

from rewards import RewardInput, Score, reward


@reward("{name}")
def {name}(x: RewardInput, longest: int = 200) -> Score | None:
    """Score 1 for a right answer, less the further it runs past `longest` characters.

    x.answer is the model's last turn without its thinking; x.ground_truth and x.columns come from the
    dataset; x.prompt and x.response are the messages, with images; x.tool_calls are the calls it made.
    """
    if x.ground_truth is None:
        return None  # does not apply to this sample
    # Raise where you cannot tell: the sample is then left out, which is not the same as a 0.
    right = str(x.ground_truth).casefold() in x.answer.casefold().split()
    excess = max(0, len(x.answer) - longest)
    brevity = max(0.0, 1 - excess / longest)
    parts = {{"right": float(right), "brevity": brevity}}
    return Score(right * brevity, parts=parts, note=f"{{len(x.answer)}} characters")
'''

TEST = '''"""Run with: pytest test_{name}.py (pip install pytest)"""

from pathlib import Path

from rewards.kit.check import check_reward
from rewards.kit.samples import read_samples

HERE = Path(__file__).parent


def test_keeps_the_contract_of_a_reward() -> None:
    samples = read_samples(HERE / "{name}_samples.jsonl")
    report = check_reward("{name}.py:{name}", samples, {{}}, base_dir=HERE)
    assert report.passed, [finding for finding in report.findings if finding.failures]
'''

SAMPLES = """\
{"id": "letter", "prompt": "Which letter is on the red marker?", "ground_truth": "K", "answer": "It is K"}
{"id": "number", "prompt": "How many markers are there?", "ground_truth": 7, "answer": "7"}
{"id": "colour", "prompt": "What colour is the largest marker?", "ground_truth": "blue", "answer": "blue"}
"""


class SkeletonError(ValueError):
    """A skeleton that cannot be written; the message says why."""


def _is_module(name: str) -> bool:
    """Tell whether Python or an installed package has a top-level module of a name."""
    if name in sys.stdlib_module_names or name in ("posttrain", "rewards", "tools_env"):
        return True
    here = {"", str(Path.cwd())}
    elsewhere = [place for place in sys.path if place not in here]
    return PathFinder.find_spec(name, elsewhere) is not None


def write_skeleton(name: str, directory: Path) -> list[Path]:
    """Write `NAME.py`, `NAME_samples.jsonl` and `test_NAME.py`.

    Args:
        name: A Python identifier, which becomes the reward's name.
        directory: Where to.

    Raises:
        SkeletonError: If the name is none or is taken, or a file is there already.
    """
    if not name.isidentifier():
        raise SkeletonError(f"{name!r} cannot name a Python function; use letters, digits and underscores")
    if keyword.iskeyword(name):
        raise SkeletonError(f"{name!r} is a word of Python's own; choose another name")
    if name in declared("posttrain.rewards"):
        raise SkeletonError(f"there is a reward {name!r} already; choose another name")
    if _is_module(name):  # {name}.py would be imported in its stead by whatever runs in its folder
        raise SkeletonError(f"Python has a module {name!r}, which {name}.py would hide; choose another name")
    files = {
        directory / f"{name}.py": REWARD.format(name=name, title=name.replace("_", " ").capitalize()),
        directory / f"{name}_samples.jsonl": SAMPLES,
        directory / f"test_{name}.py": TEST.format(name=name),
    }
    if taken := [str(path) for path in files if path.exists()]:
        raise SkeletonError(f"{', '.join(taken)}: there already; choose another name, or remove it")
    directory.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return list(files)
