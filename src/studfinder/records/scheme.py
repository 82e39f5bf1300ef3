"""A scheme says how the numbers of a matrix are stored: element x block x scale x zero point, as one small record; and
a format is a scheme with what becomes of the matrix's inputs. Both have a name of one word, which is read back.

    format:  WEIGHTS, WEIGHTS-keepN% (that share of the numbers keeps its 16 bits), each with +INPUTS or without, e.g.
             int4-g64-zero, int4-g64-keep0.05%, fp8+fp8, int8-channel+int8; 16 is a matrix left alone
    WEIGHTS: a name of SCHEMES, or ELEMENT-BLOCK with more behind it, in this order, where it is not the usual:
             int2 to int8, fp8, fp4 - channel, tensor, g64 (inputs that share a scale), 128x128 (tiles)
             - zero (an integer zero point), float (a float minimum), narrow
             - float32, float16, e8m0, e4m3 (what scales are stored in; bfloat16 unless said)
             - rest (a smaller last block)
    INPUTS:  rounded as they come: int2 to int8 or fp8 by token, fp8-tensor, fp8-g128, mxfp4, nvfp4
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from studfinder.errors import StudfinderError
from studfinder.records.config import Config

Element = Literal["int2", "int3", "int4", "int5", "int6", "int7", "int8", "fp8", "fp4"]
Zero = Literal["none", "integer", "float"]
ScaleType = Literal["float32", "bfloat16", "float16", "e8m0", "e4m3"]
Granularity = Literal["tensor", "channel"] | int | tuple[int, int]

UNTOUCHED = "16"
"""The format of a matrix that is left alone."""
_KEEPS = "-keep"


@dataclass(frozen=True, kw_only=True)
class Scheme(Config):
    """How a weight matrix (out, in) is quantised.

    Attributes:
        element: int2 to int8, fp8 (e4m3, largest 448) or fp4 (e2m1, largest 6).
        block: what shares a scale: "tensor"; "channel", an output row; n, runs of n along the input of a row; or
            (rows, cols), true 2-D tiles.
        zero: "none": symmetric about 0; "integer": an integer zero point, so that 0 is exact (the range is made to
            hold 0, as GPTQ and llm-compressor do); "float": the block's minimum as a float, so that 0 need not be.
        scale: the type scales are stored in; they are computed in fp32 and rounded to it. "e8m0" is a power of two
            (MXFP4), "e4m3" has a further fp32 scale for the whole tensor (NVFP4).
        narrow: symmetric integers only: codes -(2^(b-1) - 1) to 2^(b-1) - 1 and a step of absmax / (2^(b-1) - 1), as
            SmoothQuant; otherwise all 2^b codes and a step of 2 absmax / (2^b - 1), as GPTQ and llm-compressor, where
            a positive extremum is clipped by half a step.
        remainder: what to do with a size that the block does not divide: "error", or a smaller last "block".
    """

    element: Element = "int4"
    block: Granularity = 128
    zero: Zero = "none"
    scale: ScaleType = "bfloat16"
    narrow: bool = False
    remainder: Literal["error", "block"] = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        block = tuple(self.block) if isinstance(self.block, list) else self.block
        object.__setattr__(self, "block", block)
        sizes = block if isinstance(block, tuple) else (block,)
        whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
        if block not in ("tensor", "channel") and not (whole and (isinstance(block, int) or len(sizes) == 2)):
            raise StudfinderError(f"block {block!r}", expected="tensor, channel, a size above 0, or (rows, cols)")
        if not self.integer and self.zero != "none":
            raise StudfinderError(f"{self.element} with a zero point", expected="a symmetric scheme: zero='none'")
        if self.narrow and (not self.integer or self.zero != "none"):
            raise StudfinderError("narrow codes", expected="symmetric integers")
        if self.scale in ("e8m0", "e4m3") and self.zero == "float":
            raise StudfinderError(f"{self.scale} scales with a float minimum", expected="float32, bfloat16 or float16")

    @property
    def bits(self) -> int:
        """Bits of one element."""
        return int(self.element.removeprefix("int").removeprefix("fp"))

    @property
    def integer(self) -> bool:
        """Whether elements are integers."""
        return self.element.startswith("int")

    @property
    def codes(self) -> tuple[float, float]:
        """The smallest and the largest code. Unsigned for a float zero point, signed otherwise."""
        if not self.integer:
            top = 448.0 if self.element == "fp8" else 6.0
            return -top, top
        half = 2.0 ** (self.bits - 1)
        if self.zero == "float":
            return 0.0, 2 * half - 1
        return (1 - half if self.narrow else -half), half - 1

    @property
    def smaller_last(self) -> bool:
        """Whether a row may end with a smaller block: few tools have that."""
        return self.remainder == "block" and isinstance(self.block, int)

    @property
    def name(self) -> str:
        """Its name, which `scheme_named` reads."""
        return next((name for name in _SHORT if SCHEMES[name] == self), self._spelled)

    @property
    def _spelled(self) -> str:
        block = "x".join(map(str, self.block)) if isinstance(self.block, tuple) else self.block
        parts = [self.element, f"g{block}" if isinstance(block, int) else block]
        parts += [{"none": "", "integer": "zero", "float": "float"}[self.zero], "narrow" * self.narrow]
        parts += ["" if self.scale == "bfloat16" else self.scale, "rest" * (self.remainder == "block")]
        return "-".join(part for part in parts if part)

    def __str__(self) -> str:
        block = "x".join(map(str, self.block)) if isinstance(self.block, tuple) else self.block
        zero = {"none": "symmetric", "integer": "integer zero", "float": "float minimum"}[self.zero]
        return f"{self.element} {'group ' if isinstance(block, int) else 'per '}{block}, {zero}, {self.scale} scales"


@dataclass(frozen=True, kw_only=True)
class Inputs(Config):
    """How what enters a matrix is rounded as it comes, with ranges of the numbers at hand.

    Attributes:
        element: int2 to int8, fp8 or fp4.
        scope: what shares a scale: a "token", the whole "tensor" of a call, or runs of n channels of a token; of fp4
            32 (MXFP4) or 16 (NVFP4).
    """

    element: Element = "int8"
    scope: Literal["token", "tensor"] | int = "token"

    def __post_init__(self) -> None:
        super().__post_init__()
        runs = isinstance(self.scope, int) and not isinstance(self.scope, bool) and self.scope > 0
        if self.scope not in ("token", "tensor") and not runs:
            raise StudfinderError(f"inputs by {str(self.scope)[:40]!r}", expected="token, tensor, or a size above 0")
        if self.element == "fp4" and self.scope not in _FP4:
            raise StudfinderError("fp4 inputs", expected="mxfp4 or nvfp4")

    @property
    def name(self) -> str:
        """Its name, as it stands behind the + of a format's."""
        if self.element == "fp4":
            return _FP4[self.scope]
        return self.element + {"token": "", "tensor": "-tensor"}.get(str(self.scope), f"-g{self.scope}")


