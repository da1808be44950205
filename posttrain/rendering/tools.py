"""What the model is told about the tools of a sample."""

import functools

from posttrain.plugins import PluginError, is_declared_name, resolve
from posttrain.types import Sample, ToolSpec


def tool_specs(sample: Sample) -> list[ToolSpec]:
    """Return the specification of each tool of a sample; tools given by name are looked up.

    Raises:
        PluginError: If a tool cannot be found.
    """
    return [tool if isinstance(tool, ToolSpec) else declared_spec(tool) for tool in sample.tools]


@functools.cache
def declared_spec(name: str) -> ToolSpec:
    """Return the specification of an installed tool, which is declared as an object or as its class.

    Rows of datasets name tools, so only declared names are followed, never a file or a module.

    Raises:
        PluginError: If there is no such tool.
    """
    if not is_declared_name(name):
        raise PluginError(f"{name!r} is not the name of an installed tool")
    found = resolve(name, "posttrain.tools", object)
    spec = getattr(found() if isinstance(found, type) else found, "spec", None)
    if not isinstance(spec, ToolSpec):
        raise PluginError(f"{name!r} is no tool: it has no `spec` that is a ToolSpec")
    return spec
