"""Makes PySide6 speak the dialect of PythonQt, the Qt binding inside Slicer.

In PythonQt a Qt property is an attribute (``button.text``, ``spinBox.value = 3``), while setters and every other method
stay methods (``button.setText("x")``); ``sender.connect("clicked()", callable)`` takes the C++ signature of a signal;
``exec_`` is ``exec``; ``name`` is the object name. :func:`install` changes PySide6's classes in place, so that every
object behaves so, also those that Qt itself created, and provides the module ``qt``.

One difference stays: PythonQt refuses a new attribute on a C++ object, PySide6 silently keeps it in the instance's
dictionary. :func:`stray_attributes` finds such attributes.

Source: commontk/PythonQt (PythonQtInstanceWrapper.cpp, PythonQtClassInfo.cpp, PythonQtStdDecorators.h).
"""

import re
import sys
import types

from PySide6 import QtCore, QtGui, QtNetwork, QtSvg, QtUiTools, QtWidgets, QtXml

_QT_MODULES = (QtCore, QtGui, QtWidgets, QtNetwork, QtSvg, QtUiTools, QtXml)
# Static functions with the name of a property stay functions: qt.QTimer.singleShot(0, f), QApplication.font().
_STATIC_CLASSES = {"QCoreApplication", "QGuiApplication", "QApplication"}
_STATIC_MEMBERS = {("QTimer", "singleShot")}


def install() -> types.ModuleType:
    """Switch PySide6 to PythonQt's conventions (once per process) and return the module ``qt``."""
    if "qt" in sys.modules:
        return sys.modules["qt"]
    for cls in _qobject_classes():
        _replace_getters_by_properties(cls)
        _add_exec_(cls)
    QtCore.QObject.name = property(lambda self: self.objectName, lambda self, value: self.setObjectName(value))
    QtCore.QObject.className = lambda self: self.metaObject().className()
    QtCore.QObject.delete = lambda self: self.deleteLater()
    _install_connect()
    _keep_dialogs_until_executed()
    qt = types.ModuleType("qt", "Qt as PythonQt offers it in Slicer, here on PySide6")
    for module in _QT_MODULES:
        for name in dir(module):
            if not name.startswith("_"):
                setattr(qt, name, getattr(module, name))
    sys.modules["qt"] = qt
    return qt


def _qobject_classes() -> list[type]:
    found = {}
    for module in _QT_MODULES:
        for value in (getattr(module, name) for name in dir(module)):  # vars() would miss the lazily made classes
            if isinstance(value, type) and issubclass(value, QtCore.QObject) and hasattr(value, "staticMetaObject"):
                found[value] = None
    return list(found)


def _replace_getters_by_properties(cls: type) -> None:
    if cls.__name__ in _STATIC_CLASSES:
        return
    meta = cls.staticMetaObject
    for index in range(meta.propertyCount()):
        metaproperty = meta.property(index)
        name = metaproperty.name()
        inherited = index < meta.propertyOffset()
        if (cls.__name__, name) in _STATIC_MEMBERS or (inherited and name not in cls.__dict__):
            continue
        if not isinstance(cls.__dict__.get(name), property):
            setattr(cls, name, _property(cls, metaproperty))


def _property(cls: type, metaproperty: QtCore.QMetaProperty) -> property:
    name = metaproperty.name()
    suffix = name[0].upper() + name[1:]
    getter = next((g for g in (_method(cls, n) for n in (name, "is" + suffix, "has" + suffix)) if g), None)
    setter = _method(cls, "set" + suffix)
    whole_number = metaproperty.typeName() in ("int", "uint")

    def read(self):
        return getter(self) if getter else QtCore.QObject.property(self, name)

    def write(self, value):
        if whole_number and isinstance(value, float):
            value = int(value)  # PythonQt converts numbers the same way
        if setter:
            setter(self, value)
        else:
            self.setProperty(name, value)

    return property(read, write if metaproperty.isWritable() else None)


