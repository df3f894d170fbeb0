"""RobuQ: Diffusion Transformers with ternary weights and about two activation bits."""
