"""Lets a CUDA build of torchvision be imported beside a CPU build of torch.

torchvision on PyPI is a CUDA build: beside a CPU torch its compiled operators do not load, and
`import torchvision` fails with "operator torchvision::nms does not exist". The processors of Qwen-VL
need only its pure Python transforms, which work once the two operators' schemas are declared.

`posttrain doctor --fix` copies this file into the environment's site-packages, where a `.pth` file
installs the finder in every process (Ray's workers and vLLM's among them). So it stands alone and
starts in under a millisecond: it imports only what Python has loaded anyway, torch comes when
torchvision does, and nothing is declared where torchvision's own operators load.
"""

import os
import sys

#: The operators that torchvision looks up by name while it is imported.
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

#: Keeps the declared library: its schemas go when it does.
_declared: list[object] = []


def operators_load(package: str) -> bool:
    """Whether the compiled operators of the torchvision in directory `package` load into this torch.

    It is torchvision's own test (torchvision/extension.py); loading a library twice is harmless.
    """
    import torch  # noqa: PLC0415  (a process without torchvision must not pay for torch)

    for name in os.listdir(package):  # noqa: PTH208  (pathlib would be half of every process's start)
        if name.startswith("_C") and name.endswith((".so", ".pyd")):
            try:
                torch.ops.load_library(f"{package}/{name}")
            except (ImportError, OSError):
                continue
            return True
    return False


def declare_operators(package: str) -> None:
    """Declare the operators' schemas once, unless torchvision's own operators load."""
    import torch  # noqa: PLC0415

    if not _declared and not operators_load(package):
        library = torch.library.Library("torchvision", "DEF")
        for schema in SCHEMAS:
            library.define(schema)
        _declared.append(library)


class TorchvisionFinder:
    """A meta path finder that declares the operators just before torchvision's own code runs.

    Looking for torchvision without importing it (`importlib.util.find_spec`) does nothing.
    """

    def find_spec(self, name, path=None, target=None):
        """The spec of torchvision with a prepared loader; None for every other module."""
        if name != "torchvision":
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in others if spec is not None), None)
        if spec is None or spec.loader is None or not spec.submodule_search_locations:
            return spec
        package, execute = spec.submodule_search_locations[0], spec.loader.exec_module

        def exec_module(module) -> None:
            declare_operators(package)
            execute(module)

        spec.loader.exec_module = exec_module
        return spec


def install() -> None:
    """Put the finder first, once; the `.pth` file calls this when Python starts."""
    if not any(isinstance(finder, TorchvisionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionFinder())
