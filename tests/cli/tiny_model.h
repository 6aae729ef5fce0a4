/* A small random Llama folder, so that tests need no trained model.
 *
 * Two layers, hidden 64, 2 heads of 32 (1 of keys and values), FFN 176, context 128, bf16, tied
 * embedding, tokens = the 256 bytes, <s> and </s>. Kinds: "plain"; "nan" has a NaN in one weight,
 * "vocabulary" two more tokens, "no-bos" no template. Uses libc only: it must not share a fault
 * with the library. */
#ifndef TESTS_CLI_TINY_MODEL_H
#define TESTS_CLI_TINY_MODEL_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* A test that needs a smaller one still defines these before. */
#ifndef TINY_HIDDEN_SIZE
#define TINY_HIDDEN_SIZE 64
#define TINY_FFN_SIZE 176
#define TINY_LAYER_COUNT 2
#endif

enum {
    TINY_HIDDEN = TINY_HIDDEN_SIZE,
    TINY_FFN = TINY_FFN_SIZE,
    TINY_LAYERS = TINY_LAYER_COUNT,
    TINY_KV = TINY_HIDDEN / 2,
    TINY_MAX_TENSORS = 64
};

typedef struct tiny_tensor {
    char name[96];
    int rows, columns; /* columns 0: rank 1 */
    const char *shape; /* of another rank, as JSON prints it; NULL: rows and columns */
    size_t begin, end;
} tiny_tensor;

typedef struct tiny_model {
    const char *folder, *kind;
    int vocabulary;
    tiny_tensor tensors[TINY_MAX_TENSORS];
    int count;
    size_t bytes;
} tiny_model;

static inline FILE *tiny_open_file(const tiny_model *model, const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", model->folder, name);
    FILE *file = fopen(path, "wb");
    if (file == NULL) {
        perror(path);
        abort();
    }
    return file;
}

static inline void tiny_close_file(FILE *file)
{
    if (ferror(file) || fclose(file) != 0) {
        perror("write");
        abort();
    }
}

static inline void tiny_write_config(const tiny_model *model)
{
    FILE *file = tiny_open_file(model, "config.json");
    fprintf(
        file,
        "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\",\n"
        " \"hidden_size\": %d, \"intermediate_size\": %d, \"num_hidden_layers\": %d,\n"
        " \"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"head_dim\": %d,\n"
        " \"hidden_act\": \"silu\", \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0,\n"
        " \"max_position_embeddings\": 128, \"vocab_size\": %d, \"bos_token_id\": 256,\n"
        " \"eos_token_id\": 257, \"tie_word_embeddings\": true, \"torch_dtype\": \"bfloat16\"}\n",
        TINY_HIDDEN, TINY_FFN, TINY_LAYERS, TINY_KV, model->vocabulary);
    tiny_close_file(file);
    file = tiny_open_file(model, "generation_config.json");
    fputs("{\"bos_token_id\": 256, \"eos_token_id\": 257}\n", file);
    tiny_close_file(file);
}

/* ---- tokenizer.json ---- */

/* The GPT-2 alphabet: printable Latin-1 bytes stand for themselves, the others follow from U+0100.
 */
static inline void tiny_print_byte(FILE *file, int byte)
{
    int others = 0;
    for (int b = 0; b <= byte; b++) {
        bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        others += !printable;
        if (b == byte) {
            int code = printable ? b : 0xff + others;
            if (code == '"' || code == '\\') {
                fprintf(file, "\\%c", code);
            } else if (code < 0x80) {
                fputc(code, file);
            } else {
                fprintf(file, "\\u%04x", (unsigned)code);
            }
        }
    }
}

static inline void tiny_write_tokenizer(const tiny_model *model)
{
    static const char special[] =
        "{\"id\": %d, \"content\": \"%s\", \"single_word\": false, \"lstrip\": false, "
        "\"rstrip\": false, \"normalized\": false, \"special\": true}";
    FILE *file = tiny_open_file(model, "tokenizer.json");
    fputs("{\"version\": \"1.0\", \"truncation\": null, \"padding\": null, \"added_tokens\": [",
          file);
    fprintf(file, special, 256, "<s>");
    fputs(", ", file);
    fprintf(file, special, 257, "</s>");
    fputs("], \"normalizer\": null, \"pre_tokenizer\": {\"type\": \"ByteLevel\", "
          "\"add_prefix_space\": "
          "false, \"trim_offsets\": true, \"use_regex\": true},\n \"post_processor\": ",
          file);
    if (strcmp(model->kind, "no-bos") == 0) {
        fputs("null", file);
    } else {
        fputs(
            "{\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"<s>\", "
            "\"type_id\": 0}}, {\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}], \"pair\": "
            "[{\"SpecialToken\": {\"id\": \"<s>\", \"type_id\": 0}}, {\"Sequence\": {\"id\": "
            "\"A\", "
            "\"type_id\": 0}}, {\"Sequence\": {\"id\": \"B\", \"type_id\": 1}}], "
            "\"special_tokens\": {\"<s>\": {\"id\": \"<s>\", \"ids\": [256], \"tokens\": "
            "[\"<s>\"]}}}",
            file);
    }
    fputs(
        ",\n \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": "
        "true, \"use_regex\": true},\n \"model\": {\"type\": \"BPE\", \"dropout\": null, "
        "\"unk_token\": null, \"continuing_subword_prefix\": null, \"end_of_word_suffix\": null, "
        "\"fuse_unk\": false, \"byte_fallback\": false, \"vocab\": {",
        file);
    for (int byte = 0; byte < 256; byte++) {
        fputs(byte > 0 ? ", \"" : "\"", file);
        tiny_print_byte(file, byte);
        fprintf(file, "\": %d", byte);
    }
    fputs(", \"<s>\": 256, \"</s>\": 257}, \"merges\": []}}\n", file);
    tiny_close_file(file);
}

