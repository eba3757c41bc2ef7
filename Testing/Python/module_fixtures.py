"""The module in the workbench, with a register that takes no time, for the tests of its panel."""

import os
import sys
from pathlib import Path

import pytest

MODULE = Path(__file__).parents[2] / "FoundationReg" / "FoundationReg.py"
FAKE_WORKER = Path(__file__).with_name("fake_register.py")


@pytest.fixture(scope="module")
def loaded(bench):
    """The Python widget of the module. The library that was imported before is put back afterwards."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "FoundationRegLib"}
    widget = bench.load_module(MODULE)
    yield widget
    bench.unload_module("FoundationReg")
    for name in [name for name in sys.modules if name.partition(".")[0] == "FoundationRegLib"]:
        del sys.modules[name]
    # A package keeps its submodules as attributes too; "from package import module" would find the panel's again.
    for name, package in before.items():
        for child, value in list(vars(package).items()):
            if getattr(value, "__name__", None) == f"{name}.{child}" and value.__name__ not in before:
                delattr(package, child)
    sys.modules.update(before)


@pytest.fixture(scope="module")
def fake_channel(loaded):
    """A channel to a worker whose register is `fake_register.register`; warm over the tests of a file."""
    from FoundationRegLib.slicer.client import pump
    from FoundationRegLib.slicer.client.channel import Channel
    from FoundationRegLib.slicer.client.process import WorkerProcess

    process = WorkerProcess([sys.executable, "-P", str(FAKE_WORKER)], {"OMP_NUM_THREADS": "1"})
    channel = Channel(process)
    pump.use_channel(channel)
    yield channel
    pump.use_channel(None)


@pytest.fixture
def panel(bench, loaded, fake_channel, tmp_path, monkeypatch):
    """The opened panel on an empty scene, with the weights folder of this test."""
    import slicer
    from FoundationRegLib.weights import store

    store.set_models_folder(tmp_path / "models")
    fake_channel.process.environment["FOUNDATIONREG_MODELS"] = str(tmp_path / "models")
    slicer.mrmlScene.Clear(0)
    loaded.enter()
    bench.process_events()
    yield loaded
    loaded.panel.cancel()
    if fake_channel.job is not None and fake_channel.job.running:
        fake_channel.job.cancel()
    bench.wait_until(lambda: not loaded.panel._busy, 10)
    slicer.mrmlScene.Clear(0)
    store.set_models_folder(None)
    bench.process_events()
    assert not bench.dialogs.unexpected, bench.dialogs.unexpected
    bench.dialogs.unexpected.clear()


def process_is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
