"""The host's memory: do the processes of rollouts fit it, whatever their episodes show?"""

from pathlib import Path

import psutil

from posttrain.config.document import Key
from posttrain.config.host_fitting import host_misfits, host_rows
from posttrain.config.host_memory import Host
from posttrain.config.memory import Cards
from posttrain.config.run import RunConfig
from posttrain.doctor.machine import memory_bytes
from posttrain.preflight.findings import Examination

SHARED = Path("/dev/shm")  # noqa: S108  (the mount is what is looked at)


def host_here() -> Host:
    """Return what this machine, or its container, has."""
    return Host(
        float(memory_bytes()), float(psutil.disk_usage(str(SHARED)).free) if SHARED.is_dir() else None
    )


def examine_host(look: Examination, settled: RunConfig, named: Cards | None) -> None:
    """Note what processes take in the host's memory; what cannot fit is missing here.

    Args:
        look: Where it is noted.
        settled: The run, as it is on its devices.
        named: The GPUs of another machine, whose memory nobody knows; None for this one.
    """
    elsewhere = named is not None or settled.cluster.address is not None
    host = Host() if elsewhere else host_here()
    look.findings.memory += host_rows(settled, host)
    for index, stage in enumerate(settled.stages):
        for misfit in host_misfits(settled, stage, host):
            inside = misfit.key[:1] == ("cluster",)
            key: Key = misfit.key if inside else ("stages", index, *misfit.key)
            if misfit.certain:
                look.missing(key, misfit.reason, misfit.remedy)
            else:
                look.note(f"{stage.name}: {misfit.reason} → {misfit.remedy}")
