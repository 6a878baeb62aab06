"""One encoder and one decoder layer, forward and backward."""

from functools import partial

import pytest
import torch

from bench import models
from bench.conftest import DTYPES
from bench.timing import ERROR_LIMITS, JUMP_LIMIT, Action, require_correct

ROTATED_SETS = 3


def _forward(call) -> Action:
    @torch.no_grad()
    def run(x):
        return call(x)

    return Action(run=run)


def _backward(call) -> Action:
    parameters = [parameter for parameter in call.layer.parameters() if parameter.requires_grad]

    def prepare(x):
        x = x.detach().requires_grad_()
        output = call(x)
        return output, [x, *parameters], output.detach().sign()

    def run(output, inputs, gradient):
        # The value projection of a decoder layer is applied outside of it.
        return torch.autograd.grad(output, inputs, gradient, allow_unused=True)[0]

    return Action(run=run, prepare=prepare)


# A layer's gradient by its input passes through sampling positions too, so that it jumps as they do.
PASSES = {"forward": (_forward, 0.0), "backward": (_backward, JUMP_LIMIT)}


def _check(action, reference, x, limit) -> float:
    return require_correct(action.whole(x), reference.whole(x.float()), limit)


@pytest.mark.parametrize("implementation", models.MODELS)
@pytest.mark.parametrize("layer", ("encoder", "decoder"))
@pytest.mark.parametrize("direction", PASSES)
def test_layer(implementation, direction, layer, dtype, batch, device, settings, available, measure):
    sizes, where, torch_dtype = settings.sizes, settings.device, DTYPES[dtype]
    make, least_limit = PASSES[direction]

    def call(name, dtype):
        model = available(partial(models.variant, config=models.without_dropout(sizes.config)), name)
        if layer == "encoder":
            return models.encoder_layer(model, sizes, where, dtype)
        return models.decoder_layer(model, sizes, batch, where, dtype)

    action = make(call(implementation, torch_dtype))
    config = sizes.config
    cells = sum(h * w for h, w in models.level_shapes(*sizes.image))
    shape = (config.frames, cells) if layer == "encoder" else (3, config.queries)
    sets = [(torch.randn(batch, *shape, config.hidden_dim, device=where).to(torch_dtype),) for _ in range(ROTATED_SETS)]
    reference = make(call(models.BASELINE, torch.float32))
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
        # A layer rounds a dozen times where the operator does once.
        check=partial(_check, action, reference, *sets[0], max(least_limit, 3 * ERROR_LIMITS[torch_dtype])),
        baseline=(models.BASELINE, make(call(models.BASELINE, torch_dtype))),
    )
