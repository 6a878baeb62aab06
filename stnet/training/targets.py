"""The lesions of a batch of frames as padded tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FrameTargets:
    """Targets of N frames, padded to the largest number of boxes M (at least 1).

    Attributes:
        boxes: cx, cy, w, h in [0, 1] of the unpadded image, `[N, M, 4]`; padding is (0.5, 0.5, 1, 1).
        labels: category ids, `[N, M]` int64; padding is 0.
        counts: boxes per frame, N Python ints.
        annotated: `[N]` bool; False where nobody looked at the frame: it takes no part in the loss.
    """

    boxes: Tensor
    labels: Tensor
    counts: tuple[int, ...]
    annotated: Tensor

    @classmethod
    def from_lists(
        cls,
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        annotated: Sequence[bool] | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "FrameTargets":
        """Pad one `[n, 4]` box tensor and one `[n]` label tensor per frame.

        Raises:
            ValueError: where the number of frames, or of boxes and labels of a frame, differ.
        """
        flags = [True] * len(boxes) if annotated is None else list(annotated)
        if not len(boxes) == len(labels) == len(flags):
            raise ValueError(f"{len(boxes)} frames of boxes, {len(labels)} of labels, {len(flags)} of flags")
        counts = tuple(len(frame) if flag else 0 for frame, flag in zip(boxes, flags, strict=True))
        longest = max(counts, default=0) or 1
        padded_boxes = torch.tensor([0.5, 0.5, 1.0, 1.0], dtype=dtype).repeat(len(boxes), longest, 1)
        padded_labels = torch.zeros(len(boxes), longest, dtype=torch.int64)
        for index, count in enumerate(counts):
            if count == 0:
                continue
            if len(labels[index]) != count:
                raise ValueError(f"frame {index} has {count} boxes and {len(labels[index])} labels")
            padded_boxes[index, :count] = boxes[index].to("cpu", dtype)
            padded_labels[index, :count] = labels[index].to("cpu")
        return cls(
            boxes=padded_boxes.to(device, non_blocking=True),
            labels=padded_labels.to(device, non_blocking=True),
            counts=counts,
            annotated=torch.tensor(flags, dtype=torch.bool).to(device, non_blocking=True),
        )
