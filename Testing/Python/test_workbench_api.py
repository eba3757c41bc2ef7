"""The stand-ins offer what Slicer offers, and nothing else; slicer_api.json lists what Slicer and CTK offer.

``python -m Workbench.read_sources`` writes that list anew from the sources.
"""

import ast
import inspect
import json
import pathlib
import xml.etree.ElementTree as ElementTree

import pytest

ROOT = pathlib.Path(__file__).parents[2]
API = json.loads((pathlib.Path(__file__).parent / "slicer_api.json").read_text(encoding="utf-8"))
MODULE_FILES = sorted(
    [*(ROOT / "FoundationReg").glob("*.py"), *(ROOT / "FoundationReg" / "FoundationRegLib" / "slicer").rglob("*.py")]
)
UI_FILES = sorted((ROOT / "FoundationReg" / "Resources" / "UI").glob("*.ui"))


def members(class_name: str) -> set[str] | None:
    """Names that Slicer's Python reaches on objects of a CTK or Slicer class; None for a class not in the list."""
    entry = API["classes"].get(class_name)
    if entry is None:
        return None
    names = {*entry["properties"], *entry["methods"], *entry["enumerators"]}
    names |= {signal.partition("(")[0] for signal in entry["signals"]}
    for base in entry["bases"]:
        names |= members(base) or _qt_members(base)
    return names


def signatures(class_name: str) -> set[str]:
    entry = API["classes"].get(class_name, {"signals": [], "bases": []})
    return set(entry["signals"]).union(*(signatures(base) for base in entry["bases"]))


def _qt_members(class_name: str) -> set[str]:
    import qt

    return set(dir(getattr(qt, class_name, object)))


def _standin_classes():
    from Workbench import application, ctkwidgets, iomanager, layout, mrmlwidgets, renderview, scripted, viewdata

    modules = (application, ctkwidgets, iomanager, layout, mrmlwidgets, renderview, scripted, viewdata)
    found = {
        value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and name.startswith(("ctk", "qMRML", "qSlicer"))
    }
    return sorted(found, key=lambda cls: cls.__name__)


def test_stand_ins_have_only_members_that_slicer_has(workbench):
    """Names with an underscore are the workbench's own; every other public name must be Slicer's."""
    import qt

    wrong = []
    for cls in _standin_classes():
        known = members(cls.__name__)
        assert known is not None, f"{cls.__name__} is not in slicer_api.json"
        own = [base for base in cls.__mro__ if base.__module__.startswith("Workbench")]
        ours = {"cppSignals", "resized", "staticMetaObject", "setup"}  # setup: a C++ method that the workbench calls
        for name in {name for base in own for name in vars(base)} - ours:
            if "_" not in name and name not in known | set(dir(qt.QWidget)):
                wrong.append(f"{cls.__name__}.{name}")
    assert not wrong, "\n".join(wrong)


