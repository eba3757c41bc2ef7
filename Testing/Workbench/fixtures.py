"""pytest fixtures; import them in a conftest.py."""

import pytest


@pytest.fixture(scope="session")
def bench():
    """The workbench, headless, with what earlier tests left in it; shut down when all tests are done."""
    pytest.importorskip("slicer_core", reason="the workbench needs slicer-core")
    pytest.importorskip("trame_slicer", reason="the workbench needs trame-slicer")
    pytest.importorskip("PySide6", reason="the workbench needs PySide6")
    import Workbench

    app = Workbench.start(headless=True)
    yield app
    app.close()


@pytest.fixture
def workbench(bench):
    """The workbench with an empty scene and no module; afterwards no dialog may have come unexpected."""
    bench.dialogs.unexpected.clear()
    yield bench
    unexpected = list(bench.dialogs.unexpected)
    bench.clear()
    assert unexpected == [], "dialogs that the test did not answer"
