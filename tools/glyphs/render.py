#!/usr/bin/env python3
"""Held-out pictures of models/glyphs: letters of fonts that the model was not trained on.

    render.py DATA_DIR OUT_DIR [--images 20000] [--level 0.6] [--seed 2025]

Reads DATA_DIR/heldout.npz (collect_fonts.py); writes OUT_DIR/LABEL/NUMBER.png, in equal numbers for each
of the 47 labels as far as that goes, and OUT_DIR/fonts.txt, which says what each picture shows. The same
seed gives the same pictures (on one version of PyTorch).
"""
import argparse
import os

import numpy as np
import torch
from PIL import Image

import distort
from characters import CHARACTERS, CLASS_OF, LABELS

CHUNK = 1000


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("data")
    ap.add_argument("out")
    ap.add_argument("--images", type=int, default=20000)
    ap.add_argument("--level", type=float, default=0.6)
    ap.add_argument("--seed", type=int, default=2025)
    args = ap.parse_args()
    held = np.load(os.path.join(args.data, "heldout.npz"))
    glyphs, fonts = torch.from_numpy(held["glyphs"]), held["fonts"]
    of_class = [[i for i, c in enumerate(CLASS_OF) if c == k] for k in range(len(LABELS))]
    g = torch.Generator().manual_seed(args.seed)
    for name in LABELS:
        os.makedirs(os.path.join(args.out, name), exist_ok=True)
    with open(os.path.join(args.out, "fonts.txt"), "w") as names:
        for at in range(0, args.images, CHUNK):      # whole chunks: fewer pictures are the first of more
            label = (at + torch.arange(CHUNK)) % len(LABELS)
            draws = torch.rand(CHUNK, generator=g)
            character = torch.tensor([of_class[k][int(d * len(of_class[k]))]
                                      for k, d in zip(label.tolist(), draws.tolist())])
            font = torch.randint(0, len(fonts), (CHUNK,), generator=g)
            clean = distort.unpack(glyphs[font, character])
            pictures = distort.distort(clean, g, args.level).permute(0, 2, 3, 1).numpy()
            for i, picture in enumerate(pictures[:args.images - at]):
                path = f"{LABELS[label[i]]}/{at + i:05d}.png"
                Image.fromarray(picture).save(os.path.join(args.out, path))
                names.write(f"{path}\t{CHARACTERS[character[i]]}\t{fonts[font[i]]}\n")


if __name__ == "__main__":
    main()
