"""Errors and the choice of a backend."""

import re

import numpy as np
import pytest
import torch

import stnet.integrations.msda
from stnet.kernels import backends, ms_deform_attn, ms_deform_attn_backward


def refuses(kind, message, case, **options):
    with pytest.raises(kind, match=re.escape(message)):
        case.run(options.pop("backend", "auto"), **options)


@pytest.fixture
def case(stda_case):
    return stda_case().to(dtype=torch.float32)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("value", lambda x: x[0], "value has 4 dimensions [3, 30, 2, 8], expected 5"),
        ("value", lambda x: x[:, :, 1:], "have 30 cells, value has 29 positions"),
        ("value", lambda x: x[:1], "reference_points has shape [2, 2, 5, 2, 2], expected [1, 2, 5, 2, 2]"),
        ("value", lambda x: x[..., :0], "value has 2 heads of width 0"),
        ("reference_points", lambda x: x[..., :1], "1 components"),
        ("offsets", lambda x: x[..., :1], "offsets has shape [2, 2, 5, 2, 2, 2, 1], expected [2, 2, 5, 2, 2, 2, 2]"),
        ("offsets", lambda x: x.repeat(1, 1, 1, 1, 1, 9, 1), "18 points per level"),
        ("logits", lambda x: x[..., :1], "logits has shape [2, 2, 5, 2, 2, 1], expected [2, 2, 5, 2, 2, 2]"),
        ("other_logits", lambda x: x[:, :, :4], "other_logits has shape [2, 2, 4, 2, 2, 2, 1]"),
        ("other_reference_points", lambda x: x[:, :, :, :1], "other_reference_points has shape [2, 2, 5, 1, 2]"),
        ("other_offsets", lambda x: x.to("meta"), "other_offsets is on meta, value on cpu"),
    ],
)
def test_wrong_shapes_and_devices_are_named(case, launches, name, change, message):
    refuses(ValueError, message, case.replaced(**{name: change(case.tensors[name])}))
    assert launches == []


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[0, 1, 2]], "frame_table has 1 rows for 2 target frames"),
        ([[0, 1, 2], [1, 0]], "row 1 of frame_table has 2 frames, expected 1 own + 2 others"),
        ([[0, 1, 2], [1, 0, 3]], "row 1 of frame_table [1, 0, 3] names a frame outside 0..2"),
        ([[0, 1, 2], [-1, 0, 2]], "row 1 of frame_table [-1, 0, 2] names a frame outside 0..2"),
        ([[0, 1, 1], [1, 0, 2]], "row 0 of frame_table [0, 1, 1] names a frame twice"),
    ],
)
def test_wrong_frame_tables_are_named(case, launches, table, message):
    case.others["frame_table"] = table
    refuses(ValueError, message, case)
    assert launches == []


def test_default_table_needs_all_other_frames(stda_case):
    refuses(ValueError, "2 other frames of 4 source frames", stda_case(frames=4, other_frames=2))
    refuses(ValueError, "4 target frames but 3 source frames", stda_case(targets=4))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_wrong_dtypes_are_named(case, dtype):
    refuses(TypeError, f"logits has dtype {dtype}", case.replaced(logits=case.tensors["logits"].to(dtype)))


def test_arguments_that_are_no_tensors_are_named(case):
    refuses(TypeError, "logits is a list, expected a tensor", case.replaced(logits=[1.0]))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((30, 1), (0, 4)), "spatial_shapes [(30, 1), (0, 4)] holds a level without cells"),
        (((5, 6), (1, 1)), "have 31 cells, value has 30 positions"),
        ((), "0 levels; 1 to 8 are supported"),
        (((1, 3),) * 10, "10 levels; 1 to 8 are supported"),
    ],
)
def test_wrong_levels_are_named(case, shapes, message):
    case.others["spatial_shapes"] = shapes
    refuses(ValueError, message, case)


