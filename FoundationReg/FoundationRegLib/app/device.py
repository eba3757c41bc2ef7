"""The device that computes, for the panel's device line."""

from __future__ import annotations


def describe_device(name: str = "auto") -> dict:
    """What the panel's device line shows: torch's version, the device's name, its free memory in bytes, and which
    compiled kernels the CPU uses."""
    import torch

    from ..native import library

    answer = {"torch": torch.__version__, "cuda": torch.version.cuda, "device": "cpu", "name": "CPU", "memory": None}
    answer["threads"], answer["compiled_kernels"] = torch.get_num_threads(), library.in_use()
    if name.startswith("cuda") or (name == "auto" and torch.cuda.is_available()):
        device = torch.device("cuda" if name == "auto" else name)
        try:
            torch.zeros(1, device=device)
            free, _ = torch.cuda.mem_get_info(device)
            answer.update(device=str(device), name=torch.cuda.get_device_name(device), memory=free)
        except (RuntimeError, AssertionError) as error:
            lines = str(error).strip().splitlines()
            answer["problem"] = lines[0] if lines else type(error).__name__
    elif name == "mps" or (name == "auto" and torch.backends.mps.is_available()):
        answer.update(device="mps", name="Apple GPU")
    return answer
