"""A teacher in engines of its own reads each group as soon as it has been played, while others still are."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

from posttrain.inference.reading import ReadEpisodes, Reading
from posttrain.rollout.jobs import GroupJob, PlayedGroup
from posttrain.rollout.play import PlayGroup
from posttrain.training.on_policy.in_flight import EpisodePool
from posttrain.types import Trajectory

R = TypeVar("R")


class ReadingPool(Protocol):
    """What reads episodes (see `InferencePool`)."""

    def submit(self, jobs: Sequence[ReadEpisodes]) -> list[Future[list[Reading]]]:
        """Have groups read; those given first come first."""
        ...


class ReadAsPlayed:
    """A pool whose groups end once a teacher has read them.

    Args:
        pool: Plays the groups.
        teacher: Reads them.
        top: Number of likeliest tokens that it tells of every place.
    """

    def __init__(self, pool: EpisodePool, teacher: ReadingPool, top: int) -> None:
        self._pool, self._teacher, self._top = pool, teacher, top

    @property
    def actors(self) -> int:
        """Number of engines that play."""
        return self._pool.actors

    def prompt_tokens(self, groups: Sequence[GroupJob]) -> Mapping[int, int]:
        """Count the tokens of the groups' prompts, by the group's index."""
        return self._pool.prompt_tokens(groups)

    def submit(self, jobs: Sequence[PlayGroup]) -> list[Future[PlayedGroup]]:
        """Have groups played and read; a future that is cancelled cancels both."""
        return [self._read_after(played) for played in self._pool.submit(jobs)]

    def _read_after(self, played: Future[PlayedGroup]) -> Future[PlayedGroup]:
        """Return the future of a group that is being played, once it will be read."""
        whole: Future[PlayedGroup] = Future()
        _cancel_with(whole, played)
        played.add_done_callback(partial(self._read, whole))
        return whole

    def _read(self, whole: Future[PlayedGroup], played: Future[PlayedGroup]) -> None:
        """Have a group read that has been played; called in any thread."""
        if _failed(played, whole):
            return
        group = replace(played.result(), played_at=time.perf_counter())
        episodes = [_bare(each) for each in group.trajectories if _readable(each)]
        if not episodes:
            _end(whole, _with_readings(group, []))
            return
        try:
            [reading] = self._teacher.submit([ReadEpisodes(episodes, self._top)])
        except Exception as error:  # the pool is closed, or has given up
            _end(whole, error)
            return
        _cancel_with(whole, reading)
        reading.add_done_callback(partial(_hand_over, whole, group))


def _hand_over(whole: Future[PlayedGroup], group: PlayedGroup, reading: Future[list[Reading]]) -> None:
    """End a group that has been read."""
    if not _failed(reading, whole):
        try:
            _end(whole, _with_readings(group, reading.result()))
        except Exception as error:  # such as a reading too few: whoever waits is told
            _end(whole, error)


def _with_readings(group: PlayedGroup, found: Sequence[Reading]) -> PlayedGroup:
    """Put readings beside the episodes that they are of, once they are checked.

    Raises:
        ReadingError: If one is not of its episode.
    """
    left = iter(found)
    readings = [next(left) if _readable(each) else None for each in group.trajectories]
    for episode, reading in zip(group.trajectories, readings, strict=True):
        if reading is not None:
            reading.check(episode)
    return replace(group, readings=readings, read_at=time.perf_counter())


def _readable(episode: Trajectory) -> bool:
    """Tell whether there is something to learn from in an episode."""
    return not episode.failed and any(episode.sampled)


def _bare(episode: Trajectory) -> Trajectory:
    """Return an episode as a teacher needs it: tokens, images and videos."""
    return Trajectory(
        *(episode.sample_id, episode.task, episode.group, episode.episode),
        token_ids=episode.token_ids,
        sampled=episode.sampled,
        images=episode.images,
        videos=episode.videos,
    )


def _cancel_with(whole: Future[PlayedGroup], part: Future[Any]) -> None:
    """Cancel a part of the work where nobody waits for the whole any more."""
    whole.add_done_callback(lambda ended: ended.cancelled() and part.cancel())


def _failed(part: Future[Any], whole: Future[PlayedGroup]) -> bool:
    """Tell whether a part has no result, and end the whole like it."""
    if part.cancelled():
        whole.cancel()
        return True
    error = part.exception()
    if error is not None:
        _end(whole, error)
    return error is not None


def _end(whole: Future[PlayedGroup], found: PlayedGroup | BaseException) -> None:
    """End a future, unless it has ended or was cancelled."""
    if whole.done() or not whole.set_running_or_notify_cancel():
        return
    if isinstance(found, BaseException):
        whole.set_exception(found)
    else:
        whole.set_result(found)
