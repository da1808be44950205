"""A forward pass that returns the log-probs of supervised tokens instead of logits."""

import types
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.models.logprobs import candidate_logprobs, token_logprobs, watched_logprobs

#: The label of whatever is not supervised; `torch.nn.functional.cross_entropy` ignores it as well.
IGNORED = -100

#: Something that is computed of last hidden states [T, D] and the head's weight [V, D], while it is whole.
Beside = Callable[[Tensor, Tensor], object]


def add_supervised_head(model: PreTrainedModel) -> None:
    """Let `model(..., supervised_labels=labels)` return [T] log-probs of the tokens that have a label.

    With `candidates` [T, K] as well, K tokens at the place of each label, it returns the results of
    `candidate_logprobs`; with `watched` [K] token ids those of `watched_logprobs`, at a `temperature`. With
    `watched` and `beside`, a function of the [T, D] last hidden states before these tokens and of the head's
    [V, D] weight, its result follows as one more. Without `supervised_labels` the model works as before.

    The head, the largest matrix of a small model, is applied at those places only: about one in ten in
    dialogues with images. This happens inside the forward passes of model and head, because FSDP2 gathers
    weights for forward passes.

    Args:
        model: A model whose head has no adapters, before it is wrapped; it is changed in place.

    Example:
        add_supervised_head(model)
        logprobs = model(**batch, supervised_labels=labels)  # labels [B, L], -100 where not supervised
    """
    original = model.forward
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    logits = head.forward

    def head_forward(
        self: nn.Linear, hidden: Tensor, targets: Tensor | None = None, *wanted: Any
    ) -> Tensor | tuple[object, ...]:
        return logits(hidden) if targets is None else _at_targets(hidden, self.weight, targets, *wanted)

    def forward(
        self: PreTrainedModel,
        *args: object,
        supervised_labels: Tensor | None = None,
        candidates: Tensor | None = None,
        watched: Tensor | None = None,
        beside: Beside | None = None,
        temperature: float = 1.0,
        **kwargs: object,
    ) -> object:
        if supervised_labels is None:
            return original(*args, **kwargs)
        # Backbone and head are looked up each time: PEFT and FSDP replace them.
        hidden = self.base_model(*args, **kwargs, use_cache=False).last_hidden_state[:, :-1]
        targets = supervised_labels[:, 1:]
        supervised = targets != IGNORED
        head = self.get_output_embeddings()
        assert head is not None
        return head(hidden[supervised], targets[supervised], candidates, watched, beside, temperature)

    head.forward = types.MethodType(head_forward, head)
    model.forward = types.MethodType(forward, model)


def _at_targets(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    candidates: Tensor | None,
    watched: Tensor | None,
    beside: Beside | None,
    temperature: float,
) -> Tensor | tuple[object, ...]:
    """Compute what is wanted at the places of some tokens; see `add_supervised_head`."""
    if candidates is not None:
        return candidate_logprobs(hidden, weight, targets, candidates)
    if watched is None:
        return token_logprobs(hidden, weight, targets)[0]
    found = watched_logprobs(hidden, weight, targets, watched, temperature=temperature)
    return found if beside is None else (*found, beside(hidden, weight))
