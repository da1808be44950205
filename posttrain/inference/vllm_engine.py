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
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import nn
from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.inputs import MultiModalInput, TokensInput, tokens_input
from vllm.inputs import mm_input as multimodal_input
from vllm.logprobs import FlatLogprobs
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from posttrain.config import EngineConfig
from posttrain.inference.engine import Completion, EngineError, EngineImage, Request, TopTokens
from posttrain.inference.vllm_pixels import PixelsField
from posttrain.models.precision import keep_float32_exact

#: GiB for keys and values on a CPU, unless the configuration says how many.
CPU_KV_CACHE_GB = 1.0


class VllmEngine:
    """One vLLM engine in this process.

    Banned tokens are never sampled, but the reported log-probs are those of the whole distribution at
    temperature 1, as the learner computes them. The two distributions differ by the probability mass of the
    banned tokens, which is negligible in any trained model.

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
    ) -> None:
        """Load a checkpoint as version 0.

        Args:
            checkpoint: A checkpoint's directory, or Hugging Face id.
            end_token_id: The token that ends a turn.
            banned_token_ids: Tokens that are never sampled.
            max_length: Most tokens of a request, sampled ones included.
            dtype: Precision of weights and computation, such as "bfloat16".
            config: Memory and batch size.
        """
        on_cpu = not torch.cuda.is_available()
        if dtype == "float32":
            keep_float32_exact()
        # With an engine core in a process of its own, the order of requests and steps would depend on timing.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if on_cpu:
            torch.compiler.set_stance("force_eager")
        self._engine = LLMEngine.from_engine_args(_arguments(checkpoint, max_length, dtype, config, on_cpu))
        self._on_cpu = on_cpu
        self._end_token_id = end_token_id
        self._bias = dict.fromkeys(banned_token_ids, float("-inf"))
        self._tensor_names = _tensor_names(checkpoint)
        self._submitted: dict[str, Request] = {}
        self._capacity = config.max_num_seqs
        self._version = 0
        self._step_began: float | None = None

    @property
    def version(self) -> int:
        """The policy version of the weights in use."""
        return self._version

    @property
    def capacity(self) -> int:
        """Number of requests that are sampled at the same time."""
        return self._capacity

    @property
    def busy(self) -> bool:
        """Whether requests are in flight."""
        return bool(self._submitted)

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
        parameters = SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            max_tokens=request.max_tokens,
            logprobs=request.top_logprobs,  # in addition to the sampled token's
            flat_logprobs=True,
            logit_bias=self._bias,
            stop_token_ids=[self._end_token_id],
            ignore_eos=True,  # only the end-of-turn token ends a turn
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._engine.add_request(request.id, _prompt(request), parameters)
        self._submitted[request.id] = request

    def step(self) -> list[Completion]:
        """Advance every request by about one token, and return those that are finished.

        Raises:
            EngineError: If vLLM continued other tokens than were submitted, or gave a request up.
        """
        self._step_began = time.monotonic()
        try:
            outputs = [output for output in self._engine.step() if isinstance(output, RequestOutput)]
            return [self._completion(output) for output in outputs if output.finished]
        finally:
            self._step_began = None

    def abort(self, ids: Iterable[str] | None = None) -> None:
        """Drop the requests with these ids, or every request that is in flight."""
        dropped = list(self._submitted if ids is None else ids)
        self._engine.abort_request(dropped)
        for each in dropped:
            self._submitted.pop(each, None)

    def load_weights(self, path: Path, version: int) -> None:
        """Load the weights of another checkpoint of the same model, and clear vLLM's caches.

        Args:
            path: The checkpoint's directory.
            version: The policy version that these weights are.

        Raises:
            EngineError: If requests are in flight, or the checkpoint has other tensors than the model.
        """
        if self.busy:
            raise EngineError(
                f"version {version} cannot be loaded while {len(self._submitted)} requests are in flight:"
                " they would be sampled by two policies"
            )
        names = _tensor_names(path)
        self._tensor_names = self._tensor_names or names
        if names != self._tensor_names or not names:
            raise EngineError(
                f"{path} does not hold the tensors of the model in use; missing or added:"
                f" {', '.join(sorted(names ^ self._tensor_names)[:5]) or 'all'}"
            )
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(path)})
        if self._on_cpu:
            self._engine.apply_model(_repack_head)
        self._engine.reset_mm_cache()
        self._engine.reset_encoder_cache()
        if not self._engine.reset_prefix_cache():
            raise EngineError("vLLM could not drop its prefix cache; it holds what older weights computed")
        self._version = version

    def _completion(self, output: RequestOutput) -> Completion:
        """Check a finished output against its request, and convert it."""
        request = self._submitted.pop(output.request_id)
        sampled = output.outputs[0]
        if output.prompt_token_ids != list(request.token_ids):
            raise EngineError(
                f"request {request.id!r}: vLLM sampled after other tokens than the {len(request.token_ids)}"
                " that were submitted"
            )
        reason, flat = sampled.finish_reason, sampled.logprobs
        if (reason != "stop" and reason != "length") or not isinstance(flat, FlatLogprobs):
            raise EngineError(f"request {request.id!r} ended with {reason!r}; see vLLM's log")
        ids = list(sampled.token_ids)
        if [flat.token_ids[place] for place in flat.start_indices] != ids:
            raise EngineError(f"request {request.id!r}: vLLM's log-probs are not those of the sampled tokens")
        return Completion(
            id=request.id,
            token_ids=ids,
            logprobs=[flat.logprobs[place] for place in flat.start_indices],
            finish_reason=reason,
            versions=[self._version] * len(ids),
            approximate=[False] * len(ids),
            top=_top_tokens(flat, request.top_logprobs) if request.top_logprobs else None,
        )


def _arguments(
    checkpoint: Path, max_length: int, dtype: str, config: EngineConfig, on_cpu: bool
) -> EngineArgs:
    """Translate our settings into vLLM's arguments."""
    # vLLM's default, the memory that is left, would be most of the machine's memory on a CPU.
    kv_cache_gb = CPU_KV_CACHE_GB if on_cpu and config.kv_cache_gb is None else config.kv_cache_gb
    return EngineArgs(
        model=str(checkpoint),
        dtype=dtype,  # pyright: ignore[reportArgumentType]
        max_model_len=max_length,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=max(max_length, 8192),
        enforce_eager=config.enforce_eager or on_cpu,
        kv_cache_memory_bytes=None if kv_cache_gb is None else int(kv_cache_gb * 2**30),
        gpu_memory_utilization=config.gpu_memory_utilization,
        enable_chunked_prefill=not on_cpu,
        enable_prefix_caching=not on_cpu,
        limit_mm_per_prompt={"video": 0},
        mm_processor_cache_gb=0,  # pixels come pre-processed; the renderer caches them
        mm_device_do_normalize=False,  # and normalised
        generation_config="vllm",  # a checkpoint's top_p or top_k would change the distribution
        logprobs_mode="raw_logprobs",
        trust_remote_code=False,
        disable_log_stats=True,
        use_tqdm_on_load=False,
    )


