"""A whole curation: every row's fate against an account written by hand, and no row lost."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.config import ConfigError
from posttrain.config.curation import curation_names, load_curation
from posttrain.curation.journal import DROPPED, FAILED, KEPT, PENDING, Journal
from posttrain.curation.outcomes import Changes, CurationError, Outcome
from posttrain.curation.pipeline import curate
from posttrain.data.formats import DataError, read_canonical
from posttrain.files.line_log import LineLogError
from posttrain.first_party import PLUGINS
from posttrain.plugins import resolve

RECIPE = Path(__file__).with_name("recipe.py")
recipe: Any = resolve("recipe.py:write_recipe", "tests", object, RECIPE.parent)
#: Of the curation that several tests look at, and of those that each test runs for itself.
ROWS, FEW = 120, 50


def part(name: str) -> Any:
    return resolve(f"recipe.py:{name}", "tests", object, RECIPE.parent)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def fates(folder: Path) -> dict[str, tuple[str, str]]:
    """Return the step and reason that dropped each row, in the form of `expected`."""
    found = {row["id"]: ("", "") for row in read(folder / "out/c/kept.jsonl")}
    dropped = read(folder / "out/c/dropped.jsonl")
    return found | {row["id"]: (row["dropped"]["step"], row["dropped"]["reason"]) for row in dropped}


@pytest.fixture
def folder(tmp_path: Path, endpoint: Any) -> Path:
    """Make a folder with data and a recipe whose model answers."""
    part("write_data")(tmp_path, FEW)
    endpoint.answer = part("answer")
    recipe(tmp_path, endpoint.url)
    return tmp_path


@pytest.fixture(scope="module")
def finished(shared_endpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run a curation; return its folder, its report and its endpoint."""
    folder = tmp_path_factory.mktemp("finished")
    part("write_data")(folder, ROWS)
    shared_endpoint.answer = part("answer")
    report = curate(load_curation(recipe(folder, shared_endpoint.url)), PLUGINS)
    return SimpleNamespace(folder=folder, report=report, endpoint=shared_endpoint)


def test_every_row_has_the_fate_it_should_and_no_row_is_lost(finished: Any) -> None:
    folder, report = finished.folder, finished.report
    kept, dropped = read(folder / "out/c/kept.jsonl"), read(folder / "out/c/dropped.jsonl")
    expected = part("expected")(ROWS)
    assert fates(folder) == expected
    assert len(kept) + len(dropped) == ROWS == report.read
    counts = Counter(step for step, _ in expected.values())
    assert counts[""] == report.kept == len(kept) > 5
    assert {step.name: step.dropped for step in report.steps if step.dropped} == {
        name: count for name, count in counts.items() if name
    }
    for before, step in zip(report.steps, report.steps[1:], strict=False):
        assert step.entered == before.kept == step.kept + step.dropped
        assert sum(step.reasons.values()) == step.dropped
    assert json.loads((folder / "out/c/funnel.json").read_text())["kept"] == len(kept)


def test_rows_say_what_became_of_them(finished: Any) -> None:
    folder = finished.folder
    for sample in read_canonical(folder / "out/c/kept.jsonl"):
        n = int(sample.columns["extra"])
        assert sample.columns["domain"] == "mathematics"
        assert sample.columns["pass_rate"] == part("right_answers")(n) / 4
        *_, query, response = sample.messages
        # Of the right answers the shortest: the padding shrinks with the seed.
        last = part("right_answers")(n) - 1
        assert response.text == f"{part('THOUGHT')}{'.' * (10 - last)}\n\nThe sum is {2 * n + 1}."
        exactly = n % part("REWRITTEN") == 0
        assert query.text == f"[{n}] What is {n} + {n + 1}{', exactly' if exactly else ''}?"
        assert ("original_query" in sample.columns) == exactly
        assert len(query.images) == (n % 2 == 0)
    for row in read(folder / "out/c/dropped.jsonl"):
        verdict = row["dropped"]
        assert verdict["step"] not in ("rejection_sampling", "pass_rate") or "pass_rate" in str(verdict)
        if verdict["step"] not in ("query", "query_review"):
            assert verdict["scores"]["query_review"]["complexity"] == 3
        assert row["extra"] == int(row["id"][1:])
    # Dropped rows are in the canonical form, too.
    assert len(list(read_canonical(folder / "out/c/dropped.jsonl"))) > 50


