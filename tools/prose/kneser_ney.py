#!/usr/bin/env python3
"""Interpolated modified Kneser-Ney n-gram model over BPE tokens: the baseline of models/prose.

    kneser_ney.py TEXT_DIR [--order 5]

Trains on TEXT_DIR/train.bin and scores TEXT_DIR/heldout.bin, every token once, each after
the order-1 tokens before it (the first after a <|endoftext|>): no windows, so it never
loses context as the transformer does at the start of a window.

The highest order counts occurrences, the lower orders distinct left neighbours
(continuation counts); three discounts an order from the counts of counts (Chen and
Goodman 1998, section 4.1.6); the unigram is interpolated with the uniform distribution.
An n-gram is one uint64, 12 bits a token, so counting is sorting.
"""
import argparse, json, math, os

import numpy as np

VOCAB, BITS, BOS = 4096, 12, 0


def pack(tokens, n):
    """The n-grams of a token stream as integers, the oldest token highest."""
    out = np.zeros(len(tokens) - n + 1, dtype=np.uint64)
    for i in range(n):
        out = (out << np.uint64(BITS)) | tokens[i:len(tokens) - n + 1 + i].astype(np.uint64)
    return out


class Level:
    """One order: sorted n-grams with counts, and per context the sums interpolation needs."""

    def __init__(self, grams, counts):
        self.grams, self.counts = grams, counts
        n1, n2, n3, n4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        self.discount = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
        context = grams >> np.uint64(BITS)
        first = np.flatnonzero(np.r_[True, context[1:] != context[:-1]])
        self.context = context[first]
        self.total = np.add.reduceat(counts, first).astype(np.float64)
        mass = self.discount[np.minimum(counts, 3)]
        self.gamma = np.add.reduceat(mass, first) / self.total

    def apply(self, grams, lower):
        """Probability of each n-gram's last token, from the lower order's."""
        context = grams >> np.uint64(BITS)
        at = np.minimum(np.searchsorted(self.context, context), len(self.context) - 1)
        known = self.context[at] == context
        g = np.minimum(np.searchsorted(self.grams, grams), len(self.grams) - 1)
        count = np.where(self.grams[g] == grams, self.counts[g], 0)
        kept = (count - self.discount[np.minimum(count, 3)]) / self.total[at]
        return np.where(known, kept + self.gamma[at] * lower, lower)


class KneserNey:
    def __init__(self, tokens, order):
        self.order = order
        grams, counts = np.unique(pack(tokens, order), return_counts=True)
        self.levels = [Level(grams, counts)]
        for n in range(order - 1, 0, -1):    # drop the oldest token of the distinct (n+1)-grams
            grams, counts = np.unique(grams & np.uint64((1 << (BITS * n)) - 1), return_counts=True)
            self.levels.insert(0, Level(grams, counts))

    def prob(self, grams):
        p = np.full(len(grams), 1.0 / VOCAB)
        for n, level in enumerate(self.levels, 1):
            p = level.apply(grams & np.uint64((1 << (BITS * n)) - 1), p)
        return p


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("text")
    ap.add_argument("--order", type=int, default=5)
    args = ap.parse_args()
    train = np.fromfile(os.path.join(args.text, "train.bin"), dtype="<u2")
    held = np.fromfile(os.path.join(args.text, "heldout.bin"), dtype="<u2")
    size = os.path.getsize(os.path.join(args.text, "heldout.txt"))
    lead = args.order - 1
    model = KneserNey(np.r_[np.zeros(lead, np.uint16), train], args.order)
    for n, level in enumerate(model.levels, 1):
        print(f"order {n}: {len(level.grams)} n-grams, discounts {level.discount[1:].round(4).tolist()}")

    grams = pack(np.r_[np.zeros(lead, np.uint16), held], args.order)
    # The probabilities of the whole vocabulary sum to 1: after seen, unseen and half-seen contexts.
    rng = np.random.default_rng(1)
    contexts = np.r_[grams[rng.integers(0, len(grams), 40)] >> np.uint64(BITS),
                     pack(rng.integers(0, VOCAB, 200).astype(np.uint16), args.order)[:10] >> np.uint64(BITS)]
    worst = max(abs(model.prob((c << np.uint64(BITS)) | np.arange(VOCAB, dtype=np.uint64)).sum() - 1)
                for c in contexts)
    print(f"sum over the vocabulary, {len(contexts)} contexts: at most {worst:.1e} from 1")
    assert worst < 1e-9

    nats = -np.log(model.prob(grams)).sum()
    print(json.dumps({"order": args.order, "tokens": len(held), "bytes": size,
                      "nats_per_token": nats / len(held), "perplexity": math.exp(nats / len(held)),
                      "bits_per_byte": nats / math.log(2) / size, "sum_error": float(worst)}))


if __name__ == "__main__":
    main()
