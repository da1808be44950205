"""References to plugins: what they find, and what they refuse."""

import importlib.metadata
from pathlib import Path
from typing import Literal

import pytest

from posttrain import plugins
from posttrain.plugins import PluginError, declared, misfit, resolve

REWARDS = "posttrain.rewards"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text("loads = []\n\ndef neat(x):\n    return 1.0\n")
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    return tmp_path


@pytest.mark.parametrize("group", [REWARDS, "posttrain.tools", "posttrain.generators"])
def test_every_declared_plugin_resolves(group: str) -> None:
    assert declared(group)
    for name in set(declared(group)) - {
        "reasoning_gym"
    }:  # needs an optional package; it has tests of its own
        assert callable(resolve(name, group, object))


def test_a_file_is_loaded_once_and_relative_to_its_base(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = resolve("mine.py:neat", REWARDS, object, folder)
    assert callable(function)
    assert function(None) == 1.0
    assert resolve("mine.py:loads", REWARDS, object, folder) is resolve(
        f"{folder}/mine.py:loads", REWARDS, object
    )
    monkeypatch.chdir(folder)
    assert resolve("mine.py:neat", REWARDS, object) is function


def test_a_module_attribute() -> None:
    assert resolve("posttrain.plugins:resolve", REWARDS, object) is resolve


@pytest.mark.parametrize(
    ("reference", "hint"),
    [
        ("answer_acuracy", "did you mean 'answer_accuracy'? Declared: "),
        ("zzz", "no plugin 'zzz' in posttrain.rewards. Declared: "),
        ("mine.py:neet", "did you mean 'neat'?"),
        ("mne.py:neat", "did you mean 'mine.py'?"),
        ("mine.py", "file.py:attribute"),
        ("mine.py:", "one public attribute"),
        ("mine.py:__builtins__", "one public attribute"),
        ("mine:neat", "mine.py:"),
        ("broken.py:f", "broken.py failed with ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("leaves.py:f", "SystemExit"),
        ("rewards.nothing:f", "no module 'rewards.nothing'"),
        ("", "is not a plugin reference"),
    ],
)
def test_refusals_say_what_is_right(folder: Path, reference: str, hint: str) -> None:
    with pytest.raises(PluginError) as caught:
        resolve(reference, REWARDS, object, folder)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    "reference",
    [
        "os:system",
        "shutil:rmtree",
        "subprocess:run",
        "builtins:exec",
        "os.path:join",
        "a b:c",
        "../x:y",
        "x;y:z",
    ],
)
def test_a_strangers_reference_executes_nothing(reference: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError):
        resolve(reference, REWARDS, object, tmp_path)


def test_a_name_clash_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [importlib.metadata.EntryPoint("same", value, REWARDS) for value in ("a:x", "b:x")]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: entries)
    plugins.declared.cache_clear()
    try:
        with pytest.raises(PluginError, match="a:x and b:x"):
            declared(REWARDS)
    finally:
        plugins.declared.cache_clear()


def judged(x: object, how: Literal["number", "box"] = "number", least: int = 0) -> None:
    """Stand for a plugin with params."""


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({}, ""),
        ({"how": "box", "least": 1}, ""),
        ({"how": "boxes"}, "params: how: 'boxes' is none of number, box"),
        ({"how": ["box"]}, "params: how: ['box'] is none of number, box"),
        ({"most": 1}, "params: got an unexpected keyword argument 'most' (it takes: how, least)"),
    ],
)
def test_params_that_a_plugin_does_not_take(params: dict[str, object], reason: str) -> None:
    assert misfit(judged, params) == reason
