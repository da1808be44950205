"""Sample one answer to each of many dialogues."""

import collections
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.inference.engine import Engine, Request, TopTokens
from posttrain.inference.images import engine_images
from posttrain.media.images import ImageError
from posttrain.rendering.pixels import ImageChangedError
from posttrain.rendering.rendering import Renderer, RenderError
from posttrain.types import Message, ToolSpec


@dataclass(frozen=True, kw_only=True)
class AnswerSampling:
    """How answers are sampled.

    Attributes:
        max_new_tokens: Most tokens of an answer.
        max_length: Most tokens of a question with its answer.
        temperature: Sampling temperature; 0.0 for greedy decoding.
        top_p: Probability mass of the likeliest tokens that sampling is restricted to.
        top_logprobs: Number of likeliest tokens per place whose log-probs are returned.
    """

    max_new_tokens: int
    max_length: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_logprobs: int = 0


@dataclass(frozen=True)
class Question:
    """A dialogue to answer.

    Attributes:
        index: Its number among the questions asked at once.
        messages: The dialogue, which ends with a user or tool turn.
        tools: The tools that the prompt announces.
        seed: Seed of the answer.
    """

    index: int
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    seed: int


@dataclass(frozen=True)
class SampledAnswer:
    """The answer to a question, or the reason why there is none.

    Attributes:
        index: Number of the question.
        text: The answer, including the opening that the prompt wrote for it (such as `<think>`).
        token_ids: The sampled tokens, with the end-of-turn token.
        truncated: Whether the answer was cut off at the token limit.
        top: The likeliest tokens at the place of each, if the sampling asked for them.
        error: Why there is no answer; "" if there is one.
    """

    index: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    truncated: bool = False
    top: TopTokens | None = None
    error: str = ""


def sample_answers(
    engine: Engine, renderer: Renderer, questions: Sequence[Question], sampling: AnswerSampling
) -> list[SampledAnswer]:
    """Answer every question; one that cannot be shown to the model gets an `error`.

    Args:
        engine: An engine without requests in flight.
        renderer: The renderer of the checkpoint that the engine serves.
        questions: The dialogues, with distinct indices.
        sampling: Lengths, temperature and so on.

    Returns:
        One answer per question, in the order in which they were finished.
    """
    answers: list[SampledAnswer] = []
    waiting, open_requests = collections.deque(questions), 0
    try:
        while waiting or open_requests:
            while waiting and open_requests < engine.capacity:
                question = waiting.popleft()
                try:
                    engine.submit(_request(question, renderer, sampling))
                    open_requests += 1
                except (ImageError, ImageChangedError, RenderError) as error:
                    answers.append(SampledAnswer(question.index, error=str(error)))
            for done in engine.step() if open_requests else ():
                open_requests -= 1
                text = renderer.decode(done.token_ids)
                cut = done.finish_reason == "length"
                answers.append(SampledAnswer(int(done.id), text, tuple(done.token_ids), cut, done.top))
    finally:
        engine.abort()
    return answers


def _request(question: Question, renderer: Renderer, sampling: AnswerSampling) -> Request:
    """Make the engine's request for a question.

    Raises:
        RenderError: If it cannot be rendered, or leaves no room for an answer.
        ImageError: If an image cannot be read.
    """
    if any(block.type == "video" for message in question.messages for block in message.content):
        raise RenderError("engines are shown no videos")
    prompt = renderer.render(question.messages, question.tools, add_generation_prompt=True)
    room = sampling.max_length - len(prompt.token_ids)
    if room < 1:
        raise RenderError(
            f"{len(prompt.token_ids)} tokens leave no room for an answer in {sampling.max_length}"
        )
    return Request(
        id=str(question.index),
        token_ids=tuple(prompt.token_ids),
        images=engine_images(prompt.images, renderer),
        max_tokens=min(sampling.max_new_tokens, room),
        temperature=sampling.temperature,
        seed=question.seed,
        top_p=sampling.top_p,
        top_logprobs=sampling.top_logprobs,
    )
