"""Run an exported model with onnxruntime and numpy alone.

    python examples/onnx_runtime.py model.onnx clip.npy

`clip.npy` holds the frames of one clip, uint8 RGB [F, height, width, 3], resized as the metadata says. The first ones
are predicted; what is found at the balanced operating point is printed: frame, class, score, corners in pixels.
"""

import json
import sys

import numpy as np
import onnxruntime


def calibrated(logits, points):
    """Scores [..., classes] of logits; where the model has no operating points, its sigmoid as it is."""
    slope, offset = (np.float32(points[key]) if points else default for key, default in (("slopes", 1), ("offsets", 0)))
    return 1 / (1 + np.exp(-(slope * logits + offset)))


def overlaps(box, others):
    """Intersection over union of a box (x0, y0, x1, y1) with others."""
    width, height = (np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])).clip(0).T
    area = np.prod(others[:, 2:] - others[:, :2], axis=1) + np.prod(box[2:] - box[:2])
    return width * height / (area - width * height)


session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
frames = np.load(sys.argv[2])
clips = ((frames / np.float32(255) - np.float32(facts["mean"])) / np.float32(facts["std"])).transpose(0, 3, 1, 2)[None]
logits, boxes = session.run(["logits", "boxes"], {"clips": clips})
points = facts.get("stnet_operating_points")
threshold = points["balanced"] if points else 0.4
for frame in range(facts["targets"]):
    scores = calibrated(logits[0, frame, :, 1:], points)  # label 0 is never used
    centres, sizes = boxes[0, frame, :, :2], boxes[0, frame, :, 2:]
    corners = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1) * np.tile(frames.shape[2:0:-1], 2)
    kept = np.empty((0, 4), np.float32)
    for query in (-logits[0, frame, :, 1:].max(axis=1)).argsort():
        if (overlaps(corners[query], kept) > facts["duplicate_iou"]).any():
            continue
        kept = np.append(kept, corners[query : query + 1], axis=0)
        for label in np.flatnonzero(scores[query] >= threshold):
            print(frame, facts["classes"][label], f"{scores[query, label]:.4f}", *corners[query].round(2))
