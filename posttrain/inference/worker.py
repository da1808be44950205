"""The object in each process of a pool: an engine that serves a checkpoint, and does jobs."""

import collections
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from huggingface_hub import snapshot_download
from ray import ObjectRef

from posttrain.config import EngineConfig, ModelConfig
from posttrain.inference.adapters import AdapterFiles
from posttrain.inference.engine import Engine, EngineUse, Request, ScoreRequest
from posttrain.inference.images import EngineImages, engine_images
from posttrain.inference.jobs import Job, Outcome, Report, Taken
from posttrain.inference.serving import Serving
from posttrain.inference.slots import SLOTS_PER_PLACE
from posttrain.inference.weight_transfer import Manifest, TransferGroup
from posttrain.plugins import resolve
from posttrain.rendering.pixel_limits import pixel_limits
from posttrain.rendering.rendering import Renderer
from posttrain.run.home import fetch_files, fetch_folder
from posttrain.run.placement import place_of_process
from posttrain.types import Trajectory

#: What a worker proves weights by.
Sequences = Sequence[Trajectory]
#: Files of a model on the hub that renderer and engine read.
FETCHED = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model")
#: Answers, and tokens of each, that an engine samples before its first use: enough for one step that reads
#: prompts and one that continues several of them.
WARM_UP_ANSWERS, WARM_UP_TOKENS = 4, 2
#: A report is made at once where the sequences that want the engine became fewer by this part of those that
#: it samples at once, so that a pool gives it more.
ROOM_PART = 8


@runtime_checkable
class EngineFactory(Protocol):
    """Loads a checkpoint into an engine."""

    def __call__(
        self,
        checkpoint: Path,
        end_token_id: int,
        banned_token_ids: Sequence[int],
        *,
        max_length: int,
        dtype: str,
        config: EngineConfig,
        use: EngineUse,
    ) -> Engine:
        """Return an engine that serves the checkpoint as version 0."""
        ...


@dataclass(frozen=True, kw_only=True)
class EngineSetup:
    """What every worker of a pool is made from: plain data that can be pickled.

    Attributes:
        model: The run's model section.
        checkpoint: Directory with model and processor.
        engine_config: Memory and batch size of the engine.
        max_length: Most tokens of a dialogue.
        use: What the run does with the engine beside sampling.
        engine: Reference of the engine's class; only the worker's process loads it, and vLLM with it.
        lockstep: Whether the engine waits at each step until every sequence has asked for its next turn, so
            that on a CPU a repetition is equal bit for bit (see `serving`).
    """

    model: ModelConfig
    checkpoint: Path
    engine_config: EngineConfig
    max_length: int
    use: EngineUse = EngineUse()  # noqa: RUF009 (frozen)
    engine: str = "posttrain.inference.vllm_engine:VllmEngine"
    lockstep: bool = False


class JobError(RuntimeError):
    """A job raised an exception that cannot be pickled; this one has its type and message."""


