"""pytest fixtures: ``from Workbench.fixtures import workbench``."""

import pytest


@pytest.fixture
def workbench():
    """The headless workbench with an empty scene and no module; afterwards no dialog may have come unexpected."""
    pytest.importorskip("slicer_core", reason="the workbench needs slicer-core")
    pytest.importorskip("trame_slicer", reason="the workbench needs trame-slicer")
    pytest.importorskip("PySide6", reason="the workbench needs PySide6")
    import Workbench

    app = Workbench.start(headless=True)
    app.dialogs.unexpected.clear()
    yield app
    unexpected = list(app.dialogs.unexpected)
    app.close()
    assert unexpected == [], "dialogs that the test did not answer"
