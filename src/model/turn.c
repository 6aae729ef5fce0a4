/* A model whose residual stream x is Q x. RMSNorm divides by a length, which Q leaves as it is,
 * once its weights have gone into the columns of what reads them. Tensors are read, turned in f64
 * and written one by one, tables in slabs of rows. */
#include "model/turn.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "io/io.h"
#include "model/fold.h"
#include "model/llama.h"

#define TABLE "model.embed_tokens.weight"
#define HEAD "lm_head.weight"
#define SLAB_ROWS 1024

/* How a tensor touches the stream. */
typedef enum stream_part {
    PART_NONE = 0,
    PART_TABLE,  /* rows are states of the stream */
    PART_READER, /* columns read what the norm makes of it */
    PART_WRITER, /* rows, or a bias', are added to it */
    PART_NORM
} stream_part;

typedef struct stream_rule {
    const char *name; /* as the rules of folding have it */
    stream_part part;
    const char *norm; /* of a reader: behind the layer's prefix */
} stream_rule;

#define LAYER "model.layers.#."
#define ATTENTION_NORM "input_layernorm.weight"
#define MLP_NORM "post_attention_layernorm.weight"
static const stream_rule rules[] = {
    {TABLE, PART_TABLE, NULL},
    {HEAD, PART_READER, "model.norm.weight"},
    {"model.norm.weight", PART_NORM, NULL},
    {LAYER ATTENTION_NORM, PART_NORM, NULL},
    {LAYER MLP_NORM, PART_NORM, NULL},
    {LAYER "self_attn.q_proj.weight", PART_READER, ATTENTION_NORM},
    {LAYER "self_attn.k_proj.weight", PART_READER, ATTENTION_NORM},
    {LAYER "self_attn.v_proj.weight", PART_READER, ATTENTION_NORM},
    {LAYER "self_attn.o_proj.weight", PART_WRITER, NULL},
    {LAYER "self_attn.o_proj.bias", PART_WRITER, NULL},
    {LAYER "mlp.gate_proj.weight", PART_READER, MLP_NORM},
    {LAYER "mlp.up_proj.weight", PART_READER, MLP_NORM},
    {LAYER "mlp.down_proj.weight", PART_WRITER, NULL},
    {LAYER "mlp.down_proj.bias", PART_WRITER, NULL},
};

struct esp_turn {
    esp_context *context;
    const esp_checkpoint *checkpoint;
    esp_fold fold;
    int64_t channels;
    bool tied;
};

/* ---- what there is ---- */

static const stream_rule *rule_of(const esp_turn *turn, const char *name, int64_t *layer)
{
    static const stream_rule none = {NULL, PART_NONE, NULL};
    const esp_fold_rule *known = esp_fold_rule_of(&turn->fold, name, layer);
    for (int i = 0; known != NULL && i < ESP_COUNT(rules); i++) {
        if (strcmp(rules[i].name, known->name) == 0) {
            return &rules[i];
        }
    }
    return &none;
}

/* Every tensor is one of the architecture's, of the shapes that its channels give. */
static esp_status check_tensors(const esp_model *model, const esp_checkpoint *checkpoint,
                                esp_error *error)
{
    esp_fold_plan plan;
    ESP_TRY(esp_fold_make(model, checkpoint, true, &plan, error));
    esp_fold_plan_free(model->context, &plan);
    return ESP_OK;
}

static esp_status look(esp_turn *turn, const esp_model *model, esp_error *error)
{
    if (model->family != &esp_llama_family && model->family != &esp_qwen2_family) {
        return esp_fail(error, ESP_UNSUPPORTED, "turn.no_rms_norm",
                        "%s: the residual stream can be turned only where norms are RMSNorm and "
                        "see it through their weights alone: Llama and Qwen2; prune the model as "
                        "it is",
                        esp_checkpoint_path(turn->checkpoint));
    }
    ESP_TRY(check_tensors(model, turn->checkpoint, error));
    const esp_llama *llama = model->parts;
    model->family->fold(model, &turn->fold);
    turn->channels = llama->config.hidden;
    turn->tied = llama->config.tied;
    return ESP_OK;
}

esp_status esp_turn_open(esp_device *device, const esp_checkpoint *checkpoint, esp_turn **turn,
                         esp_error *error)
{
    esp_model *model = NULL;
    if (esp_checkpoint_is_compressed(checkpoint) ||
        esp_checkpoint_form(checkpoint) != ESP_FORM_ESPALIER) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "turn.compressed",
                        "%s: is compressed; start from the dense model, or make one with 'espalier "
                        "convert --dense'",
                        esp_checkpoint_path(checkpoint));
    }
    esp_turn *made = esp_alloc_zero(device->context, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "a turned model");
    }
    made->context = device->context;
    made->checkpoint = checkpoint;
    esp_status status = esp_model_outline(device, checkpoint, &model, error);
    if (status == ESP_OK) {
        status = look(made, model, error);
        esp_model_free(model);
    }
    if (status != ESP_OK) {
        esp_turn_close(made);
        return status;
    }
    *turn = made;
    return ESP_OK;
}

