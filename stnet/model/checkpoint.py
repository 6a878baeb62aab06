"""Reading and writing weights: own `.safetensors` files and the published `.pth` layout.

    python -m stnet.model.checkpoint checkpoint.pth stnet.safetensors

Files are treated as hostile: see `stnet.model.weight_files`.
"""

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialize
from torch import Tensor

from stnet import command_line, files
from stnet.console import printable
from stnet.errors import CheckpointError, ConfigError
from stnet.model.card import model_card
from stnet.model.config import ModelConfig
from stnet.model.detector import Detector
from stnet.model.hub import SCHEME, download, upload
from stnet.model.operating_points import OPERATING_POINTS_KEY, OperatingPoints
from stnet.model.provenance import PROVENANCE_KEY, Provenance
from stnet.model.published import published_config, refines_boxes, renamed
from stnet.model.shipped import SHIPPED, no_such_checkpoint, shipped_names
from stnet.model.weight_files import check_values, read_weights, tensors_of, unwrapped, weights_in

log = logging.getLogger(__name__)

CONFIG_KEY = "stnet_config"
METRICS_KEY = "metrics"
"""Metadata of a training run: the row of its last evaluation."""

IGNORED_SUFFIXES = ("total_params", "total_ops", "num_batches_tracked")
STATE_KEYS = ("model", "state_dict", "model_state_dict")
"""Where files of PyTorch keep the weights, in this order; else all of the file is taken for them."""

LISTED = 8
"""Names listed of each kind of difference between a file and the model."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        config: of the model.
        state: weights under the names of `Detector`.
        metadata: all texts of the file beside the configuration.
        ignored: keys of the file that no model needs.
        operating_points, provenance: of the weights, None where the file states none.
    """

    config: ModelConfig
    state: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    operating_points: OperatingPoints | None = None
    provenance: Provenance | None = None

    def described(self, model: Detector) -> Detector:
        """Return the model, told what the file says of its weights."""
        model.operating_points, model.provenance = self.operating_points, self.provenance
        return model


def load(name_or_path: str | Path, device: str | torch.device = "cpu") -> Detector:
    """Return a detector ready to predict, in float32.

    Args:
        name_or_path: the name of a shipped checkpoint ("lite0", "tiny"), an own `.safetensors`, a published `.pth`, or
            the folder of a training run, of which the best weights are loaded; or `hf://owner/name@revision`, a model
            of the Hugging Face Hub.
        device: where its weights go.

    Raises:
        CheckpointError: the file is missing, unsafe, damaged, or its parameters are not those of the model; the
            message lists the keys, shapes or dtypes that differ.
    """
    path = resolve(name_or_path)
    checkpoint = read_checkpoint(path)
    if checkpoint.ignored:
        log.info("%s: ignored %d keys: %s", path, len(checkpoint.ignored), ", ".join(checkpoint.ignored))
    with torch.device("meta"):
        model = Detector(checkpoint.config).float()
    check_state(model, checkpoint.state, str(path))
    model = model.to_empty(device="cpu")
    model.load_state_dict(checkpoint.state)
    return checkpoint.described(model).to(device).eval()


def save(model: Detector, path: str | Path, metadata: Mapping[str, str] | None = None, *, half: bool = False) -> None:
    """Write weights and configuration as safetensors; the file appears whole or not at all.

    Args:
        model: what to write, with its operating points and provenance.
        path: the file, replaced where it exists.
        metadata: further text entries, such as the training command or metrics.
        half: store matrices and convolutions as float16, which halves the file; `load` gives float32 again.

    Raises:
        OSError: it cannot be written.
    """
    contents = _serialized(model, metadata or {}, half)
    with files.replacing(Path(path)) as temporary:
        temporary.write_bytes(contents)  # save_file would make it readable to its owner alone


def push_to_hub(
    model: Detector,
    name: str,
    *,
    metadata: Mapping[str, str] | None = None,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload model",
) -> str:
    """Write a model and its card to the Hugging Face Hub; return the address that `load` takes.

    Args:
        model: what to write, with its operating points and provenance.
        name: owner/name; made where it is not there.
        metadata: as of `save`.
        private: a model that is made is for its owner alone.
        revision: the branch that it goes to.
        message: of the commit.

    Raises:
        CheckpointError: it cannot be written.
    """
    facts = dict(metadata or {})
    card = model_card(model, facts, f"{SCHEME}{name}").replace('"model.safetensors"', f'"{SCHEME}{name}"')
    contents = _serialized(model, facts, half=False)
    return upload(contents, card, name, private=private, revision=revision, message=message)


