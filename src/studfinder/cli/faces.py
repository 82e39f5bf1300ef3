"""A config's fields as options: `face(ScanConfig)` gives a command an option for each, and the command a ScanConfig."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING
from pathlib import Path
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

        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            own = parameter.replace(kind=parameter.KEYWORD_ONLY)
            parameters += map(_parameter, settings) if parameter.name == "config" else [own]
        parsed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        parsed.__annotations__ = {one.name: one.annotation for one in parameters}
        return parsed

    return faced


_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def _parameter(setting: Setting) -> inspect.Parameter:
    said, default = setting.option, setting.default
    kind: Any = list[setting.kind] if setting.many and not said.commas else setting.kind  # type: ignore[name-defined]
    flag, least, most = setting.flag, said.least, said.most
    notes = [f"default: {said.otherwise or _shown(setting)}"] if said.otherwise or _shown(setting) else []
    if least is not None or most is not None:
        notes.append(f"x>={least:g}" if most is None else f"{least or 0:g}<=x<={most:g}")
    if setting.kind is bool and default is not False:
        flag += f"/--no-{flag[2:]}"
    required = default is MISSING
    words = _METAVARS.get(setting.kind)
    shown = setting.option.help + f"  [{'; '.join(notes)}]" * bool(notes)
    info = typer.Option(flag, metavar=words, help=shown, show_default=False, hidden=said.gone)
    return inspect.Parameter(
        setting.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=... if required else False if setting.kind is bool and default is False else None,
        annotation=Annotated[kind if required or default is False else Optional[kind], info],  # noqa: UP045
    )


def _shown(setting: Setting) -> str:
    """The default in print."""
    value = setting.default
    if setting.many or value is None or value is False or value is MISSING:
        return ""
    return setting.name if value is True else str(value)
