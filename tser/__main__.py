"""``tser``, and ``python -m tser``."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # ``python -m`` puts the current folder first: a torch.py there would be run in torch's place.
    del sys.path[0]

from tser.interrupt import handle_signals, leave_signals


def main() -> None:
    """Entry point: Ctrl-C and SIGTERM end it in order from here on, also while it is imported."""
    handle_signals()
    try:
        from tser.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    finally:
        leave_signals()


if __name__ == "__main__":
    main()
