"""CUDA graphs, streams and devices, with recorders in the place of `torch.cuda`."""

import gc
import threading
import time
import warnings
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from stnet.execution import graphs
from stnet.execution.engine import Engine, EngineOptions
from stnet.execution.graphs import GraphedFunction, GraphPool
from stnet.inference import VideoDetector
from stnet.inference.clip_reader import read_clips
from stnet.inference.clip_runner import ClipOutput, ClipRunner
from stnet.inference.live import LiveDetector
from stnet.model.geometry import clip_geometry
from stnet.video import ArraySource


class Cuda:
    """What is recorded of the pieces of `torch.cuda` that are replaced."""

    def __init__(self) -> None:
        self.streams: list[object] = ["default"]  # the last is the current one
        self.pools: list[object] = []
        self.capturing = self.most_capturing = 0
        self.devices = threading.local()
        self.seen: set[tuple[str, str, str]] = set()  # what happened, in which thread, on which device

    @contextmanager
    def stream(self, stream):
        before = list(self.streams)
        self.streams.append(stream)
        try:
            yield
        finally:
            self.streams[:] = before

    def note(self, what: str) -> None:
        self.seen.add((what, threading.current_thread().name, str(getattr(self.devices, "current", None))))

    @contextmanager
    def device(self, device):
        before = getattr(self.devices, "current", None)
        self.devices.current = device
        try:
            yield
        finally:
            self.devices.current = before


class Stream:
    def __init__(self, device=None):
        self.device = device

    def wait_stream(self, other):
        pass


@pytest.fixture
def cuda(monkeypatch):
    """Streams and captures that only record; a replay leaves the outputs as they were captured."""
    recorder = Cuda()

    class Capture:
        def __init__(self, graph, pool, stream, capture_error_mode):
            recorder.pools.append(pool)
            recorder.note("capture")
            self.stream = stream

        def __enter__(self):
            recorder.capturing += 1
            recorder.most_capturing = max(recorder.most_capturing, recorder.capturing)
            recorder.streams.append(self.stream)

        def __exit__(self, kind, error, trace):
            recorder.capturing -= 1
            if kind is not None:
                # As PyTorch does: the end of the capture fails, and its stream is never left.
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            recorder.streams.pop()

    class Graph:
        def replay(self):
            recorder.note("replay")

    class Event:
        def record(self):
            recorder.note("event")

        def synchronize(self):
            pass

    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream(device))
    monkeypatch.setattr(torch.cuda, "stream", recorder.stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "device", recorder.device)
    return recorder


class Replayed:
    """A graph that computes when it is replayed, on the constants of its capture."""

    captures = replays = 0

    def __init__(self, function, inputs, constants, pool):
        Replayed.captures += 1
        self._function, self._constants = function, constants

    def replay(self, inputs):
        Replayed.replays += 1
        return self._function(inputs, self._constants)


@pytest.fixture
def replayed(monkeypatch, cuda):
    monkeypatch.setattr(graphs, "_Graph", Replayed)
    Replayed.captures = Replayed.replays = 0
    return Replayed


class Overwritten(Replayed):
    """A graph whose outputs lie at the same place at every replay, and are wanted a moment later."""

    def __init__(self, function, inputs, constants, pool):
        super().__init__(function, inputs, constants, pool)
        self._outputs = [x.clone() for x in super().replay(inputs)]

    def replay(self, inputs):
        for kept, new in zip(self._outputs, super().replay(inputs), strict=True):
            kept.copy_(new)
        time.sleep(1e-3)
        return self._outputs


def graphed_engine(model) -> Engine:
    return with_graphs(Engine(model, EngineOptions(device="cpu")))


def with_graphs(engine: Engine) -> Engine:
    engine.graphed = True
    engine._extract = engine._function(engine._extract_all)
    return engine


def test_a_graph_keeps_what_it_holds_the_address_of(small_model, cuda):
    engine = graphed_engine(small_model)
    levels = engine.extract(torch.randn(6, 3, 32, 48))
    levels = [level.unflatten(0, (1, 6)).clone() for level in levels]
    geometry = engine.geometry(levels)
    held = [weakref.ref(part) for part in (geometry.position_embedding, geometry.reference_points)]
    del geometry
    for _ in range(3):
        engine.detect(levels)
    for size in range(100):  # more than the cache of geometries keeps
        clip_geometry(((1, 2 + size),) * 4, 64, None, torch.device("cpu"), torch.float32)
    gc.collect()
    assert all(reference() is not None for reference in held)
    engine.free_memory()
    gc.collect()
    assert all(reference() is None for reference in held)


