"""Says what an environment given as `make PYTHON=...` still lacks, rather than install into it."""

import importlib.util
import sys

NEEDED = {
    "torch": "torch>=2.11",
    "setuptools": "setuptools>=77",
    "wheel": "wheel",
    "packaging": "packaging",
    "ninja": "ninja",
    "numpy": "numpy",
    "pytest": "pytest",
    "pytest_timeout": "pytest-timeout",
    "hypothesis": "hypothesis",
    "av": "av",
    "PIL": "pillow",
    "tqdm": "tqdm",
    "matplotlib": "matplotlib",
}

missing = [wanted for module, wanted in NEEDED.items() if not importlib.util.find_spec(module)]
if missing:
    wanted = " ".join(f'"{name}"' for name in missing)
    sys.exit(f"{sys.executable} lacks packages. Install them:\n    pip install {wanted}")
