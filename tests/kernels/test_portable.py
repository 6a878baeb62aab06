"""The operators of exported programs compute what the reference does."""

import pytest
import torch

from stnet.kernels.portable import msda_portable, stda_portable
from stnet.kernels.reference import msda_reference, stda_reference
from tests.kernels.test_contract import STDA_CASES


@pytest.mark.parametrize("name", STDA_CASES)
def test_stda_equals_the_reference(stda_case, error, name):
    problem, tensors = stda_case(**STDA_CASES[name]).checked
    assert error(stda_portable(problem, tensors), stda_reference(problem, tensors)) <= 1e-12


@pytest.mark.parametrize("sizes", [{}, {"shapes": ((2, 3),) * 12, "batch": 3, "queries": 2}], ids=["plain", "levels"])
def test_msda_equals_the_reference(msda_case, error, sizes):
    problem, tensors = msda_case(**sizes, ints=True).checked
    assert error(msda_portable(problem, tensors), msda_reference(problem, tensors)) <= 1e-12


@pytest.mark.parametrize("components", [2, 4])
def test_what_does_not_count_reaches_no_output(stda_case, components):
    """Positions and logits that are not finite, positions on borders, and infinite cells beside them."""
    case = stda_case(shapes=((3, 4), (2, 2)), components=components, queries=4).to(dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    for key in ("offsets", "other_offsets"):
        x = case.tensors[key]
        chosen = torch.rand(x.shape, generator=generator)
        for number, special in enumerate((torch.nan, torch.inf, -torch.inf, 1e30, -1e30)):
            x = x.masked_fill((chosen * 10).int() == number, special)
        case.tensors[key] = torch.where(chosen > 0.8, x.round(), x)
    case.tensors["reference_points"] = case.tensors["reference_points"].round()
    case.tensors["other_logits"] = torch.where(
        torch.rand(case.tensors["other_logits"].shape, generator=generator) < 0.5,
        -torch.inf,
        case.tensors["other_logits"],
    )
    case.tensors["logits"][:, :, 0] = -torch.inf
    case.tensors["other_logits"][:, :, 0] = -torch.inf
    case.tensors["value"][:, :, ::5] = torch.inf
    found, expected = stda_portable(*case.checked), stda_reference(*case.checked)
    assert (found[:, :, 0] == 0).all() and expected.isinf().any() and expected.isfinite().any()
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_exported_operators_have_few_operations_in_few_dimensions(stda_case, msda_case):
    """Exporters and runtimes take their time for each, and OpenVINO gets more than six dimensions wrong."""
    many = {"shapes": ((4, 5), (2, 3), (2, 2), (1, 1)), "frames": 6, "targets": 6, "other_frames": 5}
    for case in (stda_case(**many), msda_case(ints=True)):
        case = case.to(dtype=torch.float32)
        program = torch.export.export(_Call(case), tuple(case.tensors.values()))
        assert len(program.graph.nodes) < 130
        computed = [node for node in program.graph.nodes if node.op == "call_function" and not _moves(node)]
        assert not [node for node in computed if getattr(node.meta["val"], "ndim", 0) > 6]
        torch.testing.assert_close(program.module()(*case.tensors.values()), case.run("reference"))


def _moves(node):
    """Whether a node of a program gives its tensor another shape, and nothing more."""
    return any(word in str(node.target) for word in ("flatten", "view", "reshape"))


class _Call(torch.nn.Module):
    def __init__(self, case):
        super().__init__()
        self.case = case

    def forward(self, *tensors):
        return self.case.replaced(**dict(zip(self.case.tensors, tensors, strict=True))).run("reference")
