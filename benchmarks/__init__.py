"""Backends of torch.distributed side by side in one run; see README.md."""
