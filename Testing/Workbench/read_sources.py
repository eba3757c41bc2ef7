"""Lists what Python can reach of Slicer's and CTK's classes, from their sources, for the tests of the stand-ins.

    python -m Workbench.read_sources SLICER.git CTK.git > Testing/Python/slicer_api.json

PythonQt offers the properties, signals, public slots, Q_INVOKABLE methods and enumerators of a C++ class. Only their
names, the types in signals, and the names of arguments of Python functions are written down.
"""

import ast
import json
import re
import subprocess
import sys

_CTK_WIDGETS = (
    "ctkCollapsibleButton",
    "ctkComboBox",
    "ctkDoubleSpinBox",
    "ctkMessageBox",
    "ctkPathLineEdit",
    "ctkSliderWidget",
)
_CTK_VTK_WIDGETS = (
    "ctkVTKAbstractView",
    "ctkVTKRenderView",
    "ctkVTKSliceView",
)
_MRML_WIDGETS = (
    "qMRMLAbstractViewWidget",
    "qMRMLCheckableNodeComboBox",
    "qMRMLLayoutManager",
    "qMRMLNodeComboBox",
    "qMRMLPlotWidget",
    "qMRMLSliceControllerWidget",
    "qMRMLSliceView",
    "qMRMLSliceWidget",
    "qMRMLSliderWidget",
    "qMRMLTableWidget",
    "qMRMLThreeDView",
    "qMRMLThreeDWidget",
    "qMRMLViewControllerBar",
    "qMRMLWidget",
)
_QT_CORE = (
    "qSlicerAbstractCoreModule",
    "qSlicerCoreApplication",
    "qSlicerCoreIOManager",
    "qSlicerModuleManager",
)
_QT_GUI = (
    "qSlicerAbstractModule",
    "qSlicerAbstractModuleWidget",
    "qSlicerApplication",
    "qSlicerLayoutManager",
    "qSlicerLoadableModule",
    "qSlicerScriptedLoadableModule",
    "qSlicerScriptedLoadableModuleWidget",
    "qSlicerWidget",
)
_DECORATORS = (
    "Base/QTCore/qSlicerBaseQTCorePythonQtDecorators.h",
    "Base/QTGUI/qSlicerBaseQTGUIPythonQtDecorators.h",
)
_PYTHON = {
    "slicer.util": "Base/Python/slicer/util.py",
    "slicer.packaging": "Base/Python/slicer/packaging.py",
    "slicer.i18n": "Base/Python/slicer/i18n.py",
    "slicer.ScriptedLoadableModule": "Base/Python/slicer/ScriptedLoadableModule.py",
    "slicer.parameterNodeWrapper": "Base/Python/slicer/parameterNodeWrapper/*.py",
    "SampleData": "Modules/Scripted/SampleData/SampleData.py",
}


def _show(repository: str, path: str) -> str:
    return subprocess.run(
        ["git", "-C", repository, "show", f"HEAD:{path}"], capture_output=True, text=True, check=True
    ).stdout


