"""A teacher in engines: what it reads is transformers' word, image by image, whoever reads it."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from posttrain.config import EngineConfig, ModelConfig
from posttrain.config.memory import GIVEN_LOGIT
from posttrain.inference.engine import EngineError, EngineUse, ReadTokens, ScoreRequest
from posttrain.inference.images import engine_images
from posttrain.inference.keeper import Timeouts
from posttrain.inference.pool import InferencePool, collect
from posttrain.inference.reading import ReadEpisodes, digest_of, request_of
from posttrain.inference.worker import EngineSetup
from posttrain.media.images import save_image
from posttrain.rendering.collation import collate
from posttrain.rendering.rendering import Renderer
from posttrain.types import Block, Message, Sample, Trajectory, VideoRef, text_message
from tests.integration.engine_truth import TOLERANCE, model_at

SCRIPTED = Path(__file__).parents[1] / "unit" / "rollout" / "scripted_engine.py"
TOP = 6
#: More than the tiny vocabulary has.
ALL = 1024


@pytest.fixture(scope="module")
def engine(start_engine: Callable[..., Any], talker: Path) -> Any:
    return start_engine(talker, use=EngineUse(reads=ALL))


@pytest.fixture(scope="module")
def episodes(samples: list[Sample], renderer: Renderer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A group of three episodes with a crop in the second turn, the last two of them equal, and a text."""
    folder = tmp_path_factory.mktemp("crops")
    with Image.open(samples[0].messages[0].images[0].path) as scene:
        crop = save_image(scene.crop((10, 10, 74, 74)).resize((64, 64)), folder)
    asked = Message("user", (*samples[0].messages[0].content, Block("text", text=" Look closely. " * 12)))
    shown = Message("user", (Block("image", image=crop), Block("text", text="Here it is.")))
    made = []
    for index, answer in enumerate(("K", "H, or L", "H, or L")):
        turns = [text_message("assistant", "Closer."), shown, text_message("assistant", answer)]
        rendered = renderer.render([asked, *turns])
        made.append(_episode(index, rendered.token_ids, rendered.supervised, rendered.images))
    words = renderer.render([text_message("user", "Hello?"), text_message("assistant", "Hello.")])
    return [*made, _episode(3, words.token_ids, words.supervised, [])]


@pytest.fixture(scope="module")
def films(
    make_video: Callable[..., VideoRef], renderer: Renderer, tmp_path_factory: pytest.TempPathFactory
) -> list[Trajectory]:
    """Two episodes of a prompt with a video, and one with another video that takes the same tokens."""
    folder = tmp_path_factory.mktemp("films")
    one, other = (make_video(folder / f"{frames}.mp4", frames) for frames in (40, 41))
    made = []
    for index, (file, answer) in enumerate(((one, "K"), (one, "H, or L"), (other, "K"))):
        video = replace(file, end=3.0, fps=10.0)
        asked = Message("user", (Block("video", video=video), Block("text", text="What moves?")))
        rendered = renderer.render([asked, text_message("assistant", answer)])
        shown = (rendered.token_ids, rendered.supervised, rendered.images)
        made.append(replace(_episode(index, *shown), videos=rendered.videos))
    return made


def _episode(index: int, token_ids: list[int], sampled: list[bool], images: list[Any]) -> Trajectory:
    return Trajectory("s", "task", 0, index, token_ids=token_ids, sampled=sampled, images=images)


def requests(episodes: Sequence[Trajectory], renderer: Renderer) -> list[ScoreRequest]:
    return [request_of(each, engine_images(each.media, renderer)) for each in episodes]


@torch.no_grad()
def truth(checkpoint: Path, episode: Trajectory, renderer: Renderer) -> torch.Tensor:
    """[T, V] transformers' log-probs from the first sampled token to the last."""
    logs = model_at(checkpoint)(**collate([episode], renderer)).logits[0].log_softmax(-1)
    places = np.flatnonzero(episode.sampled)
    return logs[places[0] - 1 : places[-1]]