void esp_turn_close(esp_turn *turn)
{
    if (turn != NULL) {
        esp_release(turn->context, turn);
    }
}

int64_t esp_turn_channels(const esp_turn *turn)
{
    return turn->channels;
}

/* ---- tensors ---- */

static esp_status read_tensor(const esp_turn *turn, int64_t index, esp_tensor *tensor,
                              esp_error *error)
{
    esp_weight_info weight = esp_checkpoint_get(turn->checkpoint, index);
    ESP_TRY(
        esp_tensor_create(turn->context, weight.dtype, weight.rank, weight.shape, tensor, error));
    esp_status status = esp_checkpoint_read_dense(turn->checkpoint, index, tensor, error);
    if (status != ESP_OK) {
        esp_tensor_free(turn->context, tensor);
    }
    return status;
}

/* The weights of the norm that a reader's inputs come from. */
static esp_status read_norm(const esp_turn *turn, const stream_rule *rule, int64_t layer,
                            double *norm, esp_error *error)
{
    char name[96];
    esp_tensor weights;
    snprintf(name, sizeof name, "%s", rule->norm);
    if (layer >= 0) {
        snprintf(name, sizeof name, "model.layers.%lld.%s", (long long)layer, rule->norm);
    }
    ESP_TRY(read_tensor(turn, esp_checkpoint_find(turn->checkpoint, name), &weights, error));
    for (int64_t j = 0; j < turn->channels; j++) {
        norm[j] = (double)esp_weight_at(weights.dtype, weights.data, j);
    }
    esp_tensor_free(turn->context, &weights);
    return ESP_OK;
}

static esp_status read_rows(const esp_turn *turn, int64_t index, double **rows, int64_t *out,
                            esp_error *error)
{
    esp_tensor weights;
    ESP_TRY(read_tensor(turn, index, &weights, error));
    int64_t n = turn->channels;
    *out = weights.shape[0];
    double *made = esp_alloc_array(turn->context, (size_t)(n * *out), sizeof *made);
    for (int64_t i = 0; made != NULL && i < n * *out; i++) {
        made[i % n * *out + i / n] = (double)esp_weight_at(weights.dtype, weights.data, i);
    }
    esp_tensor_free(turn->context, &weights);
    *rows = made;
    return made != NULL ? ESP_OK
                        : esp_fail_memory(error, (size_t)(n * *out) * sizeof *made, "weights");
}

esp_status esp_turn_reader(const esp_turn *turn, const char *name, bool *reads, double **rows,
                           int64_t *out, double *norm, esp_error *error)
{
    int64_t layer, index = esp_checkpoint_find(turn->checkpoint, name);
    const stream_rule *rule = rule_of(turn, name, &layer);
    *reads = index >= 0 && rule->part == PART_READER;
    if (!*reads) {
        return ESP_OK;
    }
    ESP_TRY(read_norm(turn, rule, layer, norm, error));
    return read_rows(turn, index, rows, out, error);
}

/* ---- turning ---- */

typedef struct turning {
    const esp_turn *turn;
    const esp_algebra *algebra;
    const double *q;
    double *norm;           /* [channels] */
    double *before, *after; /* [SLAB_ROWS][the longest row] */
    float *row;
    esp_checkpoint_writer *writer;
} turning;

/* count rows of the tensor from the first on become `after`. */
static void put_rows(const turning *t, esp_tensor *tensor, int64_t first, int64_t count,
                     int64_t width)
{
    size_t bytes = (size_t)width * esp_dtype_bytes(tensor->dtype);
    for (int64_t r = 0; r < count; r++) {
        for (int64_t j = 0; j < width; j++) {
            t->row[j] = (float)t->after[r * width + j];
        }
        esp_narrow(tensor->dtype, t->row, width,
                   (char *)tensor->data + (size_t)(first + r) * bytes);
    }
}

/* Each row w: Q (norm w); norm: NULL: of ones. */
static void turn_rows(const turning *t, esp_tensor *tensor, const double *norm)
{
    int64_t n = t->turn->channels, rows = tensor->shape[0];
    for (int64_t first = 0; first < rows; first += SLAB_ROWS) {
        int64_t count = ESP_MIN(SLAB_ROWS, rows - first);
        for (int64_t i = 0; i < count * n; i++) {
            double w = (double)esp_weight_at(tensor->dtype, tensor->data, first * n + i);
            t->before[i] = norm != NULL ? w * norm[i % n] : w;
        }
        const esp_algebra_product product = {.rows = count,
                                             .columns = n,
                                             .depth = n,
                                             .alpha = 1,
                                             .a = t->before,
                                             .a_stride = n,
                                             .b = t->q,
                                             .b_stride = n,
                                             .b_transposed = true,
                                             .c = t->after,
                                             .c_stride = n};
        esp_algebra_multiply(t->algebra, &product);
        put_rows(t, tensor, first, count, n);
    }
}

