"""Whether the processes of a run's rollouts fit the host's memory, and what to do where they do not."""

import math
from collections.abc import Iterator

from posttrain.config.fitting import Misfit, amount, model_load
from posttrain.config.host_memory import (
    GIB,
    OBJECT_STORE,
    SHARE_OF_PIXELS,
    Host,
    HostProcess,
    RolloutLoad,
    host_processes,
    image_room,
    rollout_load,
    tower_of,
)
from posttrain.config.memory import ModelLoad
from posttrain.config.run import RunConfig
from posttrain.config.shapes import model_shape
from posttrain.config.stage import StageConfig

#: Parts of a process that do not depend on how long episodes get or how many images they show.
_CERTAIN = ("process", "weights and cache", "training")


def host_rows(config: RunConfig, host: Host) -> list[tuple[str, str]]:
    """Estimate what the processes of a run's rollouts hold in the host's memory.

    Returns:
        Rows of (process, memory), for a table.
    """
    model = _model(config)
    rows: list[tuple[str, str]] = []
    for stage in config.stages:
        tower = tower_of(config.model, None if model is None else model.shape)
        load = rollout_load(config, stage, tower)
        processes = host_processes(config, stage, model, host)
        if load is None or not processes:
            continue
        rows.append((f"{stage.shared_name}: host memory", f"{amount(_total(processes))} in all"))
        if load.token_bytes:
            rows[-1] = (rows[-1][0], f"{rows[-1][1]}; {_pixels(load)}")
        for each in processes:
            name = each.name if each.count == 1 else f"each of {each.count} {each.name}s"
            parts = ", ".join(f"{part} {amount(size)}" for part, size in each.parts.items())
            rows.append((f"{stage.shared_name}: {name}", f"{amount(each.bytes)}: {parts}"))
    return [*dict.fromkeys(rows)]


def host_misfits(config: RunConfig, stage: StageConfig, host: Host) -> Iterator[Misfit]:
    """Yield why the processes of a stage do not fit the host, or why its engines may have to wait."""
    model = _model(config)
    processes = host_processes(config, stage, model, host)
    load = rollout_load(config, stage, tower_of(config.model, None if model is None else model.shape))
    if load is None or not processes:
        return
    total, certain = _total(processes), _total(processes, only=_CERTAIN)
    if host.memory is not None and total > host.memory:
        largest = sorted(processes, key=lambda each: each.count * each.bytes, reverse=True)[:2]
        named = " and ".join(f"{each.count} × {each.name} {amount(each.bytes)}" for each in largest)
        yield Misfit(
            (),
            f"its processes take {amount(total)} of the host's memory ({named}), and there are"
            f" {amount(host.memory)}",
            _remedy(processes, load),
            certain > host.memory,
        )
    yield from _waiting(stage, load, host)
    yield from _sent(config, processes, host)


def _waiting(stage: StageConfig, load: RolloutLoad, host: Host) -> Iterator[Misfit]:
    """Yield why fewer sequences than an engine samples at once find room for their images."""
    rollout = stage.episodes
    if rollout is None or host.memory is None or not load.sequence_pixels:
        return
    room = image_room(rollout.engine, host.memory, stage.engines)
    wanted = min(load.sequences, rollout.engine.max_num_seqs)
    fit = max(1, int(room / load.sequence_pixels))
    if fit < wanted:
        enough = math.ceil(wanted * load.sequence_pixels / GIB)
        yield Misfit(
            ("rollout", "engine"),
            f"an engine has {amount(room)} for the pixels of {fit} sequences as long as they may be"
            f" ({load.image_tokens:,} image tokens, {amount(load.sequence_pixels)} each), and samples"
            f" {wanted} at once: others may wait",
            f"set image_memory_gb: {enough}, or lower model.max_pixels or max_num_seqs",
            False,
        )


def _sent(config: RunConfig, processes: list[HostProcess], host: Host) -> Iterator[Misfit]:
    """Yield why a batch does not fit the object store, or this not the shared memory."""
    store, key = config.cluster.object_store_mb * 2**20, ("cluster", "object_store_mb")
    sent = next((each.bytes for each in processes if each.name == OBJECT_STORE), 0.0)
    if sent > store and config.cluster.address is None:
        reason = f"a batch on its way takes {amount(sent)}, and what exceeds {amount(store)} goes by the disk"
        yield Misfit(key, reason, f"raise it to {math.ceil(sent / 2**20)}", False)
    if host.shared is not None and store > host.shared:
        reason = f"{amount(store)} are more than the {amount(host.shared)} that are free in /dev/shm"
        yield Misfit(key, reason, "lower it, or enlarge /dev/shm (docker run --shm-size)", False)


def _remedy(processes: list[HostProcess], load: RolloutLoad) -> str:
    """Name the settings that lower the largest part of all processes."""
    sizes: dict[str, float] = {}
    for each in processes:
        for part, size in each.parts.items():
            sizes[part] = sizes.get(part, 0.0) + each.count * size
    largest = max(sizes, key=lambda part: sizes[part])
    if largest in ("pixels", "decoding"):
        return "lower model.max_pixels, rollout.engine.max_num_seqs or rollout.engine.image_memory_gb"
    if largest in _CERTAIN:
        return "lower rollout.actors or num_workers, or use a larger machine"
    fewer = "rollout.max_staleness, " if load.steps > 1 else ""
    return f"lower {fewer}rollout.max_length or prompts_per_step, or use a larger machine"


def _pixels(load: RolloutLoad) -> str:
    """Write the arithmetic of an engine's pixels."""
    return (
        f"an engine's {load.sequences} open sequences × {load.image_tokens:,} image tokens ×"
        f" {load.token_bytes:,} bytes = {amount(load.pixels)} of pixels, within its room"
        f" (rollout.engine.image_memory_gb; else {SHARE_OF_PIXELS:.1%} of the memory by engines)"
    )


def _total(processes: list[HostProcess], only: tuple[str, ...] = ()) -> float:
    return sum(
        each.count * size
        for each in processes
        for part, size in each.parts.items()
        if not only or part in only
    )


def _model(config: RunConfig) -> ModelLoad | None:
    shape = model_shape(config.model)
    return None if shape is None else model_load(config.model, shape)
