"""The model's own behaviour: targets, batches, padding, odd sizes, initialization."""

import dataclasses
import math

import pytest
import torch
from torchvision.ops import FrozenBatchNorm2d

from stnet.model.config import ModelConfig
from stnet.model.decoder import ExtraQueries, inverse_sigmoid
from stnet.model.detector import Detector
from stnet.model.norms import FrozenBatchNorm


def _same(first, second, **tolerance):
    torch.testing.assert_close(first.logits, second.logits, **tolerance)
    torch.testing.assert_close(first.boxes, second.boxes, **tolerance)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (61, 83), (40, 130)])
@torch.no_grad()
def test_any_targets_of_any_size(small_model, height, width):
    clips = torch.randn(2, 4, 3, height, width)
    every = small_model(clips, targets=4)
    assert every.logits.shape == (2, 4, 5, 3)
    assert every.boxes.shape == (2, 4, 5, 4)
    for targets, positions in ((1, [0]), (3, [0, 1, 2]), ([2, 0], [2, 0])):
        some = small_model(clips, targets=targets)
        torch.testing.assert_close(some.logits, every.logits[:, positions])
        torch.testing.assert_close(some.boxes, every.boxes[:, positions])


@torch.no_grad()
def test_clips_of_a_batch_do_not_see_each_other(small_model):
    clips = torch.randn(3, 4, 3, 64, 96)
    together = small_model(clips)
    for index in range(3):
        alone = small_model(clips[index : index + 1])
        torch.testing.assert_close(together.logits[index : index + 1], alone.logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_features_can_be_kept(small_model):
    clips = torch.randn(2, 4, 3, 64, 96)
    features = [small_model.extract_features(clips[:, frame]) for frame in range(4)]
    stacked = [torch.stack(level, dim=1) for level in zip(*features, strict=True)]
    _same(small_model.detect(stacked), small_model(clips), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_padded_clip_is_the_same_alone_and_in_a_batch_but_not_unpadded(small_model):
    clip = torch.randn(1, 4, 3, 64, 96)
    padded = torch.nn.functional.pad(clip, (0, 32, 0, 16))
    mask = torch.ones(1, 80, 128, dtype=torch.bool)
    mask[:, :64, :96] = False
    other, no_padding = torch.randn(1, 4, 3, 80, 128), torch.zeros(1, 80, 128, dtype=torch.bool)
    alone = small_model(padded, mask)
    batch = small_model(torch.cat([other, padded]), torch.cat([no_padding, mask]))
    torch.testing.assert_close(batch.logits[1:], alone.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(batch.boxes[1:], alone.boxes, rtol=1e-4, atol=1e-4)
    _same(small_model(other, no_padding), small_model(other))
    assert (small_model(clip).logits - alone.logits).abs().max() > 1e-3


@torch.no_grad()
def test_permuting_the_other_frames_matters_but_swapping_batch_items_does_not(small_model):
    clips = torch.randn(2, 4, 3, 64, 64)
    original = small_model(clips, targets=1)
    assert (small_model(clips[:, [0, 2, 1, 3]], targets=1).logits - original.logits).abs().max() > 1e-4
    torch.testing.assert_close(small_model(clips.flip(0), targets=1).logits.flip(0), original.logits)


@pytest.mark.parametrize("refine", [True, False])
def test_training_mode_returns_every_layer_and_trains_every_parameter(small_config, refine):
    config = dataclasses.replace(small_config, box_refine=refine, decoder_layers=3, dropout=0.1)
    model = Detector(config).train()
    output = model(torch.randn(1, 4, 3, 64, 64))
    assert len(output.layers) == 2
    total = sum(layer.logits.sum() + layer.boxes.square().sum() for layer in [output, *output.layers])
    total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert Detector(config).eval()(torch.randn(1, 4, 3, 64, 64)).layers == []


def test_recomputation_gives_the_same_gradients(small_model):
    clips = torch.randn(1, 4, 3, 64, 64)
    gradients = []
    for recompute in (False, True):
        model = Detector(small_model.config, recompute=recompute).train()
        model.load_state_dict(small_model.state_dict())
        output = model(clips)
        (output.logits.square().mean() + output.boxes.mean()).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


@torch.no_grad()
def test_masked_extra_queries_leave_the_learned_ones_alone(small_model):
    clips = torch.randn(2, 4, 3, 64, 64)
    plain = small_model(clips)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:5, 5:] = True
    extra = ExtraQueries(
        content=torch.randn(2, 3, 3, 32),
        position=torch.randn(2, 3, 3, 32),
        boxes=torch.rand(2, 3, 3, 4),
        attention_mask=mask,
    )
    with_extra = small_model(clips, extra=extra)
    assert with_extra.logits.shape == (2, 3, 8, 3)
    torch.testing.assert_close(with_extra.logits[:, :, :5], plain.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(torch.zeros(1, 5, 3, 64, 64)), "5 frames; this model takes 4"),
        (lambda m: m(torch.zeros(4, 3, 64, 64)), r"\[4, 3, 64, 64\]"),
        (lambda m: m(torch.zeros(1, 4, 3, 64, 64), targets=5), "targets is 5"),
        (lambda m: m(torch.zeros(1, 4, 3, 64, 64), targets=[0, 0]), r"targets is \[0, 0\]"),
        (lambda m: m(torch.zeros(1, 4, 3, 64, 64), targets=0), "targets is 0"),
        (lambda m: m(torch.zeros(1, 4, 3, 64, 64), torch.zeros(1, 64, 65, dtype=torch.bool)), r"\[1, 64, 65\]"),
    ],
)
def test_wrong_input_is_refused_with_its_numbers(small_model, call, message):
    with pytest.raises(ValueError, match=message):
        call(small_model)