/* Q W, of a bias Q b: columns [channels] in slabs, which a copy of the whole goes through. */
static esp_status turn_columns(const turning *t, esp_tensor *tensor, esp_error *error)
{
    int64_t n = t->turn->channels, width = tensor->rank == 1 ? 1 : tensor->shape[1];
    double *whole = esp_alloc_array(t->turn->context, (size_t)(n * width), sizeof *whole);
    if (whole == NULL) {
        return esp_fail_memory(error, (size_t)(n * width) * sizeof *whole, "weights");
    }
    for (int64_t i = 0; i < n * width; i++) {
        whole[i] = (double)esp_weight_at(tensor->dtype, tensor->data, i);
    }
    for (int64_t first = 0; first < n; first += SLAB_ROWS) {
        int64_t count = ESP_MIN(SLAB_ROWS, n - first);
        const esp_algebra_product product = {.rows = count,
                                             .columns = width,
                                             .depth = n,
                                             .alpha = 1,
                                             .a = t->q + first * n,
                                             .a_stride = n,
                                             .b = whole,
                                             .b_stride = width,
                                             .c = t->after,
                                             .c_stride = width};
        esp_algebra_multiply(t->algebra, &product);
        put_rows(t, tensor, first, count, width);
    }
    esp_release(t->turn->context, whole);
    return ESP_OK;
}

static void set_ones(const turning *t, esp_tensor *tensor)
{
    for (int64_t j = 0; j < t->turn->channels; j++) {
        t->row[j] = 1;
    }
    esp_narrow(tensor->dtype, t->row, t->turn->channels, tensor->data);
}

/* With a norm's weights in it, a weight may be more than 16 bits hold. */
static esp_status check_finite(const turning *t, const esp_tensor *tensor, const char *name,
                               esp_error *error)
{
    int64_t width = tensor->rank == 1 ? 1 : tensor->shape[1], count = tensor->shape[0] * width;
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(esp_weight_at(tensor->dtype, tensor->data, i))) {
            return esp_fail(error, ESP_CHECK_FAILED, "turn.not_finite",
                            "%s: tensor \"%s\", turned, holds in row %lld what is no number or "
                            "too large for %s; 'espalier verify --strict' tells whether it was so "
                            "before",
                            esp_checkpoint_path(t->turn->checkpoint), name, (long long)(i / width),
                            esp_dtype_name(tensor->dtype));
        }
    }
    return ESP_OK;
}

/* ---- the folder ---- */

/* The tensor at index, as the one of that name. */
static esp_status write_as(const turning *t, int64_t index, const char *name, esp_error *error)
{
    esp_tensor tensor;
    int64_t layer;
    const stream_rule *rule = rule_of(t->turn, name, &layer);
    ESP_TRY(read_tensor(t->turn, index, &tensor, error));
    esp_status status = ESP_OK;
    if (rule->part == PART_TABLE) {
        turn_rows(t, &tensor, NULL);
    } else if (rule->part == PART_READER) {
        status = read_norm(t->turn, rule, layer, t->norm, error);
        if (status == ESP_OK) {
            turn_rows(t, &tensor, t->norm);
        }
    } else if (rule->part == PART_WRITER) {
        status = turn_columns(t, &tensor, error);
    } else if (rule->part == PART_NORM) {
        set_ones(t, &tensor);
    }
    if (status == ESP_OK && rule->part != PART_NONE) {
        status = check_finite(t, &tensor, name, error);
    }
    status = status == ESP_OK ? esp_checkpoint_writer_write_dense(t->writer, name, &tensor, error)
                              : status;
    esp_tensor_free(t->turn->context, &tensor);
    return status;
}

/* Tied models may carry a copy of the table, which the head's own tensor takes the place of. */
static bool stays(const esp_turn *turn, const char *name)
{
    return !turn->tied || strcmp(name, HEAD) != 0;
}

static esp_status declare(const turning *t, esp_weight_info weight, const char *name,
                          esp_turn_summary *summary, esp_error *error)
{
    weight.name = name;
    weight.stored_bytes = 0;
    weight.has_crc32c = false;
    summary->stored_bytes += weight.dense_bytes;
    return esp_checkpoint_writer_declare(t->writer, &weight, error);
}

