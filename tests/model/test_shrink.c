/* Structured pruning: a shrunk model computes what the model does whose removed channels are zeros
 * of what reads them; its folder says its sizes; every kind of model; and what is refused. */
#include <math.h>

#include <espalier/shrink.h>

#include "io/io.h"
#include "model/calibrated_tools.h"
#include "model/model.h"

#define PROSE ESP_SOURCE_DIR "/models/prose"

typedef struct folders {
    esp_context *context;
    esp_device *device;
    char out[1100], masked[1100];
} folders;

static void folders_open(test_run *run, folders *f)
{
    f->context = test_context(run, 2);
    snprintf(f->out, sizeof f->out, "%s/shrunk", test_folder(run));
    snprintf(f->masked, sizeof f->masked, "%s/masked", test_folder(run));
    REQUIRE_OK(esp_device_open(f->context, "cpu", &f->device, error));
}

static void folders_close(test_run *run, folders *f)
{
    esp_device_close(f->device);
    test_context_free(run, f->context);
}

/* ---- the model with zeros ---- */

static esp_tensor read_by_name(test_run *run, esp_context *context, const esp_checkpoint *from,
                               const char *name)
{
    esp_tensor tensor = {0};
    int64_t index = esp_checkpoint_find(from, name);
    if (index < 0) {
        test_fail(run, __FILE__, __LINE__, "%s is missing", name);
        return tensor;
    }
    esp_weight_info info = esp_checkpoint_get(from, index);
    CHECK_OK(esp_tensor_create(context, info.dtype, info.rank, info.shape, &tensor, error));
    CHECK_OK(esp_checkpoint_read_dense(from, index, &tensor, error));
    return tensor;
}

/* Which rows of whole are rows of part, in order: of producers, whose values stay. */
static void find_rows(test_run *run, const esp_tensor *whole, const esp_tensor *part, int64_t *rows)
{
    size_t bytes = (size_t)whole->shape[1] * esp_dtype_bytes(whole->dtype);
    int64_t at = 0;
    for (int64_t i = 0; i < part->shape[0]; i++) {
        while (at < whole->shape[0] && memcmp((char *)whole->data + (size_t)at * bytes,
                                              (char *)part->data + (size_t)i * bytes, bytes) != 0) {
            at++;
        }
        REQUIRE(at < whole->shape[0]);
        rows[i] = at++;
    }
}

/* consumer [out][in] becomes that of part [out][fewer], at the columns that stay, 0 elsewhere. */
static void scatter(esp_tensor *consumer, const esp_tensor *part, const int64_t *columns)
{
    size_t width = esp_dtype_bytes(consumer->dtype), in = (size_t)consumer->shape[1];
    memset(consumer->data, 0, (size_t)consumer->shape[0] * in * width);
    for (int64_t r = 0; r < consumer->shape[0]; r++) {
        for (int64_t j = 0; j < part->shape[1]; j++) {
            memcpy((char *)consumer->data + ((size_t)r * in + (size_t)columns[j]) * width,
                   (char *)part->data + (size_t)(r * part->shape[1] + j) * width, width);
        }
    }
}

/* The consumer of a layer as the shrunk folder has it. copies: columns that read one row of the
 * producer (query heads that share values), head: rows of a head; 1 and 1 for hidden features. */
static void mask_consumer(test_run *run, folders *f, const esp_checkpoint *whole,
                          const esp_checkpoint *shrunk, const char *producer, int64_t head,
                          int64_t copies, esp_tensor *consumer, const char *name)
{
    esp_tensor from = read_by_name(run, f->context, whole, producer);
    esp_tensor left = read_by_name(run, f->context, shrunk, producer);
    esp_tensor part = read_by_name(run, f->context, shrunk, name);
    int64_t *rows = calloc((size_t)from.shape[0], sizeof *rows);
    int64_t *columns = calloc((size_t)(from.shape[0] * copies), sizeof *columns);
    find_rows(run, &from, &left, rows);
    CHECK_INT(part.shape[1], left.shape[0] * copies);
    for (int64_t i = 0; i < part.shape[1]; i++) {
        int64_t row = rows[i / (head * copies) * head]; /* of the unit's first */
        columns[i] = row * copies + i % (head * copies);
    }
    scatter(consumer, &part, columns);
    free(rows);
    free(columns);
    esp_tensor_free(f->context, &from);
    esp_tensor_free(f->context, &left);
    esp_tensor_free(f->context, &part);
}

