#!/usr/bin/env python3
"""Byte-level BPE tokenizer of models/prose.

    train_tokenizer.py TEXT_DIR MODEL_DIR

Reads TEXT_DIR/train.txt; writes MODEL_DIR/tokenizer.json and tokenizer_config.json,
and the token streams TEXT_DIR/train.bin and heldout.bin (uint16, little endian; in
train.bin every document starts with <|endoftext|>, heldout.bin is the whole file
without any).
"""
import json, os, sys

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB, SEP, CONTEXT = 4096, "<|endoftext|>", 512


def main(text_dir, model_dir):
    with open(os.path.join(text_dir, "train.txt"), encoding="utf-8") as f:
        docs = f.read().rstrip("\n").split(f"\n{SEP}\n")
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(docs, trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[SEP], min_frequency=2, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    bos = tok.token_to_id(SEP)
    assert bos == 0 and tok.get_vocab_size() == VOCAB
    tok.post_processor = processors.TemplateProcessing(
        single=f"{SEP} $A", pair=f"{SEP} $A {SEP} $B:1", special_tokens=[(SEP, bos)])
    os.makedirs(model_dir, exist_ok=True)
    tok.save(os.path.join(model_dir, "tokenizer.json"))
    with open(os.path.join(model_dir, "tokenizer_config.json"), "w") as f:
        json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SEP, "eos_token": SEP,
                   "unk_token": None, "model_max_length": CONTEXT,
                   "clean_up_tokenization_spaces": False}, f, indent=2)
        f.write("\n")

    stream = []
    for i in range(0, len(docs), 1000):                # the template puts <|endoftext|> first
        for e in tok.encode_batch(docs[i:i + 1000]):
            stream.append(np.array(e.ids, dtype="<u2"))
    train = np.concatenate(stream)
    train.tofile(os.path.join(text_dir, "train.bin"))
    with open(os.path.join(text_dir, "heldout.txt"), encoding="utf-8") as f:
        text = f.read()
    held = np.array(tok.encode(text, add_special_tokens=False).ids, dtype="<u2")
    assert tok.decode(held.tolist()) == text
    held.tofile(os.path.join(text_dir, "heldout.bin"))
    print(f"{len(train)} training tokens, {len(held)} held-out tokens, "
          f"{len(text.encode()) / len(held):.3f} bytes a token")


if __name__ == "__main__":
    main(*sys.argv[1:3])
