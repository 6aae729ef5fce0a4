#!/usr/bin/env python3
"""Golden files of the WordPiece tokenizers: one small file, variants of it, and what `tokenizers` makes of
115,200 texts, of 7,680 lists of random ids, and of every character of Unicode.

A variant is the file with parts put in, "path": value; the test does the same. Texts are those of
make_tokenizers.py with more fragments and ranges; a hash per 256 of them covers the ids, another one what
the ids decode to. Every character but surrogates and NUL is put between letters and marks, and a hash per
plane and set of flags covers what BertNormalizer makes of that and BertPreTokenizer's words.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install tokenizers
    /tmp/venv/bin/python tools/golden/make_wordpiece.py [--show VARIANT NUMBER]
"""
import copy
import json
import sys

import tokenizers
from make_sentencepiece import added, hash_decoded, hash_text, replace, sequence
from make_tokenizers import BATCH, OUT, Random, fnv, make_text, training_files
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

FEW, MANY, LISTS = 2560, 40960, 512
START = 0xCBF29CE484222325
MORE = ["##ing", "##", "[MASK]", "[CLS]", "[mask]", "[UNK]", "\u0130stanbul", "\u03a3\u03a3", "\u1e9e",
        "\u00c5ngstr\u00f6m", "\u2460", "\u4e2d\u6587\u5b57", "\ud55c\uad6d\uc5b4", "\u3042\u30a2",
        "don't", "it's", "do not", "x" * 101, "\u00e9" * 100, "supercalifragilisticexpialidocious",
        "Hello, world!", "U.S.A.", "$5.00", "a+b=c", "e\u0301\u0323\u0316", "\u302e\u0323\u0300",
        "\u0897\u0323\u302e", "\u1a58\u061d", "\U0002ceb0", "\U0002b830", "\ue000", "\U000e0001"]
RANGES = [[0xA0, 0x24F], [0x250, 0x2AF], [0x370, 0x58F], [0x590, 0x8FF], [0x900, 0x109F],
          [0x10A0, 0x139F], [0x1680, 0x1CFF], [0x1D00, 0x20CF], [0x2000, 0x206F], [0x20D0, 0x2BFF],
          [0x2C00, 0x2FFF], [0x3000, 0x33FF], [0xA000, 0xABFF], [0xF900, 0xFFEF], [0x10000, 0x1FFFF],
          [0x2F800, 0x2FA1F], [0x1, 0xD7FF]]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def bert(**flags):
    return {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
            "strip_accents": None, "lowercase": True, **flags}


