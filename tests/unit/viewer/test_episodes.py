"""`episodes.html`: every episode of a run, in pieces that a browser loads from a disk."""

import base64
import gzip
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posttrain.run.token_figures import TurnFigures, write_token_figures
from posttrain.viewer import write_report
from tests.unit.viewer.browser import CHROMIUM, Browser
from tests.unit.viewer.pages import copy_of, rollout_files, rows_of, write_rows

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to look at pages with")


def taken(path: Path) -> tuple[str, Any]:
    """Return what a piece hands over: its name, and its content."""
    [(name, data)] = re.findall(r'\Aposttrain\.take\("(\w+)", "([\w+/=]*)"\)\n\Z', path.read_text())
    return name, json.loads(gzip.decompress(base64.b64decode(data)))


def index_of(run: Path) -> dict[str, Any]:
    name, index = taken(run / "episodes" / "index.js")
    assert name == "index"
    return index


def test_the_index_has_every_episode_and_says_where_it_is(finished_run: Path) -> None:
    write_report(finished_run)
    index = index_of(finished_run)
    at = 0
    for piece in index["pieces"]:
        rows = rows_of(finished_run / piece["file"])
        name, kept = taken(finished_run / "episodes" / f"{piece['name']}.js")
        assert name == piece["name"]
        assert piece["rows"] == len(rows) == len(kept)
        for line, (row, copy) in enumerate(zip(rows, kept, strict=True), start=1):
            told = {column: values[at] for column, values in index["columns"].items()}
            for column in ("stage", "task", "sample", "outcome", "stop"):
                told[column] = index["texts"][column][told[column]]
            assert told["line"] == line
            assert (told["stage"], told["step"], told["task"]) == (row["stage"], row["step"], row["task"])
            assert (told["sample"], told["group"], told["episode"]) == (
                row["sample_id"],
                row["group"],
                row["episode"],
            )
            assert told["total"] == pytest.approx(row["reward"]["total"], abs=1e-4)
            assert told["calls"] == len(row["tool_calls"])
            assert [message["content"][-1] for message in copy["messages"]] == [
                message["content"][-1] for message in row["messages"]
            ]
            at += 1
    assert (
        at == len(index["columns"]["line"]) == sum(len(rows_of(path)) for path in rollout_files(finished_run))
    )


def test_only_files_that_changed_are_read_again(finished_run: Path, tmp_path: Path) -> None:
    run = copy_of(finished_run, tmp_path)
    write_report(run)
    pieces = {path: path.stat().st_mtime_ns for path in (run / "episodes").glob("*.js")}
    changed, gone, *_ = rollout_files(run)
    rows = rows_of(changed)
    write_rows(changed, [*rows, rows[0] | {"sample_id": "new"}])
    gone.unlink()
    write_report(run)
    again = {path: path.stat().st_mtime_ns for path in (run / "episodes").glob("*.js")}
    assert len(pieces.keys() - again.keys()) == 1
    assert sum(again[path] != pieces[path] for path in again) == 2  # the changed one, and the index
    assert "new" in index_of(run)["texts"]["sample"]


def test_what_is_damaged_is_counted_and_made_anew(finished_run: Path, tmp_path: Path) -> None:
    run = copy_of(finished_run, tmp_path)
    first, *_ = rollout_files(run)
    first.write_text(first.read_text() + '{"half a row')
    (run / "episodes").mkdir(exist_ok=True)
    (run / "episodes" / "seen.json").write_text('{"form": 1, "pieces": [7]}')
    write_report(run)
    assert index_of(run)["broken"] == 1


def test_an_answer_that_is_no_number_leaves_a_page(finished_run: Path, tmp_path: Path) -> None:
    run = copy_of(finished_run, tmp_path)
    first, *_ = rollout_files(run)
    write_rows(first, [rows_of(first)[0] | {"ground_truth": float("nan")}])
    write_report(run)
    piece = next(
        each for each in index_of(run)["pieces"] if each["file"] == first.relative_to(run).as_posix()
    )
    assert taken(run / "episodes" / f"{piece['name']}.js")[1][0]["ground_truth"] is None


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def found(browser: Browser) -> int:
    return int(browser.run("document.querySelector('#found').textContent").split()[0].replace(",", ""))


@needs_browser
def test_episodes_are_filtered_searched_and_sorted(finished_run: Path, browser: Browser) -> None:
    write_report(finished_run)
    browser.open(finished_run / "episodes.html")
    everything = [row for path in rollout_files(finished_run) for row in rows_of(path)]
    assert found(browser) == len(everything)

    choose = (
        "form.elements.task.value = [...form.elements.task.options].find((o) => o.text === 'with_tool').value"
    )
    browser.run(f"{choose}; apply()")
    assert found(browser) == sum(row["task"] == "with_tool" for row in everything)
    browser.run("form.reset(); form.elements.total_from.value = '1'; apply()")
    assert found(browser) == sum(row["reward"]["total"] >= 1 for row in everything)
    browser.run("form.reset(); slider.value = 2; apply()")
    assert found(browser) == sum(row["step"] == 2 for row in everything)
    browser.run("slider.value = 0; form.elements.text.value = 'PURPLE'; apply()")
    said = [json.dumps(row["messages"]).lower() for row in everything]
    assert found(browser) == sum("purple" in text for text in said) > 0
    browser.run("form.reset(); form.elements.sort.value = '-total'; apply()")
    best = browser.run("cell('total', shown[0])")
    assert best == pytest.approx(max(row["reward"]["total"] for row in everything), abs=1e-4)


