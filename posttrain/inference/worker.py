"""The object in each process of a pool: an engine that serves a checkpoint, and does jobs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from huggingface_hub import snapshot_download
from ray import ObjectRef

from posttrain.config import EngineConfig, ModelConfig
from posttrain.inference.adapters import AdapterFiles, AdapterFolder
from posttrain.inference.answers import AnswerSampling, Question, SampledAnswer, sample_answers
from posttrain.inference.engine import Engine, EngineUse, Request, ScoreRequest
from posttrain.inference.images import engine_images
from posttrain.inference.weight_transfer import Manifest, TransferGroup
from posttrain.plugins import resolve
from posttrain.rendering.rendering import Renderer
from posttrain.types import Trajectory

R = TypeVar("R")

#: Files of a model on the hub that renderer and engine read.
FETCHED = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model")
#: Answers, and tokens of each, that an engine samples before its first use: enough for one step that reads
#: prompts and one that continues several of them.
WARM_UP_ANSWERS, WARM_UP_TOKENS = 4, 2


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
    """

    model: ModelConfig
    checkpoint: Path
    engine_config: EngineConfig
    max_length: int
    use: EngineUse = EngineUse()  # noqa: RUF009 (frozen)
    engine: str = "posttrain.inference.vllm_engine:VllmEngine"


class InferenceWorker:
    """Serves a checkpoint, and does one job at a time.

    Attributes:
        engine: The engine.
        renderer: The renderer of the checkpoint.
    """

    engine: Engine
    renderer: Renderer

    def fetch(self, checkpoint: Path) -> None:
        """Download a model of the hub, unless it is here; a directory is.

        This is apart from `start`, whose time is limited: how long a download takes, nobody knows. One that
        gets no further raises by itself.
        """
        if not checkpoint.is_dir():
            snapshot_download(str(checkpoint), allow_patterns=list(FETCHED))

    def start(self, setup: EngineSetup, published: tuple[Path, int] | None) -> int:
        """Load engine and renderer, and have the engine sample for the first time.

        What an engine compiles at its first steps would be taken for a hang while it is at work.

        Args:
            setup: What the worker is made from.
            published: Weights to load before the first use, and their version; None keeps the checkpoint's,
                as version 0.

        Returns:
            The version served.
        """
        self.renderer = Renderer.from_config(setup.checkpoint, setup.model)
        self._adapters = AdapterFolder()
        self.engine = resolve(setup.engine, "posttrain.engines", EngineFactory)(
            setup.checkpoint,
            self.renderer.end_token_id,
            self.renderer.banned_token_ids,
            max_length=setup.max_length,
            dtype=setup.model.dtype,
            config=setup.engine_config,
            use=setup.use,
        )
        if published is not None:
            self.engine.load_weights(*published)
        self._sample(WARM_UP_ANSWERS, WARM_UP_TOKENS, temperature=1.0)
        return self.engine.version

    def load_weights(self, path: Path, version: int) -> int:
        """Load a checkpoint's weights; return the version now served."""
        self.engine.load_weights(path, version)
        return self.engine.version

    def transfer_ranks(self) -> int:
        """Return how many ranks the engine takes in a group that receives weights."""
        return self.engine.transfer_ranks

    def join_transfer(self, group: TransferGroup) -> None:
        """Join a group that receives weights from the learners; see `Engine.join_transfer`."""
        self.engine.join_transfer(group)

    def receive_weights(self, manifest: Manifest, version: int) -> None:
        """Receive weights from the learners as a version; see `Engine.receive_weights`."""
        self.engine.receive_weights(manifest, version)

    def load_adapter(self, files: "AdapterFiles | ObjectRef[AdapterFiles]", version: int) -> int:
        """Load an adapter as a version; see `Engine.load_adapter`. Ray passes the files themselves."""
        assert isinstance(files, AdapterFiles)
        return self.engine.load_adapter(self._adapters.write(files, version), version)

    def score(self, trajectories: "list[Trajectory] | ObjectRef[list[Trajectory]]") -> list[list[float]]:
        """Compute the log-probs of all tokens but the first of each sequence under the newest weights."""
        assert isinstance(trajectories, list)
        requests = [
            ScoreRequest(token_ids=each.token_ids, images=engine_images(each.images, self.renderer))
            for each in trajectories
        ]
        return self.engine.score(requests)

    def probe(self) -> int:
        """Generate one token, to prove that the engine works; return the version that sampled it."""
        return self._sample(1, 1, temperature=0.0)

    def _sample(self, answers: int, max_tokens: int, temperature: float) -> int:
        """Sample some answers to next to nothing; return the version that sampled them."""
        token_ids = [self.renderer.end_token_id]
        for seed in range(answers):
            self.engine.submit(
                Request(
                    id=f"sample-{seed}",
                    token_ids=token_ids,
                    max_tokens=max_tokens,
                    temperature=temperature,
                    seed=seed,
                )
            )
        versions: list[int] = []
        while len(versions) < answers:
            versions += [completion.versions[-1] for completion in self.engine.step()]
        return versions[-1]

    def step_seconds(self) -> float:
        """Return how long the engine's present step has taken so far; may be called while a job runs."""
        began = self.engine.step_began
        return 0.0 if began is None else time.monotonic() - began

    def do(self, job: Callable[..., R]) -> R:
        """Call a job with this worker, and return its result."""
        return job(self)


@dataclass(frozen=True)
class AnswerQuestions:
    """A job: answer questions, without scoring the answers.

    Attributes:
        questions: The questions, with distinct indices.
        sampling: How answers are sampled.
    """

    questions: Sequence[Question]
    sampling: AnswerSampling

    def __call__(self, worker: InferenceWorker) -> list[SampledAnswer]:
        """Return an answer for each question, in their order."""
        return sample_answers(worker.engine, worker.renderer, self.questions, self.sampling)
