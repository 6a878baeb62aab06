"""Which frames an evaluation scores, and by which clips they are predicted."""

from stnet.choices import PROTOCOLS
from stnet.data.clips.planning import LOCAL_FRAMES, Clip, plan_clips
from stnet.data.index import DatasetIndex


def planned_clips(
    index: DatasetIndex, protocol: str, frames_per_clip: int, targets: int = LOCAL_FRAMES
) -> list[list[Clip]]:
    """Return the clips to run, one list per video of the index.

    `all` scores every annotated frame. `published` is what STNet's own evaluation script does in effect: it scores
    only the centre frames of its clips, whose image ids are every third of the sorted ids of the whole file
    (`ids[1::3]`), counted across video borders; for comparison with published figures only.

    Args:
        index: the frames.
        protocol: "all" or "published".
        frames_per_clip: F.
        targets: frames predicted per clip under `all`.

    Raises:
        ValueError: for another protocol.
    """
    if protocol == "all":
        return [
            [clip for clip in clips if any(video.frames[frame].annotated for frame in clip.predicted)]
            for video in index.videos
            for clips in [plan_clips(len(video.frames), frames_per_clip, targets)]
        ]
    if protocol != "published":
        raise ValueError(f"protocol {protocol!r} is none of {', '.join(PROTOCOLS)}")
    centres = set(sorted(frame.image_id for video in index.videos for frame in video.frames)[1::3])
    return [
        [
            clip
            for frame, clip in zip(video.frames, plan_clips(len(video.frames), frames_per_clip, 1), strict=True)
            if frame.image_id in centres and frame.annotated
        ]
        for video in index.videos
    ]
