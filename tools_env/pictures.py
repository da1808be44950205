"""Tools that look at the dialogue's images in other ways than a zoom: turn, crop several, mark, measure."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, cast

from PIL import Image, ImageDraw, ImageFont

from posttrain.files.strict_json import Json
from posttrain.media.images import ImageError, open_image
from posttrain.types import Box, Frame, ImageRef, ToolSpec
from tools_env.sdk import Arguments, ToolError, ToolResult, as_result, schema_from_hints, tool
from tools_env.shown import MAX_IMAGES
from tools_env.zoom import FRAME_TEXTS, ImageZoomIn

#: Most boxes, and most points, of one drawing.
MAX_MARKS = 50

ImageIndex = Annotated[int, "Which image, counted from 0."]
Colour = Literal["red", "green", "blue", "yellow", "black", "white"]


def picked(images: Sequence[ImageRef], img_idx: int) -> Image.Image:
    """Open the image that a call names.

    Raises:
        ToolError: If there is none, or it cannot be opened.
    """
    if not 0 <= img_idx < len(images):
        raise ToolError(f"img_idx {img_idx} does not exist; there are {len(images)} images, from 0")
    try:
        return open_image(images[img_idx].path)
    except ImageError as error:
        raise ToolError(f"image {img_idx} cannot be opened") from error


@tool
def image_rotate_tool(
    img_idx: ImageIndex, degrees: Annotated[float, "How far, clockwise."], images: list[ImageRef]
) -> ToolResult:
    """Turn an image clockwise, such as a page that was photographed sideways."""
    image, turn = picked(images, img_idx), degrees % 360
    right = {90: Image.Transpose.ROTATE_270, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_90}
    if turn in right:
        turned = image.transpose(right[int(turn)])
    else:
        turned = image.rotate(-turn, Image.Resampling.BICUBIC, expand=True, fillcolor="white")
    return ToolResult(f"Image {len(images)}", (turned,))


@tool
def image_flip_tool(
    img_idx: ImageIndex,
    direction: Annotated[
        Literal["horizontal", "vertical"], "Left and right, or top and bottom, change places."
    ],
    images: list[ImageRef],
) -> ToolResult:
    """Mirror an image, such as a text that is seen in a mirror."""
    how = Image.Transpose.FLIP_LEFT_RIGHT if direction == "horizontal" else Image.Transpose.FLIP_TOP_BOTTOM
    return ToolResult(f"Image {len(images)}", (picked(images, img_idx).transpose(how),))


class _FramedTool:
    """A tool whose coordinates are in a frame; `use` is its function, and its docstring what the model reads.

    Args:
        frame: `norm_1000` (Qwen2-VL and Qwen3-VL) or `pixel_original`.
    """

    name: str
    use: Callable[..., Any]

    def __init__(self, frame: Frame = "norm_1000") -> None:
        if frame not in FRAME_TEXTS:
            raise ValueError(f"frame {frame!r} is none of {', '.join(FRAME_TEXTS)}")
        self.frame: Frame = frame
        parameters = _filled(schema_from_hints(type(self).use), FRAME_TEXTS[frame])
        description = (type(self).use.__doc__ or "").partition("\n")[0]
        self.spec = ToolSpec(self.name, description, cast("dict[str, Any]", parameters))

    def __call__(self, arguments: Arguments, images: list[ImageRef]) -> ToolResult:
        """Serve a call."""
        return as_result(self.use(**arguments, images=images))

    def place(self, point: Sequence[float], size: tuple[int, int], what: str) -> tuple[float, float]:
        """Return a point in pixels of an image.

        Raises:
            ToolError: If it is none, or outside.
        """
        if len(point) != 2 or not all(_is_number(each) for each in point):
            raise ToolError(f"{what} {point} is no [x, y]")
        x, y = point
        box = Box(x, y, x, y, self.frame).to("pixel_original", original=size)
        if not (0 <= box.x1 <= size[0] and 0 <= box.y1 <= size[1]):
            raise ToolError(f"{what} {point} lies outside the image; it is {FRAME_TEXTS[self.frame]}")
        return min(box.x1, size[0] - 1), min(box.y1, size[1] - 1)

    def corners(self, box: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return a box in pixels of an image.

        Raises:
            ToolError: If it is none, empty or outside.
        """
        if len(box) != 4:
            raise ToolError(f"box {box} is no [x1, y1, x2, y2]")
        (x1, y1), (x2, y2) = (self.place(part, size, "corner") for part in (box[:2], box[2:]))
        if x1 >= x2 or y1 >= y2:
            raise ToolError(f"box {box} is empty or reversed; x1 < x2 and y1 < y2 are needed")
        return x1, y1, x2, y2


