"""The samples that inspection tells of are those that the operator takes: from them its output can be made again."""

import pytest
import torch

from stnet.kernels import sampling_points
from tests.kernels.resampling import resampled

CASES = {
    "points": {},
    "boxes": {"components": 4, "points": 3, "other_points": 2},
    "a table": {"frames": 4, "other_frames": 2, "frame_table": ((3, 0, 2), (1, 3, 0))},
    "no others": {"frames": 2, "other_frames": 0},
    "one level": {"shapes": ((3, 5),), "targets": 1},
}


@pytest.mark.parametrize("name", CASES)
def test_points_reproduce_the_output(stda_case, error, name):
    case = stda_case(**CASES[name])
    points = sampling_points(**case.tensors, **case.others)
    again = resampled(points, case.tensors["value"], case.others["spatial_shapes"])
    assert error(again, case.run("reference")) < 1e-5
    torch.testing.assert_close(points.weights.sum(-1), torch.ones_like(points.weights[..., 0]))
    own = points.frames[:, points.own]
    assert (own == own[:, :1]).all() and not (points.frames[:, ~points.own] == own[:, :1]).any()


def test_points_reproduce_the_output_of_every_backend(stda_case, backend, error):
    case = stda_case(**CASES["a table"])
    if backend.name != "reference":
        case = case.to(dtype=torch.float32)
    points = sampling_points(**case.tensors, **case.others)
    assert error(resampled(points, case.tensors["value"], case.others["spatial_shapes"]), backend.run(case)) < 1e-5


def test_chosen_queries_are_inspected_alone(stda_case):
    case = stda_case(components=4)
    every = sampling_points(**case.tensors, **case.others)
    chosen = {name: x if name == "value" else x[:1, 1:, [3, 1]] for name, x in case.tensors.items()}
    chosen["value"] = chosen["value"][:1]
    some = sampling_points(**chosen, spatial_shapes=case.others["spatial_shapes"], frame_table=((1, 0, 2),))
    assert torch.equal(some.locations, every.locations[:1, 1:, [3, 1]])
    assert torch.equal(some.weights, every.weights[:1, 1:, [3, 1]]) and torch.equal(some.frames, every.frames[1:])


def test_excluded_samples_weigh_nothing(stda_case):
    case = stda_case(targets=1)
    case.tensors["logits"][..., 0] = -torch.inf
    case.tensors["other_logits"][:, :, 0] = -torch.inf
    case.tensors["logits"][:, :, 0] = -torch.inf
    points = sampling_points(**case.tensors, **case.others)
    assert (points.weights[:, :, 0] == 0).all() and (points.weights[:, :, 1:][..., 0] == 0).all()
    assert torch.allclose(
        resampled(points, case.tensors["value"], case.others["spatial_shapes"]), case.run("reference")
    )


def test_arguments_are_checked(stda_case):
    case = stda_case()
    case.tensors["logits"] = case.tensors["logits"][..., :1]
    with pytest.raises(ValueError, match="logits has shape"):
        sampling_points(**case.tensors, **case.others)
