"""Coroutines at the same time: every result, or the first failure."""

import asyncio

import pytest

from posttrain.concurrency import all_or_first_failure


async def wait(seconds: float, result: int) -> int:
    await asyncio.sleep(seconds)
    return result


def test_results_are_in_order_whatever_is_finished_first() -> None:
    assert asyncio.run(all_or_first_failure(wait(0.02 / (n + 1), n) for n in range(4))) == [0, 1, 2, 3]


def test_the_first_failure_is_raised_as_it_is_and_ends_the_others() -> None:
    ended: list[str] = []

    async def fail() -> int:
        await asyncio.sleep(0)
        raise KeyError("first")

    async def go_on() -> int:
        try:
            return await wait(60, 1)
        finally:
            ended.append("cancelled")

    with pytest.raises(KeyError, match="first"):
        asyncio.run(all_or_first_failure([go_on(), fail()]))
    assert ended == ["cancelled"]
