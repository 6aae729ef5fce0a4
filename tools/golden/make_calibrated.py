#!/usr/bin/env python3
"""Masks and values of calibrated pruning, written straight from the papers' formulas, into
tests/golden/prune/calibrated.txt. Weights and inputs are made by a small generator that the test
has too. Needs PyTorch (for its Cholesky factors) alone: run with any Python that has it.

    make_calibrated.py > tests/golden/prune/calibrated.txt
"""
import itertools

import torch

OUT, IN, TOKENS = 8, 136, 300
torch.set_default_dtype(torch.float64)


def numbers(seed, count):
    state, made = seed, []
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        made.append(((state >> 40) % 401 - 200) / 64)
    return torch.tensor(made)


def layer():
    weights = numbers(1, OUT * IN).reshape(OUT, IN)
    raw = numbers(2, IN * TOKENS).reshape(IN, TOKENS)
    inputs = raw.clone()
    inputs[1:] += raw[:-1]  # neighbours are correlated
    return weights, inputs


def best(scores, keep):
    """The `keep` largest of each row, ties to the lower index."""
    order = torch.sort(-scores, dim=1, stable=True).indices[:, :keep]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)


def by_groups(scores, choose, width):
    parts = [choose(scores[:, i:i + width]) for i in range(0, scores.shape[1], width)]
    return torch.cat(parts, 1)


def keep_of(keep):
    return lambda part: best(part, min(keep, part.shape[1]))


def panel(part, v):
    """V:2:M of one group: the quadruple whose two best per row sum highest, for each v rows."""
    made = torch.zeros_like(part, dtype=torch.bool)
    for r in range(0, part.shape[0], v):
        rows = part[r:r + v]
        quads = list(itertools.combinations(range(part.shape[1]), min(4, part.shape[1])))
        sums = [rows[:, q].topk(min(2, len(q)), 1).values.sum() for q in quads]
        q = list(quads[int(torch.tensor(sums).argmax())])
        made[r:r + v, q] = best(rows[:, q], 2)
    return made


def sparse_gpt(weights, gram, choose, width, block):
    w = weights.clone()
    upper = torch.linalg.cholesky(torch.linalg.inv(gram), upper=True)
    mask = torch.zeros_like(w, dtype=torch.bool)
    for first in range(0, IN, block):
        last = min(first + block, IN)
        errors = torch.zeros(OUT, last - first)
        for j in range(first, last):
            if (j - first) % width == 0:
                end = min(j + width, last)
                scores = w[:, j:end] ** 2 / torch.diag(upper)[j:end] ** 2
                mask[:, j:end] = choose(scores)
            kept = torch.where(mask[:, j], w[:, j], torch.zeros(OUT))
            error = (w[:, j] - kept) / upper[j, j]
            w[:, j + 1:last] -= error[:, None] * upper[j, j + 1:last]
            w[:, j] = kept
            errors[:, j - first] = error
        w[:, last:] -= errors @ upper[first:last, last:]
    return mask, w


