"""Reading untrusted weight files, and putting them into a network without anything left over."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import WeightsError

# Float weights shrink to a half at best; some files hold zeros.
_LARGEST_GROWTH = 20


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a PyTorch file, by name; no code in the file runs.

    A dictionary that wraps the weights (``model``, ``state_dict``) is opened. Raises `WeightsError`.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            begins = file.read(9)
        if begins[8:] == b"{":  # a length of eight bytes, then JSON: safetensors, whatever the file is called
            from safetensors.torch import load_file

            return load_file(path)
        _require_bounded(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickles; what they hold is refused or read
            content = torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except pickle.UnpicklingError:
        raise WeightsError(
            f"The file {path} holds more than weights (Python objects that would run as code) and was not opened."
        ) from None
    except Exception as error:
        raise WeightsError(f"The file {path} cannot be read as weights: {first_line(error)}") from None
    for wrapper in ("state_dict", "model", "teacher"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"The file {path} holds no table of weights.")
    return dict(content)


def _require_bounded(path: Path) -> None:
    """Raise `WeightsError` where a PyTorch file, a zip archive, would unpack to far more than its own size.

    torch stores weights as they are; an archive that was packed again may be made to fill the memory.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        promised = sum(item.file_size for item in archive.infolist())
    if promised > _LARGEST_GROWTH * path.stat().st_size + (1 << 20):
        raise WeightsError(f"The file {path} unpacks to {promised / 1e6:,.0f} MB, more than weights would.")


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name begins with ``prefix``, named without it."""
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy ``state`` into ``network``. Raises `WeightsError` that names every missing, surplus or misshapen key."""
    own = network.state_dict()
    problems = {
        "missing": [name for name in own if name not in state],
        "surplus": [name for name in state if name not in own],
        "of the wrong shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
    }
    found = "; ".join(f"{what}: {some(names)}" for what, names in problems.items() if names)
    if found:
        raise WeightsError(f"The file {path} does not fit this encoder. Keys {found}.")
    network.load_state_dict(dict(state))


def some(names: list[str], limit: int = 5) -> str:
    """The first of ``names``, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
