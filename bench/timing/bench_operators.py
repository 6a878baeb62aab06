"""Both operators, forward and backward, each implementation on the same numbers."""

from functools import partial

import pytest
import torch

from bench.timing import baselines
from bench.timing.counts import backward_work, forward_work
from bench.timing.inputs import POSITIONS, msda_inputs, output_gradient, stda_inputs
from bench.timing.shapes import DTYPES
from bench.timing.stopwatch import ERROR_LIMITS, JUMP_LIMIT, Action, require_correct
from stnet.kernels.problem import MsdaProblem, MsdaTensors, StdaTensors
from stnet.kernels.reference import msda_reference, stda_reference

ROTATED_SETS = 3
LAYERS = ("encoder", "decoder")
BY_POSITION = ("offsets", "other_offsets", "locations")
BY_HEADS = "stnet, values by heads"
NO_VALUE = "stnet, no value gradient"  # how much of the backward pass its additions to memory take


def _stda_reference(problem, x):
    return stda_reference(problem, StdaTensors(**vars(x), other_reference_points=x.reference_points))


def _msda_reference(problem, x):
    tensors = MsdaTensors(x.value, x.locations, x.weights)
    return msda_reference(MsdaProblem.of(tensors, problem.spatial_shapes), tensors)


def _forward(attend, problem) -> Action:
    @torch.no_grad()
    def run(inputs):
        return attend(problem, inputs)

    return Action(run=run)


def _backward(attend, problem) -> Action:
    """Return the backward pass alone: the forward pass is its preparation."""

    def prepare(inputs):
        output = attend(problem, inputs)
        return output, inputs.differentiable(), output_gradient(output)

    return Action(run=torch.autograd.grad, prepare=prepare)


def _check_forward(action, reference, problem, inputs, dtype) -> float:
    return require_correct(action.whole(inputs), reference(problem, inputs.float()), ERROR_LIMITS[dtype])


def _check_backward(action, reference, problem, inputs, dtype) -> float:
    """Compare every gradient with the reference's; return the largest error of those that do not jump."""
    exact = inputs.float()
    names = [name for name, tensor in vars(inputs).items() if tensor.requires_grad]
    for name in names:
        vars(exact)[name].requires_grad_()
    expected = _backward(reference, problem).whole(exact)
    errors = []
    for name, gradient, wanted in zip(names, action.whole(inputs), expected, strict=True):
        limit = ERROR_LIMITS[dtype]
        if name in BY_POSITION:
            require_correct(gradient, wanted, max(limit, JUMP_LIMIT), f"gradient by {name}")
        else:
            errors.append(require_correct(gradient, wanted, limit, f"gradient by {name}"))
    return max(errors)


PASSES = {
    "forward": (_forward, _check_forward, forward_work),
    "backward": (_backward, _check_backward, backward_work),
}


@pytest.mark.parametrize("implementation", baselines.STDA)
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("direction", PASSES)
def test_stda(implementation, direction, layer, positions, dtype, batch, device, settings, available, measure):
    if implementation == NO_VALUE and (direction, layer) != ("backward", "encoder"):
        pytest.skip("of the encoder's backward pass alone")
    make, check, work = PASSES[direction]
    problem, torch_dtype = settings.sizes.stda(layer, batch), DTYPES[dtype]
    action = make(available(baselines.stda, implementation), problem)
    sets = [
        stda_inputs(problem, positions, torch_dtype, settings.device, seed, grad=direction == "backward")
        for seed in range(ROTATED_SETS)
    ]
    if implementation == BY_HEADS:
        sets = [inputs.by_heads() for inputs in sets]
    if implementation == NO_VALUE:
        sets = [inputs.without_value_gradient() for inputs in sets]
    measure(
        action,
        [(inputs,) for inputs in sets],
        group=f"stda {direction} {layer} {positions} {dtype} batch {batch}",
        info=_info("stda", implementation, direction, layer, positions, dtype, batch),
        check=partial(check, action, _stda_reference, problem, sets[0], torch_dtype),
        baseline=(baselines.STDA_BASELINE, lambda: make(baselines.stda(baselines.STDA_BASELINE), problem)),
        work=work(problem, torch_dtype),
    )


@pytest.mark.parametrize("implementation", baselines.MSDA)
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("direction", PASSES)
def test_msda(implementation, direction, layer, positions, dtype, batch, device, settings, available, measure):
    make, check, work = PASSES[direction]
    problem, torch_dtype = settings.sizes.msda(layer, batch), DTYPES[dtype]
    action = make(available(baselines.msda, implementation), problem)
    sets = [
        msda_inputs(problem, positions, torch_dtype, settings.device, seed, grad=direction == "backward")
        for seed in range(ROTATED_SETS)
    ]
    measure(
        action,
        [(inputs,) for inputs in sets],
        group=f"msda {direction} {layer} {positions} {dtype} batch {batch}",
        info=_info("msda", implementation, direction, layer, positions, dtype, batch),
        check=partial(check, action, _msda_reference, problem, sets[0], torch_dtype),
        baseline=(baselines.MSDA_BASELINE, lambda: make(baselines.msda(baselines.MSDA_BASELINE), problem)),
        work=work(problem, torch_dtype, located=True),
    )


def _info(operator, implementation, direction, layer, positions, dtype, batch) -> dict:
    return {
        "suite": "operators",
        "operator": operator,
        "implementation": implementation,
        "direction": direction,
        "layer": layer,
        "positions": positions,
        "dtype": dtype,
        "batch": batch,
    }