def test_answers_serve_a_second_recipe(finished: Any) -> None:
    folder, endpoint = finished.folder, finished.endpoint
    asked = len(endpoint.requests)
    sampled = sum(body["model"] == "solver" and body["temperature"] == 1 for body in endpoint.requests)
    # pass_rate and rejection_sampling ask the same, so it was asked once.
    entered = {
        step.name: step.entered
        for step in curate(load_curation(folder / "c.yaml"), PLUGINS, resume=True).steps
    }
    assert sampled == 4 * entered["pass_rate"]
    steps = part("STEPS").replace("max: 0.75", "max: 0.5")
    report = curate(load_curation(recipe(folder, endpoint.url, "stricter", steps)), PLUGINS)
    assert len(endpoint.requests) == asked
    assert report.kept < entered["final"]


def test_a_used_directory_is_refused_and_so_is_a_changed_recipe(finished: Any, tmp_path: Path) -> None:
    folder, endpoint = tmp_path / "copy", finished.endpoint
    shutil.copytree(finished.folder, folder)
    config = load_curation(recipe(folder, endpoint.url))
    with pytest.raises(CurationError, match="--resume"):
        curate(config, PLUGINS)
    changed = recipe(folder, endpoint.url, "c", part("STEPS").replace("max: 0.75", "max: 0.5"))
    with pytest.raises(CurationError, match=r"recipe.steps\[3\].max: 0.75 → 0.5"):
        curate(load_curation(changed), PLUGINS, resume=True)
    # The endpoint's address and speed may change while a curation is under way.
    quicker = recipe(folder, endpoint.url + "/", "c").read_text().replace("concurrency: 8", "concurrency: 2")
    (folder / "c.yaml").write_text(quicker)
    asked = len(endpoint.requests)
    curate(load_curation(folder / "c.yaml"), PLUGINS, resume=True)
    assert len(endpoint.requests) == asked
    with (folder / "data.jsonl").open("a") as file:
        file.write('{"id": "new", "messages": [{"role": "user", "content": "What is 1 + 1?"}]}\n')
    with pytest.raises(CurationError, match=r"data.rows: 120 → 121"):
        curate(load_curation(folder / "c.yaml"), PLUGINS, resume=True)


def test_a_changed_plugin_file_is_a_changed_recipe(folder: Path, endpoint: Any) -> None:
    own = folder / "own.py"
    own.write_text(
        "from rewards import reward\n\n"
        "@reward('even')\ndef even(x):\n    return float(x.columns['extra'] % 2 == 0)\n"
    )
    steps = "steps:\n  - {filter: reward, reward: 'own.py:even', min: 1}\n"
    config = load_curation(recipe(folder, endpoint.url, "own", steps))
    assert curate(config, PLUGINS).kept == FEW // 2
    own.write_text(own.read_text().replace("== 0", "== 1"))
    with pytest.raises(CurationError, match=r"code.own.py"):
        curate(config, PLUGINS, resume=True)


def test_rows_without_a_verdict_stop_it_and_are_tried_again(folder: Path, endpoint: Any) -> None:
    endpoint.fault = lambda body, before: "400" if "[4]" in json.dumps(body) else ""
    config = load_curation(folder / "c.yaml").model_copy(update={"max_error_share": 0.0})
    with pytest.raises(CurationError, match="query_review: 1 rows could not be judged"):
        curate(config, PLUGINS)
    lenient = config.model_copy(update={"max_error_share": 0.05})
    report = curate(lenient, PLUGINS, resume=True)
    assert [step.failed for step in report.steps] == [0, 0, 1, 0, 0, 0, 0, 0, 0]
    [row] = [row for row in read(folder / "out/c/dropped.jsonl") if row["dropped"]["reason"] == "failed"]
    assert row["id"] == "r4"
    assert "400" in row["dropped"]["note"]
    endpoint.fault = lambda body, before: ""
    curate(lenient, PLUGINS, resume=True)
    found = {row["id"] for row in read(folder / "out/c/kept.jsonl")}
    assert found == {name for name, fate in part("expected")(FEW).items() if fate == ("", "")}


def test_faults_change_nothing(folder: Path, endpoint: Any) -> None:
    faults = ("429", "503", "nonsense", "hang up", "")
    endpoint.fault = lambda body, before: faults[(len(json.dumps(body)) + before) % 5] if before < 2 else ""
    curate(load_curation(folder / "c.yaml"), PLUGINS)
    assert fates(folder) == part("expected")(FEW)


