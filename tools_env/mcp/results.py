"""A server's results as they come on the wire, made into what a tool returns; nothing of them is trusted."""

import base64
import binascii
import json

from PIL import Image

from posttrain.failures import WorldError
from posttrain.files.strict_json import Json, JsonObject
from posttrain.media.images import ImageError, ImageSizeError, decode_image
from tools_env.arguments import misfit
from tools_env.sdk import ToolError, ToolResult
from tools_env.shown import MAX_IMAGES, MAX_TEXT, images_cut

#: Most pixels of an image that a server returns: a screen of 4096 × 4096.
MAX_IMAGE_PIXELS = 1 << 24


def tool_result(wire: JsonObject, output_schema: Json = None) -> ToolResult:
    """Return what a `CallToolResult` shows the model: its images, and its texts in their order.

    Of structured content the JSON is shown where there is no text. Sounds are left out, links and binary
    resources are named; images among them are shown.

    Args:
        wire: The result as JSON.
        output_schema: What the tool promises of its structured content.

    Raises:
        ToolError: If the result says that the call failed.
        ImageSizeError: If an image is too large, or of a shape that cannot be shown.
        WorldError: If it is no such result, an image is none, or structured content is not what was promised.
    """
    content, structured = wire.get("content", []), wire.get("structuredContent")
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise WorldError(f"returned no list of content: {str(content)[:100]}")
    texts: list[str] = []
    pictures: list[str] = []
    for block in content:
        assert isinstance(block, dict)
        text, picture = _read(block)
        texts += [text] if text else []
        pictures += [picture] if picture else []
    if structured is not None and not texts:
        texts = [json.dumps(structured, ensure_ascii=False)]
    said = "\n".join(texts)
    if wire.get("isError"):
        raise ToolError(said.strip() or "the call failed")
    _check_structured(structured, output_schema)
    images = [_image(data) for data in pictures[:MAX_IMAGES]]
    return ToolResult(images_cut(said, len(pictures) - len(images)), images)


def _read(block: JsonObject) -> tuple[str, str]:
    """Return the text of a block, and the image in base64; "" for either that there is not."""
    match block.get("type"):
        case "text":
            return str(block.get("text", "")), ""
        case "image":
            return "", str(block.get("data", "")) or "-"
        case "resource":
            return _read_resource(block.get("resource"))
        case "resource_link":
            return f"[resource {block.get('uri')}: {block.get('title') or block.get('name')}]"[:MAX_TEXT], ""
        case kind:
            return f"[{str(kind)[:40]} is left out]", ""


def _read_resource(resource: Json) -> tuple[str, str]:
    if not isinstance(resource, dict):
        raise WorldError("returned a resource without contents")
    if isinstance(text := resource.get("text"), str):
        return text, ""
    blob, kind = str(resource.get("blob", "")), str(resource.get("mimeType", ""))
    if kind.startswith("image/"):
        return "", blob or "-"
    return f"[resource {resource.get('uri')}: {len(blob) * 3 // 4:,} bytes of {kind or 'data'}]"[
        :MAX_TEXT
    ], ""


def _image(data: str) -> Image.Image:
    try:
        content = base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise WorldError(f"returned an image that is no base64: {error}") from error
    try:
        return decode_image(content, MAX_IMAGE_PIXELS)
    except ImageSizeError:
        raise
    except ImageError as error:
        raise WorldError(f"returned an {error}") from error


def _check_structured(structured: Json, schema: Json) -> None:
    """Refuse structured content that is not what the tool promises."""
    if structured is None or not isinstance(schema, dict):
        return
    try:
        wrong = misfit(schema, structured)
    except Exception as error:  # whatever a stranger's schema leads to
        raise WorldError(f"promises what cannot be checked: {type(error).__name__}: {error}") from error
    if wrong is not None:
        raise WorldError(f"returned structured content that it does not promise{wrong[0]}: {wrong[1]}")
