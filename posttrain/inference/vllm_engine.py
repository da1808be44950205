"""vLLM as an inference engine: in process, tokens in and tokens out, with a seed for every request.

The same weights and seeds give the same samples on a CPU in float32. On a GPU the sums of a request also
depend, in their last bits, on the requests beside it, unless VLLM_BATCH_INVARIANT=1 is set.

Pixels arrive as the learner's own image processor made them, and placeholders already expanded, so vLLM
neither tokenises nor resizes anything: engine and learner cannot see different inputs.

On a CPU three of vLLM's features are off. Its per-request random generators fail if a prompt is processed in
pieces, so prompts are neither chunked nor continued from the prefix cache (the vision tower still runs once
per image). And `torch.compile` takes 18 s at the first batch, for two small functions of the sampler.
"""

import os
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import torch
from vllm import LLMEngine
from vllm.outputs import RequestOutput

from posttrain.config import EngineConfig
from posttrain.inference.engine import Completion, EngineError, EngineUse, ReadTokens, Request, ScoreRequest
from posttrain.inference.vllm_adapters import Adapter, Adapters
from posttrain.inference.vllm_arguments import cores_divided, engine_arguments
from posttrain.inference.vllm_given import GivenSequences
from posttrain.inference.vllm_inputs import prompt_of, sampling_parameters
from posttrain.inference.vllm_outputs import completion_of
from posttrain.inference.vllm_weights import ModelWeights
from posttrain.inference.weight_transfer import Manifest, TransferGroup
from posttrain.models.precision import keep_float32_exact

#: vLLM's priority of turns, after that of sequences to score.
SAMPLING = 1


@dataclass(frozen=True)
class _Submitted:
    """A request in flight.

    Attributes:
        request: The request.
        version: The version in use when it was submitted.
        adapter: The adapter that it began with, if any; it ends with it too.
    """

    request: Request
    version: int
    adapter: Adapter | None