def _commit(repository: str) -> str:
    command = ["git", "-C", repository, "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def read_header(text: str, name: str) -> dict:
    """Base class, properties, signals, methods and enumerators of the class ``name`` in a C++ header."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)
    text = re.sub(r"=\s*[\w:]+\(\)", "", text)  # default arguments
    start = re.search(rf"class\s+(?:\w+_EXPORT\s+)?{name}\b[^;{{]*{{", text)
    body = text[start.end() : text.index("\n};", start.end())]
    bases = re.findall(r"public\s+(\w+)", start.group(0))
    section, signals, methods = "", [], set()
    for statement in re.split(r"(?<=[;{}])|(?<=signals:)|(?<=slots:)|(?<=Q_SIGNALS:)|(?<=Q_SLOTS:)", body):
        label = re.search(r"(signals|slots|Q_SIGNALS|Q_SLOTS|public|protected|private)\s*:", statement)
        if label:
            found = re.findall(r"(public|protected|private)?\s*(signals|slots|Q_SIGNALS|Q_SLOTS)?\s*:(?!:)", statement)
            section = " ".join(word for pair in found[-1:] for word in pair if word)
        function = re.search(r"(\w+)\s*\(([^()]*)\)[^()]*[;{]?\s*$", statement)
        if not function or ("Q_PROPERTY" in statement and "Q_INVOKABLE" not in statement):
            continue
        if section in ("signals", "Q_SIGNALS"):
            signals.append(f"{function.group(1)}({','.join(map(_type, _arguments(function.group(2))))})")
        elif section in ("public slots", "public Q_SLOTS") or "Q_INVOKABLE" in statement:
            methods.add(function.group(1))
    enumerators = set()
    for block in re.findall(r"enum\s+\w*\s*{(.*?)}", body, flags=re.S):
        enumerators.update(re.findall(r"(?:^|,)\s*(\w+)", block))
    return {
        "bases": bases,
        "properties": sorted(set(re.findall(r"Q_PROPERTY\(\s*[\w:<>]+\*?\s+(\w+)\s", body))),
        "signals": sorted(set(signals)),
        "methods": sorted(methods),
        "enumerators": sorted(enumerators),
    }


def read_decorators(text: str) -> list[tuple[str, str]]:
    """(class, method) that decorators add: ``T method(Class* object, ...)`` and ``T static_Class_method(...)``."""
    added = re.findall(r"static_(\w+?)_(\w+)\s*\(", text)
    return added + [(kind, name) for name, kind in re.findall(r"^\s+[\w:]+\*?\s+(\w+)\((\w+)\* ", text, flags=re.M)]


def _arguments(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _type(argument: str) -> str:
    """``"const QString& name"`` to ``"QString"``, as Qt normalizes signatures."""
    argument = re.sub(r"=.*", "", argument).strip()
    kind = re.match(r"(?:const\s+)?([\w:]+(?:<[^>]*>)?(?:\s*\*)?)", argument).group(1)
    return kind.replace(" ", "").rpartition("::")[2]


def read_python(text: str) -> dict:
    """Public functions with the names of their arguments, and classes with those of their methods."""
    found = {}
    for item in ast.parse(text).body:
        if isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
            found[item.name] = _parameters(item)
        elif isinstance(item, ast.ClassDef) and not item.name.startswith("_"):
            methods = [m for m in item.body if isinstance(m, ast.FunctionDef)]
            found[item.name] = {m.name: _parameters(m) for m in methods if m.name == "__init__" or m.name[0] != "_"}
    return found


def _parameters(function: ast.FunctionDef) -> list[str]:
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    names += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    names += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    return [name for name in names if name != "self"]


def read(slicer: str, ctk: str) -> dict:
    """The list, from two git repositories."""
    headers = {name: (ctk, f"Libs/Widgets/{name}.h") for name in _CTK_WIDGETS}
    headers |= {name: (ctk, f"Libs/Visualization/VTK/Widgets/{name}.h") for name in _CTK_VTK_WIDGETS}
    headers |= {name: (slicer, f"Libs/MRML/Widgets/{name}.h") for name in _MRML_WIDGETS}
    headers |= {name: (slicer, f"Base/QTCore/{name}.h") for name in _QT_CORE}
    headers |= {name: (slicer, f"Base/QTGUI/{name}.h") for name in _QT_GUI}
    classes = {}
    for name, (repository, path) in sorted(headers.items()):
        source = {"source": f"{'CTK' if repository == ctk else 'Slicer'}: {path}"}
        classes[name] = source | read_header(_show(repository, path), name)
    for path in _DECORATORS:
        for name, method in read_decorators(_show(slicer, path)):
            if name in classes:
                classes[name]["methods"] = sorted({*classes[name]["methods"], method})
    python = {}
    for module, path in _PYTHON.items():
        paths = [path]
        if path.endswith("*.py"):
            folder = path.removesuffix("*.py")
            listing = ["git", "-C", slicer, "ls-tree", "--name-only", f"HEAD:{folder}"]
            files = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split()
            paths = [folder + file for file in files if file.endswith(".py")]
        names = {}
        for one in paths:
            names |= read_python(_show(slicer, one))
        python[module] = {"source": f"Slicer: {path}", "names": names}
    commits = {"Slicer": _commit(slicer), "CTK": _commit(ctk)}
    return {"read from": commits, "classes": classes, "python": python}


if __name__ == "__main__":
    json.dump(read(*sys.argv[1:3]), sys.stdout, indent=1, sort_keys=True)
    print()
