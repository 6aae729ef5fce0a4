/* A model without some of its channels. Axes and what lies along them are those of permutations
 * (fold.c): a removed channel is gone from every dimension that follows its axis. Tensors are read,
 * cut and written one by one; sizes are known before, so that the writer can be told. */
#include "model/shrink.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/io.h"
#include "model/fold.h"
#include "prune/prune.h"

#define USUAL_MULTIPLE 8

/* An axis that channels go from. */
typedef struct cut_axis {
    int64_t layer;        /* -1: it stays whole */
    int64_t width;        /* channels of a unit on it */
    const uint32_t *kept; /* units, once chosen */
    int64_t kept_count;
} cut_axis;

typedef struct shrinking {
    const esp_shrink_job *job;
    esp_context *context;
    esp_fold fold;
    esp_fold_plan plan;
    cut_axis *cuts;     /* [axes] */
    uint32_t *units[2]; /* of the layer: heads, hidden features */
    esp_tensor values[2];
    int64_t consumers[2]; /* whose values these are; -1: as they were */
    esp_checkpoint_writer *writer;
    int64_t chosen;
    double loss;
    esp_shrink_summary summary;
} shrinking;

enum { HEADS, HIDDEN };

/* ---- sizes ---- */

static int axis_named(const shrinking *s, int64_t layer, const char *kind)
{
    char name[48];
    snprintf(name, sizeof name, "layers.%lld.%s", (long long)layer, kind);
    for (int i = 0; i < s->plan.permutation->axis_count; i++) {
        if (strcmp(s->plan.permutation->axes[i].name, name) == 0) {
            return i;
        }
    }
    return -1;
}

static esp_status check_options(const esp_shrink_options *options, esp_error *error)
{
    bool good = options->hidden >= 0 && options->hidden < 1 && options->heads >= 0 &&
                options->heads < 1 && options->multiple >= 0 && options->multiple <= 65536;
    return good ? ESP_OK
                : esp_fail(error, ESP_BAD_ARGUMENT, "shrink.bad_options",
                           "%g of the hidden features and %g of the heads, features a multiple of "
                           "%lld: shares of at least 0 and less than 1, and a multiple of up to "
                           "65536, were expected",
                           options->hidden, options->heads, (long long)options->multiple);
}

static int64_t remaining(int64_t count, double share, int64_t multiple)
{
    int64_t steps = (int64_t)floor((1 - share) * (double)count / (double)multiple + 0.5);
    return ESP_MIN(count, ESP_MAX(1, steps) * multiple);
}

static esp_status size_hidden(shrinking *s, esp_error *error)
{
    const esp_shrink_options *options = s->job->options;
    int64_t multiple = options->multiple > 0 ? options->multiple : USUAL_MULTIPLE, count = 0;
    for (int64_t layer = 0; layer < s->fold.layers; layer++) {
        int axis = axis_named(s, layer, "hidden");
        int64_t own = axis >= 0 ? s->plan.permutation->axes[axis].count : 0;
        count = layer == 0 ? own : count;
        if (own != count) {
            return esp_fail(
                error, ESP_UNSUPPORTED, "shrink.uneven",
                "%s: layer %lld has %lld hidden features, layer 0 has %lld; config.json "
                "has one number for all",
                esp_checkpoint_path(s->job->checkpoint), (long long)layer, (long long)own,
                (long long)count);
        }
    }
    s->summary.hidden_before = s->summary.hidden_after = count;
    if (options->hidden > 0 && s->fold.hidden_key == NULL) {
        return esp_fail(error, ESP_UNSUPPORTED, "shrink.no_hidden",
                        "%s: timm's config.json says sizes by the architecture's name, so none can "
                        "be changed; give the folder a config.json of Hugging Face's "
                        "ViTForImageClassification or DeiTForImageClassificationWithTeacher, which "
                        "takes timm's names of tensors too",
                        esp_checkpoint_path(s->job->checkpoint));
    }
    if (options->hidden > 0) {
        s->summary.hidden_after = remaining(count, options->hidden, multiple);
    }
    return ESP_OK;
}