def test_killed_at_any_time_it_goes_on_where_it_stopped(
    folder: Path, endpoint: Any, soak: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    curate(load_curation(folder / "c.yaml"), PLUGINS)
    whole = {name: (folder / "out/c" / name).read_bytes() for name in ("kept.jsonl", "dropped.jsonl")}
    asked = Counter(json.dumps(body, sort_keys=True) for body in endpoint.requests)
    assert max(asked.values()) == 1
    other = tmp_path_factory.mktemp("killed")
    part("write_data")(other, FEW)
    path = recipe(other, endpoint.url)
    endpoint.requests.clear()
    endpoint.delay = 0.03
    chance = random.Random(0)
    kills = 0
    for _ in range(60 if soak else 4):
        process = subprocess.Popen([sys.executable, str(RECIPE), str(path)], stderr=subprocess.DEVNULL)
        before = len(endpoint.requests)
        # Counted in requests, so that a slow machine is killed in the same places.
        wanted = before + chance.randint(1, 5 if soak else 40)
        while len(endpoint.requests) < wanted and process.poll() is None:
            time.sleep(0.005)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    endpoint.delay = 0.0
    curate(load_curation(path), PLUGINS, resume=True)
    assert kills >= (20 if soak else 3)
    for name, content in whole.items():
        found = (other / "out/c" / name).read_bytes()
        assert found.replace(str(other).encode(), str(folder).encode()) == content, name
    again = Counter(json.dumps(body, sort_keys=True) for body in endpoint.requests)
    assert again.keys() == asked.keys()
    # Only what was under way when it was killed is asked again.
    assert again.total() - asked.total() <= 8 * kills


def test_another_process_is_refused_meanwhile(folder: Path, endpoint: Any) -> None:
    endpoint.delay = 0.2
    process = subprocess.Popen([sys.executable, str(RECIPE), str(folder / "c.yaml")])
    try:
        while not endpoint.requests and process.poll() is None:
            time.sleep(0.01)
        with pytest.raises(CurationError, match="another process"):
            curate(load_curation(folder / "c.yaml"), PLUGINS, resume=True)
    finally:
        process.kill()
        process.wait()


def test_broken_rows_are_counted_and_kept(folder: Path, endpoint: Any) -> None:
    part("write_data")(folder, 200)
    with (folder / "data.jsonl").open("a") as file:
        file.write('{"id": "bad", "messages": []}\nnot json\n')
    steps = "steps:\n  - {filter: query}\n"
    report = curate(load_curation(recipe(folder, endpoint.url, "b", steps)), PLUGINS)
    dropped = read(folder / "out/b/dropped.jsonl")
    assert report.read == 202 == report.kept + len(dropped)
    assert report.steps[0].dropped == 2
    assert [row["dropped"]["step"] for row in dropped].count("read") == 2
    assert "data.jsonl:202" in dropped[-1]["id"]
    with (folder / "data.jsonl").open("a") as file:
        file.write("not json\n" * 10)
    with pytest.raises(DataError, match="12 of 212 rows are broken"):
        curate(load_curation(recipe(folder, endpoint.url, "b2", steps)), PLUGINS)


def test_rows_are_not_held_in_memory(folder: Path, endpoint: Any) -> None:
    with (folder / "data.jsonl").open("w") as file:
        for i in range(60):
            messages = [{"role": "user", "content": f"Row {i}: " + "lorem-ipsum-" * 32_000}]
            file.write(json.dumps({"id": str(i), "messages": messages}) + "\n")
    steps = "steps:\n  - {filter: query, max_chars: 1000000}\n  - {filter: domain}\n"
    config = load_curation(recipe(folder, endpoint.url, "m", steps))
    tracemalloc.start()
    assert curate(config, PLUGINS).kept == 60
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (folder / "data.jsonl").stat().st_size > 22e6
    assert peak < 10e6


def test_a_journal_survives_any_torn_end(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl", 5)
    kept = Outcome(note="né", scores={"a": 1.5}, changes=Changes(columns={"d": "x"}))
    journal.append(3, "c", kept)
    journal.append(0, "a", "no answer")
    journal.append(4, "e", Outcome("too long"))
    journal.append(0, "a", Outcome())
    journal.close()
    whole = (tmp_path / "j.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    fates = [
        [PENDING] * 5,
        [PENDING, PENDING, PENDING, KEPT, PENDING],
        [FAILED, PENDING, PENDING, KEPT, PENDING],
        [FAILED, PENDING, PENDING, KEPT, DROPPED],
        [KEPT, PENDING, PENDING, KEPT, DROPPED],
    ]
    for length in range(len(whole) + 1):
        (tmp_path / "t.jsonl").write_bytes(whole[:length])
        torn = Journal(tmp_path / "t.jsonl", 5)
        assert list(torn.fate) == fates[sum(end <= length for end in ends)]
        torn.append(1, "b", kept)
        assert torn.outcome(1) == kept
        torn.close()
        assert list(Journal(tmp_path / "t.jsonl", 5).fate) == list(torn.fate)
    (tmp_path / "t.jsonl").write_bytes(whole.replace(b'"row": 4', b'"row": 9'))
    with pytest.raises(LineLogError, match=r"t.jsonl:3 is damaged"):
        Journal(tmp_path / "t.jsonl", 5)


@pytest.mark.parametrize("name", curation_names())
def test_shipped_recipes_are_valid(name: str) -> None:
    assert load_curation(name).steps


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max: 0.75", "maxx: 0.75", r"steps\[3\].maxx: unknown key\n.*max"),
        ("filter: query,", "filter: querry,", "did you mean query"),
        ("endpoint: solver", "endpoint: solve", "did you mean solver"),
        ("name: final, ", "name: domain, ", "the name 'domain' is taken"),
        ("reward: math, min: 1", "reward: math", "nothing is dropped"),
        ("samples: 4, min: 0.25, max: 0.75", "samples: 4", "nothing is dropped"),
        ("min: 0.25, max: 0.75", "min: 0.75, max: 0.25", "exchange them"),
        ("image_needed,", "image_needed, samples: 3,", "temperature 0"),
        ("filter: query,", "filter: query, domains: [coding],", "put a `domain` step first"),
        ("model: solver,", "modell: solver,", r"endpoints.solver.modell: unknown key\n.*did you mean model"),
        ("concurrency: 8", "concurrency: x", r"endpoints\.\w+\.concurrency: should be a whole"),
        ("endpoints:", "cluster: {num_cpus: 2}\nendpoints:", "cluster: no endpoint is a `checkpoint`"),
    ],
)
def test_a_wrong_recipe_says_what_is_wrong(folder: Path, old: str, new: str, message: str) -> None:
    path = folder / "c.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=message) as caught:
        load_curation(path)
    assert "c.yaml:" in str(caught.value)


