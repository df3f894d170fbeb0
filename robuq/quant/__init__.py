"""Fake quantization of activations and weights, rotations, and the surgery that puts them into a model."""
