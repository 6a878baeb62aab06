"""mmcv with the stand-in: its operators by their signatures, and the three states that `mmcv._ext` can be in."""

import importlib
import sys

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from stnet.integrations import mmcv
from tests.integrations.comparing import Calls
from tests.integrations.eager import deformable_attention, problem

SHAPES = [(4, 6), (2, 3)]

PACKAGE = {
    "mmcv/ops/multi_scale_deform_attn.py": """
from mmcv import _ext
from tests.integrations.eager import deformable_attention

def multi_scale_deformable_attn_pytorch(value, value_spatial_shapes, sampling_locations, attention_weights):
    return deformable_attention(value, value_spatial_shapes, sampling_locations, attention_weights)
""",
    "mmcv/ops/other.py": "import mmcv._ext\nassert hasattr(mmcv._ext, 'carafe_forward')\n",
}
COMPILED = (
    "def ms_deform_attn_forward(): return 1\ndef ms_deform_attn_backward(): return 2\ndef carafe_forward(): return 3\n"
)


@pytest.fixture
def fake(write_package):
    write_package(PACKAGE)
    yield write_package
    mmcv.uninstall()


@pytest.mark.parametrize("extension", ["absent", "broken", "absent, tried before"])
def test_without_compiled_operators(extension, fake, monkeypatch):
    if extension == "broken":
        fake({"mmcv/_ext.py": "raise ImportError('undefined symbol: _ZN2at4_ops5zeros')\n"})
        with pytest.warns(UserWarning, match="undefined symbol"):
            module = mmcv.install()
    else:
        if extension == "absent, tried before":
            with pytest.raises(ImportError):
                importlib.import_module("mmcv.ops.multi_scale_deform_attn")
        module = mmcv.install()
    assert module is mmcv.install() is sys.modules["mmcv"]._ext
    other = importlib.import_module("mmcv.ops.other")
    with pytest.raises(NotImplementedError, match="mmcv's operator carafe_forward is compiled code"):
        other.mmcv._ext.carafe_forward(1)
    with pytest.raises(AttributeError):
        module.__path__  # noqa: B018
    assert importlib.util.find_spec("mmcv._ext").loader is not None  # what mmcv's check_ops_exist asks

    calls = Calls(monkeypatch)
    value, shapes, _, locations, weights = problem(SHAPES)
    on_the_cpu = sys.modules["mmcv.ops.multi_scale_deform_attn"].multi_scale_deformable_attn_pytorch
    expected = deformable_attention(value, SHAPES, locations, weights)
    torch.testing.assert_close(on_the_cpu(value, shapes, locations, weights), expected)
    assert calls


def test_compiled_operators_stay_but_for_deformable_attention(fake):
    fake({"mmcv/_ext.py": COMPILED})
    module = mmcv.install()
    assert module is mmcv.install() and module.carafe_forward() == 3
    value, shapes, starts, locations, weights = problem(SHAPES)
    output = module.ms_deform_attn_forward(value, shapes, starts, locations, weights, im2col_step=64)
    torch.testing.assert_close(output, deformable_attention(value, SHAPES, locations, weights))
    mmcv.uninstall()
    assert module.ms_deform_attn_forward() == 1 and module.ms_deform_attn_backward() == 2
    assert importlib.import_module("mmcv._ext") is module


def test_backward_writes_into_nine_tensors():
    value, shapes, starts, locations, weights = problem(SHAPES)
    leaves = [x.requires_grad_() for x in (value, locations, weights)]
    expected = deformable_attention(value, SHAPES, locations, weights)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, leaves, upstream)
    got = [torch.zeros_like(x) for x in leaves]
    value, locations, weights = (x.detach() for x in leaves)
    mmcv.ms_deform_attn_backward(value, shapes, starts, locations, weights, upstream, *got, im2col_step=64)
    for gradient, known in zip(got, wanted, strict=True):
        torch.testing.assert_close(gradient, known, rtol=1e-4, atol=1e-5)


