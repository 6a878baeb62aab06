"""Deformable attention: the spatial-temporal operator of STNet and the classic one of Deformable DETR."""

from stnet.lazy import lazy

_HOMES = {
    "SamplingPoints": "stnet.kernels.inspection",
    "ms_deform_attn": "stnet.kernels.operators",
    "ms_deform_attn_backward": "stnet.kernels.operators",
    "sampling_points": "stnet.kernels.inspection",
    "spatial_temporal_deform_attn": "stnet.kernels.operators",
}

__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
