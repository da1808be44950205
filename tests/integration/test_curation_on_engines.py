"""A curation whose models are checkpoints: in the session's vLLM, and in Ray actors that die."""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.curation import load_curation
from posttrain.config.endpoints import CheckpointConfig
from posttrain.config.sampling_steps import PlayingStep
from posttrain.curation.engines import EngineModel, EngineModels
from posttrain.curation.outcomes import CurationError
from posttrain.curation.pipeline import curate
from posttrain.curation.playing import PlaysEpisodes
from posttrain.data.formats import read_canonical
from posttrain.first_party import PLUGINS
from posttrain.inference.answers import AnswerSampling, Question, SampledAnswer
from posttrain.inference.engine import stable_seed
from posttrain.media.images import open_image, pixel_hash
from posttrain.rendering.rendering import Renderer
from posttrain.rendering.tools import tool_specs
from posttrain.types import Sample, Trajectory
from tests.at_work import answer_all

SCRIPTED = Path(__file__).parents[1] / "unit" / "rollout" / "scripted_engine.py"
ROWS = 20
REWARDS = """\
from pathlib import Path

from rewards import reward

@reward("odd")
def odd(x):
    return float(len(x.answer) % 2)

@reward("digit")
def digit(x):
    return float(x.answer < "5")

@reward("fails_once")
def fails_once(x):
    # As the one above, but it fails the first time on row 3.
    if "[3]" in x.prompt[0].text and not (mark := Path(__file__).with_name("failed")).exists():
        mark.touch()
        raise OSError("the judge is away")
    return float(x.answer < "5")
"""
DATASET = "name: rows\ndescription: Questions.\nlicence: CC0-1.0\nsource: {path: rows.jsonl}\n"


def write_curation(folder: Path, samples: Sequence[Sample], endpoints: str, steps: str) -> Path:
    """Twenty rows, eight with a picture, and a recipe for them; its path."""
    folder.mkdir(exist_ok=True)
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(ROWS):
            content: list[dict[str, Any]] = [
                {"type": "text", "text": f"[{number}] Which letter is on the red marker?"}
            ]
            if number < len(samples):
                content.insert(0, {"type": "image", "image": samples[number].messages[0].images[0].path})
            row = {"id": f"r{number}", "messages": [{"role": "user", "content": content}]}
            file.write(json.dumps(row) + "\n")
    (folder / "rows.yaml").write_text(DATASET)
    (folder / "own.py").write_text(REWARDS)
    recipe = folder / "c.yaml"
    recipe.write_text(f"name: c\noutput_dir: {folder}/out\ndata: rows.yaml\nendpoints:\n{endpoints}{steps}")
    return recipe


def files(folder: Path) -> list[str]:
    return [(folder / "out" / "c" / name).read_text() for name in ("kept.jsonl", "dropped.jsonl")]


class Engines:
    """The session's engine as `EngineModels` offers it, ended as by Ctrl-C before a batch."""

    def __init__(self, engine: Any, renderer: Renderer, end_before: int = 1000) -> None:
        self._engine, self._renderer, self._end_before = engine, renderer, end_before
        self.batches: list[int] = []
        self.asked: Counter[tuple[str, int]] = Counter()

    def open(self, name: str, entry: CheckpointConfig) -> EngineModel:
        return EngineModel(name, entry, self.answer)

    def answer(self, questions: Sequence[Question], sampling: AnswerSampling) -> list[SampledAnswer]:
        if len(self.batches) == self._end_before:
            raise KeyboardInterrupt
        self.batches.append(len(questions))
        self.asked.update((question.messages[-1].text, question.seed) for question in questions)
        return answer_all(self._engine, self._renderer, questions, sampling)


