"""Hugging Face models give the same outputs and gradients with the operators installed."""

import copy

import pytest
import torch

transformers = pytest.importorskip("transformers")

from stnet.integrations import layouts  # noqa: E402
from stnet.integrations.transformers import install, uninstall  # noqa: E402

RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
STAGES = {"out_features": ["stage2", "stage3", "stage4"]}
ENCODER = {"encoder_ffn_dim": 32, "encoder_attention_heads": 4}
DECODER = {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 32, "decoder_attention_heads": 4, "num_queries": 7}
HYBRID = {
    **ENCODER,
    **DECODER,
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [16, 16, 16],
    "decoder_in_channels": [32, 32, 32],
    "num_denoising": 0,
    "num_labels": 3,
}


def _deformable_detr():
    config = transformers.DeformableDetrConfig(
        backbone_config=transformers.ResNetConfig(**RESNET, **STAGES), use_timm_backbone=False, encoder_layers=2,
        **ENCODER, **DECODER, num_labels=3, with_box_refine=True, two_stage=False,
    )  # fmt: skip
    return transformers.DeformableDetrForObjectDetection(config)


def _grounding_dino():
    config = transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(
            embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, **STAGES
        ),
        text_config=transformers.BertConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=1100
        ),
        use_timm_backbone=False, encoder_layers=2, **ENCODER, **DECODER,
    )  # fmt: skip
    return transformers.GroundingDinoForObjectDetection(config)


def _rt_detr():
    backbone = transformers.RTDetrResNetConfig(**RESNET, **STAGES)
    return transformers.RTDetrForObjectDetection(transformers.RTDetrConfig(backbone_config=backbone, **HYBRID))


def _rt_detr_v2():
    backbone = transformers.RTDetrResNetConfig(**RESNET, **STAGES)
    return transformers.RTDetrV2ForObjectDetection(transformers.RTDetrV2Config(backbone_config=backbone, **HYBRID))


def _d_fine():
    backbone = transformers.HGNetV2Config(
        stage_in_channels=[8, 8, 16, 16], stage_mid_channels=[8] * 4, stage_out_channels=[8, 16, 16, 16],
        stage_num_blocks=[1] * 4, stem_channels=[3, 8, 8], hidden_sizes=[8, 16, 16, 16], embedding_size=8, **STAGES,
    )  # fmt: skip
    config = transformers.DFineConfig(backbone_config=backbone, **HYBRID, decoder_n_points=[3, 5, 2])
    return transformers.DFineForObjectDetection(config)


def _scrambled(build):
    """In training, where normalization keeps random weights tame, but with nothing dropped."""
    torch.manual_seed(0)
    model = build().train()
    for module in model.modules():
        for name in ("p", "dropout", "attention_dropout", "activation_dropout", "drop_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            strong = "sampling_offsets" in name or "attention_weights" in name
            parameter.add_(torch.randn_like(parameter) * (0.3 if strong else 0.05))
    return model


def _outputs(model, pixels):
    words = {}
    if "GroundingDino" in type(model).__name__:
        ids = torch.tensor([[101, 500, 1012, 700, 1012, 102]] * len(pixels))
        words = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    output = model(pixel_values=pixels.to(next(model.parameters()).dtype), **words)
    logits = torch.nan_to_num(output.logits, neginf=0)
    (logits.square().mean() + output.pred_boxes.square().mean()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return logits.detach(), output.pred_boxes.detach(), gradients


@pytest.mark.parametrize("build", [_deformable_detr, _grounding_dino, _rt_detr, _rt_detr_v2, _d_fine])
def test_outputs_and_gradients_stay_the_same(build, monkeypatch):
    model = _scrambled(build)
    pixels = torch.randn(2, 3, 96, 128)
    eager, precise = _outputs(model, pixels), copy.deepcopy(model).double()
    expected = _outputs(precise, pixels)

    calls = []
    monkeypatch.setattr(
        layouts, "ms_deform_attn", lambda *args, real=layouts.ms_deform_attn: calls.append(1) or real(*args)
    )
    layers = install(model)
    assert install(model) == layers >= 2
    installed = _outputs(model, pixels)
    assert len(calls) == layers
    for before, after in zip(eager[:2], installed[:2], strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
    # In double precision, because some of these random models are ill-conditioned.
    install(precise)
    for name, gradient in _outputs(precise, pixels)[2].items():
        torch.testing.assert_close(gradient, expected[2][name], rtol=1e-4, atol=1e-5, msg=name)
    if build is not _d_fine:
        for name, gradient in eager[2].items():
            torch.testing.assert_close(installed[2][name], gradient, rtol=1e-3, atol=1e-3, msg=name)

    uninstall(model)
    calls.clear()
    assert torch.equal(_outputs(model, pixels)[0], eager[0]) and not calls
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sampling_offsets.bias" in name:
                parameter.add_(2.0)
    assert (_outputs(model, pixels)[0] - eager[0]).abs().max() > 1e-3  # so the comparison could have failed


def test_discrete_sampling_stays_what_it_was():
    torch.manual_seed(0)
    backbone = transformers.RTDetrResNetConfig(**RESNET, **STAGES)
    config = transformers.RTDetrV2Config(backbone_config=backbone, **HYBRID, decoder_method="discrete")
    model = transformers.RTDetrV2ForObjectDetection(config).train()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        eager = copy.deepcopy(model)(pixel_values=pixels).logits
        install(model)
        assert torch.equal(model(pixel_values=pixels).logits, eager)
