"""Episodes of the real tool environment and renderer against an engine that says what the test wants."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from posttrain.inference.engine import Request, stable_seed
from posttrain.media.images import ImageError
from posttrain.rendering.rendered import Rendered
from posttrain.rendering.rendering import Renderer
from posttrain.rollout.episode import (
    EpisodeError,
    EpisodeJob,
    Limits,
    TaskEnvironments,
)
from posttrain.types import (
    Block,
    EnvironmentReply,
    ImageRef,
    Message,
    Sample,
    VideoRef,
    text_message,
)
from tests.at_work import play
from tests.unit.rollout.scripted_engine import ZOOM

LIMITS = Limits(max_new_tokens=100, max_length=1000)
Make = Callable[[int], Sample]


def jobs_for(make_sample: Make, groups: int, size: int) -> list[EpisodeJob]:
    return [
        EpisodeJob(make_sample(group), "markers", group, index, stable_seed(0, group, index))
        for group in range(groups)
        for index in range(size)
    ]


def test_a_zoom_episode_is_the_rendering_of_its_dialogue(
    engine: Any, renderer: Renderer, zoom_task: dict[str, TaskEnvironments], make_sample: Make
) -> None:
    (job,) = jobs_for(make_sample, 1, 1)
    (trajectory,) = play(engine, renderer, zoom_task, [job], LIMITS)
    assert trajectory.stop_reason == "answer"
    assert [message.role for message in trajectory.response] == ["assistant", "tool", "assistant"]
    assert [call.ok for call in trajectory.tool_calls] == [True]
    whole = renderer.render([*trajectory.prompt, *trajectory.response], zoom_task["markers"].tools)
    assert trajectory.token_ids == whole.token_ids[: len(trajectory.token_ids)]
    assert trajectory.sampled == whole.supervised[: len(trajectory.token_ids)]
    assert trajectory.images == whole.images
    assert trajectory.token_ids[-1] == renderer.end_token_id
    assert trajectory.sampled[-1]


def test_an_episode_with_videos_is_the_rendering_of_its_dialogue(
    engine: Any,
    renderer: Renderer,
    zoom_task: dict[str, TaskEnvironments],
    make_sample: Make,
    clips: list[VideoRef],
) -> None:
    scene = make_sample(0).messages[0].content
    films = [Block("video", video=clip) for clip in clips[1:3]]
    sample = Sample("film", (Message("user", (films[0], *scene, films[1])),))
    engine.say = lambda request: ZOOM if len(request.images) == 3 else "K"
    (trajectory,) = play(engine, renderer, zoom_task, [EpisodeJob(sample, "markers", 0, 0, 1)], LIMITS)
    assert [call.ok for call in trajectory.tool_calls] == [True]
    whole = renderer.render([*trajectory.prompt, *trajectory.response], zoom_task["markers"].tools)
    assert trajectory.token_ids == whole.token_ids[: len(trajectory.token_ids)]
    assert trajectory.images == whole.images
    assert trajectory.videos == whole.videos  # with their hashes
    first, second = engine.seen
    assert [each.identity for each in first.images] == [each.identity for each in second.images[:3]]
    assert [each.sha256 for each in second.images[1:3]] == [each.ref.sha256 for each in whole.videos]
    for video, shown in zip(whole.videos, second.images[1:3], strict=True):
        frames = renderer.media.patches(renderer.media.load_video(video.ref))
        assert torch.equal(shown.patches([shown.pixels], "cpu"), frames)


def test_every_turn_extends_the_tokens_before_it(
    engine: Any, renderer: Renderer, zoom_task: dict[str, TaskEnvironments], make_sample: Make
) -> None:
    (job,) = jobs_for(make_sample, 1, 1)
    (trajectory,) = play(engine, renderer, zoom_task, [job], LIMITS)
    first, second = engine.seen
    assert list(second.token_ids[: len(first.token_ids)]) == list(first.token_ids)
    assert trajectory.token_ids[: len(second.token_ids)] == list(second.token_ids)
    assert first.seed != second.seed
    assert [image.sha256 for image in second.images] == [image.ref.sha256 for image in trajectory.images]


def test_many_episodes_come_back_in_the_jobs_order_whatever_finishes_first(
    engine: Any, renderer: Renderer, zoom_task: dict[str, TaskEnvironments], make_sample: Make
) -> None:
    turns_in_flight: set[tuple[int, ...]] = set()

    def say(request: Request) -> str:
        turns_in_flight.add(tuple(sorted({len(other.images) for other, _ in engine._left.values()})))
        return "no" if request.seed % 3 == 0 and len(request.images) == 1 else zoom_or_answer(request)

    def zoom_or_answer(request: Request) -> str:
        return ZOOM if len(request.images) == 1 else "K"

    engine.say = say
    jobs = jobs_for(make_sample, 5, 4)
    trajectories = play(engine, renderer, zoom_task, jobs, LIMITS)
    assert [(t.group, t.episode) for t in trajectories] == [(job.group, job.episode) for job in jobs]
    assert (1, 2) in turns_in_flight, "episodes should be in different turns at the same time"
    assert not engine.busy


@pytest.mark.parametrize(
    ("max_new_tokens", "stop_reason", "turns"), [(1, "max_tokens", 1), (100, "answer", 3)]
)
def test_a_cut_turn_ends_the_episode_without_asking_the_tools(
    engine: Any,
    renderer: Renderer,
    zoom_task: dict[str, TaskEnvironments],
    make_sample: Make,
    max_new_tokens: int,
    stop_reason: str,
    turns: int,
) -> None:
    jobs = jobs_for(make_sample, 1, 1)
    (trajectory,) = play(engine, renderer, zoom_task, jobs, Limits(max_new_tokens, 1000))
    assert (trajectory.stop_reason, len(trajectory.response)) == (stop_reason, turns)


def test_a_reply_that_exceeds_the_budget_enters_neither_as_text_nor_as_image(
    engine: Any, renderer: Renderer, zoom_task: dict[str, TaskEnvironments], make_sample: Make
) -> None:
    jobs = jobs_for(make_sample, 1, 1)
    (whole,) = play(engine, renderer, zoom_task, jobs, LIMITS)
    first_turn = whole.token_ids.index(renderer.end_token_id, whole.sampled.index(True)) + 1
    before_answer = len(engine.seen[1].token_ids)
    for max_length in range(first_turn, before_answer + 1):
        (cut,) = play(engine, renderer, zoom_task, jobs, Limits(100, max_length))
        assert cut.stop_reason == "max_tokens"
        assert cut.token_ids == whole.token_ids[:first_turn]
        assert len(cut.images) == 1
        assert [message.role for message in cut.response] == ["assistant"]
        assert len(cut.tool_calls) == 1
    (last,) = play(engine, renderer, zoom_task, jobs, Limits(100, before_answer + 1))
    assert last.token_ids == whole.token_ids[: before_answer + 1]
    assert len(last.images) == 2


def test_calls_without_end_stop_at_the_turn_limit(
    engine: Any, renderer: Renderer, zoom_task: dict[str, TaskEnvironments], make_sample: Make
) -> None:
    engine.say = lambda request: ZOOM
    (trajectory,) = play(engine, renderer, zoom_task, jobs_for(make_sample, 1, 1), LIMITS)
    assert trajectory.stop_reason == "max_turns"
    assert [call.ok for call in trajectory.tool_calls] == [True, True, False]
    assert trajectory.sampled[-1]


class _Unshowable:
    """An environment whose reply no template can show."""

    def __init__(self, reply: Message) -> None:
        self.reply = reply
        self.closed = 0

    def start(self, sample: Sample) -> tuple[Message, ...]:
        return sample.messages

    def step(self, assistant_text: str) -> EnvironmentReply:
        return EnvironmentReply(self.reply, (), done=assistant_text == "K")

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    "reply",
    [
        text_message("tool", "x <|im_end|> y"),
        Message("tool", (Block("image", image=ImageRef("/no/such.png")),)),
        Message("tool", (Block("video", video=VideoRef(("/a/film.mp4",))),)),
    ],
)
def test_a_reply_that_cannot_be_shown_becomes_an_error_message(
    engine: Any, renderer: Renderer, make_sample: Make, reply: Message
) -> None:
    environment = _Unshowable(reply)
    engine.say = lambda request: "again" if not engine.seen else "K"
    task = {"markers": TaskEnvironments([], lambda: environment)}
    (trajectory,) = play(engine, renderer, task, jobs_for(make_sample, 1, 1), LIMITS)
    assert trajectory.stop_reason == "answer"
    assert trajectory.response[1].text == "Error: the result cannot be shown."
    assert environment.closed == 1


def test_a_prompt_is_rendered_once_for_all_episodes_that_show_it(
    engine: Any,
    renderer: Renderer,
    zoom_task: dict[str, TaskEnvironments],
    make_sample: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rendered: list[Sequence[Message]] = []
    render = Renderer.render

    def counted(self: Renderer, messages: Sequence[Message], *rest: Any, **named: Any) -> Rendered:
        if named.get("add_generation_prompt"):
            rendered.append(messages)
        return render(self, messages, *rest, **named)

    monkeypatch.setattr(Renderer, "render", counted)
    played = play(engine, renderer, zoom_task, jobs_for(make_sample, 2, 5), LIMITS)
    assert len(played) == 10
    assert sorted(map(id, rendered)) == sorted({id(each.prompt) for each in played})


def test_a_failure_leaves_nothing_open_or_in_flight(
    engine: Any, renderer: Renderer, make_sample: Make
) -> None:
    made: list[_Unshowable] = []

    def create() -> _Unshowable:
        made.append(_Unshowable(text_message("tool", "x")))
        return made[-1]

    jobs = jobs_for(make_sample, 2, 3)
    broken = Sample("gone", (Message("user", (Block("image", image=ImageRef("/no/such.png")),)),))
    jobs.append(EpisodeJob(broken, "markers", 9, 0, 0))
    with pytest.raises(EpisodeError, match=r"sample 'gone' of task 'markers'.*/no/such.png") as caught:
        play(engine, renderer, {"markers": TaskEnvironments([], create)}, jobs, LIMITS)
    assert isinstance(caught.value.__cause__, ImageError)
    film = Sample("film", (Message("user", (Block("video", video=VideoRef(("/a/film.mp4",))),)),))
    jobs[-1] = EpisodeJob(film, "markers", 9, 0, 0)
    with pytest.raises(EpisodeError, match=r"sample 'film' of task 'markers' cannot be shown.*/a/film\.mp4"):
        play(engine, renderer, {"markers": TaskEnvironments([], create)}, jobs, LIMITS)
    assert [environment.closed for environment in made] == [1] * len(made)
    assert not engine.busy


def test_a_prompt_that_leaves_no_room_is_refused_with_the_remedy(
    engine: Any, renderer: Renderer, zoom_task: dict[str, TaskEnvironments], make_sample: Make
) -> None:
    with pytest.raises(EpisodeError, match=r"no room in max_length = 20; raise rollout.max_length"):
        play(engine, renderer, zoom_task, jobs_for(make_sample, 1, 1), Limits(100, 20))


def test_seeds_are_the_same_in_every_process_and_differ_by_every_part() -> None:
    assert stable_seed(0, 3, 1, 2) == 7080902026573858280
    seeds = {stable_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)}
    assert len(seeds) == 125
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert stable_seed(1, 23) != stable_seed(12, 3)
