"""Images are loaded once, in threads and before an engine has room for their prompts, and wait for room."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from posttrain.inference.answers import AnswerSampling, Question
from posttrain.inference.engine import stable_seed
from posttrain.media import images
from posttrain.rendering.rendering import Renderer
from posttrain.rollout.episode import EpisodeJob, Limits, TaskEnvironments
from posttrain.types import Block, ImageRef, Message, Sample
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


def questions(folder: Path) -> list[Question]:
    made = []
    for number in range(COUNT):
        noise = np.random.default_rng(number).integers(0, 256, (90, 70, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        image = Block("image", image=ImageRef(str(folder / f"{number}.png")))
        made.append(Question(number, (Message("user", (image, Block("text", text="?"))),), (), number))
    return made


def test_answers_are_those_of_any_room(
    engine: Any, renderer: Renderer, tmp_path: Path, threads: list[str]
) -> None:
    asked, sampling = questions(tmp_path), AnswerSampling(max_new_tokens=8, max_length=400)
    engine.say = lambda request: str(request.seed % 10)
    plain = answer_all(engine, renderer, asked, sampling)
    first = [(request.token_ids, [image.sha256 for image in request.images]) for request in engine.seen]
    assert len(threads) == COUNT
    assert all(name.startswith("images") for name in threads)
    engine.seen.clear()
    cramped = answer_all(engine, renderer, asked, sampling, image_bytes=1)  # for one at a time
    assert sorted(cramped, key=lambda each: each.index) == sorted(plain, key=lambda each: each.index)
    found = [(request.token_ids, [image.sha256 for image in request.images]) for request in engine.seen]
    assert sorted(found) == sorted(first)


def test_a_damaged_image_is_its_questions_error(engine: Any, renderer: Renderer, tmp_path: Path) -> None:
    asked = questions(tmp_path)
    (tmp_path / "7.png").write_bytes((tmp_path / "7.png").read_bytes()[:300])
    (tmp_path / "9.png").write_bytes(b"nothing")
    engine.say = lambda request: "yes"
    for room in (None, 1):
        sampling = AnswerSampling(max_new_tokens=8, max_length=400)
        found = answer_all(engine, renderer, asked, sampling, room)
        errors = {answer.index: answer.error for answer in found if answer.error}
        assert errors.keys() == {7, 9}
        assert all(f"{index}.png" in error for index, error in errors.items())
        assert len(found) == COUNT


@pytest.mark.parametrize("lockstep", [True, False])
def test_episodes_share_their_images_and_are_those_of_any_room(
    engine: Any,
    renderer: Renderer,
    zoom_task: dict[str, TaskEnvironments],
    make_sample: Callable[[int], Sample],
    threads: list[str],
    lockstep: bool,
) -> None:
    jobs = [
        EpisodeJob(sample, "markers", group, index, stable_seed(0, group, index))
        for group, sample in enumerate(map(make_sample, range(6)))
        for index in range(4)
    ]
    threads.clear()
    limits = Limits(100, 1000)
    wide = play(engine, renderer, zoom_task, jobs, limits, lockstep)
    shown = [image for request in engine.seen for image in request.images]
    prompts = {each.images[0].ref.sha256 for each in wide}
    crops = {image.ref.sha256 for each in wide for image in each.images} - prompts
    assert {image.sha256 for image in shown} == prompts | crops
    # A prompt's image stays as long as its group is played; a crop goes with its episode.
    loaded = [name for name in threads if name.startswith("images")]
    assert 6 + len(crops) <= len(loaded) <= 6 + len(jobs)
    pixels: dict[str, torch.Tensor] = {image.sha256: image.pixels for image in shown}
    assert all(image.pixels is pixels[image.sha256] for image in shown if image.sha256 in prompts)
    for room in (1, max(each.nbytes for each in pixels.values()) * 3):
        narrow = play(engine, renderer, zoom_task, jobs, limits, lockstep, room)
        assert narrow == wide
