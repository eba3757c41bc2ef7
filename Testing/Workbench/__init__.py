"""A small Qt host that loads a scripted Slicer module without Slicer.

The scene, its nodes, logics, displayable managers and views are Slicer's own (wheels slicer-core and trame-slicer);
what those wheels lack of Slicer is replaced here: PythonQt's ``qt``, ``ctk``, the qMRML widgets, ``slicer.app``, the
base classes of scripted modules, parameter nodes and package installation. A stand-in behaves as Slicer's class does,
and is never shaped to a module's code.

    import Workbench
    app = Workbench.start(headless=True)
    widget = app.load_module("FoundationReg/FoundationReg.py")
    app.screenshot("window.png")
    app.close()

``python -m Workbench MODULE.py`` opens it for a person.
"""

import ctypes
import os
import sys

_running = None


def _keep_singletons() -> None:
    """PySide6 6.12 drops a reference to None, True or False with each call that returns one of them. Since Python 3.12
    these cannot be used up; before, a long session would end in "Fatal Python error: none_dealloc"."""
    if sys.version_info < (3, 12):
        for value in (None, True, False, NotImplemented, Ellipsis, (), "", b"", *range(-5, 257)):
            ctypes.c_ssize_t.from_address(id(value)).value += 1 << 40


def start(headless: bool = False):
    """Start the workbench, or return the one that runs; there is one per process.

    :param headless: draw in memory only, keep settings in a temporary folder, reject dialogs that nobody answers.
    :returns: a :class:`Workbench.host.Workbench`.
    :raises RuntimeError: after it was shut down.
    """
    global _running
    if _running is not None and _running.app is None:
        raise RuntimeError("The workbench was shut down; another one needs another process.")
    if _running is None:
        _keep_singletons()
        if headless:
            os.environ["QT_QPA_PLATFORM"] = "offscreen"
        if sys.platform.startswith("linux"):
            # The views render offscreen in either case; EGL needs no X server.
            os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
        from .host import Workbench

        _running = Workbench(headless)
    return _running
