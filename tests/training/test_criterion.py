"""The loss against the recorded original, and its behaviour where the recording says nothing."""

import json

import numpy as np
import pytest
import torch

from stnet.boxes import corners, overlaps
from stnet.training.criterion import Criterion, LossWeights
from stnet.training.targets import FrameTargets


@pytest.fixture(scope="module")
def recorded(request):
    folder = request.getfixturevalue("shared") / "parity"
    case = json.loads((folder / "refine_128x160.json").read_text())
    with np.load(folder / "refine_128x160.npz") as arrays:
        return case, {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def recorded_targets(arrays) -> FrameTargets:
    return FrameTargets.from_lists(
        [arrays[f"target_boxes_{frame}"] for frame in range(3)],
        [arrays[f"target_labels_{frame}"] for frame in range(3)],
        dtype=torch.float64,
    )


def test_losses_pairs_and_total_of_the_original(recorded):
    case, arrays = recorded
    criterion = Criterion()
    layer = (arrays["logits"].double(), arrays["boxes"].double())
    losses = criterion([layer], recorded_targets(arrays))
    # The logits are stored as float32, hence not 1e-12.
    for frame, expected in enumerate(case["losses"]):
        assert losses.classification[0, frame].item() == pytest.approx(expected["loss_ce"], rel=2e-6)
        assert losses.l1[0, frame].item() == pytest.approx(expected["loss_bbox"], rel=2e-6)
        assert losses.giou[0, frame].item() == pytest.approx(expected["loss_giou"], rel=2e-6)
    assert criterion.total(losses, 3).item() == pytest.approx(case["total_loss"], rel=2e-6)
    for frame, (queries, targets) in enumerate(case["matched"]):
        here = losses.matches.frame == frame
        assert losses.matches.query[here].tolist() == queries
        assert losses.matches.target[here].tolist() == targets


def test_clips_and_frames_may_be_separate_dimensions(recorded):
    _, arrays = recorded
    targets = recorded_targets(arrays)
    flat = Criterion()([(arrays["logits"].double(), arrays["boxes"].double())], targets)
    nested = Criterion()([(arrays["logits"].double()[None], arrays["boxes"].double()[None])], targets)
    torch.testing.assert_close(flat.weighted(LossWeights()), nested.weighted(LossWeights()))


def random_layers(count: int, frames: int, queries: int = 8):
    return [
        (torch.randn(frames, queries, 3, requires_grad=True), torch.rand(frames, queries, 4) * 0.4 + 0.2)
        for _ in range(count)
    ]


def frames_of(counts: list[int], annotated: list[bool] | None = None) -> FrameTargets:
    return FrameTargets.from_lists(
        [torch.rand(count, 4) * 0.4 + 0.2 for count in counts],
        [torch.randint(1, 3, (count,)) for count in counts],
        annotated,
    )


def test_auxiliary_layers_add_their_own_losses():
    layers, targets = random_layers(3, 2), frames_of([1, 2])
    criterion = Criterion()
    together = criterion(layers, targets)
    for number, layer in enumerate(layers):
        alone = criterion([layer], targets)
        torch.testing.assert_close(together.weighted(LossWeights())[number], alone.weighted(LossWeights())[0])


def test_lesion_free_frames_teach_the_background_only():
    layers = random_layers(1, 2)
    losses = Criterion()(layers, frames_of([0, 0]))
    assert losses.l1.eq(0).all() and losses.giou.eq(0).all()
    assert losses.classification.gt(0).all()
    losses.classification.sum().backward()
    assert layers[0][0].grad.gt(0).all()  # every logit is pushed down


def test_unannotated_frames_give_no_loss_and_no_gradient():
    layers = random_layers(1, 2)
    criterion = Criterion()
    losses = criterion(layers, frames_of([1, 1], [True, False]))
    assert losses.weighted(LossWeights())[0, 1] == 0
    criterion.total(losses, 1).backward()
    assert layers[0][0].grad[1].eq(0).all()
    assert layers[0][0].grad[0].ne(0).any()


def test_more_lesions_than_queries_divide_by_the_lesions():
    logits, boxes = torch.zeros(1, 2, 3), torch.tensor([[[0.5, 0.5, 0.2, 0.2]] * 2])
    targets = FrameTargets.from_lists([torch.tensor([[0.5, 0.5, 0.2, 0.4]] * 4)], [torch.ones(4, dtype=torch.int64)])
    losses = Criterion()([(logits, boxes)], targets)
    assert losses.l1.item() == pytest.approx(2 * 0.2 / 4)


def test_one_to_many_supervises_earlier_layers_with_several_queries():
    layers, targets = random_layers(2, 1), frames_of([1])
    matches = Criterion(auxiliary_repeats=4)(layers, targets).matches
    assert torch.bincount(matches.layer).tolist() == [4, 1]


@pytest.mark.parametrize("class_loss", ["focal", "quality"])
def test_perfect_predictions_cost_next_to_nothing(class_loss):
    box = torch.tensor([[0.4, 0.5, 0.2, 0.3]])
    logits = torch.full((1, 3, 3), -20.0)
    logits[0, 1, 2] = 20.0
    boxes = torch.tensor([[[0.1, 0.1, 0.1, 0.1], [0.4, 0.5, 0.2, 0.3], [0.8, 0.8, 0.1, 0.1]]])
    targets = FrameTargets.from_lists([box], [torch.tensor([2])])
    losses = Criterion(class_loss=class_loss)([(logits, boxes)], targets)
    assert losses.matches.query.tolist() == [1]
    assert losses.weighted(LossWeights()).item() < 1e-5


def test_quality_loss_pulls_the_score_towards_the_overlap():
    targets = FrameTargets.from_lists([torch.tensor([[0.5, 0.5, 0.4, 0.4]])], [torch.tensor([1])])
    logits = torch.full((1, 1, 3), -9.0)
    logits[0, 0, 1] = 6.0
    logits.requires_grad_()
    boxes = torch.tensor([[[0.6, 0.6, 0.4, 0.4]]])  # IoU 0.39: score 0.998 is too sure
    Criterion(class_loss="quality")([(logits, boxes)], targets).classification.sum().backward()
    assert logits.grad[0, 0, 1] > 0.5


def test_half_precision_predictions_are_computed_in_float32():
    layers, targets = random_layers(1, 2), frames_of([1, 1])
    half = [(logits.detach().bfloat16(), boxes.bfloat16()) for logits, boxes in layers]
    losses = Criterion()(half, targets)
    assert losses.classification.dtype == torch.float32
    assert losses.l1.dtype == torch.float32


def test_generalized_iou_agrees_with_torchvision():
    from torchvision.ops import box_iou, generalized_box_iou

    first, second = torch.rand(40, 4) * 0.4 + 0.1, torch.rand(30, 4) * 0.4 + 0.1
    iou, giou = overlaps(corners(first)[:, None], corners(second))
    torch.testing.assert_close(iou, box_iou(corners(first), corners(second)))
    torch.testing.assert_close(giou, generalized_box_iou(corners(first), corners(second)))


def test_boxes_without_area_overlap_by_zero():
    iou, giou = overlaps(torch.zeros(4), torch.zeros(4))
    assert iou == 0 and giou == 0


def test_refusals():
    with pytest.raises(ValueError, match="class_loss 'dice'"):
        Criterion(class_loss="dice")
    with pytest.raises(ValueError, match="auxiliary_repeats 0"):
        Criterion(auxiliary_repeats=0)
    with pytest.raises(ValueError, match="2 frames, targets of 3"):
        Criterion()(random_layers(1, 2), frames_of([1, 1, 1]))
