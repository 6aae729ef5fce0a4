#!/usr/bin/env python3
"""Golden files of the SentencePiece-like tokenizers: two small ones, variants of them, and what
`tokenizers` makes of 101,376 texts and of 7,680 lists of random ids.

llama2 is spelled as Llama-2's file is (normalizer Prepend and Replace, no pre_tokenizer: merges go
over spaces), tinyllama as newer ones are (Metaspace). A variant is one of them with parts put in,
"path": value, and tokens renamed; the test does the same. Texts are those of make_tokenizers.py
with a few more fragments; a hash per 256 of them covers the ids, another one what the ids decode to.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install tokenizers
    /tmp/venv/bin/python tools/golden/make_sentencepiece.py [--train | --show VARIANT NUMBER]
"""
import copy
import json
import sys

import tokenizers
from make_tokenizers import BATCH, OUT, Random, fnv, make_text, training_files
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

FEW, MANY, LISTS = 2560, 34048, 512
MARK = "\u2581"
MORE = [MARK, MARK + MARK, "a" + MARK + "b", " " + MARK, "<0x41>", "<unk>", "</s>", "<0x4", "x" * 9]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIAL = ["<unk>", "<s>", "</s>"]


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(key, *parts):
    return {"type": "Sequence", key: list(parts)}


def metaspace(**options):
    return {"type": "Metaspace", "replacement": MARK, **options}


PREPEND = {"type": "Prepend", "prepend": MARK}
TO_MARK = replace({"String": " "}, MARK)
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
FALLBACK, FUSE = {"type": "ByteFallback"}, {"type": "Fuse"}
FROM_MARK = replace({"String": MARK}, " ")
DIGITS = {"type": "Digits", "individual_digits": True}
SPLIT = {"type": "Split", "pattern": {"Regex": "[(){}]+"}, "behavior": "Isolated", "invert": False}

VARIANTS = {
    "llama2": {"base": "llama2", "strings": MANY},
    "tinyllama": {"base": "tinyllama", "strings": MANY},
    "always": {"base": "tinyllama", "set": {
        "pre_tokenizer": metaspace(prepend_scheme="always", split=True),
        "decoder": metaspace(prepend_scheme="always")}},
    "never": {"base": "tinyllama", "set": {
        "pre_tokenizer": metaspace(prepend_scheme="never"),
        "decoder": metaspace(prepend_scheme="never", split=False)}},
    "old spelling": {"base": "llama2", "set": {
        "normalizer": None, "pre_tokenizer": metaspace(add_prefix_space=True),
        "decoder": sequence("decoders", metaspace(add_prefix_space=True), FALLBACK, FUSE)}},
    "steps before": {"base": "tinyllama", "set": {
        "pre_tokenizer": sequence("pretokenizers", DIGITS, SPLIT,
                                  metaspace(prepend_scheme="first", split=True)),
        "decoder": metaspace(prepend_scheme="first")}},
    "steps behind": {"base": "tinyllama", "set": {
        "normalizer": sequence("normalizers", {"type": "NFD"}),
        "pre_tokenizer": sequence("pretokenizers", metaspace(prepend_scheme="first", split=False),
                                  SPLIT, DIGITS)}},
    "compatible": {"base": "llama2", "set": {
        "normalizer": sequence("normalizers", {"type": "NFKC"}, replace({"Regex": r"\s{2,}"}, " "),
                               replace({"String": "e"}, ""), PREPEND, TO_MARK)}},
    "decomposed": {"base": "llama2", "set": {
        "normalizer": sequence("normalizers", PREPEND, {"type": "NFKD"}, TO_MARK,
                               replace({"Regex": r"\p{Mn}"}, ""))}},
    "only prepend": {"base": "llama2", "set": {"normalizer": PREPEND}},
    "some bytes": {"base": "llama2", "without": BYTES[0xe3:] + BYTES[:16]},
    "some bytes, unknown apart": {"base": "llama2", "without": BYTES[0xd0:0xe3],
                                  "set": {"model.fuse_unk": False}},
    "no fallback": {"base": "tinyllama", "set": {"model.byte_fallback": False}},
    "unknown apart": {"base": "tinyllama",
                      "set": {"model.byte_fallback": False, "model.fuse_unk": False}},
    "whole words": {"base": "tinyllama", "set": {
        "pre_tokenizer": metaspace(prepend_scheme="first", split=True),
        "model.ignore_merges": True,
        "decoder": sequence("decoders", FROM_MARK, FALLBACK, FUSE, dict(STRIP, start=3))}},
}


def train(normalizer, pre_tokenizer, vocabulary):
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizer
    if pre_tokenizer is not None:
        made.pre_tokenizer = pre_tokenizer
    made.train(training_files(), trainers.BpeTrainer(
        vocab_size=vocabulary, show_progress=False, special_tokens=SPECIAL + BYTES,
        limit_alphabet=110, max_token_length=16))
    return json.loads(made.to_str())


def added(data, content, special=False, **flags):
    have = {entry["content"]: entry["id"] for entry in data["added_tokens"]} | data["model"]["vocab"]
    id_ = have.get(content, max(have.values()) + 1)
    defaults = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special}
    return {"id": id_, "content": content, **defaults, **flags, "special": special}


