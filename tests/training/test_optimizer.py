"""Learning rate groups, schedules and the weight average."""

import pytest
import torch

from stnet.model.detector import Detector
from stnet.training.denoising import TrainedModel
from stnet.training.ema import WeightAverage
from stnet.training.optimizer import build_optimizer, rate_factor, set_rates


def test_groups_follow_the_published_substrings(small_recipe):
    config = small_recipe(learning_rate=1e-3, backbone_learning_rate=1e-4)
    model = TrainedModel(Detector(config.model), denoising=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, config)
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(names)
    for name, rate in rates.items():
        if "backbone" in name:
            assert rate == 1e-4, name
        elif "sampling_offsets" in name or "reference_points" in name:
            assert rate == pytest.approx(1e-4), name
        else:
            assert rate == 1e-3, name
    assert any("temporal_sampling_offsets" in name for name in rates)


def test_frozen_parameters_are_left_out(small_recipe):
    config = small_recipe()
    model = TrainedModel(Detector(config.model), denoising=False)
    model.detector.backbone.requires_grad_(False)
    groups = build_optimizer(model, config).param_groups
    assert [group["name"] for group in groups] == ["main", "slow"]


def test_step_schedule_drops_once(small_recipe):
    config = small_recipe(schedule="step", drop_at=0.8)
    factors = [rate_factor(step, step / 10, config) for step in range(10)]
    assert factors == [1.0] * 8 + [0.1] * 2


def test_cosine_schedule_falls_to_a_hundredth_after_warming_up(small_recipe):
    config = small_recipe(schedule="cosine", warmup_steps=10)
    factors = [rate_factor(step, step / 100, config) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 11)
    assert max(factors) > 0.95
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert factors[100] == pytest.approx(0.01)


def test_rates_are_set_relative_to_their_peaks(small_recipe):
    config = small_recipe()
    optimizer = build_optimizer(TrainedModel(Detector(config.model), denoising=False), config)
    set_rates(optimizer, 0.5)
    set_rates(optimizer, 0.25)
    assert all(group["lr"] == group["peak_lr"] * 0.25 for group in optimizer.param_groups)


def test_average_follows_weights_and_copies_counters():
    model = torch.nn.BatchNorm1d(3)
    average = WeightAverage(model, decay=0.5)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.num_batches_tracked.fill_(7)
    average.update(model, step=100)
    assert average.model.weight.tolist() == [2.0] * 3
    assert average.model.num_batches_tracked == 7


def test_average_forgets_the_start_quickly():
    model = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, decay=0.9999)
    with torch.no_grad():
        model.weight.fill_(1.0)
        average.model.weight.fill_(0.0)
    for step in range(50):
        average.update(model, step)
    assert average.model.weight.item() > 0.95
