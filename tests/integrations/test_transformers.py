"""Hugging Face models give the same outputs and gradients with the operators installed."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from stnet.integrations.transformers import install, uninstall  # noqa: E402

RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}


def _deformable_detr():
    backbone = transformers.ResNetConfig(**RESNET, out_features=["stage2", "stage3", "stage4"])
    config = transformers.DeformableDetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=backbone, d_model=32,
        encoder_layers=2, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=4,
        decoder_attention_heads=4, num_queries=7, num_labels=3, with_box_refine=True, two_stage=False,
    )  # fmt: skip
    return transformers.DeformableDetrForObjectDetection(config)


def _rt_detr():
    backbone = transformers.RTDetrResNetConfig(**RESNET, out_features=["stage2", "stage3", "stage4"])
    config = transformers.RTDetrConfig(
        backbone_config=backbone, encoder_in_channels=[16, 16, 16], encoder_hidden_dim=32, encoder_ffn_dim=32,
        encoder_attention_heads=4, d_model=32, decoder_in_channels=[32, 32, 32], decoder_ffn_dim=32, decoder_layers=2,
        decoder_attention_heads=4, num_queries=7, num_labels=3, num_denoising=0,
    )  # fmt: skip
    return transformers.RTDetrForObjectDetection(config)


def _outputs(model, pixels):
    output = model(pixel_values=pixels)
    (output.logits.square().mean() + output.pred_boxes.square().mean()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return output.logits.detach(), output.pred_boxes.detach(), gradients


@pytest.mark.parametrize("build", [_deformable_detr, _rt_detr])
def test_outputs_and_gradients_stay_the_same(build, monkeypatch):
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sampling_offsets" in name or "attention_weights" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    pixels = torch.randn(2, 3, 96, 128)
    eager = _outputs(model, pixels)

    calls = []
    monkeypatch.setattr(
        "stnet.integrations.transformers.ms_deform_attn",
        lambda *arguments, real=install.__globals__["ms_deform_attn"]: calls.append(1) or real(*arguments),
    )
    layers = install(model)
    assert layers >= 2
    installed = _outputs(model, pixels)
    assert len(calls) == layers
    for before, after in zip(eager[:2], installed[:2], strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
    assert eager[2].keys() == installed[2].keys()
    for name, gradient in eager[2].items():
        torch.testing.assert_close(installed[2][name], gradient, rtol=1e-3, atol=1e-4, msg=name)

    uninstall(model)
    calls.clear()
    again = _outputs(model, pixels)
    assert not calls
    assert torch.equal(again[0], eager[0])


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(ValueError, match="Linear has no MultiScaleDeformableAttention layer"):
        install(torch.nn.Linear(1, 1))
