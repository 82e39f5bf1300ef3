"""The one way up from a record to how it looks."""

from importlib import import_module
from typing import Any

from studfinder.records.public import OneLine


def presented(module: str, function: str, record: object, *rest: Any) -> Any:
    """What a function of `studfinder.report` makes of a record. Presentation stands above the records, so it is named
    by text and loaded when it is asked for."""
    return getattr(import_module(f"studfinder.report.{module}"), function)(record, *rest)


class Presented(OneLine):
    """Base of records that are printed in one line, and have HTML in a notebook."""

    def _repr_html_(self) -> str:
        return presented("notebook", "html_of", self)