static esp_status size_heads(shrinking *s, esp_error *error)
{
    const esp_fold *fold = &s->fold;
    double share = s->job->options->heads;
    if (share > 0 && fold->heads_key == NULL) {
        return esp_fail(error, ESP_UNSUPPORTED, "shrink.no_heads",
                        "%s: config.json of this architecture says what size a head has only by "
                        "hidden_size over their number, so none can be removed; hidden features "
                        "can",
                        esp_checkpoint_path(s->job->checkpoint));
    }
    int64_t kept = share > 0 ? remaining(fold->kv_heads, share, 1) : fold->kv_heads;
    s->summary.kv_heads_before = fold->kv_heads;
    s->summary.kv_heads_after = kept;
    s->summary.heads_before = fold->heads;
    s->summary.heads_after = kept * (fold->heads / fold->kv_heads);
    return ESP_OK;
}

static void cut(shrinking *s, int64_t layer, const char *kind, int64_t width, int64_t kept)
{
    int axis = axis_named(s, layer, kind);
    if (axis >= 0) {
        s->cuts[axis] = (cut_axis){.layer = layer, .width = width, .kept_count = kept};
    }
}

static esp_status plan_cuts(shrinking *s, esp_error *error)
{
    esp_shrink_summary *summary = &s->summary;
    bool heads = summary->kv_heads_after < summary->kv_heads_before;
    bool hidden = summary->hidden_after < summary->hidden_before;
    int64_t group = s->fold.heads / s->fold.kv_heads * s->fold.head_dim;
    if (!heads && !hidden) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "shrink.nothing",
                        "%s: nothing would go: of %lld hidden features %lld stay, of %lld heads "
                        "%lld; give larger shares or a smaller multiple",
                        esp_checkpoint_path(s->job->checkpoint), (long long)summary->hidden_before,
                        (long long)summary->hidden_after, (long long)summary->heads_before,
                        (long long)summary->heads_after);
    }
    for (int64_t layer = 0; layer < s->fold.layers; layer++) {
        if (hidden) {
            cut(s, layer, "hidden", 1, summary->hidden_after);
        }
        if (heads) {
            cut(s, layer, "queries", group, summary->kv_heads_after);
            cut(s, layer, "mixed", group, summary->kv_heads_after);
            cut(s, layer, "keys", s->fold.head_dim, summary->kv_heads_after);
            cut(s, layer, "values", s->fold.head_dim, summary->kv_heads_after);
        }
    }
    return ESP_OK;
}

/* NULL: the dimension stays as it is. */
static const cut_axis *cut_of(const shrinking *s, const char *tensor, int dimension)
{
    int axis = esp_permutation_axis(s->plan.permutation, tensor, dimension);
    return axis >= 0 && s->cuts[axis].layer >= 0 ? &s->cuts[axis] : NULL;
}

/* -1: no dimension of it is cut. */
static int64_t layer_of(const shrinking *s, const esp_weight_info *weight)
{
    for (int i = 0; i < weight->rank; i++) {
        const cut_axis *along = cut_of(s, weight->name, i);
        if (along != NULL) {
            return along->layer;
        }
    }
    return -1;
}

/* ---- tensors ---- */

static esp_status read_tensor(const shrinking *s, int64_t index, esp_tensor *tensor,
                              esp_error *error)
{
    esp_weight_info weight = esp_checkpoint_get(s->job->checkpoint, index);
    ESP_TRY(esp_tensor_create(s->context, weight.dtype, weight.rank, weight.shape, tensor, error));
    esp_status status = esp_checkpoint_read_dense(s->job->checkpoint, index, tensor, error);
    if (status != ESP_OK) {
        esp_tensor_free(s->context, tensor);
    }
    return status;
}

