"""On a real GPU: `make test-gpu`. Two ranks share one; see one_gpu.py."""
