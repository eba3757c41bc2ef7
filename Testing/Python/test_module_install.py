"""What the panel does before the first run where packages are missing: ask, install, wait, tell what failed.

Workbench.packaging records what Slicer would install; PyTorchUtils is a module of the extension PyTorch.
"""

import subprocess
import sys
import types

import pytest

slicer = pytest.importorskip("slicer")
from panel_steps import add_pair, click, prepare  # noqa: E402
from Workbench.dialogs import press  # noqa: E402


@pytest.fixture
def install_torch(monkeypatch, panel):
    """Sets what PyTorchUtils does when it is asked to install PyTorch, which is not there."""
    from FoundationRegLib.slicer.panel import dependencies

    monkeypatch.setattr(dependencies, "torch_version", lambda: None)

    def use(function):
        class PyTorchUtilsLogic:
            def installTorch(self, askConfirmation=False, forceComputationBackend=None, torchVersionRequirement=None):
                return function()

        module = types.SimpleNamespace(PyTorchUtilsLogic=PyTorchUtilsLogic)
        monkeypatch.setitem(sys.modules, "PyTorchUtils", module)

    return use


@pytest.fixture
def packages(monkeypatch, panel):
    """Name of a missing package -> whether it is installed; what pip is asked for becomes installed."""
    from Workbench import packaging

    states, installed = {}, []

    def pip_check(requirement, _seen=None):
        return states.get(str(requirement).split("=")[0].split(">")[0], True)

    class Record(list):
        def append(self, arguments):
            installed.append(arguments)
            states.update({argument.split("=")[0].split(">")[0]: packaging.exit_code == 0 for argument in arguments})

    monkeypatch.setattr(packaging, "installed", Record())
    for module in (packaging, slicer.packaging):
        monkeypatch.setattr(module, "pip_check", pip_check)
    states["record"] = installed
    return states


def refused(bench, widget, button="OK"):
    """Apply; the texts of the dialogs that come. ``button``: what to press in questions; messages only have OK."""

    def answer(dialog):
        question = dialog.button(dialog.StandardButton.Cancel) is not None
        press(button if question else "OK")(dialog)

    with bench.dialogs.answering(answer) as seen:
        click(bench, widget.ui.applyButton)
    return seen


@pytest.mark.parametrize(
    "error",
    [
        subprocess.CalledProcessError(1, ["pip", "install", "torch"]),
        RuntimeError("Failed to get computation backend"),
        ImportError("libcudart.so.12: cannot open shared object file"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_failure_of_pytorchs_installation_is_one_message_that_names_its_module(
    panel, bench, fake_channel, install_torch, error
):
    def fail():
        raise error

    install_torch(fail)
    prepare(panel, bench)
    fake_channel.close()
    seen = refused(bench, panel)
    assert len(seen) == 1 and "PyTorch Utils" in seen[0] and "could not be installed" in seen[0]
    assert not panel.panel._busy and panel.ui.applyButton.enabled and not fake_channel.process.alive


def test_apply_is_busy_while_something_is_installed(panel, bench, install_torch):
    calls, states = [], []

    def install():
        calls.append(1)
        panel.ui.applyButton.click()  # Slicer lets Qt work while pip runs
        slicer.app.processEvents()
        states.append((panel.ui.applyButton.text, panel.ui.applyButton.enabled))
        panel.panel._onApply()
        panel.panel.update()
        states.append((panel.ui.applyButton.text, panel.ui.applyButton.enabled))

    install_torch(install)
    prepare(panel, bench)
    seen = refused(bench, panel)
    assert len(calls) == 1 and states == [("Installing...", False)] * 2
    assert len(seen) == 1 and "PyTorch was not installed" in seen[0]
    assert panel.ui.applyButton.text == "Apply" and panel.ui.applyButton.enabled


def test_an_older_pytorch_is_found_before_the_worker_starts(panel, bench, fake_channel, monkeypatch):
    from FoundationRegLib.slicer.panel import dependencies

    monkeypatch.setattr(dependencies, "torch_version", lambda: "1.13.1+cu117")
    prepare(panel, bench)
    fake_channel.close()
    seen = refused(bench, panel)
    assert len(seen) == 1 and "1.13.1" in seen[0] and "2.4" in seen[0] and "PyTorch Utils" in seen[0]
    assert not fake_channel.process.alive


def test_a_failure_of_pip_is_told(panel, bench, packages, monkeypatch):
    from Workbench import packaging

    packages["pooch"] = False
    monkeypatch.setattr(packaging, "exit_code", 2)
    prepare(panel, bench)
    seen = refused(bench, panel)
    assert "Install Python Packages" in seen[0] and "pip ended with code 2" in seen[1] and len(seen) == 2
    assert not panel.panel._busy


@pytest.mark.parametrize(("encoder", "package"), [("sam-b", "segment-anything"), ("folder", "transformers")])
def test_encoders_install_what_they_need_by_family_before_any_download(
    panel, bench, packages, tmp_path, encoder, package
):
    packages[package] = False
    prepare(panel, bench)
    if encoder == "folder":
        (tmp_path / "vit").mkdir()
        panel._parameterNode.encoder = str(tmp_path / "vit")
    else:
        panel.ui.encoderComboBox.currentIndex = panel.ui.encoderComboBox.findData(encoder)
    seen = refused(bench, panel, "Cancel")
    assert len(seen) == 2 and package in seen[0] and "were not installed" in seen[1] and packages["record"] == []

    def answer(dialog):
        press("Cancel" if "Download" in dialog.windowTitle else "OK")(dialog)

    with bench.dialogs.answering(answer) as seen:
        click(bench, panel.ui.applyButton)
        bench.wait_until(lambda: not panel.panel._busy, 60)
    assert "Install Python Packages" in seen[0] and packages["record"] and package in packages["record"][0][0]
    if encoder == "sam-b":
        assert "Download weights" in seen[1]


def test_mind_needs_no_package_of_a_family(panel, bench, packages):
    packages.update({"segment-anything": False, "transformers": False})
    prepare(panel, bench)
    click(bench, panel.ui.applyButton)
    bench.wait_until(lambda: not panel.panel._busy, 60)
    assert packages["record"] == [] and panel.ui.outputTransformSelector.currentNode() is not None


def test_the_console_says_that_pytorch_is_missing(panel, monkeypatch):
    from FoundationRegLib.errors import InputError
    from FoundationRegLib.slicer.panel import dependencies

    from FoundationReg import FoundationRegLogic

    monkeypatch.setattr(dependencies, "torch_version", lambda: None)
    with pytest.raises(InputError, match="PyTorch is not installed"):
        FoundationRegLogic().process(*add_pair(), settings={"encoders": "mind"})
