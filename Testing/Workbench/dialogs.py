"""Answers for modal dialogs, so that tests can press their buttons and nothing headless waits for ever."""

import contextlib
import logging
from collections.abc import Callable, Iterator

from PySide6.QtCore import QEvent, QObject, QTimer
from PySide6.QtWidgets import QAbstractButton, QApplication, QDialog, QFileDialog, QInputDialog, QLabel, QMessageBox


class DialogWatch(QObject):
    """Hands each modal dialog that appears to the current answer; without one, headless, it is rejected."""

    def __init__(self, app: QApplication, headless: bool):
        super().__init__(app)
        self._headless, self._answers = headless, []
        self.unexpected: list[str] = []
        app.installEventFilter(self)

    def eventFilter(self, watched, event):
        appears = event.type() == QEvent.Show and isinstance(watched, QDialog) and watched.isModal()
        if appears and (self._answers or self._headless):
            QTimer.singleShot(0, watched, lambda: self._answer(watched))
        return False

    def _answer(self, dialog):
        if not dialog.isVisible():
            return
        text = describe(dialog)
        if self._answers:
            answer, seen = self._answers[-1]
            seen.append(text)
            answer(dialog)
        else:
            self.unexpected.append(text)
            logging.error("A dialog that no test expects was rejected: %s", text)
            dialog.reject()

    @contextlib.contextmanager
    def answering(self, answer: Callable[[QDialog], None] | str) -> Iterator[list[str]]:
        """Answer dialogs while in the context; yields the texts of those seen.

        :param answer: a function that is given the visible dialog, or the text of the button to press ("OK", "Yes").
        """
        seen: list[str] = []
        self._answers.append((press(answer) if isinstance(answer, str) else answer, seen))
        try:
            yield seen
        finally:
            self._answers.pop()


def press(text: str) -> Callable[[QDialog], None]:
    """An answer that clicks the button of this text (without the & of its shortcut)."""

    def click(dialog: QDialog) -> None:
        for button in dialog.findChildren(QAbstractButton):
            if button.text.replace("&", "") == text:
                button.click()
                return
        known = [button.text for button in dialog.findChildren(QAbstractButton)]
        dialog.reject()
        raise AssertionError(f"The dialog has no button {text!r}, only {known}: {describe(dialog)}")

    return click


def describe(dialog: QDialog) -> str:
    """Title and text of a dialog."""
    text = ""
    if isinstance(dialog, QMessageBox):
        text = "\n".join(filter(None, (dialog.text, dialog.informativeText, dialog.detailedText)))
    elif isinstance(dialog, QInputDialog):
        text = dialog.labelText()
    elif isinstance(dialog, QFileDialog):
        text = dialog.directory().absolutePath()
    else:
        text = "\n".join(label.text for label in dialog.findChildren(QLabel) if label.text)
    return f"{dialog.windowTitle.strip()}: {text}"
