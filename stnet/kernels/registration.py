"""The fused backends as registered operators of PyTorch, `torch.ops.stnet.*`.

They are opaque to `torch.compile` and `torch.export`, have fake implementations and one backward operator each, which
has no derivative of its own, run under `torch.func.grad`, `jacrev` and `vmap`, and refuse forward mode. The arguments
are flat: the tensors in the order of `StdaTensors` or `MsdaTensors`, then lists of ints, the backend, which is chosen
before, and whether gradients are deterministic. A call is prepared once for all that lie alike (`stnet.kernels.plans`):
then the problem is built, and the backend decides how to run it. Empty calls end here.
Saved for the backward pass are only the inputs, the output and the log-sum-exp. Nothing is cast under autocast here:
`stnet.kernels.operators` says what is.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property, partial

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from stnet.kernels.backends import BACKENDS, Backend
from stnet.kernels.derivatives import forward_mode_is_open, has_tangents
from stnet.kernels.plans import layout_of
from stnet.kernels.problem import MsdaProblem, MsdaTensors, StdaProblem, StdaTensors

_LIBRARY = torch.library.Library("stnet", "DEF")


@dataclass(frozen=True, kw_only=True, eq=False)
class Operator:
    """What tells the two operators apart.

    Attributes:
        name: of its registered operators, `{name}_forward` and `{name}_backward`.
        tensors: their tensor arguments.
        inputs: how many of these, from the first on, are differentiable.
        constants: schema of the arguments between the tensors and the backend.
        outputs: names of what the forward operator returns; those beyond the first have no gradient.
        problem: the problem, from the tensors and the constants.
        allocate: memory for the outputs, from the tensors.
        saves_outputs: whether the backward operator takes the outputs too.
    """

    name: str
    tensors: type[StdaTensors] | type[MsdaTensors]
    inputs: int
    constants: str
    outputs: tuple[str, ...]
    problem: Callable[..., StdaProblem | MsdaProblem]
    allocate: Callable[[StdaTensors | MsdaTensors], tuple[Tensor, ...]]
    saves_outputs: bool

    @cached_property
    def count(self) -> int:
        """Tensor arguments."""
        return len(self.tensors._fields)

    @cached_property
    def kept(self) -> int:
        """Arguments of the backward operator before these: the gradient of the output, and the saved outputs."""
        return 1 + len(self.outputs) * self.saves_outputs


def _stda_problem(
    tensors: StdaTensors[Tensor], spatial_shapes: Sequence[int], frame_table: Sequence[int]
) -> StdaProblem:
    return StdaProblem.of(
        tensors, _rows(spatial_shapes, len(spatial_shapes) // 2), _rows(frame_table, tensors.offsets.shape[1])
    )


def _stda_outputs(tensors: StdaTensors[Tensor]) -> tuple[Tensor, Tensor]:
    rows, value = tensors.logits.shape[:4], tensors.value
    output = value.new_empty(*rows[:3], rows[3] * value.shape[4])
    return output, value.new_empty(rows, dtype=torch.float32)


def _msda_problem(tensors: MsdaTensors[Tensor], spatial_shapes: Sequence[int]) -> MsdaProblem:
    known = tensors.spatial_shapes is None
    return MsdaProblem.of(tensors, _rows(spatial_shapes, len(spatial_shapes) // 2) if known else None)


def _msda_outputs(tensors: MsdaTensors[Tensor]) -> tuple[Tensor]:
    clips, queries, heads = tensors.attention_weights.shape[:3]
    return (tensors.value.new_empty(clips, queries, heads * tensors.value.shape[3]),)


def _rows(flat: Sequence[int], count: int) -> tuple[tuple[int, ...], ...]:
    length = len(flat) // max(1, count)
    return tuple(tuple(flat[i * length : (i + 1) * length]) for i in range(count))


STDA = Operator(
    name="stda",
    tensors=StdaTensors,
    inputs=7,
    constants="SymInt[] spatial_shapes, int[] frame_table",
    outputs=("output", "lse"),
    problem=_stda_problem,
    allocate=_stda_outputs,
    saves_outputs=True,
)
MSDA = Operator(
    name="msda",
    tensors=MsdaTensors,
    inputs=3,
    constants="SymInt[] known_shapes",
    outputs=("output",),
    problem=_msda_problem,
    allocate=_msda_outputs,
    saves_outputs=False,
)


def _forward(operator: Operator, *arguments) -> tuple[Tensor, ...] | Tensor:
    count = operator.count
    tensors, constants, backend = arguments[:count], arguments[count:-2], BACKENDS[arguments[-2]]
    key = (operator.name, backend.settings(), layout_of(tensors), *map(tuple, constants))
    run = backend.plans.get(key)
    tensors = operator.tensors(*tensors)
    if run is None:
        run = backend.plans.keep(key, _prepare_forward(operator, backend, tensors, constants))
    return run(tensors)


def _prepare_forward(operator: Operator, backend: Backend, tensors: StdaTensors | MsdaTensors, constants) -> Callable:
    problem = operator.problem(tensors, *constants)
    if is_empty(problem):
        return lambda tensors: _only(tuple(x.zero_() for x in operator.allocate(tensors)))
    return getattr(backend.forward, f"{operator.name}_forward")(problem, tensors)


def _backward(operator: Operator, *arguments) -> list[Tensor]:
    kept = operator.kept
    count = kept + operator.count
    *constants, needs, backend, deterministic = arguments[count:]
    backend = BACKENDS[backend]
    key = (operator.name, backend.settings(), layout_of(arguments[:count]), *map(tuple, constants), tuple(needs))
    run = backend.plans.get((key, deterministic))
    saved, tensors = arguments[:kept], operator.tensors(*arguments[kept:count])
    if run is None:
        run = _prepare_backward(operator, backend, tensors, saved, constants, needs, deterministic)
        backend.plans.keep((key, deterministic), run)
    return [x if x.is_contiguous() else x.contiguous() for x in run(tensors, *saved) if x is not None]


def _prepare_backward(
    operator: Operator, backend: Backend, tensors, saved, constants, needs, deterministic
) -> Callable:
    problem = operator.problem(tensors, *constants)
    if is_empty(problem):
        return lambda tensors, *_: _gradients_like(tensors, needs, torch.zeros_like)
    prepare = getattr(backend.backward, f"{operator.name}_backward")
    return prepare(problem, tensors, *saved, operator.tensors(*needs), deterministic)


def _only(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | Tensor:
    """Return a tuple of outputs as the dispatcher wants it: one is returned as itself."""
    return outputs if len(outputs) > 1 else outputs[0]


def forward(operator: Operator, *arguments) -> tuple[Tensor, ...] | Tensor:
    """Call the forward operator: what `torch.ops.stnet` does, without the dispatcher's first step where it is plain.

    That step finds the kernel for differentiation, which finds the others through the dispatcher in any case.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return getattr(torch.ops.stnet, f"{operator.name}_forward")(*arguments)
    return _DIFFERENTIABLE[operator](*arguments)


