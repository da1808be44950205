"""What a run needs of the machine: packages that not everybody has, and a folder for its results."""

import importlib.util
from pathlib import Path

from posttrain.config.document import Key
from posttrain.config.packages import PackageUse
from posttrain.preflight.findings import Examination


def examine_machine(look: Examination) -> None:
    """Look for optional packages, and whether the folder of the results can be made."""
    config = look.config
    for package in config.model.packages():
        if config.cluster.num_gpus == 0:
            reason = f"{package.module} runs on GPUs, and cluster.num_gpus is 0"
            look.problem(("model", *package.key), reason, "raise it, or remove the key")
    needed: list[tuple[Key, PackageUse]] = [(("model",), package) for package in config.model.packages()]
    for index, stage in enumerate(config.stages):
        needed += [(("stages", index), package) for package in stage.packages()]
    for section, package in needed:
        if importlib.util.find_spec(package.module) is None:
            remedy = f"{package.remedy}, or remove the key"
            look.problem((*section, *package.key), f"{package.module} is not installed", remedy)
    for number, name in enumerate(config.trackers):
        if name != "console" and importlib.util.find_spec(name) is None:
            remedy = f"pip install {name}, or remove it"
            look.problem(("trackers", number), f"{name} is not installed", remedy)
    folder = Path(config.output_dir).absolute() / config.name
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir():
        look.problem(("output_dir",), f"{existing} is not a folder", "choose another output_dir or name")
