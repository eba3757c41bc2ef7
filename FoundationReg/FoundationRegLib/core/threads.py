"""How the threads of the libraries that we use should behave, said before they are loaded."""

from __future__ import annotations

import os

# Torch's threads sleep while they wait: spinning, they starve one another and Slicer's own as soon as something else
# runs. OpenBLAS, of numpy and scipy, gets systems of a dozen unknowns, for which it would wake a thread on every core.
THREAD_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1"}


def calm_threads() -> None:
    """Put `THREAD_ENVIRONMENT` into this process's environment, where the user has said nothing else. It has an effect
    on libraries that are not loaded yet."""
    for name, value in THREAD_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
