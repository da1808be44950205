"""One process of a pool: an engine that serves a checkpoint, and what it is asked to do."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from posttrain.config import EngineConfig, ModelConfig
from posttrain.inference.answers import AnswerSampling, Question, SampledAnswer, sample_answers
from posttrain.inference.engine import Engine, Request
from posttrain.plugins import resolve
from posttrain.rendering.rendering import Renderer

R = TypeVar("R")
W = TypeVar("W", bound="InferenceWorker")


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
    ) -> Engine:
        """Return an engine that serves the checkpoint as version 0."""
        ...


@dataclass(frozen=True, kw_only=True)
class EngineSetup:
    """What every worker of a pool is made from; plain data that each resolves by itself.

    Attributes:
        model: How the model is loaded.
        checkpoint: Directory with model and processor.
        engine_config: Memory and batch size of the engine.
        max_length: Most tokens of a dialogue.
        engine: Reference of the engine's class, which loads vLLM in the worker alone.
    """

    model: ModelConfig
    checkpoint: Path
    engine_config: EngineConfig
    max_length: int
    engine: str = "posttrain.inference.vllm_engine:VllmEngine"


class InferenceWorker:
    """Serves a checkpoint and does what jobs ask of it, one job at a time."""

    engine: Engine
    renderer: Renderer

    def start(self, setup: EngineSetup, published: tuple[Path, int] | None) -> int:
        """Load engine and renderer.

        Args:
            setup: What the worker is made from.
            published: Weights to take before the first use, and their version; else the checkpoint's, as 0.

        Returns:
            The version served.
        """
        self.renderer = Renderer.from_config(setup.checkpoint, setup.model)
        self.engine = resolve(setup.engine, "posttrain.engines", EngineFactory)(
            setup.checkpoint,
            self.renderer.end_token_id,
            self.renderer.banned_token_ids,
            max_length=setup.max_length,
            dtype=setup.model.dtype,
            config=setup.engine_config,
        )
        if published is not None:
            self.engine.load_weights(*published)
        return self.engine.version

    def load_weights(self, path: Path, version: int) -> int:
        """Take a checkpoint's weights; return the version now served."""
        self.engine.load_weights(path, version)
        return self.engine.version

    def probe(self) -> int:
        """Generate one token, the one proof that an engine works; return the version that sampled it."""
        token_ids = [self.renderer.end_token_id]
        self.engine.submit(Request(id="probe", token_ids=token_ids, max_tokens=1, temperature=0.0, seed=0))
        while True:
            for completion in self.engine.step():
                return completion.version

    def step_seconds(self) -> float:
        """Return for how long the engine has been in its present step; may be called while a job runs."""
        began = self.engine.step_began
        return 0.0 if began is None else time.monotonic() - began

    def do(self: W, job: Callable[[W], R]) -> R:
        """Do a job, which is pickled with what it needs, and return its result."""
        return job(self)


@dataclass(frozen=True)
class AnswerQuestions:
    """A job: answer questions, in their order; nothing is scored.

    Attributes:
        questions: With distinct indices.
        sampling: How answers are sampled.
    """

    questions: Sequence[Question]
    sampling: AnswerSampling

    def __call__(self, worker: InferenceWorker) -> list[SampledAnswer]:
        """Answer by the worker's engine."""
        return sample_answers(worker.engine, worker.renderer, self.questions, self.sampling)
