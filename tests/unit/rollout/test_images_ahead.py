"""Images of prompts are loaded once, in threads before an engine has room for them, and shared."""

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from posttrain.inference.answers import AnswerSampling, Question
from posttrain.inference.engine import stable_seed
from posttrain.media import images
from posttrain.rendering.pixel_limits import PixelLimits
from posttrain.rendering.rendering import Renderer
from posttrain.rollout.episode import EpisodeJob, Limits, TaskEnvironments
from posttrain.types import Block, ImageRef, Message, Sample, Trajectory
from tests.at_work import answer_all, play

COUNT = 24


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that decode images, one for each time."""
    found: list[str] = []
    original = images._to_rgb

    def watched(image: Image.Image) -> Image.Image:
        found.append(threading.current_thread().name)
        return original(image)

    monkeypatch.setattr(images, "_to_rgb", watched)
    return found


def renderer_of(renderer: Renderer, threads: int) -> Renderer:
    return Renderer(renderer.processor, "qwen3_vl", PixelLimits(2**28, threads))


def questions(folder: Path) -> list[Question]:
    made = []
    for number in range(COUNT):
        noise = np.random.default_rng(number).integers(0, 256, (90, 70, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        image = Block("image", image=ImageRef(str(folder / f"{number}.png")))
        made.append(Question(number, (Message("user", (image, Block("text", text="?"))),), (), number))
    return made


def test_answers_are_those_without_threads(
    engine: Any, renderer: Renderer, tmp_path: Path, threads: list[str]
) -> None:
    asked, sampling = questions(tmp_path), AnswerSampling(max_new_tokens=8, max_length=400)
    engine.say = lambda request: str(request.seed % 10)
    plain = answer_all(engine, renderer_of(renderer, 0), asked, sampling)
    assert len(threads) == COUNT
    assert set(threads) == {"rendering_0"}
    first = [(request.token_ids, [image.sha256 for image in request.images]) for request in engine.seen]
    threads.clear()
    engine.seen.clear()
    assert answer_all(engine, renderer_of(renderer, 2), asked, sampling) == plain
    assert [(r.token_ids, [image.sha256 for image in r.images]) for r in engine.seen] == first
    assert len(threads) == COUNT
    assert any(name.startswith("pixels") for name in threads)


def test_a_damaged_image_is_its_questions_error(engine: Any, renderer: Renderer, tmp_path: Path) -> None:
    asked = questions(tmp_path)
    (tmp_path / "7.png").write_bytes((tmp_path / "7.png").read_bytes()[:300])
    (tmp_path / "9.png").write_bytes(b"nothing")
    engine.say = lambda request: "yes"
    for count in (0, 2):
        sampling = AnswerSampling(max_new_tokens=8, max_length=400)
        found = answer_all(engine, renderer_of(renderer, count), asked, sampling)
        errors = {answer.index: answer.error for answer in found if answer.error}
        assert errors.keys() == {7, 9}
        assert all(f"{index}.png" in error for index, error in errors.items())
        assert len(found) == COUNT


def test_episodes_are_those_without_threads_and_share_their_images(
    engine: Any,
    renderer: Renderer,
    zoom_task: dict[str, TaskEnvironments],
    make_sample: Callable[[int], Sample],
    threads: list[str],
) -> None:
    jobs = [
        EpisodeJob(sample, "markers", group, index, stable_seed(0, group, index))
        for group, sample in enumerate(map(make_sample, range(6)))
        for index in range(4)
    ]
    threads.clear()
    engine.say = lambda request: str(request.seed % 10)
    found: list[list[Trajectory]] = []
    for count in (0, 2):
        engine.seen.clear()
        threads.clear()
        shown = renderer_of(renderer, count)
        found.append(play(engine, shown, zoom_task, jobs, Limits(100, 1000)))
        assert len(threads) == 6  # one for each group, whose episodes share the pixels
        places: dict[str, set[int]] = {}
        for request in engine.seen:
            for image in request.images:
                places.setdefault(image.sha256, set()).add(image.pixels.data_ptr())
        assert len(places) == 6
        assert all(len(pointers) == 1 for pointers in places.values())
    assert any(name.startswith("pixels") for name in threads)
    first, second = ([dataclasses.asdict(each) for each in each_run] for each_run in found)
    assert first == second