def is_empty(problem: StdaProblem | MsdaProblem) -> bool:
    """Return whether a call has no samples; backends need not run for it."""
    if isinstance(problem, MsdaProblem):
        return problem.clips * problem.queries * problem.points == 0
    return problem.clips * problem.targets * problem.queries == 0


def _fake_forward(operator: Operator, *arguments) -> tuple[Tensor, ...] | Tensor:
    return _only(operator.allocate(operator.tensors(*arguments[: operator.count])))


def _fake_backward(operator: Operator, *arguments) -> list[Tensor]:
    kept = operator.kept
    return _gradients_like(arguments[kept : kept + operator.count], arguments[-3], torch.empty_like)


def _gradients_like(tensors: Sequence[Tensor], needs: Sequence[bool], make: Callable) -> list[Tensor]:
    needed = [x for x, need in zip(tensors, needs, strict=True) if need]
    return [make(x, memory_format=torch.contiguous_format) for x in needed]


class _Derivative(_SingleLevelFunction):
    """The forward operator with its gradient, at one level of differentiation: `torch.func` nests such levels."""

    @staticmethod
    def forward(operator, *arguments):
        with _levels_below():
            return _overload(operator, "forward")(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        operator, *arguments = inputs
        outputs = output if isinstance(output, tuple) else (output,)
        ctx.operator, ctx.constants = operator, arguments[operator.count :]
        ctx.save_for_backward(*arguments[: operator.count], *(outputs if operator.saves_outputs else ()))
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad_output, *_):
        operator, saved = ctx.operator, ctx.saved_tensors
        tensors, outputs = saved[: operator.count], saved[operator.count :]
        *constants, backend, deterministic = ctx.constants
        needs = ctx.needs_input_grad[1 : 1 + operator.count]
        gradients = iter(
            _overload(operator, "backward")(grad_output, *outputs, *tensors, *constants, needs, backend, deterministic)
        )
        return None, *(next(gradients) if need else None for need in needs), *[None] * len(ctx.constants)


