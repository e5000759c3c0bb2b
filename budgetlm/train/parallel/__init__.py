"""One network trained by several devices together, by torch.distributed."""
