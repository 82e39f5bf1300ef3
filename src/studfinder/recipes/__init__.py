"""One tool a file: a recipe written in its language, and what the rules of such a file match."""

from studfinder.recipes.gguf_names import gguf_names
from studfinder.recipes.imatrix_file import ImportanceSums, write_importance
from studfinder.recipes.matching import NamedMatrix, Rule, RuleSet
from studfinder.recipes.registry import TOOLS, read_rules_file, rule_set, tool_named, written
from studfinder.records.public import public

__all__ = [
    "TOOLS",
    "ImportanceSums",
    "NamedMatrix",
    "Rule",
    "RuleSet",
    "gguf_names",
    "read_rules_file",
    "rule_set",
    "tool_named",
    "write_importance",
    "written",
]

public(globals())
