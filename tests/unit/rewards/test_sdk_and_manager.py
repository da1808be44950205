"""The reward contract and how several rewards become one verdict."""

import itertools
import json
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rewards
from posttrain.plugins import PluginError
from posttrain.types import RewardInput
from rewards import Score, available, reward
from rewards.manager import Outcome, RewardManager, RewardSpec, combine
from rewards.sdk import RewardError, group_reward, load_reward
from rewards.wire import WireError, dumps, input_from_json, input_to_json

PLUGIN = """
from rewards import Score, reward

@reward("brevity")
def brevity(x, limit=5):
    \"\"\"Short answers.\"\"\"
    return Score(1.0 if len(x.answer) <= limit else 0.0, parts={"length": len(x.answer)}, note="measured")

@reward("patient")
async def patient(x):
    return 0.5

@reward("picky")
def picky(x):
    return None if x.answer == "skip" else 1.0

@reward("broken")
def broken(x):
    raise SystemExit("cannot tell")

def plain(x):
    return 1.0
"""


def episode(answer: str) -> RewardInput:
    return RewardInput(prompt=(), response=(), answer=answer)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(PLUGIN)
    return tmp_path


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.01, -0.01, "1", True + 1, [1.0]])
def test_values_outside_the_contract_are_errors(value: Any) -> None:
    judged = reward("odd")(lambda x: value)
    with pytest.raises(RewardError, match="'odd' returned"):
        judged(episode("a"))


def test_a_part_that_is_not_finite_is_an_error() -> None:
    judged = reward("odd")(lambda x: Score(1.0, parts={"iou": float("nan")}))
    with pytest.raises(RewardError, match="a part 'iou' that is nan"):
        judged(episode("a"))


def test_a_declared_range_is_the_range() -> None:
    penalty = reward("penalty", low=-1.0, high=0.5)(lambda x: -1.0)
    assert penalty(episode("a")) == Score(-1.0)
    with pytest.raises(RewardError, match="range"):
        reward("nothing", low=1.0, high=1.0)


def test_sync_async_and_not_applicable(folder: Path) -> None:
    assert load_reward("mine.py:patient", folder)(episode("a")) == Score(0.5)
    assert load_reward("mine.py:picky", folder)(episode("skip")) is None


def test_parameters_are_checked_before_anything_is_scored(folder: Path) -> None:
    assert RewardManager([RewardSpec("mine.py:brevity", params={"limit": 3})], folder)
    with pytest.raises(RewardError, match=r"brevity.*limt.*takes: limit"):
        RewardManager([RewardSpec("mine.py:brevity", params={"limt": 3})], folder)


def test_a_function_without_the_decorator_is_refused_with_the_remedy(folder: Path) -> None:
    with pytest.raises(PluginError, match="@reward"):
        load_reward("mine.py:plain", folder)


def test_weighted_sum_leaves_out_what_does_not_apply_and_keeps_every_part(folder: Path) -> None:
    specs = [
        RewardSpec("mine.py:brevity", 2.0),
        RewardSpec("mine.py:patient", 0.5),
        RewardSpec("mine.py:picky"),
    ]
    first, second = RewardManager(specs, folder).score([episode("word"), episode("skip")])
    assert first.total == pytest.approx(2.0 + 0.25 + 1.0)
    assert second.total == pytest.approx(2.0 + 0.25)
    assert second.values == {"mine.py:brevity": 1.0, "mine.py:patient": 0.5, "mine.py:picky": None}
    assert first.parts == {"mine.py:brevity": {"length": 4}}
    assert first.notes == {"mine.py:brevity": "measured"}


def test_an_error_masks_the_sample_and_never_counts_as_zero(folder: Path) -> None:
    manager = RewardManager([RewardSpec("mine.py:broken"), RewardSpec("mine.py:picky")], folder)
    (result,) = manager.score([episode("a")])
    assert result.total is None
    assert result.errors == {"mine.py:broken": "SystemExit: cannot tell"}
    assert result.values == {"mine.py:picky": 1.0}


def test_no_verdict_is_invented() -> None:
    nothing = combine([RewardSpec("a")], [Outcome()])
    assert (nothing.total, list(nothing.errors)) == (None, ["total"])
    endless = combine(
        [RewardSpec("a", 1e308), RewardSpec("b", 1e308)], [Outcome(Score(1.0)), Outcome(Score(1.0))]
    )
    assert (endless.total, list(endless.errors)) == (None, ["total"])


