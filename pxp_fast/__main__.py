"""``python -m pxp_fast`` is the command ``pxp-fast``."""

from .cli import main

if __name__ == "__main__":
    main()