static esp_status declare_all(const turning *t, esp_turn_summary *summary, esp_error *error)
{
    const esp_checkpoint *checkpoint = t->turn->checkpoint;
    for (int64_t i = 0; i < esp_checkpoint_count(checkpoint); i++) {
        esp_weight_info weight = esp_checkpoint_get(checkpoint, i);
        summary->source_bytes += weight.dense_bytes;
        if (stays(t->turn, weight.name)) {
            ESP_TRY(declare(t, weight, weight.name, summary, error));
        }
        if (t->turn->tied && strcmp(weight.name, TABLE) == 0) {
            ESP_TRY(declare(t, weight, HEAD, summary, error));
        }
    }
    summary->untied = t->turn->tied;
    return t->turn->tied ? esp_checkpoint_writer_set_bool(t->writer, t->turn->fold.section,
                                                          "tie_word_embeddings", false, error)
                         : ESP_OK;
}

static esp_status write_tensors(const turning *t, const esp_turn_options *options, esp_error *error)
{
    const esp_checkpoint *checkpoint = t->turn->checkpoint;
    int64_t count = esp_checkpoint_count(checkpoint);
    for (int64_t i = 0; i < count; i++) {
        const char *name = esp_checkpoint_get(checkpoint, i).name;
        if (options->progress != NULL &&
            !options->progress(options->user, "turning", (double)i, (double)count, "tensors")) {
            return esp_fail(error, ESP_CANCELLED, "cancelled",
                            "turning was interrupted; nothing was written");
        }
        if (stays(t->turn, name)) {
            ESP_TRY(write_as(t, i, name, error));
        }
        if (t->turn->tied && strcmp(name, TABLE) == 0) {
            ESP_TRY(write_as(t, i, HEAD, error));
        }
    }
    return ESP_OK;
}

static esp_status make_room(turning *t, esp_error *error)
{
    const esp_checkpoint *checkpoint = t->turn->checkpoint;
    int64_t longest = t->turn->channels;
    for (int64_t i = 0; i < esp_checkpoint_count(checkpoint); i++) {
        esp_weight_info weight = esp_checkpoint_get(checkpoint, i);
        longest = weight.rank == 2 ? ESP_MAX(longest, weight.shape[1]) : longest;
    }
    esp_context *context = t->turn->context;
    size_t slab = SLAB_ROWS * (size_t)longest;
    t->norm = esp_alloc_array(context, (size_t)t->turn->channels, sizeof *t->norm);
    t->before = esp_alloc_array(context, slab, sizeof *t->before);
    t->after = esp_alloc_array(context, slab, sizeof *t->after);
    t->row = esp_alloc_array(context, (size_t)longest, sizeof *t->row);
    return t->norm != NULL && t->before != NULL && t->after != NULL && t->row != NULL
               ? ESP_OK
               : esp_fail_memory(error, slab * sizeof *t->before, "rows of weights");
}

static esp_status record(const turning *t, const esp_turn_summary *summary, esp_error *error)
{
    esp_buffer json;
    esp_buffer_init(&json, t->turn->context);
    esp_buffer_printf(&json,
                      "{\"channels\": %lld, \"readers\": %lld, \"strongest_channels\": %.9g, "
                      "\"strongest_axes\": %.9g, \"untied\": %s}",
                      (long long)summary->channels, (long long)summary->readers,
                      summary->strongest_channels, summary->strongest_axes,
                      summary->untied ? "true" : "false");
    esp_status status = json.failed
                            ? esp_fail_memory(error, json.length, "a record")
                            : esp_checkpoint_writer_record(t->writer, "turn", json.data, error);
    esp_buffer_free(&json);
    return status;
}

static esp_status write_folder(turning *t, const char *out_dir, const esp_turn_options *options,
                               esp_turn_summary *summary, esp_error *error)
{
    ESP_TRY(make_room(t, error));
    ESP_TRY(esp_checkpoint_writer_create(t->turn->context, t->turn->checkpoint, out_dir,
                                         options->force, &t->writer, error));
    ESP_TRY(esp_checkpoint_writer_set_shard_bytes(t->writer, options->shard_bytes, error));
    ESP_TRY(declare_all(t, summary, error));
    ESP_TRY(esp_checkpoint_writer_begin(t->writer, error));
    ESP_TRY(write_tensors(t, options, error));
    ESP_TRY(record(t, summary, error));
    return esp_checkpoint_writer_finish(t->writer, error);
}

esp_status esp_turn_write(const esp_turn *turn, const esp_algebra *algebra, const double *q,
                          const char *out_dir, const esp_turn_options *options,
                          esp_turn_summary *summary, esp_error *error)
{
    turning t = {.turn = turn, .algebra = algebra, .q = q};
    esp_status status = write_folder(&t, out_dir, options, summary, error);
    esp_checkpoint_writer_free(t.writer);
    esp_release(turn->context, t.norm);
    esp_release(turn->context, t.before);
    esp_release(turn->context, t.after);
    esp_release(turn->context, t.row);
    return status;
}
