"""`VideoDetector`: every frame once, equal to the model clip by clip, from every kind of input."""

import copy
import itertools
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

import stnet
from stnet.data.clips.planning import plan_clips
from stnet.data.clips.transforms import prepare_frames
from stnet.errors import ConfigError, StnetError, VideoError
from stnet.execution.engine import Engine, EngineOptions
from stnet.inference import FrameResult, VideoDetector
from stnet.inference.clip_reader import VideoEnd
from stnet.inference.live import LiveDetector
from stnet.model.postprocess import select_detections
from stnet.video import ArraySource, open_source


def expected(model, frames: np.ndarray, targets: int = 3):
    """Scores and boxes per frame, the plain way: one clip at a time, every frame through the backbone each time."""
    found = {}
    images = prepare_frames(frames, model.config.image_size, model.config.max_image_size)
    for clip in plan_clips(len(frames), model.config.frames, targets):
        with torch.inference_mode():
            out = model(images[list(clip.frames)][None], targets=targets)
        detections = select_detections(out.logits[0], out.boxes[0], *frames.shape[1:3])
        found.update({clip.frames[position]: detections[position] for position in clip.targets})
    return found


def assert_equal(results, wanted):
    assert [result.index for result in results] == sorted(wanted)
    for result in results:
        detections = wanted[result.index]
        torch.testing.assert_close(result.detections.scores, detections.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(result.detections.boxes, detections.boxes, rtol=0, atol=1e-2)
        assert torch.equal(result.detections.labels, detections.labels)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 7, 20])
@pytest.mark.parametrize(("batch", "targets"), [(1, 3), (4, 3), (16, 3), (2, 1), (3, 6)])
def test_equals_the_model_clip_by_clip(small_model, make_frames, frames, batch, targets):
    array = make_frames(frames)
    detector = VideoDetector(small_model, device="cpu", batch=batch, targets=targets)
    assert_equal(list(detector(array)), expected(small_model, array, targets))


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_a_gpu_with_and_without_graphs_equals_the_cpu(small_model, make_frames, graphs):
    array = make_frames(40)  # more than two batches
    detector = VideoDetector(small_model, device="cuda", dtype="float32", batch=4, options=EngineOptions(graphs=graphs))
    for _ in range(2):
        assert_equal(list(detector(array)), expected(small_model, array))


@pytest.mark.gpu
@pytest.mark.parametrize(("current", "name"), [(0, "cuda:1"), (1, "cuda")])
def test_a_second_gpu_equals_the_cpu(small_model, make_frames, current, name):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    array = make_frames(40)
    live = LiveDetector(VideoDetector(small_model, device="cpu"), policy="wait")
    on_cpu = {result.index: result.detections for result in live(array)}
    with torch.cuda.device(current):
        detector = VideoDetector(small_model, device=name, dtype="float32", batch=4)
        assert detector.engine.device == torch.device("cuda", 1)
        for _ in range(2):
            assert_equal(list(detector(array)), expected(small_model, array))
            assert_equal(list(LiveDetector(detector, policy="wait")(array)), on_cpu)
        assert torch.cuda.current_device() == current


def test_a_model_without_duplicates_reports_none(small_model, make_frames):
    array = make_frames(4)
    everything = list(VideoDetector(small_model, device="cpu")(array))
    found = list(VideoDetector(small_model, device="cpu", duplicate_iou=0.1)(array))
    counts = [sum(len(result.detections.scores) for result in results) for results in (everything, found)]
    assert 0 < counts[1] < counts[0]
    for all_, kept in zip(everything, found, strict=True):
        assert len(kept.detections.scores) <= len(all_.detections.scores)
        boxes = kept.detections.boxes.unique(dim=0)
        assert box_iou(boxes, boxes).fill_diagonal_(0).max() <= 0.1 + 1e-5
    with pytest.raises(ConfigError, match="duplicate_iou is 2"):
        VideoDetector(small_model, device="cpu", duplicate_iou=2)


def test_three_lines(checkpoint, make_clip, tmp_path):
    make_clip(tmp_path / "clip.mp4", frames=5)
    detector = stnet.VideoDetector(checkpoint)
    for number, result in enumerate(detector(tmp_path / "clip.mp4")):
        assert (result.index, result.video) == (number, "clip")
        assert result.time == pytest.approx(number / 25)
        assert len(result.detections.boxes) == 14 and result.image is None
    assert number == 4


def test_kinds_of_input_agree(small_model, make_frames):
    detector = VideoDetector(small_model, device="cpu")
    array = make_frames(7)
    wanted = expected(small_model, array)
    tensor = torch.from_numpy(array)
    for videos in (array, tensor, tensor.permute(0, 3, 1, 2), list(array), iter(array), (t for t in tensor)):
        assert_equal(list(detector(videos)), wanted)
    gray = array.mean(axis=3).astype(np.uint8)
    assert_equal(list(detector(gray)), expected(small_model, np.repeat(gray[..., None], 3, axis=3)))