def test_graphs_of_an_engine_share_one_pool(small_model, cuda):
    engine = graphed_engine(small_model)
    for height in (32, 64):
        for _ in range(3):
            levels = [level.unflatten(0, (1, 6)).clone() for level in engine.extract(torch.randn(6, 3, height, 48))]
        for _ in range(3):
            engine.detect(levels)
    assert len(cuda.pools) == 4 and len(set(map(id, cuda.pools))) == 1


def test_few_captures_serve_videos_of_several_sizes(replayed):
    """60 videos of three sizes in turn: at most four graphs for each size, replayed for nearly all calls."""

    class Fake:
        device, graphed, targets, lock = torch.device("cpu"), True, 3, None
        portion = Engine.portion
        calls = 0

        class config:
            frames = 6

        def __init__(self):
            self._lock, self._on_device = threading.RLock(), lambda: warnings.catch_warnings()
            self._extract = GraphedFunction(lambda inputs, _: [inputs[0]])
            self._detect = GraphedFunction(
                lambda inputs, _: [x := inputs[0].flatten(2).mean(2)[:, :3, None, None].expand(-1, -1, 2, 3), x]
            )

        using = Engine.using

        def size_of(self, height, width):
            return height, width

        def images(self, frames, size):
            return torch.stack([torch.full((1, *size), float(frame[0, 0, 0])) for frame in frames])

        def extract(self, images):
            Fake.calls += 1
            return self._extract([images])

        def detect(self, levels):
            Fake.calls += 1
            return self._detect(levels)

    rng = np.random.default_rng(0)
    videos = []
    for number in range(60):
        height, width = ((4, 6), (6, 4), (5, 5))[number // 3 % 3]
        length = int(rng.integers(60, 201))
        frames = np.broadcast_to(np.arange(length, dtype=np.uint8)[:, None, None, None], (length, height, width, 3))
        videos.append((str(number), lambda frames=frames: ArraySource(frames)))
    runner = ClipRunner(Fake(), 8)
    outputs = [item for item in runner.run(read_clips(videos, 6, 3)) if isinstance(item, ClipOutput)]
    for output in outputs:  # padding reaches no result
        wanted = torch.tensor([float(index % 256) for index in output.task.clip.frames[:3]])
        assert torch.equal(output.logits[:, 0, 0], wanted)
    assert replayed.captures <= 12
    assert replayed.replays >= 0.85 * Fake.calls


def test_shapes_that_take_turns_are_not_captured_at_each_visit(replayed):
    function = GraphedFunction(lambda inputs, _: inputs, most=2)
    for _ in range(12):
        for size in (1, 2, 3):
            for _ in range(3):
                function([torch.zeros(size)])
    assert replayed.captures <= 6


@pytest.mark.parametrize("memory", [True, False])
def test_a_failed_capture_leaves_no_stream_behind(cuda, memory):
    failing = True

    def function(inputs, _):
        if cuda.capturing and failing:
            raise torch.OutOfMemoryError("CUDA out of memory") if memory else RuntimeError("cannot be captured")
        return [inputs[0] + 1]

    graphed = GraphedFunction(function, GraphPool())
    graphed([torch.zeros(2)])
    if memory:
        with pytest.raises(torch.OutOfMemoryError, match="captured"):
            graphed([torch.zeros(2)])
    else:
        with pytest.warns(UserWarning, match="CUDA graphs are off"):
            assert torch.equal(graphed([torch.zeros(2)])[0], torch.ones(2))
    assert cuda.streams == ["default"]
    before, failing = len(cuda.pools), False
    graphed([torch.zeros(2)])
    tried_again = len(cuda.pools) > before
    assert tried_again == memory  # lack of memory passes, the other does not


def test_captures_of_several_threads_follow_each_other(cuda):
    def function(inputs, _):
        threading.Event().wait(0.01)
        return [inputs[0]]

    def use():
        graphed = GraphedFunction(function)
        for _ in range(2):
            graphed([torch.zeros(2)])

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cuda.most_capturing == 1 and len(cuda.pools) == 3


class OnGpu(torch.Tensor):
    """A tensor that behaves as if it were on a GPU: what goes to the CPU is a copy."""

    is_cuda = True

    def to(self, *target, **options):
        return super().to(*target, **options, copy=True)

    def cpu(self):
        return self.to("cpu")


@pytest.fixture
def outputs_on_gpu(monkeypatch):
    detect = Engine.detect
    monkeypatch.setattr(
        Engine, "detect", lambda *given, **options: [x.as_subclass(OnGpu) for x in detect(*given, **options)]
    )


def test_every_thread_works_on_the_engines_device(small_model, make_frames, cuda, outputs_on_gpu, monkeypatch):
    """CUDA's current device belongs to a thread and starts at 0: each that touches a GPU has to choose its own."""
    detector = VideoDetector(small_model, device="cpu", batch=1)
    engine = detector.engine
    for name in ("_preprocessor", "_extract_all", "geometry"):
        original = getattr(engine, name)

        def recording(*arguments, original=original, name=name):
            cuda.note(name)
            return original(*arguments)

        monkeypatch.setattr(engine, name, recording)
    with_graphs(engine).device = torch.device("cuda", 1)
    assert len(list(detector(make_frames(20)))) == 20
    everything = {"_preprocessor", "_extract_all", "geometry", "capture", "replay", "event"}
    assert cuda.seen == {(what, "stnet-model", "cuda:1") for what in everything}
    engine.free_memory()
    cuda.seen.clear()
    assert len(list(LiveDetector(detector, policy="wait")(make_frames(4)))) == 4
    here = threading.current_thread().name
    assert cuda.seen == {(what, here, "cuda:1") for what in everything - {"event"}}


def test_a_feed_and_a_video_share_no_memory_of_graphs(small_model, make_frames, replayed, outputs_on_gpu, monkeypatch):
    """One engine, two threads: what one call gave is used or copied before the other overwrites it."""
    video, feed = make_frames(12, seed=1), make_frames(12, seed=2)

    def both(engine_of=lambda engine: engine):
        detector = VideoDetector(small_model, device="cpu", batch=1, targets=1)  # one frame at a time, as feeds
        engine_of(detector.engine)
        pairs = zip(detector(video), LiveDetector(detector, policy="wait")(feed), strict=True)
        return [result.detections for pair in pairs for result in pair]

    wanted = both()
    monkeypatch.setattr(graphs, "_Graph", Overwritten)
    found = both(with_graphs)
    assert replayed.replays > 30
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(one.boxes, other.boxes, rtol=0, atol=1e-3)


def test_compiled_code_takes_geometry_as_an_input(small_model, monkeypatch):
    """Its sines belong on the CPU, once for a size: traced, they would be computed, and copied, at every call."""
    traced = []

    def backend(module, inputs):
        traced.append(module)
        return module.forward

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_(function, backend=backend))
    torch._dynamo.reset()
    engine = Engine(small_model, EngineOptions(device="cpu", compile=True))
    plain = Engine(small_model, EngineOptions(device="cpu"))
    levels = [torch.randn(1, 6, 64, size, size) for size in (4, 2, 1, 1)]
    torch.testing.assert_close(engine.detect(levels)[0], plain.detect(levels)[0])

    traced.clear()
    for module in engine.model.to("meta").modules():  # in the place of a GPU: all but the CPU
        if hasattr(module, "backend"):
            module.backend = "cpu"
    engine.detect([level.to("meta") for level in levels])
    engine.extract(torch.empty(2, 3, 32, 48, device="meta"))
    nodes = [node for module in traced for node in module.graph.nodes]
    tensors = [value for node in nodes if isinstance(value := node.meta.get("example_value"), torch.Tensor)]
    assert len(traced) == 2 and len(tensors) > 200 and {x.device.type for x in tensors} == {"meta"}
    called = [(str(node.target), node) for node in nodes if node.op.startswith("call")]
    assert [name for name, _ in called].count("stnet.stda_forward") == 2
    assert not [name for name, _ in called if name in ("sin", "cos", "cumsum", "cpu", "cuda") or "arange" in name]
    converted = [node.args[1:] for name, node in called if name == "to"]
    assert all(isinstance(given, torch.dtype) for (given,) in converted)
    torch._dynamo.reset()