/* ---- model.safetensors ---- */

static inline void tiny_add(tiny_model *model, int rows, int columns, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static inline void tiny_add(tiny_model *model, int rows, int columns, const char *format, ...)
{
    tiny_tensor *tensor = &model->tensors[model->count++];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(tensor->name, sizeof tensor->name, format, arguments);
    va_end(arguments);
    tensor->rows = rows;
    tensor->columns = columns;
    tensor->begin = model->bytes;
    model->bytes += (size_t)rows * (size_t)(columns > 0 ? columns : 1) * 2;
    tensor->end = model->bytes;
}

static inline void tiny_add_tensors(tiny_model *model)
{
    tiny_add(model, model->vocabulary, TINY_HIDDEN, "model.embed_tokens.weight");
    for (int layer = 0; layer < TINY_LAYERS; layer++) {
        tiny_add(model, TINY_HIDDEN, 0, "model.layers.%d.input_layernorm.weight", layer);
        tiny_add(model, TINY_HIDDEN, TINY_HIDDEN, "model.layers.%d.self_attn.q_proj.weight", layer);
        tiny_add(model, TINY_KV, TINY_HIDDEN, "model.layers.%d.self_attn.k_proj.weight", layer);
        tiny_add(model, TINY_KV, TINY_HIDDEN, "model.layers.%d.self_attn.v_proj.weight", layer);
        tiny_add(model, TINY_HIDDEN, TINY_HIDDEN, "model.layers.%d.self_attn.o_proj.weight", layer);
        tiny_add(model, TINY_HIDDEN, 0, "model.layers.%d.post_attention_layernorm.weight", layer);
        tiny_add(model, TINY_FFN, TINY_HIDDEN, "model.layers.%d.mlp.gate_proj.weight", layer);
        tiny_add(model, TINY_FFN, TINY_HIDDEN, "model.layers.%d.mlp.up_proj.weight", layer);
        tiny_add(model, TINY_HIDDEN, TINY_FFN, "model.layers.%d.mlp.down_proj.weight", layer);
    }
    tiny_add(model, TINY_HIDDEN, 0, "model.norm.weight");
}

static inline uint64_t tiny_next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* A sum of uniform numbers, cut to bf16. */
static inline uint16_t tiny_random_weight(uint64_t *state)
{
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        sum += (float)(tiny_next_random(state) >> 40) * 0x1p-23f - 1.0f;
    }
    sum *= 0.15f;
    uint32_t bits;
    memcpy(&bits, &sum, sizeof bits);
    return (uint16_t)(bits >> 16);
}

static inline void tiny_write_values(const tiny_model *model, FILE *file)
{
    uint64_t state = 42;
    for (int i = 0; i < model->count; i++) {
        const tiny_tensor *tensor = &model->tensors[i];
        for (size_t at = tensor->begin; at < tensor->end; at += 2) {
            uint16_t value = tensor->columns > 0 ? tiny_random_weight(&state) : 0x3f80;
            bool is_marked =
                strstr(model->kind, "nan") != NULL && at == tensor->begin &&
                (strcmp(tensor->name, "model.layers.1.mlp.up_proj.weight") == 0 ||
                 strcmp(tensor->name, "encoder.layer.1.intermediate.dense.weight") == 0);
            value = is_marked ? 0x7fc1 : value;
            unsigned char bytes[2] = {(unsigned char)(value & 0xff), (unsigned char)(value >> 8)};
            fwrite(bytes, 1, 2, file);
        }
    }
}

static inline void tiny_write_weights(tiny_model *model)
{
    char *header = NULL;
    size_t length = 0;
    FILE *text = open_memstream(&header, &length);
    fputs("{\"__metadata__\":{\"format\":\"pt\"}", text);
    for (int i = 0; i < model->count; i++) {
        const tiny_tensor *tensor = &model->tensors[i];
        fprintf(text, ",\"%s\":{\"dtype\":\"BF16\",\"shape\":", tensor->name);
        if (tensor->shape != NULL) {
            fputs(tensor->shape, text);
        } else if (tensor->columns > 0) {
            fprintf(text, "[%d,%d]", tensor->rows, tensor->columns);
        } else {
            fprintf(text, "[%d]", tensor->rows);
        }
        fprintf(text, ",\"data_offsets\":[%zu,%zu]}", tensor->begin, tensor->end);
    }
    fputc('}', text);
    fflush(text);
    for (size_t pad = length % 8; pad != 0 && pad < 8; pad++) {
        fputc(' ', text);
    }
    tiny_close_file(text);
    FILE *file = tiny_open_file(model, "model.safetensors");
    for (int i = 0; i < 8; i++) {
        fputc((int)(length >> 8 * i & 0xff), file);
    }
    fwrite(header, 1, length, file);
    free(header);
    tiny_write_values(model, file);
    tiny_close_file(file);
}

/* Makes the folder; false when it is there already or cannot be made. */
static inline bool tiny_model_write(const char *folder, const char *kind)
{
    tiny_model model = {.folder = folder, .kind = kind};
    model.vocabulary = strcmp(kind, "vocabulary") == 0 ? 260 : 258;
    if (mkdir(folder, 0777) != 0) {
        perror(folder);
        return false;
    }
    tiny_write_config(&model);
    tiny_write_tokenizer(&model);
    tiny_add_tensors(&model);
    tiny_write_weights(&model);
    return true;
}

#endif
