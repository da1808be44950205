"""One answer to each of many questions: dialogues to token ids, and what the engine sampled after them."""

import collections
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.inference.engine import Engine, EngineImage, Request, TopTokens
from posttrain.media.images import ImageError
from posttrain.rendering.pixels import ImageChangedError
from posttrain.rendering.rendering import Renderer, RenderError
from posttrain.types import Message, ToolSpec


@dataclass(frozen=True)
class AnswerSampling:
    """How answers are sampled.

    Attributes:
        max_new_tokens: Most tokens of an answer.
        max_length: Most tokens of a question with its answer.
        temperature: 0.0 is greedy.
        top_p: Share of the probability that tokens are sampled from.
        top_logprobs: For how many of the likeliest tokens the log-probs are wanted.
    """

    max_new_tokens: int
    max_length: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_logprobs: int = 0


@dataclass(frozen=True)
class Question:
    """A dialogue to answer; plain data.

    Attributes:
        index: Its number among the questions asked at once.
        messages: Up to a user's or a tool's turn.
        tools: What the model is told of.
        seed: Decides the answer.
    """

    index: int
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    seed: int


@dataclass(frozen=True)
class SampledAnswer:
    """What came of a question.

    Attributes:
        index: The question's.
        text: The answer, with what the prompt wrote of it.
        token_ids: As sampled, the end-of-turn token included.
        truncated: Whether it was cut off at its most tokens.
        top: The likeliest tokens at the place of each, where they were wanted.
        error: Why there is no answer; "" where there is one.
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
        engine: Nothing may be in flight.
        renderer: Of the checkpoint that the engine serves.
        questions: With distinct indices.
        sampling: How.

    Returns:
        An answer a question, in the order in which they were finished.
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
    """A question as the engine takes it.

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
    images = []
    for image in prompt.images:
        values, grid_thw = renderer.pixels(image.ref)
        images.append(EngineImage(image.ref.sha256, values, grid_thw, image.offset, image.num_tokens))
    return Request(
        str(question.index),
        tuple(prompt.token_ids),
        images,
        min(sampling.max_new_tokens, room),
        sampling.temperature,
        question.seed,
        sampling.top_p,
        sampling.top_logprobs,
    )
