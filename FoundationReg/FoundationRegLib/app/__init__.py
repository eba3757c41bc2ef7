"""Ways in without Slicer's window: the command line, the demo, and the worker process that Slicer starts.

May use: everything but `slicer`.
"""
