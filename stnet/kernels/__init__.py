"""Deformable attention: the spatial-temporal operator of STNet and the classic one of Deformable DETR."""

from stnet.kernels.operators import ms_deform_attn, spatial_temporal_deform_attn

__all__ = ["ms_deform_attn", "spatial_temporal_deform_attn"]
