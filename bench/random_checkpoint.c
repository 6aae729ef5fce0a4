/* random_checkpoint FOLDER LAYERS [HIDDEN FFN HEADS KV_HEADS VOCABULARY]: a bf16 checkpoint of a
 * Llama of that shape. Without the numbers that of the 7B one (4096 11008 32 32 32000), with so
 * many layers: 404.8 MB each and 524 MB of embedding and head besides. Values are random with a
 * spread of exponents as trained weights have. Not synced: the one who measures does that. libc
 * only. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { BLOCK = 1 << 16, MOST_LAYERS = 110, MOST = 1 << 20 };

typedef struct shape {
    int layers, hidden, ffn, heads, kv_heads, vocabulary;
} shape;

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

static void add_layer(const shape *of, int layer)
{
    const int hidden = of->hidden, ffn = of->ffn, kv = hidden / of->heads * of->kv_heads;
    const struct {
        const char *name;
        int rows, columns;
    } parts[] = {{"input_layernorm", hidden, 0},          {"mlp.down_proj", hidden, ffn},
                 {"mlp.gate_proj", ffn, hidden},          {"mlp.up_proj", ffn, hidden},
                 {"post_attention_layernorm", hidden, 0}, {"self_attn.k_proj", kv, hidden},
                 {"self_attn.o_proj", hidden, hidden},    {"self_attn.q_proj", hidden, hidden},
                 {"self_attn.v_proj", kv, hidden}};
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
        char sides[48];
        snprintf(sides, sizeof sides, one->columns > 0 ? "%d,%d" : "%d", one->rows, one->columns);
        used += (size_t)snprintf(
            text + used, sizeof text - used,
            "%c\"%s\":{\"dtype\":\"BF16\",\"shape\":[%s],\"data_offsets\":[%llu,"
            "%llu]}",
            i == 0 ? '{' : ',', one->name, sides, (unsigned long long)at, (unsigned long long)end);
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

/* False: not a shape. */
static bool read_shape(int argc, char **argv, shape *of)
{
    int *const numbers[] = {&of->layers, &of->hidden,   &of->ffn,
                            &of->heads,  &of->kv_heads, &of->vocabulary};
    if (argc != 3 && argc != 8) {
        return false;
    }
    for (int i = 2; i < argc; i++) {
        char *end;
        long number = strtol(argv[i], &end, 10);
        if (end == argv[i] || *end != '\0' || number < 1 || number > MOST) {
            return false;
        }
        *numbers[i - 2] = (int)number;
    }
    return of->layers <= MOST_LAYERS && of->hidden % 4 == 0 && of->ffn % 4 == 0 &&
           of->hidden % (2 * of->heads) == 0 && of->heads % of->kv_heads == 0;
}

static void write_config(const char *folder, const shape *of)
{
    FILE *config = open_file(folder, "config.json");
    fprintf(
        config,
        "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": "
        "%d,\n \"intermediate_size\": %d, \"num_hidden_layers\": %d, \"num_attention_heads\": %d,\n"
        " \"num_key_value_heads\": %d, \"hidden_act\": \"silu\", \"rms_norm_eps\": 1e-05,\n"
        " \"rope_theta\": 10000.0, \"max_position_embeddings\": 4096, \"vocab_size\": %d,\n"
        " \"tie_word_embeddings\": false, \"torch_dtype\": \"bfloat16\"}\n",
        of->hidden, of->ffn, of->layers, of->heads, of->kv_heads, of->vocabulary);
    close_file(config);
}

int main(int argc, char **argv)
{
    shape of = {0, 4096, 11008, 32, 32, 32000};
    if (!read_shape(argc, argv, &of)) {
        fprintf(stderr,
                "usage: random_checkpoint FOLDER LAYERS [HIDDEN FFN HEADS KV_HEADS VOCABULARY]\n"
                "at most %d layers; HIDDEN and FFN multiples of 4, HIDDEN of twice HEADS, HEADS of "
                "KV_HEADS\n",
                MOST_LAYERS);
        return 2;
    }
    mkdir(argv[1], 0777);
    write_config(argv[1], &of);
    add("lm_head.weight", of.vocabulary, of.hidden);
    add("model.embed_tokens.weight", of.vocabulary, of.hidden);
    for (int layer = 0; layer < of.layers; layer++) {
        add_layer(&of, layer);
    }
    add("model.norm.weight", of.hidden, 0);
    FILE *weights = open_file(argv[1], "model.safetensors");
    write_header(weights);
    write_values(weights);
    close_file(weights);
    return 0;
}
