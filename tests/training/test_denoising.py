"""Denoising queries never leak into the learned ones, and their targets are right."""

import dataclasses

import torch

from stnet.data.clips.dataset import ClipBatch
from stnet.model.detector import Detector
from stnet.training.criterion import Criterion
from stnet.training.denoising import TrainedModel, denoising_matches, noised_lesions, split_queries
from stnet.training.step import _targets

COPIES = 3


def batch_of(counts: list[list[int]]) -> ClipBatch:
    generator = torch.Generator().manual_seed(4)
    return ClipBatch(
        images=torch.randn(len(counts), 6, 3, 48, 64, generator=generator),
        padding_mask=torch.zeros(len(counts), 48, 64, dtype=torch.bool),
        boxes=[[torch.rand(n, 4, generator=generator) * 0.3 + 0.2 for n in clip] for clip in counts],
        labels=[[torch.randint(1, 3, (n,), generator=generator) for n in clip] for clip in counts],
        annotated=[[True] * len(clip) for clip in counts],
        videos=[f"v{i}" for i in range(len(counts))],
        frames=[tuple(range(6))] * len(counts),
        image_ids=[tuple(range(10 * i, 10 * i + 6)) for i in range(len(counts))],
    )


def noise(batch, seed=(0, 0)):
    return noised_lesions(batch, _targets(batch, "cpu"), COPIES, 2, seed)


def test_learned_queries_do_not_see_the_copies(small_recipe):
    config = small_recipe()
    model = TrainedModel(Detector(config.model), denoising=True).eval()
    batch = batch_of([[1, 0, 2], [2, 1, 1]])
    with torch.no_grad():
        alone = model(batch.images, None, 3)
        beside = model(batch.images, None, 3, noise(batch))
    queries = config.model.queries
    torch.testing.assert_close(beside.logits[:, :, :queries], alone.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(beside.boxes[:, :, :queries], alone.boxes, atol=1e-5, rtol=1e-5)
    assert beside.logits.shape[2] == queries + COPIES * 2 * 2


def test_groups_do_not_see_each_other(small_recipe):
    config = small_recipe()
    model = TrainedModel(Detector(config.model), denoising=True).eval()
    batch = batch_of([[2, 1, 2]])
    noised = noise(batch)
    changed = noise(batch, (0, 9))
    first_group = 2 * 2
    changed.boxes[:, :, :first_group] = noised.boxes[:, :, :first_group]
    changed.labels[:, :, :first_group] = noised.labels[:, :, :first_group]
    assert not torch.equal(changed.boxes, noised.boxes)
    with torch.no_grad():
        one, two = (model(batch.images, None, 3, each).logits for each in (noised, changed))
    kept = config.model.queries + first_group
    torch.testing.assert_close(one[:, :, :kept], two[:, :, :kept], atol=1e-5, rtol=1e-5)


def test_copies_to_restore_are_closer_than_copies_to_reject():
    batch = batch_of([[2, 2, 2]])
    boxes = noise(batch).boxes.view(1, 3, COPIES, 2, 2, 4)
    known = torch.stack([torch.stack(clip) for clip in batch.boxes])[:, :, None]
    restore, reject = ((boxes[:, :, :, part] - known).abs().sum(-1) for part in (0, 1))
    assert (restore < reject).all()
    assert boxes.min() >= 0 and boxes.max() <= 1


def test_noise_depends_on_seed_and_clip_alone():
    batch = batch_of([[1, 2, 1], [1, 1, 2]])
    assert torch.equal(noise(batch).boxes, noise(batch).boxes)
    assert not torch.equal(noise(batch).boxes, noise(batch, (0, 1)).boxes)
    first = {item.name: getattr(batch, item.name)[:1] for item in dataclasses.fields(batch)}
    alone = noise(ClipBatch(**first))
    assert torch.equal(alone.boxes, noise(batch).boxes[:1])
    assert torch.equal(alone.labels, noise(batch).labels[:1])


def test_a_single_class_is_never_swapped():
    batch = batch_of([[2, 2, 2]])
    labels = [[torch.ones_like(frame) for frame in clip] for clip in batch.labels]
    batch = dataclasses.replace(batch, labels=labels)
    assert noised_lesions(batch, _targets(batch, "cpu"), COPIES, 1, (0, 0)).labels.eq(1).all()


def test_batches_without_lesions_have_no_copies():
    assert noise(batch_of([[0, 0, 0]])) is None


def test_perfect_restoration_costs_next_to_nothing():
    batch = batch_of([[1, 0, 2]])
    targets = _targets(batch, "cpu")
    boxes = targets.boxes[None].repeat(1, 1, 2 * COPIES, 1)  # [1, 3, K, 4]
    logits = torch.full((*boxes.shape[:-1], 3), -20.0)
    restore = torch.arange(boxes.shape[2]) // 2 % 2 == 0
    for frame in range(3):
        for query in range(boxes.shape[2]):
            if restore[query] and query % 2 < targets.counts[frame]:
                logits[0, frame, query, targets.labels[frame, query % 2]] = 20.0
    layers, matches = denoising_matches([(logits, boxes), (logits, boxes)], targets, COPIES)
    losses = Criterion()(layers, targets, matches)
    assert losses.weighted(Criterion().weights).max() < 1e-4
    assert len(matches.query) == 2 * COPIES * 3


def test_padding_gets_no_gradient():
    batch = batch_of([[1, 0, 2]])
    targets = _targets(batch, "cpu")
    logits = torch.zeros(1, 3, 4 * COPIES, 3, requires_grad=True)
    boxes = torch.full((1, 3, 4 * COPIES, 4), 0.4)
    layers, matches = denoising_matches([(logits, boxes)], targets, COPIES)
    Criterion()(layers, targets, matches).classification.sum().backward()
    assert logits.grad[0, 1].eq(0).all()  # no lesion in the second frame
    assert logits.grad[0, 0, 1::2].eq(0).all()  # one lesion in the first: every second place is padding
    assert logits.grad[0, 0, ::2].ne(0).all()


def test_no_transfer_waits_for_the_device(monkeypatch):
    real, transfers = torch.Tensor.to, []

    def to(tensor, *target, **options):
        transfers.append(options)
        return real(tensor, *target, **options)

    batch = batch_of([[1, 0, 2]])
    targets = _targets(batch, "cpu")
    monkeypatch.setattr(torch.Tensor, "to", to)
    noised = noised_lesions(batch, targets, COPIES, 2, (0, 0))
    denoising_matches([(torch.zeros(1, 3, 4 * COPIES, 3), noised.boxes)], targets, COPIES)
    assert transfers == [{"non_blocking": True}] * 4


def test_splitting_restores_the_parts():
    layers = [(torch.randn(1, 2, 5, 3), torch.rand(1, 2, 5, 4))]
    learned, extra = split_queries(layers, 3)
    assert learned[0][0].shape[2] == 3 and extra[0][1].shape[2] == 2
