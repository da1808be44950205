"""Write a trajectory's ledger, in which ids are only ever appended, and check what must hold of it."""

import math
from collections.abc import Sequence
from dataclasses import replace

from posttrain.inference.engine import Completion, EngineImage
from posttrain.rendering.pixels import with_hash
from posttrain.rendering.rendered import Rendered
from posttrain.types import ImageRef, Message, Trajectory, TrajectoryImage, TrajectoryVideo


class LedgerError(RuntimeError):
    """A trajectory does not say what the engine saw and sampled; learning from it would be wrong."""


def with_hashes(rendered: Rendered, shown: Sequence[EngineImage]) -> Rendered:
    """Return a dialogue with the hashes of what an engine is shown of its images and videos (`media`)."""
    hashes = [seen.sha256 for seen in shown]
    count = len(rendered.images)
    images = [
        TrajectoryImage(ImageRef(image.ref.path, sha256), image.offset, image.num_tokens)
        for image, sha256 in zip(rendered.images, hashes[:count], strict=True)
    ]
    videos = [
        TrajectoryVideo(with_hash(video.ref, sha256), video.offset, video.runs)
        for video, sha256 in zip(rendered.videos, hashes[count:], strict=True)
    ]
    return replace(rendered, images=images, videos=videos)


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
    ledger.videos += [video.moved(start) for video in rendered.videos]


def check_ledger(ledger: Trajectory, placeholders: tuple[int, int], max_length: int) -> None:
    """Check what must hold of a finished trajectory.

    Args:
        ledger: The trajectory.
        placeholders: The placeholder tokens of images and of videos.
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
    for medium in ledger.media:
        if not medium.ref.sha256:
            raise LedgerError(f"{_name(ledger)}: {medium.ref} has no hash for the learner to compare")
    runs = [(image.offset, image.num_tokens) for image in ledger.images]
    _check_placeholders(ledger, "image", placeholders[0], runs)
    _check_placeholders(
        ledger, "video", placeholders[1], [run for video in ledger.videos for run in video.runs]
    )


def _check_placeholders(ledger: Trajectory, kind: str, token_id: int, runs: list[tuple[int, int]]) -> None:
    """Check that the placeholders of images, or of videos, are exactly those of the runs that these have."""
    expected: set[int] = set()
    for offset, number in runs:
        expected.update(range(offset, offset + number))
    found = {index for index, token in enumerate(ledger.token_ids) if token == token_id}
    if found != expected or sum(number for _, number in runs) != len(expected):
        first = min(found ^ expected, default=-1)
        raise LedgerError(
            f"{_name(ledger)}: {len(found)} {kind} placeholders for {len(expected)} {kind} features; the"
            f" first that differs is token {first}. Look for placeholders that were sampled or cut"
        )


def _name(ledger: Trajectory) -> str:
    """Name a trajectory in error messages."""
    return f"episode {ledger.episode} of sample {ledger.sample_id!r} (task {ledger.task!r})"
