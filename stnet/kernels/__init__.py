"""Deformable attention: the spatial-temporal operator of STNet and the classic one of Deformable DETR."""

from stnet.kernels.inspection import SamplingPoints, sampling_points
from stnet.kernels.operators import ms_deform_attn, ms_deform_attn_backward, spatial_temporal_deform_attn

__all__ = [
    "SamplingPoints",
    "ms_deform_attn",
    "ms_deform_attn_backward",
    "sampling_points",
    "spatial_temporal_deform_attn",
]
