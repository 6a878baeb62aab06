"""Muon: orthogonal updates, batches of equal shapes, and its place in the recipe."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stnet.model.detector import Detector
from stnet.training.denoising import TrainedModel
from stnet.training.muon import JointOptimizer, Muon, orthogonal
from stnet.training.optimizer import build_optimizer, set_rates


def parameters(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def give_gradients(weights: list[torch.nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_singular_values_come_near_one_and_vectors_stay(rows, columns, scale):
    generator = torch.Generator().manual_seed(rows * 41 + columns)
    left, _ = torch.linalg.qr(torch.randn(rows, min(rows, columns), generator=generator))
    right, _ = torch.linalg.qr(torch.randn(columns, min(rows, columns), generator=generator))
    # Singular values from 1 down to 0.2 of the largest.
    values = torch.linspace(1, 0.2, min(rows, columns))
    found = orthogonal(scale * left * values @ right.T)
    turned = left.T @ found @ right
    assert turned.diagonal().min() > 0.6
    assert turned.diagonal().max() < 1.3
    assert (turned - turned.diagonal().diag()).abs().max() < 1e-3


def test_zero_gradient_gives_a_zero_step():
    assert orthogonal(torch.zeros(3, 5)).tolist() == torch.zeros(3, 5).tolist()


def test_agrees_with_pytorch_on_single_matrices():
    ours, theirs = parameters((48, 30), (7, 90)), parameters((48, 30), (7, 90))
    muon = Muon([{"params": ours}], lr=0.01, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.05, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        for weights, optimizer in ((ours, muon), (theirs, reference)):
            give_gradients(weights, step)
            optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)  # PyTorch's iteration is in bfloat16


def test_equal_shapes_in_one_batch_step_as_if_alone():
    together = parameters((6, 5, 3, 3), (6, 5, 3, 3), (9, 4))
    alone = parameters((6, 5, 3, 3), (6, 5, 3, 3), (9, 4))
    for weights, optimizers in (
        (together, [Muon([{"params": together}], lr=0.1)]),
        (alone, [Muon([{"params": [weight]}], lr=0.1) for weight in alone]),
    ):
        give_gradients(weights, 1)
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_a_step_is_as_long_as_the_learning_rate():
    (weight,) = parameters((64, 32, 3, 3))
    before = weight.detach().clone()
    give_gradients([weight], 3)
    Muon([{"params": [weight]}], lr=0.01).step()
    assert (weight - before).square().mean().sqrt().item() == pytest.approx(0.01, rel=0.3)


def test_stacked_matrices_are_told_apart():
    (stacked,), parts = parameters((12, 4)), parameters((4, 4), (4, 4), (4, 4))
    give_gradients([stacked], 0)
    for part, weight, gradient in zip(parts, stacked.chunk(3), stacked.grad.chunk(3), strict=True):
        part.data.copy_(weight)
        part.grad = gradient.clone()
    Muon([{"params": [stacked], "parts": 3}], lr=0.1).step()
    Muon([{"params": parts}], lr=0.1).step()
    torch.testing.assert_close(stacked, torch.cat(parts), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("shape", "parts"), [((5,), 1), ((), 1), ((7, 3), 2)])
def test_what_is_no_matrix_is_refused(shape, parts):
    with pytest.raises(ValueError, match="Muon: no"):
        Muon([{"params": parameters(shape), "parts": parts}])


def test_weights_without_gradient_stay():
    first, second = parameters((4, 4), (4, 4))
    before = second.detach().clone()
    give_gradients([first], 0)
    Muon([{"params": [first, second]}], lr=0.1, weight_decay=0.1).step()
    assert torch.equal(second, before)


def test_the_recipe_gives_every_parameter_to_one_optimizer(small_recipe):
    config = small_recipe(optimizer="muon", learning_rate=1e-3, backbone_learning_rate=1e-4, offsets_factor=0.5)
    model = TrainedModel(Detector(config.model), denoising=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, config)
    assert isinstance(optimizer, JointOptimizer)
    adamw, muon = (
        {names[id(p)]: group for group in member.param_groups for p in group["params"]} for member in optimizer.members
    )
    assert set(adamw) | set(muon) == set(names.values())
    assert not set(adamw) & set(muon)
    assert {
        "detector.level_embed",
        "detector.decoder.query_embed.weight",
        "detector.decoder.class_heads.0.weight",
    } <= set(adamw)
    assert any("sampling_offsets.weight" in name for name in adamw)
    assert all(group["lr"] == (1e-4 if "backbone" in name else 1e-3) for name, group in muon.items())
    assert {name for name, group in muon.items() if group["parts"] == 3} == {
        name for name in names.values() if name.endswith("in_proj_weight")
    }
    assert any("backbone" in name and "conv" in name for name in muon)


def test_state_survives_saving(tmp_path, small_recipe):
    config = small_recipe(optimizer="muon")

    def trained(steps, state=None):
        torch.manual_seed(0)
        model = TrainedModel(Detector(config.model), denoising=False)
        optimizer = build_optimizer(model, config)
        if state is not None:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        for step in steps:
            give_gradients(list(model.parameters()), step)
            set_rates(optimizer, 0.5)
            optimizer.step()
            optimizer.zero_grad()
        return model, optimizer

    whole, _ = trained(range(4))
    model, optimizer = trained(range(2))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    resumed, _ = trained(range(2, 4), torch.load(tmp_path / "state.pt", weights_only=True))
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