def panel_obs(weights, gram, v, group, kept):
    """Columns of each panel go one by one, every time by the whole problem solved anew; then two of
    four by the sweep above within the kept ones. group: of which four stay; 0: `kept` of all."""
    goal = weights @ gram
    mask, made = torch.zeros_like(weights, dtype=torch.bool), torch.zeros_like(weights)
    for r in range(0, OUT, v):
        rows, left = slice(r, r + v), list(range(IN))
        while True:
            inverse = torch.linalg.inv(gram[left][:, left])
            w = goal[rows][:, left] @ inverse
            cost = (w ** 2).sum(0) / torch.diag(inverse)
            count = {}
            for c in left:
                count[c // group if group else 0] = count.get(c // group if group else 0, 0) + 1
            free = [count[c // group] > 4 if group else len(left) > kept for c in left]
            if not any(free):
                break
            cost[~torch.tensor(free)] = float("inf")
            del left[int(cost.argmin())]
        upper = torch.linalg.cholesky(inverse, upper=True)
        starts = [j for j, c in enumerate(left)
                  if (j == 0 or c // group != left[j - 1] // group if group else j % 4 == 0)]
        for first, last in zip(starts, starts[1:] + [len(left)]):
            keep = best(w[:, first:last] ** 2 / torch.diag(upper)[first:last] ** 2,
                        min(2, last - first))
            for j in range(first, last):
                error = torch.where(keep[:, j - first], torch.zeros(len(w)), w[:, j]) / upper[j, j]
                w[:, j] = torch.where(keep[:, j - first], w[:, j], torch.zeros(len(w)))
                w[:, j + 1:] -= error[:, None] * upper[j, j + 1:]
            for i in range(len(w)):
                for j in range(first, last):
                    mask[r + i, left[j]] = keep[i, j - first]
        made[rows, left] = w
    return mask, made


def venom(weights, gram, v, group):
    """Group by group: of all columns from the group on, what dropping D costs a row is
    w_D inv([F]_DD) w_D with F the inverse of their moments, and the others follow by F's lines. Each v
    rows share the four columns that cost least with each row's best two of them."""
    mask, w = torch.zeros_like(weights, dtype=torch.bool), weights.clone()
    for first in range(0, IN, group):
        width = min(group, IN - first)
        inverse = torch.linalg.inv(gram[first:, first:])
        pairs, costs = list(itertools.combinations(range(width), min(2, width))), []
        for pair in pairs:
            gone = [j for j in range(width) if j not in pair]
            part = w[:, first:][:, gone]
            solved = torch.linalg.solve(inverse[gone][:, gone], part.T).T
            costs.append((part * solved).sum(1))
        costs = torch.stack(costs, 1)
        for r in range(0, OUT, v):
            quads = [[i for i, pair in enumerate(pairs) if set(pair) <= set(quad)]
                     for quad in itertools.combinations(range(width), min(4, width))]
            best_quad = min(quads, key=lambda of: float(costs[r:r + v, of].min(1).values.sum()))
            for row in range(r, min(r + v, OUT)):
                pair = pairs[min(best_quad, key=lambda i: float(costs[row, i]))]
                gone = [j for j in range(width) if j not in pair]
                times = torch.linalg.solve(inverse[gone][:, gone], w[row, first:][gone])
                w[row, first:] -= times @ inverse[gone]
                w[row, [first + j for j in gone]] = 0
                mask[row, [first + j for j in pair]] = True
    return mask, w


def refit(mask, weights, gram):
    goal, made = weights @ gram, torch.zeros_like(weights)
    for r in range(OUT):
        live = mask[r].nonzero().flatten()
        made[r, live] = torch.linalg.solve(gram[live][:, live], goal[r, live])
    return made


def show(name, mask, values=None):
    print(name, "".join("1" if b else "0" for b in mask.flatten().tolist()))
    for row in values.tolist() if values is not None else []:
        print(" ".join(f"{v:.17g}" for v in row))


def main():
    weights, inputs = layer()
    gram = inputs @ inputs.T
    norms = inputs.norm(dim=1)
    size = weights.abs()
    relative = size / size.sum(1, keepdim=True) + size / size.sum(0, keepdim=True)
    inverse = torch.linalg.inv(gram)
    scores = {"wanda": size * norms, "ria": relative * norms ** 0.5,
              "obd": weights ** 2 * norms ** 2 / 2, "obs": weights ** 2 / torch.diag(inverse)}
    print(f"# tools/golden/make_calibrated.py, PyTorch {torch.__version__.split('+')[0]}")
    for name, score in scores.items():
        show(f"{name} 2:4", by_groups(score, keep_of(2), 4))
        show(f"{name} 4:2:8", by_groups(score, lambda p: panel(p, 4), 8))
    show("wanda unstructured@0.5", best(scores["wanda"], IN // 2))
    show("sparsegpt 2:4", *sparse_gpt(weights, gram, keep_of(2), 4, 128))
    show("sparsegpt 3:7", *sparse_gpt(weights, gram, keep_of(3), 7, 126))
    show("sparsegpt 4:2:8", *sparse_gpt(weights, gram, lambda p: panel(p, 4), 8, 128))
    show("sparsegpt 4:2:5", *sparse_gpt(weights, gram, lambda p: panel(p, 4), 5, 125))
    show("panels 4:2:8", *panel_obs(weights, gram, 4, 8, 0))
    show("panels 4:2:5", *panel_obs(weights, gram, 4, 5, 0))
    show("panels panel:4@0.75", *panel_obs(weights, gram, 4, 0, 68))
    show("venom 2:4", *venom(weights, gram, OUT, 4))
    show("venom 4:2:8", *venom(weights, gram, 4, 8))
    show("venom 4:2:5", *venom(weights, gram, 4, 5))
    squared = size * norms ** 2  # torchao's WandaSparsifier takes no root of its sums of squares
    show("torchao 2:4", by_groups(squared, keep_of(2), 4))
    for name, keep in (("2:4", by_groups(scores["wanda"], keep_of(2), 4)),
                       ("4:2:8", by_groups(scores["wanda"], lambda p: panel(p, 4), 8))):
        show(f"refit {name}", keep, refit(keep, weights, gram))


if __name__ == "__main__":
    main()
