"""Which formats each tool can write, as far as a plan chooses among them."""

from __future__ import annotations

from collections.abc import Sequence

from studfinder.errors import StudfinderError, unknown
from studfinder.quantizers.formats import FORMATS, LEFT

_INT4 = ("int4-g128", "int4-g64", "int4-g32", "int4-g128-zero", "int4-g64-zero", "int4-g32-zero")
TOOLS: dict[str, tuple[str, ...]] = {
    "llm-compressor": (*_INT4, "mxfp4", "nvfp4", "fp8", "int8-channel", LEFT),
    "gptqmodel": (*_INT4, "int8-g128", "int8-g64", "int8-g32", LEFT),
    "auto-round": (*_INT4, "mxfp4", "nvfp4", "int8-g128", "int8-g64", "int8-channel", LEFT),
    "torchao": ("int4-g128-zero", "int4-g64-zero", "int4-g32-zero", "int8-channel", "fp8", LEFT),
    "modelopt": ("int4-g128", "mxfp4", "nvfp4", "fp8", "int8-channel", LEFT),
    "llama.cpp": ("int4-g32-float16", "int8-g32-float16", LEFT),
    "mlx": ("int4-g128-float", "int4-g64-float", "int4-g32-float", "mxfp4", "nvfp4", "int8-g64-float", LEFT),
}
"""By tool. Of llama.cpp Q4_0 and Q8_0."""


def formats_for(tool: str, asked: Sequence[str]) -> tuple[str, ...]:
    """The formats to choose from for a tool ("" for our own quantize): those that were asked for and that it takes.

    Raises:
        StudfinderError: there is no such tool, or it takes none of what was asked for.
    """
    if tool and tool not in TOOLS:
        raise unknown("there is no tool", tool, TOOLS)
    able = TOOLS[tool] if tool else tuple(asked) or FORMATS
    if not asked or not tool:
        return able
    both = tuple(name for name in asked if name in able)
    if not both:
        raise StudfinderError(f"{tool} takes none of {', '.join(asked)}", expected="some of " + ", ".join(able))
    return both
