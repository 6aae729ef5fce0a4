/* random_checkpoint FOLDER LAYERS: a bf16 checkpoint of the shape of a 7B Llama (hidden 4096, FFN
 * 11008, vocabulary 32000) with so many layers, 404.8 MB each and 524 MB of embedding and head
 * besides. Values are random with a spread of exponents as trained weights have. Not synced: the
 * one who measures does that. libc only. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { HIDDEN = 4096, FFN = 11008, VOCABULARY = 32000, BLOCK = 1 << 16 };

typedef struct tensor {
    char name[96];
    int rows, columns; /* columns 0: rank 1 */
} tensor;

static tensor tensors[1024];
static int count;

static void add(const char *name, int rows, int columns)
{
    tensor *added = &tensors[count++];
    snprintf(added->name, sizeof added->name, "%s", name);
    added->rows = rows;
    added->columns = columns;
}

static void add_layer(int layer)
{
    static const struct {
        const char *name;
        int rows, columns;
    } parts[] = {{"input_layernorm", HIDDEN, 0},          {"mlp.down_proj", HIDDEN, FFN},
                 {"mlp.gate_proj", FFN, HIDDEN},          {"mlp.up_proj", FFN, HIDDEN},
                 {"post_attention_layernorm", HIDDEN, 0}, {"self_attn.k_proj", HIDDEN, HIDDEN},
                 {"self_attn.o_proj", HIDDEN, HIDDEN},    {"self_attn.q_proj", HIDDEN, HIDDEN},
                 {"self_attn.v_proj", HIDDEN, HIDDEN}};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        char name[96];
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, parts[i].name);
        add(name, parts[i].rows, parts[i].columns);
    }
}

static uint64_t elements(const tensor *one)
{
    return (uint64_t)one->rows * (uint64_t)(one->columns > 0 ? one->columns : 1);
}

static uint64_t random_bits(void)
{
    static uint64_t state = 1;
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Four bf16 of |x| between 2^-12 and 2^-4: sign and mantissa as they come, three bits of exponent.
 */
static uint64_t random_values(void)
{
    return (random_bits() & 0x83ff83ff83ff83ffu) + 0x3980398039803980u;
}

static FILE *open_file(const char *folder, const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    if (file == NULL) {
        perror(path);
        exit(1);
    }
    return file;
}

static void close_file(FILE *file)
{
    bool failed = ferror(file) != 0;
    if (fclose(file) != 0 || failed) {
        perror("write");
        exit(1);
    }
}

static void write_header(FILE *file)
{
    static char text[1 << 18];
    size_t used = 0;
    uint64_t at = 0;
    for (int i = 0; i < count; i++) {
        const tensor *one = &tensors[i];
        uint64_t end = at + 2 * elements(one);
        char shape[48];
        snprintf(shape, sizeof shape, one->columns > 0 ? "%d,%d" : "%d", one->rows, one->columns);
        used += (size_t)snprintf(
            text + used, sizeof text - used,
            "%c\"%s\":{\"dtype\":\"BF16\",\"shape\":[%s],\"data_offsets\":[%llu,"
            "%llu]}",
            i == 0 ? '{' : ',', one->name, shape, (unsigned long long)at, (unsigned long long)end);
        at = end;
    }
    text[used++] = '}';
    while (used % 8 != 0) {
        text[used++] = ' ';
    }
    uint64_t bytes = used;
    fwrite(&bytes, 8, 1, file);
    fwrite(text, 1, used, file);
}

static void write_values(FILE *file)
{
    static uint64_t block[BLOCK];
    for (int i = 0; i < count; i++) {
        for (uint64_t left = elements(&tensors[i]) / 4; left > 0;) {
            uint64_t now = left < BLOCK ? left : BLOCK;
            for (uint64_t j = 0; j < now; j++) {
                block[j] = random_values();
            }
            fwrite(block, 8, now, file);
            left -= now;
        }
    }
}

int main(int argc, char **argv)
{
    int layers = argc == 3 ? atoi(argv[2]) : 0;
    if (layers < 1 || layers > 80) {
        fputs("usage: random_checkpoint FOLDER LAYERS\n", stderr);
        return 2;
    }
    mkdir(argv[1], 0777);
    FILE *config = open_file(argv[1], "config.json");
    fprintf(
        config,
        "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": "
        "%d,\n \"intermediate_size\": %d, \"num_hidden_layers\": %d, \"num_attention_heads\": 32,\n"
        " \"num_key_value_heads\": 32, \"hidden_act\": \"silu\", \"rms_norm_eps\": 1e-05,\n"
        " \"rope_theta\": 10000.0, \"max_position_embeddings\": 4096, \"vocab_size\": %d,\n"
        " \"tie_word_embeddings\": false, \"torch_dtype\": \"bfloat16\"}\n",
        HIDDEN, FFN, layers, VOCABULARY);
    close_file(config);
    add("lm_head.weight", VOCABULARY, HIDDEN);
    add("model.embed_tokens.weight", VOCABULARY, HIDDEN);
    for (int layer = 0; layer < layers; layer++) {
        add_layer(layer);
    }
    add("model.norm.weight", HIDDEN, 0);
    FILE *weights = open_file(argv[1], "model.safetensors");
    write_header(weights);
    write_values(weights);
    close_file(weights);
    return 0;
}
