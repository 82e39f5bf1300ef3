"""Which formats each tool can write, as far as a plan chooses among them."""

from __future__ import annotations

from collections.abc import Sequence

from studfinder.errors import StudfinderError, unknown
from studfinder.quantizers.formats import PLAN_FORMATS
from studfinder.records import UNTOUCHED

_INT4 = ("int4-g128", "int4-g64", "int4-g32", "int4-g128-zero", "int4-g64-zero", "int4-g32-zero")
_INT8 = ("int8-g128", "int8-g64", "int8-g32")
CANDIDATES: dict[str, tuple[str, ...]] = {
    "llm-compressor": (*_INT4, "mxfp4", "nvfp4", "fp8", "int8-channel", UNTOUCHED),
    "gptqmodel": (*_INT4, *_INT8, UNTOUCHED),
    "auto-round": (*_INT4, "mxfp4", "nvfp4", *_INT8, UNTOUCHED),
    "torchao": (*_INT4, "int8-channel", "fp8", UNTOUCHED),
    "modelopt": ("int4-g128", "int4-g64", "int4-g32", "mxfp4", "nvfp4", "fp8", "int8-channel", UNTOUCHED),
    "llama.cpp": ("int4-g32", "int4-g32-float", "int5-g32", "int5-g32-float", "mxfp4", "int8-g32", UNTOUCHED),
    "mlx": ("int4-g128-float", "int4-g64-float", "int4-g32-float", "mxfp4", "nvfp4", "int8-g64-float", UNTOUCHED),
    "bitsandbytes": ("int4-g64", UNTOUCHED),
}
"""By tool: what its writer takes and an engine runs. Of llama.cpp Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0, whose true bits are
these; its K types have no name here. Of bitsandbytes the blocks of NF4."""


def formats_for(tool: str, asked: Sequence[str]) -> tuple[str, ...]:
    """The formats to choose from for a tool ("" for our own quantize): those that were asked for and that it takes.

    Raises:
        StudfinderError: there is no such tool, or it takes none of what was asked for.
    """
    if tool not in ("", *CANDIDATES):
        raise unknown("there is no tool", tool, CANDIDATES)
    able = CANDIDATES[tool] if tool else tuple(asked) or PLAN_FORMATS
    if not asked or not tool:
        return able
    both = tuple(name for name in asked if name in able)
    if not both:
        raise StudfinderError(f"{tool} takes none of {', '.join(asked)}", expected="some of " + ", ".join(able))
    return both
