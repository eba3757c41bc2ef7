"""``python -m FoundationRegLib.worker``: the command that starts the worker process, which is `app.worker`."""

import sys

from .core.threads import calm_threads

calm_threads()

from .app.worker import main  # noqa: E402 (loads numpy)

if __name__ == "__main__":
    sys.exit(main())
