"""The section of a panel that folds."""

from PySide6.QtCore import Property, QEvent, QSize, Qt, Signal
from PySide6.QtWidgets import (
    QAbstractButton,
    QSizePolicy,
    QStyle,
    QStyleOption,
    QStyleOptionButton,
    QStylePainter,
    QWidget,
)

from ..qtproperty import stored


class ctkCollapsibleButton(QAbstractButton):
    """A titled section of a panel; a click on the title folds it."""

    contentsCollapsed = Signal(bool)

    def __init__(self, text="", parent=None):
        if isinstance(text, QWidget):
            text, parent = "", text
        super().__init__(parent)
        self._collapsed, self._maximumHeight, self._forcing = False, self.maximumHeight, False
        self.text = text
        self.setCheckable(True)
        self.setChecked(True)
        self.setSizePolicy(QSizePolicy(QSizePolicy.Minimum, QSizePolicy.Preferred))
        self.setContentsMargins(0, self._titleSize().height(), 0, 0)
        self.setBackgroundRole(self.palette.ColorRole.Window)
        self.toggled.connect(self._onToggled)

    collapsed = Property(bool, lambda self: self._collapsed, lambda self, value: self._setCollapsed(value))
    collapsedHeight = stored(int, "_collapsedHeight", 14, QWidget.updateGeometry)

    def _setCollapsed(self, collapsed):
        if self.checkable:
            self.setChecked(not collapsed)
        else:
            self._collapse(collapsed)

    def _onToggled(self, checked):
        self._collapse(not checked)

    def _collapse(self, collapsed):
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        if collapsed:
            self._maximumHeight = self.maximumHeight
            self.setMaximumHeight(self.sizeHint().height())
        else:
            self.setMaximumHeight(self._maximumHeight)
        for child in self.children():
            if isinstance(child, QWidget) and not child.isWindow():
                self._forceVisibility(child)
        self.updateGeometry()
        self.contentsCollapsed.emit(collapsed)

    def _forceVisibility(self, child):
        """Show a child only when unfolded and wanted; what the child itself wants stays known."""
        self._forcing = True
        wanted = child.property("visibilityToParent") is not False
        child.setVisible(wanted and not self._collapsed)
        if wanted:
            child.setAttribute(Qt.WA_WState_ExplicitShowHide, False)
        self._forcing = False

    def childEvent(self, event):
        if event.added() and isinstance(event.child(), QWidget):
            event.child().installEventFilter(self)

    def eventFilter(self, child, event):
        kind = event.type()
        if kind in (QEvent.ShowToParent, QEvent.HideToParent) and not self._forcing and child.parent() is self:
            child.setProperty("visibilityToParent", kind == QEvent.ShowToParent)
            if self._collapsed and kind == QEvent.ShowToParent:
                self._forceVisibility(child)
        return False

    def _titleSize(self):
        option = QStyleOptionButton()
        option.initFrom(self)
        text = self.fontMetrics().size(Qt.TextShowMnemonic, self.text or "XXXX")
        indicator = self.style().pixelMetric(QStyle.PM_IndicatorWidth, option, self)
        spacing = self.style().pixelMetric(QStyle.PM_CheckBoxLabelSpacing, option, self)
        content = QSize(text.width() + indicator + spacing, max(text.height(), indicator))
        return self.style().sizeFromContents(QStyle.CT_PushButton, option, content, self)

    def sizeHint(self):
        title = self._titleSize()
        folded = title + QSize(0, self.collapsedHeight)
        return folded if self._collapsed or not self.layout() else self.layout().totalSizeHint().expandedTo(folded)

    def minimumSizeHint(self):
        title = self._titleSize()
        if self._collapsed:
            return title + QSize(0, self.collapsedHeight)
        return self.layout().totalMinimumSize().expandedTo(title) if self.layout() else title

    def hitButton(self, position):
        return self.rect.contains(position) and position.y() < self._titleSize().height()

    def paintEvent(self, _event):
        painter = QStylePainter(self)
        option = QStyleOptionButton()
        option.initFrom(self)
        height = self._titleSize().height()
        option.rect.setHeight(height)
        option.state |= QStyle.State_Sunken if self.down else QStyle.State_Raised
        painter.drawControl(QStyle.CE_PushButtonBevel, option)
        indicator = self.style().pixelMetric(QStyle.PM_IndicatorWidth, option, self)
        arrow = QStyleOption()
        arrow.initFrom(self)
        arrow.rect = option.rect.adjusted(6, (height - indicator) // 2, 0, 0)
        arrow.rect.setSize(QSize(indicator, indicator))
        painter.drawPrimitive(QStyle.PE_IndicatorArrowRight if self._collapsed else QStyle.PE_IndicatorArrowDown, arrow)
        text = option.rect.adjusted(indicator + 12, 0, -4, 0)
        flags = int(Qt.AlignLeft | Qt.AlignVCenter | Qt.TextShowMnemonic)
        painter.drawItemText(text, flags, option.palette, self.enabled, self.text, option.palette.ColorRole.ButtonText)