class VllmEngine:
    """One vLLM engine in this process.

    Banned tokens are never sampled, but the reported log-probs are those of the whole distribution at
    temperature 1, as the learner computes them (but see `EngineUse.tempered`). The two distributions differ
    by the probability mass of the banned tokens, which is negligible in any trained model.

    Example:
        engine = VllmEngine(checkpoint, renderer.end_token_id, renderer.banned_token_ids, max_length=4096,
                            dtype="bfloat16", config=EngineConfig())
    """

    def __init__(
        self,
        checkpoint: Path,
        end_token_id: int,
        banned_token_ids: Sequence[int],
        *,
        max_length: int,
        dtype: str,
        config: EngineConfig,
        use: EngineUse = EngineUse(),  # noqa: B008 (frozen)
    ) -> None:
        """Load a checkpoint as version 0.

        Args:
            checkpoint: A checkpoint's directory, or Hugging Face id.
            end_token_id: The token that ends a turn.
            banned_token_ids: Tokens that are never sampled.
            max_length: Most tokens of a request, sampled ones included.
            dtype: Precision of weights and computation, such as "bfloat16".
            config: Memory, batch size and number of GPUs.
            use: What the run does with the engine beside sampling.
        """
        on_cpu = not torch.cuda.is_available()
        if dtype == "float32":
            keep_float32_exact()
        # With an engine core in a process of its own, the order of requests and steps would depend on timing.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if on_cpu:
            torch.compiler.set_stance("force_eager")
        arguments = engine_arguments(checkpoint, max_length, dtype, config, use, on_cpu=on_cpu)
        with cores_divided(config.tensor_parallel_size if on_cpu else 1):
            self._engine = LLMEngine.from_engine_args(arguments)
        self._engine.collective_rpc("compute_as_its_engine", args=(dtype == "float32",))
        self._engine.collective_rpc("bound_logits")
        self._on_cpu = on_cpu
        self._end_token_id = end_token_id
        self._bias = dict.fromkeys(banned_token_ids, float("-inf"))
        self._weights = ModelWeights(self._engine, checkpoint, use.on_publish)
        self._use = use
        self._adapters = Adapters(self._engine, use.adapters)
        self._submitted: dict[str, _Submitted] = {}
        self._finished: list[Completion] = []  # while sequences were scored
        self._arrivals = count()
        self._given = GivenSequences(self._engine, self._weights, self._adapters, use, self._advance_with)
        self._capacity = config.max_num_seqs
        self._step_began: float | None = None

    @property
    def version(self) -> int:
        """The policy version of the weights in use."""
        newest = self._adapters.newest
        return self._weights.version if newest is None else newest.version

    @property
    def capacity(self) -> int:
        """Number of requests that are sampled at the same time."""
        return self._capacity

    @property
    def busy(self) -> bool:
        """Whether requests are in flight."""
        return bool(self._submitted or self._finished)

    @property
    def step_began(self) -> float | None:
        """`time.monotonic()` at which the step in progress began."""
        return self._step_began

    def submit(self, request: Request) -> None:
        """Add a request to the queue.

        Raises:
            EngineError: If a request with its id is in flight.
        """
        if request.id in self._submitted:
            raise EngineError(f"request {request.id!r} is in flight already; ids must be unique")
        adapter = self._adapters.newest
        self._engine.add_request(
            request.id,
            prompt_of(request, self._weights.cache_salt),
            sampling_parameters(request, self._end_token_id, self._bias),
            arrival_time=next(self._arrivals),
            lora_request=adapter and adapter.request,
            priority=SAMPLING,
        )
        self._submitted[request.id] = _Submitted(request, self.version, adapter)

    def step(self) -> list[Completion]:
        """Advance every request by about one token, and return those that are finished.

        Raises:
            EngineError: If vLLM continued other tokens than were submitted, or gave a request up, or if the
                weights came in part only.
        """
        done, self._finished = self._finished, []
        if self._submitted:
            done += [self._completion(output) for output in self._advance()]
        return done

    def abort(self, ids: Iterable[str] | None = None) -> None:
        """Drop the requests with these ids, or every request that is in flight."""
        dropped = set(self._submitted if ids is None else ids)
        self._engine.abort_request(list(dropped))
        for each in dropped:
            self._submitted.pop(each, None)
        self._finished = [each for each in self._finished if ids is not None and each.id not in dropped]
        self._adapters.unload_idle(self._adapters_in_use())

    def load_weights(self, path: Path, version: int) -> None:
        """Load the weights of another checkpoint of the same model; requests in flight go on with them.

        Args:
            path: The checkpoint's directory.
            version: The policy version that these weights are.

        Raises:
            EngineError: If the checkpoint has other tensors than the model.
        """
        self._leave_adapters(version)
        self._weights.load(path, version)

    @property
    def transfer_ranks(self) -> int:
        """Number of ranks that the engine takes in a group that receives weights."""
        return self._engine.vllm_config.parallel_config.world_size

    def join_transfer(self, group: TransferGroup) -> None:
        """Connect every rank to the learners that will send weights; see `Engine.join_transfer`."""
        self._weights.join(group)

    def receive_weights(self, manifest: Manifest, version: int) -> None:
        """Receive weights from the learners; requests in flight go on with them. See `Engine`."""
        self._leave_adapters(version)
        self._weights.receive(manifest, version)

    def load_adapter(self, path: Path, version: int) -> int:
        """Load a LoRA adapter for all requests submitted from now on; one in flight ends under its own.

        Args:
            path: Directory of an adapter in PEFT's format.
            version: The policy version that it is.

        Returns:
            Number of modules that it changes.

        Raises:
            EngineError: If there is no room for it, or if a part of it would change nothing.
        """
        return self._adapters.load(path, version, self._adapters_in_use())

    def score(self, sequences: Sequence[ScoreRequest]) -> list[list[float]]:
        """Compute the log-probs of given tokens under the newest weights, before anything waiting is served.

        Requests in flight advance beside them where the batch has room; `step` returns those that end.

        Returns:
            For each sequence the log-probs of all its tokens but the first.

        Raises:
            EngineError: If vLLM scored other tokens than were given, or if the weights came in part only.
        """
        return self._given.score(sequences)

    def read(self, sequences: Sequence[ScoreRequest], top: int) -> list[ReadTokens]:
        """Compute what the model says at the places of given tokens; see `Engine.read`.

        Raises:
            EngineError: As in `score`, or if so many tokens cannot be told.
        """
        return self._given.read(sequences, top)

    def sleep(self) -> None:
        """Give the GPU's memory away until `wake`: weights wait in the host's memory, caches are dropped.

        A CPU has but one memory, and nothing happens.

        Raises:
            EngineError: If requests are in flight.
        """
        if self.busy:
            raise EngineError(f"the engine cannot sleep: {len(self._submitted)} requests are in flight")
        if not self._on_cpu:
            self._engine.reset_encoder_cache()
            self._engine.sleep(level=1)  # level 2 would drop the weights

    def wake(self) -> None:
        """Take the GPU's memory back, with the same weights in it."""
        if not self._on_cpu:
            self._engine.wake_up()

    def _advance(self) -> list[RequestOutput]:
        """Make one step of vLLM's, and return what is finished."""
        self._weights.require_whole()
        self._step_began = time.monotonic()
        try:
            outputs = [output for output in self._engine.step() if isinstance(output, RequestOutput)]
            return [output for output in outputs if output.finished]
        finally:
            self._step_began = None

    def _advance_with(self, given: Collection[str]) -> list[RequestOutput]:
        """Make one step, and return what is finished of given sequences; turns wait for `step`."""
        outputs = self._advance()
        self._finished += [self._completion(output) for output in outputs if output.request_id not in given]
        return [output for output in outputs if output.request_id in given]

    def _adapters_in_use(self) -> list[Adapter | None]:
        """List the adapters of requests in flight."""
        return [submitted.adapter for submitted in self._submitted.values()]

    def _leave_adapters(self, version: int) -> None:
        """Unload all adapters, because the model's weights that they are for will be replaced.

        Raises:
            EngineError: If a request in flight uses one.
        """
        if any(self._adapters_in_use()):
            raise EngineError(f"version {version} would replace the weights under adapters in use")
        self._adapters.forget()

    def _completion(self, output: RequestOutput) -> Completion:
        """Convert a finished output, and say what is approximate about it."""
        submitted = self._submitted.pop(output.request_id)
        completion = completion_of(output, submitted.request)
        if submitted.adapter is not None:
            self._adapters.unload_idle(self._adapters_in_use())
            return replace(completion, versions=[submitted.version] * len(completion.versions))
        if self._use.on_publish == "recompute":
            return completion
        # Conservative: a request that had not begun when the weights changed is no exception.
        approximate = [version != submitted.version for version in completion.versions]
        return replace(completion, approximate=approximate)
