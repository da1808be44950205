"""Slots: which sequences may be sampled, in a fixed order, and whether they have asked for their turn."""

import asyncio
import collections
import itertools
from collections.abc import Sequence

from posttrain.inference.engine import EngineImage
from posttrain.inference.images import DialogueImages
from posttrain.types import TrajectoryMedium

#: Prompts that are rendered before an engine has room for them, so that threads load their images meanwhile.
PROMPTS_AHEAD = 16
#: Sequences that have a slot, for each that the engine samples at once: while some wait for a tool, others
#: are sampled. In lockstep it is one.
SLOTS_PER_PLACE = 2


class Slot:
    """A sequence's right to be sampled, turn after turn, until it is closed.

    Attributes:
        number: Its place in the order of all sequences.
        near: Done once few sequences are before it, so that its images may be loaded.
        granted: Done once the sequence may begin.
    """

    def __init__(self, slots: "Slots", number: int) -> None:
        loop = asyncio.get_running_loop()
        self.number = number
        self.near: asyncio.Future[None] = loop.create_future()
        self.granted: asyncio.Future[None] = loop.create_future()
        self._slots = slots
        self._turns = itertools.count()

    def next_id(self) -> str:
        """Make an id for the sequence's next request."""
        return f"{self.number}-{next(self._turns)}"

    async def images(self, pictures: DialogueImages, images: Sequence[TrajectoryMedium]) -> list[EngineImage]:
        """Get the images and videos of the sequence's next turn, which its job releases after it.

        While they wait for room, which only the turns of others can give, a lockstep does not wait for the
        sequence. Where none has to wait, repetitions are equal bit for bit.

        Raises:
            ImageChangedError: If a file is not what was rendered.
            ImageError, VideoError: If a file cannot be read.
        """
        claim = pictures.acquire(images)
        if claim.ready.done():
            return claim.ready.result()
        if not claim.granted.done():
            self._slots.step_aside()
            claim.granted.add_done_callback(lambda _: self._slots.step_back())
        return await asyncio.wrap_future(claim.ready)

    def close(self) -> None:
        """Give the slot to the next sequence; may be called again."""
        self._slots.release(self)


class Slots:
    """The slots of an engine; used in its thread alone.

    Attributes:
        outside: Number of sequences with a slot that have not asked for their next turn.
        changed: Set when somebody should look whether a step can be made.

    Args:
        places: Number of sequences that may have a slot at the same time.
    """

    def __init__(self, places: int) -> None:
        self.outside = 0
        self.changed = asyncio.Event()
        self._places = places
        self._numbers = itertools.count()
        self._held: set[Slot] = set()
        self._waiting: collections.deque[Slot] = collections.deque()

    @property
    def unfinished(self) -> int:
        """Number of sequences that are not over."""
        return len(self._held) + len(self._waiting)

    def take(self) -> Slot:
        """Take a place in the order of sequences."""
        slot = Slot(self, next(self._numbers))
        self._waiting.append(slot)
        self._grant()
        return slot

    def step_aside(self) -> None:
        """Note that a sequence waits for what only the turns of others can give it."""
        self.outside -= 1
        self.changed.set()

    def step_back(self) -> None:
        """Note that it waits for that no more."""
        self.outside += 1

    def release(self, slot: Slot) -> None:
        """Give a slot to the next sequence; see `Slot.close`."""
        if slot in self._held:
            self._held.remove(slot)
            self.outside -= 1
        elif slot in self._waiting:
            self._waiting.remove(slot)
        else:
            return
        self._grant()
        self.changed.set()

    def _grant(self) -> None:
        """Give free slots to the sequences that wait for one."""
        while self._waiting and len(self._held) < self._places:
            slot = self._waiting.popleft()
            self._held.add(slot)
            self.outside += 1
            for future in (slot.near, slot.granted):
                if not future.done():
                    future.set_result(None)
        for slot in itertools.islice(self._waiting, PROMPTS_AHEAD):
            if not slot.near.done():
                slot.near.set_result(None)
