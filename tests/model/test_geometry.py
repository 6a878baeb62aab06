"""Position embedding and reference points, checked cell by cell."""

import gc
import math
import weakref
from types import SimpleNamespace

import pytest
import torch

from stnet.model.geometry import KEPT_SHAPES, _geometry_without_padding, clip_geometry, sine_embedding

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(3, 5), (1, 4), (4, 1)])
def test_embedding_of_an_unpadded_map(shape):
    height, width = shape
    embedding = sine_embedding(torch.zeros(1, height, width, dtype=torch.bool), 32).view(height, width, 32)
    for y in range(height):
        for x in range(width):
            for half, share in ((0, (y + 0.5) / height), (16, (x + 0.5) / width)):
                for k in range(8):
                    angle = share * 2 * math.pi / 10000 ** (2 * k / 16)
                    assert embedding[y, x, half + 2 * k].item() == pytest.approx(math.sin(angle), abs=1e-4)
                    assert embedding[y, x, half + 2 * k + 1].item() == pytest.approx(math.cos(angle), abs=1e-4)


def test_reference_points_scale_with_the_unpadded_share():
    mask = torch.ones(1, 64, 64, dtype=torch.bool)
    mask[:, :48, :32] = False
    geometry = clip_geometry([(8, 8), (4, 4)], 32, mask, CPU, torch.float32)
    assert geometry.valid_ratios.tolist() == [[[0.5, 0.75], [0.5, 0.75]]]
    first, last = geometry.reference_points[0, 0, 0], geometry.reference_points[0, 63, 0]
    assert first.tolist() == pytest.approx([0.5 / 8, 0.5 / 8])
    assert last.tolist() == pytest.approx([7.5 / 8, 7.5 / 8])
    beyond = geometry.reference_points / geometry.valid_ratios[:, None]
    assert beyond.max() > 1  # queries in padding lie beyond the unpadded image


def test_mask_is_resized_to_the_pixel_at_the_floor():
    mask = torch.zeros(1, 7, 10, dtype=torch.bool)
    mask[:, :, 7:] = True
    geometry = clip_geometry([(2, 3)], 32, mask, CPU, torch.float32)
    # Columns 0, 1, 2 take pixels 0, 3, 6: none is padded.
    assert geometry.valid_ratios[0, 0].tolist() == [1.0, 1.0]


def test_geometry_without_padding_is_kept_and_equals_an_empty_mask():
    shapes = [(4, 6), (2, 3)]
    first = clip_geometry(shapes, 32, None, CPU, torch.float32)
    assert clip_geometry(shapes, 32, None, CPU, torch.float32) is first
    masked = clip_geometry(shapes, 32, torch.zeros(2, 32, 48, dtype=torch.bool), CPU, torch.float32)
    for name in ("position_embedding", "reference_points", "valid_ratios"):
        torch.testing.assert_close(getattr(masked, name)[1:], getattr(first, name), rtol=0, atol=0)


def test_embedding_is_float32_arithmetic_in_a_float64_model():
    mask = torch.ones(1, 64, 64, dtype=torch.bool)
    mask[:, :40, :40] = False
    single = clip_geometry([(8, 8)], 32, mask, CPU, torch.float32)
    double = clip_geometry([(8, 8)], 32, mask, CPU, torch.float64)
    assert double.position_embedding.dtype == torch.float64
    assert torch.equal(double.position_embedding.float(), single.position_embedding)


def test_embedding_of_padded_clips_has_the_same_bits():
    mask = torch.ones(3, 40, 56, dtype=torch.bool)
    for clip, (height, width) in enumerate(((40, 31), (17, 56), (9, 10))):
        mask[clip, :height, :width] = False
    shapes = [(40, 56), (20, 28), (1, 2)]
    found = clip_geometry(shapes, 32, mask, CPU, torch.float32).position_embedding
    resized = [torch.nn.functional.interpolate(mask[:, None].float(), shape)[:, 0].bool() for shape in shapes]
    assert torch.equal(found, torch.cat([sine_embedding(level, 32) for level in resized], dim=1))


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (33, 64), (100, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_embedding_of_clips_without_padding_has_the_same_bits(shape, dtype):
    found = clip_geometry([shape], 32, None, CPU, dtype).position_embedding
    assert torch.equal(found, sine_embedding(torch.zeros(1, *shape, dtype=torch.bool), 32).to(dtype))


def test_few_shapes_are_kept():
    """Each holds memory of the device; training at many sizes meets hundreds."""
    kept = []
    for width in range(1, 101):
        geometry = clip_geometry([(2, width)], 32, None, CPU, torch.float32)
        kept.append(weakref.ref(geometry.position_embedding))
    del geometry
    gc.collect()
    assert sum(reference() is not None for reference in kept) <= KEPT_SHAPES


GPU = torch.device("cuda:0")


class Stream:
    """A stream of a recorder in the place of a GPU."""

    def __init__(self):
        self.waited_for, self.used = [], []

    def wait_event(self, event):
        self.waited_for.append(event.recorded_on)


@pytest.fixture
def gpu(monkeypatch):
    """What is transferred to a GPU and done with its streams, written down; `stream` is the current one."""
    recorder = SimpleNamespace(transfers=[], stream=Stream(), capturing=False)
    pinned, real = [], torch.Tensor.to

    def pin(tensor):
        pinned.append(weakref.ref(tensor))
        return tensor

    def to(tensor, *target, **options):
        if GPU not in target:
            return real(tensor, *target, **options)
        recorder.transfers.append((target, options, any(reference() is tensor for reference in pinned)))
        return tensor

    class Event:
        def record(self, stream):
            self.recorded_on = stream

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: stream.used.append(tensor), raising=False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: recorder.stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: recorder.capturing)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    _geometry_without_padding.cache_clear()
    yield recorder
    _geometry_without_padding.cache_clear()


def test_another_stream_waits_for_what_was_kept(gpu):
    """A thread with a stream of its own may ask for a geometry whose transfers another stream has yet to make."""
    home = gpu.stream
    made = clip_geometry(((5, 7), (3, 4)), 32, None, GPU, torch.float32)
    assert clip_geometry(((5, 7), (3, 4)), 32, None, GPU, torch.float32) is made and not home.waited_for
    gpu.stream = other = Stream()
    assert clip_geometry(((5, 7), (3, 4)), 32, None, GPU, torch.float32) is made
    assert other.waited_for == [home]
    assert {id(x) for x in other.used} == {id(x) for x in vars(made).values() if isinstance(x, torch.Tensor)}
    gpu.stream, gpu.capturing = Stream(), True
    assert clip_geometry(((5, 7), (3, 4)), 32, None, GPU, torch.float32) is made
    assert not gpu.stream.waited_for, "work outside of a graph that is being captured"


@pytest.mark.parametrize("padded", [False, True])
def test_nothing_waits_for_the_device(gpu, padded):
    """Transfers are from pinned memory, and of their final type."""
    mask = None
    if padded:
        mask = torch.zeros(2, 40, 56, dtype=torch.bool)
        mask[0, 31:] = True
    clip_geometry(((5, 7), (3, 4)), 32, mask, GPU, torch.bfloat16)
    assert len(gpu.transfers) >= 6
    assert all(transfer == ((GPU,), {"non_blocking": True}, True) for transfer in gpu.transfers)


def test_geometry_kept_during_inference_serves_training():
    with torch.inference_mode():
        geometry = clip_geometry([(3, 7)], 32, None, CPU, torch.float32)
    weight = torch.ones(32, requires_grad=True)
    (geometry.position_embedding * weight).sum().backward()
    assert weight.grad.isfinite().all()
