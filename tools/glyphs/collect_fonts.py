#!/usr/bin/env python3
"""Debian font packages -> clean glyphs, split by package.

    collect_fonts.py OUT_DIR [--debs DIR]

Reads packages.tsv (package, split, licence); downloads and extracts what it names; draws each of the 62
characters of every usable font once, 40x40 pixels in 16 grey levels, capitals 22 pixels high; writes
OUT_DIR/train.npz, OUT_DIR/heldout.npz (glyphs: uint8 [fonts][62][40][20], two pixels a byte) and fonts.tsv.

A font is left out when a character is missing, when its lower case repeats its capitals, when its
glyphs do not look like letters (pictures, ciphers), or when it draws the same as one before it.
"""
import argparse, glob, hashlib, os, subprocess, sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from fontTools.ttLib import TTFont

from characters import CHARACTERS, OWN_CASE

SIDE, CAPITAL, MOST_OF_PACKAGE = 40, 22, 24
HERE = os.path.dirname(os.path.abspath(__file__))


def fetch(package, debs, fonts):
    if not glob.glob(f"{debs}/{package}_*.deb"):
        subprocess.run(["apt-get", "download", "-qq", package], cwd=debs, check=True)
    target = f"{fonts}/{package}"
    if not os.path.isdir(target):
        subprocess.run(["dpkg-deb", "-x", glob.glob(f"{debs}/{package}_*.deb")[0], target], check=True)
    found = [f for ext in ("ttf", "otf") for f in glob.glob(f"{target}/**/*.{ext}", recursive=True)]
    return sorted(f for f in found if not os.path.islink(f))


def draw(font, character):
    """The glyph in the middle of a square, shrunk if it is larger."""
    left, top, right, bottom = font.getbbox(character)
    width, height = right - left, bottom - top
    if width < 1 or height < 1:
        return None
    side = max(SIDE, width + 2, height + 2)
    image = Image.new("L", (side, side))
    at = ((side - width) // 2 - left, (side - height) // 2 - top)
    ImageDraw.Draw(image).text(at, character, fill=255, font=font)
    if side > SIDE:
        image = image.resize((SIDE, SIDE), Image.BILINEAR)
    return np.asarray(image)


def glyphs_of(path):
    """uint8 [62][40][40], or the reason why not."""
    try:
        cmap = TTFont(path, lazy=True).getBestCmap() or {}
        if any(ord(c) not in cmap for c in CHARACTERS):
            return "characters are missing"
        top, bottom = ImageFont.truetype(path, 200).getbbox("H")[1::2]
        if bottom - top < 40:
            return "no capital H"
        font = ImageFont.truetype(path, max(8, round(200 * CAPITAL / (bottom - top))))
        drawn = [draw(font, c) for c in CHARACTERS]
    except Exception as fault:                   # a damaged font, or one that FreeType does not know
        return str(fault)
    if any(g is None or g.max() < 128 or g.mean() > 160 for g in drawn):
        return "an empty or full glyph"
    return np.stack(drawn)


def unit(x):
    x = x.reshape(x.shape[0], -1).astype(np.float32)
    x = x - x.mean(1, keepdims=True)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)


def repeats_capitals(glyphs):
    def cut(g):                                  # compared at one size
        rows, columns = np.where(g.max(1) > 64)[0], np.where(g.max(0) > 64)[0]
        g = g[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
        return np.asarray(Image.fromarray(g).resize((16, 16), Image.BILINEAR))
    low = unit(np.stack([cut(glyphs[CHARACTERS.index(c)]) for c in OWN_CASE]))
    high = unit(np.stack([cut(glyphs[CHARACTERS.index(c.upper())]) for c in OWN_CASE]))
    return ((low * high).sum(1) > 0.85).sum() >= 4


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("out")
    ap.add_argument("--debs", default=None)
    args = ap.parse_args()
    debs, fonts = os.path.abspath(args.debs or f"{args.out}/debs"), f"{args.out}/fonts"
    os.makedirs(debs, exist_ok=True)
    os.makedirs(fonts, exist_ok=True)
    rows, kept, seen = [], [], set()
    for line in open(f"{HERE}/packages.tsv"):
        if line.startswith("#") or not line.strip():
            continue
        package, split = line.rstrip("\n").split("\t")[:2]
        taken = 0
        for path in fetch(package, debs, fonts):
            name = os.path.basename(path)
            glyphs = glyphs_of(path)
            if not isinstance(glyphs, str):
                digest = hashlib.sha256(glyphs.tobytes()).digest()
                limit = 10 ** 6 if package == "fonts-aenigma" else MOST_OF_PACKAGE
                glyphs = ("drawn before" if digest in seen else "lower case repeats capitals"
                          if repeats_capitals(glyphs) else "enough of this package"
                          if taken >= limit else glyphs)
                seen.add(digest)
            if isinstance(glyphs, str):
                rows.append((package, split, name, "no: " + glyphs))
                continue
            taken += 1
            kept.append((package, split, name, glyphs))
        print(f"{package}: {taken} fonts", file=sys.stderr)
    # Letters look more like the mean of their kind than like the mean of the others.
    stack = np.stack([k[3] for k in kept])
    means = unit(stack.mean(0))
    good = []
    for package, split, name, glyphs in kept:
        likeness = unit(glyphs) @ means.T
        own = np.diag(likeness).mean() - (likeness.sum() - np.trace(likeness)) / (62 * 61)
        rows.append((package, split, name, f"yes {own:.3f}" if own >= 0.10 else f"no: not letters {own:.3f}"))
        if own >= 0.10:
            good.append((package, split, name, glyphs))
    for split in ("train", "heldout"):
        part = np.stack([k[3] for k in good if k[1] == split])
        levels = (part.astype(np.uint16) * 15 + 127) // 255
        packed = (levels[..., 0::2] * 16 + levels[..., 1::2]).astype(np.uint8)
        np.savez_compressed(f"{args.out}/{split}.npz", glyphs=packed,
                            fonts=np.array([f"{k[0]}/{k[2]}" for k in good if k[1] == split]))
        print(split, part.shape, file=sys.stderr)
    with open(f"{args.out}/fonts.tsv", "w") as f:
        f.writelines("\t".join(r) + "\n" for r in rows)


if __name__ == "__main__":
    main()