def _prompt(request: Request) -> TokensInput | MultiModalInput:
    """Make vLLM's input of a request, so that its own tokenizer and image processor have nothing to do."""
    ids = list(request.token_ids)
    if not request.images:
        return tokens_input(ids)
    return multimodal_input(
        ids,
        MultiModalKwargsItems({"image": [_item(image) for image in request.images]}),
        {"image": [image.sha256 for image in request.images]},
        {"image": [_placeholders(image) for image in request.images]},
    )


def _item(image: EngineImage) -> MultiModalKwargsItem:
    """Make vLLM's form of an image; its pixels are not copied, so that requests share them."""
    pixels = MultiModalFieldElem(image.pixels, PixelsField(patches=image.patches))
    grid = MultiModalFieldElem(image.grid_thw, MultiModalBatchedField(keep_on_cpu=True))
    return MultiModalKwargsItem({"pixel_values": pixels, "image_grid_thw": grid})


def _top_tokens(logprobs: FlatLogprobs, count: int) -> TopTokens:
    """Read the likeliest tokens of each place, which follow the sampled token in vLLM's flat lists."""
    places = np.array(logprobs.start_indices)[:, None] + np.arange(1, count + 1)
    ids, values = np.array(logprobs.token_ids, np.int32), np.array(logprobs.logprobs, np.float32)
    return TopTokens(ids[places], values[places])


def _placeholders(image: EngineImage) -> PlaceholderRange:
    """Say where an image's placeholders are, in vLLM's form."""
    return PlaceholderRange(offset=image.offset, length=image.num_tokens)


def _repack_head(model: nn.Module) -> None:
    """Pack the output matrix for the CPU's kernel again, which a reload forgets if embeddings are tied."""
    head = model.get_submodule("language_model.lm_head")
    assert isinstance(head, VocabParallelEmbedding)
    head.quant_method.process_weights_after_loading(head)


def _tensor_names(checkpoint: Path) -> set[str]:
    """List the tensors in a checkpoint's safetensors files; none for a Hugging Face id."""
    names: set[str] = set()
    for file in sorted(Path(checkpoint).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names.update(tensors.keys())
    return names