def _kept(boxes, scores, threshold, offset):
    """Write non-maximum suppression from its definition."""
    kept = []
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2] + offset, 0)
    for i in np.argsort(-scores, kind="stable"):
        for j in kept:
            low, high = np.maximum(boxes[i, :2], boxes[j, :2]), np.minimum(boxes[i, 2:], boxes[j, 2:])
            inner = np.prod(np.maximum(high - low + offset, 0))
            if inner / (np.prod(sides[i]) + np.prod(sides[j]) - inner) > threshold:
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_counts_pixels_as_mmcv_does(offset):
    generator = np.random.default_rng(0)
    corners = generator.integers(0, 12, (60, 2))
    boxes = np.concatenate([corners, corners + generator.integers(1, 9, (60, 2))], 1).astype(np.float32)
    scores = generator.permutation(60).astype(np.float32)
    got = mmcv.nms(torch.from_numpy(boxes), torch.from_numpy(scores), iou_threshold=0.4, offset=offset)
    assert got.tolist() == _kept(boxes, scores, 0.4, offset)


def test_roi_align_and_its_gradient():
    features = torch.randn(2, 3, 9, 8, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 1.0, 1.5, 6.0, 7.0], [1, 0.0, 0.0, 3.0, 4.0]], dtype=torch.float64)
    options = {"aligned_height": 2, "aligned_width": 3, "spatial_scale": 1.0, "sampling_ratio": 2, "aligned": True}
    nothing = features.new_zeros(0)

    def pool(features):
        output = features.new_zeros(2, 3, 2, 3)
        mmcv.roi_align_forward(features, rois, output, nothing, nothing, pool_mode=1, **options)
        return output

    centre = torch.full((1, 1, 9, 8), 0.0, dtype=torch.float64) + torch.arange(8.0, dtype=torch.float64)
    # The mean of a ramp over a bin is its centre: 1.0 to 6.0 in three bins, half a pixel back.
    expected = torch.tensor([1 + 5 / 6, 3.5, 1 + 25 / 6], dtype=torch.float64) - 0.5
    torch.testing.assert_close(pool(centre.expand(2, 3, 9, 8))[0, 0, 0], expected)

    upstream, gradient = torch.randn(2, 3, 2, 3, dtype=torch.float64), torch.zeros_like(features)
    with torch.no_grad():  # as within a function of autograd
        mmcv.roi_align_backward(upstream, rois, nothing, nothing, gradient, pool_mode=1, **options)
    step = torch.randn_like(features)
    change = (pool(features + step) - pool(features)).mul(upstream).sum()  # pooling is linear
    torch.testing.assert_close((gradient * step).sum(), change)
    with pytest.raises(NotImplementedError, match="pool_mode='max'"):
        mmcv.roi_align_forward(features, rois, upstream, nothing, nothing, pool_mode=0, **options)


@pytest.mark.parametrize("weighted", [False, True])
def test_focal_loss_and_its_gradient(weighted):
    logits = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 3, 4, 4, 0])  # 4 is the background
    weight = torch.rand(4, dtype=torch.float64) if weighted else logits.new_zeros(0)
    probability, wanted = logits.sigmoid(), one_hot(target, 5)[:, :4]
    loss = torch.where(
        wanted.bool(),
        -0.25 * (1 - probability) ** 2 * probability.log(),
        -0.75 * probability**2 * (1 - probability).log(),
    )
    if weighted:
        loss = loss * torch.cat([weight, weight.new_ones(1)])[target][:, None]
    output, gradient = torch.zeros_like(logits), torch.zeros_like(logits)
    with torch.no_grad():  # as within a function of autograd
        mmcv.sigmoid_focal_loss_forward(logits, target, weight, output, gamma=2.0, alpha=0.25)
        mmcv.sigmoid_focal_loss_backward(logits, target, weight, gradient, gamma=2.0, alpha=0.25)
    torch.testing.assert_close(output, loss.detach())
    torch.testing.assert_close(gradient, *torch.autograd.grad(loss.sum(), logits))