def finish(data, pairs):
    """Special and other added tokens, template and decoder; every seventh merge that no other one
    needs is taken out, so that tokens exist that only a look-up of the whole word finds."""
    data["added_tokens"] = []
    for content in SPECIAL:
        data["added_tokens"].append(added(data, content, special=True))
    for content, flags in [("<word>", {"single_word": True, "normalized": False}),
                           ("word", {"single_word": True}), ("<left>", {"lstrip": True}),
                           ("<right>", {"rstrip": True, "normalized": False}),
                           ("<both>", {"lstrip": True, "rstrip": True, "normalized": False}),
                           ("<abc>", {}), ("    ", {"normalized": False}), ("caf\u00e9", {}),
                           ("<|end" + MARK, {"normalized": False})]:
        data["added_tokens"].append(added(data, content, **flags))
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
    data["decoder"] = sequence("decoders", FROM_MARK, FALLBACK, FUSE, STRIP)
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in data["model"]["merges"]]
    needed = {part for pair in merges for part in pair}
    merges = [pair for i, pair in enumerate(merges) if i % 7 != 3 or pair[0] + pair[1] in needed]
    data["model"]["merges"] = merges if pairs else [" ".join(pair) for pair in merges]
    return data


def make_llama2():
    data = train(normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)]),
                 None, 1500)
    return finish(data, pairs=False)


def make_tinyllama():
    data = train(None, pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="first"), 1100)
    data["pre_tokenizer"] = metaspace(prepend_scheme="first", split=False)
    return finish(data, pairs=True)


def variant_of(bases, variant):
    data = copy.deepcopy(bases[variant["base"]])
    for path, value in variant.get("set", {}).items():
        *parents, last = path.split(".")
        part = data
        for key in parents:
            part = part[key]
        part[last] = value
    for token in variant.get("without", []):
        data["model"]["vocab"]["no " + token] = data["model"]["vocab"].pop(token)
    return Tokenizer.from_str(json.dumps(data))


def hash_text(text, hash_):
    data = text.encode()
    hash_ = fnv(len(data), hash_)
    for byte in data:
        hash_ = ((hash_ ^ byte) * 0x100000001B3) & ((1 << 64) - 1)
    return hash_


def hash_decoded(made, lists, hash_):
    for skip in (True, False):
        for text in made.decode_batch(lists, skip_special_tokens=skip):
            hash_ = hash_text(text, hash_)
    return hash_


def random_lists(random, size):
    """Without the tokens of bytes 0x80 and up (259 - 128 of them begin at 131): what cannot be part
    of a character is printed in another way there."""
    lists = []
    for _ in range(LISTS):
        ids = (random.below(size) for _ in range(1 + random.below(16)))
        lists.append([id_ for id_ in ids if not 131 <= id_ < 259])
    return lists


def expect(made, variant, source, seed):
    random, ids_hashes, text_hashes = Random(seed), [], []
    for _ in range(variant.get("strings", FEW) // BATCH):
        texts = [make_text(random, source).decode("utf-8", "replace") for _ in range(BATCH)]
        lists = [encoding.ids for encoding in made.encode_batch(texts)]
        hash_ = 0xCBF29CE484222325
        for ids in lists:
            hash_ = fnv(len(ids), hash_)
            for id_ in ids:
                hash_ = fnv(id_, hash_)
        ids_hashes.append(f"{hash_:016x}")
        text_hashes.append(f"{hash_decoded(made, lists, 0xCBF29CE484222325):016x}")
    size = 1 + max(made.get_vocab(with_added_tokens=True).values())
    lists = random_lists(random, size)
    by_hand = [{"text": text, "ids": made.encode(text, add_special_tokens=False).ids}
               for text in source["by_hand"][:24]] if "strings" in variant else []
    return {**variant, "seed": seed, "batch": BATCH, "size": size, "hashes": ids_hashes,
            "decoded": text_hashes, "lists": LISTS,
            "lists_decoded": f"{hash_decoded(made, lists, 0xCBF29CE484222325):016x}",
            "by_hand": by_hand}


def main():
    source = json.loads((OUT / "texts.json").read_text())
    source["fragments"] += MORE
    if len(sys.argv) == 4 and sys.argv[1] == "--show":
        bases = {name: json.loads((OUT / f"{name}.tokenizer.json").read_text())
                 for name in ("llama2", "tinyllama")}
        made = variant_of(bases, VARIANTS[sys.argv[2]])
        random = Random(101 + list(VARIANTS).index(sys.argv[2]))
        for _ in range(int(sys.argv[3]) + 1):
            text = make_text(random, source)
        encoding = made.encode(text.decode("utf-8", "replace"))
        print(text, encoding.ids, encoding.tokens, repr(made.decode(encoding.ids)), sep="\n")
        return
    if sys.argv[1:] == ["--train"]:
        for name, make in (("llama2", make_llama2), ("tinyllama", make_tinyllama)):
            (OUT / f"{name}.tokenizer.json").write_text(
                json.dumps(make(), ensure_ascii=False, separators=(",", ":")) + "\n")
    bases = {name: json.loads((OUT / f"{name}.tokenizer.json").read_text())
             for name in ("llama2", "tinyllama")}
    expected = {"made_with": f"tokenizers {tokenizers.__version__}", "more": MORE}
    for number, (name, variant) in enumerate(VARIANTS.items()):
        expected[name] = expect(variant_of(bases, variant), variant, source, 101 + number)
        print(name)
    (OUT / "sentencepiece.json").write_text(json.dumps(expected, indent=0) + "\n")


if __name__ == "__main__":
    main()
