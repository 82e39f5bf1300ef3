"""The program: its verbs, its exit codes, and how mistakes are said."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer

from studfinder.cli import (
    anatomy,
    diagnose,
    env,
    equalize,
    experiment,
    gallery,
    ls,
    measure,
    plan,
    quantize,
    recipe,
    report,
    scan,
    train,
)
from studfinder.cli.given import with_config
from studfinder.cli.process import INTERRUPTED
from studfinder.cli.progress import QUIET
from studfinder.errors import StudfinderError, known
from studfinder.visible import say

# typer comes with its own copy of click, or with click itself in older releases; this is the one it raises.
UsageError: Any = typer.BadParameter.__mro__[1]

OVERALL = """For every command:

\b
  -q, --quiet        No progress, and no line of how long it took.
  --config FILE      Its options from a YAML or JSON file, or as the record of an earlier run has them; what is
                     given beside it counts.
  --debug            Show the traceback of an error.
"""

app = typer.Typer(
    name="studfinder",
    help="Find the load-bearing numbers of a language model before anyone cuts into it.",
    epilog=OVERALL,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class _ReaderGone(Exception):
    """Whoever read our output went away, as `| head` does."""


def _bounded(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose errors of other libraries and of the system are told in our words (`errors.known`).

    Here, and not around typer, which takes an empty file (EOFError) for Ctrl-C, and a reader that went away for the
    end of the process.
    """

    @functools.wraps(command)
    def bounded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
            sys.stdout.flush()  # or it would fail when the process ends, where nobody can say so
        except BrokenPipeError as error:
            raise _ReaderGone from error
        except SystemExit as error:
            if isinstance(error.__context__, BrokenPipeError):  # rich's way to end
                raise _ReaderGone from error
            raise
        except UsageError:
            raise
        except Exception as error:
            said = known(error)
            if said is None:
                raise
            raise said from error

    return bounded


_COMMANDS = (
    (scan, "Find the load-bearing numbers, and prove them."),
    (anatomy, "Print the parts of a model: blocks, attention, MLPs."),
    (measure, "What a model can do: before and after, with intervals."),
    (experiment, "A paper's table or figure, on your own model."),
    (plan, "Choose a format for every matrix within a budget."),
    (quantize, "Quantise into a checkpoint that others load."),
    (diagnose, "What a checkpoint lost, where, why, and what mends it."),
    (equalize, "The same model in a form that rounds better."),
    (report, "Draw a report again, or set runs side by side."),
    (gallery, "A static site of finished runs."),
    (train, "Train a small model, and watch outliers appear."),
    (ls, "List models, measures, experiments and so on."),
    (env, "Print versions and settings, for a bug report."),
)
for _module, _words in _COMMANDS:
    _own = getattr(_module, "OWN_OPTIONS", {})
    _name, _examples = _module.__name__.rpartition(".")[2], getattr(_module, "EXAMPLES", None)
    app.command(_name, short_help=_words, epilog=_examples, **_own)(_bounded(_module.command))
recipes = typer.Typer(no_args_is_help=True, help="Write what was found for another tool, and check its recipes.")
for _name, _words, _examples, _command in (
    ("write", "Write what was found for your tool.", recipe.WRITE_EXAMPLES, recipe.write_command),
    ("check", "Say what a recipe matches, and what it splits.", recipe.CHECK_EXAMPLES, recipe.check_command),
    ("imatrix", "An importance matrix for llama.cpp.", recipe.IMATRIX_EXAMPLES, recipe.imatrix_command),
):
    recipes.command(_name, short_help=_words, epilog=_examples)(_bounded(_command))
app.add_typer(recipes, name="recipe", short_help="Write for another tool, and check recipes.")


@app.callback(invoke_without_command=True)
def _main(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from studfinder import __version__

        say(__version__)
        raise typer.Exit


def run_cli(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    debug = "--debug" in arguments
    QUIET.clear()
    if {"-q", "--quiet"} & set(arguments):
        QUIET.set()
    arguments = [argument for argument in arguments if argument not in ("--debug", "-q", "--quiet")]
    try:
        arguments = with_config(arguments)
        code = app(arguments, standalone_mode=False)
        if code == 130:  # newer releases of typer turn Ctrl-C into an exit code, without a word
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except StudfinderError as error:
        if debug:
            traceback.print_exc()
        return _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        say(INTERRUPTED, file=sys.stderr)
        return 130
    except _ReaderGone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be flushed goes nowhere
        return 0
    except Exception as error:
        if isinstance(error, UsageError):
            return _usage(error)
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