@dataclass(frozen=True, kw_only=True)
class Format(Config):
    """What becomes of a matrix.

    Attributes:
        weights: how they are stored; None: they are left alone.
        inputs: how they are rounded; None: they are not.
        kept: the share of its numbers that keep their 16 bits, whichever those are; to eight places.
    """

    weights: Scheme | None = None
    inputs: Inputs | None = None
    kept: float = 0.0

    def __post_init__(self) -> None:
        if self.weights is None and self.inputs is not None:
            raise StudfinderError("rounded inputs of a matrix that is left alone", expected="weights in 8 bits or less")
        object.__setattr__(self, "kept", round(self.kept, 8))
        if self.weights is None and self.kept:
            raise StudfinderError("kept numbers of a matrix that is left alone", expected=f"{UNTOUCHED} as it is")
        if not 0 <= self.kept < 0.5:
            raise StudfinderError(f"{self.kept:.0%} of the numbers kept", expected="less than half of them")

    @property
    def name(self) -> str:
        """Its name, which `format_named` reads."""
        if self.weights is None:
            return UNTOUCHED
        share = f"{100 * self.kept:.6f}".rstrip("0").rstrip(".")
        kept = f"{_KEEPS}{share}%" if self.kept else ""
        return self.weights.name + kept + (f"+{self.inputs.name}" if self.inputs is not None else "")

    @property
    def plain(self) -> Format:
        """The same without kept numbers."""
        return replace(self, kept=0.0)


