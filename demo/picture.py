"""Three frames side by side in one picture."""

from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor


def save_picture(path: Path, panels: dict[str, Tensor]) -> None:
    """Write images [3, height, width] in 0..1 side by side, each under its label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(4.2 * len(panels), 3.8))
    axes = figure.subplots(1, len(panels))
    for axis, (label, image) in zip(axes, panels.items(), strict=True):
        axis.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title(label, fontsize=14)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