def entries(model: Detector, metadata: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the metadata that makes a safetensors file of the model's weights one that `load` takes.

    Args:
        model: whose configuration, operating points and provenance are told.
        metadata: further text entries.
    """
    told = {**(metadata or {}), CONFIG_KEY: model.config.to_json()}
    for key, facts in ((OPERATING_POINTS_KEY, model.operating_points), (PROVENANCE_KEY, model.provenance)):
        if facts is not None:
            told[key] = facts.to_json()
    return told


def _serialized(model: Detector, metadata: Mapping[str, str], half: bool) -> bytes:
    state = {key: _stored(tensor, half) for key, tensor in model.state_dict().items()}
    return serialize(state, metadata=entries(model, metadata))


def fingerprint(model: Detector) -> str:
    """Return a hash of configuration, operating points and weights: equal for models that predict the same.

    Args:
        model: from whatever file.
    """
    points = "" if model.operating_points is None else model.operating_points.to_json()
    digest = hashlib.sha256(f"{model.config.to_json()}\0{points}".encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"\0{key} {tensor.dtype} {list(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read an own or a published checkpoint file (or a folder, see `load`), without building a model.

    Raises:
        CheckpointError: see `load`.
    """
    path = Path(path)
    if path.is_dir():
        path = weights_in(path)
    if not path.is_file():
        raise no_such_checkpoint(path)
    contents, metadata = read_weights(path)
    return _published(contents, path) if metadata is None else _own(contents, metadata, path)


def check_state(model: Detector, state: Mapping[str, Tensor], source: str) -> None:
    """Require that `state` has exactly the model's parameters and buffers.

    Raises:
        CheckpointError: listing missing, unknown and differently shaped keys.
    """
    expected = model.state_dict()
    shared = [key for key in expected if key in state]
    shapes = [
        f"{key} {list(state[key].shape)} instead of {list(expected[key].shape)}"
        for key in shared
        if state[key].shape != expected[key].shape
    ]
    differences = (
        ("missing", [key for key in expected if key not in state]),
        ("unknown", [printable(key) for key in state if key not in expected]),
        ("of another shape", shapes),
    )
    problems = [
        f"{title} {len(keys)}: {', '.join(keys[:LISTED])}{' ...' if len(keys) > LISTED else ''}"
        for title, keys in differences
        if keys
    ]
    if problems:
        raise CheckpointError(f"{source}: parameters do not fit the model: {'; '.join(problems)}")


def resolve(name_or_path: str | Path) -> Path:
    """Return the file behind the name of a shipped checkpoint, of the Hub or a run folder, or the path itself.

    Raises:
        CheckpointError: a folder without weights.
    """
    if str(name_or_path) in shipped_names():
        return SHIPPED / f"{name_or_path}.safetensors"
    if str(name_or_path).startswith(SCHEME):
        return download(str(name_or_path))
    path = Path(name_or_path)
    return weights_in(path) if path.is_dir() else path


def _stored(tensor: Tensor, half: bool) -> Tensor:
    """As it goes into a file. Vectors (biases, statistics of norms) stay exact: they are small, and sums add up."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor.half() if half and tensor.dim() > 1 and tensor.is_floating_point() else tensor


def _is_ignored(key: str) -> bool:
    return key.endswith(IGNORED_SUFFIXES)


def _own(state: dict[str, Tensor], metadata: dict[str, str], path: Path) -> Checkpoint:
    if CONFIG_KEY not in metadata:
        raise CheckpointError(
            f"{path}: has no model configuration ({CONFIG_KEY}) in its metadata; was it made by stnet?"
        )
    points, provenance = metadata.get(OPERATING_POINTS_KEY), metadata.get(PROVENANCE_KEY)
    try:
        config = ModelConfig.from_json(metadata[CONFIG_KEY])
        stated = {
            "operating_points": OperatingPoints.from_json(points, OPERATING_POINTS_KEY) if points else None,
            "provenance": Provenance.from_json(provenance, PROVENANCE_KEY) if provenance else None,
        }
    except ConfigError as error:
        raise CheckpointError(f"{path}: {printable(str(error))}") from error
    calibrated = stated["operating_points"]
    if calibrated is not None and calibrated.class_names != config.class_names:
        names = printable(", ".join(calibrated.class_names))
        raise CheckpointError(f"{path}: its operating points are for classes {names}, not those of the model")
    state = unwrapped(state, path)
    check_values(state, path)
    return Checkpoint(config, state, {k: v for k, v in metadata.items() if k != CONFIG_KEY}, **stated)


def _published(contents: Any, path: Path) -> Checkpoint:
    """Rename the parameters of a published checkpoint and find its configuration."""
    state = contents
    if isinstance(contents, Mapping):
        state = next((contents[key] for key in STATE_KEYS if isinstance(contents.get(key), Mapping)), contents)
    state = unwrapped(tensors_of(state, path), path)
    ignored = tuple(key for key in state if _is_ignored(key))
    state = {key: value for key, value in state.items() if not _is_ignored(key)}
    own = renamed(state, path)
    check_values(own, path)
    return Checkpoint(published_config(contents.get("args"), own, refines_boxes(state), path), own, ignored=ignored)


def averaged(checkpoint: Checkpoint, others: Mapping[str, Checkpoint]) -> Checkpoint:
    """Return the mean of the weights of trainings that began with the same ones (Wortsman et al., ICML 2022).

    What was measured of one of them, metrics and operating points, is left out.

    Args:
        checkpoint: whose metadata stays.
        others: by the names that messages use.

    Raises:
        CheckpointError: the parameters of another one are not those of the model.
        ConfigError: another one is of another model.
    """
    with torch.device("meta"):
        model = Detector(checkpoint.config)
    for name, other in others.items():
        if other.config != checkpoint.config:
            raise ConfigError(f"{name}: is another model; weights of one configuration alone can be averaged")
        check_state(model, other.state, name)
    states = [checkpoint.state, *(other.state for other in others.values())]
    mean = {name: _mean([state[name] for state in states]) for name in checkpoint.state}
    kept = {key: text for key, text in checkpoint.metadata.items() if key not in (METRICS_KEY, OPERATING_POINTS_KEY)}
    return replace(checkpoint, state=mean, metadata=kept, operating_points=None)


def _mean(tensors: list[Tensor]) -> Tensor:
    first = tensors[0]
    return torch.stack(tensors).double().mean(0).to(first.dtype) if first.is_floating_point() else first


def main(arguments: list[str] | None = None) -> int:
    """Convert a checkpoint to safetensors."""
    parser = argparse.ArgumentParser(
        prog="python -m stnet.model.checkpoint",
        description="Convert a published .pth checkpoint to safetensors, with the configuration in its metadata.",
    )
    parser.add_argument("source", type=Path, help="published .pth or own .safetensors file, or a run folder")
    parser.add_argument("destination", type=Path, help="file to write, ending in .safetensors")
    parser.add_argument(
        "--average-with",
        nargs="+",
        default=(),
        type=Path,
        metavar="FILE",
        help="take the mean of its weights and these, of trainings that began with the same weights; say --trained-on",
    )
    parser.add_argument("--half", action="store_true", help="store the large tensors as float16: half the size")
    parser.add_argument(
        "--trained-on", metavar="TEXT", help="say what the weights were trained on (default: as before)"
    )
    parser.add_argument("--caution", metavar="TEXT", help="say what everyone who uses the weights has to know")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing destination")
    options = parser.parse_args(arguments)
    return command_line.run(lambda: _convert(options))


def _convert(options: argparse.Namespace) -> None:
    if options.destination.suffix != ".safetensors":
        raise CheckpointError(f"{options.destination}: must end in .safetensors")
    if options.destination.exists() and not options.overwrite:
        raise CheckpointError(f"{options.destination}: exists; choose another name or pass --overwrite")
    checkpoint = read_checkpoint(options.source)
    if options.average_with:
        if options.trained_on is None:
            raise ConfigError("--average-with: say with --trained-on what all of them were trained on")
        checkpoint = averaged(checkpoint, {str(path): read_checkpoint(path) for path in options.average_with})
    model = Detector(checkpoint.config).float()
    check_state(model, checkpoint.state, str(options.source))
    model.load_state_dict(checkpoint.state)
    checkpoint.described(model)
    if options.trained_on is not None:
        model.provenance = Provenance(trained_on=options.trained_on, caution=options.caution or "")
    elif options.caution is not None:
        raise ConfigError("--caution: goes with --trained-on")
    sources = (options.source, *options.average_with)
    metadata = {**checkpoint.metadata, "source": ", ".join(printable(path.name) for path in sources)}
    save(model, options.destination, metadata, half=options.half)
    summary = {
        "parameters": sum(t.numel() for t in checkpoint.state.values()),
        "ignored keys": list(checkpoint.ignored),
    }
    print(f"{printable(str(options.destination))}: {json.dumps(summary)}")


if __name__ == "__main__":
    sys.exit(main())