def test_lists_that_make_no_sense_are_refused() -> None:
    for specs in ([], [RewardSpec("math"), RewardSpec("math", 0.5)], [RewardSpec("math", float("nan"))]):
        with pytest.raises(RewardError, match="rewards: "):
            RewardManager(specs)


def test_names_are_listed_and_nothing_heavy_is_loaded() -> None:
    assert {"answer_accuracy", "math", "tool_calls"} <= set(available())
    script = "import json, sys, rewards; rewards.available(); print(json.dumps(list(sys.modules)))"
    loaded = json.loads(
        subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    )
    assert not {"torch", "fastapi", "sympy", "httpx", "pydantic"} & set(loaded)


def test_the_readme_s_first_plugin_works(tmp_path: Path) -> None:
    readme = (Path(rewards.__file__).parent / "README.md").read_text(encoding="utf-8")
    (tmp_path / "my_rewards.py").write_text(readme.split("```python\n")[1].split("```")[0], encoding="utf-8")
    manager = RewardManager([RewardSpec("my_rewards.py:neatness", 0.2, {"longest": 100})], tmp_path)
    totals = [result.total for result in manager.score([episode("x" * n) for n in (50, 150, 300)])]
    assert totals == pytest.approx([0.2, 0.1, 0.0])


def test_a_condition_that_fails_drops_the_weight_and_asks_no_service(folder: Path) -> None:
    specs = [
        RewardSpec("mine.py:picky"),
        RewardSpec("mine.py:brevity", 0.5, only_if={"mine.py:picky": 1.0}),
        RewardSpec("mine.py:patient", 2.0, only_if={"mine.py:brevity": 1.0}),
    ]
    short, long, skipped = RewardManager(specs, folder).score(
        [episode(a) for a in ("ok", "too long", "skip")]
    )
    assert (short.total, long.total, skipped.total) == (2.5, 1.0, 1.0)
    assert long.values == {"mine.py:picky": 1.0, "mine.py:brevity": 0.0, "mine.py:patient": None}
    assert long.notes["mine.py:patient"] == "not asked: mine.py:brevity is below 1"
    assert skipped.notes["mine.py:brevity"].startswith("not counted: mine.py:picky does not apply.")


@pytest.mark.parametrize("gates", [{"math": 1.0}, {"mine.py:picky": 1.0}, {"mine.py:patient": float("nan")}])
def test_conditions_that_make_no_sense_are_refused(folder: Path, gates: dict[str, float]) -> None:
    with pytest.raises(RewardError, match="only_if"):
        RewardManager([RewardSpec("mine.py:picky", only_if=gates), RewardSpec("mine.py:patient")], folder)


def _numbers() -> dict[str, Any]:
    return {
        "float16": np.float16(0.5),
        "float32": np.float32(0.5),
        "float64": np.float64(0.5),
        "longdouble": np.longdouble(0.5),
        "array without dimensions": np.array(0.5, dtype=np.float32),
        "tensor": torch.tensor(0.5),
        "bfloat16 tensor": torch.tensor(0.5, dtype=torch.bfloat16),
        "tensor of a loss": torch.tensor(0.5, requires_grad=True).detach(),
        "member of an array": np.linspace(0, 1, 3)[1],
        "mean of an array": np.mean([0.0, 1.0]),
        "fraction": Fraction(1, 2),
        "decimal": Decimal("0.5"),
    }


WHOLE = {
    "int8": np.int8(1),
    "int64": np.int64(1),
    "uint8": np.uint8(1),
    "numpy's bool": np.bool_(True),
    "bool": True,
    "integer array": np.array(1),
    "bool tensor": torch.tensor(True),
    "integer tensor": torch.tensor(1),
}


@pytest.mark.parametrize("name", [*_numbers(), *WHOLE])
def test_numbers_of_every_kind_are_numbers(name: str) -> None:
    value = (_numbers() | WHOLE)[name]
    right = 1.0 if name in WHOLE else 0.5
    found = reward("odd")(lambda x: value)(episode("a"))
    assert found is not None
    assert found == Score(right)
    assert type(found.value) is float
    found = reward("odd")(lambda x: Score(value, parts={"iou": value}, note="n"))(episode("a"))
    assert found is not None
    assert found == Score(right, {"iou": right}, "n")
    assert (type(found.value), type(found.parts["iou"])) == (float, float)
    json.dumps([found.value, found.parts])


