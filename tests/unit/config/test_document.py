"""The YAML dialect, its limits, and the merging of layers."""

from pathlib import Path
from typing import Any

import pytest

from posttrain.config import ConfigError
from posttrain.config.document import MAX_BYTES, merge, parse_document, read_document


def parse(text: str) -> Any:
    return parse_document(text, "f.yaml").data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        ("5", 5),
        ("-3", -3),
        (".5", 0.5),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("1_000", "1_000"),
        ("'7'", "7"),
        ("~", None),
        ("null", None),
        ("[1, a]", [1, "a"]),
        ("{a: {b: 2}}", {"a": {"b": 2}}),
        ("", None),
    ],
)
def test_scalars_mean_what_they_look_like(text: str, value: Any) -> None:
    assert parse(text) == value
    assert type(parse(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("!!python/object/apply:os.system ['touch pwned']", "tag"),
        ("a: !!python/name:os.system", "tag"),
        ("a: !!int '3'", "tag"),
        ("a: !mine 3", "tag"),
        ("a: 1\nb: 2\na: 3", "duplicate key, first in f.yaml:1"),
        ("? [a, b]\n: 1", "a key must be a word"),
        ("a: [1, 2", "not YAML"),
        ("a: 1\n--- \nb: 2", "not YAML"),
        ("a: &x [*x]", "nested deeper"),
        ("[" * 100_000, "nested deeper"),
        ("{a: " * 100 + "1" + "}" * 100, "nested deeper"),
        ("\x00", "not YAML"),
        ("a: *nowhere", "not YAML"),
    ],
)
def test_hostile_files_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse(text)


def test_an_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(ConfigError, match="aliases counted"):
        parse("\n".join(lines))


def test_files_that_are_no_config_are_refused(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_text("a" * (MAX_BYTES + 1))
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    for name, reason in (
        ("large.yaml", "MiB"),
        ("latin.yaml", "UTF-8"),
        ("lage.yaml", "did you mean large.yaml"),
    ):
        with pytest.raises(ConfigError, match=reason):
            read_document(tmp_path / name)
    with pytest.raises(ConfigError, match="no such file"):
        read_document(Path("/dev/zero"))


def test_layers_merge_by_key_and_by_name() -> None:
    base = parse_document(
        "a: {x: 1, y: 2}\nstages:\n - {stage: sft, steps: 1}\n - {stage: rl, steps: 2}", "base"
    )
    layer = parse_document("a: {y: 3}\nstages:\n  rl: {steps: 5}\n  0: {steps: 7}", "layer")
    merged = merge(base, layer)
    assert merged.data == {
        "a": {"x": 1, "y": 3},
        "stages": [{"stage": "sft", "steps": 7}, {"stage": "rl", "steps": 5}],
    }
    assert merged.place(("a", "x")) == "base:1"
    assert merged.place(("a", "y")) == "layer:1"
    assert merged.place(("stages", 1, "steps")) == "layer:3"
    assert merged.place(("stages", 1, "stage")) == "base:4"
    assert base.data["stages"][1]["steps"] == 2


def test_a_list_replaces_a_list_and_takes_its_places() -> None:
    base = parse_document("tools:\n - a\n - b", "base")
    merged = merge(base, parse_document("tools: [c]", "layer"))
    assert merged.data == {"tools": ["c"]}
    assert merged.place(("tools", 0)) == merged.place(("tools", 1)) == "layer:1"


def test_a_layer_cannot_change_an_entry_that_is_not_there() -> None:
    base = parse_document("stages: [{stage: sft}]", "base")
    with pytest.raises(
        ConfigError, match=r"layer:1: stages\.sfd: there is no such entry.*\n.*did you mean sft\?"
    ):
        merge(base, parse_document("stages: {sfd: {steps: 1}}", "layer"))