def test_stand_ins_answer_to_signals_by_slicers_signatures(workbench):
    wrong = []
    for cls in _standin_classes():
        for base in cls.__mro__:
            for signature in vars(base).get("cppSignals", {}):
                if signature not in signatures(cls.__name__):
                    wrong.append(f"{cls.__name__}.{signature}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ["slicer.packaging", "slicer.i18n", "SampleData", "slicer.ScriptedLoadableModule"])
def test_python_stand_ins_have_slicers_signatures(workbench, name):
    import importlib

    module, listed = importlib.import_module(name), API["python"][name]["names"]
    wrong = []
    for key, value in vars(module).items():
        if key not in listed or not callable(value):
            continue
        functions = {key: (value, listed[key])}
        if isinstance(value, type):
            own = {
                m: f for m, f in vars(value).items() if inspect.isfunction(inspect.unwrap(getattr(f, "__func__", f)))
            }
            functions = {f"{key}.{m}": (getattr(value, m), listed[key][m]) for m in own if m in listed[key]}
            strange = [m for m in own if m not in listed[key] and not m.startswith("_")]
            wrong += [f"{key}.{m}" for m in strange]
        for label, (function, expected) in functions.items():
            parameters = inspect.signature(function).parameters.values()
            names = [p.name for p in parameters if p.name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
            if names != [argument for argument in expected if not argument.startswith("*")]:
                wrong.append(f"{label}({', '.join(names)}) instead of ({', '.join(expected)})")
    assert not wrong, "\n".join(wrong)


def test_parameter_node_stand_in_has_only_slicers_names(workbench):
    import slicer.parameterNodeWrapper as stand_in

    listed = {*API["python"]["slicer.parameterNodeWrapper"]["names"], "SlicerParameterNamePropertyName"}
    assert {name for name in vars(stand_in) if not name.startswith("_")} <= listed


# What the module itself uses of Slicer


def _ui_widgets() -> dict[str, str]:
    """Object name to class of all widgets in the module's .ui files."""
    widgets = (w for file in UI_FILES for w in ElementTree.parse(file).iter("widget"))
    return {widget.get("name"): widget.get("class") for widget in widgets}


def test_the_ui_file_uses_classes_properties_and_signals_that_exist(workbench):
    wrong = []
    for file in UI_FILES:
        root = ElementTree.parse(file).getroot()
        classes = {}
        for widget in root.iter("widget"):
            class_name, name = widget.get("class"), widget.get("name")
            classes[name] = class_name
            known = members(class_name) or _qt_members(class_name)
            if not known:
                wrong.append(f"{name}: class {class_name}")
            for item in widget.findall("property"):
                if item.get("stdset") != "0" and item.get("name") not in known:
                    wrong.append(f"{name}: {class_name}.{item.get('name')}")
        for connection in root.iter("connection"):
            sender, slot = classes[connection.findtext("sender")], connection.findtext("slot")
            signal, receiver = connection.findtext("signal"), classes[connection.findtext("receiver")]
            known = members(sender) or _qt_members(sender)
            if signal not in signatures(sender) and signal.partition("(")[0] not in known:
                wrong.append(f"signal {sender}.{signal}")
            if slot.partition("(")[0] not in (members(receiver) or _qt_members(receiver)):
                wrong.append(f"slot {receiver}.{slot}")
    assert not wrong, "\n".join(wrong)


def _chain(node: ast.AST) -> list[str]:
    """``["self", "ui", "button", "text"]`` of ``self.ui.button.text``; what is no plain chain of names gives []."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [node.id, *reversed(names)] if isinstance(node, ast.Name) else []


@pytest.mark.parametrize("file", MODULE_FILES, ids=lambda file: file.name)
def test_the_module_uses_only_what_slicer_offers(workbench, file):
    """Every ``ui.widget.member``, ``slicer.util.function``, ``slicer.app.member``, ``ctk.Class``, ``qt.Class``..."""
    import qt
    import slicer

    widgets, wrong = _ui_widgets(), []
    app = members("qSlicerApplication") | members("qSlicerLayoutManager")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        chain = _chain(node)
        if "ui" in chain and len(chain) > chain.index("ui") + 2:
            name, member = chain[chain.index("ui") + 1 : chain.index("ui") + 3]
            class_name = widgets.get(name)
            if class_name is None:
                wrong.append(f"line {node.lineno}: no widget {name} in the .ui file")
            elif member not in (members(class_name) or _qt_members(class_name)) | {"name", "delete", "className"}:
                wrong.append(f"line {node.lineno}: {class_name} {name}.{member}")
        elif chain[:2] in (["slicer", "util"], ["slicer", "packaging"], ["slicer", "i18n"]) and len(chain) > 2:
            if chain[2] not in API["python"][".".join(chain[:2])]["names"]:
                wrong.append(f"line {node.lineno}: {'.'.join(chain)}")
        elif chain[:2] == ["slicer", "app"] and len(chain) > 2 and chain[2] not in app | _qt_members("QApplication"):
            wrong.append(f"line {node.lineno}: {'.'.join(chain)}")
        elif chain[:1] == ["slicer"] and len(chain) > 1 and chain[1].startswith(("vtk", "qMRML", "qSlicer")):
            if not hasattr(slicer, chain[1]) and chain[1] not in API["classes"]:
                wrong.append(f"line {node.lineno}: {'.'.join(chain)}")
        elif len(chain) > 1 and (
            (chain[0] == "ctk" and chain[1] not in API["classes"]) or (chain[0] == "qt" and not hasattr(qt, chain[1]))
        ):
            wrong.append(f"line {node.lineno}: {'.'.join(chain)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", MODULE_FILES, ids=lambda file: file.name)
def test_the_module_connects_signals_that_exist(file):
    """Each ``ui.widget.connect("signal(type)", ...)`` names a signal of the widget's class with its C++ types."""
    widgets, wrong = _ui_widgets(), []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "connect"):
            continue
        chain, argument = _chain(node.func), node.args[0] if node.args else None
        literal = isinstance(argument, ast.Constant) and isinstance(argument.value, str)
        if "ui" not in chain[:-2] or not literal or chain[-2] not in widgets:
            continue
        class_name = widgets[chain[-2]]
        if class_name in API["classes"] and argument.value not in signatures(class_name):
            inherited = class_name == "ctkCollapsibleButton" and argument.value.startswith(("clicked(", "toggled("))
            if not inherited:
                wrong.append(f"line {node.lineno}: {class_name}.{argument.value}")
    assert not wrong, "\n".join(wrong)