def test_initialization_follows_deformable_detr():
    model = Detector(ModelConfig.preset("tiny"))
    attention = model.encoder.layers[0].attention
    bias = attention.sampling_offsets.bias.view(4, 4, 2, 2)
    assert attention.sampling_offsets.weight.abs().max() == 0
    assert attention.attention_weights.weight.abs().max() == 0
    torch.testing.assert_close(bias[0, 0], torch.tensor([[1.0, 0.0], [2, 0]]))
    assert bias.abs().amax(dim=-1).unique().tolist() == pytest.approx([1, 2])
    assert torch.equal(model.decoder.class_heads[1].bias, torch.full((3,), -math.log(99)))
    assert model.decoder.box_heads[0].layers[-1].bias.tolist() == [0, 0, -2, -2]
    assert model.decoder.box_heads[1].layers[-1].bias.tolist() == [0, 0, 0, 0]
    scores = model.eval()(torch.randn(1, 4, 3, 64, 64)).logits.sigmoid()
    assert scores.mean().item() == pytest.approx(0.01, abs=0.05)


def test_dropout_acts_on_every_branch_in_training_only(small_config):
    model = Detector(dataclasses.replace(small_config, dropout=0.5))
    clips = torch.randn(1, 4, 3, 64, 64)
    model.train()
    assert (model(clips).logits - model(clips).logits).abs().max() > 0
    model.eval()
    assert torch.equal(model(clips).logits, model(clips).logits)


def test_inverse_sigmoid_floors_both_terms():
    x = torch.tensor([-1.0, 0.0, 1e-9, 0.25, 1.0, 2.0])
    floor = math.log(1e-5)
    expected = torch.tensor([floor, floor, floor, math.log(1 / 3), -floor, -floor])
    torch.testing.assert_close(inverse_sigmoid(x), expected)


@torch.no_grad()
def test_autocast_rounds_neither_boxes_nor_frozen_statistics(small_model):
    clips = torch.randn(1, 4, 3, 64, 96)
    exact = small_model(clips)
    with torch.autocast("cpu", torch.bfloat16):
        rough = small_model(clips)
    assert rough.boxes.dtype == rough.logits.dtype == torch.float32
    assert (rough.boxes != rough.boxes.bfloat16().float()).any()
    torch.testing.assert_close(rough.boxes, exact.boxes, rtol=0, atol=0.02)


@torch.no_grad()
def test_frozen_norm_keeps_the_dtype_and_equals_that_of_torchvision():
    theirs, ours = FrozenBatchNorm2d(6), FrozenBatchNorm(6)
    statistics = {name: torch.rand(6) + 0.1 for name in ("weight", "bias", "running_mean", "running_var")}
    for norm in (theirs, ours):
        norm.load_state_dict(statistics)
    images = torch.randn(2, 6, 5, 7)
    assert torch.equal(ours(images), theirs(images))
    assert ours(images.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(ours(images.bfloat16()).float(), theirs(images), rtol=0.02, atol=0.05)
