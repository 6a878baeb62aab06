"""Tiny models with random weights of every model in transformers that carries deformable attention.

Each function has the name of the module `transformers.models.NAME.modeling_NAME` whose model it builds.
"""

import torch
import transformers as hf

from tests.integrations.covered import HUGGING_FACE

STAGES = {"out_features": ["stage2", "stage3", "stage4"]}
ALL_STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
HGNET = {
    "stage_in_channels": [8, 8, 16, 16],
    "stage_mid_channels": [8] * 4,
    "stage_out_channels": [8, 16, 16, 16],
    "stage_num_blocks": [1] * 4,
    "stem_channels": [3, 8, 8],
    "hidden_sizes": [8, 16, 16, 16],
    "embedding_size": 8,
}
BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 1100,
}
ENCODER = {"encoder_ffn_dim": 32, "encoder_attention_heads": 4}
DECODER = {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 32, "decoder_attention_heads": 4, "num_queries": 7}
HYBRID = {
    **ENCODER,
    **DECODER,
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [16, 16, 16],
    "decoder_in_channels": [32, 32, 32],
    "num_denoising": 0,
}
LABELS = {"num_labels": 3}
GROUPED = {
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_ffn_dim": 32,
    "decoder_self_attention_heads": 4,
    "decoder_cross_attention_heads": 4,
    "decoder_n_points": 2,
    "num_queries": 7,
    "group_detr": 2,
}
SEGMENTER = {
    "hidden_dim": 32,
    "encoder_feedforward_dim": 32,
    "dim_feedforward": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "num_attention_heads": 4,
    "num_queries": 7,
    "dropout": 0.0,
}


def deformable_detr():
    """Build Deformable DETR."""
    backbone = hf.ResNetConfig(**RESNET, **STAGES)
    config = hf.DeformableDetrConfig(
        backbone_config=backbone, encoder_layers=2, **ENCODER, **DECODER, **LABELS, with_box_refine=True
    )
    return hf.DeformableDetrForObjectDetection(config)


def grounding_dino():
    """Build Grounding DINO."""
    config = hf.GroundingDinoConfig(
        backbone_config=hf.SwinConfig(**SWIN, **STAGES),
        text_config=hf.BertConfig(**BERT),
        encoder_layers=2,
        **ENCODER,
        **DECODER,
    )
    return hf.GroundingDinoForObjectDetection(config)


def mm_grounding_dino():
    """Build MM Grounding DINO."""
    config = hf.MMGroundingDinoConfig(
        backbone_config=hf.SwinConfig(**SWIN, **STAGES),
        text_config=hf.BertConfig(**BERT),
        encoder_layers=2,
        fusion_droppath=0.0,
        **ENCODER,
        **DECODER,
    )
    return hf.MMGroundingDinoForObjectDetection(config)


def rt_detr():
    """Build RT-DETR."""
    backbone = hf.RTDetrResNetConfig(**RESNET, **STAGES)
    return hf.RTDetrForObjectDetection(hf.RTDetrConfig(backbone_config=backbone, **HYBRID, **LABELS))


def rt_detr_v2(**options):
    """Build RT-DETR v2."""
    backbone = hf.RTDetrResNetConfig(**RESNET, **STAGES)
    return hf.RTDetrV2ForObjectDetection(hf.RTDetrV2Config(backbone_config=backbone, **HYBRID, **LABELS, **options))


def d_fine():
    """Build D-FINE, with a number of points for each level."""
    backbone = hf.HGNetV2Config(**HGNET, **STAGES)
    config = hf.DFineConfig(backbone_config=backbone, **HYBRID, **LABELS, decoder_n_points=[3, 5, 2])
    return hf.DFineForObjectDetection(config)


def deimv2():
    """Build DEIMv2, with a number of points for each level."""
    backbone = hf.HGNetV2Config(**HGNET, **STAGES)
    config = hf.Deimv2Config(backbone_config=backbone, **HYBRID, **LABELS, decoder_n_points=[3, 5, 2])
    return hf.Deimv2ForObjectDetection(config)


def pp_doclayout_v2():
    """Build PP-DocLayout v2."""
    reading = {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "coordinate_size": 6,
        "shape_size": 4,
        "num_classes": 3,
    }
    backbone = hf.HGNetV2Config(**HGNET, **STAGES)
    config = hf.PPDocLayoutV2Config(
        backbone_config=backbone,
        reading_order_config=reading,
        **HYBRID,
        **LABELS,
        class_thresholds=[0.5] * 3,
        class_order=[0, 1, 2],
    )
    return hf.PPDocLayoutV2ForObjectDetection(config)