@needs_browser
def test_an_episode_stands_beside_its_group_with_its_tokens_shaded(
    finished_run: Path, tmp_path: Path, browser: Browser
) -> None:
    run = copy_of(finished_run, tmp_path)
    path = run / "rollouts" / "rl" / "step-1.jsonl"
    turns = [
        [message["content"][0]["text"] for message in row["messages"] if message["role"] == "assistant"]
        for row in rows_of(path)
    ]
    figures = [
        TurnFigures(
            *(row, np.array([1, len(text) - 1], np.uint16), np.array([-0.5, -3.0], np.float16)),
            entropies=np.array([0.75, np.nan], np.float16),
        )
        for row, texts in enumerate(turns)
        for text in texts
    ]
    write_token_figures(path, figures)
    write_report(run)
    browser.open(run / "episodes.html", "#1")
    browser.wait("document.querySelector('.sheet')")
    assert browser.run("document.querySelectorAll('.sheet').length") == 1
    browser.run("shade = 'log-prob'; beside = true; choose(1)")
    assert browser.run("document.querySelectorAll('.sheet').length") == 4
    first = browser.run(
        "[...document.querySelector('.tokens').children].map((e) => [e.textContent, e.title])"
    )
    assert "".join(text for text, _ in first) == turns[1][0]
    assert [title.split(" (")[0] for _, title in first] == ["log-prob −0.5", "log-prob −3"]
    browser.run("shade = 'entropy'; choose(1)")
    titles = "[...document.querySelector('.tokens').children].map((e) => e.title)"
    assert browser.run(titles) == ["entropy 0.75 nats", ""]  # of the second it is not known


HOSTILE = "<img src=x onerror='window.hurt=1'><script>window.hurt=1</script>\u202eevil"


@needs_browser
def test_what_a_model_wrote_stays_text(finished_run: Path, tmp_path: Path, browser: Browser) -> None:
    run = copy_of(finished_run, tmp_path)
    path = run / "rollouts" / "rl" / "step-1.jsonl"
    row = rows_of(path)[0]
    messages = [
        {"role": role, "content": [{"type": "text", "text": HOSTILE}]}
        for role in ("user", "assistant", "tool")
    ]
    places = ("sample_id", "task", "stage", "stop_reason", "ground_truth")
    call = {"name": HOSTILE, "arguments": {HOSTILE: HOSTILE}, "ok": False, "error": HOSTILE, "images": 0}
    reward = {
        "total": 0.0,
        "values": {HOSTILE: 0.0},
        "parts": {},
        "notes": {HOSTILE: HOSTILE},
        "errors": {HOSTILE: HOSTILE},
    }
    image = {"role": "user", "content": [{"type": "image", "image": "javascript:window.hurt=1"}]}
    hostile = (
        row | dict.fromkeys(places, HOSTILE) | {"messages": [image, *messages], "num_prompt_messages": 2}
    )
    call["seconds"], failure = 1.5, {"tool": HOSTILE, "reason": HOSTILE, "seconds": 12.34}
    write_rows(path, [hostile | {"tool_calls": [call], "failures": [failure], "reward": reward}])
    write_report(run)
    browser.open(run / "episodes.html", "#0")
    browser.wait("document.querySelector('.sheet')")
    browser.run("document.querySelector('.raw').open = true")
    browser.run("new Promise((go) => setTimeout(go, 100))")
    assert browser.run("window.hurt") is None
    assert (
        browser.run("document.querySelectorAll('.sheet script, .entry script, .sheet img[onerror]').length")
        == 0
    )
    shown = browser.run("document.body.innerText")
    assert "<script>window.hurt=1</script>" in shown
    assert [time for time in ("1.500 s", "12.3 s") if time in shown] == ["1.500 s", "12.3 s"]
    assert "\u202e" not in shown


@needs_browser
def test_a_hundred_thousand_episodes_open_at_once(tmp_path: Path, browser: Browser) -> None:
    run = tmp_path / "run"
    (run / "rollouts" / "rl").mkdir(parents=True)
    row = {
        "stage": "rl",
        "task": "markers",
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "4"}],
        "num_prompt_messages": 1,
        "reward": {"total": 1.0, "values": {"accuracy": 1.0}},
    }
    for step in range(1, 101):
        told = [
            row | {"step": step, "sample_id": f"row-{n // 8}", "group": n // 8, "episode": n % 8}
            for n in range(1000)
        ]
        write_rows(run / "rollouts" / "rl" / f"step-{step}.jsonl", told)
    write_report(run)
    begun = time.monotonic()
    browser.open(run / "episodes.html")
    opened = time.monotonic() - begun
    assert found(browser) == 100_000
    browser.run("list.scrollTop = 1e9; drawRows()")
    assert browser.run("document.querySelectorAll('.entry').length") < 100
    assert opened < 10  # about a third of a second where the machine is quiet
