"""Linear layers by oneDNN, which torch brings along, where torch itself would ask MKL.

On processors with AVX-512 that are not Intel's, MKL multiplies float32 matrices by AVX2 and takes twice as long. oneDNN
uses what the processor has, and applies a GELU while a result is still in the cache.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# In place, which torch.nn.functional does not offer.
gelu_ = torch.ops.aten.gelu_

# Numbers that oneDNN multiplies on every such processor.
_TYPES = (torch.float32, torch.bfloat16)
# The operator's words for what follows the product.
_NOTHING, _GELU = ("none", [], ""), ("gelu", [], "none")


class Dense(nn.Linear):
    """`nn.Linear` by oneDNN on processors with AVX-512, and as ever elsewhere; the same but for rounding."""

    @classmethod
    def of(cls, layer: nn.Linear) -> Dense:
        """A layer with the parameters of ``layer``."""
        made = cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        made.weight, made.bias = layer.weight, layer.bias
        return made

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        """(..., inputs) to (..., outputs), with ``gelu`` through a GELU."""
        weight = self.weight
        if weight.device.type == "cpu" and weight.dtype in _TYPES and not torch.is_grad_enabled() and _is_better():
            return torch.ops.mkldnn._linear_pointwise(
                x.to(weight.dtype), weight, self.bias, *(_GELU if gelu else _NOTHING)
            )
        y = F.linear(x, self.weight, self.bias)
        return gelu_(y) if gelu else y


def use_onednn(network: nn.Module) -> None:
    """Put a `Dense` in the place of every `nn.Linear` in ``network``, with the same parameters."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Dense.of(child))


def _is_better() -> bool:
    return torch.backends.mkldnn.enabled and _onednn_works()


@functools.cache
def _onednn_works() -> bool:
    """Whether the processor has AVX-512, and torch the operator, which gives what it should."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    x, weight, bias = torch.linspace(-1, 1, 12).view(4, 3), torch.linspace(-2, 2, 6).view(2, 3), torch.ones(2)
    try:
        made = torch.ops.mkldnn._linear_pointwise(x, weight, bias, *_GELU)
        plain = torch.ops.mkldnn._linear_pointwise(x, weight, bias, *_NOTHING)
    except (AttributeError, RuntimeError):
        return False
    expected = F.linear(x, weight, bias)
    return torch.allclose(plain, expected, atol=1e-5) and torch.allclose(made, F.gelu(expected), atol=1e-5)