def check(read: ReadTokens, logs: torch.Tensor, episode: Trajectory, top: int) -> None:
    top = min(top, logs.shape[1])
    assert read.top.ids.shape == read.top.logprobs.shape == (len(logs), top)
    tokens = torch.tensor(episode.token_ids[-len(logs) :] if episode.sampled[-1] else [])
    assert len(tokens) == len(logs)
    expected = logs.gather(1, tokens[:, None])[:, 0]
    assert (torch.from_numpy(read.given) - expected).abs().max() < TOLERANCE
    told = torch.from_numpy(read.top.logprobs)
    assert (told - logs.topk(top).values).abs().max() < TOLERANCE
    assert (told - logs.gather(1, torch.from_numpy(read.top.ids).long())).abs().max() < TOLERANCE


@pytest.mark.parametrize("top", [TOP, ALL])
def test_readings_are_transformers_own_with_every_image_of_every_turn(
    engine: Any,
    talker: Path,
    episodes: list[Trajectory],
    films: list[Trajectory],
    renderer: Renderer,
    top: int,
) -> None:
    cut = [replace(each, **_up_to_last(each)) for each in (*episodes, *films)]
    found = engine.read(requests(cut, renderer), top)
    for episode, read in zip(cut, found, strict=True):
        check(read, truth(talker, episode, renderer), episode, top)
    assert not engine.busy


def _up_to_last(episode: Trajectory) -> dict[str, Any]:
    end = int(np.flatnonzero(episode.sampled)[-1]) + 1
    return {"token_ids": episode.token_ids[:end], "sampled": episode.sampled[:end]}


def test_readings_do_not_depend_on_what_was_read_before_or_beside(
    engine: Any, episodes: list[Trajectory], renderer: Renderer
) -> None:
    asked = requests(episodes, renderer)
    first = engine.read(asked, TOP)
    engine.read(asked[::-1], TOP)
    again = engine.read(asked, TOP)
    for one, other in zip(first, again, strict=True):  # bit for bit
        assert np.array_equal(one.given, other.given)
        assert np.array_equal(one.top.ids, other.top.ids)
    alone = [engine.read([each], TOP)[0] for each in asked]
    for one, other in zip(first, alone, strict=True):
        assert np.abs(one.given - other.given).max() < TOLERANCE


