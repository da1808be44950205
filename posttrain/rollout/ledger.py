"""Write a trajectory's ledger, in which ids are only ever appended, and check what must hold of it."""

import math

from posttrain.inference.engine import Completion
from posttrain.rendering.rendering import Rendered
from posttrain.types import Message, Trajectory, TrajectoryImage


class LedgerError(RuntimeError):
    """A trajectory does not say what the engine saw and sampled; learning from it would be wrong."""


def append_prompt(ledger: Trajectory, rendered: Rendered, messages: tuple[Message, ...]) -> None:
    """Begin the ledger with the prompt, which ends with the header of the model's first turn."""
    if ledger.token_ids:
        raise LedgerError(f"{_name(ledger)}: the prompt must come first, but there are tokens already")
    ledger.prompt = messages
    _append_context(ledger, rendered)


def append_turn(ledger: Trajectory, completion: Completion, message: Message) -> None:
    """Append the tokens of a turn, exactly as the policy sampled them."""
    count = len(completion.token_ids)
    told = (completion.logprobs, completion.versions, completion.approximate)
    if count == 0 or any(len(each) != count for each in told):
        raise LedgerError(
            f"{_name(ledger)}: the engine returned {count} tokens with {len(completion.logprobs)} log-probs"
            f" and {len(completion.versions)} versions; every turn has at least one token, and every token"
            " a log-prob and a version"
        )
    ledger.token_ids += completion.token_ids
    ledger.sampled += [True] * count
    ledger.logprobs += completion.logprobs
    ledger.versions += completion.versions
    ledger.approximate += completion.approximate
    ledger.response.append(message)


def append_observation(ledger: Trajectory, rendered: Rendered, *messages: Message) -> None:
    """Append the results of a turn's calls, or a reply: texts and images together."""
    _append_context(ledger, rendered)
    ledger.response += messages


def last_turn(ledger: Trajectory) -> list[int]:
    """Return the ids of the turn with which a ledger ends."""
    context = next((place for place, sampled in enumerate(reversed(ledger.sampled)) if not sampled), None)
    return ledger.token_ids[len(ledger.token_ids) - context :] if context is not None else []


def _append_context(ledger: Trajectory, rendered: Rendered) -> None:
    """Append tokens that the policy did not sample."""
    start, count = len(ledger.token_ids), len(rendered.token_ids)
    ledger.token_ids += rendered.token_ids
    ledger.sampled += [False] * count
    ledger.logprobs += [0.0] * count
    ledger.versions += [-1] * count
    ledger.approximate += [False] * count
    ledger.images += [
        TrajectoryImage(image.ref, start + image.offset, image.num_tokens) for image in rendered.images
    ]


def check_ledger(ledger: Trajectory, image_token_id: int, max_length: int) -> None:
    """Check what must hold of a finished trajectory.

    Args:
        ledger: The trajectory.
        image_token_id: The image placeholder token.
        max_length: Most tokens of an episode.

    Raises:
        LedgerError: If it is broken; the message names the trajectory and the token, and what to look at.
    """
    count = len(ledger.token_ids)
    told = (ledger.sampled, ledger.logprobs, ledger.versions, ledger.approximate)
    lengths = {len(each) for each in told}
    if lengths != {count}:
        raise LedgerError(f"{_name(ledger)}: {count} tokens, but masks and log-probs of lengths {lengths}")
    if count > max_length:
        raise LedgerError(f"{_name(ledger)}: {count} tokens exceed max_length = {max_length}")
    for index, sampled in enumerate(ledger.sampled):
        logprob, version = ledger.logprobs[index], ledger.versions[index]
        if sampled != (version >= 0) or (not sampled and logprob != 0.0):
            raise LedgerError(
                f"{_name(ledger)}: token {index} has version {version} and log-prob {logprob}, which does not"
                f" fit sampled = {sampled}"
            )
        if sampled and not (math.isfinite(logprob) and logprob <= 0.0):
            raise LedgerError(
                f"{_name(ledger)}: token {index} was sampled with log-prob {logprob}; look for weights that"
                " are not finite, or for sampling from another distribution than the one reported"
            )
    _check_images(ledger, image_token_id)


def _check_images(ledger: Trajectory, image_token_id: int) -> None:
    """Check that the placeholders are exactly those of the images, and that every image has a hash."""
    expected: set[int] = set()
    for image in ledger.images:
        if not image.ref.sha256:
            raise LedgerError(f"{_name(ledger)}: {image.ref.path} has no hash for the learner to compare")
        expected.update(range(image.offset, image.offset + image.num_tokens))
    found = {index for index, token in enumerate(ledger.token_ids) if token == image_token_id}
    if found != expected or sum(image.num_tokens for image in ledger.images) != len(expected):
        first = min(found ^ expected, default=-1)
        raise LedgerError(
            f"{_name(ledger)}: {len(found)} image placeholders for {len(expected)} image features; the first"
            f" that differs is token {first}. Look for placeholders that were sampled or cut"
        )


def _name(ledger: Trajectory) -> str:
    """Name a trajectory in error messages."""
    return f"episode {ledger.episode} of sample {ledger.sample_id!r} (task {ledger.task!r})"
