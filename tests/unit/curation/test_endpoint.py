"""The client of model endpoints, against a real server that fails in every way it can."""

import asyncio
import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from posttrain.chat_endpoint import BadReply, Completion
from posttrain.config.endpoints import CheckpointConfig, EndpointConfig
from posttrain.curation.answers import AnswerCache
from posttrain.curation.asking import CachedModel, Sampling
from posttrain.curation.endpoint import Endpoint
from posttrain.curation.engines import EngineModel
from posttrain.curation.outcomes import CurationError, RowError
from posttrain.types import Block, ImageRef, Message, VideoRef, text_message

QUESTION = (text_message("user", "How many?"),)
GREEDY = Sampling(0.0, 16, 0)
FAULTS = ("429", "500", "503", "nonsense", "html", "no text", "null", "hang up", "stall", "cut off")


def asked(
    endpoint: Any,
    folder: Path,
    *questions: tuple[Message, ...],
    sampling: Sampling = GREEDY,
    read: Any = lambda answer: answer,
    **config: Any,
) -> list[Any]:
    """Return the answers to several questions asked at once, with exceptions in their places."""

    async def ask_all() -> list[Any]:
        cache = AnswerCache(folder / "answers.sqlite")
        values = {"model": "m", "base_url": endpoint.url, "timeout_s": 0.5, "max_attempts": 4} | config
        try:
            async with Endpoint("e", EndpointConfig(**values)) as model:
                cached = CachedModel(model, cache)
                calls = [cached.ask(question, sampling, read) for question in questions or [QUESTION]]
                return await asyncio.gather(*calls, return_exceptions=True)
        finally:
            cache.close()

    return asyncio.run(ask_all())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_an_attempt_and_no_answer(endpoint: Any, tmp_path: Path, fault: str) -> None:
    endpoint.answer = lambda body: "seven"
    endpoint.fault = lambda body, before: fault if before < 2 else ""
    assert asked(endpoint, tmp_path) == [Completion("seven")]
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize("fault", FAULTS)
def test_what_never_answers_is_an_error_and_is_not_kept(endpoint: Any, tmp_path: Path, fault: str) -> None:
    endpoint.fault = lambda body, before: fault
    [error] = asked(endpoint, tmp_path, max_attempts=2, timeout_s=0.2)
    assert isinstance(error, RowError)
    assert "in 2 attempts" in str(error)
    endpoint.fault = lambda body, before: ""
    assert asked(endpoint, tmp_path) == [Completion("ok")]


def test_the_same_is_asked_once(endpoint: Any, tmp_path: Path) -> None:
    assert asked(endpoint, tmp_path) == asked(endpoint, tmp_path)
    assert len(endpoint.requests) == 1
    asked(endpoint, tmp_path, sampling=Sampling(0.0, 16, 1))
    asked(endpoint, tmp_path, model="another")
    asked(endpoint, tmp_path, request={"top_p": 0.5})
    assert len(endpoint.requests) == 4


def test_an_unusable_answer_is_asked_again_and_never_kept(endpoint: Any, tmp_path: Path) -> None:
    replies = iter(["maybe", "perhaps", "yes"])
    endpoint.answer = lambda body: next(replies)

    def read(answer: Completion) -> bool:
        if answer.text != "yes":
            raise BadReply("neither yes nor no")
        return True

    assert asked(endpoint, tmp_path, read=read) == [True]
    assert asked(endpoint, tmp_path) == [Completion("yes")]
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize("status", ["301", "401", "403", "404"])
def test_what_refuses_everything_ends_the_curation(endpoint: Any, tmp_path: Path, status: str) -> None:
    endpoint.fault = lambda body, before: status
    [error] = asked(endpoint, tmp_path)
    assert isinstance(error, CurationError)
    assert status in str(error)
    assert "POSTTRAIN_ENDPOINT_API_KEY" in str(error)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("status", ["400", "413", "422"])
def test_a_refused_request_is_not_repeated(endpoint: Any, tmp_path: Path, status: str) -> None:
    endpoint.fault = lambda body, before: status
    [error] = asked(endpoint, tmp_path)
    assert isinstance(error, RowError)
    assert len(endpoint.requests) == 1