static void write_masked(test_run *run, folders *f)
{
    esp_checkpoint *whole = NULL, *shrunk = NULL;
    esp_checkpoint_writer *writer = NULL;
    REQUIRE_OK(esp_checkpoint_open(f->context, PROSE, &whole, error));
    REQUIRE_OK(esp_checkpoint_open(f->context, f->out, &shrunk, error));
    REQUIRE_OK(esp_checkpoint_writer_create(f->context, whole, f->masked, true, &writer, error));
    for (int64_t i = 0; i < esp_checkpoint_count(whole); i++) {
        esp_weight_info info = esp_checkpoint_get(whole, i);
        CHECK_OK(esp_checkpoint_writer_declare(writer, &info, error));
    }
    CHECK_OK(esp_checkpoint_writer_begin(writer, error));
    for (int64_t i = 0; i < esp_checkpoint_count(whole); i++) {
        const char *name = esp_checkpoint_get(whole, i).name;
        esp_tensor tensor = read_by_name(run, f->context, whole, name);
        char producer[128] = "";
        int layer = 0;
        if (strstr(name, "mlp.down_proj") != NULL && sscanf(name, "model.layers.%d", &layer) == 1) {
            snprintf(producer, sizeof producer, "model.layers.%d.mlp.up_proj.weight", layer);
            mask_consumer(run, f, whole, shrunk, producer, 1, 1, &tensor, name);
        } else if (strstr(name, "o_proj") != NULL && sscanf(name, "model.layers.%d", &layer) == 1) {
            snprintf(producer, sizeof producer, "model.layers.%d.self_attn.v_proj.weight", layer);
            mask_consumer(run, f, whole, shrunk, producer, 64, 3, &tensor, name);
        }
        CHECK_OK(esp_checkpoint_writer_write_dense(writer, name, &tensor, error));
        esp_tensor_free(f->context, &tensor);
    }
    CHECK_OK(esp_checkpoint_writer_finish(writer, error));
    esp_checkpoint_writer_free(writer);
    esp_checkpoint_close(whole);
    esp_checkpoint_close(shrunk);
}

/* Sums of fewer terms in another grouping: rounding of f32, through six layers. */
static void check_same(test_run *run, folders *f)
{
    enum { COUNT = 4096 };
    static float logits[2][COUNT];
    double most = 0, apart = 0;
    write_masked(run, f);
    logits_of(run, f->context, f->device, f->out, logits[0], COUNT);
    logits_of(run, f->context, f->device, f->masked, logits[1], COUNT);
    for (int i = 0; i < COUNT; i++) {
        most = fmax(most, fabs((double)logits[0][i]));
        apart = fmax(apart, fabs((double)logits[0][i] - (double)logits[1][i]));
    }
    if (!(most > 0 && apart < 1e-4 * most)) {
        test_fail(run, __FILE__, __LINE__, "logits of up to %g are %g apart", most, apart);
    }
}

static void same_as_zeros(test_run *run)
{
    static const struct {
        double hidden, heads;
        bool looks;
        int64_t hidden_left, kv_left;
    } cases[] = {{0.25, 0, false, 768, 2},
                 {0, 0.5, false, 1024, 1},
                 {0.3, 0.5, false, 720, 1},
                 {0.5, 0.5, true, 512, 1}};
    size_t bytes = 0;
    char *text = file_text(PROSE, "calibration.txt", &bytes);
    esp_calibration_options calibration = {
        .text = text, .text_bytes = ESP_MIN(bytes, (size_t)20000), .tokens = 2048};
    folders f;
    folders_open(run, &f);
    for (int i = 0; i < ESP_COUNT(cases); i++) {
        test_sub(run, "%g of hidden features, %g of heads, by %s", cases[i].hidden, cases[i].heads,
                 cases[i].looks ? "outputs" : "squares");
        esp_shrink_summary summary = {0};
        esp_shrink_options options = {.hidden = cases[i].hidden,
                                      .heads = cases[i].heads,
                                      .multiple = 16,
                                      .calibration = cases[i].looks ? &calibration : NULL,
                                      .force = true};
        REQUIRE_OK(esp_shrink_checkpoint(f.device, PROSE, f.out, &options, &summary, error));
        CHECK_INT(summary.hidden_after, cases[i].hidden_left);
        CHECK_INT(summary.kv_heads_after, cases[i].kv_left);
        CHECK_INT(summary.heads_after, 3 * cases[i].kv_left);
        CHECK(summary.mean_loss > 0 && summary.mean_loss < 0.6);
        CHECK(summary.stored_bytes < summary.source_bytes);
        check_same(run, &f);
    }
    folders_close(run, &f);
    free(text);
}

/* Where layers read what the dense model gives them, no layer's choice depends on another's: hidden
 * features go alike with and without heads. */
