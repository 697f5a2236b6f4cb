"""``python -m quantvm`` is the command ``quantvm``."""

from quantvm.cli import main

if __name__ == "__main__":
    main()
