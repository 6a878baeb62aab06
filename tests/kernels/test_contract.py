"""What both operators promise, on every backend: the semantics of the design, sizes, layouts and properties."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# Small, for Triton's interpreter runs every program of a launch one after another.
STDA_CASES = {
    "encoder": {"queries": 3},
    "decoder-box": {"components": 4, "queries": 3, "targets": 1},
    "odd-head": {"dim": 5, "heads": 3, "clips": 1, "targets": 1},
    "head-32": {"dim": 32, "clips": 1, "targets": 1},
    "head-96": {"dim": 96, "clips": 1, "targets": 1, "queries": 2, "heads": 1},
    "own-frame-only": {"other_frames": 0, "points": 3, "clips": 1},
    "one-source": {"frames": 1, "targets": 1, "other_frames": 0},
    "one-pixel": {"shapes": ((1, 1), (1, 5), (4, 1)), "components": 4, "clips": 1, "heads": 1},
    "eight-levels": {
        "shapes": tuple((9 - n, n) for n in range(1, 9)),
        "queries": 2,
        "clips": 1,
        "heads": 1,
        "frames": 2,
    },
    "table": {
        "frame_table": ((2, 0, 3), (2, 1, 0), (0, 3, 2)),
        "frames": 4,
        "targets": 3,
        "other_frames": 2,
        "clips": 1,
        "heads": 1,
    },
    "many-points": {"points": 5, "other_points": 3, "queries": 2, "clips": 1, "targets": 1, "heads": 1},
}


@pytest.mark.parametrize("name", STDA_CASES)
def test_stda_matches_float64(backend, stda_case, error, name):
    case = stda_case(**STDA_CASES[name])
    expected, expected_grads = case.gradients("reference")
    output, grads = backend.gradients(case.to(dtype=torch.float32))
    assert error(output, expected) <= 5e-6
    for key, grad in grads.items():
        assert grad.dtype == torch.float32
        assert error(grad, expected_grads[key]) <= 5e-5, key


@pytest.mark.parametrize("ints", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [{}, {"shapes": ((1, 1), (3, 2)), "dim": 5, "points": 3}, {"shapes": ((2, 3),) * 12, "batch": 3, "queries": 2}],
    ids=["plain", "odd", "twelve-levels"],
)
def test_msda_matches_float64(backend, msda_case, error, sizes, ints):
    case = msda_case(**sizes, ints=ints)
    expected, expected_grads = case.gradients("reference")
    output, grads = backend.gradients(case.to(dtype=torch.float32))
    assert error(output, expected) <= 5e-6
    for key, grad in grads.items():
        assert error(grad, expected_grads[key]) <= 5e-5, key


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 5e-4), (torch.bfloat16, 4e-3)])
def test_half_precision_with_float32_references(backend, stda_case, error, dtype, limit):
    if dtype == torch.bfloat16 and (backend.name, backend.device) == ("triton", "cpu"):
        pytest.skip("Triton's interpreter computes bfloat16 loosely")
    case = stda_case(dim=32, clips=1, targets=1).to(dtype=torch.float32)
    halves = {n: x.to(dtype) for n, x in case.tensors.items() if "reference" not in n}
    case = case.replaced(**halves)
    expected, expected_grads = case.to(dtype=torch.float64).gradients("reference")
    output, grads = backend.gradients(case)
    assert output.dtype == dtype
    assert error(output, expected) <= limit
    for key, grad in grads.items():
        assert grad.dtype == case.tensors[key].dtype
        if "offset" not in key and "reference" not in key:
            assert error(grad, expected_grads[key]) <= 10 * limit, key


def single_sample(stda_case, pixels, value=None, shape=(3, 4), points=1) -> object:
    """One query, one head, one level, samples at `pixels` of the own frame, and logits that are all zero."""
    case = stda_case(
        shapes=(shape,), clips=1, frames=1, targets=1, queries=1, heads=1, dim=8, points=points, other_frames=0
    ).to(dtype=torch.float32)
    case.tensors["reference_points"] = torch.full_like(case.tensors["reference_points"], 0.5)
    case.tensors["other_reference_points"] = case.tensors["reference_points"].clone()
    centre = torch.tensor([shape[1], shape[0]]) * 0.5 - 0.5
    pixels = torch.tensor(pixels, dtype=torch.float32).view(1, 1, 1, 1, 1, points, 2)
    case.tensors["offsets"] = pixels - centre
    case.tensors["logits"] = torch.zeros(1, 1, 1, 1, 1, points)
    if value is not None:
        case.tensors["value"] = value.float().view(1, 1, -1, 1, 1).expand(1, 1, -1, 1, 8).contiguous()
    return case


CORNERS = {
    (-0.5, -0.25): 0.5 * 0.75 * 1,
    (3.5, -0.25): 0.5 * 0.75 * 4,
    (-0.5, 2.25): 0.5 * 0.75 * 9,
    (3.5, 2.25): 0.5 * 0.75 * 12,
    (1.25, -0.5): 0.5 * (0.75 * 2 + 0.25 * 3),
    (1.25, 2.5): 0.5 * (0.75 * 10 + 0.25 * 11),
    (-0.5, 1.0): 0.5 * 5,
    (3.5, 1.0): 0.5 * 8,
    (3.0, 2.0): 12.0,
    (0.0, 0.0): 1.0,
    (1.25, 0.75): 0.25 * (0.75 * 2 + 0.25 * 3) + 0.75 * (0.75 * 6 + 0.25 * 7),
    (-1.0, 1.0): 0.0,
    (4.0, 1.0): 0.0,
    (1.0, -1.0): 0.0,
    (1.0, 3.0): 0.0,
}


@pytest.mark.parametrize("pixel", CORNERS, ids=str)
def test_corners_outside_count_as_zero(backend, stda_case, pixel):
    output = backend.run(single_sample(stda_case, [pixel], torch.arange(1, 13)))
    torch.testing.assert_close(output, torch.full_like(output, CORNERS[pixel]))


FAR = [math.nan, math.inf, -math.inf, 1e30, -1e30, 3e9, -1e5]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("far", FAR)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning:triton")
def test_far_positions_sample_zero_and_keep_their_weight(backend, stda_case, far, axis):
    pixels = [[1.25, 0.75], [1.0, 1.0]]
    pixels[1][axis] = far
    case = single_sample(stda_case, pixels, torch.arange(1, 13), points=2)
    output, grads = backend.gradients(case)
    torch.testing.assert_close(output, torch.full_like(output, CORNERS[1.25, 0.75] / 2))
    assert all(grad.isfinite().all() for grad in grads.values())
    assert grads["offsets"][..., 0, :].abs().min() > 0
    assert (grads["offsets"][..., 1, :] == 0).all()
    # Its softmax weight competes with the other sample's.
    assert grads["logits"].abs().min() > 0
    torch.testing.assert_close(grads["logits"].sum(), torch.tensor(0.0), atol=1e-5, rtol=0)
    near = single_sample(stda_case, pixels[:1], torch.arange(1, 13))
    _, alone = near.gradients("reference")
    torch.testing.assert_close(grads["value"], alone["value"] / 2)
    torch.testing.assert_close(grads["reference_points"], alone["reference_points"] / 2)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("name", ["offsets", "reference_points"])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning:triton")
def test_boxes_and_their_offsets_that_are_not_finite_pass_no_gradient_on(backend, stda_case, name, bad):
    sizes = {"clips": 1, "frames": 1, "targets": 1, "queries": 2, "heads": 1, "other_frames": 0, "components": 4}
    case = stda_case(shapes=((3, 4),), **sizes).to(dtype=torch.float32)
    where = (0, 0, 0, 0, 0, 1, 0) if name == "offsets" else (0, 0, 0, 0, 2)  # of sample 1, or the width of query 0
    case.tensors[name][where] = bad
    output, grads = backend.gradients(case)
    assert output.isfinite().all()
    assert all(grad.isfinite().all() for grad in grads.values())
    assert grads["offsets"][0, 0, 0, 0, 0, 1].abs().max() == 0
    assert grads["offsets"][0, 0, 1].abs().min() > 0


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning:triton")
def test_bad_values_at_corners_of_zero_weight_do_not_count(backend, stda_case, bad):
    value = torch.arange(1.0, 13.0)
    value[[2, 5, 6]] = bad  # right of, below, and diagonally below the position (1, 0)
    output, grads = backend.gradients(single_sample(stda_case, [(1.0, 0.0)], value))
    torch.testing.assert_close(output, torch.full_like(output, 2.0))
    assert all(grad.isfinite().all() for grad in grads.values())


def test_infinite_values_reach_samples_that_touch_them_and_no_others(backend, stda_case):
    value = torch.arange(1.0, 13.0)
    value[6] = math.inf
    touching = backend.run(single_sample(stda_case, [(1.5, 0.5)], value))
    assert (touching == math.inf).all()
    beside = backend.run(single_sample(stda_case, [(0.5, 0.5)], value))
    torch.testing.assert_close(beside, torch.full_like(beside, 3.5))


def test_logit_minus_infinity_excludes_its_sample(backend, stda_case):
    value = torch.arange(1.0, 13.0)
    value[11] = math.inf
    case = single_sample(stda_case, [(1.25, 0.75), (2.75, 1.75)], value, points=2)
    case.tensors["logits"][..., 1] = -math.inf
    output, grads = backend.gradients(case)
    torch.testing.assert_close(output, torch.full_like(output, CORNERS[1.25, 0.75]))
    assert all(grad.isfinite().all() for grad in grads.values())
    assert (grads["offsets"][..., 1, :] == 0).all()
    assert (grads["logits"][..., 1] == 0).all()
    assert grads["value"].flatten(2).abs().sum(-1).shape == (1, 1)
    assert (grads["value"][0, 0, 11] == 0).all()


@pytest.mark.parametrize("other_frames", [0, 2])
def test_row_of_only_minus_infinity_gives_zero(backend, stda_case, error, other_frames):
    case = stda_case(other_frames=other_frames, clips=1, heads=1).to(dtype=torch.float32)
    case.tensors["logits"][0, 1, 2] = -math.inf
    case.tensors["other_logits"][0, 1, 2] = -math.inf
    output, grads = backend.gradients(case)
    assert (output[0, 1, 2] == 0).all()
    for name in ("offsets", "logits", "other_offsets", "other_logits"):
        assert (grads[name][0, 1, 2] == 0).all(), name
    expected, expected_grads = case.to(dtype=torch.float64).gradients("reference")
    assert error(output, expected) <= 5e-6
    for name, grad in grads.items():
        assert error(grad, expected_grads[name]) <= 5e-5, name


def test_nan_logit_makes_its_row_nan_and_no_other(backend, stda_case):
    case = stda_case().to(dtype=torch.float32)
    expected = backend.run(case)
    case.tensors["logits"][1, 0, 3, 1, 0, 0] = math.nan
    output = backend.run(case).unflatten(3, (2, 8))
    assert output[1, 0, 3, 1].isnan().all()
    output[1, 0, 3, 1] = expected.unflatten(3, (2, 8))[1, 0, 3, 1]
    torch.testing.assert_close(output.flatten(3), expected, rtol=0, atol=0)


def test_large_logits_do_not_overflow(backend, stda_case, error):
    case = stda_case(clips=1, targets=1)
    case.tensors["logits"] = case.tensors["logits"] * 1e4
    expected, _ = case.gradients("reference")
    output, grads = backend.gradients(case.to(dtype=torch.float32))
    assert error(output, expected) <= 5e-6
    assert all(grad.isfinite().all() for grad in grads.values())


def test_gradients_at_integer_positions_belong_to_the_cell_that_begins_there(backend, stda_case):
    case = single_sample(stda_case, [(1.0, 1.0), (3.0, 2.0), (0.0, 0.0)], torch.arange(1, 13) ** 2, points=3)
    expected, expected_grads = case.gradients("reference")
    output, grads = backend.gradients(case)
    torch.testing.assert_close(output, expected)
    for name, grad in grads.items():
        torch.testing.assert_close(grad.cpu(), expected_grads[name].cpu(), rtol=1e-5, atol=1e-5)
    weight = torch.linspace(-1.0, 2.0, 8).sum() / 3
    # 7 ** 2 - 6 ** 2 to the right of cell (1, 1), 10 ** 2 - 6 ** 2 below it
    torch.testing.assert_close(
        grads["offsets"][0, 0, 0, 0, 0, 0].cpu(), weight * torch.tensor([13.0, 64.0]), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("sizes", [{"clips": 0}, {"queries": 0}, {"targets": 0}], ids=str)
def test_empty_stda(backend, stda_case, sizes):
    case = stda_case(**sizes).to(dtype=torch.float32)
    output, grads = case.gradients(backend.name, backend.device)
    expected = case.tensors["offsets"].shape[:3]
    assert output.shape == (*expected, 16)
    for name, grad in grads.items():
        assert grad.shape == case.tensors[name].shape
        assert (grad == 0).all()


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"queries": 0}], ids=str)
def test_empty_msda(backend, msda_case, sizes):
    case = msda_case(**sizes).to(dtype=torch.float32)
    output, grads = case.gradients(backend.name, backend.device)
    assert output.shape == (*case.tensors["attention_weights"].shape[:2], 16)
    assert all((grad == 0).all() for grad in grads.values())


def spread_out(x: torch.Tensor) -> torch.Tensor:
    """The same numbers with gaps between them, dimensions in reverse order in memory, garbage in the gaps."""
    order = tuple(reversed(range(x.dim())))
    storage = torch.full([size * 2 for size in x.permute(order).shape], math.nan, dtype=x.dtype)
    view = storage[tuple(slice(None, None, 2) for _ in order)].permute(order)
    return view.copy_(x)


def test_any_strides_give_the_same(backend, stda_case):
    case = stda_case(components=4, other_points=2, targets=1, heads=2, queries=3).to(dtype=torch.float32)
    expected, expected_grads = backend.gradients(case)
    strided = case.replaced(**{name: spread_out(x) for name, x in case.tensors.items()})
    torch.testing.assert_close(backend.run(strided), expected, rtol=1e-6, atol=1e-6)
    _, grads = backend.gradients(strided)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], rtol=1e-5, atol=1e-5)


def test_slices_of_a_packed_projection_and_expanded_references(backend, stda_case):
    case = stda_case(other_points=2).to(dtype=torch.float32)
    names = ("offsets", "logits", "other_offsets", "other_logits")
    packed = torch.cat([case.tensors[name].flatten(3) for name in names], -1)
    pieces = packed.split([case.tensors[name].shape[3:].numel() for name in names], -1)
    slices = {name: piece.unflatten(3, case.tensors[name].shape[3:]) for name, piece in zip(names, pieces, strict=True)}
    reference = case.tensors["reference_points"][:, :1, :, :1]
    expanded = reference.expand_as(case.tensors["reference_points"])
    head_major = case.tensors["value"].permute(0, 1, 3, 2, 4).contiguous().permute(0, 1, 3, 2, 4)
    dense = case.replaced(reference_points=expanded.contiguous())
    views = case.replaced(**slices, reference_points=expanded, value=head_major)
    torch.testing.assert_close(backend.run(views), backend.run(dense), rtol=1e-6, atol=1e-6)


def test_expanded_output_gradient(backend, stda_case):
    case = stda_case(clips=1, targets=1, heads=1).to(dtype=torch.float32)
    weight = torch.tensor(0.5).expand(1, 1, 5, 8)
    _, grads = backend.gradients(case, weight=weight)
    _, expected = backend.gradients(case, weight=weight.contiguous())
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-6, atol=1e-6)


def test_gradients_only_where_needed(backend, stda_case, error):
    case = stda_case(components=4, clips=1, targets=1, heads=1).to(dtype=torch.float32)
    _, expected = case.to(dtype=torch.float64).gradients("reference")
    for wanted in case.tensors:
        leaf = case.tensors[wanted].clone().requires_grad_()
        output = case.replaced(**{wanted: leaf}).run(backend.name, backend.device)
        weight = torch.linspace(-1.0, 2.0, output.numel()).view(output.shape)
        output.backward(weight.to(output))
        assert error(leaf.grad, expected[wanted]) <= 5e-5, wanted


SLOW_FIXTURE = {"suppress_health_check": [HealthCheck.function_scoped_fixture], "deadline": None}
PROPERTY = settings(max_examples=4, derandomize=True, **SLOW_FIXTURE)
SIZES = st.fixed_dictionaries(
    {
        "shapes": st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=2).map(tuple),
        "clips": st.just(1),
        "frames": st.integers(2, 3),
        "targets": st.integers(1, 2),
        "heads": st.integers(1, 2),
        "dim": st.sampled_from([1, 8, 24]),
        "queries": st.integers(1, 4),
        "points": st.integers(1, 3),
        "other_points": st.integers(1, 2),
        "components": st.sampled_from([2, 4]),
        "seed": st.integers(0, 1000),
    }
)


@PROPERTY
@given(sizes=SIZES, factor=st.floats(-3, 3, width=32))
def test_linear_in_value(backend, stda_case, sizes, factor):
    case = stda_case(**sizes).to(dtype=torch.float32)
    value = case.tensors["value"]
    other = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    combined = backend.run(case.replaced(value=value + factor * other))
    separate = backend.run(case) + factor * backend.run(case.replaced(value=other))
    torch.testing.assert_close(combined, separate, rtol=1e-4, atol=2e-5)


@PROPERTY
@given(sizes=SIZES, shift=st.floats(-50, 50, width=32))
def test_softmax_ignores_a_common_shift(backend, stda_case, sizes, shift):
    case = stda_case(**sizes).to(dtype=torch.float32)
    shifted = case.replaced(logits=case.tensors["logits"] + shift, other_logits=case.tensors["other_logits"] + shift)
    torch.testing.assert_close(backend.run(shifted), backend.run(case), rtol=1e-4, atol=2e-5)


@PROPERTY
@given(sizes=SIZES, order=st.randoms(use_true_random=False))
def test_frames_may_be_renumbered(backend, stda_case, sizes, order):
    case = stda_case(**sizes).to(dtype=torch.float32)
    frames, targets = sizes["frames"], sizes["targets"]
    place = list(range(frames))  # frame f is stored at place[f]
    order.shuffle(place)
    rows = [[t, *(f for f in range(frames) if f != t)] for t in range(targets)]
    renumbered = case.replaced(value=case.tensors["value"][:, [place.index(f) for f in range(frames)]])
    renumbered.others = {**case.others, "frame_table": [[place[f] for f in row] for row in rows]}
    torch.testing.assert_close(backend.run(renumbered), backend.run(case), rtol=1e-5, atol=1e-6)


@PROPERTY
@given(sizes=SIZES)
def test_other_frames_may_be_reordered(backend, stda_case, sizes):
    case = stda_case(**sizes).to(dtype=torch.float32)
    rows = [[t, *(f for f in reversed(range(sizes["frames"])) if f != t)] for t in range(sizes["targets"])]
    flipped = case.replaced(
        other_offsets=case.tensors["other_offsets"].flip(4), other_logits=case.tensors["other_logits"].flip(4)
    )
    flipped.others = {**case.others, "frame_table": rows}
    torch.testing.assert_close(backend.run(flipped), backend.run(case), rtol=1e-4, atol=2e-5)


@PROPERTY
@given(sizes=SIZES)
def test_clips_do_not_influence_each_other(backend, stda_case, sizes):
    case = stda_case(**{**sizes, "clips": 2, "targets": 1}).to(dtype=torch.float32)
    output = backend.run(case)
    for clip in range(2):
        alone = case.replaced(**{name: x[clip : clip + 1] for name, x in case.tensors.items()})
        torch.testing.assert_close(backend.run(alone), output[clip : clip + 1], rtol=1e-6, atol=1e-6)


@PROPERTY
@given(constant=st.floats(-100, 100, width=32), seed=st.integers(0, 100))
def test_constant_value_is_reproduced_inside(backend, stda_case, constant, seed):
    shapes = ((3, 5), (2, 4))
    case = stda_case(shapes=shapes, seed=seed, clips=1, targets=1, heads=1).to(dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for name, reference in (("offsets", "reference_points"), ("other_offsets", "other_reference_points")):
        case.tensors[reference] = torch.full_like(case.tensors[reference], 0.5)
        # Pixels 0 to size - 1 are at most (size - 1) / 2 from the centre.
        reach = torch.tensor([[(w - 1) / 2, (h - 1) / 2] for h, w in shapes])[:, None]
        shape = case.tensors[name].shape
        case.tensors[name] = (2 * torch.rand(shape, generator=generator) - 1) * reach
    case.tensors["value"] = torch.full_like(case.tensors["value"], constant)
    output = backend.run(case)
    torch.testing.assert_close(output, torch.full_like(output, constant), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("components", [2, 4])
def test_gradcheck_of_the_reference(stda_case, components):
    case = stda_case(
        shapes=((3, 2), (1, 2)), clips=1, frames=2, dim=2, heads=1, queries=2, targets=1, components=components
    )
    leaves = [x.requires_grad_() for x in case.tensors.values()]

    def function(*tensors):
        return case.replaced(**dict(zip(case.tensors, tensors, strict=True))).run("reference")

    assert torch.autograd.gradcheck(function, leaves, eps=1e-6, atol=1e-6)


def test_gradcheck_of_the_msda_reference(msda_case):
    case = msda_case(shapes=((3, 2), (1, 2)), dim=2, heads=1, queries=2)
    leaves = [x.requires_grad_() for x in case.tensors.values()]

    def function(*tensors):
        return case.replaced(**dict(zip(case.tensors, tensors, strict=True))).run("reference")

    assert torch.autograd.gradcheck(function, leaves, eps=1e-6, atol=1e-6)
