"""Diffusion Transformers: build, load, save. Nothing about quantization."""

from robuq.models.build import build_dit
from robuq.models.dit import DiT
from robuq.models.dit_files import diffusers_state, load_dit, save_dit

__all__ = ["DiT", "build_dit", "diffusers_state", "load_dit", "save_dit"]
