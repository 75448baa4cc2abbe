"""Denoise a clip with attention whose sequence is spread over several ranks, and check the result.

python -m demo --ranks 2
"""

import argparse
import os
from pathlib import Path

from demo.attention import HEADS, assemble
from demo.clip import add_noise, load_clip, psnr
from demo.picture import save_picture
from demo.ranks import group_size, run_alone, run_ranks

SIGMA = 25 / 255
TOLERANCE = 1e-5  # both ways do the same sums; what remains is the rounding of fp32
PICTURE = Path(__file__).resolve().parent / "out" / "denoised.png"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--ranks", type=int, default=2, help="must divide the heads (%(default)s)")
    parser.add_argument("--frames", type=int, default=6, help="frames of the clip (%(default)s)")
    arguments = parser.parse_args()
    if arguments.ranks < 1 or len(HEADS) % arguments.ranks:
        parser.error(f"--ranks {arguments.ranks} does not divide the {len(HEADS)} heads")
    if arguments.frames < 1:
        parser.error(f"--frames {arguments.frames}: at least one frame is needed")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    clean = load_clip(arguments.frames)
    noisy = add_noise(clean, SIGMA)
    alone = run_alone(noisy, SIGMA)
    spread = run_ranks(noisy, SIGMA, arguments.ranks)
    denoised = assemble(spread.out, clean.shape)
    before, after = psnr(noisy, clean), psnr(denoised, clean)
    assert spread.out_by_heads is not None
    difference = max(
        (out - alone.out).abs().max().item() for out in (spread.out, spread.out_by_heads)
    )

    _, tokens, heads, dim = spread.out.shape
    ranks, size = arguments.ranks, group_size(arguments.ranks)
    print(
        f"clip        carphone, {len(clean)} frames 176 x 144: {tokens} tokens, {heads} heads\n"
        f"PSNR        {before:.2f} dB noisy -> {after:.2f} dB denoised\n"
        f"difference  {difference:.1e} at most from the single process's result\n"
        f"attention   {alone.seconds:.1f} s with 1 rank; with {ranks} ranks {spread.seconds:.1f} s "
        f"(sp={size}) and {spread.seconds_by_heads:.1f} s (tp={size}), dp={ranks // size}; "
        f"one thread per rank, {len(os.sched_getaffinity(0))} cores\n"
        f"exchange    [1, {tokens // size}, {heads}, {dim}] per rank, there and back: "
        f"{1e3 * spread.exchange_fastvideo:.1f} ms with fastvideo, "
        f"{1e3 * spread.exchange_gloo:.1f} ms with gloo and permutes"
    )
    middle = len(clean) // 2
    panels = {
        f"noisy, {before:.1f} dB": noisy[middle],
        f"denoised, {after:.1f} dB": denoised[middle],
        "original": clean[middle],
    }
    save_picture(PICTURE, panels)
    print(f"picture     {os.path.relpath(PICTURE)}")
    if difference > TOLERANCE:
        raise SystemExit(f"the results differ by {difference:.1e}, more than {TOLERANCE:.0e}")


if __name__ == "__main__":
    main()
