"""What vLLM answers, checked against what was asked, in our form."""

import numpy as np
from vllm.logprobs import FlatLogprobs
from vllm.outputs import RequestOutput

from posttrain.inference.engine import Completion, EngineError, ReadTokens, Request, ScoreRequest, TopTokens


def completion_of(output: RequestOutput, request: Request) -> Completion:
    """Convert a finished output; its versions are vLLM's labels of weights, and no log-prob is approximate.

    Raises:
        EngineError: If vLLM continued other tokens than were submitted, or gave the request up.
    """
    sampled = output.outputs[0]
    if output.prompt_token_ids != list(request.token_ids):
        raise EngineError(
            f"request {request.id!r}: vLLM sampled after other tokens than the {len(request.token_ids)}"
            " that were submitted"
        )
    reason, flat = sampled.finish_reason, sampled.logprobs
    if (reason != "stop" and reason != "length") or not isinstance(flat, FlatLogprobs):
        raise EngineError(f"request {request.id!r} ended with {reason!r}; see vLLM's log")
    ids = list(sampled.token_ids)
    if [flat.token_ids[place] for place in flat.start_indices] != ids:
        raise EngineError(f"request {request.id!r}: vLLM's log-probs are not those of the sampled tokens")
    spans = sampled.weight_versions or []
    versions = [int(span.version) for span in spans for _ in range(span.start, span.end)]
    if len(versions) != len(ids):
        raise EngineError(f"request {request.id!r}: vLLM does not say which weights sampled each token")
    return Completion(
        id=request.id,
        token_ids=ids,
        logprobs=[flat.logprobs[place] for place in flat.start_indices],
        finish_reason=reason,
        versions=versions,
        approximate=[False] * len(ids),
        top=_top_tokens(flat, request.top_logprobs) if request.top_logprobs else None,
    )


def scores_of(output: RequestOutput, request: ScoreRequest, whole: bool) -> list[float]:
    """Read the log-probs of a scored sequence's tokens, all but the first.

    Args:
        output: What vLLM answers.
        request: What was asked.
        whole: Whether all tokens were given; else the last one was sampled.

    Raises:
        EngineError: If they are not those of the sequence's tokens.
    """
    given, sampled = output.prompt_logprobs, output.outputs[0].logprobs
    assert isinstance(given, FlatLogprobs)
    assert isinstance(sampled, FlatLogprobs)
    ends = [] if whole else sampled.start_indices
    pairs = [
        (flat.token_ids[place], flat.logprobs[place])
        for flat, places in ((given, given.start_indices[1:]), (sampled, ends))
        for place in places
    ]
    if [token_id for token_id, _ in pairs] != list(request.token_ids[1:]):
        raise EngineError(f"vLLM scored other tokens than the {len(request.token_ids)} that were given")
    return [logprob for _, logprob in pairs]


def reads_too_late(output: RequestOutput, request: ScoreRequest) -> bool:
    """Tell whether the prefix cache had the place before the first token that is to be read."""
    return (output.num_cached_tokens or 0) >= request.since


def reading_of(output: RequestOutput, request: ScoreRequest, top: int) -> ReadTokens:
    """Read what the model says at the places of a sequence's tokens, those from `since` on.

    vLLM returns no log-probs of what its prefix cache had, or any: they are counted from the end.

    Raises:
        EngineError: If they are not those of the sequence's tokens.
    """
    given, sampled = output.prompt_logprobs, output.outputs[0].logprobs
    assert isinstance(given, FlatLogprobs)
    assert isinstance(sampled, FlatLogprobs)
    width, count = top + 1, len(request.token_ids) - 1 - request.since
    ids = np.array(given.token_ids[len(given.token_ids) - count * width :] + sampled.token_ids, np.int32)
    logprobs = np.array(given.logprobs[len(given.logprobs) - count * width :] + sampled.logprobs, np.float32)
    whole = ids.size == logprobs.size == (count + 1) * width
    if not whole or ids[::width].tolist() != list(request.token_ids[request.since :]):
        raise EngineError(f"vLLM read other tokens than the {len(request.token_ids)} that were given")
    ids, logprobs = ids.reshape(-1, width), logprobs.reshape(-1, width)
    return ReadTokens(TopTokens(ids[:, 1:], logprobs[:, 1:]), logprobs[:, 0])


def _top_tokens(logprobs: FlatLogprobs, count: int) -> TopTokens:
    """Read the likeliest tokens of each place, which follow the sampled token in vLLM's flat lists."""
    places = np.array(logprobs.start_indices)[:, None] + np.arange(1, count + 1)
    ids, values = np.array(logprobs.token_ids, np.int32), np.array(logprobs.logprobs, np.float32)
    return TopTokens(ids[places], values[places])