def test_an_endpoint_may_be_a_checkpoint(folder: Path) -> None:
    path = folder / "c.yaml"
    whole = path.read_text()
    (folder / "m").mkdir()
    (folder / "m" / "config.json").write_text('{"model_type": "qwen3_vl"}')

    def load(entry: str) -> Any:
        lines = [f"  solver: {entry}" if line.startswith("  solver:") else line for line in whole.split("\n")]
        path.write_text("\n".join(lines))
        return load_curation(path)

    found = load("{checkpoint: m, actors: 2, engine: {max_num_seqs: 16}}").endpoints["solver"]
    assert found.checkpoint == str(folder / "m")
    assert found.concurrency == 32
    with pytest.raises(ConfigError, match=r"endpoints.solver.base_url: unknown key"):
        load("{checkpoint: m, base_url: 'http://h/v1'}")
    with pytest.raises(ConfigError, match=r"endpoints.solver.dtype: should be 'float32' or 'bfloat16'"):
        load("{checkpoint: m, dtype: float16}")
    with pytest.raises(CurationError, match=r"endpoints.solver: .*'some/model' does not tell its family"):
        curate(load("{checkpoint: some/model}"), PLUGINS)


def test_names_that_only_the_taxonomy_knows_are_checked_first(folder: Path, endpoint: Any) -> None:
    path = folder / "c.yaml"
    path.write_text(path.read_text().replace("arithmetic_algebra", "arithmetics"))
    with pytest.raises(CurationError, match=r"steps\[4\].domains: 'arithmetics' .* did you mean"):
        curate(load_curation(path), PLUGINS)
    path.write_text(
        path.read_text().replace("arithmetics", "mathematics").replace("math, min: 1", "meth, min: 1")
    )
    with pytest.raises(CurationError, match=r"steps\[7\].reward: no plugin 'meth'.*did you mean 'math'"):
        curate(load_curation(path), PLUGINS)
    assert not endpoint.requests
