"""Reading and writing weights: own `.safetensors` files and the published `.pth` layout.

    python -m stnet.model.checkpoint checkpoint.pth stnet.safetensors

Files are treated as hostile: nothing is unpickled but tensors, plain containers and `argparse.Namespace`.
"""

import argparse
import json
import logging
import os
import pickle
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save as serialize
from torch import Tensor

from stnet.errors import CheckpointError, StnetError
from stnet.model.config import ModelConfig
from stnet.model.detector import Detector

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).parent / "weights"
CONFIG_KEY = "stnet_config"
IGNORED_SUFFIXES = ("total_params", "total_ops", "num_batches_tracked")

# Published name -> own name, tried in order on every key.
RENAMES = (
    (r"^backbone\.0\.body\.", "backbone."),
    (r"^transformer\.level_embed$", "level_embed"),
    (r"^transformer\.reference_points\.", "decoder.reference_points."),
    (r"^query_embed\.", "decoder.query_embed."),
    (r"^class_embed\.", "decoder.class_heads."),
    (r"^bbox_embed\.", "decoder.box_heads."),
    (r"^transformer\.(encoder|decoder)\.", r"\1."),
    (r"^(encoder\.layers\.\d+)\.self_attn\.", r"\1.attention."),
    (r"^(encoder\.layers\.\d+)\.norm1\.", r"\1.norm."),
    (r"^(encoder\.layers\.\d+)\.norm2\.", r"\1.feedforward.norm."),
    (r"^(decoder\.layers\.\d+)\.self_attn\.", r"\1.self_attention."),
    (r"^(decoder\.layers\.\d+)\.cross_attn\.", r"\1.attention."),
    (r"^(decoder\.layers\.\d+)\.norm1\.", r"\1.norm."),
    (r"^(decoder\.layers\.\d+)\.norm2\.", r"\1.self_norm."),
    (r"^(decoder\.layers\.\d+)\.norm3\.", r"\1.feedforward.norm."),
    (r"^((?:en|de)coder\.layers\.\d+)\.linear([12])\.", r"\1.feedforward.linear\2."),
)


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: weights under the names of `Detector`."""

    config: ModelConfig
    state: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()  # keys of the file that no model needs


def load(name_or_path: str | Path, device: str | torch.device = "cpu") -> Detector:
    """A detector ready to predict.

    Args:
        name_or_path: the name of a shipped checkpoint ("tiny"), an own `.safetensors` or a published `.pth` file.

    Raises:
        CheckpointError: the file is missing, unsafe, damaged, or its parameters are not those of the model; the
            message lists the keys or shapes that differ.
    """
    path = resolve(name_or_path)
    checkpoint = read_checkpoint(path)
    if checkpoint.ignored:
        log.info("%s: ignored %d keys: %s", path, len(checkpoint.ignored), ", ".join(checkpoint.ignored))
    with torch.device("meta"):
        model = Detector(checkpoint.config)
    check_state(model, checkpoint.state, str(path))
    model = model.to_empty(device="cpu")
    model.load_state_dict(checkpoint.state)
    return model.to(device).eval()


def save(model: Detector, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write weights and configuration as safetensors; the file appears whole or not at all.

    Args:
        metadata: further text entries, such as the training command or metrics.
    """
    path = Path(path)
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    entries = {**(metadata or {}), CONFIG_KEY: model.config.to_json()}
    partial = path.with_name(path.name + ".tmp")
    with open(partial, "wb") as file:  # save_file would make it readable to its owner alone
        file.write(serialize(state, metadata=entries))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The contents of an own or a published checkpoint file, without building a model.

    Raises:
        CheckpointError: see `load`.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; shipped checkpoints are {', '.join(shipped_names()) or 'none'}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _published(safe_torch_load(path), path)


