"""Every way of execution computes what the plain model computes."""

import dataclasses
import importlib.util
import platform
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import stnet
from stnet.errors import ConfigError
from stnet.execution import processor
from stnet.execution.engine import Engine, EngineOptions
from stnet.execution.feature_cache import FeatureCache
from stnet.execution.folding import PackedAttention, fold_batch_norms, pack_projections
from stnet.execution.graphs import GraphedFunction
from tests.inference.conftest import SMALL, scrambled

PLAIN = EngineOptions(device="cpu", fold=False, pack=False, channels_last=False)
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def parity_model(shared, tmp_path_factory):
    """The published architecture with the recorded stand-in weights."""
    spec = importlib.util.spec_from_file_location("make_checkpoint", shared / "parity" / "make_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = tmp_path_factory.mktemp("parity") / "published.pth"
    torch.save({"model": {k: torch.from_numpy(v) for k, v in module.state_dict(0, True).items()}}, path)
    model = stnet.load(path)
    path.unlink()
    return model


@pytest.fixture(scope="module")
def parity_clips():
    return torch.randn(4, 6, 3, 48, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def parity_outputs(parity_model, parity_clips):
    """The plain model, one clip at a time."""
    with torch.inference_mode():
        outputs = [parity_model(clip[None]) for clip in parity_clips]
    return torch.cat([o.logits for o in outputs]), torch.cat([o.boxes for o in outputs])


def execute(engine: Engine, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    images = clips.flatten(0, 1).to(engine.device, engine.dtype)
    levels = engine.extract(images)
    logits, boxes = engine.detect([level.unflatten(0, clips.shape[:2]) for level in levels])
    return logits.cpu().clone(), boxes.cpu().clone()


@pytest.mark.parametrize(
    "options",
    [
        EngineOptions(device="cpu", fold=True, pack=False, channels_last=False),
        EngineOptions(device="cpu", fold=False, pack=True, channels_last=False),
        EngineOptions(device="cpu", fold=True, pack=True, channels_last=True),
    ],
    ids=["folded", "packed", "folded-packed-channels_last"],
)
def test_rewritten_models_equal_the_plain_one(parity_model, parity_clips, parity_outputs, options):
    logits, boxes = execute(Engine(parity_model, options), parity_clips[:2])
    torch.testing.assert_close(logits, parity_outputs[0][:2], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(boxes, parity_outputs[1][:2], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("batch", "targets"), [(1, 3), (4, 3), (16, 1)])
def test_batches_equal_single_clips(parity_model, parity_clips, parity_outputs, batch, targets):
    order = [(3 * number + 1) % 4 for number in range(batch)]
    engine = Engine(parity_model, EngineOptions(device="cpu"), targets)
    logits, boxes = execute(engine, parity_clips[order])
    torch.testing.assert_close(logits, parity_outputs[0][order][:, :targets], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(boxes, parity_outputs[1][order][:, :targets], rtol=0, atol=TOLERANCE)


def test_cached_features_equal_fresh_ones(parity_model, parity_clips, parity_outputs):
    engine, cache = Engine(parity_model, EngineOptions(device="cpu")), FeatureCache(12)
    for number in range(12):  # one frame at a time
        clip, frame = divmod(number, 6)
        cache.add([(clip, frame)], engine.extract(parity_clips[clip, frame][None]))
    logits, boxes = engine.detect(cache.clips([[(clip, frame) for frame in range(6)] for clip in (1, 0)]))
    torch.testing.assert_close(logits, parity_outputs[0][[1, 0]], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(boxes, parity_outputs[1][[1, 0]], rtol=0, atol=TOLERANCE)


@pytest.mark.gpu
def test_graphs_equal_eager_execution(parity_model, parity_clips, parity_outputs):
    engine = Engine(parity_model, EngineOptions(device="cuda", dtype="float32", graphs=True))
    for _ in range(4):  # eager, captured, replayed
        logits, boxes = execute(engine, parity_clips[:4])
        torch.testing.assert_close(logits, parity_outputs[0][:4], rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(boxes, parity_outputs[1][:4], rtol=0, atol=TOLERANCE)


@pytest.mark.gpu
def test_compiled_code_is_captured_and_equals_eager_execution(small_model):
    clips = torch.randn(2, 6, 3, 32, 48)
    wanted = execute(Engine(small_model, PLAIN), clips)
    engine = Engine(small_model, EngineOptions(device="cuda", dtype="float32", compile=True))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "CUDA graphs are off")
        for _ in range(4):  # eager, captured, replayed
            for found, expected in zip(execute(engine, clips), wanted, strict=True):
                torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.gpu
def test_graphs_are_captured_while_another_thread_waits_for_events():
    graphed = GraphedFunction(lambda tensors, _: [tensors[0] @ tensors[0]])
    stop, failures = threading.Event(), []

    def wait() -> None:
        try:
            while not stop.is_set():
                event = torch.cuda.Event()
                event.record()
                event.synchronize()
        except RuntimeError as error:
            failures.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a failed capture warns and goes on eagerly
            for _ in range(4):
                x = torch.randn(64, 64, device="cuda")
                torch.testing.assert_close(graphed([x])[0], x @ x)
    finally:
        stop.set()
        waiting.join()
    assert not failures


@pytest.mark.parametrize(
    "dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.gpu), pytest.param("tf32", marks=pytest.mark.gpu)]
)
def test_low_precision_stays_near(small_model, dtype, bfloat16_everywhere):
    clips = torch.randn(2, 6, 3, 32, 48)
    plain = execute(Engine(small_model, PLAIN), clips)
    device = "cpu" if dtype == "bfloat16" else "cuda"
    engine = Engine(small_model, EngineOptions(device=device, dtype=dtype))
    logits, boxes = execute(engine, clips)
    assert logits.dtype == boxes.dtype == torch.float32
    assert (logits - plain[0]).abs().mean() < 0.1 and (boxes - plain[1]).abs().mean() < 0.02
    # Coordinates are not rounded to the steps of the 16-bit type.
    assert (boxes != boxes.to(torch.bfloat16).float()).any()


def test_the_given_model_is_left_alone(small_model, bfloat16_everywhere):
    before = {key: value.clone() for key, value in small_model.state_dict().items()}
    small_model.train()
    Engine(small_model, EngineOptions(device="cpu", dtype="bfloat16"))
    assert small_model.training
    small_model.eval()
    after = small_model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)


def test_all_norms_are_folded_and_all_projections_packed(small_model):
    import copy

    model = copy.deepcopy(small_model)
    norms = sum(isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d) for m in model.modules())
    assert fold_batch_norms(model) == norms > 0
    assert not any(isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d) for m in model.modules())
    pack_projections(model)
    assert sum(isinstance(m, PackedAttention) for m in model.modules()) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu9"}, "not a device"),
        ({"device": "meta"}, "only cpu and cuda are supported"),
        ({"device": "cuda:99"}, "CUDA devices"),
        ({"device": "cpu", "dtype": "float16"}, "needs a GPU"),
        ({"device": "cpu", "dtype": "int8"}, "unknown"),
    ],
)
def test_unusable_options(small_model, options, message):
    with pytest.raises(ConfigError, match=message):
        Engine(small_model, EngineOptions(**options))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", None])
def test_bfloat16_is_refused_by_processors_that_emulate_it(monkeypatch, dtype):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    options = EngineOptions(device="cpu", dtype=dtype)
    if dtype != "bfloat16":
        assert options.resolved_dtype() == "float32"
        return
    with pytest.raises(ConfigError, match=r"no instructions for it .* use float32"):
        options.resolved_dtype()
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert options.resolved_dtype() == "bfloat16"


@pytest.mark.parametrize(
    "backbone",
    [
        {"backbone": "resnet10"},
        {"backbone": "resnet50", "backbone_norm": "frozen_batch"},
        {"backbone": "resnet10", "backbone_norm": "group"},
        {"backbone": "lite0", "backbone_input": "half_range"},
    ],
    ids=["basic blocks", "bottlenecks", "group norm", "lite"],
)
def test_portions_of_any_size_compute_the_same(monkeypatch, backbone):
    monkeypatch.setattr(processor, "ROWS_OF_A_THREAD", 5)
    model = scrambled(dataclasses.replace(SMALL, **backbone, encoder_layers=2, decoder_layers=2))
    fused, plain = Engine(model, EngineOptions(device="cpu")), Engine(model, PLAIN)
    for size in ((2, 6, 3, 40, 72), (1, 6, 3, 64, 33)):  # weights are laid out anew for another size
        clips = torch.randn(size)
        for found, wanted in zip(execute(fused, clips), execute(plain, clips), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=TOLERANCE)


def test_targets_out_of_range(small_model):
    with pytest.raises(ConfigError, match="targets 7"):
        Engine(small_model, PLAIN, targets=7)


def test_images_are_those_of_evaluation(small_model, make_frames):
    from stnet.data.clips.transforms import prepare_frames

    engine = Engine(small_model, PLAIN)
    frames = make_frames(3, 50, 90)
    size = engine.size_of(50, 90)
    assert size == (32, 57)
    torch.testing.assert_close(engine.images(list(frames), size), prepare_frames(frames, 32, 64), rtol=0, atol=1e-6)
    assert np.array_equal(frames, make_frames(3, 50, 90))
