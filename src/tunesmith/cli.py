"""The command line: all commands, and how a process that runs one begins and ends.

Exit codes: 0 good, 1 our fault, 2 the user's input is wrong; 129, 130 and 143 stopped by SIGHUP, SIGINT and SIGTERM.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

# Must be set before torch and tokenizers are imported: no warning about forks, no hub chatter.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from cyclopts import App, CycloptsError

from tunesmith.commands import data, feedback, inside, judging, listing, training
from tunesmith.commands.console import out
from tunesmith.errors import InputError
from tunesmith.flags import by_our_names
from tunesmith.signals import Stopped, listening

app = App(
    name="tunesmith",
    console=out,
    help="Specialise a pretrained language model on your own data, and see, measured, whether it was worth it.",
    version_flags=["--version"],
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # we say what is saved, and by which signal
)
COMMANDS = (
    *(data.app, feedback.app),
    *(training.tune, training.plan, training.export),
    *(training.tokenizer, training.pretrain, training.reward, training.align),
    *(judging.compare, judging.demo, judging.evaluate, judging.predict, judging.chat, judging.judge),
    inside.inspect,
    *(listing.doctor, listing.methods, listing.models, listing.datasets, listing.runs),
)
for command in COMMANDS:
    app.command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: runs a command and ends the process with its exit code."""
    with listening():
        code = run(sys.argv[1:] if arguments is None else arguments)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Runs one command; returns the exit code."""
    try:
        code = app(by_our_names(arguments), exit_on_error=False, print_error=False)
    except (InputError, CycloptsError) as error:
        return _complain(str(error).strip() or type(error).__name__)
    except KeyboardInterrupt as stopped:
        return _say_stopped(stopped)
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return code if isinstance(code, int) else 0


def _complain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _say_stopped(stopped: KeyboardInterrupt) -> int:
    """One line: what stopped it, what is saved, how to go on."""
    by = f"stopped by {stopped}" if isinstance(stopped, Stopped) else "stopped"
    with suppress(OSError):  # after SIGHUP there may be no terminal to write to
        print(". ".join([by, *getattr(stopped, "__notes__", [])]), file=sys.stderr, flush=True)
    return stopped.exit_code if isinstance(stopped, Stopped) else 130


if __name__ == "__main__":
    main()
