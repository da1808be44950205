"""A model whose forward pass ends in the log-probs of supervised tokens, not in logits."""

import types
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from posttrain.models.logprobs import candidate_logprobs, token_logprobs

#: The label of a token that is not supervised.
IGNORED = -100


def add_supervised_head(model: PreTrainedModel) -> None:
    """Let `model(..., supervised_labels=labels)` return [T] log-probs of the tokens that have a label.

    With `candidates` [T, K] too, K tokens in the place of each, it returns what `candidate_logprobs` does.

    The head, the largest matrix of a small model, sees those positions only: in dialogues with images one
    in ten, in packed rows no padding. It is a part of the forward passes of model and head because wrappers
    (DDP, FSDP) must see both. Without that argument the model is unchanged.

    Args:
        model: A model whose head no adapters are put onto, before it is wrapped.

    Example:
        add_supervised_head(model)
        logprobs = model(**batch, supervised_labels=labels)  # labels [B, L], -100 where not supervised
    """
    original = model.forward
    head: Any = model.get_output_embeddings()
    logits = head.forward

    def answer(
        self: Any, hidden: Tensor, targets: Tensor | None = None, candidates: Tensor | None = None
    ) -> Any:
        if targets is None:
            return logits(hidden)
        if candidates is not None:
            return candidate_logprobs(hidden, self.weight, targets, candidates)
        return token_logprobs(hidden, self.weight, targets)[0]

    def forward(
        self: Any,
        *args: Any,
        supervised_labels: Tensor | None = None,
        candidates: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if supervised_labels is None:
            return original(*args, **kwargs)
        # Backbone and head are looked up each time: PEFT and FSDP replace them.
        hidden = self.base_model(*args, **kwargs, use_cache=False).last_hidden_state[:, :-1]
        targets = supervised_labels[:, 1:]
        supervised = targets != IGNORED
        return self.get_output_embeddings()(hidden[supervised], targets[supervised], candidates)

    head.forward = types.MethodType(answer, head)
    model.forward = types.MethodType(forward, model)
