"""Sample one answer to each of many dialogues."""

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.inference.engine import EngineImage, Request, TopTokens
from posttrain.inference.serving import aside
from posttrain.inference.worker import InferenceWorker
from posttrain.media.images import ImageError
from posttrain.media.videos import VideoError
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


@dataclass(frozen=True)
class AnswerQuestion:
    """A job: answer a question, without scoring the answer.

    Attributes:
        question: The question.
        sampling: How the answer is sampled.
    """

    question: Question
    sampling: AnswerSampling

    @property
    def size(self) -> int:
        """Number of sequences that are sampled."""
        return 1

    async def __call__(self, worker: InferenceWorker) -> SampledAnswer:
        """Return the answer; a question that cannot be shown to the model gets an `error`."""
        question, renderer = self.question, worker.renderer
        slot, pictures = worker.serving.slot(), worker.images.open()
        try:
            await slot.near
            prompt = await aside(worker.rendering, _prompt, question, renderer.counting(), self.sampling)
            pictures.prefetch(prompt.media)
            await slot.granted
            shown = await slot.images(pictures, prompt.media)
            stops = renderer.stops if question.tools else ()
            request = self._request(slot.next_id(), prompt, shown, stops)
            done = await worker.serving.sample(slot, request)
            del request, shown  # and their pixels with them
        except (ImageError, ImageChangedError, RenderError, VideoError) as error:
            return SampledAnswer(question.index, error=str(error))
        finally:
            pictures.close()
            slot.close()
        continues = question.messages[-1].role == "tool"
        text = await aside(worker.tools, renderer.decode, done.token_ids, continues=continues)
        cut = done.finish_reason == "length"
        return SampledAnswer(question.index, text, tuple(done.token_ids), cut, done.top)

    def _request(
        self, request_id: str, prompt: Rendered, images: Sequence[EngineImage], stops: Sequence[str]
    ) -> Request:
        """Make the engine's request for the question."""
        sampling = self.sampling
        return Request(
            id=request_id,
            token_ids=tuple(prompt.token_ids),
            images=images,
            max_tokens=min(sampling.max_new_tokens, sampling.max_length - len(prompt.token_ids)),
            temperature=sampling.temperature,
            seed=self.question.seed,
            top_p=sampling.top_p,
            top_logprobs=sampling.top_logprobs,
            stops=stops,
        )


def _prompt(question: Question, renderer: Renderer, sampling: AnswerSampling) -> Rendered:
    """Render a question.

    Raises:
        RenderError: If it cannot be rendered, or leaves no room for an answer.
        ImageError: If an image cannot be read.
        VideoError: If a video cannot be read.
    """
    prompt = renderer.render(question.messages, question.tools, add_generation_prompt=True)
    if len(prompt.token_ids) >= sampling.max_length:
        raise RenderError(
            f"{len(prompt.token_ids)} tokens leave no room for an answer in {sampling.max_length}"
        )
    return prompt
