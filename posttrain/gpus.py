"""The GPUs of this machine, as NVIDIA's driver shows them: without torch, so that commands stay quick."""

import os
import subprocess
from dataclasses import dataclass

#: Says which GPUs a process sees; empty hides them all.
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: What the driver calls it.
        memory: Its bytes; None where the driver does not say.
    """

    name: str
    memory: int | None


def visible_gpus() -> list[Gpu]:
    """Return the GPUs that processes started from here would see: the machine's, as far as not hidden."""
    shown = os.environ.get(VISIBLE)
    if shown is not None and not shown.strip():
        return []
    found = _machine_gpus()
    if shown is None:
        return [gpu for _, gpu in found]
    chosen: list[Gpu] = []
    for entry in map(str.strip, shown.split(",")):
        gpu = next((gpu for number, (uuid, gpu) in enumerate(found) if _names(entry, number, uuid)), None)
        if entry.startswith("MIG-") and found:
            gpu = Gpu(f"part of {found[0][1].name}", None)
        if gpu is None:  # as CUDA has it: what follows an entry without a GPU is not looked at
            break
        chosen.append(gpu)
    return chosen


def _names(entry: str, number: int, uuid: str) -> bool:
    """Tell whether an entry of the variable names a GPU, by its number or by the beginning of its UUID."""
    return entry == str(number) or (entry.startswith("GPU-") and uuid.startswith(entry))


def _machine_gpus() -> list[tuple[str, Gpu]]:
    """Return UUID and GPU of each that `nvidia-smi` lists; none where it is not there or fails."""
    query = ["nvidia-smi", "--query-gpu=uuid,memory.total,name", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    gpus: list[tuple[str, Gpu]] = []
    for line in answer.strip().splitlines():
        uuid, mebibytes, name = (part.strip() for part in line.split(",", 2))
        gpus.append((uuid, Gpu(name, int(mebibytes) * 2**20 if mebibytes.isdigit() else None)))
    return gpus