@pytest.mark.parametrize(
    ("name", "change", "kind", "message"),
    [
        ("attention_weights", lambda x: x[:1], ValueError, "attention_weights has shape [1, 5, 2, 2, 2]"),
        ("sampling_locations", lambda x: x[..., 0], ValueError, "sampling_locations has 5 dimensions"),
        ("value", lambda x: x.long(), TypeError, "value has dtype torch.int64"),
    ],
)
def test_wrong_msda_arguments_are_named(msda_case, launches, name, change, kind, message):
    case = msda_case().to(dtype=torch.float32)
    refuses(kind, message, case.replaced(**{name: change(case.tensors[name])}))
    assert launches == []


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("starts", [[0, 25], [-1, 24], [0, 10**9]])
def test_levels_outside_the_values_are_refused(msda_case, backend, starts):
    if backend == "cpu":
        pytest.importorskip("numba")
    case = msda_case().to(dtype=torch.float32)
    case.others["level_start_index"] = torch.tensor(starts)
    with pytest.raises(ValueError, match="30 positions"):
        case.run(backend)


def test_unknown_backend_is_refused(case):
    refuses(ValueError, "backend 'cuda' is not one of auto, triton, cpu, reference", case, backend="cuda")


def test_auto_takes_the_cpu_path_on_the_cpu(case, launches):
    pytest.importorskip("numba")
    case.run("auto")
    assert launches == ["cpu"]


def test_auto_takes_the_reference_without_numba(case, launches, monkeypatch):
    monkeypatch.setattr(backends, "_HAS_NUMBA", False)
    torch.testing.assert_close(case.run("auto"), case.run("reference"), rtol=0, atol=0)
    assert launches == []
    refuses(ValueError, "backend 'cpu' needs the numba package: pip install 'stnet[cpu]'", case, backend="cpu")


def test_reference_is_obeyed(case, launches):
    case.run("reference")
    assert launches == []


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_float64_and_wide_heads_go_to_the_reference(stda_case, launches, backend):
    double, wide = stda_case(), stda_case(dim=257, queries=1, clips=1).to(dtype=torch.float32)
    mixed = stda_case().to(dtype=torch.float32)
    mixed = mixed.replaced(offsets=mixed.tensors["offsets"].double())
    for case in (double, wide, mixed):
        assert case.run("auto").dtype == case.tensors["value"].dtype
    assert launches == []
    refuses(ValueError, f"backend '{backend}' does not compute float64", double, backend=backend)
    refuses(ValueError, f"backend '{backend}' does not compute float64", mixed, backend=backend)
    refuses(ValueError, f"backend '{backend}' takes heads up to 256 wide, not 257", wide, backend=backend)


