"""The check of tools and environments passes what is right and finds what is wrong, each by its name."""

import runpy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from posttrain.cli.main import main
from tools_env.kit.check import Report, check_plugin
from tools_env.kit.hostile import hostile_calls, typical_calls
from tools_env.kit.skeleton import SkeletonError, write_skeleton

TOOLS = '''
import time
from itertools import count

from tools_env import Environment, ToolError, WorldError, tool

numbers = count()


@tool
def shaky(index: int, images: list) -> str:
    """Index without a look at the range."""
    return str(images[index])


@tool
def gone(path: str) -> str:
    """Open whatever the model names."""
    return open(path).read()


@tool(deadline_s=0.2)
def slow(word: str) -> str:
    """Be slow with long words."""
    time.sleep(0.3 * (len(word) > 10_000))
    return word


@tool
def picky(word: str) -> str:
    """Serve one word."""
    if word != "sesame":
        raise ToolError("say the word")
    return "open"


class Moody(Environment):
    def step(self, said):
        return str(next(numbers))


class Brittle(Environment):
    def step(self, said):
        return str(int(said))


class Endless(Environment):
    def step(self, said):
        return "on"

    def rewards(self):
        return {"won": float("nan")}
'''


@pytest.fixture
def check(tmp_path: Path) -> Any:
    (tmp_path / "mine.py").write_text(TOOLS)

    def report(name: str, **how: Any) -> Report:
        return check_plugin(f"mine.py:{name}", {}, base_dir=tmp_path, **how)

    return report


@pytest.mark.parametrize(
    ("name", "how", "failed", "told"),
    [
        ("shaky", {}, "refuses what it cannot serve by ToolError", "IndexError"),
        ("gone", {"right": [{"path": __file__}]}, "no arguments make it fail as the world", "FileNotFound"),
        ("slow", {}, "no arguments make it fail as the world", "did not return"),
        ("slow", {"deadline_s": 0.2}, "is in time", "0."),
        ("picky", {}, "a typical call succeeds", "--arguments"),
        ("picky", {"right": [{"word": "sesame"}]}, "", ""),
        ("picky", {"right": [{"word": "simsala"}]}, "calls that were given succeed", "say the word"),
        ("Moody", {}, "the same turns lead to the same", "differ"),
        ("Brittle", {"turns": ["1", "2"]}, "answers whatever a model writes", "ValueError"),
        ("Endless", {"turns": ["1"]}, "has rewards at the end", "nan"),
    ],
)
def test_what_is_wrong_is_named(check: Any, name: str, how: dict[str, Any], failed: str, told: str) -> None:
    report = check(name, **how)
    wrong = {finding.check: " ".join(finding.failures) for finding in report.findings if finding.failures}
    assert report.passed == (not failed)
    assert not failed or any(failed in what and told in why for what, why in wrong.items())


@pytest.mark.parametrize("environment", [False, True])
def test_what_is_written_passes_its_own_test(tmp_path: Path, environment: bool) -> None:
    written = write_skeleton("my_own", tmp_path, environment=environment)
    assert [path.name for path in written] == ["my_own.py", "test_my_own.py"]
    runpy.run_path(str(written[1]))["test_keeps_the_contract"]()


@pytest.mark.parametrize("name", ["a-b", "class", "image_zoom_in", "json", "rewards"])
def test_names_that_cannot_be_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SkeletonError):
        write_skeleton(name, tmp_path, environment=False)
    assert not list(tmp_path.iterdir())


def test_the_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["tools", "new", "guess_it", "--environment"]) == 0
    told = capsys.readouterr().out.splitlines()[-1].removeprefix("now: posttrain ")
    assert told.startswith("tools check guess_it.py:GuessIt --columns")
    assert main(["tools", "check", "guess_it.py:GuessIt", "--columns", '{"number": 7}', "--say", "7"]) == 0
    shown = capsys.readouterr().out
    assert "✓ GuessIt: answers whatever a model writes" in shown
    assert 'rewards: {"solved": 1.0}' in shown
    (tmp_path / "mine.py").write_text(TOOLS)
    assert main(["tools", "check", "mine.py:shaky"]) == 1
    assert "✗ shaky: refuses" in capsys.readouterr().out
    assert main(["tools", "list"]) == 0
    assert "image_zoom_in_tool" in capsys.readouterr().out


SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {"type": "integer"},
            {"type": "number", "minimum": 0},
            {"type": "string"},
            {"type": "boolean"},
            {"enum": ["a", 1]},
            {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            {"type": "object"},
        ]
    ),
    lambda inner: st.builds(
        lambda items, least: {"type": "array", "items": items, "minItems": least}, inner, st.integers(0, 4)
    ),
    max_leaves=2,
)


@settings(max_examples=10, deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), SCHEMAS, min_size=1))
def test_hostile_arguments_fit_the_schema(properties: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    base = next(iter(typical_calls(schema)))
    calls = list(hostile_calls(schema, base))
    assert len(calls) >= 60
    fits = Draft202012Validator(schema).is_valid
    assert fits(base)
    assert all(map(fits, calls))