PRE = {"type": "BertPreTokenizer"}
PROCESSING = {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
VARIANTS = {
    "uncased": {"strings": MANY},
    "cased": {"strings": MANY, "set": {"normalizer": bert(lowercase=False),
                                       "post_processor": PROCESSING}},
    "accents apart": {"set": {"normalizer": bert(lowercase=False, strip_accents=True)}},
    "accents kept": {"set": {"normalizer": bert(strip_accents=False), "decoder": None}},
    "not cleaned": {"set": {"normalizer": bert(clean_text=False, handle_chinese_chars=False)}},
    "nothing done": {"set": {"normalizer": bert(clean_text=False, handle_chinese_chars=False,
                                                lowercase=False),
                             "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False}}},
    "no normalizer": {"set": {"normalizer": None, "post_processor": None}},
    "composed before": {"set": {"normalizer": sequence(
        "normalizers", {"type": "NFC"}, replace({"Regex": r"\d+"}, "0"), bert())}},
    "compatible before": {"set": {"normalizer": sequence(
        "normalizers", {"type": "NFKC"}, bert(lowercase=False))}},
    "compatible and apart": {"set": {"normalizer": sequence(
        "normalizers", {"type": "NFKD"}, bert(clean_text=False))}},
    "no pre_tokenizer": {"set": {"pre_tokenizer": None, "model.max_input_chars_per_word": 30}},
    "digits apart": {"set": {"pre_tokenizer": sequence(
        "pretokenizers", PRE, {"type": "Digits", "individual_digits": True})}},
    "short words": {"set": {"model.max_input_chars_per_word": 6}},
    "another prefix": {"set": {"model.continuing_subword_prefix": "#",
                               "decoder": {"type": "WordPiece", "prefix": "#", "cleanup": True}}},
    "no prefix": {"set": {"model.continuing_subword_prefix": "",
                          "decoder": {"type": "WordPiece", "prefix": "", "cleanup": True}}},
}
FLAGS = ["clean_text", "handle_chinese_chars", "strip_accents", "lowercase"]


def make_base(source):
    """Trained on Python's library and on generated texts, so that letters of many scripts have tokens."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=False)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    random = Random(11)
    texts = [make_text(random, source).decode("utf-8", "replace") for _ in range(6000)]
    texts += [text.lower() for text in texts] + [normalizers.NFD().normalize_str(t) for t in texts]
    for path in training_files():
        texts += open(path, encoding="utf-8").read().splitlines()
    made.train_from_iterator(texts, trainers.WordPieceTrainer(
        vocab_size=6000, show_progress=False, special_tokens=SPECIAL, limit_alphabet=1800))
    data = json.loads(made.to_str())
    # The trainer numbers equal counts as a hash table happens to list them.
    words = sorted(set(data["model"]["vocab"]) - set(SPECIAL))
    data["model"]["vocab"] = {token: id_ for id_, token in enumerate(SPECIAL + words)}
    data["normalizer"] = bert()
    data["added_tokens"] = []
    for content in SPECIAL:
        data["added_tokens"].append(added(data, content, special=True))
    for content, flags in [("<word>", {"single_word": True, "normalized": False}),
                           ("word", {"single_word": True}), ("<left>", {"lstrip": True}),
                           ("<right>", {"rstrip": True, "normalized": False}),
                           ("<both>", {"lstrip": True, "rstrip": True, "normalized": False}),
                           ("<Abc>", {}), ("caf\u00e9", {}), ("\u212b", {"normalized": False})]:
        data["added_tokens"].append(added(data, content, **flags))
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                           "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}}
    data["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    return data


def variant_of(base, variant):
    data = copy.deepcopy(base)
    for path, value in variant.get("set", {}).items():
        *parents, last = path.split(".")
        part = data
        for key in parents:
            part = part[key]
        part[last] = value
    return Tokenizer.from_str(json.dumps(data))


def expect(made, variant, source, seed):
    random, ids_hashes, text_hashes = Random(seed), [], []
    for _ in range(variant.get("strings", FEW) // BATCH):
        texts = [make_text(random, source).decode("utf-8", "replace") for _ in range(BATCH)]
        lists = [encoding.ids for encoding in made.encode_batch(texts)]
        hash_ = START
        for ids in lists:
            hash_ = fnv(len(ids), hash_)
            for id_ in ids:
                hash_ = fnv(id_, hash_)
        ids_hashes.append(f"{hash_:016x}")
        text_hashes.append(f"{hash_decoded(made, lists, START):016x}")
    size = 1 + max(made.get_vocab(with_added_tokens=True).values())
    lists = [[random.below(size) for _ in range(1 + random.below(16))] for _ in range(LISTS)]
    by_hand = [{"text": text, "ids": made.encode(text, add_special_tokens=False).ids}
               for text in source["by_hand"][:24]] if "strings" in variant else []
    return {**variant, "seed": seed, "batch": BATCH, "size": size, "hashes": ids_hashes,
            "decoded": text_hashes, "lists": LISTS,
            "lists_decoded": f"{hash_decoded(made, lists, START):016x}", "by_hand": by_hand}


def every_character():
    """Per set of flags (bits in the order of FLAGS) and plane, what 256 characters at a time become."""
    pre, planes = pre_tokenizers.BertPreTokenizer(), {}
    for bits in (0b1111, 0b0011, 0b0101, 0b1000, 0b0100):
        made = normalizers.BertNormalizer(**{flag: bool(bits >> i & 1)
                                             for i, flag in enumerate(FLAGS)})
        planes[str(bits)] = []
        for plane in range(17):
            hash_ = START
            for block in range(256):
                points = [point for point in range(plane << 16 | block << 8, (plane << 16 | block << 8)
                                                   + 256) if point and not 0xD800 <= point < 0xE000]
                text = "".join(f"A{chr(point)}\u0323\u302eb" for point in points)
                hash_ = hash_text(made.normalize_str(text), hash_)
            planes[str(bits)].append(f"{hash_:016x}")
    forms = {form: [] for form in ("NFC", "NFD", "NFKC", "NFKD")}
    for form, hashes in forms.items():
        made = getattr(normalizers, form)()
        for plane in range(17):
            hash_ = START
            for block in range(256):
                points = [point for point in range(plane << 16 | block << 8, (plane << 16 | block << 8)
                                                   + 256) if point and not 0xD800 <= point < 0xE000]
                text = "".join(f"A{chr(point)}\u0323\u302eb" for point in points)
                hash_ = hash_text(made.normalize_str(text), hash_)
            hashes.append(f"{hash_:016x}")
    words = []
    for plane in range(17):
        hash_ = START
        for block in range(256):
            first = plane << 16 | block << 8
            if 0xD800 <= first < 0xE000:
                continue
            text = "".join(f"a{chr(point)}" for point in range(first, first + 256) if point)
            for word, _ in pre.pre_tokenize_str(text):
                hash_ = hash_text(word, hash_)
        words.append(f"{hash_:016x}")
    return {"normalized": planes, "forms": forms, "words": words}


def main():
    source = json.loads((OUT / "texts.json").read_text())
    source["fragments"] += MORE
    source["ranges"] += RANGES
    path = OUT / "bert.tokenizer.json"
    if len(sys.argv) == 4 and sys.argv[1] == "--show":
        made = variant_of(json.loads(path.read_text()), VARIANTS[sys.argv[2]])
        random = Random(301 + list(VARIANTS).index(sys.argv[2]))
        for _ in range(int(sys.argv[3]) + 1):
            text = make_text(random, source)
        encoding = made.encode(text.decode("utf-8", "replace"))
        print(text, encoding.ids, encoding.tokens, repr(made.decode(encoding.ids)), sep="\n")
        return
    base = make_base(source)
    path.write_text(json.dumps(base, ensure_ascii=False, separators=(",", ":")) + "\n")
    expected = {"made_with": f"tokenizers {tokenizers.__version__}", "more": MORE, "ranges": RANGES,
                "characters": every_character(), "variants": {}}
    for number, (name, variant) in enumerate(VARIANTS.items()):
        expected["variants"][name] = expect(variant_of(base, variant), variant, source, 301 + number)
        print(name)
    (OUT / "wordpiece.json").write_text(json.dumps(expected, indent=0) + "\n")


if __name__ == "__main__":
    main()