class InferenceWorker:
    """Serves a checkpoint, and does many jobs at once.

    None of its methods is a coroutine function, since Ray would then run all of them in one event loop.

    Attributes:
        serving: The engine at work.
        renderer: The renderer of the checkpoint; used in the one thread of `rendering`, but for decoding.
        images: The pixels of the images in the engine's requests.
        rendering: The thread that renders dialogues.
        tools: Threads for what may take long, such as tools: one for each sequence that has a slot.
    """

    serving: Serving
    renderer: Renderer
    images: EngineImages
    rendering: ThreadPoolExecutor
    tools: ThreadPoolExecutor
    _checkpoint: Path | None = None  # whose weights the engine serves, if it is one

    def fetch(self, checkpoint: Path) -> None:
        """Download a model of the hub, unless it is here; a directory is.

        One that lies on the run's home node alone is fetched from there. This is apart from `start`, whose
        time is limited: how long a download takes, nobody knows. One that gets no further raises by itself.
        """
        if not fetch_folder(checkpoint).is_dir():
            snapshot_download(str(checkpoint), allow_patterns=list(FETCHED))

    def start(self, setup: EngineSetup) -> int:
        """Load engine and renderer, and have the engine sample for the first time.

        What an engine compiles at its first steps would be taken for a hang while it is at work.

        Args:
            setup: What the worker is made from.

        Returns:
            The version served.
        """
        self._checkpoint = setup.checkpoint
        setup = replace(setup, checkpoint=fetch_folder(setup.checkpoint))
        renderer = Renderer.from_config(setup.checkpoint, setup.model)
        room = setup.engine_config.image_memory_gb
        nbytes = None if room is None else int(room * 2**30)
        self.serve(renderer, partial(_load, setup, renderer), lockstep=setup.lockstep, image_bytes=nbytes)
        return self._generate(WARM_UP_ANSWERS, WARM_UP_TOKENS, temperature=1.0)

    def serve(
        self,
        renderer: Renderer,
        make_engine: Callable[[], Engine],
        *,
        lockstep: bool,
        image_bytes: int | None = None,
    ) -> None:
        """Set an engine to work, with the threads beside it; return once it is loaded.

        Args:
            renderer: The renderer of the checkpoint that it serves.
            make_engine: Loads it.
            lockstep: Whether steps wait until every sequence has asked for its turn.
            image_bytes: Most bytes of pixels; this engine's part of what pixels may take here if None.
        """
        limits = pixel_limits()
        self.renderer = renderer
        self.images = EngineImages(
            renderer, limits.max_bytes if image_bytes is None else image_bytes, limits.threads
        )
        self._desk = _Desk()
        self.serving = Serving(make_engine, lockstep=lockstep, after_step=self._tell_room)
        self.rendering = ThreadPoolExecutor(1, thread_name_prefix="rendering")
        slots = SLOTS_PER_PLACE * self.serving.engine.capacity
        self.tools = ThreadPoolExecutor(slots, thread_name_prefix="tools")

    def close(self) -> None:
        """Cancel every job, and end the threads; only a worker without a process of its own needs it."""
        self.serving.close()
        self.images.close()
        self.rendering.shutdown()
        self.tools.shutdown()

    def load_weights(self, path: Path, version: int) -> int:
        """Load a checkpoint's weights between two steps; return the version now served."""
        here = fetch_folder(path)

        def load(engine: Engine) -> int:
            engine.load_weights(here, version)
            return engine.version

        served = self.serving.call(load).result()
        self._checkpoint = path
        return served

    def transfer_ranks(self) -> int:
        """Return how many ranks the engine takes in a group that receives weights."""
        return self.serving.engine.transfer_ranks

    def join_transfer(self, group: TransferGroup) -> None:
        """Join a group that receives weights from the learners; see `Engine.join_transfer`."""
        self.serving.call(lambda engine: engine.join_transfer(group)).result()

    def receive_weights(self, manifest: Manifest, version: int, proof: Sequences = ()) -> Taken:
        """Receive weights from the learners between two steps; see `Engine.receive_weights`.

        Args:
            manifest: What will be sent.
            version: The policy version that these weights are.
            proof: Sequences to score with them.
        """
        self._checkpoint = None
        self.serving.call(lambda engine: engine.receive_weights(manifest, version)).result()
        return self._taken(proof)

    def load_adapter(
        self,
        files: "AdapterFiles | ObjectRef[AdapterFiles]",
        base: Path,
        version: int,
        proof: Sequences = (),
    ) -> Taken:
        """Load an adapter between two steps; see `Engine.load_adapter`.

        Args:
            files: The adapter; Ray passes the files themselves.
            base: The checkpoint that it is for. A worker that replaces another may have begun with an older.
            version: The policy version that the adapter is.
            proof: Sequences to score with it.
        """
        assert isinstance(files, AdapterFiles)
        if self._checkpoint != base:
            self.load_weights(base, version)
        with files.on_disk() as path:
            modules = self.serving.call(lambda engine: engine.load_adapter(path, version)).result()
        return replace(self._taken(proof), modules=modules)

    def score(self, trajectories: Sequence[Trajectory]) -> list[list[float]]:
        """Compute the log-probs of all tokens but the first of each sequence under the newest weights."""
        fetch_files(Path(image.ref.path) for each in trajectories for image in each.images)

        def requests() -> list[ScoreRequest]:
            return [
                ScoreRequest(token_ids=each.token_ids, images=engine_images(each.media, self.renderer))
                for each in trajectories
            ]

        asked = self.rendering.submit(requests).result()
        return self.serving.call(lambda engine: engine.score(asked)).result()

    def place(self) -> str:
        """Tell on which node, and on which of its GPUs, the worker lives."""
        return place_of_process()

    def sleep(self) -> None:
        """Give the GPU's memory to others, until `wake`; nothing may be in flight."""
        self.serving.call(lambda engine: engine.sleep()).result()

    def wake(self) -> None:
        """Take the GPU's memory back."""
        self.serving.call(lambda engine: engine.wake()).result()

    def probe(self) -> int:
        """Prove that the engine works; return the version that it serves.

        An idle engine generates a token; that one at work makes steps can be seen in its reports.
        """
        return self._generate(1, 1, temperature=0.0)

    def take(self, jobs: Sequence[tuple[int, Job[Any, object]]]) -> None:
        """Begin jobs, each with its number in the pool; their ends are reported."""
        futures = self.serving.begin([_do(job, self) for _, job in jobs])
        for (ticket, _), future in zip(jobs, futures, strict=True):
            self._desk.running[ticket] = future
            future.add_done_callback(partial(self._desk.put, ticket))

    def cancel(self, ticket: int) -> None:
        """Cancel a job, unless it has ended."""
        if future := self._desk.running.get(ticket):
            future.cancel()

    def report(self, wait: float) -> Report:
        """Report the jobs that have ended; wait for one, or for room, for a limited time.

        Raises:
            Exception: What ended the engine's thread; the worker is of no more use.
        """
        serving, desk = self.serving, self._desk
        with desk.changed:
            desk.changed.wait_for(lambda: desk.ended or desk.room or serving.failure, timeout=wait)
            if serving.failure is not None:
                raise _portable(serving.failure)
            desk.room = False
            desk.told = serving.wanting
            outcomes = [desk.ended.popleft() for _ in range(len(desk.ended))]
        return Report(outcomes, serving.unfinished, serving.wanting, serving.step_seconds)

    def step_seconds(self) -> float:
        """Return how long the engine's present step has taken so far."""
        return self.serving.step_seconds

    def _taken(self, proof: Sequences) -> Taken:
        """Score a proof's sequences with weights that were taken just now."""
        begun = time.monotonic()
        scores = self.score(proof) if proof else []
        return Taken(scores, time.monotonic() - begun)

    def _tell_room(self) -> None:
        """End the wait of a report where the engine got room for more, or has failed."""
        serving, desk = self.serving, self._desk
        step = max(1, serving.engine.capacity // ROOM_PART)
        desk.told = max(desk.told, serving.wanting)
        if serving.failure is not None or serving.wanting <= min(serving.engine.capacity, desk.told) - step:
            with desk.changed:
                desk.told = serving.wanting
                desk.room = True
                desk.changed.notify_all()

    def _generate(self, answers: int, max_tokens: int, temperature: float) -> int:
        """Have an idle engine sample some answers to next to nothing; return the version served."""
        token_ids = [self.renderer.end_token_id]

        def generate(engine: Engine) -> int:
            if engine.busy:
                return engine.version
            for seed in range(answers):
                engine.submit(
                    Request(
                        id=f"sample-{seed}",
                        token_ids=token_ids,
                        max_tokens=max_tokens,
                        temperature=temperature,
                        seed=seed,
                    )
                )
            while engine.busy:
                engine.step()
            return engine.version

        return self.serving.call(generate).result()


class _Desk:
    """Where jobs that have ended lie until they are reported.

    Attributes:
        running: The jobs that have not ended, by number.
        ended: How the others did.
        changed: Guards and announces `ended` and `room`.
        room: Whether the engine has got room since the last report.
        told: Most sequences that have wanted the engine since the last report.
    """

    def __init__(self) -> None:
        self.running: dict[int, Future[Any]] = {}
        self.ended: collections.deque[Outcome] = collections.deque()
        self.changed = threading.Condition()
        self.room = False
        self.told = 0

    def put(self, ticket: int, future: Future[object]) -> None:
        """Lay down a job that has ended, unless it was cancelled."""
        self.running.pop(ticket, None)
        if future.cancelled():
            return
        error = future.exception()
        outcome = (
            Outcome(ticket, future.result()) if error is None else Outcome(ticket, error=_portable(error))
        )
        with self.changed:
            self.ended.append(outcome)
            self.changed.notify_all()


async def _do(job: Job[Any, object], worker: InferenceWorker) -> object:
    """Do a job."""
    return await job(worker)


def _load(setup: EngineSetup, renderer: Renderer) -> Engine:
    """Load the engine of a setup."""
    return resolve(setup.engine, "posttrain.engines", EngineFactory)(
        setup.checkpoint,
        renderer.end_token_id,
        renderer.banned_token_ids,
        max_length=setup.max_length,
        dtype=setup.model.dtype,
        config=setup.engine_config,
        use=setup.use,
    )


def _portable(error: BaseException) -> Exception:
    """Return an exception that survives pickling."""
    try:
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 (our own bytes)
        if isinstance(error, Exception) and type(copy) is type(error):
            return error
    except Exception:  # noqa: S110 (whatever it raises, it cannot be pickled)
        pass
    return JobError(f"{type(error).__name__}: {error}")
