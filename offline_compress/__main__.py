"""``python -m offline_compress`` is ``palu-compress``."""

from offline_compress.commands.compress import main

if __name__ == "__main__":
    raise SystemExit(main())
