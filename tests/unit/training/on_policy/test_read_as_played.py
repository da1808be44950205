"""A group is read as soon as it is over; what fails, and what nobody waits for, ends the whole."""

from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace

import numpy as np
import pytest

from posttrain.inference.pool import PoolError
from posttrain.inference.reading import ReadEpisodes, Reading, ReadingError, digest_of
from posttrain.rollout.episode import Limits
from posttrain.rollout.jobs import GroupJob, PlayedGroup
from posttrain.rollout.play import PlayGroup
from posttrain.training.on_policy.in_flight import readings_in_order
from posttrain.training.on_policy.read_as_played import ReadAsPlayed
from posttrain.training.on_policy.rollout_metrics import play_times
from posttrain.types import Sample, Trajectory, text_message

LIMITS = Limits(max_new_tokens=4, max_length=16)


class Hand:
    """Engines of both kinds, whose work a test ends by hand."""

    actors = 2

    def __init__(self) -> None:
        self.played: list[Future[PlayedGroup]] = []
        self.asked: list[tuple[ReadEpisodes, Future[list[Reading]]]] = []
        self.closed = False

    def prompt_tokens(self, groups: Sequence[GroupJob]) -> Mapping[int, int]:
        return {group.group: 3 for group in groups}

    def submit(self, jobs: Sequence[PlayGroup]) -> list[Future[PlayedGroup]]:
        self.played += [Future() for _ in jobs]
        return self.played[-len(jobs) :]


class HandTeacher(Hand):
    def submit(self, jobs: Sequence[ReadEpisodes]) -> list[Future[list[Reading]]]:  # type: ignore[override]
        if self.closed:
            raise PoolError("the pool is closed")
        futures: list[Future[list[Reading]]] = [Future() for _ in jobs]
        self.asked += zip(jobs, futures, strict=True)
        return futures


def group_of(number: int, failed: Sequence[int] = ()) -> PlayedGroup:
    episodes = [
        Trajectory(
            *(f"s{number}", "task", number, index),
            token_ids=[1, 2, number, index],
            sampled=[False, False, True, True],
            prompt=(text_message("user", "?"),),
            stop_reason="error" if index in failed else "answer",
        )
        for index in range(3)
    ]
    return PlayedGroup(episodes, 0.0)


def reading_of(episode: Trajectory) -> Reading:
    ids, logprobs = np.zeros((2, 1), np.int32), np.full((2, 1), -1.0, np.float32)
    return Reading(digest_of(episode), ids, logprobs, np.array([-1.0, -2.0 - episode.group], np.float32))


def started(count: int) -> tuple[Hand, HandTeacher, list[Future[PlayedGroup]]]:
    pool, teacher = Hand(), HandTeacher()
    jobs = [PlayGroup(GroupJob(i, "task", Sample(f"s{i}", ()), size=3, seed=i), LIMITS) for i in range(count)]
    return pool, teacher, ReadAsPlayed(pool, teacher, top=5).submit(jobs)


def test_each_group_is_read_while_others_are_played() -> None:
    pool, teacher, whole = started(2)
    pool.played[1].set_result(group_of(1, failed=[1]))
    [(job, future)] = teacher.asked
    assert job.top == 5
    assert [(each.group, each.episode) for each in job.episodes] == [(1, 0), (1, 2)]
    assert not any(each.prompt for each in job.episodes)  # texts do not travel
    assert not whole[1].done()
    future.set_result([reading_of(each) for each in job.episodes])
    found = whole[1].result(timeout=1)
    assert [reading is None for reading in found.readings] == [False, True, False]
    assert not whole[0].done()
    pool.played[0].set_result(group_of(0))
    job, future = teacher.asked[1]
    future.set_result([reading_of(each) for each in job.episodes])
    both = [found, whole[0].result(timeout=1)]
    told = [None if each is None else float(each.sampled[1]) for each in readings_in_order(both)]
    assert told == [-2.0, -2.0, -2.0, -3.0, None, -3.0]
    times = play_times(10.0, both)
    assert 0 <= times["time/teacher"] < 1
    assert times["time/rollout"] + times["time/teacher"] == pytest.approx(10.0)
    assert play_times(10.0, [group_of(0)]) == {"time/rollout": 10.0}


def test_a_group_that_the_world_failed_is_not_read() -> None:
    pool, teacher, whole = started(1)
    pool.played[0].set_result(group_of(0, failed=[0, 1, 2]))
    assert whole[0].result(timeout=1).readings == [None] * 3
    assert not teacher.asked


def test_failures_of_either_end_the_whole() -> None:
    pool, teacher, whole = started(4)
    pool.played[0].set_exception(PoolError("lost"))
    with pytest.raises(PoolError, match="lost"):
        whole[0].result(timeout=1)
    pool.played[1].set_result(group_of(1))
    teacher.asked[0][1].set_exception(PoolError("teacher lost"))
    with pytest.raises(PoolError, match="teacher lost"):
        whole[1].result(timeout=1)
    pool.played[2].set_result(group_of(2))
    teacher.asked[1][1].set_result([reading_of(each) for each in group_of(1).trajectories])
    with pytest.raises(ReadingError, match="other tokens"):
        whole[2].result(timeout=1)
    teacher.closed = True
    pool.played[3].set_result(group_of(3))
    with pytest.raises(PoolError, match="closed"):
        whole[3].result(timeout=1)


def test_nobody_plays_or_reads_for_nobody() -> None:
    pool, teacher, whole = started(3)
    assert whole[0].cancel()
    assert pool.played[0].cancelled()
    pool.played[1].set_result(group_of(1))
    assert whole[1].cancel()
    assert teacher.asked[0][1].cancelled()
    pool.played[2].cancel()
    with pytest.raises(CancelledError):
        whole[2].result(timeout=1)


def test_a_reading_of_other_images_is_told_apart() -> None:
    [episode, *_] = group_of(0).trajectories
    reading = reading_of(episode)
    reading.check(episode)
    with pytest.raises(ReadingError):
        reading.check(replace(episode, sampled=[False, True, True, False]))
