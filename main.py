"""Entry point: flags -> Config -> one command. `python main.py --help` lists every flag.

What belongs here: turning a user's mistake into one line on stderr and an exit status. All else has its own room.
"""

import contextlib
import importlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from bloodcell import config
from bloodcell.errors import InputError, Stopped
from bloodcell.quiet import stderr_nowhere

_LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_USERS_LOG_LEVEL = os.environ.get(_LOG_LEVEL)

# An InputError of a function that a tf.data stage calls (a shard that has gone during the run) arrives as an error of
# TensorFlow's, with the stack trace of the function in its text.
_SAID_WITHIN = re.compile(rf"^{InputError.__module__}\.{InputError.__name__}: (.*)$", re.MULTILINE)


def main(argv: list[str] | None = None) -> int:
    """Runs the command that the flags describe.

    Args:
      argv: program name and arguments; `None` is `sys.argv`.

    Returns:
      The exit status: 0 done, 1 the user's input cannot be used, 130 after Ctrl-C, 143 after SIGTERM.
    """
    with contextlib.suppress(ValueError):  # not the main thread, which alone gets signals
        signal.signal(signal.SIGTERM, _stop)
    try:
        settings = config.parse(sys.argv if argv is None else argv)
        with _quiet():
            importlib.import_module("tensorflow").config.list_physical_devices()
        if settings is None:
            print(config.help_text())
            return 0
        if settings.list:
            importlib.import_module("bloodcell.commands.listing").run(settings)
            return 0
        config.validate(settings)
        importlib.import_module(f"bloodcell.commands.{settings.mode}").run(settings)
    except InputError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    except Exception as error:
        line = _SAID_WITHIN.search(str(error))
        if line is None:
            raise
        print("error:", line[1], file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `--help | head`: whoever read stdout has gone; nothing is left to say to them
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    """Ends the work, where nobody has a better way (a training saves first)."""
    raise Stopped(signal.Signals(number), "the same command goes on from the last checkpoint, if there is one")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the chatter of TensorFlow's start-up off the terminal, unless the user chose a log level.

    TensorFlow 2.21 writes it straight to the file descriptor before it looks at its own log level. Exceptions are
    raised as ever.
    """
    if _USERS_LOG_LEVEL is not None:
        yield
        return
    os.environ[_LOG_LEVEL] = "3"
    with stderr_nowhere():
        yield


if __name__ == "__main__":
    sys.exit(main())