def _method(cls: type, name: str):
    member = getattr(cls, name, None)
    return member if callable(member) else None


def _add_exec_(cls: type) -> None:
    if "exec" in cls.__dict__ and not hasattr(cls, "exec_"):
        cls.exec_ = cls.__dict__["exec"]


def _keep_dialogs_until_executed() -> None:
    """slicer.util calls ``deleteLater()`` before ``exec_()``.

    In an application that works: the deletion waits for the event loop that runs at the time of the call. A test calls
    from outside any event loop, so that the dialog's own loop would delete it at once: delete it after its exec.
    """
    delete_later = QtCore.QObject.deleteLater

    def delete_dialog_later(self):
        if QtCore.QThread.currentThread().loopLevel() == 0 and not self.isVisible():
            self._deleteAfterExec = True
        else:
            delete_later(self)

    def executed(execute):
        def wrapper(self):
            result = execute(self)
            if getattr(self, "_deleteAfterExec", False):
                delete_later(self)
            return result

        return wrapper

    QtWidgets.QDialog.deleteLater = delete_dialog_later
    QtWidgets.QDialog.exec = QtWidgets.QDialog.exec_ = executed(QtWidgets.QDialog.exec)


def _install_connect() -> None:
    original_getattribute = QtCore.QObject.__getattribute__
    replacements = {
        "connect": _by_signature(_connect, QtCore.QObject.connect),
        "disconnect": _by_signature(_disconnect, QtCore.QObject.disconnect),
    }

    def getattribute(self, name):
        if name in replacements:
            return types.MethodType(replacements[name], self)
        return original_getattribute(self, name)

    QtCore.QObject.__getattribute__ = getattribute


def _by_signature(function, original):
    """``function`` for calls as PythonQt has them, else PySide6's static one, which PySide6 itself calls."""

    def call(self, *arguments):
        if arguments and isinstance(arguments[0], str) and not arguments[0].startswith("2"):
            return function(self, *arguments)
        return original(*arguments)

    return call


def _signal(sender: QtCore.QObject, signature: str):
    """The signal of ``sender`` with a C++ signature such as ``"currentIndexChanged(int)"``."""
    normalized = bytes(QtCore.QMetaObject.normalizedSignature(signature).data()).decode()
    # A stand-in's signals carry Python objects; it lists the C++ signatures it answers to.
    for cls in type(sender).__mro__:
        alias = cls.__dict__.get("cppSignals", {}).get(normalized)
        if alias:
            return getattr(sender, alias)
    if sender.metaObject().indexOfSignal(normalized) < 0:
        raise ValueError(f"{sender.metaObject().className()} has no signal {signature}")
    name, arguments = re.fullmatch(r"(\w+)\((.*)\)", normalized).groups()
    instance = getattr(sender, name)
    if not arguments:
        return instance
    try:
        return instance[arguments] if "," not in arguments else instance
    except (IndexError, KeyError):
        return instance


def _connect(sender, signature, target, slot=None):
    _signal(sender, signature).connect(_callable(target, slot))
    return True


def _disconnect(sender, signature, target=None, slot=None):
    signal = _signal(sender, signature)
    if target is None:
        signal.disconnect()
    else:
        signal.disconnect(_callable(target, slot))
    return True


def _callable(target, slot):
    return target if slot is None else getattr(target, slot.partition("(")[0])


def stray_attributes(root: QtCore.QObject) -> list[str]:
    """Attributes that Python code set on C++ objects under ``root`` and that PythonQt would have refused.

    Returns ``"QLabel statusLabel.txt"`` and so on: class, object name and attribute.
    """
    found = []
    for item in (root, *root.findChildren(QtCore.QObject)):
        if _stands_for_cpp(type(item)):
            found += [
                f"{type(item).__name__} {item.objectName}.{key}"
                for key, value in vars(item).items()
                if not (key.startswith("_") or isinstance(value, (QtCore.SignalInstance, QtCore.QObject)))
            ]
    return found


def _stands_for_cpp(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in ("PySide6", "Workbench")
