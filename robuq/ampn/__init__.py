"""AMPN: sensitivities, budgets, allocators, and the search for bit-widths."""