def test_a_prefix_that_hides_what_is_read_is_read_again(
    engine: Any, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal episodes, longer than a block of the cache: the second has all its places there."""
    rendered = renderer.render([text_message("user", "?"), text_message("assistant", "A B C " * 60)])
    first = int(np.flatnonzero(rendered.supervised)[0])
    asked = [ScoreRequest(token_ids=rendered.token_ids, since=first)] * 2
    seen: list[int] = []
    given = engine._given._run

    def counted(sequences: Any, *rest: Any) -> Any:
        outputs = given(sequences, *rest)
        seen.extend(output.num_cached_tokens for output in outputs)
        return outputs

    monkeypatch.setattr(engine._given, "_run", counted)
    one, other = engine.read(asked, TOP)
    assert max(seen) > first  # or this tests nothing
    assert seen[-1] == 0
    assert np.abs(one.given - other.given).max() < TOLERANCE
    assert np.isfinite(other.top.logprobs).all()
    shared = [replace(each, since=len(each.token_ids) - 2) for each in asked]
    seen.clear()
    engine.read(shared, TOP)
    assert len(seen) == 2  # the prefix was shared, and nothing had to be read again
    assert max(seen) > 100


@pytest.mark.parametrize("at_once", [1, 7])
def test_logits_are_held_a_piece_at_a_time_and_say_the_same(
    engine: Any,
    talker: Path,
    episodes: list[Trajectory],
    renderer: Renderer,
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("posttrain.inference.vllm_logits.given_at_once", lambda vocabulary: at_once)
    [model] = engine._engine.collective_rpc(lambda worker: worker.model_runner.model)
    rows: list[int] = []
    logits = model.compute_logits

    def counted(hidden: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden))
        return logits(hidden)

    monkeypatch.setattr(model, "compute_logits", counted)
    cut = [replace(each, **_up_to_last(each)) for each in episodes]
    asked = requests(cut, renderer)
    readings, scores = engine.read(asked, TOP), engine.score(asked)
    assert max(rows) <= max(at_once, len(asked))  # of the tokens sampled after them there is one each
    assert len(rows) > sum(len(each.token_ids) for each in asked) // at_once
    for episode, read, score in zip(cut, readings, scores, strict=True):
        logs = truth(talker, episode, renderer)
        check(read, logs, episode, TOP)
        assert np.abs(np.array(score[-len(logs) :]) - read.given).max() < TOLERANCE


@pytest.mark.usefixtures("engine")  # which has vLLM's functions not compiled, as on a CPU
def test_logits_of_given_tokens_take_what_is_counted() -> None:
    from vllm.v1.sample.sampler import Sampler  # noqa: PLC0415 (loads for seconds)

    tokens, vocabulary = 8, 151_936
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        scores = Sampler.compute_logprobs(logits := torch.rand(tokens, vocabulary))
        Sampler.gather_logprobs(scores, TOP, torch.zeros(tokens, dtype=torch.int64))
        del logits, scores
    profiler: Any = told.profiler
    events = sorted(profiler.kineto_results.events(), key=lambda event: event.start_ns())
    live = accumulate(event.nbytes() for event in events if event.name() == "[memory]")
    assert max(live) / (tokens * vocabulary) == pytest.approx(GIVEN_LOGIT, rel=0.01)


def test_a_group_shares_a_prefix_with_a_video_and_nothing_with_another_video(
    engine: Any, films: list[Trajectory], renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    given = engine._given._run

    def counted(*asked: Any) -> Any:
        outputs = given(*asked)
        seen.extend(output.num_cached_tokens for output in outputs)
        return outputs

    monkeypatch.setattr(engine._given, "_run", counted)
    engine.read(requests(films, renderer), TOP)
    first, second, other = seen[:3]
    assert films[0].token_ids == films[2].token_ids
    assert second > first == other == 0
    assert second > films[0].videos[0].runs[-1][0] // 2
    assert len({digest_of(each) for each in films}) == 3


def test_more_tokens_than_the_engine_tells_are_refused(
    vllm_engine: Any, engine: Any, episodes: list[Trajectory], renderer: Renderer
) -> None:
    asked = requests(episodes[-1:], renderer)
    with pytest.raises(EngineError, match="the engine tells 0"):
        vllm_engine.read(asked, TOP)
    with pytest.raises(EngineError, match=f"the engine tells {ALL}"):
        engine.read(asked, ALL + 1)


@pytest.mark.usefixtures("ray_cluster")
def test_a_lost_engine_is_replaced_and_its_groups_are_read_again(
    talker: Path, episodes: list[Trajectory], renderer: Renderer, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(talker, checkpoint)
    fault = checkpoint / "faults" / "die"
    fault.parent.mkdir()
    setup = EngineSetup(
        model=ModelConfig(family="qwen3_vl", dtype="float32"),
        checkpoint=checkpoint,
        engine_config=EngineConfig(),
        max_length=512,
        engine=f"{SCRIPTED}:ScriptedEngine",
    )
    pool = InferencePool(setup, actors=1, use_gpu=False, timeouts=Timeouts(step=5.0))
    try:
        pool.ready()
        fault.write_text("1")
        begun = time.monotonic()
        groups = collect(pool.submit([ReadEpisodes([each], TOP) for each in episodes]))
        assert time.monotonic() - begun < 60
    finally:
        pool.close()
    assert fault.read_text() == "0"
    for [reading], episode in zip(groups, episodes, strict=True):
        reading.check(episode)
    turns = [float(value) for value in groups[0][0].sampled]
    assert turns[0] == -2.0  # after the scene
    assert turns[-1] == -3.0  # and after the crop
