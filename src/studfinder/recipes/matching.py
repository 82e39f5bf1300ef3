"""What the rules of a tool's file mean for a model's matrices: which rule decides, and by which of a matrix's names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from studfinder.records import UNTOUCHED


@dataclass(frozen=True)
class NamedMatrix:
    """A matrix of a model by the names that tools have for it.

    Attributes:
        module: the Hugging Face module; of an expert that of its matrix kept apart.
        stacked: the live module that has it, where transformers stacks it with others: experts.
        checkpoint: its module's name in the checkpoint's files, where that is another.
        fused: what vLLM calls the matrix that it becomes a part of; the module's own name where it is fused with none.
        group: the fused group; "" outside the blocks.
        kinds: names of the module's class and of those it derives from.
        gguf: the tensor's name in GGUF; "" where there is none.
        layer: the block; None outside the blocks.
        shape: (out, in); None where it is not known.
    """

    module: str
    stacked: str = ""
    checkpoint: str = ""
    fused: str = ""
    group: str = ""
    kinds: tuple[str, ...] = ("Linear",)
    gguf: str = ""
    layer: int | None = None
    shape: tuple[int, int] | None = None

    def names(self) -> Iterator[tuple[str, str]]:
        """(kind of name, name), its own first, each name once."""
        seen: set[str] = set()
        for kind in ("module", "stacked", "checkpoint", "fused"):
            name = getattr(self, kind)
            if name and name not in seen:
                seen.add(name)
                yield kind, name


Test = Callable[[str, NamedMatrix], bool]


def by_name(test: Callable[[str], object]) -> Test:
    """A test that looks at the name alone."""
    return lambda name, matrix: bool(test(name))


@dataclass(frozen=True)
class Rule:
    """One rule of a file.

    Attributes:
        text: as it stands there.
        stored_as: what it makes of a matrix: a format's name, "16" for left alone, or the tool's own word.
        test: whether a name of this matrix matches.
        about: whether it speaks of the matrix, of its weights alone or of its inputs alone.
    """

    text: str
    stored_as: str
    test: Test
    about: Literal["matrix", "weights", "inputs"] = "matrix"


@dataclass(frozen=True)
class RuleSet:
    """The rules of a file.

    Attributes:
        tool: whose they are.
        rules: in order of precedence: the first that matches decides.
        default: the format of what no rule matches.
        gguf: whether names are GGUF's.
        vllm: whether the file is read by vLLM too, which fuses.
    """

    tool: str
    rules: tuple[Rule, ...]
    default: str
    gguf: bool = False
    vllm: bool = True

    def matched(self, rule: Rule, matrix: NamedMatrix) -> str | None:
        """By which kind of name a rule matches a matrix; None where it does not."""
        if self.gguf:
            return "gguf" if matrix.gguf and rule.test(matrix.gguf, matrix) else None
        kinds = (kind for kind, name in matrix.names() if (self.vllm or kind != "fused") and rule.test(name, matrix))
        return next(kinds, None)

    def deciding(self, matrix: NamedMatrix, about: str = "weights") -> Rule | None:
        """The rule that decides of its weights, or of its inputs; None where none matches."""
        own = (rule for rule in self.rules if rule.about in ("matrix", about))
        return next((rule for rule in own if self.matched(rule, matrix)), None)

    def format_of(self, matrix: NamedMatrix) -> str:
        """What becomes of a matrix."""
        rule = self.deciding(matrix)
        weights = self.default if rule is None else rule.stored_as
        inputs = next((one for one in self.rules if one.about == "inputs"), None) and self.deciding(matrix, "inputs")
        if weights == UNTOUCHED or not inputs or inputs.about != "inputs" or inputs.stored_as == UNTOUCHED:
            return weights
        return f"{weights}+{inputs.stored_as}"
