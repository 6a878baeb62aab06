"""Products and convolutions of oneDNN, as TorchInductor calls them: weights in its own layout, what follows fused.

PyTorch's eager layers lay a convolution's weights out anew in every call, and add bias, residual and ReLU in passes of
their own over memory. Of a ResNet's time on two cores that is a third.
"""

import platform
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_OPERATORS = (
    "_convolution_pointwise",
    "_convolution_pointwise_",
    "_linear_pointwise",
    "_reorder_convolution_weight",
    "_reorder_linear_weight",
)
RELU: tuple[str, list[float]] = ("relu", [])
RELU6: tuple[str, list[float]] = ("hardtanh", [0.0, 6.0])


def available() -> bool:
    """Return whether this PyTorch has these operators, and the processor is one on which they were measured."""
    built = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")
    return built and all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS)


class PackedLinear(nn.Module):
    """A linear layer, followed by ReLU where that is asked for.

    Args:
        linear: the layer; its weights are copied.
        relu: replace negative results by 0.
    """

    def __init__(self, linear: nn.Linear, *, relu: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._activation = "relu" if relu else "none"
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous())
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Return `[..., out_features]` of `[..., in_features]`."""
        linear = torch.ops.mkldnn._linear_pointwise
        return linear(x.contiguous(), self._weight, self._bias, self._activation, [], "")


class PackedConvolution(nn.Module):
    """A convolution of channels-last images, followed by an activation where one is given.

    Which layout of the weights is fastest depends on the images' height and width: it is made for the first images,
    and again when the size changes.

    Args:
        conv: the convolution, padded with zeros; its weights are copied.
        activation: None, RELU or RELU6.
    """

    def __init__(self, conv: nn.Conv2d, activation: tuple[str, Sequence[float]] | None = None) -> None:
        super().__init__()
        self.kernel_size, self.stride = conv.kernel_size, conv.stride
        self._geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self._activation, self._limits = activation or (None, [])
        self._weight, self._bias = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
        self._packed: tuple[tuple[int, ...], Tensor] | None = None

    def forward(self, images: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return `[N, C', H', W']` of `[N, C, H, W]`.

        Args:
            images: of any number.
            residual: what is added before the activation; the result is written over it.
        """
        weight, operators = self._weight_for(images), torch.ops.mkldnn
        if residual is None:
            activation = (self._activation or "none", self._limits, "")
            return operators._convolution_pointwise(images, weight, self._bias, *self._geometry, *activation)
        addition = ("add", None, self._activation, self._limits, "")
        return operators._convolution_pointwise_(residual, images, weight, self._bias, *self._geometry, *addition)

    def _weight_for(self, images: Tensor) -> Tensor:
        packed, size = self._packed, tuple(images.shape[1:])
        if packed is None or packed[0] != size:  # other threads keep what they took
            weight = torch.ops.mkldnn._reorder_convolution_weight(self._weight, *self._geometry, list(images.shape))
            packed = self._packed = (size, weight)
        return packed[1]
