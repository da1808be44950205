"""Resized bytes as vLLM holds an image or video; they become patches when the vision tower is about to run.

vLLM can normalise bytes itself (`mm_device_do_normalize`), by a product where the processor divides: some of
the 256 bytes become a neighbouring number, and engine and learner would see different pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from vllm.multimodal.inputs import BaseMultiModalField, MultiModalFieldElem, NestedTensors

from posttrain.rendering.pixel_making import ImagePatches, VideoPatches


@dataclass(frozen=True, kw_only=True)
class PixelsField(BaseMultiModalField):
    """Images, or videos, of one step of the engine, each as resized bytes.

    Attributes:
        patches: Makes their patches.
    """

    patches: ImagePatches | VideoPatches

    def build_elems(self, modality: str, key: str, data: NestedTensors) -> Sequence[MultiModalFieldElem]:
        """Return an element for each of several images or videos."""
        return [self._field_factory()(image) for image in data]

    def reduce_data(
        self,
        elems: list[MultiModalFieldElem],
        *,
        device: torch.types.Device = None,
        pin_memory: bool = False,
    ) -> NestedTensors:
        """Return the patches of all of them, made on the device that runs the tower."""
        pixels = [elem.data for elem in elems if isinstance(elem.data, torch.Tensor)]
        return self.patches(pixels, torch.device("cpu" if device is None else device))

    def _reduce_data(self, batch: list[NestedTensors], *, pin_memory: bool) -> NestedTensors:
        """Not used: `reduce_data` knows the device."""
        raise NotImplementedError
