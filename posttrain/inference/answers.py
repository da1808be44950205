"""Sample one answer to each of many dialogues."""

import collections
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from posttrain.inference.engine import Engine, Request, TopTokens
from posttrain.inference.images import PROMPTS_AHEAD, engine_images
from posttrain.media.images import ImageError
from posttrain.rendering.collation import prepare
from posttrain.rendering.pixels import ImageChangedError
from posttrain.rendering.rendered import Rendered, RenderError
from posttrain.rendering.rendering import Renderer
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
    prompts, open_requests = _prompts(questions, renderer, sampling), 0
    upcoming = next(prompts, None)
    try:
        while upcoming or open_requests:
            while upcoming and open_requests < engine.capacity:
                question, prompt = upcoming
                upcoming = next(prompts, None)
                try:
                    engine.submit(_request(question, prompt, renderer, sampling))
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


def _prompts(
    questions: Sequence[Question], renderer: Renderer, sampling: AnswerSampling
) -> Iterator[tuple[Question, Rendered | ValueError]]:
    """Render questions by the headers of their images, some ahead, and have the images prepared.

    Yields:
        Each question with its prompt, or with the reason why it has none.
    """
    ahead: collections.deque[tuple[Question, Rendered | ValueError]] = collections.deque()
    counting = renderer.counting()
    for question in questions:
        try:
            prompt = _prompt(question, counting, sampling)
            prepare([prompt], renderer)
        except (ImageError, RenderError) as error:
            prompt = error
        ahead.append((question, prompt))
        if len(ahead) > PROMPTS_AHEAD:
            yield ahead.popleft()
    yield from ahead


def _prompt(question: Question, renderer: Renderer, sampling: AnswerSampling) -> Rendered:
    """Render a question.

    Raises:
        RenderError: If it cannot be rendered, or leaves no room for an answer.
        ImageError: If an image cannot be read.
    """
    if any(block.type == "video" for message in question.messages for block in message.content):
        raise RenderError("engines are shown no videos")
    prompt = renderer.render(question.messages, question.tools, add_generation_prompt=True)
    if len(prompt.token_ids) >= sampling.max_length:
        raise RenderError(
            f"{len(prompt.token_ids)} tokens leave no room for an answer in {sampling.max_length}"
        )
    return prompt


def _request(
    question: Question, prompt: Rendered | ValueError, renderer: Renderer, sampling: AnswerSampling
) -> Request:
    """Make the engine's request for a question.

    Raises:
        ValueError: What is in the place of the prompt.
        ImageChangedError: If an image has changed since the question was rendered.
        ImageError: If an image cannot be read.
    """
    if isinstance(prompt, ValueError):
        raise prompt
    room = sampling.max_length - len(prompt.token_ids)
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
