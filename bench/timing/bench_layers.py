"""One encoder and one decoder layer, forward and backward."""

from functools import partial

import pytest
import torch

from bench.timing import models
from bench.timing.inputs import output_gradient
from bench.timing.shapes import DTYPES
from bench.timing.stopwatch import ERROR_LIMITS, Action, require_correct

ROTATED_SETS = 3
ROUNDINGS = 3  # a layer rounds several times where the operator does once


def _forward(call: models.LayerCall) -> Action:
    @torch.no_grad()
    def run(*inputs):
        return [call.call(*inputs)]

    return Action(run=run)


def _backward(call: models.LayerCall) -> Action:
    """Gradients of inputs and parameters; `run` returns those of the inputs."""
    parameters = list(call.layer.parameters())

    def prepare(*inputs):
        inputs = [x.detach().requires_grad_() for x in inputs]
        output = call.call(*inputs)
        return output, inputs, output_gradient(output)

    def run(output, inputs, gradient):
        # The value projection of a decoder layer belongs to all layers at once and is applied outside.
        return torch.autograd.grad(output, [*inputs, *parameters], gradient, allow_unused=True)[: len(inputs)]

    return Action(run=run, prepare=prepare)


# Gradients by the inputs pass through the sampling positions and jump where a sample changes its cell: offsets rounded
# to 16 bits move one in a thousand (float16) or a hundred (bfloat16) across.
JUMP_LIMITS = {torch.float32: 0.03, torch.float16: 0.1, torch.bfloat16: 0.3}
PASSES = {"forward": _forward, "backward": _backward}


def _check(action, reference, inputs, limit) -> float:
    expected = reference.whole(*(x.float() for x in inputs))
    return max(require_correct(x, y, limit) for x, y in zip(action.whole(*inputs), expected, strict=True))


@pytest.mark.parametrize("implementation", models.MODELS)
@pytest.mark.parametrize("layer", models.LAYERS)
@pytest.mark.parametrize("direction", PASSES)
def test_layer(implementation, direction, layer, dtype, batch, device, settings, available, measure):
    make = PASSES[direction]
    torch_dtype, config = DTYPES[dtype], models.without_dropout(settings.sizes.config)

    def call(name, dtype):
        model = available(partial(models.variant, config=config), name)
        return models.LAYERS[layer](model, settings.sizes.image, batch, settings.device, dtype)

    subject = call(implementation, torch_dtype)
    sets = [
        tuple(torch.randn(shape, device=settings.device).to(torch_dtype) for shape in subject.shapes)
        for _ in range(ROTATED_SETS)
    ]
    limit = JUMP_LIMITS[torch_dtype] if direction == "backward" else ROUNDINGS * ERROR_LIMITS[torch_dtype]
    action, reference = make(subject), make(call(models.BASELINE, torch.float32))
    measure(
        action,
        sets,
        group=f"{layer} layer {direction} {dtype} batch {batch}",
        info={
            "suite": "layers",
            "implementation": implementation,
            "direction": direction,
            "layer": layer,
            "dtype": dtype,
            "batch": batch,
        },
        check=partial(_check, action, reference, sets[0], limit),
        baseline=(models.BASELINE, lambda: make(call(models.BASELINE, torch_dtype))),
    )