@pytest.mark.parametrize(
    "values",
    [
        np.array([0.0, 0.5, 1.0]),
        np.array([0.0, 0.5, 1.0], dtype=np.float32),
        np.array([0, None, 1], dtype=object),
        torch.tensor([0.0, 0.5, 1.0]),
        (np.float32(0), np.float32(0.5), np.int64(1)),
        [torch.tensor(0.0), np.array(0.5), True],
        iter([0.0, 0.5, 1.0]),
        (v / 2 for v in range(3)),
        map(float, [0, 1, 0]),
        {0: 0.0, 1: 0.5, 2: 1.0}.values(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_group_s_values_may_come_in_any_sequence(values: Any) -> None:
    found = group_reward("odd")(lambda xs: values).judge([episode("a")] * 3, {})
    assert [type(score.value) for score in found if score] == [float] * sum(s is not None for s in found)
    assert found[0] == Score(0.0)


@pytest.mark.parametrize(
    "value",
    [
        np.float32("nan"), np.float64("inf"), np.array(np.nan), torch.tensor(float("-inf")), np.ma.masked,
        np.array([0.5]), torch.tensor([0.5]), np.array([]), np.array("0.5"), np.str_("0.5"), b"1", 1j,
        np.complex64(1), np.datetime64(1, "ns"), np.timedelta64(1, "ns"), np.array(None), object(), {},
        Decimal("NaN"), 10**400, Fraction(10**400), [np.float32(0.5)],
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_no_single_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(RewardError, match="'odd' returned"):
        reward("odd")(lambda x: value)(episode("a"))
    with pytest.raises(RewardError, match="'odd' has a part 'iou'"):
        reward("odd")(lambda x: Score(1.0, parts={"iou": value}))(episode("a"))


@pytest.mark.parametrize(
    "values", [{0.1, 0.5, 1.0}, {0.1: 1, 0.5: 2, 1.0: 3}, "123", b"123", 1.0, None, [1.0], itertools.count(),
               np.array([[0.5], [0.5], [0.5]])], ids=repr,
)  # fmt: skip
def test_a_group_s_values_that_belong_to_nobody_are_refused(values: Any) -> None:
    with pytest.raises(RewardError, match="odd"):
        group_reward("odd")(lambda xs: values).judge([episode("a")] * 3, {})


@given(st.integers(-(10**400), 10**400) | st.floats() | st.fractions() | st.decimals())
def test_any_number_is_in_range_or_refused(value: Any) -> None:
    judged = reward("odd")(lambda x: value)
    try:
        inside = 0 <= value <= 1
    except ArithmeticError:  # Decimal('sNaN')
        inside = False
    if inside:
        assert judged(episode("a")) == Score(float(value))
    else:
        with pytest.raises(RewardError):
            judged(episode("a"))


def test_what_an_environment_says_of_its_state_is_a_reward() -> None:
    specs = [RewardSpec("environment.won"), RewardSpec("environment.lost", -0.5)]
    x = RewardInput((), (), "", outcome={"won": 0.0, "lost": 3.0})
    (result,) = RewardManager(specs).score([read(x)])
    assert (result.total, result.values) == (-1.5, {"environment.won": 0.0, "environment.lost": 3.0})
    (result,) = RewardManager(specs).score([RewardInput((), (), "", outcome={"won": 1.0})])
    assert "the environment gives no 'lost', but won" in result.errors["environment.lost"]
    (result,) = RewardManager(specs).score([RewardInput((), (), "")])
    assert result.total is None  # it was played without an environment


def read(x: RewardInput) -> RewardInput:
    """The episode as a reward server reads it."""
    return input_from_json(json.loads(dumps(input_to_json(x))), "inputs[0]")


@pytest.mark.parametrize("outcome", [{"won": "1"}, {"won": True}, {"won": None}, [1.0]])
def test_an_outcome_is_numbers_by_name(outcome: Any) -> None:
    row = input_to_json(RewardInput((), (), "")) | {"outcome": outcome}
    with pytest.raises(WireError, match="outcome"):
        input_from_json(row, "inputs[0]")