/* In place: what stays moves to the front. */
static void take(esp_tensor *tensor, int dimension, const cut_axis *along)
{
    size_t outer = 1, bytes = esp_dtype_bytes(tensor->dtype) * (size_t)along->width;
    for (int i = 0; i < tensor->rank; i++) {
        outer *= i < dimension ? (size_t)tensor->shape[i] : 1;
        bytes *= i > dimension ? (size_t)tensor->shape[i] : 1;
    }
    size_t units = (size_t)(tensor->shape[dimension] / along->width);
    const char *from = tensor->data;
    char *to = tensor->data;
    for (size_t i = 0; i < outer; i++, from += units * bytes) {
        for (int64_t k = 0; k < along->kept_count; k++, to += bytes) {
            memmove(to, from + along->kept[k] * bytes, bytes);
        }
    }
    tensor->shape[dimension] = along->kept_count * along->width;
}

static esp_status write_tensor(const shrinking *s, const char *name, esp_tensor *tensor,
                               esp_error *error)
{
    for (int i = 0; i < tensor->rank; i++) {
        const cut_axis *along = cut_of(s, name, i);
        if (along != NULL) {
            take(tensor, i, along);
        }
    }
    return esp_checkpoint_writer_write_dense(s->writer, name, tensor, error);
}

static esp_status write_one(const shrinking *s, int64_t index, esp_error *error)
{
    esp_tensor tensor;
    const char *name = esp_checkpoint_get(s->job->checkpoint, index).name;
    for (int part = 0; part < 2; part++) {
        if (s->consumers[part] == index) {
            esp_tensor own = s->values[part]; /* its shape changes, its memory does not */
            return write_tensor(s, name, &own, error);
        }
    }
    ESP_TRY(read_tensor(s, index, &tensor, error));
    esp_status status = write_tensor(s, name, &tensor, error);
    esp_tensor_free(s->context, &tensor);
    return status;
}

/* All of a layer that is cut; -1: all that is not. */
static esp_status write_layer(const shrinking *s, int64_t layer, esp_error *error)
{
    for (int64_t i = 0; i < esp_checkpoint_count(s->job->checkpoint); i++) {
        esp_weight_info weight = esp_checkpoint_get(s->job->checkpoint, i);
        if (layer_of(s, &weight) == layer) {
            ESP_TRY(write_one(s, i, error));
        }
    }
    return ESP_OK;
}

static esp_status declare_all(const shrinking *s, esp_error *error)
{
    for (int64_t i = 0; i < esp_checkpoint_count(s->job->checkpoint); i++) {
        esp_weight_info weight = esp_checkpoint_get(s->job->checkpoint, i);
        for (int k = 0; k < weight.rank; k++) {
            const cut_axis *along = cut_of(s, weight.name, k);
            weight.shape[k] = along != NULL ? along->kept_count * along->width : weight.shape[k];
        }
        weight.stored_bytes = 0;
        weight.has_crc32c = false;
        ESP_TRY(esp_checkpoint_writer_declare(s->writer, &weight, error));
    }
    return ESP_OK;
}

/* ---- what goes ---- */

typedef struct unit_square {
    double square;
    uint32_t unit;
} unit_square;

/* Adds the squares of a tensor that lie along a part's axes. */
static void add_squares(const shrinking *s, const esp_shrink_part *part, int kind, const char *name,
                        const esp_tensor *tensor, double *squares)
{
    for (int k = 0; k < tensor->rank; k++) {
        const cut_axis *along = cut_of(s, name, k);
        bool head = along != NULL && along->width > 1;
        if (along == NULL || along->layer != part->layer || head != (kind == HEADS)) {
            continue;
        }
        int64_t inner = along->width, count = 1;
        for (int i = 0; i < tensor->rank; i++) {
            inner *= i > k ? tensor->shape[i] : 1;
            count *= tensor->shape[i];
        }
        for (int64_t i = 0; i < count; i++) {
            double w = (double)esp_weight_at(tensor->dtype, tensor->data, i);
            squares[i / inner % part->units] += w * w;
        }
    }
}