def test_triton_needs_a_gpu_or_its_interpreter(case, launches, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    refuses(ValueError, "backend 'triton' needs tensors on a GPU, value is on cpu", case, backend="triton")
    assert launches == []


def test_triton_that_is_not_installed_is_refused(case, monkeypatch):
    monkeypatch.setattr(backends, "_HAS_TRITON", False)
    refuses(ValueError, "backend 'triton' needs the triton package", case, backend="triton")


def test_gpu_without_triton_warns_and_takes_the_reference(monkeypatch):
    monkeypatch.setattr(backends, "_HAS_TRITON", False)
    with pytest.warns(UserWarning, match="triton is not installed"):
        assert backends._fastest(torch.device("cuda")) == "reference"


def test_deterministic_follows_pytorch(case, monkeypatch, watch_backend):
    pytest.importorskip("numba")
    seen = []

    def watched(prepared, *tensors):
        seen.extend([prepared.arguments[-1]] if prepared.direction == "backward" else [])
        return prepared.run(*tensors)

    watch_backend(monkeypatch, "cpu", watched)
    case.gradients("cpu")
    case.gradients("cpu", deterministic=True)
    torch.use_deterministic_algorithms(True)
    try:
        case.gradients("cpu")
        case.gradients("cpu", deterministic=False)
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == [False, True, True, False]


def test_im2col_step_is_ignored(msda_case):
    case = msda_case(batch=3).to(dtype=torch.float32)
    expected = case.run("auto")
    torch.testing.assert_close(case.run("auto", im2col_step=2), expected, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_autocast_casts_the_value_only(case, backend):
    if backend == "cpu":
        pytest.importorskip("numba")
    by_hand = case.replaced(value=case.tensors["value"].bfloat16()).run(backend)
    with torch.autocast("cpu", torch.bfloat16):
        output, grads = case.gradients(backend)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, by_hand, rtol=0, atol=0)
    assert {grad.dtype for grad in grads.values()} == {torch.float32}


def test_meta_tensors_have_shapes(case, msda_case):
    assert case.to(device="meta").run("auto", "meta").shape == (2, 2, 5, 16)
    assert msda_case(ints=True).to(device="meta", dtype=torch.float32).run("auto", "meta").shape == (2, 5, 16)


def one_wrong_argument(case):
    """(name, changed case) for every tensor of a case: of another rank, size, dtype, device, layout, and no tensor."""
    for name, x in {**case.tensors, **{n: x for n, x in case.others.items() if isinstance(x, torch.Tensor)}}.items():
        other = torch.complex64 if x.is_floating_point() else torch.float32
        changes = [x[None], x[0], x.to(other), x.to("meta"), x.to_sparse(), None, x.tolist(), x.numpy()]
        # A wider head is no mistake, nor is a cell more where levels are tensors.
        dims = [dim for dim in range(x.dim()) if name != "value" or dim not in (x.dim() - 3, x.dim() - 1)]
        changes += [x.narrow(dim, 0, x.shape[dim] - 1) for dim in dims]
        changes += [torch.cat([x, x.narrow(dim, 0, 1)], dim) for dim in dims]
        for change in changes:
            yield name, case.replaced(**{name: change}) if name in case.tensors else with_other(case, name, change)


def with_other(case, name, change):
    copy = case.replaced()
    copy.others = {**case.others, name: change}
    return copy


@pytest.mark.parametrize("operator", ["stda", "msda", "gradients"])
def test_no_wrong_argument_is_computed_with(operator, stda_case, msda_case, launches):
    case = (stda_case() if operator == "stda" else msda_case()).to(dtype=torch.float32)
    if operator == "gradients":
        case.operator = ms_deform_attn_backward
        case.tensors["grad_output"] = torch.ones(2, 5, 16)
    tried = 0
    for name, wrong in one_wrong_argument(case):
        if operator == "stda" and name == "other_reference_points" and wrong.tensors[name] is None:
            continue
        if operator == "msda" and name == "level_start_index" and wrong.others[name] is None:
            continue
        with pytest.raises((TypeError, ValueError)) as caught:
            wrong.run("auto")
        # Of two sizes that do not fit either may be the wrong one.
        assert any(part in str(caught.value) for part in (*case.tensors, *case.others, "points per level")), name
        tried += 1
    assert tried > 60
    assert launches == []


def test_too_small_gradients_are_not_read(msda_case):
    case = msda_case(batch=2, queries=400).to(dtype=torch.float32)
    for grad_output in (torch.ones(1, 1, 16), torch.ones(2, 399, 16), torch.ones(2, 400, 8), torch.ones(2, 400)):
        with pytest.raises(ValueError, match="grad_output has"):
            stnet.integrations.msda.ms_deform_attn_backward(
                case.tensors["value"], *case.others.values(), *list(case.tensors.values())[1:], grad_output, 64
            )


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("spatial_shapes", ((4.5, 6), (2, 3))),
        ("spatial_shapes", (("4", 6), (2, 3))),
        ("spatial_shapes", 24),
        ("frame_table", [[0, 1.5, 2], [1, 0, 2]]),
        ("frame_table", [0, 1]),
        ("frame_table", 1),
    ],
)
def test_numbers_that_are_no_integers_are_named(case, launches, name, rows):
    case.others[name] = rows
    refuses(TypeError, name, case)
    assert launches == []


def test_integers_of_numpy_and_tensors_will_do(case):
    expected = case.run("auto")
    case.others["spatial_shapes"] = torch.tensor(case.others["spatial_shapes"])
    case.others["frame_table"] = np.array([[0, 1, 2], [1, 0, 2]])
    torch.testing.assert_close(case.run("auto"), expected, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_levels_that_follow_one_another_need_no_starts(backend):
    value, weights = torch.randn(2, 30, 2, 4), torch.rand(2, 5, 2, 2, 3)
    locations = torch.rand(2, 5, 2, 2, 3, 2)
    shapes = [(4, 6), (2, 3)]
    expected = ms_deform_attn(value, shapes, [0, 24], locations, weights, backend=backend)
    for given in (shapes, torch.tensor(shapes), torch.tensor(shapes, dtype=torch.int32)):
        assert torch.equal(ms_deform_attn(value, given, None, locations, weights, backend=backend), expected)
    with pytest.raises(ValueError, match="30 positions"):
        ms_deform_attn(value, [(4, 6), (2, 2)], None, locations, weights, backend=backend)
    with pytest.raises(TypeError, match="spatial_shapes has dtype"):
        ms_deform_attn(value, torch.tensor(shapes).float(), None, locations, weights, backend=backend)
