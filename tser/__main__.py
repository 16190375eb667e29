"""``python -m tser``."""

from tser.cli.main import main

if __name__ == "__main__":
    main()