static int compare(const void *a, const void *b)
{
    const unit_square *x = a, *y = b;
    if (x->square != y->square) {
        return x->square > y->square ? -1 : 1;
    }
    return x->unit < y->unit ? -1 : x->unit > y->unit;
}

static int ascend(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static esp_status keep_largest(const shrinking *s, const esp_shrink_part *part,
                               const double *squares, uint32_t *kept, double *loss,
                               esp_error *error)
{
    unit_square *ranked = esp_alloc_array(s->context, (size_t)part->units, sizeof *ranked);
    double all = 0, stays = 0;
    if (ranked == NULL) {
        return esp_fail_memory(error, (size_t)part->units * sizeof *ranked, "channels");
    }
    for (int64_t i = 0; i < part->units; i++) {
        ranked[i] = (unit_square){squares[i], (uint32_t)i};
        all += squares[i];
    }
    qsort(ranked, (size_t)part->units, sizeof *ranked, compare);
    for (int64_t i = 0; i < part->kept; i++) {
        kept[i] = ranked[i].unit;
        stays += ranked[i].square;
    }
    qsort(kept, (size_t)part->kept, sizeof *kept, ascend);
    *loss = all > 0 ? 1 - stays / all : 0;
    esp_release(s->context, ranked);
    return ESP_OK;
}

static esp_status choose_by_squares(const shrinking *s, const esp_shrink_part *part, int kind,
                                    uint32_t *kept, double *loss, esp_error *error)
{
    double *squares = esp_alloc_zero(s->context, (size_t)part->units * sizeof *squares);
    esp_status status =
        squares != NULL ? ESP_OK : esp_fail_memory(error, (size_t)part->units * 8, "scores");
    for (int64_t i = 0; i < esp_checkpoint_count(s->job->checkpoint) && status == ESP_OK; i++) {
        esp_weight_info weight = esp_checkpoint_get(s->job->checkpoint, i);
        esp_tensor tensor;
        if (layer_of(s, &weight) != part->layer) {
            continue;
        }
        status = read_tensor(s, i, &tensor, error);
        if (status == ESP_OK) {
            status = esp_prune_check_finite(s->context, &tensor, error);
            add_squares(s, part, kind, weight.name, &tensor, squares);
            esp_tensor_free(s->context, &tensor);
        }
        if (status != ESP_OK) {
            status = esp_fail_within(error, status, "%s: %s",
                                     esp_checkpoint_path(s->job->checkpoint), weight.name);
        }
    }
    status = status == ESP_OK ? keep_largest(s, part, squares, kept, loss, error) : status;
    esp_release(s->context, squares);
    return status;
}

/* The matrix whose columns lie along an axis. */
static int64_t consumer_of(const shrinking *s, int axis)
{
    for (int64_t i = 0; i < esp_checkpoint_count(s->job->checkpoint); i++) {
        esp_weight_info weight = esp_checkpoint_get(s->job->checkpoint, i);
        if (weight.rank == 2 && esp_permutation_axis(s->plan.permutation, weight.name, 1) == axis) {
            return i;
        }
    }
    return -1; /* an axis of the rules has one */
}

static esp_status choose(shrinking *s, int64_t layer, int kind, esp_error *error)
{
    static const char *const axes[2][4] = {{"mixed", "queries", "keys", "values"}, {"hidden"}};
    int axis = axis_named(s, layer, axes[kind][0]);
    s->consumers[kind] = -1;
    if (axis < 0 || s->cuts[axis].layer < 0) {
        return ESP_OK;
    }
    const cut_axis *along = &s->cuts[axis];
    const esp_shrink_part part = {.layer = layer,
                                  .consumer = consumer_of(s, axis),
                                  .units = s->plan.permutation->axes[axis].count / along->width,
                                  .width = along->width,
                                  .kept = along->kept_count};
    double loss = 0;
    if (s->job->choose == NULL) {
        ESP_TRY(choose_by_squares(s, &part, kind, s->units[kind], &loss, error));
    } else {
        ESP_TRY(read_tensor(s, part.consumer, &s->values[kind], error));
        s->consumers[kind] = part.consumer;
        ESP_TRY(
            s->job->choose(s->job->user, &part, &s->values[kind], s->units[kind], &loss, error));
    }
    for (int i = 0; i < 4 && axes[kind][i] != NULL; i++) {
        int own = axis_named(s, layer, axes[kind][i]);
        if (own >= 0) {
            s->cuts[own].kept = s->units[kind];
        }
    }
    s->loss += loss;
    s->chosen++;
    return ESP_OK;
}

static void drop_values(shrinking *s)
{
    for (int part = 0; part < 2; part++) {
        if (s->consumers[part] >= 0) {
            esp_tensor_free(s->context, &s->values[part]);
        }
        s->consumers[part] = -1;
    }
}

static esp_status shrink_layer(shrinking *s, int64_t layer, esp_error *error)
{
    const esp_shrink_options *options = s->job->options;
    if (options->progress != NULL && !options->progress(options->user, "shrinking", (double)layer,
                                                        (double)s->fold.layers, "layers")) {
        return esp_fail(error, ESP_CANCELLED, "cancelled",
                        "shrinking was interrupted; nothing was written");
    }
    ESP_TRY(choose(s, layer, HEADS, error));
    ESP_TRY(choose(s, layer, HIDDEN, error));
    return write_layer(s, layer, error);
}

/* ---- the folder ---- */

static esp_status set_size(const shrinking *s, const char *key, int64_t before, int64_t after,
                           esp_error *error)
{
    return key == NULL || before == after
               ? ESP_OK
               : esp_checkpoint_writer_set_integer(s->writer, s->fold.section, key, after, error);
}

static esp_status set_sizes(const shrinking *s, esp_error *error)
{
    const esp_shrink_summary *sizes = &s->summary;
    const esp_fold *fold = &s->fold;
    ESP_TRY(set_size(s, fold->hidden_key, sizes->hidden_before, sizes->hidden_after, error));
    ESP_TRY(set_size(s, fold->heads_key, sizes->heads_before, sizes->heads_after, error));
    if (sizes->heads_after == sizes->heads_before) {
        return ESP_OK;
    }
    /* Both may be left out: as many as heads, and hidden_size / heads, which is true no longer. */
    ESP_TRY(esp_checkpoint_writer_set_integer(s->writer, fold->section, fold->kv_heads_key,
                                              sizes->kv_heads_after, error));
    return esp_checkpoint_writer_set_integer(s->writer, fold->section, fold->head_dim_key,
                                             fold->head_dim, error);
}

static esp_status record(const shrinking *s, esp_error *error)
{
    esp_buffer json;
    esp_buffer_init(&json, s->context);
    esp_buffer_printf(&json,
                      "{\"hidden\": [%lld, %lld], \"heads\": [%lld, %lld], \"by\": \"%s\", "
                      "\"mean_loss\": %.9g}",
                      (long long)s->summary.hidden_before, (long long)s->summary.hidden_after,
                      (long long)s->summary.heads_before, (long long)s->summary.heads_after,
                      s->job->choose != NULL ? "outputs" : "squares", s->summary.mean_loss);
    esp_status status = json.failed
                            ? esp_fail_memory(error, json.length, "a record")
                            : esp_checkpoint_writer_record(s->writer, "shrink", json.data, error);
    esp_buffer_free(&json);
    return status;
}

static esp_status write_all(shrinking *s, esp_error *error)
{
    ESP_TRY(esp_checkpoint_writer_set_shard_bytes(s->writer, s->job->options->shard_bytes, error));
    ESP_TRY(set_sizes(s, error));
    ESP_TRY(declare_all(s, error));
    ESP_TRY(esp_checkpoint_writer_begin(s->writer, error));
    ESP_TRY(write_layer(s, -1, error));
    for (int64_t layer = 0; layer < s->fold.layers; layer++) {
        esp_status status = shrink_layer(s, layer, error);
        drop_values(s);
        ESP_TRY(status);
    }
    s->summary.mean_loss = s->loss / (double)ESP_MAX(1, s->chosen);
    ESP_TRY(record(s, error));
    return esp_checkpoint_writer_finish(s->writer, error);
}

static void count_bytes(shrinking *s)
{
    for (int64_t i = 0; i < esp_checkpoint_count(s->job->checkpoint); i++) {
        esp_weight_info weight = esp_checkpoint_get(s->job->checkpoint, i);
        double share = 1;
        for (int k = 0; k < weight.rank; k++) {
            const cut_axis *along = cut_of(s, weight.name, k);
            share *= along != NULL
                         ? (double)(along->kept_count * along->width) / (double)weight.shape[k]
                         : 1;
        }
        s->summary.source_bytes += weight.dense_bytes;
        s->summary.stored_bytes += (size_t)llround((double)weight.dense_bytes * share);
    }
}

static esp_status make_room(shrinking *s, esp_error *error)
{
    size_t axes = (size_t)s->plan.permutation->axis_count;
    s->cuts = esp_alloc_array(s->context, axes, sizeof *s->cuts);
    s->units[HEADS] = esp_alloc_array(s->context, (size_t)s->fold.kv_heads, sizeof(uint32_t));
    s->units[HIDDEN] =
        esp_alloc_array(s->context, (size_t)s->summary.hidden_before + 1, sizeof(uint32_t));
    if (s->cuts == NULL || s->units[HEADS] == NULL || s->units[HIDDEN] == NULL) {
        return esp_fail_memory(error, axes * sizeof *s->cuts, "channels");
    }
    for (size_t i = 0; i < axes; i++) {
        s->cuts[i] = (cut_axis){.layer = -1};
    }
    return ESP_OK;
}

static esp_status shrink(shrinking *s, const char *out_dir, esp_error *error)
{
    const esp_shrink_job *job = s->job;
    ESP_TRY(size_hidden(s, error));
    ESP_TRY(size_heads(s, error));
    ESP_TRY(make_room(s, error));
    ESP_TRY(plan_cuts(s, error));
    count_bytes(s);
    ESP_TRY(esp_checkpoint_writer_create(s->context, job->checkpoint, out_dir, job->options->force,
                                         &s->writer, error));
    return write_all(s, error);
}

static esp_status check_source(const esp_checkpoint *checkpoint, esp_error *error)
{
    if (esp_checkpoint_is_compressed(checkpoint) ||
        esp_checkpoint_form(checkpoint) != ESP_FORM_ESPALIER) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "shrink.compressed",
                        "%s: is compressed; start from the dense model, or make one with 'espalier "
                        "convert --dense'",
                        esp_checkpoint_path(checkpoint));
    }
    return ESP_OK;
}

esp_status esp_shrink_run(const esp_shrink_job *job, const char *out_dir,
                          esp_shrink_summary *summary, esp_error *error)
{
    double start = esp_seconds();
    shrinking s = {.job = job, .context = job->device->context, .consumers = {-1, -1}};
    esp_model *model = NULL;
    ESP_TRY(check_options(job->options, error));
    ESP_TRY(check_source(job->checkpoint, error));
    ESP_TRY(esp_model_outline(job->device, job->checkpoint, &model, error));
    esp_status status = esp_fold_make(model, job->checkpoint, true, &s.plan, error);
    if (status == ESP_OK) {
        model->family->fold(model, &s.fold);
        s.summary.layers = s.fold.layers;
        status = shrink(&s, out_dir, error);
        esp_checkpoint_writer_free(s.writer);
        esp_fold_plan_free(s.context, &s.plan);
    }
    esp_model_free(model);
    esp_release(s.context, s.cuts);
    esp_release(s.context, s.units[HEADS]);
    esp_release(s.context, s.units[HIDDEN]);
    s.summary.seconds = esp_seconds() - start;
    if (status == ESP_OK && summary != NULL) {
        *summary = s.summary;
    }
    return status;
}
