"""CUDA graphs, streams and devices, with recorders in the place of `torch.cuda`."""

import gc
import threading
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
from stnet.model.geometry import clip_geometry
from stnet.video import ArraySource


class Cuda:
    """What is recorded of the pieces of `torch.cuda` that are replaced."""

    def __init__(self) -> None:
        self.streams: list[object] = ["default"]  # the last is the current one
        self.pools: list[object] = []
        self.capturing = self.most_capturing = 0
        self.failure: BaseException | None = None
        self.devices = threading.local()

    @contextmanager
    def stream(self, stream):
        before = list(self.streams)
        self.streams.append(stream)
        try:
            yield
        finally:
            self.streams[:] = before

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
            self.stream = stream

        def __enter__(self):
            recorder.capturing += 1
            recorder.most_capturing = max(recorder.most_capturing, recorder.capturing)
            recorder.streams.append(self.stream)

        def __exit__(self, kind, error, trace):
            recorder.capturing -= 1
            if kind is not None or recorder.failure is not None:
                # As PyTorch does: the end of the capture fails, and its stream is never left.
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            recorder.streams.pop()

    class Graph:
        def replay(self):
            pass

    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream(device))
    monkeypatch.setattr(torch.cuda, "stream", recorder.stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "device", recorder.device)
    return recorder


class Replayed:
    """A graph that computes when it is replayed, on the constants of its capture."""

    captures = 0

    def __init__(self, function, inputs, constants, pool):
        type(self).captures += 1
        self._function, self._constants = function, constants

    def replay(self, inputs):
        return self._function(inputs, self._constants)


@pytest.fixture
def replayed(monkeypatch, cuda):
    monkeypatch.setattr(graphs, "_Graph", Replayed)
    Replayed.captures = 0
    return Replayed


def graphed_engine(model) -> Engine:
    engine = Engine(model, EngineOptions(device="cpu"))
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
    eager = 2 * 12
    assert eager <= 0.15 * Fake.calls


def test_shapes_that_take_turns_are_not_captured_at_each_visit(replayed):
    function = GraphedFunction(lambda inputs, _: inputs, most=2)
    for _ in range(12):
        for size in (1, 2, 3):
            for _ in range(3):
                function([torch.zeros(size)])
    assert replayed.captures <= 6


@pytest.mark.parametrize("memory", [True, False])
def test_a_failed_capture_leaves_no_stream_behind(cuda, memory):
    calls = []

    def function(inputs, _):
        calls.append(cuda.capturing)
        if cuda.capturing:
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
    before = len(cuda.pools)
    if not memory:
        graphed([torch.zeros(2)])
        assert len(cuda.pools) == before  # not tried again


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


def test_every_thread_works_on_the_engines_device(small_model, make_frames, cuda, monkeypatch):
    """CUDA's current device belongs to a thread and starts at 0: the model's thread has to choose its own."""
    detector = VideoDetector(small_model, device="cpu", batch=2)
    seen = set()
    for name in ("_extract_all", "geometry"):
        original = getattr(detector.engine, name)

        def recording(*arguments, original=original, name=name):
            seen.add((name, threading.current_thread().name, str(getattr(cuda.devices, "current", None))))
            return original(*arguments)

        monkeypatch.setattr(detector.engine, name, recording)
    detector.engine._extract = detector.engine._function(detector.engine._extract_all)
    detector.engine.device = torch.device("cuda", 1)
    monkeypatch.setattr(detector.engine, "_precisely", lambda function: function)
    assert len(list(detector(make_frames(7)))) == 7
    assert {name for name, _, _ in seen} == {"_extract_all", "geometry"}
    assert {(thread, device) for _, thread, device in seen} == {("stnet-model", "cuda:1")}


def test_compiled_code_takes_geometry_as_an_input(small_model, monkeypatch):
    """Its sines belong on the CPU, once for a size: traced, they would be computed at every call."""
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
    nodes = [str(node.target) for module in traced for node in module.graph.nodes]
    assert nodes and not [node for node in nodes if node in ("sin", "cos", "cumsum") or "arange" in node]
    torch._dynamo.reset()
