"""Slicer's end of the worker process: start it, ask it, take its results. May use: `slicer.scene`, `core`."""
