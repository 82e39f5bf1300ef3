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
from studfinder.cli.process import INTERRUPTED
from studfinder.errors import StudfinderError, known
from studfinder.visible import say

# typer comes with its own copy of click, or with click itself in older releases; this is the one it raises.
UsageError: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="studfinder",
    help="Find the load-bearing numbers of a language model before anyone cuts into it.",
    no_args_is_help=True,
    add_completion=False,
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


app.command("scan", epilog=scan.EXAMPLES)(_bounded(scan.command))
app.command("anatomy", epilog=anatomy.EXAMPLES)(_bounded(anatomy.command))
app.command("measure", epilog=measure.EXAMPLES)(_bounded(measure.command))
app.command("experiment", epilog=experiment.EXAMPLES, **experiment.OWN_OPTIONS)(_bounded(experiment.command))
app.command("plan", epilog=plan.EXAMPLES)(_bounded(plan.command))
app.command("quantize", epilog=quantize.EXAMPLES)(_bounded(quantize.command))
app.command("diagnose", epilog=diagnose.EXAMPLES)(_bounded(diagnose.command))
app.command("equalize", epilog=equalize.EXAMPLES)(_bounded(equalize.command))
recipes = typer.Typer(no_args_is_help=True, help="Write what was found for another tool, and check its recipes.")
recipes.command("write", epilog=recipe.WRITE_EXAMPLES)(_bounded(recipe.write_command))
recipes.command("check", epilog=recipe.CHECK_EXAMPLES)(_bounded(recipe.check_command))
recipes.command("imatrix", epilog=recipe.IMATRIX_EXAMPLES)(_bounded(recipe.imatrix_command))
app.add_typer(recipes, name="recipe")
app.command("report", epilog=report.EXAMPLES)(_bounded(report.command))
app.command("gallery", epilog=gallery.EXAMPLES)(_bounded(gallery.command))
app.command("train", epilog=train.EXAMPLES)(_bounded(train.command))
app.command("ls")(_bounded(ls.command))
app.command("env")(_bounded(env.command))


@app.callback(invoke_without_command=True)
def _main(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from studfinder import __version__

        say(__version__)
        raise typer.Exit


def run_cli(arguments: list[str]) -> int:
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
