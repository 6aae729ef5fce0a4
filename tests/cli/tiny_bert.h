/* A small random BERT folder as sentence-transformers keeps one: two layers, hidden 64, 2 heads of
 * 32, FFN 128, texts of at most 24 tokens; WordPiece of single letters. Kinds: "bert";
 * "bert-dense-module" has a module that is refused, "bert-plain" no modules at all, "bert-nan" a
 * NaN in one weight. */
#ifndef TESTS_CLI_TINY_BERT_H
#define TESTS_CLI_TINY_BERT_H

#include "cli/tiny_model.h"

enum { TINY_BERT_HIDDEN = 64, TINY_BERT_FFN = 128, TINY_BERT_VOCABULARY = 5 + 2 * 26 + 10 };

static inline void tiny_bert_text(const tiny_model *model, const char *name, const char *text)
{
    FILE *file = tiny_open_file(model, name);
    fputs(text, file);
    tiny_close_file(file);
}

static inline void tiny_bert_config(const tiny_model *model)
{
    char text[1024];
    snprintf(text, sizeof text,
             "{\"architectures\": [\"BertModel\"], \"model_type\": \"bert\", \"hidden_size\": %d,\n"
             " \"intermediate_size\": %d, \"num_hidden_layers\": 2, \"num_attention_heads\": 2,\n"
             " \"hidden_act\": \"gelu\", \"layer_norm_eps\": 1e-12, \"type_vocab_size\": 2,\n"
             " \"max_position_embeddings\": 32, \"vocab_size\": %d}\n",
             TINY_BERT_HIDDEN, TINY_BERT_FFN, TINY_BERT_VOCABULARY);
    tiny_bert_text(model, "config.json", text);
}

static inline void tiny_bert_modules(const tiny_model *model)
{
    static const char pooling[] =
        "[{\"idx\": 0, \"name\": \"0\", \"path\": \"\", \"type\": "
        "\"sentence_transformers.models.Transformer\"},\n {\"idx\": 1, \"name\": \"1\", \"path\": "
        "\"1_Pooling\", \"type\": \"sentence_transformers.models.Pooling\"},\n {\"idx\": 2, "
        "\"name\": \"2\", \"path\": \"2_%s\", \"type\": \"sentence_transformers.models.%s\"}]\n";
    char text[1024], folder[4096];
    const char *last = strcmp(model->kind, "bert-dense-module") == 0 ? "Dense" : "Normalize";
    if (strcmp(model->kind, "bert-plain") == 0) {
        return;
    }
    snprintf(text, sizeof text, pooling, last, last);
    tiny_bert_text(model, "modules.json", text);
    tiny_bert_text(model, "sentence_bert_config.json", "{\"max_seq_length\": 24}\n");
    snprintf(folder, sizeof folder, "%s/1_Pooling", model->folder);
    if (mkdir(folder, 0777) != 0) {
        perror(folder);
        abort();
    }
    tiny_bert_text(model, "1_Pooling/config.json",
                   "{\"word_embedding_dimension\": 64, \"pooling_mode_mean_tokens\": true}\n");
}

static inline void tiny_bert_tokenizer(const tiny_model *model)
{
    static const char *const special[] = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"};
    FILE *file = tiny_open_file(model, "tokenizer.json");
    fputs("{\"version\": \"1.0\", \"truncation\": null, \"padding\": null, \"added_tokens\": [], "
          "\"normalizer\": {\"type\": \"BertNormalizer\", \"clean_text\": true, "
          "\"handle_chinese_chars\": true, \"strip_accents\": null, \"lowercase\": true},\n "
          "\"pre_tokenizer\": {\"type\": \"BertPreTokenizer\"}, \"post_processor\": {\"type\": "
          "\"BertProcessing\", \"sep\": [\"[SEP]\", 3], \"cls\": [\"[CLS]\", 2]},\n \"decoder\": "
          "{\"type\": \"WordPiece\", \"prefix\": \"##\", \"cleanup\": true}, \"model\": {\"type\": "
          "\"WordPiece\", \"unk_token\": \"[UNK]\", \"continuing_subword_prefix\": \"##\", "
          "\"max_input_chars_per_word\": 100, \"vocab\": {",
          file);
    for (int i = 0; i < 5; i++) {
        fprintf(file, "\"%s\": %d, ", special[i], i);
    }
    for (int i = 0; i < 26; i++) {
        fprintf(file, "\"%c\": %d, \"##%c\": %d, ", 'a' + i, 5 + i, 'a' + i, 31 + i);
    }
    for (int i = 0; i < 10; i++) {
        fprintf(file, "\"%d\": %d%s", i, 57 + i, i < 9 ? ", " : "}}}\n");
    }
    tiny_close_file(file);
}

static inline void tiny_bert_linear(tiny_model *model, int out, int in, int layer, const char *name)
{
    tiny_add(model, out, in, "encoder.layer.%d.%s.weight", layer, name);
    tiny_add(model, out, 0, "encoder.layer.%d.%s.bias", layer, name);
}

static inline void tiny_bert_tensors(tiny_model *model)
{
    enum { H = TINY_BERT_HIDDEN, F = TINY_BERT_FFN };
    tiny_add(model, TINY_BERT_VOCABULARY, H, "embeddings.word_embeddings.weight");
    tiny_add(model, 32, H, "embeddings.position_embeddings.weight");
    tiny_add(model, 2, H, "embeddings.token_type_embeddings.weight");
    tiny_add(model, H, 0, "embeddings.LayerNorm.weight");
    tiny_add(model, H, 0, "embeddings.LayerNorm.bias");
    for (int layer = 0; layer < 2; layer++) {
        tiny_bert_linear(model, H, H, layer, "attention.self.query");
        tiny_bert_linear(model, H, H, layer, "attention.self.key");
        tiny_bert_linear(model, H, H, layer, "attention.self.value");
        tiny_bert_linear(model, H, H, layer, "attention.output.dense");
        tiny_bert_linear(model, H, 0, layer, "attention.output.LayerNorm");
        tiny_bert_linear(model, F, H, layer, "intermediate.dense");
        tiny_bert_linear(model, H, F, layer, "output.dense");
        tiny_bert_linear(model, H, 0, layer, "output.LayerNorm");
    }
    tiny_add(model, H, H, "pooler.dense.weight");
    tiny_add(model, H, 0, "pooler.dense.bias");
}

static inline bool tiny_bert_write(const char *folder, const char *kind)
{
    tiny_model model = {.folder = folder, .kind = kind, .vocabulary = TINY_BERT_VOCABULARY};
    if (mkdir(folder, 0777) != 0) {
        perror(folder);
        return false;
    }
    tiny_bert_config(&model);
    tiny_bert_modules(&model);
    tiny_bert_tokenizer(&model);
    tiny_bert_tensors(&model);
    tiny_write_weights(&model);
    return true;
}

#endif
