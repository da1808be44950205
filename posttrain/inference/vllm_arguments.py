"""Our settings of an engine in vLLM's words."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm import EngineArgs, envs
from vllm.config.weight_transfer import WeightTransferConfig

from posttrain.config import EngineConfig
from posttrain.inference.engine import EngineUse

#: GiB for keys and values on a CPU, unless the configuration says how many.
CPU_KV_CACHE_GB = 1.0
#: Sequences that can be scored while the engine is full of requests.
SCORING_SLOTS = 4
#: Most likeliest tokens per place that are returned of sampled tokens.
TOP_SAMPLED = 20
#: Which of a CPU's cores each of an engine's processes takes.
BINDING = "VLLM_CPU_OMP_THREADS_BIND"
#: The ranks for which vLLM's LoRA has kernels.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def engine_arguments(
    checkpoint: Path, max_length: int, dtype: str, config: EngineConfig, use: EngineUse, *, on_cpu: bool
) -> EngineArgs:
    """Translate our settings into vLLM's arguments.

    Args:
        checkpoint: A checkpoint's directory, or Hugging Face id.
        max_length: Most tokens of a request, sampled ones included.
        dtype: Precision of weights and computation.
        config: Memory, batch size and number of GPUs.
        use: What the run does with the engine beside sampling.
        on_cpu: Whether there is no GPU.
    """
    # vLLM's default, the memory that is left, would be most of the machine's memory on a CPU.
    kv_cache_gb = CPU_KV_CACHE_GB if on_cpu and config.kv_cache_gb is None else config.kv_cache_gb
    arguments = EngineArgs(
        model=str(checkpoint),
        dtype=dtype,  # pyright: ignore[reportArgumentType]
        max_model_len=max_length + use.tempered,  # see `scoring_prompt`
        max_num_seqs=config.max_num_seqs + SCORING_SLOTS,
        max_num_batched_tokens=max(max_length, 8192),
        enforce_eager=config.enforce_eager or on_cpu,
        kv_cache_memory_bytes=None if kv_cache_gb is None else int(kv_cache_gb * 2**30),
        gpu_memory_utilization=config.gpu_memory_utilization,
        enable_chunked_prefill=not on_cpu,
        # An engine that reads draws nothing at random: a CPU shares prefixes too.
        enable_prefix_caching=not on_cpu or use.reads > 0,
        mm_processor_cache_gb=0,  # pixels come pre-processed; the renderer caches them
        mm_device_do_normalize=False,  # and normalised
        max_logprobs=max(use.reads, TOP_SAMPLED),
        generation_config="vllm",  # a checkpoint's top_p or top_k would change the distribution
        logprobs_mode="processed_logprobs" if use.tempered else "raw_logprobs",
        scheduling_policy="priority",  # sequences to score go first
        async_scheduling=False,  # no step is half done when the weights change
        worker_extension_cls="posttrain.inference.vllm_worker.WorkerExtension",
        enable_sleep_mode=use.sleeps and not on_cpu,
        trust_remote_code=False,
        disable_log_stats=True,
        use_tqdm_on_load=False,
    )
    if config.tensor_parallel_size > 1:
        arguments.tensor_parallel_size = config.tensor_parallel_size
        arguments.distributed_executor_backend = "mp"
    if use.transfer is not None:
        arguments.weight_transfer_config = WeightTransferConfig(backend=use.transfer)
    if use.adapters is not None:
        arguments.enable_lora = True
        arguments.max_lora_rank = next(rank for rank in LORA_RANKS if rank >= use.adapters.rank)
        arguments.max_loras = arguments.max_cpu_loras = use.adapters.resident
        arguments.enable_tower_connector_lora = use.adapters.tower
    return arguments


@contextmanager
def cores_divided(ranks: int) -> Iterator[None]:
    """Divide a CPU's cores among the ranks that an engine starts meanwhile, unless the user has done so.

    vLLM itself divides NUMA nodes, and refuses an engine with more ranks than the machine has of these.
    """
    if ranks == 1 or BINDING in os.environ:
        yield
        return
    envs.disable_envs_cache()  # an engine that this process started before has fixed what vLLM reads
    os.environ[BINDING] = _cores_of_ranks(ranks)
    try:
        yield
    finally:
        del os.environ[BINDING]


def _cores_of_ranks(ranks: int) -> str:
    """Divide this process's cores among the ranks of an engine, in vLLM's form (`0,1|2,3`)."""
    cores = sorted(os.sched_getaffinity(0))
    each = max(1, len(cores) // ranks)
    shares = [[cores[(rank * each + place) % len(cores)] for place in range(each)] for rank in range(ranks)]
    return "|".join(",".join(map(str, share)) for share in shares)
