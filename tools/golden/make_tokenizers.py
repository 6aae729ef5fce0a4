#!/usr/bin/env python3
"""Golden files of the tokenizer test: three small tokenizers and what `tokenizers` makes of 102,144 texts.

Each tokenizer is trained by the Hugging Face library on Python's own standard library and saved; the
texts are generated from a seed, by the same few lines here and in tests/model/test_tokenizer.c, so only
a hash per 256 texts is stored. Hand-written texts are stored with their ids, for reading.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install tokenizers
    /tmp/venv/bin/python tools/golden/make_tokenizers.py [--train | --show gpt2 NUMBER]

The tokenizers are those that are stored; --train makes new ones.
"""
import json
import pathlib
import sys
import sysconfig

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden" / "tokenizer"
STRINGS, BATCH = 34048, 256
MASK = (1 << 64) - 1
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")


class Random:
    """splitmix64"""

    def __init__(self, seed):
        self.state = seed

    def below(self, bound):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
        return (z ^ z >> 31) % bound


def piece(random, source):
    kind = random.below(100)
    if kind < 40:
        return source["fragments"][random.below(len(source["fragments"]))].encode()
    if kind < 58:
        return bytes(97 + random.below(26) for _ in range(1 + random.below(8)))
    if kind < 72:
        first, last = source["ranges"][random.below(len(source["ranges"]))]
        return "".join(chr(first + random.below(last - first + 1))
                       for _ in range(1 + random.below(4))).encode()
    if kind < 80:
        spaces = source["spaces"]
        return "".join(spaces[random.below(len(spaces))] for _ in range(1 + random.below(4))).encode()
    if kind < 86:
        return bytes(48 + random.below(10) for _ in range(1 + random.below(6)))
    if kind < 90:
        return bytes(random.below(256) for _ in range(1 + random.below(3)))
    if kind < 97:
        return source["added"][random.below(len(source["added"]))].encode()
    letter = source["fragments"][random.below(len(source["fragments"]))].encode()[:1]
    return letter * (1 + random.below(60))


def make_text(random, source):
    return b"".join(piece(random, source) for _ in range(1 + random.below(12)))


def fnv(value, hash_):
    for byte in (value & 0xFFFFFFFF).to_bytes(4, "little"):
        hash_ = ((hash_ ^ byte) * 0x100000001B3) & MASK
    return hash_


def training_files():
    library = pathlib.Path(sysconfig.get_paths()["stdlib"])
    return [str(path) for path in sorted(library.glob("*.py"))[:80]]


def train(pre_tokenizer, normalizer, vocabulary):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        made.normalizer = normalizer
    made.decoder = decoders.ByteLevel()
    made.train(training_files(), trainers.BpeTrainer(
        vocab_size=vocabulary, show_progress=False, special_tokens=["<|endoftext|>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return made


def make_gpt2():
    made = train(pre_tokenizers.ByteLevel(add_prefix_space=False), None, 1200)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    made.add_tokens([
        AddedToken("<word>", single_word=True, normalized=False),
        AddedToken("word", single_word=True, normalized=False),
        AddedToken("<left>", lstrip=True, normalized=False),
        AddedToken("<right>", rstrip=True, normalized=True),
        AddedToken("<both>", lstrip=True, rstrip=True, normalized=False),
        AddedToken("<a", normalized=False), AddedToken("<ab", normalized=False),
        AddedToken("<abc>", normalized=True), AddedToken("    ", normalized=False),
    ])
    return made


def make_llama3():
    split = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made = train(split, None, 1500)
    made.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1",
                                      special_tokens=[("<s>", 1)])])
    made.add_special_tokens([AddedToken("<|start_header|>", special=True),
                             AddedToken("<|start|>", special=True)])
    return made


def make_qwen2():
    split = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")), behavior="isolated",
                             invert=False),
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Split("_", behavior="removed"),
        pre_tokenizers.Split(Regex(r"[\w\S]+|\W+"), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made = train(split, normalizers.NFC(), 900)
    made.add_tokens([AddedToken("e\u0301te\u0301", normalized=True),
                     AddedToken("caf\u00e9", normalized=True, single_word=True),
                     AddedToken("\u212b", normalized=False)])
    return made


def save(name, made):
    """merges as "a b" for two of them; llama3 as pairs, with every fifth merge taken away, so that
    tokens exist that only a look-up of the whole word finds."""
    path = OUT / f"{name}.tokenizer.json"
    data = json.loads(made.to_str())
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in data["model"]["merges"]]
    if name == "llama3":
        data["model"]["ignore_merges"] = True
        needed = {part for pair in merges for part in pair}
        merges = [pair for i, pair in enumerate(merges)
                  if i % 5 != 0 or pair[0] + pair[1] in needed]
    data["model"]["merges"] = merges if name == "llama3" else [" ".join(pair) for pair in merges]
    path.write_text(json.dumps(data, ensure_ascii=False, indent=None, separators=(",", ":")) + "\n")
    return Tokenizer.from_file(str(path))


def expect(made, source, seed):
    random, hashes = Random(seed), []
    for _ in range(STRINGS // BATCH):
        texts = [make_text(random, source).decode("utf-8", "replace") for _ in range(BATCH)]
        hash_ = 0xCBF29CE484222325
        for encoding in made.encode_batch(texts):
            hash_ = fnv(len(encoding.ids), hash_)
            for id_ in encoding.ids:
                hash_ = fnv(id_, hash_)
        hashes.append(f"{hash_:016x}")
    by_hand = [{"text": text, "ids": made.encode(text, add_special_tokens=False).ids}
               for text in source["by_hand"]]
    return {"seed": seed, "strings": STRINGS, "batch": BATCH, "hashes": hashes, "by_hand": by_hand}


def main():
    source = json.loads((OUT / "texts.json").read_text())
    makers = {"gpt2": make_gpt2, "llama3": make_llama3, "qwen2": make_qwen2}
    if len(sys.argv) == 4 and sys.argv[1] == "--show":
        made = Tokenizer.from_file(str(OUT / f"{sys.argv[2]}.tokenizer.json"))
        random = Random(list(makers).index(sys.argv[2]) + 1)
        for _ in range(int(sys.argv[3]) + 1):
            text = make_text(random, source)
        print(text, made.encode(text.decode("utf-8", "replace")).ids)
        return
    expected = {"made_with": f"tokenizers {tokenizers.__version__}"}
    for number, (name, make) in enumerate(makers.items()):
        made = (save(name, make()) if sys.argv[1:] == ["--train"]
                else Tokenizer.from_file(str(OUT / f"{name}.tokenizer.json")))
        expected[name] = expect(made, source, number + 1)
    (OUT / "expected.json").write_text(json.dumps(expected, indent=0) + "\n")


if __name__ == "__main__":
    main()
