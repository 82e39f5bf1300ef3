"""A config's fields as options: `face(ScanConfig)` gives a command an option for each, and the command a ScanConfig."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Optional

import typer

from studfinder.records.config import Setting, described


def face(kind: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command (..., config, ...) with the config's options in the place of `config`."""
    settings = [setting for setting in described(kind) if setting.option.line is not False]

    def faced(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def parsed(**given: Any) -> None:
            values = {one.name: given.pop(one.name) for one in settings}
            command(config=kind(**{name: value for name, value in values.items() if value is not None}), **given)

        parameters = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            own = parameter.replace(kind=parameter.KEYWORD_ONLY)
            parameters += map(_parameter, settings) if parameter.name == "config" else [own]
        parsed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        parsed.__annotations__ = {one.name: one.annotation for one in parameters}
        return parsed

    return faced


def _parameter(setting: Setting) -> inspect.Parameter:
    said, default = setting.option, setting.default
    several = setting.many and not said.commas
    kind: Any = list[setting.kind] if several else str if setting.many else setting.kind  # type: ignore[name-defined]
    names = [f"{setting.flag}/--no-{setting.flag[2:]}" if default in (None, True) else setting.flag]
    help = said.help + f"  [default: {said.default}]" * bool(said.default)
    shown = not said.default and default is not None and default is not False and not setting.many
    if setting.many or default is None:
        kind, default = Optional[kind], None  # noqa: UP045: typer reads it
    if default is inspect.Parameter.empty or default.__class__.__name__ == "_MISSING_TYPE":
        default = ...
    info = typer.Option(*(names if setting.kind is bool else [setting.flag]), help=help, show_default=shown)
    return inspect.Parameter(
        setting.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
    )