class _NoDerivative(_SingleLevelFunction):
    """The backward operator, whose own derivative is an error rather than zero."""

    @staticmethod
    def forward(operator, *arguments):
        with _levels_below():
            return tuple(_overload(operator, "backward")(*arguments))

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *gradients):
        raise NotImplementedError(
            'the fused kernels have no second derivative; call the operator with backend="reference" for that'
        )


@cache
def _overload(operator: Operator, direction: str) -> torch._ops.OpOverload:
    return getattr(torch.ops.stnet, f"{operator.name}_{direction}").default


def _levels_below() -> AbstractContextManager:
    """Below the differentiation of this level; under `torch.func` other levels, which count as before, may follow.

    Without it they would take the operator for a constant, for an `autograd.Function` is run as one.
    """
    below = torch._C._AutoDispatchBelowAutograd()
    if not torch._C._are_functorch_transforms_active():
        return below
    levels = ExitStack()
    for context in (torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), below):
        levels.enter_context(context)
    return levels


def _differentiable(operator: Operator, direction: str, function: type[_SingleLevelFunction]) -> Callable:
    overload = _overload(operator, direction)

    def call(*arguments):
        if forward_mode_is_open() and has_tangents(x for x in arguments if isinstance(x, Tensor)):
            raise NotImplementedError(
                'the fused kernels have no forward-mode derivative; call the operator with backend="reference" for that'
            )
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)):
            with torch._C._AutoDispatchBelowAutograd():
                return overload(*arguments)
        transformed = torch._C._are_functorch_transforms_active()
        with enable_single_level_autograd_function() if transformed else nullcontext():
            result = function.apply(operator, *arguments)
        return list(result) if direction == "backward" else result

    return call


def _mapped(operator: Operator, direction: str) -> Callable:
    """Apply the rule for `vmap`: fold a mapped dimension into the clips, which all tensors but levels have first."""
    overload = _overload(operator, direction)

    def rule(info, in_dims, *arguments):
        folded = [_fold(info.batch_size, dim, x) for dim, x in zip(in_dims, arguments, strict=True)]
        result = overload(*folded)
        if isinstance(result, Tensor):
            return result.unflatten(0, (info.batch_size, -1)), 0
        outputs = type(result)(x.unflatten(0, (info.batch_size, -1)) for x in result)
        return outputs, type(result)(0 for _ in result)

    return rule


def _fold(size: int, dim: int | None, x: object) -> object:
    if not isinstance(x, Tensor):
        return x
    if x.is_floating_point():
        return (x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)
    if dim is not None:
        raise NotImplementedError(
            "vmap over spatial_shapes or level_start_index: the levels of a call must be the same for all items; "
            "pass them with in_dims=None"
        )
    return x


def _register(operator: Operator) -> None:
    fields = operator.tensors._fields
    tensors = ", ".join(f"Tensor{'' if i < operator.inputs else '?'} {name}" for i, name in enumerate(fields))
    outputs = ", ".join(f"Tensor {name}" for name in operator.outputs)
    kept = f"Tensor grad_output, {outputs}" if operator.saves_outputs else "Tensor grad_output"
    common = "str backend, bool deterministic"
    schemas = {
        "forward": f"({tensors}, {operator.constants}, {common}) -> ({outputs})",
        "backward": f"({kept}, {tensors}, {operator.constants}, bool[] needs, {common}) -> Tensor[]",
    }
    for direction, run, fake, function in (
        ("forward", _forward, _fake_forward, _Derivative),
        ("backward", _backward, _fake_backward, _NoDerivative),
    ):
        name = f"{operator.name}_{direction}"
        _LIBRARY.define(name + schemas[direction], tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, partial(run, operator), "CompositeExplicitAutograd")
        differentiable = _differentiable(operator, direction, function)
        _LIBRARY.impl(name, differentiable, "Autograd")
        if direction == "forward":
            _DIFFERENTIABLE[operator] = differentiable
        torch.library.register_fake(f"stnet::{name}", partial(fake, operator), lib=_LIBRARY)
        torch.library.register_vmap(f"stnet::{name}", _mapped(operator, direction), lib=_LIBRARY)


_DIFFERENTIABLE: dict[Operator, Callable] = {}

for _operator in (STDA, MSDA):
    _register(_operator)
