"""Entry point: flags -> Config -> one command. `python main.py --help` lists every flag.

What belongs here: turning a user's mistake into one line on stderr and an exit status. All else has its own room.
"""

import importlib
import os
import sys

# TensorFlow reads this once, when it is imported: 3 keeps the start-up chatter of its C++ side off the terminal.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from bloodcell import config
from bloodcell.errors import InputError


def main(argv: list[str] | None = None) -> int:
    """Runs the command that the flags describe.

    Args:
      argv: program name and arguments; `None` is `sys.argv`.

    Returns:
      The exit status: 0 done, 1 the user's input cannot be used, 130 interrupted.
    """
    try:
        settings = config.parse(sys.argv if argv is None else argv)
        if settings is None:
            print(config.help_text())
            return 0
        config.validate(settings)
        importlib.import_module(f"bloodcell.commands.{settings.mode}").run(settings)
    except InputError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
