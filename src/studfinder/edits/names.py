"""The short name of a number, as it is printed and as it is read.

layers.9 down_proj[260, 200]              a down projection, whatever its parameter is called: output and input channel
layers.1.experts.3 down_proj[35, 23]      an expert's
layers.29 post_attention_layernorm[17]    any other parameter of a block: the end of its name that tells it from others
layers.3 q_proj.bias[61]                  ".weight" is left out, all else is said; indices are literal
embed_tokens[33, 199]                     what is in no block
model.layers.9.mlp.down_proj.weight[260, 200]      the whole name always does
"""

from __future__ import annotations

import re

from studfinder.edits.edit import Weights
from studfinder.errors import StudfinderError, unknown
from studfinder.models import LM, MatrixRef

_NUMBER = re.compile(
    r"(?:layers\.(?P<layer>\d+)(?:\.experts\.(?P<expert>\d+))? )?"
    r"(?P<path>[\w.-]+)\[(?P<index>[\d:, ]*)\](?: \(call \d+\))?"
)
_WRITER = "down_proj"

Index = tuple[int | None, ...]
"""Into a parameter; None for all along an axis."""


def is_name(text: str) -> bool:
    """Whether a text reads as the name of a number, of whatever model."""
    return _NUMBER.fullmatch(text.strip()) is not None


class Names:
    """The short names of one model's parameters. Reading and printing are inverse to each other."""

    def __init__(self, lm: LM) -> None:
        self._layers = lm.anatomy.layers
        # Where several layers are one module, its parameters are the first one's.
        first = {f"{layer.block}.": number for number, layer in reversed(list(enumerate(self._layers)))}
        self._first = [first[f"{layer.block}."] for layer in self._layers]
        self._place: dict[str, tuple[int | None, str]] = {}
        self._paths: dict[int | None, dict[str, str]] = {None: {}}
        for name, _ in lm.model.named_parameters(remove_duplicate=False):
            block = next((block for block in first if name.startswith(block)), "")
            path = name.removeprefix(block)
            path = path.removesuffix(".weight") or path
            self._place[name] = first.get(block), path
            self._paths.setdefault(first.get(block), {})[path] = name

    def of(self, parameter: str, index: Index) -> str:
        """The short name of one number; with None for all along an axis, of a row or a column.

        Raises:
            StudfinderError: there is no such parameter.
        """
        if parameter not in self._place:
            raise StudfinderError(f"there is no parameter {parameter!r} in this model")
        home, path = self._place[parameter]
        inside = "" if home is None else f"layers.{home} "
        for ref in () if home is None else self._layers[home].writers:
            pair = _pair(ref, index) if ref.parameter == parameter else None
            if pair is not None and len(self._writers(home, ref.expert)) == 1:
                expert = "" if ref.expert is None else f".experts.{ref.expert}"
                return f"layers.{home}{expert} {_WRITER}[{_text(pair)}]"
        words = path.split(".")
        for count in range(1 if parameter.endswith(".weight") else min(2, len(words)), len(words) + 1):
            end = ".".join(words[-count:])
            written = end == _WRITER and len(index) == 2 and self._writers(home, None)
            if not written and self._ending(home, end) == [parameter]:
                return f"{inside}{end}[{_text(index)}]"
        return f"{parameter}[{_text(index)}]"

    def find(self, text: str) -> Weights:
        """The number of a name, short or whole.

        Raises:
            StudfinderError: that is no name, there is no such layer, expert or parameter, or it may mean several.
        """
        match = _NUMBER.fullmatch(text.strip())
        if match is None:
            raise StudfinderError(f"{text!r} is not the name of a number", expected="layers.9 down_proj[260, 200], say")
        index = tuple(_axis(at, text) for at in match["index"].split(",")) if match["index"].strip() else ()
        path, expert = match["path"].removesuffix(".weight"), None if match["expert"] is None else int(match["expert"])
        if match["layer"] is None and match["path"] in self._place:
            return Weights(parameter=match["path"], entries=(index,))
        home = None
        if match["layer"] is not None:
            if int(match["layer"]) >= len(self._layers):
                raise StudfinderError(f"there is no layer {match['layer']}", expected=f"0 to {len(self._layers) - 1}")
            home = self._first[int(match["layer"])]
        if path == _WRITER and len(index) == 2 and (refs := self._writers(home, expert)):
            return self._entry(refs, index, text)
        found = self._ending(home, path) if expert is None else []
        if len(found) != 1:
            raise self._unknown(home, path, expert, found, text)
        return Weights(parameter=found[0], entries=(index,))

    def _writers(self, home: int | None, expert: int | None) -> list[MatrixRef]:
        return [] if home is None else [one for one in self._layers[home].writers if one.expert == expert]

    def _ending(self, home: int | None, end: str) -> list[str]:
        """The parameters that an end of a name may mean: the one that is called just so, else all that end so."""
        paths = self._paths.get(home, {})
        if end in paths:
            return [paths[end]]
        return [name for path, name in paths.items() if path.endswith(f".{end}")]

    def _entry(self, refs: list[MatrixRef], index: Index, text: str) -> Weights:
        if len(refs) > 1:
            names = " or ".join(self.of(ref.parameter, ()).removesuffix("[]") for ref in refs)
            raise StudfinderError(f"{text!r} may be an entry of {len(refs)} matrices", expected=names)
        if refs[0].stacked and index[0] is None:
            raise StudfinderError(f"{text!r}: the columns of experts in one matrix go on through all of them")
        return Weights(parameter=refs[0].parameter, entries=(refs[0].index(*index),))  # type: ignore[arg-type]

    def _unknown(self, home: int | None, path: str, expert: int | None, found: list[str], text: str) -> StudfinderError:
        if found:
            names = " or ".join(self.of(name, ()).removesuffix("[]") for name in found)
            return StudfinderError(f"{text!r} may be of {len(found)} parameters", expected=names)
        where = "outside the layers" if home is None else f"in layer {home}"
        if expert is not None:
            held = sorted({ref.expert for ref in self._layers[home or 0].writers if ref.expert is not None})
            experts = f"experts 0 to {held[-1]}" if held else "a layer with experts"
            return StudfinderError(f"there is no expert {expert} {where} ({text!r})", expected=experts)
        within = next((number for number in self._paths if number is not None and self._ending(number, path)), None)
        if home is None and within is not None:
            return StudfinderError(f"{text!r} does not say which layer", expected=f"layers.{within} {text.strip()}")
        if home is None and "." in path:
            return unknown("there is no parameter", path, self._place)
        short = [self.of(name, ()).removesuffix("[]").rpartition(" ")[2] for name in self._paths.get(home, {}).values()]
        return unknown(f"there is no parameter {where} called", path, short)


def _pair(ref: MatrixRef, index: Index) -> tuple[int | None, int | None] | None:
    """Output and input channel of a literal index into a matrix's parameter; None if it is no entry of this matrix."""
    if len(index) < 2:
        return None
    first, second = index[-2:]
    if ref.stacked:
        if first is None or ref.expert is None:
            return None
        first -= ref.expert * ref.stacked
        if not 0 <= first < ref.stacked:
            return None
    pair = (second, first) if ref.transposed else (first, second)
    return pair if ref.index(*pair) == index else None  # type: ignore[arg-type]


def _axis(text: str, name: str) -> int | None:
    try:
        return None if text.strip() == ":" else int(text)
    except ValueError:
        raise StudfinderError(f"{text.strip()!r} in {name}", expected="a whole number, or : for all") from None


def _text(index: Index) -> str:
    return ", ".join(":" if at is None else str(at) for at in index)