def test_files_folders_and_lists_follow_each_other(small_model, make_clip, make_frames, tmp_path):
    from PIL import Image

    first = make_clip(tmp_path / "b.mp4", frames=4)
    second = make_clip(tmp_path / "c.mp4", frames=2, height=48, width=40, seed=1)
    (tmp_path / "frames").mkdir()
    for number, image in enumerate(make_frames(5, seed=2)):
        Image.fromarray(image).save(tmp_path / "frames" / f"{number}.png")
    detector = VideoDetector(small_model, device="cpu", batch=4)
    results = list(detector([first, second, str(tmp_path / "frames"), open_source(first)]))
    assert [(r.video, r.index) for r in results] == [
        *(("b", i) for i in range(4)),
        *(("c", i) for i in range(2)),
        *(("frames", i) for i in range(5)),
        *(("b", i) for i in range(4)),
    ]
    assert [r.file for r in results[6:11]] == [f"{i}.png" for i in range(5)]
    for video, part in ((first, results[:4]), (second, results[4:6]), (tmp_path / "frames", results[6:11])):
        assert_equal(part, expected(small_model, np.stack([frame.image for frame in open_source(video)])))


def test_arrays_of_several_videos(small_model, make_frames):
    detector = VideoDetector(small_model, device="cpu", batch=8)
    arrays = [make_frames(4), make_frames(3, seed=1), make_frames(2, 48, 40, seed=2)]
    results = list(detector(arrays))
    assert [(r.video, r.index) for r in results] == [
        (f"array-{n}", i) for n, array in enumerate(arrays) for i in range(len(array))
    ]
    for number, array in enumerate(arrays):
        part = [result for result in results if result.video == f"array-{number}"]
        assert_equal(part, expected(small_model, array))


def test_images_on_request(small_model, make_frames):
    array = make_frames(5)
    for result in VideoDetector(small_model, device="cpu")(array, images=True, fps=10):
        np.testing.assert_array_equal(result.image, array[result.index])
        assert result.time == pytest.approx(result.index / 10)


@pytest.mark.parametrize(
    "nothing", [[], iter([]), np.zeros((0, 8, 8), np.uint8), 5, None, [7], "missing.mp4", {"a": 1}]
)
def test_unusable_input(small_model, nothing):
    with pytest.raises(VideoError):
        list(VideoDetector(small_model, device="cpu")(nothing))


def test_damaged_video_gives_its_frames_and_a_warning(small_model, make_frames, tmp_path):
    from PIL import Image

    for number, image in enumerate(make_frames(5)):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes(b"nothing")
    with pytest.warns(UserWarning, match=r"is corrupt: 2\.png cannot be read"):
        results = list(VideoDetector(small_model, device="cpu")(tmp_path))
    assert [result.index for result in results] == [0, 1, 2, 3]


@pytest.mark.timeout(60)
def test_errors_of_a_feed_arrive_promptly(small_model, make_frames):
    def feed():
        yield from make_frames(3)
        raise ConnectionResetError("scanner unplugged")

    with pytest.raises(ConnectionResetError, match="scanner unplugged"):
        list(VideoDetector(small_model, device="cpu")(feed()))


@pytest.mark.timeout(60)
def test_leaving_early_and_starting_again(small_model, make_frames):
    detector = VideoDetector(small_model, device="cpu", batch=2)
    array = make_frames(30)
    results = detector(array)
    assert next(results).index == 0
    results.close()
    assert_equal(list(detector(array)), expected(small_model, array))


def scores(results) -> list[list[float]]:
    return [result.detections.scores.tolist() for result in results]


@pytest.mark.parametrize("batch", [1, 3])
def test_nothing_of_a_call_outlives_it(small_model, make_frames, batch):
    """Stopped early, broken by an error, read in turns, and in threads: each call gives what it gives alone."""
    arrays = [make_frames(17, seed=seed) for seed in range(3)]
    alone = [scores(VideoDetector(small_model, device="cpu", batch=batch)(array)) for array in arrays]
    detector = VideoDetector(small_model, device="cpu", batch=batch)

    for _ in detector(arrays[0]):
        break  # without closing: what is left behind may still run
    assert scores(detector(arrays[1])) == alone[1]

    def broken():
        yield from arrays[0][:9]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(detector(broken()))
    with pytest.raises(KeyError):
        for _ in detector(arrays[0]):
            raise KeyError
    assert scores(detector(arrays[2])) == alone[2]

    together = list(zip(*(detector(array) for array in arrays), strict=True))
    assert [scores(results) for results in zip(*together, strict=True)] == alone

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda array: scores(detector(array)), arrays)) == alone


def test_profiles_of_two_calls_at_once_are_added_up(small_model, make_frames):
    detector = VideoDetector(small_model, device="cpu", profile=True)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda seed: list(detector(make_frames(7, seed=seed))), range(2)))
    assert all(seconds > 0 for seconds in detector.timer.seconds.values())