def pp_doclayout_v3():
    """Build PP-DocLayout v3."""
    backbone = hf.HGNetV2Config(**HGNET, **ALL_STAGES)
    config = hf.PPDocLayoutV3Config(
        backbone_config=backbone,
        **HYBRID,
        **LABELS,
        mask_feature_channels=[16, 16],
        x4_feat_dim=8,
        gp_dropout_value=0.0,
    )
    return hf.PPDocLayoutV3ForObjectDetection(config)


def pp_doclayout_v4():
    """Build PP-DocLayout v4."""
    backbone = hf.HGNetV2Config(**HGNET, **STAGES)
    config = hf.PPDocLayoutV4Config(backbone_config=backbone, **HYBRID, **LABELS, hidden_size=32, gp_dropout_value=0.0)
    return hf.PPDocLayoutV4ForObjectDetection(config)


def lw_detr():
    """Build LW-DETR."""
    backbone = hf.LwDetrViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=128, out_indices=[2],
        pretrain_image_size=128, num_windows=4, window_block_indices=[0],
    )  # fmt: skip
    config = hf.LwDetrConfig(backbone_config=backbone, projector_scale_factors=[1.0], **GROUPED, **LABELS)
    return hf.LwDetrForObjectDetection(config)


def rf_detr():
    """Build RF-DETR."""
    backbone = hf.RfDetrDinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=128, patch_size=16, out_indices=[1, 2],
        num_windows=2, window_block_indexes=[0],
    )  # fmt: skip
    return hf.RfDetrForObjectDetection(hf.RfDetrConfig(backbone_config=backbone, **GROUPED, **LABELS))


def omdet_turbo():
    """Build OmDet-Turbo."""
    config = hf.OmDetTurboConfig(
        backbone_config=hf.SwinConfig(**SWIN, **STAGES),
        text_config=hf.CLIPTextConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=1100,
            projection_dim=16,
        ),
        apply_layernorm_after_vision_backbone=False,
        text_projection_in_dim=16, text_projection_out_dim=16, class_embed_dim=16, task_encoder_hidden_dim=32,
        num_queries=7, d_model=32, vision_features_channels=[32, 32, 32], encoder_in_channels=[16, 32, 64],
        encoder_attention_heads=4, encoder_dim_feedforward=32, decoder_hidden_dim=32, decoder_num_heads=4,
        decoder_num_layers=2, decoder_dim_feedforward=32,
    )  # fmt: skip
    return hf.OmDetTurboForObjectDetection(config)


def mask2former():
    """Build Mask2Former."""
    config = hf.Mask2FormerConfig(
        backbone_config=hf.SwinConfig(**SWIN, **ALL_STAGES),
        feature_size=32,
        mask_feature_size=32,
        **SEGMENTER,
        **LABELS,
    )
    return hf.Mask2FormerForUniversalSegmentation(config)


def oneformer():
    """Build OneFormer."""
    config = hf.OneFormerConfig(
        backbone_config=hf.SwinConfig(**SWIN, **ALL_STAGES), conv_dim=32, mask_dim=32, text_encoder_width=32,
        text_encoder_num_layers=1, text_encoder_vocab_size=1100, task_seq_len=5, **SEGMENTER, **LABELS,
    )  # fmt: skip
    return hf.OneFormerForUniversalSegmentation(config)


MODELS = {name: globals()[module] for name, module in HUGGING_FACE.items()}


def call(model, pixels):
    """Return the model's outputs for some pictures `[2, 3, H, W]`, and words where it needs them."""
    name, words = type(model).__name__, {}
    if "GroundingDino" in name:
        ids = torch.tensor([[101, 500, 1012, 700, 1012, 102]] * len(pixels))
        words = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    if "OmDetTurbo" in name:
        # It keeps the words' features, with their graph, from call to call.
        model.language_cache_class.cache.clear()
        model.language_cache_prompt.cache.clear()
        ids = torch.tensor([[49, 500, 12, 1099]] * 2 * len(pixels))
        words = {
            "classes_input_ids": ids,
            "classes_attention_mask": torch.ones_like(ids),
            "classes_structure": torch.tensor([2] * len(pixels)),
            "tasks_input_ids": ids[: len(pixels)],
            "tasks_attention_mask": torch.ones_like(ids[: len(pixels)]),
        }
    if "OneFormer" in name:
        words = {"task_inputs": torch.tensor([[49, 500, 12, 1, 2]] * len(pixels))}
    parameter = next(model.parameters())
    return model(pixel_values=pixels.to(parameter.dtype), **words)
