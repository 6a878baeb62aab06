"""Equality with the numbers recorded from the original implementation."""

import numpy as np
import pytest
import torch

from stnet.model.postprocess import select_detections
from stnet.model.published import rename_published
from stnet.training.criterion import Criterion
from stnet.training.targets import FrameTargets

CASES = ("plain_96x128", "refine_128x160", "refine_padded_160x192")
TOLERANCE = {torch.float64: 1e-5, torch.float32: 2e-4}


def _run(model, case):
    """Outputs and the encoder's memory."""
    memory = []
    handle = model.encoder.register_forward_hook(lambda module, inputs, output: memory.append(output))
    with torch.no_grad():
        output = model(case.clip.to(model.level_embed.dtype), case.padding_mask)
    handle.remove()
    return output, memory[0][0]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_outputs_equal_the_original(recorded, published_model, name, dtype):
    case = recorded(name)
    output, memory = _run(published_model(case, dtype), case)
    expected = {key: torch.from_numpy(value) for key, value in case.arrays.items()}
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(output.logits[0].float(), expected["logits"], rtol=0, atol=tolerance)
    torch.testing.assert_close(output.boxes[0].float(), expected["boxes"], rtol=0, atol=tolerance)
    torch.testing.assert_close(memory.mean(dim=1).float(), expected["memory_mean"], rtol=0, atol=tolerance)
    torch.testing.assert_close(memory.std(dim=1).float(), expected["memory_std"], rtol=0, atol=tolerance)
    if "memory" in expected:
        torch.testing.assert_close(memory.float(), expected["memory"], rtol=0, atol=tolerance)
    _check_detections(output, expected, in_order=dtype == torch.float64)


def _check_detections(output, expected, in_order: bool):
    found = select_detections(output.logits[0], output.boxes[0], 480, 640, keep_class0=True)
    for target, detections in enumerate(found):
        scores, labels, boxes = (expected[f"det_{key}"][target] for key in ("scores", "labels", "boxes"))
        torch.testing.assert_close(detections.scores, scores, rtol=0, atol=1e-5)
        if in_order:
            assert torch.equal(detections.labels, labels)
            torch.testing.assert_close(detections.boxes, boxes, rtol=0, atol=0.02)
            continue
        # Scores of different queries can tie to 2e-7, so neighbours may swap: look each one up. The last ones may
        # have been pushed out of the recorded top 100 altogether.
        for box, score, label in zip(detections.boxes, detections.scores, detections.labels, strict=True):
            same = ((scores - score).abs() < 1e-5) & (labels == label) & ((boxes - box).abs() < 0.1).all(-1)
            assert same.any() or score - scores[-1] < 1e-5


@pytest.fixture(scope="module")
def training_run(recorded, published_model):
    """Forward and backward of the recorded training step, in float64 without dropout."""
    case = recorded("refine_128x160")
    model = published_model(case, torch.float64)
    output = model(case.clip.double())
    targets = FrameTargets.from_lists(
        [torch.from_numpy(case.arrays[f"target_boxes_{t}"]) for t in range(3)],
        [torch.from_numpy(case.arrays[f"target_labels_{t}"]) for t in range(3)],
        dtype=torch.float64,
    )
    criterion = Criterion()
    losses = criterion([(output.logits, output.boxes)], targets)
    total = criterion.total(losses, 3)
    total.backward()
    return case, model, losses, total


def test_losses_and_matches_equal_the_original(training_run):
    case, _, losses, total = training_run
    for frame, expected in enumerate(case.facts["losses"]):
        assert losses.classification[0, frame].item() == pytest.approx(expected["loss_ce"], rel=1e-5)
        assert losses.l1[0, frame].item() == pytest.approx(expected["loss_bbox"], rel=1e-5)
        assert losses.giou[0, frame].item() == pytest.approx(expected["loss_giou"], rel=1e-5)
    assert total.item() == pytest.approx(case.facts["total_loss"], rel=1e-6)
    matches = losses.matches
    for frame, (queries, targets) in enumerate(case.facts["matched"]):
        here = matches.frame == frame
        pairs = set(zip(matches.query[here].tolist(), matches.target[here].tolist(), strict=True))
        assert pairs == set(zip(queries, targets, strict=True))


def test_gradients_equal_the_original(training_run):
    case, model, _, _ = training_run
    parameters = dict(model.named_parameters())
    seen = set()
    for published, expected in case.facts["grad_norms"].items():
        own_name = rename_published(published.replace("transformer.decoder.bbox_embed", "bbox_embed"))
        parameter = parameters[own_name]
        norm = 0.0 if parameter.grad is None else parameter.grad.norm().item()
        assert norm == pytest.approx(expected, rel=1e-4, abs=1e-9), published
        seen.add(id(parameter))
    not_trained = [name for name, parameter in parameters.items() if id(parameter) not in seen]
    assert sorted(not_trained) == sorted(map(rename_published, case.facts["no_grad"]))
    assert not any(parameters[name].requires_grad for name in not_trained)

    for key in (key for key in case.arrays if key.startswith("grad/")):
        gradient = parameters[rename_published(key.removeprefix("grad/"))].grad.flatten()[:4096].numpy()
        difference = np.linalg.norm(gradient - case.arrays[key]) / np.linalg.norm(case.arrays[key])
        assert difference < 1e-4, key
