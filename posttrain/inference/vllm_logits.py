"""The logits of given tokens, held a piece at a time.

On a GPU vLLM's runner computes the log-probs of a prompt in pieces of 1,024 tokens. Its older one, which a
CPU has, takes all tokens of a step together: 8,192 of them with a vocabulary of 151,936 would be 20 GiB.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from posttrain.config.memory import given_at_once

#: Log-probs of prompts by request, of those whose last token is computed in this step.
Told = dict[str, LogprobsTensors | None]


def bound_logits(runner: Any) -> None:
    """Have a runner compute no more logits of a prompt at once than `given_at_once` says."""
    if isinstance(runner, GPUModelRunner):
        runner._get_prompt_logprobs_dict = partial(_in_pieces, runner, runner._get_prompt_logprobs_dict)


def _in_pieces(
    runner: GPUModelRunner,
    together: Callable[[torch.Tensor, dict[str, int]], Told],
    hidden_states: torch.Tensor,
    num_scheduled_tokens: dict[str, int],
) -> Told:
    """Compute log-probs of the prompts in a step, as if each had been scheduled in several pieces.

    Args:
        runner: The runner.
        together: Its own function, which takes all tokens of a request at once.
        hidden_states: [T, hidden] of the step's tokens.
        num_scheduled_tokens: Tokens of the step by request.
    """
    at_once = given_at_once(runner.model_config.get_vocab_size())
    found: Told = {}
    for name in [name for name in runner.num_prompt_logprobs if name in num_scheduled_tokens]:
        tokens, request = num_scheduled_tokens[name], runner.requests[name]
        computed = request.num_computed_tokens
        try:
            for start in range(0, tokens, at_once):
                request.num_computed_tokens = computed + start
                found |= together(hidden_states[start:], {name: min(at_once, tokens - start)})
        finally:
            request.num_computed_tokens = computed
    return found
