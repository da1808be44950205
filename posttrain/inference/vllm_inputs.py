"""Requests in vLLM's form: ready-made tokens and pixels."""

from dataclasses import replace

from vllm import SamplingParams
from vllm.inputs import MultiModalInput, TokensInput, tokens_input
from vllm.inputs import mm_input as multimodal_input
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)
from vllm.sampling_params import RequestOutputKind

from posttrain.inference.engine import EngineError, EngineImage, Request, ScoreRequest
from posttrain.inference.vllm_pixels import PixelsField


def prompt_of(request: Request | ScoreRequest, cache_salt: str) -> TokensInput | MultiModalInput:
    """Make vLLM's input of a request, so that its own tokenizer and image processor have nothing to do.

    Args:
        request: The request.
        cache_salt: Only requests with the same salt share a prefix in the cache.
    """
    ids = list(request.token_ids)
    if not request.images:
        return tokens_input(ids, cache_salt=cache_salt)
    return multimodal_input(
        ids,
        MultiModalKwargsItems({"image": [_item(image) for image in request.images]}),
        {"image": [image.sha256 for image in request.images]},
        {"image": [_placeholders(image) for image in request.images]},
        cache_salt=cache_salt,
    )


def sampling_parameters(request: Request, end_token_id: int, bias: dict[int, float] | None) -> SamplingParams:
    """Make vLLM's parameters of a request.

    Args:
        request: The request.
        end_token_id: The token that ends a turn.
        bias: What is added to the logits of some tokens before sampling, and not to the reported log-probs.
    """
    return SamplingParams(
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        max_tokens=request.max_tokens,
        logprobs=request.top_logprobs,  # in addition to the sampled token's
        flat_logprobs=True,
        logit_bias=bias,
        stop_token_ids=[end_token_id],
        ignore_eos=True,  # only the end-of-turn token ends a turn
        stop=list(request.stops),
        detokenize=bool(request.stops),
        skip_special_tokens=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def scoring_prompt(request: ScoreRequest, cache_salt: str, tempered: bool) -> TokensInput | MultiModalInput:
    """Make vLLM's input of a sequence to score: all its tokens but the last, which is then sampled.

    An engine that gives log-probs of what it draws from would say 0 of a token that is the only one allowed:
    it takes the last one as well, and samples one more that does not matter.

    Raises:
        EngineError: If the sequence has fewer than two tokens, or ends with an image.
    """
    end = len(request.token_ids)
    if end < 2 or any(image.offset + image.num_tokens == end for image in request.images):
        raise EngineError("a sequence to score must have two tokens or more, and must not end with an image")
    ids = request.token_ids if tempered else request.token_ids[:-1]
    return prompt_of(replace(request, token_ids=ids), cache_salt)


def scoring_parameters(last_token_id: int | None) -> SamplingParams:
    """Make vLLM's parameters of a sequence to score, after which no other token than its last can be sampled.

    Where the last one is part of the prompt it is None.

    Its log-probs are computed at every place, not read from the prefix cache, which holds none.
    """
    return SamplingParams(
        temperature=0.0,
        max_tokens=1,
        allowed_token_ids=None if last_token_id is None else [last_token_id],
        prompt_logprobs=0,  # in addition to the given token's
        logprobs=0,
        flat_logprobs=True,
        skip_reading_prefix_cache=True,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def reading_parameters(request: ScoreRequest, top: int, again: bool) -> SamplingParams:
    """Make vLLM's parameters of a sequence to read, after which its last token is sampled.

    Args:
        request: The sequence.
        top: Number of likeliest tokens per place.
        again: Whether nothing is to be taken from the prefix cache, which holds no log-probs.
    """
    parameters = scoring_parameters(request.token_ids[-1])
    parameters.prompt_logprobs = parameters.logprobs = top  # in addition to the given token's
    parameters.skip_reading_prefix_cache = again
    return parameters


def _item(image: EngineImage) -> MultiModalKwargsItem:
    """Make vLLM's form of an image; its pixels are not copied, so that requests share them."""
    pixels = MultiModalFieldElem(image.pixels, PixelsField(patches=image.patches))
    grid = MultiModalFieldElem(image.grid_thw, MultiModalBatchedField(keep_on_cpu=True))
    return MultiModalKwargsItem({"pixel_values": pixels, "image_grid_thw": grid})


def _placeholders(image: EngineImage) -> PlaceholderRange:
    """Say where an image's placeholders are, in vLLM's form."""
    return PlaceholderRange(offset=image.offset, length=image.num_tokens)