def shipped_names() -> list[str]:
    """Names that `load` takes instead of a path."""
    return sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def safe_torch_load(path: Path) -> object:
    """Unpickle tensors, plain containers and `argparse.Namespace`, and refuse everything else.

    Raises:
        CheckpointError: not a PyTorch file, or one that asks for anything else.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0].removeprefix("Weights only load failed. ")
        raise CheckpointError(
            f"{path}: refused, since it is damaged or holds objects other than weights ({reason}); "
            "re-save it with its tensors alone"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"{path}: not a readable PyTorch checkpoint ({reason}); is the file complete?") from error


def check_state(model: Detector, state: Mapping[str, Tensor], source: str) -> None:
    """Require that `state` has exactly the model's parameters and buffers.

    Raises:
        CheckpointError: listing missing, unknown and differently shaped keys.
    """
    expected = model.state_dict()
    missing = [key for key in expected if key not in state]
    unknown = [key for key in state if key not in expected]
    shapes = [
        f"{key} {list(state[key].shape)} instead of {list(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    problems = [
        f"{title} {len(keys)}: {', '.join(keys[:8])}{' ...' if len(keys) > 8 else ''}"
        for title, keys in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise CheckpointError(f"{source}: parameters do not fit the model: {'; '.join(problems)}")


def rename_published(key: str) -> str:
    """The name in `Detector` of a parameter of the published model (or of Deformable DETR)."""
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def resolve(name_or_path: str | Path) -> Path:
    """The file behind the name of a shipped checkpoint, or the path itself."""
    if str(name_or_path) in shipped_names():
        return SHIPPED / f"{name_or_path}.safetensors"
    return Path(name_or_path)


def _is_ignored(key: str) -> bool:
    return key.endswith(IGNORED_SUFFIXES)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a file.

    Raises:
        CheckpointError: damaged, or no safetensors file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}); is it complete?") from error


def _read_safetensors(path: Path) -> Checkpoint:
    state, metadata = read_safetensors(path)
    if CONFIG_KEY not in metadata:
        raise CheckpointError(
            f"{path}: has no model configuration ({CONFIG_KEY}) in its metadata; was it made by stnet?"
        )
    bad = [key for key, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise CheckpointError(f"{path}: holds values that are not finite in {', '.join(bad[:4])}")
    config = ModelConfig.from_json(metadata[CONFIG_KEY])
    return Checkpoint(config, state, {k: v for k, v in metadata.items() if k != CONFIG_KEY})


def _published(contents: object, path: Path) -> Checkpoint:
    """Rename the parameters of a published checkpoint and find its configuration."""
    state = contents.get("model", contents) if isinstance(contents, dict) else None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CheckpointError(
            f"{path}: expected a published STNet checkpoint (a dictionary with the weights under 'model')"
        )
    ignored = tuple(key for key in state if _is_ignored(key))
    state = {key: value for key, value in state.items() if not _is_ignored(key)}

    duplicate = "transformer.decoder.bbox_embed."
    refine = any(key.startswith(duplicate) for key in state)
    renamed = {}
    for key, value in state.items():
        original = key.removeprefix("transformer.decoder.") if key.startswith(duplicate) else key
        if not refine:  # all layers share one head, listed once for each
            original = re.sub(r"^(class_embed|bbox_embed)\.\d+\.", r"\1.0.", original)
        name = rename_published(original)
        if name in renamed and not torch.equal(renamed[name], value):
            raise CheckpointError(f"{path}: {key} repeats {original} with other numbers; the file is inconsistent")
        renamed[name] = value
    return Checkpoint(_published_config(contents, renamed, refine), renamed, ignored=ignored)


def _published_config(contents: dict, state: Mapping[str, Tensor], refine: bool) -> ModelConfig:
    config = replace(ModelConfig.preset("paper"), box_refine=refine)
    arguments = contents.get("args")
    frames = getattr(arguments, "num_frames", None) if isinstance(arguments, argparse.Namespace) else None
    if isinstance(frames, int):
        config = replace(config, frames=frames)
    queries = state.get("decoder.query_embed.weight")
    return config if queries is None or queries.dim() != 2 else replace(config, queries=max(1, queries.shape[0]))


def main(arguments: list[str] | None = None) -> int:
    """Convert a checkpoint to safetensors."""
    parser = argparse.ArgumentParser(
        prog="python -m stnet.model.checkpoint",
        description="Convert a published .pth checkpoint to safetensors, with the configuration in its metadata.",
    )
    parser.add_argument("source", type=Path, help="published .pth or own .safetensors file")
    parser.add_argument("destination", type=Path, help="file to write, ending in .safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing destination")
    options = parser.parse_args(arguments)
    try:
        if options.destination.suffix != ".safetensors":
            raise CheckpointError(f"{options.destination}: must end in .safetensors")
        if options.destination.exists() and not options.overwrite:
            raise CheckpointError(f"{options.destination}: exists; choose another name or pass --overwrite")
        checkpoint = read_checkpoint(options.source)
        model = Detector(checkpoint.config)
        check_state(model, checkpoint.state, str(options.source))
        model.load_state_dict(checkpoint.state)
        save(model, options.destination, {**checkpoint.metadata, "source": options.source.name})
    except StnetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    summary = {
        "parameters": sum(t.numel() for t in checkpoint.state.values()),
        "ignored keys": list(checkpoint.ignored),
    }
    print(f"{options.destination}: {json.dumps(summary)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
