"""Boxes that travel with their frame."""

import math
from dataclasses import dataclass
from typing import Literal

Frame = Literal["pixel_original", "pixel_resized", "norm_1000"]


@dataclass(frozen=True)
class Box:
    """An axis-aligned box that travels with its frame (the one coordinate contract).

    Attributes:
        x1, y1, x2, y2: Corners, x to the right and y down, in units of `frame`.
        frame: `pixel_original` (the file's pixels), `pixel_resized` (the pixels the processor
            shows the model) or `norm_1000` (0–1000 over width and height).

    Example:
        Box(100, 200, 300, 400, "norm_1000").to("pixel_original", original=(512, 512))
    """

    x1: float
    y1: float
    x2: float
    y2: float
    frame: Frame

    def to(
        self,
        frame: Frame,
        *,
        original: tuple[int, int],
        resized: tuple[int, int] | None = None,
    ) -> "Box":
        """Convert the box to another frame.

        Args:
            frame: The frame wanted.
            original: (width, height) of the image file, in pixels.
            resized: (width, height) after the processor's resize; needed for `pixel_resized`.

        Raises:
            ValueError: If a corner is not finite, or `resized` is needed and missing.
        """
        if not all(math.isfinite(v) for v in (self.x1, self.y1, self.x2, self.y2)):
            raise ValueError(f"box {self} has a corner that is not a finite number")
        sizes = {"norm_1000": (1000, 1000), "pixel_original": original, "pixel_resized": resized}
        source, target = sizes[self.frame], sizes[frame]
        if source is None or target is None:
            raise ValueError("converting to or from pixel_resized needs the resized size")
        scale_x, scale_y = target[0] / source[0], target[1] / source[1]
        return Box(self.x1 * scale_x, self.y1 * scale_y, self.x2 * scale_x, self.y2 * scale_y, frame)
