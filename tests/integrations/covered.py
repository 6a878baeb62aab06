"""Which models of which packages the tests go through; docs/integrations.md lists them from here."""

HUGGING_FACE = {
    "Deformable DETR": "deformable_detr",
    "Grounding DINO": "grounding_dino",
    "MM Grounding DINO": "mm_grounding_dino",
    "RT-DETR": "rt_detr",
    "RT-DETR v2": "rt_detr_v2",
    "D-FINE": "d_fine",
    "DEIMv2": "deimv2",
    "PP-DocLayout v2": "pp_doclayout_v2",
    "PP-DocLayout v3": "pp_doclayout_v3",
    "PP-DocLayout v4": "pp_doclayout_v4",
    "LW-DETR": "lw_detr",
    "RF-DETR": "rf_detr",
    "OmDet-Turbo": "omdet_turbo",
    "Mask2Former": "mask2former",
    "OneFormer": "oneformer",
}
"""The modules `transformers.models.NAME.modeling_NAME`, by the models' names."""

MMDET = {
    "Deformable DETR": "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
    "DINO": "dino/dino-4scale_r50_8xb2-12e_coco.py",
}
"""Configurations of mmdet."""

PACKAGES = {
    "ultralytics": ["RT-DETR"],
    "rfdetr": ["RF-DETR Nano"],
    "libreyolo": ["RT-DETR", "RT-DETRv2", "D-FINE", "DEIM"],
    "detrex": ["by a module of its names; it is not on PyPI"],
    "groundingdino": ["by a module of its names"],
}
"""The packages of `stnet.integrations.functions`."""
