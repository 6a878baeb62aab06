"""The published formulation computes the same function as the operator and the model it is compared with."""

import pytest
import torch

from bench.timing import baselines
from bench.timing.counts import backward_work, forward_work
from bench.timing.inputs import POSITIONS, msda_inputs, stda_inputs
from bench.timing.models import clips
from bench.timing.published import as_published, grid_sample_attention, published_attention
from bench.timing.shapes import SIZES, level_shapes
from bench.timing.stopwatch import relative_error
from stnet.kernels.problem import MsdaProblem, MsdaTensors, StdaProblem, StdaTensors
from stnet.kernels.reference import msda_reference, stda_reference
from stnet.model.config import ModelConfig
from stnet.model.detector import Detector

CPU = torch.device("cpu")


def _problem(**changes) -> StdaProblem:
    sizes = {
        "clips": 2,
        "source_frames": 3,
        "positions": 21,
        "heads": 2,
        "head_dim": 5,
        "targets": 2,
        "queries": 7,
        "points": 3,
        "other_frames": 2,
        "other_points": 2,
        "components": 2,
        "spatial_shapes": ((3, 5), (2, 3)),
        "frame_table": ((2, 0, 1), (1, 2, 0)),
    }
    return StdaProblem(**{**sizes, **changes})


def _attend(function, problem, x):
    arguments = (problem.spatial_shapes, x.reference_points, x.offsets, x.logits, x.other_offsets, x.other_logits)
    return published_attention(function, x.value, *arguments, frame_table=problem.frame_table)


def test_the_packaged_cuda_operator_is_called_as_it_demands_and_loses_no_bits_of_positions(monkeypatch):
    """On a GPU it refuses what is not contiguous, or of several types; rounded locations would make it wrong."""

    def strict(value, shapes, starts, locations, weights, im2col_step=64):
        tensors = (value, shapes, starts, locations, weights)
        assert all(x.is_contiguous() for x in tensors)
        assert {x.dtype for x in (value, locations, weights)} == {torch.float32} and shapes.dtype == torch.int64
        return grid_sample_attention(value, [tuple(shape) for shape in shapes.tolist()], locations, weights)

    monkeypatch.setattr(baselines, "_import", lambda module, name: strict)
    attend = baselines._torch_ms_deform_attn()
    problem = _problem()
    x = stda_inputs(problem, "near", torch.float16, CPU, seed=1)
    output, expected = _attend(attend, problem, x), _attend(grid_sample_attention, problem, x.float())
    assert output.dtype == torch.float16
    assert relative_error(output, expected) <= 1e-3
    assert f"{baselines.PUBLISHED}torch-ms-deform-attn" in baselines.STDA


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"components": 4},
        {"queries": 21},
        {"other_frames": 0, "frame_table": ((2,), (0,))},
    ],
    ids=["points", "boxes", "every-position", "no-others"],
)
def test_published_attention_is_the_operator(changes, positions):
    problem = _problem(**changes)
    x = stda_inputs(problem, positions, torch.float32, CPU, seed=1, grad=True)
    tensors = StdaTensors(**vars(x), other_reference_points=x.reference_points)
    expected, output = stda_reference(problem, tensors), _attend(grid_sample_attention, problem, x)
    assert torch.allclose(output, expected, atol=1e-5)
    wanted, found = (
        torch.autograd.grad(y.square().sum(), x.differentiable(), materialize_grads=True) for y in (expected, output)
    )
    for gradient, reference in zip(found, wanted, strict=True):
        assert torch.allclose(gradient, reference, atol=1e-3)


def test_grid_sample_attention_is_the_classic_operator():
    problem = _problem(source_frames=1, targets=1, other_frames=0, frame_table=((0,),))
    x = msda_inputs(problem, "near", torch.float32, CPU, seed=2)
    tensors = MsdaTensors(x.value, x.locations, x.weights)
    expected = msda_reference(MsdaProblem.of(tensors, problem.spatial_shapes), tensors)
    output = grid_sample_attention(x.value, problem.spatial_shapes, x.locations, x.weights)
    assert torch.allclose(output, expected, atol=1e-5)


@torch.no_grad()
def test_published_model_is_the_model():
    config = ModelConfig.preset("tiny")
    model = Detector(config).eval()
    batch = clips(config, (40, 56), batch=2, seed=0)
    expected, output = model(batch), as_published(model, grid_sample_attention)(batch)
    assert torch.allclose(output.logits, expected.logits, atol=1e-4)
    assert torch.allclose(output.boxes, expected.boxes, atol=1e-4)


def test_uniform_positions_fill_the_frame_and_near_ones_stay_close():
    problem = SIZES["small"].stda("encoder", 1)
    sizes = torch.tensor([(w, h) for h, w in problem.spatial_shapes])[:, None]
    near, uniform = (stda_inputs(problem, kind, torch.float32, CPU, seed=0) for kind in ("near", "uniform"))
    assert near.offsets.std() < 3
    reference = uniform.reference_points[:, :, :, None, :, None]
    position = reference + uniform.offsets / sizes
    assert position.min() > -1e-3
    assert position.max() < 1.001
    assert position.mean(dim=(0, 1, 2, 3, 4, 5)).sub(0.5).abs().max() < 0.02


def test_work_counts_every_tensor_and_corner_once():
    problem = _problem()
    x = stda_inputs(problem, "near", torch.float16, CPU, seed=0)
    output = 2 * 2 * 7 * 2 * 5
    tensors = sum(tensor.numel() * tensor.element_size() for tensor in vars(x).values())
    # Reference points are stored per level; the operator's inputs hold them so.
    forward, backward = forward_work(problem, torch.float16), backward_work(problem, torch.float16)
    assert forward.compulsory == tensors + 2 * output
    samples = x.logits.numel() + x.other_logits.numel()
    assert forward.gathered == samples * 4 * 5 * 2
    assert backward.compulsory == 2 * tensors + 2 * output
    assert backward.gathered == 2 * forward.gathered


def test_level_shapes_are_the_models():
    config = ModelConfig.preset("tiny")
    for image in ((40, 56), (33, 65)):
        levels = Detector(config).extract_features(torch.zeros(1, 3, *image))
        assert level_shapes(*image) == tuple(tuple(level.shape[2:]) for level in levels)
