"""An engine whose answers and failures a test decides."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from posttrain.inference.engine import Completion, ReadTokens, Request, ScoreRequest, TopTokens
from posttrain.inference.weight_transfer import Manifest, TransferGroup

ZOOM = (
    '<tool_call>\n{"name": "image_zoom_in_tool", "arguments":'
    ' {"bbox_2d": [100, 100, 400, 400], "label": "marker", "img_idx": 0}}\n</tool_call>'
)


def zoom_once(request: Request) -> str:
    """Zoom while there is one image, then answer with a digit that depends on the seed."""
    return ZOOM if len(request.images) == 1 else str(request.seed % 10)


class ScriptedEngine:
    """An engine with the constructor of `VllmEngine`; a request's seed decides how many steps it takes.

    Faults are files in the checkpoint's folder `faults` that hold how often they strike: `die` and `hang`
    in a step, `stall` while loading weights. `compile` holds the seconds that a process's first step takes.
    """

    def __init__(
        self, checkpoint: Path, end_token_id: int, banned_token_ids: Sequence[int], **settings: Any
    ) -> None:
        self.say: Callable[[Request], str] = zoom_once
        self.capacity = 8
        self.version = 0
        self.step_began: float | None = None
        self.seen: list[Request] = []
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self._end = end_token_id
        self._faults = Path(checkpoint) / "faults"
        self._left: dict[str, tuple[Request, list[int]]] = {}
        self._steps = 0

    @property
    def busy(self) -> bool:
        return bool(self._left)

    def submit(self, request: Request) -> None:
        assert len(self._left) < self.capacity
        said = self.say(request)
        ends = [] if said.endswith(tuple(request.stops)) and request.stops else [self._end]
        reply = [*self._tokenizer.encode(said, add_special_tokens=False), *ends]
        self.seen.append(request)
        self._left[request.id] = (request, reply)

    def step(self) -> list[Completion]:
        self.step_began = time.monotonic()
        if self._fault("die"):
            os._exit(1)
        if self._fault("hang"):
            time.sleep(600)
        compiling = self._faults / "compile"
        if not self._steps and compiling.exists():
            time.sleep(float(compiling.read_text()))
        self._steps += 1
        # Every first, second or third step, so that episodes are in different turns at the same time.
        done = [request for request, _ in self._left.values() if self._steps % (1 + request.seed % 3) == 0]
        self.step_began = None
        return [self._complete(request) for request in done]

    def abort(self, ids: Iterable[str] | None = None) -> None:
        for each in list(self._left if ids is None else ids):
            del self._left[each]

    def load_weights(self, path: Path, version: int) -> None:
        if self._fault("stall"):
            time.sleep(600)
        self.version = version

    transfer_ranks = 1

    def join_transfer(self, group: TransferGroup) -> None:
        pass

    def receive_weights(self, manifest: Manifest, version: int) -> None:
        self.load_weights(Path(), version)

    def load_adapter(self, path: Path, version: int) -> int:
        self.load_weights(path, version)
        return 1

    def score(self, sequences: Sequence[ScoreRequest]) -> list[list[float]]:
        return [[-0.5] * (len(sequence.token_ids) - 1) for sequence in sequences]

    def read(self, sequences: Sequence[ScoreRequest], top: int) -> list[ReadTokens]:
        """Say of every token only how many images stand before it."""
        self.step_began = time.monotonic()
        if self._fault("die"):
            os._exit(1)
        if self._fault("hang"):
            time.sleep(600)
        self.step_began = None
        found = []
        for each in sequences:
            places = range(each.since, len(each.token_ids))
            given = [-1.0 - sum(image.offset < place for image in each.images) for place in places]
            told = (np.zeros((len(places), top), np.int32), np.full((len(places), top), -9.0, np.float32))
            found.append(ReadTokens(TopTokens(*told), np.array(given, np.float32)))
        return found

    def sleep(self) -> None:
        assert not self.busy

    def wake(self) -> None:
        pass

    def _complete(self, request: Request) -> Completion:
        _, reply = self._left.pop(request.id)
        ids = reply[: request.max_tokens]
        reason = "stop" if len(ids) == len(reply) else "length"
        return Completion(
            id=request.id,
            token_ids=ids,
            logprobs=[-0.5] * len(ids),
            finish_reason=reason,
            versions=[self.version] * len(ids),
            approximate=[False] * len(ids),
        )

    def _fault(self, name: str) -> bool:
        file = self._faults / name
        left = int(file.read_text()) if file.exists() else 0
        if left:
            file.write_text(str(left - 1))
        return left > 0
