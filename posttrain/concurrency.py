"""Coroutines that run at the same time."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import TypeVar

T = TypeVar("T")


async def all_or_first_failure(work: Iterable[Coroutine[object, object, T]]) -> list[T]:
    """Run coroutines at the same time; the first failure cancels the others.

    Returns:
        Their results, in order.

    Raises:
        BaseException: The first failure, as it was raised and not in an exception group.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
        raise first from first.__cause__
    return [task.result() for task in tasks]
