"""The program: its verbs, its exit codes, and how mistakes are said."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import typer

from studfinder.cli import env, experiment, ls, measure, quantize, report, scan, train
from studfinder.errors import StudfinderError
from studfinder.visible import say

# typer comes with its own copy of click, or with click itself in older releases; this is the one it raises.
UsageError: Any = typer.BadParameter.__mro__[1]

_MEMORY = "there is not enough memory. Use a smaller model, --dtype bfloat16 or --device-map auto"

app = typer.Typer(
    name="studfinder",
    help="Find the load-bearing numbers of a language model before anyone cuts into it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("scan", epilog=scan.EXAMPLES)(scan.command)
app.command("measure", epilog=measure.EXAMPLES)(measure.command)
app.command("experiment", epilog=experiment.EXAMPLES)(experiment.command)
app.command("quantize", epilog=quantize.EXAMPLES)(quantize.command)
app.command("report", epilog=report.EXAMPLES)(report.command)
app.command("train", epilog=train.EXAMPLES)(train.command)
app.command("ls")(ls.command)
app.command("env")(env.command)


@app.callback(invoke_without_command=True)
def _main(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from studfinder import __version__

        say(__version__)
        raise typer.Exit


def run(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = app(arguments, standalone_mode=False)
        if code == 130:  # newer releases of typer turn Ctrl-C into an exit code, without a word
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except StudfinderError as error:
        if debug:
            traceback.print_exc()
        return _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        say("studfinder: interrupted; nothing that existed was lost", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        return _fail(_MEMORY)
    except Exception as error:
        if isinstance(error, UsageError):
            return _usage(error)
        if type(error).__name__ == "OutOfMemoryError":  # torch's, of an accelerator
            return _fail(_MEMORY)
        if debug:
            raise
        return _fail(f"internal error: {type(error).__name__}: {error}. Add --debug for the traceback", code=1)


def _usage(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        say(*error.format_message().splitlines())
        return 0
    where = error.ctx.command_path if error.ctx else "studfinder"
    return _fail(f"{error.format_message().rstrip('.')}. Try: {where} --help")


def _fail(message: str, code: int = 2) -> int:
    say(f"studfinder: error: {' '.join(message.split())}", file=sys.stderr)
    return code
