"""mmcv-lite and mmdet from PyPI, without compiled operators."""

import warnings
from pathlib import Path

import pytest
import torch

from stnet.integrations import functions, mmcv
from tests.integrations.comparing import Calls, compare
from tests.integrations.covered import MMDET

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("mmdet.version", reason="needs mmdet")


@pytest.fixture(scope="module", autouse=True)
def installed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mmcv.install()
        from mmdet.utils import register_all_modules

        register_all_modules()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operator_equals_the_function_in_pytorch(dtype):
    """Repeat mmcv's own test (test_forward_equal_with_pytorch_*), with bounds that are not loose."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch

    own = multi_scale_deformable_attn_pytorch.__wrapped__
    shapes = torch.tensor([(6, 4), (3, 2)])
    starts = torch.cat((shapes.new_zeros((1,)), shapes.prod(1).cumsum(0)[:-1]))
    value = torch.rand(1, 30, 2, 2, dtype=dtype) * 0.01
    locations = torch.rand(1, 2, 2, 2, 2, 2, dtype=dtype)
    weights = torch.rand(1, 2, 2, 2, 2, dtype=dtype) + 1e-5
    weights /= weights.sum(-1, keepdim=True).sum(-2, keepdim=True)
    expected = own(value, shapes, locations, weights)
    output = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 2)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("channels", [4, 30, 32, 64, 71, 1025])
def test_gradient_is_the_numerical_one(channels):
    """Repeat mmcv's own test (test_gradient_numerical): nine tensors, of which three are written."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    shapes = torch.tensor([(3, 2), (2, 1)])
    starts = torch.cat((shapes.new_zeros((1,)), shapes.prod(1).cumsum(0)[:-1]))
    value = (torch.rand(1, 8, 2, channels, dtype=torch.float64) * 0.01).requires_grad_()
    locations = torch.rand(1, 2, 2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(1, 2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        MultiScaleDeformableAttnFunction.apply, (value, shapes, starts, locations, weights, 2), fast_mode=True
    )


def test_layer_runs_in_half_precision():
    from mmcv.ops import MultiScaleDeformableAttention

    layer = MultiScaleDeformableAttention(embed_dims=32, num_levels=2, num_heads=4, dropout=0.0).bfloat16()
    layer.init_weights()
    shapes = torch.tensor([[4, 6], [2, 3]])
    query, value = torch.randn(5, 3, 32).bfloat16(), torch.randn(30, 3, 32).bfloat16()
    points = torch.rand(3, 5, 2, 2).bfloat16()
    output = layer(query, value=value, reference_points=points, spatial_shapes=shapes, level_start_index=shapes[:, 0])
    assert output.dtype == torch.bfloat16 and output.isfinite().all()


def _model(name):
    import mmdet
    from mmdet.registry import MODELS
    from mmengine.config import Config

    config = Config.fromfile(Path(mmdet.__path__[0], ".mim/configs", MMDET[name])).model
    config.backbone.update(depth=18, init_cfg=None)
    config.neck.in_channels = [128, 256, 512]
    config.encoder.num_layers = config.decoder.num_layers = 2
    config.num_queries = 20
    model = MODELS.build(config)
    model.init_weights()
    for module in model.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # Scores that are far from equal, so that queries are chosen alike.
            strength = 0.3 if "cls_branches" in key else 0.1 * ("sampling_offsets" in key or "attention_weights" in key)
            parameter.add_(torch.randn_like(parameter) * strength)
    return model


@pytest.mark.parametrize("name", MMDET)
def test_models_built_from_their_configurations(name, monkeypatch):
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    sample = DetDataSample(metainfo={"img_shape": (96, 128), "batch_input_shape": (96, 128), "ori_shape": (96, 128)})
    boxes = torch.tensor([[10.0, 10, 50, 60], [60, 20, 100, 90]])
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([3, 5]))
    pixels = torch.randn(1, 3, 96, 128)

    def losses(model):
        torch.manual_seed(0)  # the noise of denoising queries
        return model(pixels.to(next(model.parameters()).dtype), [sample], mode="loss")

    calls = Calls(monkeypatch)
    compare(
        _model(name),
        losses,
        install=lambda model: mmcv.install(),
        uninstall=lambda model: functions.restore(*mmcv.ON_THE_CPU),
        dtypes=[torch.float32],  # mmdet's position embedding knows no other
    )
    assert len(calls) >= 4


def test_prediction_with_non_maximum_suppression():
    from mmcv.ops import batched_nms

    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30], [0, 0, 10, 10]])
    scores, classes = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 0, 0, 1])
    kept, indices = batched_nms(boxes, scores, classes, {"type": "nms", "iou_threshold": 0.5})
    assert indices.tolist() == [0, 2, 3] and kept.shape == (3, 5)


def test_focal_loss_is_that_of_mmdet():
    from mmcv.ops import sigmoid_focal_loss
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    logits = torch.randn(6, 4, requires_grad=True)
    target = torch.tensor([0, 1, 2, 3, 4, 4])
    wanted = torch.nn.functional.one_hot(target, 5)[:, :4]
    expected = py_sigmoid_focal_loss(logits, wanted, reduction="mean") * logits.numel() / len(logits)
    output = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, "mean")
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (output, expected)))