def test_no_more_requests_at_once_than_allowed(endpoint: Any, tmp_path: Path) -> None:
    endpoint.delay = 0.02
    asked(endpoint, tmp_path, *[(text_message("user", str(i)),) for i in range(40)], concurrency=5)
    assert len(endpoint.requests) == 40
    assert 2 <= endpoint.server.peak <= 5


def test_the_key_goes_to_its_own_address_only(
    endpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTTRAIN_ENDPOINT_API_KEY", "secret")
    monkeypatch.setenv("POSTTRAIN_ENDPOINT_URL", "http://elsewhere:1/v1")
    asked(endpoint, tmp_path)
    monkeypatch.setenv("POSTTRAIN_ENDPOINT_URL", endpoint.url)
    asked(endpoint, tmp_path, base_url="", model="another")
    keys = [headers.get("authorization") for headers in endpoint.server.headers]
    assert keys == [None, "Bearer secret"]
    monkeypatch.delenv("POSTTRAIN_ENDPOINT_URL")
    with pytest.raises(CurationError, match="base_url"):
        asked(endpoint, tmp_path, base_url="")


def test_requests_are_as_the_recipe_says(endpoint: Any, tmp_path: Path) -> None:
    asked(endpoint, tmp_path, sampling=Sampling(0.7, 99, 5), request={"top_p": 0.9, "seed": None})
    assert endpoint.requests == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "How many?"}],
            "temperature": 0.7,
            "max_tokens": 99,
            "top_p": 0.9,
        }
    ]


def test_images_are_sent_within_limits(endpoint: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.new("RGB", (400, 200), (250, 10, 10)).save(file)
    shown = Message("user", (Block("image", image=ImageRef(str(file))), Block("text", text="What colour?")))
    asked(endpoint, tmp_path, (shown,), image_max_pixels=20_000)
    image, text = endpoint.requests[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "What colour?"}
    head, _, data = image["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert picture.size == (200, 100)
    pixel = picture.getpixel((100, 50))
    assert isinstance(pixel, tuple)
    assert max(abs(a - b) for a, b in zip(pixel, (250, 10, 10), strict=True)) < 6
    # Another image under the same name is another question.
    Image.new("RGB", (400, 200), (10, 250, 10)).save(file)
    asked(endpoint, tmp_path, (shown,), image_max_pixels=20_000)
    assert len(endpoint.requests) == 2
    file.unlink()
    [error] = asked(endpoint, tmp_path, (shown,))
    assert isinstance(error, RowError)
    assert "a.png" in str(error)


def test_a_servers_own_thinking_stands_before_the_answer(endpoint: Any, tmp_path: Path) -> None:
    endpoint.answer = lambda body: {"content": "7", "reasoning_content": "3 + 4", "finish_reason": "length"}
    assert asked(endpoint, tmp_path) == [Completion("<think>\n3 + 4\n</think>\n\n7", truncated=True)]
    assert asked(endpoint, tmp_path) == [Completion("<think>\n3 + 4\n</think>\n\n7", truncated=True)]


def test_tool_results_are_turns_of_the_user(endpoint: Any, tmp_path: Path) -> None:
    turns = (*QUESTION, text_message("assistant", "<tool_call>…"), text_message("tool", "4 left"))
    asked(endpoint, tmp_path, turns)
    sent = endpoint.requests[0]["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "user"]
    assert sent[2]["content"] == "<tool_response>\n4 left\n</tool_response>"


def test_a_damaged_cache_says_what_to_do(endpoint: Any, tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(CurationError, match="remove it"):
        asked(endpoint, tmp_path)


def test_an_endpoint_is_shown_no_video_and_a_checkpoint_asked_anew_of_another_part(
    endpoint: Any, tmp_path: Path, make_video: Any
) -> None:
    film = make_video(tmp_path / "film.mp4")

    def question(video: VideoRef) -> tuple[Message, ...]:
        return (Message("user", (Block("video", video=video), Block("text", text="What moves?"))),)

    [refused] = asked(endpoint, tmp_path, question(film))
    assert isinstance(refused, RowError)
    assert "a block of type 'video' cannot be sent to an endpoint" in str(refused)
    model = EngineModel("own", CheckpointConfig(checkpoint="org/name"), lambda *_: [])
    whole, same, part = (
        model.identity(question(video), GREEDY) for video in (film, film, replace(film, end=1.0))
    )
    assert whole == same != part
    make_video(tmp_path / "film.mp4", frames=20)
    assert model.identity(question(film), GREEDY) != whole
