"""``python -m FoundationRegLib.worker``: the command that starts the worker process, which is `app.worker`."""

import sys

from .app.worker import main

if __name__ == "__main__":
    sys.exit(main())
