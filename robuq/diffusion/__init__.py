"""Training loss, held-out loss and samplers, over diffusers' schedulers."""

from robuq.diffusion.evaluation_mode import evaluation_mode
from robuq.diffusion.loss import HeldOutLoss, drop_labels, held_out_loss, noise_prediction_loss
from robuq.diffusion.sampler import sample_images
from robuq.diffusion.schedule import NoiseSchedule

__all__ = [
    "HeldOutLoss",
    "NoiseSchedule",
    "drop_labels",
    "evaluation_mode",
    "held_out_loss",
    "noise_prediction_loss",
    "sample_images",
]
