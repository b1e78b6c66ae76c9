"""Training: the loop, its checkpoints, and the distillation of drafts."""