class ImageCrops(_FramedTool):
    """Several crops at once, to be compared.

    Example:
        ImageCrops()({"img_idx": 0, "boxes": [[0, 0, 500, 500], [500, 0, 1000, 500]]}, images)
    """

    name = "image_crops_tool"

    def __init__(self, frame: Frame = "norm_1000", min_side: int = 32) -> None:
        """Choose the coordinates' frame.

        Args:
            frame: `norm_1000` or `pixel_original`.
            min_side: Least width and height of a crop, in pixels of the file.
        """
        super().__init__(frame)
        self._zoom = ImageZoomIn(frame, min_side)

    def use(
        self,
        img_idx: ImageIndex,
        boxes: Annotated[list[list[float]], "Up to four regions, each [x1, y1, x2, y2], {frame}."],
        images: list[ImageRef],
    ) -> ToolResult:
        """Zoom in on several regions of an image at once, to compare them."""
        if not 1 <= len(boxes) <= MAX_IMAGES:
            raise ToolError(f"give 1 to {MAX_IMAGES} boxes, not {len(boxes)}")
        size = picked(images, img_idx).size
        for box in boxes:
            self.corners(box, size)
        calls = [{"bbox_2d": box, "label": "", "img_idx": img_idx} for box in boxes]
        crops = [image for call in calls for image in self._zoom(call, images).images]
        numbers = ", ".join(f"Image {len(images) + i}" for i in range(len(crops)))
        return ToolResult(numbers, crops)


class ImageDrawing(_FramedTool):
    """Boxes and points on a copy of an image, numbered, to point at things and to count them.

    Example:
        ImageDrawing()({"img_idx": 0, "points": [[120, 300], [480, 310]]}, images)
    """

    name = "image_draw_tool"

    def use(
        self,
        img_idx: ImageIndex,
        images: list[ImageRef],
        boxes: Annotated[list[list[float]], "Boxes, each [x1, y1, x2, y2], {frame}."] = [],  # noqa: B006
        points: Annotated[list[list[float]], "Points, each [x, y], {frame}."] = [],  # noqa: B006
        colour: Annotated[Colour, "Of what is drawn."] = "red",
    ) -> ToolResult:
        """Draw numbered boxes and points on a copy of an image, to mark or count things."""
        if not boxes and not points:
            raise ToolError("give boxes or points")
        if max(len(boxes), len(points)) > MAX_MARKS:
            raise ToolError(f"at most {MAX_MARKS} boxes and {MAX_MARKS} points are drawn")
        image = picked(images, img_idx)
        pen, width = ImageDraw.Draw(image), max(2, round(max(image.size) / 200))
        font = ImageFont.load_default(max(12, round(max(image.size) / 40)))
        for number, box in enumerate(boxes, 1):
            corners = self.corners(box, image.size)
            pen.rectangle(corners, outline=colour, width=width)
            pen.text((corners[0] + width + 1, corners[1] + width), str(number), colour, font)
        for number, point in enumerate(points, 1):
            x, y = self.place(point, image.size, "point")
            pen.ellipse((x - 2 * width, y - 2 * width, x + 2 * width, y + 2 * width), fill=colour)
            pen.text((x + 3 * width, y - width), str(number), colour, font)
        return ToolResult(f"Image {len(images)}", (image,))


class ImageMeasure(_FramedTool):
    """Exact figures of an image: its size, and colours.

    Example:
        ImageMeasure()({"img_idx": 0, "points": [[500, 500]]}, images)
    """

    name = "image_measure_tool"

    def use(
        self,
        img_idx: ImageIndex,
        images: list[ImageRef],
        points: Annotated[list[list[float]], "Where to read the colour, each [x, y], {frame}."] = [],  # noqa: B006
    ) -> str:
        """Tell an image's width and height in pixels, and its colour at points."""
        if len(points) > MAX_MARKS:
            raise ToolError(f"at most {MAX_MARKS} points are read")
        image = picked(images, img_idx)
        lines = [f"{image.width} × {image.height} pixels"]
        for point in points:
            x, y = self.place(point, image.size, "point")
            colour = image.getpixel((math.floor(x), math.floor(y)))
            assert isinstance(colour, tuple)
            red, green, blue = colour[:3]
            lines.append(f"{point}: rgb({red}, {green}, {blue}), #{red:02x}{green:02x}{blue:02x}")
        return "\n".join(lines)


def _is_number(value: object) -> bool:
    """Tell whether a number is one that a place can have."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _filled(schema: Json, frame: str) -> Json:
    """Write the frame into the descriptions of a schema."""
    if isinstance(schema, str):
        return schema.replace("{frame}", frame)
    if isinstance(schema, list):
        return [_filled(each, frame) for each in schema]
    if isinstance(schema, dict):
        return {key: _filled(value, frame) for key, value in schema.items()}
    return schema