_NAMES = {
    "w4-g128": "int4-g128-zero",
    "w4-g64": "int4-g64-zero",
    "w4-channel": "int4-channel-zero",
    "w3-g64": "int3-g64-zero",
    "w8-channel": "int8-channel",
    "w8-tensor": "int8-tensor-narrow",
    "fp8": "fp8-channel",
    "fp8-block": "fp8-128x128-rest",
    "mxfp4": "fp4-g32-e8m0",
    "nvfp4": "fp4-g16-e4m3",
}
_SHORT = ("fp8", "fp8-block", "mxfp4", "nvfp4")
"""Names that say more than what they are spelled as."""
_FP4: dict[Any, str] = {32: "mxfp4", 16: "nvfp4"}
_GRAMMAR = re.compile(
    r"(?P<element>int[2-8]|fp[48])"
    r"-(?:(?P<whole>channel|tensor)|g(?P<run>[1-9][0-9]{0,17})|(?P<rows>[1-9][0-9]{0,17})x(?P<cols>[1-9][0-9]{0,17}))"
    r"(?:-(?P<zero>zero|float))?(?:-(?P<narrow>narrow))?"
    rf"(?:-(?P<scale>{'|'.join(get_args(ScaleType))}))?(?:-(?P<rest>rest))?"
)
_PERCENT = re.compile(r"[0-9]{1,2}(\.[0-9]{1,6})?%")
_INPUTS = re.compile(r"(?P<element>int[2-8]|fp8)(?:-(?:(?P<whole>token|tensor)|g(?P<run>[1-9][0-9]{0,17})))?")


def scheme_named(text: str) -> Scheme:
    """The scheme of a name: one of SCHEMES, or spelled out, e.g. int4-g64-zero.

    Raises:
        StudfinderError: there is none of that name, or its parts do not go together.
    """
    found = _GRAMMAR.fullmatch(_NAMES.get(text, text)) if isinstance(text, str) else None
    if found is None:
        raise StudfinderError(
            f"there is no scheme {str(text)[:80]!r}",
            expected=f"one of {', '.join(_NAMES)}; or an element and a block, as int4-g64, int4-g64-zero, int8-channel",
        )
    said = found.groupdict()
    tiles = None if said["rows"] is None else (int(said["rows"]), int(said["cols"]))
    block: Any = said["whole"] or tiles or int(said["run"])
    return Scheme(
        element=said["element"],  # type: ignore[arg-type]
        block=block,
        zero={None: "none", "zero": "integer", "float": "float"}[said["zero"]],  # type: ignore[arg-type]
        scale=said["scale"] or "bfloat16",  # type: ignore[arg-type]
        narrow=said["narrow"] is not None,
        remainder="block" if said["rest"] else "error",
    )


def format_named(text: str) -> Format:
    """The format of a name: a scheme's, with -keepN% where numbers are kept, with +INPUTS where inputs are
    rounded; or 16.

    Raises:
        StudfinderError: as `scheme_named`; or there are no such inputs, or no such share.
    """
    if text == UNTOUCHED:
        return Format()
    name, plus, inputs = str(text).partition("+")
    name, keeps, share = name.partition(_KEEPS)
    return Format(
        weights=scheme_named(name), inputs=_inputs(inputs) if plus else None, kept=_share(share) if keeps else 0.0
    )


def _share(text: str) -> float:
    if _PERCENT.fullmatch(text) is None or not 0 < (share := float(text[:-1]) / 100) < 0.5:
        raise StudfinderError(f"there is no share {text[:40]!r} of numbers to keep", expected="e.g. -keep0.05%")
    return share


def _inputs(text: str) -> Inputs:
    run = next((run for run, name in _FP4.items() if name == text), None)
    if run is not None:
        return Inputs(element="fp4", scope=run)
    found = _INPUTS.fullmatch(text)
    if found is None:
        raise StudfinderError(f"there are no inputs {text[:80]!r}", expected="int8, fp8, fp8-tensor, mxfp4 or nvfp4")
    scope: Any = int(found["run"]) if found["run"] else found["whole"] or "token"
    return Inputs(element=found["element"], scope=scope)  # type: ignore[arg-type]


SCHEMES: dict[str, Scheme] = {name: scheme_named(name) for name in _NAMES}
"""Schemes by name. MXFP4 is OCP's (Microscaling Formats v1.0, §5.2), NVFP4 NVIDIA's."""
