"""Which images, and how they are split."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from robuq.config.base import MOST, Config, Seed
from robuq.config.model import MAX_IMAGE_SIZE


class DataConfig(Config):
    """A data set in three parts: training images, validation images (to tune by), and held-out images (to report).

    Training sees neither of the last two.

    digits: scikit-learn's 1,797 real 8x8 images. fashion_mnist: IDX files in `path`, or where Debian's
    package puts them. image_folder: `path/<class>/*.png|jpg`. latents: an .npz with `latents` (N, C, H, W) and
    `labels` (N,), as an autoencoder made them.
    """

    name: Literal["digits", "fashion_mnist", "image_folder", "latents"] = "digits"
    path: str | None = None
    image_size: Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)] = 8
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.25  # fraction; fashion_mnist has its own test files
    # Fraction of the training images that is set aside to choose learning rates by; 0: nothing can be tuned.
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.1
    split_seed: Seed = 0
    limit: Annotated[int, Field(ge=1, le=MOST)] | None = None  # at most this many training images

    @model_validator(mode="after")
    def _folder_has_a_path(self) -> Self:
        if self.name in ("image_folder", "latents") and not self.path:
            raise ValueError(f"name={self.name!r} needs a path")
        return self

    @model_validator(mode="after")
    def _digits_have_none(self) -> Self:
        if self.name == "digits" and self.path is not None:
            raise ValueError(f"name='digits' has no files: leave path={self.path!r:.60} out")
        return self
