"""Pure functions on tensors and bytes. Nothing here imports anything of ours: torch, numpy and the standard library only."""
