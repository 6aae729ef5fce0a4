#!/usr/bin/env python3
"""Make models/prose/calibration.txt: text like the held-out one, for calibrated pruning.

    calibration_text.py MODEL OUT [--debs DIR]

Whole documents of the packages that heldout.txt comes from (their licences are in
heldout-licences.txt), of those that the model was trained on: none that is held out, and no
paragraph that occurs in MODEL/heldout.txt. A seeded hash draws them; each package gives as much.
"""
import argparse, json, multiprocessing, os, re, subprocess, sys

import collect_text as collect

PER_PACKAGE = 60_000  # bytes
DOC_MAX = 20_000


def held_documents(card):
    """Of the model card's table: lines '| package | `document` | licence | bytes |'."""
    return set(re.findall(r"^\| ([\w.+-]+) \| `([^`]+)` \|", card, re.M))


def choose(row, documents, held, seen):
    texts, used = [], 0
    for path, paras in sorted(documents, key=lambda d: collect.rank("calibration", row[0], d[0])):
        if used >= PER_PACKAGE:
            break
        keep = []
        for p in paras:
            f = collect.fingerprint(p)
            if f not in seen:
                seen.add(f)
                keep.append(p)
        text = "\n\n".join(keep)
        size = len(text.encode())
        if (row[0], path) in held or not collect.HELD_MIN <= size <= DOC_MAX:
            continue
        used += size
        texts.append((collect.rank("order", row[0], path), row[0], path, text))
    return texts


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("model")
    ap.add_argument("out")
    ap.add_argument("--debs", default="debs")
    args = ap.parse_args()
    with open(os.path.join(args.model, "README.md"), encoding="utf-8") as f:
        held = held_documents(f.read())
    with open(os.path.join(args.model, "heldout.txt"), encoding="utf-8") as f:
        seen = {collect.fingerprint(p) for p in f.read().split("\n\n")}
    names = {name for name, _ in held}
    with open(os.path.join(collect.HERE, "packages.tsv"), encoding="utf-8") as f:
        rows = [l.rstrip("\n").split("\t") for l in f if l.strip() and not l.startswith("#")]
    rows = [r for r in rows if r[0] in names]
    os.makedirs(args.debs, exist_ok=True)
    have = {f.split("_")[0] for f in os.listdir(args.debs)}
    need = [r[0] for r in rows if r[0] not in have]
    if need:
        subprocess.run(["apt-get", "download"] + need, cwd=args.debs, check=True)
    jobs = [(r[0], r[1], float(r[2]), r[3], r[4], args.debs) for r in rows]
    with multiprocessing.Pool(2) as pool:
        found = {n: (v, d) for n, v, d in pool.imap_unordered(collect.package, jobs)}
    texts = []
    for row in rows:
        version, documents = found[row[0]]
        chosen = choose(row, documents, held, seen)
        print(f"{row[0]} {version}: {len(chosen)} documents, "
              f"{sum(len(t[3].encode()) for t in chosen)} bytes", file=sys.stderr)
        texts += chosen
    with open(args.out, "w", encoding="utf-8") as f:
        f.write("\n\n".join(t[3] for t in sorted(texts)) + "\n")
    for _, name, path, text in sorted(texts):
        print(json.dumps({"package": name, "document": path, "bytes": len(text.encode())}))


if __name__ == "__main__":
    main()