static void dense_inputs(test_run *run)
{
    static const char name[] = "model.layers.1.mlp.down_proj.weight";
    size_t bytes = 0;
    char *text = file_text(PROSE, "calibration.txt", &bytes);
    esp_calibration_options calibration = {.text = text,
                                           .text_bytes = ESP_MIN(bytes, (size_t)10000),
                                           .tokens = 1024,
                                           .dense_inputs = true};
    esp_tensor down[2];
    folders f;
    folders_open(run, &f);
    for (int heads = 0; heads < 2; heads++) {
        const esp_shrink_options options = {
            .hidden = 0.5, .heads = 0.5 * heads, .calibration = &calibration, .force = true};
        esp_checkpoint *shrunk = NULL;
        REQUIRE_OK(esp_shrink_checkpoint(f.device, PROSE, f.out, &options, NULL, error));
        REQUIRE_OK(esp_checkpoint_open(f.context, f.out, &shrunk, error));
        down[heads] = read_by_name(run, f.context, shrunk, name);
        esp_checkpoint_close(shrunk);
    }
    CHECK_OK(esp_tensor_size(&down[0], NULL, &bytes, error));
    CHECK(memcmp(down[0].data, down[1].data, bytes) == 0);
    esp_tensor_free(f.context, &down[0]);
    esp_tensor_free(f.context, &down[1]);
    folders_close(run, &f);
    free(text);
}

/* ---- other models ---- */

static void other_models(test_run *run)
{
    folders f;
    folders_open(run, &f);
    const char *const models[] = {"bert", "sam", ESP_SOURCE_DIR "/models/glyphs"};
    for (int i = 0; i < ESP_COUNT(models); i++) {
        const char *from = i < 2 ? tiny_folder(run, models[i]) : models[i];
        const esp_shrink_options options = {.hidden = 0.5, .multiple = 4, .force = true};
        esp_shrink_options heads = {.heads = 0.5, .force = true};
        esp_shrink_summary summary = {0};
        esp_checkpoint *checkpoint = NULL;
        esp_model *model = NULL;
        test_sub(run, "%s", models[i]);
        CHECK_FAILS(esp_shrink_checkpoint(f.device, from, f.out, &heads, NULL, error),
                    ESP_UNSUPPORTED, "shrink.no_heads");
        REQUIRE_OK(esp_shrink_checkpoint(f.device, from, f.out, &options, &summary, error));
        CHECK_INT(summary.hidden_after, summary.hidden_before / 8 * 4);
        CHECK_INT(summary.heads_after, summary.heads_before);
        REQUIRE_OK(esp_checkpoint_open(f.context, f.out, &checkpoint, error));
        REQUIRE_OK(esp_model_load(f.device, checkpoint, NULL, &model, error));
        size_t stored = 0;
        for (int64_t k = 0; k < esp_checkpoint_count(checkpoint); k++) {
            stored += esp_checkpoint_get(checkpoint, k).dense_bytes;
        }
        CHECK(stored == summary.stored_bytes);
        esp_model_free(model);
        esp_checkpoint_close(checkpoint);
    }
    folders_close(run, &f);
}

/* ---- refusals ---- */

static bool stop(void *user, const char *what, double done, double total, const char *unit)
{
    (void)user, (void)what, (void)total, (void)unit;
    return done < 3;
}

static void refusals(test_run *run)
{
    folders f;
    folders_open(run, &f);
    static const esp_shrink_options bad[] = {
        {.hidden = 1}, {.hidden = -0.1}, {.heads = 1}, {.hidden = 0.5, .multiple = 1 << 20}};
    static const esp_shrink_options nothing[] = {
        {.hidden = 0}, {.hidden = 0.001}, {.heads = 0.1}, {.hidden = 0.5, .multiple = 4096}};
    snprintf(f.out, sizeof f.out, "%s/never", test_folder(run));
    for (int i = 0; i < ESP_COUNT(bad); i++) {
        CHECK_FAILS(esp_shrink_checkpoint(f.device, PROSE, f.out, &bad[i], NULL, error),
                    ESP_BAD_ARGUMENT, "shrink.bad_options");
        CHECK_FAILS(esp_shrink_checkpoint(f.device, PROSE, f.out, &nothing[i], NULL, error),
                    ESP_BAD_ARGUMENT, "shrink.nothing");
    }
    esp_shrink_options options = {.hidden = 0.5, .force = true};
    CHECK_FAILS(esp_shrink_checkpoint(f.device, PROSE, NULL, &options, NULL, error),
                ESP_BAD_ARGUMENT, "prune.no_target");
    test_sub(run, "interrupted");
    int before = test_entries(test_folder(run));
    options.progress = stop;
    CHECK_FAILS(esp_shrink_checkpoint(f.device, PROSE, f.out, &options, NULL, error), ESP_CANCELLED,
                "cancelled");
    CHECK_INT(test_entries(test_folder(run)), before);
    test_sub(run, "compressed");
    esp_prune_options prune = with_pattern(run, "2:4");
    options.progress = NULL;
    prune.force = true;
    CHECK_OK(
        esp_prune_checkpoint(f.context, tiny_folder(run, "plain"), f.masked, &prune, NULL, error));
    CHECK_FAILS(esp_shrink_checkpoint(f.device, f.masked, f.out, &options, NULL, error),
                ESP_BAD_ARGUMENT, "shrink.compressed");
    folders_close(run, &f);
}

static const test_case cases[] = {
    {"same as zeros", same_as_zeros},
    {"dense inputs", dense_inputs},
    {"other models", other_models},
    {"refusals", refusals},
};

TEST_MAIN(cases)
