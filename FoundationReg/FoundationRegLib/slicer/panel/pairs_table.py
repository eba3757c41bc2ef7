"""The list of the pairs of landmarks: which there are, whether they count, and what they miss by."""

from __future__ import annotations

from collections.abc import Callable

import qt
from slicer.i18n import tr as _

from ..scene.landmark_pairs import PairState


class PairsTable:
    """Shows pairs in ``table``; ``switched`` is called with row and whether that pair shall count."""

    def __init__(self, table, switched: Callable[[int, bool], None]):
        self._table, self._switched = table, switched
        self._filling = False
        table.setColumnCount(3)
        table.setHorizontalHeaderLabels([_("Pair"), _("Misses by (mm)"), _("Note")])
        table.verticalHeader().setVisible(False)
        table.horizontalHeader().setStretchLastSection(True)
        table.setSelectionBehavior(qt.QAbstractItemView.SelectRows)
        table.connect("cellChanged(int,int)", self._onCell)

    def fill(self, states: tuple[PairState, ...], fits: list[tuple[float, str]]) -> None:
        """Show ``states``, with the miss in mm and the note of each as far as ``fits`` reaches."""
        table = self._table
        self._filling = True
        try:
            table.setRowCount(len(states))
            for row, state in enumerate(states):
                miss, note = fits[row] if row < len(fits) else (None, "")
                for column, text in enumerate((state.name, "" if miss is None else f"{miss:.2f}", note)):
                    table.setItem(row, column, self._item(text, state.active if column == 0 else None))
        finally:
            self._filling = False

    @staticmethod
    def _item(text: str, ticked: bool | None):
        item = qt.QTableWidgetItem(text)
        item.setToolTip(text)
        item.setFlags(qt.Qt.ItemIsSelectable | qt.Qt.ItemIsEnabled)
        if ticked is not None:
            item.setFlags(qt.Qt.ItemIsSelectable | qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
            item.setCheckState(qt.Qt.Checked if ticked else qt.Qt.Unchecked)
        return item

    def chosen(self) -> list[int]:
        """The rows that are selected, the last first."""
        return sorted({index.row() for index in self._table.selectedIndexes()}, reverse=True)

    def _onCell(self, row: int, column: int) -> None:
        if not self._filling and column == 0:
            self._switched(row, self._table.item(row, 0).checkState() == qt.Qt.Checked)
