"""Run a model with and without the operators and compare."""

import torch

from stnet.integrations import layouts


class Calls(list):
    """One entry for every call of the operator that an adapted function makes, while the fixture lasts."""

    def __init__(self, monkeypatch):
        super().__init__()
        real = layouts.ms_deform_attn
        monkeypatch.setattr(layouts, "ms_deform_attn", lambda *args: self.append(1) or real(*args))


def scrambled(model, offsets=0.3, others=0.05):
    """Give a new model weights that matter: in training, where normalization keeps them tame, with nothing dropped."""
    for module in model.train().modules():
        for name in ("p", "dropout", "attention_dropout", "activation_dropout", "drop_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            strong = "sampling_offsets" in name or "attention_weights" in name
            parameter.add_(torch.randn_like(parameter) * (offsets if strong else others))
    return model


def tensors(output):
    """List the floating tensors of a model's output, however nested."""
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, dict):
        output = output.values()
    return [x for item in output for x in tensors(item)] if isinstance(output, list | tuple | type({}.values())) else []


def results(model, call):
    """Return outputs and the gradients of all parameters by name."""
    outputs = [torch.nan_to_num(x, neginf=0) for x in tensors(call(model))]
    model.zero_grad()
    sum(x.square().mean() for x in outputs).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return [x.detach() for x in outputs], gradients


def compare(model, call, install, uninstall, dtypes=(torch.float32, torch.float64)):
    """Check that outputs, and in the last dtype gradients, with the operators are those without.

    Args:
        model: The model; it is of the last dtype afterwards.
        call: Takes the model, gives its output.
        install: Takes the model.
        uninstall: Takes the model.
        dtypes: Only float64 for a random model that chooses queries by what the attention computed: it chooses others
            after the smallest difference.

    Returns:
        What `install` returned.
    """
    for dtype in dtypes:
        model.to(dtype)
        expected, wanted = results(model, call)
        count = install(model)
        outputs, gradients = results(model, call)
        uninstall(model)

        near = {torch.float32: 2e-3, torch.float64: 1e-6}[dtype]
        assert len(outputs) == len(expected) > 0 and gradients.keys() == wanted.keys()
        for after, before in zip(outputs, expected, strict=True):
            torch.testing.assert_close(after, before, rtol=near, atol=near)
        if dtype is not dtypes[-1]:
            continue
        total = sum(gradient.square().sum() for gradient in wanted.values()).sqrt()
        for name, gradient in wanted.items():
            # Next to the whole gradient: some parameters have one of rounding errors alone.
            assert (gradients[name] - gradient).norm() <= near * (gradient.norm() + 0.01 * total), name
        attention = [gradient for name, gradient in wanted.items() if "sampling_offsets" in name]
        assert attention and all(gradient.abs().max() > 0 for gradient in attention)
    return count