def test_a_curation_goes_on_without_asking_again(
    vllm_engine: Any, renderer: Renderer, talker: Path, samples: list[Sample], tmp_path: Path
) -> None:
    entry = "{checkpoint: CHECKPOINT, dtype: float32, max_length: 512, engine: {max_num_seqs: 8}}"
    endpoints = f"  talker: {entry.replace('CHECKPOINT', str(talker))}\n"
    sampling = "endpoint: talker, reward: 'own.py:odd', samples: 4, temperature: 2.0, max_new_tokens: 48"
    steps = (
        f"steps:\n  - {{filter: pass_rate, {sampling}, min: 0.2, max: 0.9}}\n"
        f"  - {{filter: rejection_sampling, {sampling}, choose: shortest}}\n"
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = Engines(vllm_engine, renderer)
    report = curate(
        load_curation(write_curation(whole, samples, endpoints, steps)),
        PLUGINS,
        open_checkpoint=undisturbed.open,
    )
    assert 3 < report.kept < ROWS
    assert undisturbed.asked.total() == 4 * ROWS  # the second step finds its answers in the cache
    assert max(undisturbed.batches) == 8
    recipe = load_curation(write_curation(killed, samples, endpoints, steps))
    first, rest = Engines(vllm_engine, renderer, end_before=3), Engines(vllm_engine, renderer)
    with pytest.raises(KeyboardInterrupt):
        curate(recipe, PLUGINS, open_checkpoint=first.open)
    vllm_engine.abort()
    curate(recipe, PLUGINS, resume=True, open_checkpoint=rest.open)
    assert len(first.batches) == 3
    assert not first.asked & rest.asked
    assert first.asked + rest.asked == undisturbed.asked
    assert files(killed) == files(whole)
    assert (
        curate(recipe, PLUGINS, resume=True, open_checkpoint=Engines(None, renderer).open).kept == report.kept
    )
    shutil.copytree(talker, tmp_path / "other")
    entry = recipe.endpoints["talker"].model_copy(update={"checkpoint": str(tmp_path / "other")})
    with pytest.raises(CurationError, match=r"recipe.endpoints.talker.checkpoint"):
        curate(recipe.model_copy(update={"endpoints": {"talker": entry}}), PLUGINS, resume=True)


def test_engines_start_when_asked_and_outlive_their_actors(
    ray_cluster: None,
    make_talker: Callable[..., Path],
    talker: Path,
    samples: list[Sample],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    endpoints, steps = "", "steps:\n"
    for name in ("baseline", "teacher"):
        shutil.copytree(talker, tmp_path / name)
        (tmp_path / name / "faults").mkdir()
        endpoints += f"  {name}: {{checkpoint: ../{name}, dtype: float32, max_length: 512}}\n"
        steps += f"  - {{name: {name}, filter: pass_rate, endpoint: {name}, reward: 'own.py:digit', "
        steps += "temperature: 0, samples: 1, max_new_tokens: 9, min: 0.5}\n"
    recipe = load_curation(write_curation(tmp_path / "c", [], endpoints, steps))
    (tmp_path / "baseline" / "faults" / "die").write_text("1")
    with EngineModels(recipe, PLUGINS, engine=f"{SCRIPTED}:ScriptedEngine") as models:
        caplog.set_level(logging.WARNING)
        report = curate(recipe, PLUGINS, open_checkpoint=models.open)
        assert "died while" in caplog.text
        pool = models._pool
        again = curate(recipe, PLUGINS, resume=True, open_checkpoint=models.open)
        assert models._pool is pool
    assert [step.kept for step in report.steps] == [step.kept for step in again.steps]
    # The scripted engine says the last digit of the seed, which a query and the recipe decide.
    _, first, second = report.steps
    assert 3 < first.kept == second.kept < ROWS
    with pytest.raises(CurationError, match="a checkpoint needs engines"):
        curate(recipe.model_copy(update={"name": "d"}), PLUGINS)


class Interrupted:
    """Plays as another does, and is ended as by Ctrl-C when so many rows were given to it."""

    def __init__(self, models: EngineModels, rows: int = 1000) -> None:
        self._models, self._rows = models, rows
        self.played: list[int] = []

    def open(self, step: PlayingStep, entry: CheckpointConfig) -> PlaysEpisodes:
        self._episodes = self._models.open_episodes(step, entry)
        return self

    async def play(self, row: int, sample: Sample) -> Sequence[Trajectory] | None:
        if len(self.played) == self._rows:
            raise KeyboardInterrupt
        self.played.append(row)
        return await self._episodes.play(row, sample)


def test_a_pass_rate_is_that_of_episodes_with_tools(
    ray_cluster: None, talker: Path, samples: list[Sample], tmp_path: Path
) -> None:
    """Rows with a picture take a zoom first; a reward that failed is no 0; a row is played once."""
    entry = f"{{checkpoint: {talker}, dtype: float32, max_length: 512, engine: {{max_num_seqs: 8}}}}"
    task = "{tools: [image_zoom_in], max_turns: 2, rewards: ['own.py:fails_once', tool_calls]}"
    steps = f"steps: [{{filter: pass_rate, endpoint: talker, samples: 4, task: {task}}}]\n"
    steps += "max_error_share: 0.1\n"
    recipe = load_curation(write_curation(tmp_path / "c", samples, f"  talker: {entry}\n", steps))
    with EngineModels(recipe, PLUGINS, engine=f"{SCRIPTED}:ScriptedEngine") as models:
        first, rest = Interrupted(models, rows=11), Interrupted(models)
        with pytest.raises(KeyboardInterrupt):
            curate(recipe, PLUGINS, open_episodes=first.open)
        journal = tmp_path / "c" / "out" / "c" / "steps" / "00-pass_rate.jsonl"
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        judged = {line["row"] for line in lines if "error" not in line}
        curate(recipe, PLUGINS, resume=True, open_episodes=rest.open)
        assert set(rest.played) == set(range(ROWS)) - judged
        report = curate(recipe, PLUGINS, resume=True, open_episodes=rest.open)
    assert (tmp_path / "c" / "failed").exists()
    rates = {}
    for row in range(ROWS):
        seed, turn = stable_seed(0, "curation", "pass_rate", row), int(row < len(samples))
        tries = [stable_seed(stable_seed(seed, episode), turn) % 10 < 5 for episode in range(4)]
        rates[f"r{row}"] = sum(tries) / 4
    kept, dropped = (list(map(json.loads, text.splitlines())) for text in files(tmp_path / "c"))
    # At least one of them solved, and at most 0.9 of them: what is usual of episodes.
    assert {row["id"]: row["pass_rate"] for row in kept} == {
        name: rate for name, rate in rates.items() if 0 < rate < 0.9
    }
    told = {row["id"]: row["dropped"] for row in dropped}
    assert {name: verdict["scores"]["pass_rate"]["pass_rate"] for name, verdict in told.items()} == {
        name: rate for name, rate in rates.items() if rate in (0, 1)
    }
    reasons = {0: "too hard", 1: "too easy"}
    assert report.steps[1].reasons.keys() == {reasons[rate] for rate in rates.values() if rate in reasons}


def test_episodes_say_how_many_calls_a_row_needs_and_become_rows_to_learn_from(
    ray_cluster: None, talker: Path, samples: list[Sample], renderer: Renderer, tmp_path: Path
) -> None:
    """Rows with a picture need their one zoom; a right episode is a row of the tokens that were played."""
    entry = f"{{checkpoint: {talker}, dtype: float32, max_length: 512, engine: {{max_num_seqs: 8}}}}"
    task = "{tools: [image_zoom_in], max_turns: 2, rewards: ['own.py:digit']}"
    how = f"endpoint: talker, samples: 4, task: {task}"
    steps = f"steps:\n  - {{filter: call_targets, {how}}}\n  - {{filter: rejection_sampling, {how}}}\n"
    recipe = load_curation(write_curation(tmp_path / "c", samples, f"  talker: {entry}\n", steps))
    with EngineModels(recipe, PLUGINS, engine=f"{SCRIPTED}:ScriptedEngine") as models:
        report = curate(recipe, PLUGINS, open_episodes=models.open_episodes)
    _, targets, sampled = report.steps
    assert targets.kept == ROWS > sampled.kept > ROWS // 2
    assert set(targets.kept_as) == {"target 0", "target 1", "no target: never solved"}
    folder = tmp_path / "c" / "out" / "c"
    kept = list(read_canonical(folder / "kept.jsonl"))
    for sample in kept:
        calls = int(int(sample.id[1:]) < len(samples))
        assert sample.columns.get("target_tool_calls") in (calls, None)
        assert [message.role for message in sample.messages] == [
            "user",
            *["assistant", "tool"] * calls,
            "assistant",
        ]
        assert sample.messages[-1].text < "5"
        for image in sample.messages[-2].images if calls else ():
            assert Path(image.path).parent == folder / "images"
            assert pixel_hash(open_image(image.path)) == image.sha256
        assert [spec.name for spec in tool_specs(sample)] == ["image_zoom_in_tool"]
        renderer.render(sample.messages, tool_specs(sample))
