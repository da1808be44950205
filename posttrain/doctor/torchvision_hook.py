"""Lets a CUDA build of torchvision be imported beside a CPU build of torch.

torchvision on PyPI is a CUDA build: beside a CPU torch its compiled operators do not load, and
`import torchvision` fails with "operator torchvision::nms does not exist". The processors of Qwen-VL
need only its pure Python transforms, which work once the two operators' schemas are declared. Its image
reader is compiled as well, and transformers opens paths with it wherever torchvision can be imported: here
Pillow takes its place.

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

#: Pillow's names for the modes of torchvision's `ImageReadMode`.
PILLOW_MODES = {"GRAY": "L", "GRAY_ALPHA": "LA", "RGB": "RGB", "RGB_ALPHA": "RGBA", "RGBA": "RGBA"}

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


def replace_image_reader(io) -> None:
    """Have Pillow read images in the module `torchvision.io`, unless its own reader has loaded."""
    if not io.image._has_image_ops():
        io.decode_image = io.image.decode_image = decode_image
        io.read_image = io.image.read_image = decode_image


def decode_image(input, mode: object = 0, apply_exif_orientation=False):  # noqa: A002  (torchvision's name)
    """Decode an image as torchvision does, into uint8 [channels, height, width] ([frames, …] if it moves).

    Args:
        input: A path, or the encoded bytes as a tensor.
        mode: An `ImageReadMode` or its name: as it is stored, grey or in colours, with or without alpha.
        apply_exif_orientation: Whether to turn the image as its EXIF data say.

    Raises:
        RuntimeError: If the bytes are no image that Pillow reads.
    """
    import io  # noqa: PLC0415

    import torch  # noqa: PLC0415
    from PIL import Image, ImageOps, ImageSequence  # noqa: PLC0415
    from torchvision.transforms.functional import pil_to_tensor  # noqa: PLC0415

    name = mode.upper() if isinstance(mode, str) else getattr(mode, "name", "UNCHANGED")
    source = io.BytesIO(input.numpy().tobytes()) if isinstance(input, torch.Tensor) else str(input)
    try:
        with Image.open(source) as image:
            frames = []
            for frame in ImageSequence.Iterator(image):
                turned = ImageOps.exif_transpose(frame) if apply_exif_orientation else frame
                if turned.mode.startswith("I"):  # 16 bits: convert() would cut off all that is above 255
                    turned = turned.point(lambda value: value / 256).convert("L")
                if turned.mode == "1":
                    turned = turned.convert("L")
                stored = turned.mode if turned.mode in ("L", "LA", "RGB", "RGBA") else None
                wanted = (
                    PILLOW_MODES.get(name) or stored or ("RGBA" if turned.has_transparency_data else "RGB")
                )
                frames.append(pil_to_tensor(turned.convert(wanted)))
                if image.format != "GIF":  # other kinds give their first picture
                    break
    except (OSError, SyntaxError, ValueError) as error:
        raise RuntimeError(f"this is no image that can be decoded: {error}") from error
    return frames[0] if len(frames) == 1 else torch.stack(frames)


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
            if _declared:
                replace_image_reader(module.io)

        spec.loader.exec_module = exec_module
        return spec


def install() -> None:
    """Put the finder first, once; the `.pth` file calls this when Python starts."""
    if not any(isinstance(finder, TorchvisionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionFinder())
