"""What is measured: two sets of sizes, one for a GPU (the published ones) and one that two CPU cores finish."""

import dataclasses
from dataclasses import dataclass

import torch

from stnet.kernels.problem import StdaProblem
from stnet.kernels.published_layers import DECODED_FRAMES, decoder, encoder, level_shapes
from stnet.model.config import ModelConfig

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SHUFFLED_TARGETS = DECODED_FRAMES


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of one run of the suites.

    Attributes:
        image: (height, width) of the frames of a clip.
        operator_image: image whose levels the spatial-temporal operator is measured on.
        classic_image: image whose levels the classic operator (Deformable DETR) is measured on.
        queries: object queries of the decoder.
        batches: clips per call in the operator and inference benchmarks.
        model: preset of layers, clips and inference.
        training_model: preset of the training step.
        training_batch: clips per training step.
        video_frames: length of the video that a whole pass is measured on.
        live_frames: frames of the feed of the live mode.
        growth_frames: lengths of video the whole pipeline is measured on.
        growth_images: image sides; cost is plotted against their area.
        growth_batches: clips per call.
        growth_queries: decoder queries.
    """

    image: tuple[int, int]
    operator_image: tuple[int, int]
    classic_image: tuple[int, int]
    queries: int
    batches: tuple[int, ...]
    model: str
    training_model: str
    training_batch: int
    video_frames: int
    live_frames: int
    growth_frames: tuple[int, ...]
    growth_images: tuple[int, ...]
    growth_batches: tuple[int, ...]
    growth_queries: tuple[int, ...]

    @property
    def config(self) -> ModelConfig:
        """The model, taking frames at the size they have."""
        return dataclasses.replace(ModelConfig.preset(self.model), image_size=min(self.image))

    def stda(self, layer: str, batch: int, *, queries: int | None = None) -> StdaProblem:
        """Return the operator's problem in an encoder or decoder layer; `queries` replaces the decoder's number."""
        shapes = level_shapes(*self.operator_image)
        if layer == "encoder":
            return encoder(shapes, clips=batch)
        return decoder(shapes, clips=batch, queries=queries or self.queries)

    def msda(self, layer: str, batch: int) -> StdaProblem:
        """Return the classic operator as a problem of one frame without others."""
        shapes = level_shapes(*self.classic_image)
        sizes = {} if layer == "encoder" else {"queries": self.queries}
        return encoder(shapes, clips=batch, source_frames=1, other_points=1, **sizes)


SIZES = {
    "paper": Sizes(
        image=(512, 512),
        operator_image=(512, 512),
        classic_image=(800, 1333),
        queries=300,
        batches=(1, 8),
        model="paper",
        training_model="paper",
        training_batch=2,
        video_frames=240,
        live_frames=150,
        growth_frames=(60, 120, 240, 480),
        growth_images=(256, 384, 512, 640),
        growth_batches=(1, 2, 4, 8),
        growth_queries=(100, 200, 300, 600),
    ),
    "small": Sizes(
        image=(64, 80),
        operator_image=(128, 160),
        classic_image=(160, 192),
        queries=100,
        batches=(1,),
        model="paper",
        training_model="tiny",
        training_batch=1,
        video_frames=18,
        live_frames=15,
        growth_frames=(6, 9, 12, 18),
        growth_images=(64, 96, 128, 160),
        growth_batches=(1, 2, 3, 4),
        growth_queries=(50, 100, 200, 300),
    ),
    # The flow alone, in seconds: for the suites' own tests and for a first look at a machine.
    "smoke": Sizes(
        image=(32, 40),
        operator_image=(32, 40),
        classic_image=(48, 64),
        queries=10,
        batches=(1,),
        model="tiny",
        training_model="tiny",
        training_batch=1,
        video_frames=9,
        live_frames=4,
        growth_frames=(3, 6, 9),
        growth_images=(32, 48, 64),
        growth_batches=(1, 2, 3),
        growth_queries=(10, 20, 30),
    ),
}