def events(detector, videos):
    named = [(str(number), lambda frames=frames: ArraySource(frames)) for number, frames in enumerate(videos)]
    return list(detector.events(named))


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), UnicodeDecodeError("utf-8", b"x", 0, 1, "bad")])
def test_errors_of_the_machine_cost_one_video(small_model, make_frames, error):
    class Failing(ArraySource):
        def __iter__(self):
            yield from itertools.islice(super().__iter__(), 4)
            raise error

    detector = VideoDetector(small_model, device="cpu", batch=2)
    videos = [("good", lambda: ArraySource(make_frames(5))), ("bad", lambda: Failing(make_frames(9)))]
    found = list(detector.events([*videos, ("last", lambda: ArraySource(make_frames(5)))]))
    ends = [event for event in found if isinstance(event, VideoEnd)]
    assert [(end.name, end.status) for end in ends] == [("good", "ok"), ("bad", "unreadable"), ("last", "ok")]
    assert ends[1].error is error and ends[1].problems[0]
    with pytest.raises(type(error)):
        list(detector([ArraySource(make_frames(5)), Failing(make_frames(9))]))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: not enough memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
    ids=["device", "host", "PyTorch on the host", "Triton"],
)
def test_a_video_too_large_for_memory_costs_itself_alone(small_model, make_frames, monkeypatch, error):
    original = Engine.detect

    def detect(self, levels, *rest):
        if levels[0].shape[-1] > 6:
            raise error
        return original(self, levels, *rest)

    monkeypatch.setattr(Engine, "detect", detect)
    wide = make_frames(40, height=40, width=90)
    detector = VideoDetector(small_model, device="cpu", batch=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = events(detector, [make_frames(7), wide, make_frames(7, seed=1)])
    ends = [event for event in found if isinstance(event, VideoEnd)]
    assert [end.status for end in ends] == ["ok", "unreadable", "ok"]
    assert "out of memory on cpu with a single clip" in ends[1].problems[0]
    assert sum(isinstance(event, FrameResult) for event in found) == 14


def test_outputs_that_are_no_numbers_are_an_error(small_model, make_frames, bfloat16_everywhere):
    broken = copy.deepcopy(small_model)
    with torch.no_grad():
        broken.decoder.class_heads[0].bias[1] = torch.nan
    detector = VideoDetector(broken, device="cpu", dtype="bfloat16")
    with pytest.raises(StnetError, match=r"array: .*not finite in bfloat16; use --dtype float32"):
        list(detector(make_frames(7)))


def test_options_are_checked_before_work(small_model):
    with pytest.raises(ConfigError, match="targets 9"):
        VideoDetector(small_model, device="cpu", targets=9)
    with pytest.raises(ConfigError, match="batch 0"):
        VideoDetector(small_model, device="cpu", batch=0)
    with pytest.raises(StnetError, match="nowhere"):
        VideoDetector("nowhere.safetensors")


def _limited(monkeypatch, name: str, size_of, limit: int) -> list[int]:
    """Let a method of the engine run out of memory above `limit`; returns the sizes it was called with."""
    sizes, original = [], getattr(Engine, name)

    def method(self, argument, *rest):
        sizes.append(size_of(argument))
        if sizes[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return original(self, argument, *rest)

    monkeypatch.setattr(Engine, name, method)
    return sizes


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_out_of_memory_halves_the_batch_with_the_same_results(small_model, make_frames, monkeypatch, limit):
    array = make_frames(60)
    wanted = expected(small_model, array)
    sizes = _limited(monkeypatch, "detect", lambda levels: len(levels[0]), limit)
    detector = VideoDetector(small_model, device="cpu", batch=8)
    with pytest.warns(UserWarning, match="out of memory") as caught:
        results = list(detector(array))
    assert_equal(results, wanted)
    assert len(caught) == 1 and detector.batch == limit
    assert sizes[:2] == [8, 4] and max(sizes[4:]) <= limit


def test_out_of_memory_in_the_backbone(small_model, make_frames, monkeypatch):
    array = make_frames(20)
    wanted = expected(small_model, array)
    sizes = _limited(monkeypatch, "extract", len, 1)
    detector = VideoDetector(small_model, device="cpu", batch=4)
    with pytest.warns(UserWarning, match="out of memory"):
        assert_equal(list(detector(array)), wanted)
    assert detector.batch == 1 and sizes[-1] == 1


def test_out_of_memory_for_good(small_model, make_frames, monkeypatch):
    _limited(monkeypatch, "detect", lambda levels: len(levels[0]), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(StnetError, match="out of memory on cpu with a single clip of 38 x 32 pixels"):
            list(VideoDetector(small_model, device="cpu", batch=2)(make_frames(6)))


def test_other_errors_are_not_taken_for_lack_of_memory(small_model, make_frames, monkeypatch):
    def broken(*_):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(Engine, "detect", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        list(VideoDetector(small_model, device="cpu", batch=2)(make_frames(6)))


def test_profile_covers_the_stages(small_model, make_frames):
    detector = VideoDetector(small_model, device="cpu", profile=True)
    list(detector(make_frames(6)))
    assert set(detector.timer.seconds) == {"decode", "resize", "backbone", "encoder", "decoder", "post"}
    assert all(seconds > 0 for seconds in detector.timer.seconds.values())
