"""The two operators."""

from stnet.kernels.problem import check_stda
from stnet.kernels.reference import stda_reference


def spatial_temporal_deform_attn(
    value, spatial_shapes, reference_points, offsets, logits, other_offsets, other_logits, *, frame_table=None,
    other_reference_points=None,
):
    tensors = (value, reference_points, offsets, logits, other_offsets, other_logits)
    problem = check_stda(tensors[0], spatial_shapes, *tensors[1:], frame_table, other_reference_points)
    other = reference_points if other_reference_points is None else other_reference_points
    return stda_reference(problem, *tensors, other)
