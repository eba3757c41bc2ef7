"""The deformation in space and time: on the body's surface in 3-D, and as a film from before to after."""

from __future__ import annotations

from collections.abc import Callable

import qt
import slicer
from slicer.i18n import tr as _

from ..scene.morph import Morph, can_make_video, save_film, shares
from ..scene.surface import show_surface

FRAMES, INTERVAL_MS = 60, 60


class SpaceSection:
    """Connects the widgets ``ui`` with the result that ``owner()`` gives; ``say`` shows a sentence."""

    def __init__(self, ui, owner: Callable, say: Callable[[str], None]):
        self._ui, self._owner, self._say = ui, owner, say
        self._morph: Morph | None = None
        self._frame = 0
        self._slices: list[tuple] = []
        self._timer = qt.QTimer()
        self._timer.setInterval(INTERVAL_MS)
        self._timer.connect("timeout()", self._step)
        for text, kind in ((_("Nothing"), None), (_("Displacement"), "displacement"), (_("Jacobian"), "jacobian")):
            ui.surfaceComboBox.addItem(text, kind)
        ui.surfaceComboBox.connect("currentIndexChanged(int)", lambda _index: self.showSurface())
        ui.arrowsCheckBox.connect("toggled(bool)", lambda _shown: self.showSurface())
        ui.slicesCheckBox.connect("toggled(bool)", self._onSlices)
        ui.morphButton.connect("toggled(bool)", self._onMorph)
        ui.filmButton.connect("clicked(bool)", self._onFilm)

    def update(self) -> None:
        """What can be pressed now."""
        there = self._owner() is not None
        for widget in (self._ui.surfaceComboBox, self._ui.morphButton, self._ui.filmButton):
            widget.enabled = there

    def leave(self) -> None:
        """Stop what moves, and put back what was shown of the slices."""
        self._ui.morphButton.checked = False
        self._ui.slicesCheckBox.checked = False

    def refresh(self) -> None:
        """The transform was changed."""
        self._ui.morphButton.checked = False
        if self._ui.surfaceComboBox.currentData:
            self.showSurface(fit=False)

    def showSurface(self, fit: bool = True) -> None:
        """Show the surface as chosen, and turn the 3-D views to it."""
        owner = self._owner()
        if owner is None:
            return
        kind = self._ui.surfaceComboBox.currentData
        show_surface(owner, kind, self._ui.arrowsCheckBox.checked)
        if kind and fit:
            slicer.app.layoutManager().resetThreeDViews()

    def _onSlices(self, shown: bool) -> None:
        if shown:
            self._slices = [(node, node.GetSliceVisible()) for node in slicer.util.getNodesByClass("vtkMRMLSliceNode")]
        for node, before in self._slices:
            node.SetSliceVisible(1 if shown else before)
        if shown:
            slicer.app.layoutManager().resetThreeDViews()

    def _onMorph(self, wanted: bool) -> None:
        owner = self._owner()
        if wanted and owner is not None:
            self._morph, self._frame = Morph(owner), 0
            self._timer.start()
        elif self._morph is not None:
            self._timer.stop()
            self._morph.close()
            self._morph = None

    def _step(self) -> None:
        if self._morph is not None:
            self._morph.show(shares(FRAMES)[self._frame % FRAMES])
            self._frame += 1

    def _onFilm(self, _clicked=False) -> None:
        owner = self._owner()
        kinds = [_("Animated picture (*.gif)"), *([_("Video (*.mp4)")] if can_make_video() else [])]
        path = qt.QFileDialog.getSaveFileName(None, _("Save as film"), "registration.gif", ";;".join(kinds))
        path = path[0] if isinstance(path, tuple) else path
        if not path or owner is None:
            return
        self._ui.morphButton.checked = False
        morph = Morph(owner)
        try:
            save_film(morph, path)
            self._say(_("The film is in {path}.").format(path=path))
        except OSError as error:
            slicer.util.errorDisplay(_("The film cannot be written to {path}: {error}.").format(path=path, error=error))
        finally:
            morph.close()
