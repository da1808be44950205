"""Requests in vLLM's form: ready-made tokens and pixels."""

from dataclasses import replace

import torch
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

from posttrain.inference.engine import EngineError, EngineImage, EngineVideo, Request, ScoreRequest
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
    videos = [each for each in request.images if isinstance(each, EngineVideo)]
    images = [each for each in request.images if not isinstance(each, EngineVideo)]
    shown = {kind: found for kind, found in (("image", images), ("video", videos)) if found}
    return multimodal_input(
        ids,
        MultiModalKwargsItems({kind: [_item(each) for each in found] for kind, found in shown.items()}),
        {kind: [each.identity for each in found] for kind, found in shown.items()},
        {kind: [_placeholders(each) for each in found] for kind, found in shown.items()},
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
        EngineError: If the sequence has fewer than two tokens, or ends with an image or a video.
    """
    end = len(request.token_ids)
    if end < 2 or any(image.end == end for image in request.images):
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
    """Make vLLM's form of an image or video; its pixels are not copied, so that requests share them."""
    pixels = MultiModalFieldElem(image.pixels, PixelsField(patches=image.patches))
    grid = MultiModalFieldElem(image.grid_thw, MultiModalBatchedField(keep_on_cpu=True))
    if not isinstance(image, EngineVideo):
        return MultiModalKwargsItem({"pixel_values": pixels, "image_grid_thw": grid})
    told = {"pixel_values_videos": pixels, "video_grid_thw": grid}
    if image.seconds_per_grid is not None:
        seconds = torch.tensor(image.seconds_per_grid, dtype=torch.float64)
        told["second_per_grid_ts"] = MultiModalFieldElem(seconds, MultiModalBatchedField(keep_on_cpu=True))
    return MultiModalKwargsItem(told)


def _placeholders(image: EngineImage) -> PlaceholderRange:
    """Say where the placeholders of an image or video are, in vLLM's form."""
    length = image.end - image.offset
    if length == image.num_tokens:
        return PlaceholderRange(offset=image.offset, length=length)
    assert isinstance(image, EngineVideo)
    within = torch.zeros(length, dtype=torch.bool)  # of the times and marks between its frames
    for offset, number in image.runs:
        within[offset - image.offset :][:number] = True
    return PlaceholderRange(offset=image.offset, length=length, is_embed=within)
