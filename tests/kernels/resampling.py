"""The spatial-temporal operator's output, made again from the samples that inspection tells of."""

import torch

from stnet.kernels import SamplingPoints, ms_deform_attn


def resampled(points: SamplingPoints, value: torch.Tensor, shapes) -> torch.Tensor:
    """The operator's output: samples of the classic operator on each level of each frame, weighted and added up."""
    clips, targets, queries = points.weights.shape[:3]
    output = value.new_zeros(clips, targets, queries, value.shape[3] * value.shape[4])
    starts = [sum(h * w for h, w in shapes[:level]) for level in range(len(shapes) + 1)]
    for target in range(targets):
        for frame in range(value.shape[1]):
            for level, shape in enumerate(shapes):
                here = (points.frames[target] == frame) & (points.levels == level)
                locations, weights = points.locations[:, target, ..., here, :], points.weights[:, target, ..., here]
                cells = value[:, frame, starts[level] : starts[level + 1]]
                samples = (locations.unsqueeze(3), weights.unsqueeze(3))
                output[:, target] += ms_deform_attn(cells, (shape,), (0,), *samples, backend="reference")
    return output
