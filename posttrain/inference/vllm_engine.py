"""vLLM as an engine: in process, tokens in and tokens out, the same samples for the same seeds.

Pixels arrive as the learner's own image processor made them, and placeholders already expanded, so vLLM
neither tokenises nor resizes anything: engine and learner cannot see different inputs.

On a CPU three of vLLM's features stay off. Its per-request generators fail on a prefill done in pieces, so
prompts are neither chunked nor continued from the prefix cache (the vision tower still runs once an image).
And `torch.compile` costs 18 s at the first batch, for two small functions of the sampler.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.inputs import MultiModalInput, TokensInput, tokens_input
from vllm.inputs import mm_input as multimodal_input
from vllm.logprobs import FlatLogprobs
from vllm.multimodal.inputs import (
    MultiModalFieldConfig,
    MultiModalKwargsItems,
    PlaceholderRange,
)
from vllm.sampling_params import RequestOutputKind

from posttrain.config import EngineConfig
from posttrain.inference.engine import Completion, EngineError, EngineImage, Request, TopTokens

#: Memory for keys and values on a CPU where the configuration names none.
CPU_KV_CACHE_GB = 1.0


class VllmEngine:
    """One vLLM engine in this process.

    Tokens are sampled from the model's distribution without the banned ones, while the log-probs reported
    are those of the whole distribution at temperature 1, as the learner computes them. The two differ by
    the log of the mass on banned tokens, which is negligible in any trained model.

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
            checkpoint: Directory, or Hugging Face id.
            end_token_id: The token that ends a turn.
            banned_token_ids: Tokens that are never sampled.
            max_length: Most tokens of a request, sampled ones included.
            dtype: Of weights and computation.
            config: Memory and batch size.
        """
        on_cpu = not torch.cuda.is_available()
        # In this process: requests and steps in an order that depends on nothing but the calls.
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
        """How many requests are sampled at the same time."""
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
        """Queue a request.

        Raises:
            EngineError: If its id is in flight already.
        """
        if request.id in self._submitted:
            raise EngineError(f"request {request.id!r} is in flight already; ids must be unique")
        parameters = SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            max_tokens=request.max_tokens,
            logprobs=request.top_logprobs,  # besides that of the sampled token
            flat_logprobs=True,
            logit_bias=self._bias,
            stop_token_ids=[self._end_token_id],
            ignore_eos=True,  # the end-of-turn token alone ends a turn
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._engine.add_request(request.id, _prompt(request), parameters)
        self._submitted[request.id] = request

    def step(self) -> list[Completion]:
        """Advance every request by about a token; return what finished.

        Raises:
            EngineError: If vLLM sampled from other tokens than were submitted, or gave a request up.
        """
        self._step_began = time.monotonic()
        try:
            return [self._completion(output) for output in self._engine.step() if output.finished]
        finally:
            self._step_began = None

    def abort(self) -> None:
        """Drop what is in flight."""
        self._engine.abort_request(list(self._submitted))
        self._submitted.clear()

    def load_weights(self, path: Path, version: int) -> None:
        """Take the weights of a checkpoint of the same model, and forget what the old ones computed.

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

    def _completion(self, output: Any) -> Completion:
        """Check a finished output against its request."""
        request = self._submitted.pop(output.request_id)
        sampled = output.outputs[0]
        if output.prompt_token_ids != list(request.token_ids):
            raise EngineError(
                f"request {request.id!r}: vLLM sampled after other tokens than the {len(request.token_ids)}"
                " that were submitted"
            )
        if sampled.finish_reason not in ("stop", "length") or sampled.logprobs is None:
            raise EngineError(f"request {request.id!r} ended with {sampled.finish_reason!r}; see vLLM's log")
        ids = list(sampled.token_ids)
        flat = sampled.logprobs
        if [flat.token_ids[place] for place in flat.start_indices] != ids:
            raise EngineError(f"request {request.id!r}: vLLM's log-probs are not those of the sampled tokens")
        logprobs = [flat.logprobs[place] for place in flat.start_indices]
        top = _top_tokens(flat, request.top_logprobs) if request.top_logprobs else None
        return Completion(request.id, ids, logprobs, sampled.finish_reason, self._version, top)


def _arguments(
    checkpoint: Path, max_length: int, dtype: str, config: EngineConfig, on_cpu: bool
) -> EngineArgs:
    """Our settings in vLLM's words."""
    # On a CPU "what is left" would be most of the machine's memory.
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
        mm_processor_cache_gb=0,  # pixels come ready-made; the renderer keeps them
        mm_device_do_normalize=False,  # and normalised
        generation_config="vllm",  # a checkpoint's top_p or top_k would change the distribution
        logprobs_mode="raw_logprobs",
        trust_remote_code=False,
        disable_log_stats=True,
        use_tqdm_on_load=False,
    )


def _prompt(request: Request) -> TokensInput | MultiModalInput:
    """A request as vLLM's engine takes it, past its own tokenizer and image processor."""
    ids = list(request.token_ids)
    if not request.images:
        return tokens_input(ids)
    grids = torch.stack([image.grid_thw for image in request.images])
    fields = {
        "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", grids.prod(-1)),
        "image_grid_thw": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
    }
    values: Any = {
        "pixel_values": torch.cat([image.pixel_values for image in request.images]),
        "image_grid_thw": grids,
    }
    return multimodal_input(
        ids,
        MultiModalKwargsItems.from_hf_inputs(values, fields),
        {"image": [image.sha256 for image in request.images]},
        {"image": [_placeholders(image) for image in request.images]},
    )


def _top_tokens(logprobs: FlatLogprobs, count: int) -> TopTokens:
    """The likeliest tokens of each place; the sampled one stands before them."""
    places = np.array(logprobs.start_indices)[:, None] + np.arange(1, count + 1)
    ids, values = np.array(logprobs.token_ids, np.int32), np.array(logprobs.logprobs, np.float32)
    return TopTokens(ids[places], values[places])


def _placeholders(image: EngineImage) -> PlaceholderRange:
    return PlaceholderRange(offset=image.offset, length=image.num_tokens)


def _repack_head(model: Any) -> None:
    """Pack the output matrix for the CPU's kernel again; where embeddings are tied, a reload does not."""
    head = model.language_model.lm_head
    head.quant_method.process_weights_after_loading(head)


def _tensor_names(checkpoint: Path) -> set[str]:
    """Names of the tensors in a checkpoint's safetensors files; empty for a Hugging Face id."""
    names: set[str] = set()
    for file in sorted(Path(checkpoint).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names.update(tensors.keys())
    return names
