/* Writes a small random Llama folder, so that tests of the program need no trained model:
 *   make_tiny_model FOLDER [plain | nan | vocabulary | no-bos]
 *
 * Two layers, hidden 64, 2 heads of 32 (1 of keys and values), FFN 176, context 128, bf16, tied
 * embedding, tokens = the 256 bytes, <s> and </s>. "nan" puts a NaN into one weight, "vocabulary"
 * has two more tokens, "no-bos" no template. Uses libc only: it must not share a fault with the
 * library. */
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { HIDDEN = 64, FFN = 176, LAYERS = 2, KV = 32, MAX_TENSORS = 64 };

typedef struct tiny_tensor {
    char name[96];
    int rows, columns; /* columns 0: rank 1 */
    size_t begin, end;
} tiny_tensor;

typedef struct tiny_model {
    const char *folder, *kind;
    int vocabulary;
    tiny_tensor tensors[MAX_TENSORS];
    int count;
    size_t bytes;
} tiny_model;

static FILE *open_file(const tiny_model *model, const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", model->folder, name);
    FILE *file = fopen(path, "wb");
    if (file == NULL) {
        perror(path);
        exit(1);
    }
    return file;
}

static void close_file(FILE *file)
{
    if (ferror(file) || fclose(file) != 0) {
        perror("write");
        exit(1);
    }
}

static void write_config(const tiny_model *model)
{
    FILE *file = open_file(model, "config.json");
    fprintf(
        file,
        "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\",\n"
        " \"hidden_size\": %d, \"intermediate_size\": %d, \"num_hidden_layers\": %d,\n"
        " \"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"head_dim\": 32,\n"
        " \"hidden_act\": \"silu\", \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0,\n"
        " \"max_position_embeddings\": 128, \"vocab_size\": %d, \"bos_token_id\": 256,\n"
        " \"eos_token_id\": 257, \"tie_word_embeddings\": true, \"torch_dtype\": \"bfloat16\"}\n",
        HIDDEN, FFN, LAYERS, model->vocabulary);
    close_file(file);
    file = open_file(model, "generation_config.json");
    fputs("{\"bos_token_id\": 256, \"eos_token_id\": 257}\n", file);
    close_file(file);
}

/* ---- tokenizer.json ---- */

/* The GPT-2 alphabet: printable Latin-1 bytes stand for themselves, the others follow from U+0100.
 */
static void print_byte(FILE *file, int byte)
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

static void write_tokenizer(const tiny_model *model)
{
    static const char special[] =
        "{\"id\": %d, \"content\": \"%s\", \"single_word\": false, \"lstrip\": false, "
        "\"rstrip\": false, \"normalized\": false, \"special\": true}";
    FILE *file = open_file(model, "tokenizer.json");
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
        print_byte(file, byte);
        fprintf(file, "\": %d", byte);
    }
    fputs(", \"<s>\": 256, \"</s>\": 257}, \"merges\": []}}\n", file);
    close_file(file);
}

/* ---- model.safetensors ---- */

static void add(tiny_model *model, int rows, int columns, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static void add(tiny_model *model, int rows, int columns, const char *format, ...)
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

static void add_tensors(tiny_model *model)
{
    add(model, model->vocabulary, HIDDEN, "model.embed_tokens.weight");
    for (int layer = 0; layer < LAYERS; layer++) {
        add(model, HIDDEN, 0, "model.layers.%d.input_layernorm.weight", layer);
        add(model, HIDDEN, HIDDEN, "model.layers.%d.self_attn.q_proj.weight", layer);
        add(model, KV, HIDDEN, "model.layers.%d.self_attn.k_proj.weight", layer);
        add(model, KV, HIDDEN, "model.layers.%d.self_attn.v_proj.weight", layer);
        add(model, HIDDEN, HIDDEN, "model.layers.%d.self_attn.o_proj.weight", layer);
        add(model, HIDDEN, 0, "model.layers.%d.post_attention_layernorm.weight", layer);
        add(model, FFN, HIDDEN, "model.layers.%d.mlp.gate_proj.weight", layer);
        add(model, FFN, HIDDEN, "model.layers.%d.mlp.up_proj.weight", layer);
        add(model, HIDDEN, FFN, "model.layers.%d.mlp.down_proj.weight", layer);
    }
    add(model, HIDDEN, 0, "model.norm.weight");
}

static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* A sum of uniform numbers, cut to bf16. */
static uint16_t random_weight(uint64_t *state)
{
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        sum += (float)(next_random(state) >> 40) * 0x1p-23f - 1.0f;
    }
    sum *= 0.15f;
    uint32_t bits;
    memcpy(&bits, &sum, sizeof bits);
    return (uint16_t)(bits >> 16);
}

static void write_values(const tiny_model *model, FILE *file)
{
    uint64_t state = 42;
    for (int i = 0; i < model->count; i++) {
        const tiny_tensor *tensor = &model->tensors[i];
        for (size_t at = tensor->begin; at < tensor->end; at += 2) {
            uint16_t value = tensor->columns > 0 ? random_weight(&state) : 0x3f80;
            bool is_marked = strcmp(model->kind, "nan") == 0 && at == tensor->begin &&
                             strcmp(tensor->name, "model.layers.1.mlp.up_proj.weight") == 0;
            value = is_marked ? 0x7fc1 : value;
            unsigned char bytes[2] = {(unsigned char)(value & 0xff), (unsigned char)(value >> 8)};
            fwrite(bytes, 1, 2, file);
        }
    }
}

static void write_weights(tiny_model *model)
{
    char *header = NULL;
    size_t length = 0;
    add_tensors(model);
    FILE *text = open_memstream(&header, &length);
    fputs("{\"__metadata__\":{\"format\":\"pt\"}", text);
    for (int i = 0; i < model->count; i++) {
        const tiny_tensor *tensor = &model->tensors[i];
        fprintf(text, ",\"%s\":{\"dtype\":\"BF16\",\"shape\":[%d", tensor->name, tensor->rows);
        if (tensor->columns > 0) {
            fprintf(text, ",%d", tensor->columns);
        }
        fprintf(text, "],\"data_offsets\":[%zu,%zu]}", tensor->begin, tensor->end);
    }
    fputc('}', text);
    fflush(text);
    for (size_t pad = length % 8; pad != 0 && pad < 8; pad++) {
        fputc(' ', text);
    }
    close_file(text);
    FILE *file = open_file(model, "model.safetensors");
    for (int i = 0; i < 8; i++) {
        fputc((int)(length >> 8 * i & 0xff), file);
    }
    fwrite(header, 1, length, file);
    free(header);
    write_values(model, file);
    close_file(file);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fputs("usage: make_tiny_model FOLDER [plain | nan | vocabulary | no-bos]\n", stderr);
        return 2;
    }
    static tiny_model model;
    model.folder = argv[1];
    model.kind = argc > 2 ? argv[2] : "plain";
    model.vocabulary = strcmp(model.kind, "vocabulary") == 0 ? 260 : 258;
    if (mkdir(model.folder, 0777) != 0) {
        perror(model.folder);
        return 1;
    }
    write_config(&model);
    write_tokenizer(&model);
    write_weights(&model);
    return 0;
}
