"""Diffusion Transformers: build, load, save. Nothing about quantization."""

from robuq.models.dit import DiT, build_dit, diffusers_state, load_dit, save_dit

__all__ = ["DiT", "build_dit", "diffusers_state", "load_dit", "save_dit"]
