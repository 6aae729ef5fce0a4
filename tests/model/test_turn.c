/* A turned model computes what the model does, whatever its norms, biases and head are; its folder
 * says so; pruning it costs less; and what is refused. */
#include <math.h>

#include <espalier/turn.h>

#include "assess/calibrate.h"
#include "io/io.h"
#include "model/calibrated_tools.h"
#include "model/model.h"

#define PROSE ESP_SOURCE_DIR "/models/prose"
#define TABLE "model.embed_tokens.weight"

enum { CHANNELS = 384, WORDS = 4096, LAYERS = 6, TOKENS = 512 };

typedef struct folders {
    esp_context *context;
    esp_device *device;
    char whole[1100], once[1100], twice[1100];
    char *text;
    size_t bytes;
} folders;

static void folders_open(test_run *run, folders *f)
{
    f->context = test_context(run, 2);
    snprintf(f->whole, sizeof f->whole, "%s/whole", test_folder(run));
    snprintf(f->once, sizeof f->once, "%s/once", test_folder(run));
    snprintf(f->twice, sizeof f->twice, "%s/twice", test_folder(run));
    f->text = file_text(PROSE, "calibration.txt", &f->bytes);
    f->bytes = ESP_MIN(f->bytes, (size_t)10000);
    REQUIRE_OK(esp_device_open(f->context, "cpu", &f->device, error));
}

static void folders_close(test_run *run, folders *f)
{
    esp_device_close(f->device);
    test_context_free(run, f->context);
    free(f->text);
}

static esp_status turn(folders *f, const char *from, const char *to, const char *pattern,
                       esp_turn_summary *summary, esp_error *error)
{
    const esp_calibration_options calibration = {
        .text = f->text, .text_bytes = f->bytes, .tokens = TOKENS};
    esp_turn_options options = {.calibration = &calibration, .force = true};
    esp_status status = esp_pattern_parse(pattern, &options.pattern, error);
    return status == ESP_OK ? esp_turn_checkpoint(f->device, from, to, &options, summary, error)
                            : status;
}

/* ---- a model whose rounding is far below what is looked for ---- */

static void declare_bias(test_run *run, esp_checkpoint_writer *writer, int layer, const char *name,
                         int64_t size)
{
    char full[128];
    snprintf(full, sizeof full, "model.layers.%d.self_attn.%s_proj.bias", layer, name);
    esp_weight_info info = {.name = full, .dtype = ESP_F32, .rank = 1, .shape = {size}};
    info.dense_bytes = (size_t)size * sizeof(float);
    CHECK_OK(esp_checkpoint_writer_declare(writer, &info, error));
}

static void write_bias(test_run *run, esp_context *context, esp_checkpoint_writer *writer,
                       int layer, const char *name, int64_t size)
{
    char full[128];
    esp_tensor bias;
    snprintf(full, sizeof full, "model.layers.%d.self_attn.%s_proj.bias", layer, name);
    REQUIRE_OK(esp_tensor_create(context, ESP_F32, 1, &size, &bias, error));
    for (int64_t i = 0; i < size; i++) {
        ((float *)bias.data)[i] = 0.01f * (float)((i * 37 + layer) % 19 - 9);
    }
    CHECK_OK(esp_checkpoint_writer_write_dense(writer, full, &bias, error));
    esp_tensor_free(context, &bias);
}

static void write_wide(test_run *run, folders *f, const esp_checkpoint *from,
                       esp_checkpoint_writer *writer, int64_t index)
{
    esp_weight_info info = esp_checkpoint_get(from, index);
    esp_tensor narrow, wide;
    REQUIRE_OK(esp_tensor_create(f->context, info.dtype, info.rank, info.shape, &narrow, error));
    REQUIRE_OK(esp_tensor_create(f->context, ESP_F32, info.rank, info.shape, &wide, error));
    CHECK_OK(esp_checkpoint_read_dense(from, index, &narrow, error));
    esp_widen(info.dtype, narrow.data, info.shape[0] * (info.rank > 1 ? info.shape[1] : 1),
              wide.data);
    if (strcmp(info.name, "model.layers.2.input_layernorm.weight") == 0) {
        ((float *)wide.data)[7] = 0; /* a channel that nobody reads there */
    }
    CHECK_OK(esp_checkpoint_writer_write_dense(writer, info.name, &wide, error));
    esp_tensor_free(f->context, &narrow);
    esp_tensor_free(f->context, &wide);
}

/* models/prose in f32, with biases of attention. */
static void write_whole(test_run *run, folders *f)
{
    static const struct {
        const char *name;
        int64_t size;
    } biases[] = {{"q", CHANNELS}, {"k", 128}, {"v", 128}, {"o", CHANNELS}};
    esp_checkpoint *from = NULL;
    esp_checkpoint_writer *writer = NULL;
    REQUIRE_OK(esp_checkpoint_open(f->context, PROSE, &from, error));
    REQUIRE_OK(esp_checkpoint_writer_create(f->context, from, f->whole, true, &writer, error));
    CHECK_OK(esp_checkpoint_writer_set_bool(writer, NULL, "attention_bias", true, error));
    for (int64_t i = 0; i < esp_checkpoint_count(from); i++) {
        esp_weight_info info = esp_checkpoint_get(from, i);
        info.dtype = ESP_F32;
        info.stored_bytes = 0;
        info.has_crc32c = false;
        CHECK_OK(esp_checkpoint_writer_declare(writer, &info, error));
    }
    for (int i = 0; i < LAYERS * ESP_COUNT(biases); i++) {
        declare_bias(run, writer, i / ESP_COUNT(biases), biases[i % ESP_COUNT(biases)].name,
                     biases[i % ESP_COUNT(biases)].size);
    }
    CHECK_OK(esp_checkpoint_writer_begin(writer, error));
    for (int64_t i = 0; i < esp_checkpoint_count(from); i++) {
        write_wide(run, f, from, writer, i);
    }
    for (int i = 0; i < LAYERS * ESP_COUNT(biases); i++) {
        write_bias(run, f->context, writer, i / ESP_COUNT(biases),
                   biases[i % ESP_COUNT(biases)].name, biases[i % ESP_COUNT(biases)].size);
    }
    CHECK_OK(esp_checkpoint_writer_finish(writer, error));
    esp_checkpoint_writer_free(writer);
    esp_checkpoint_close(from);
}

/* ---- the same ---- */

static void check_near(test_run *run, const float *one, const float *other)
{
    double most = 0, apart = 0;
    for (int i = 0; i < WORDS; i++) {
        most = fmax(most, fabs((double)one[i]));
        apart = fmax(apart, fabs((double)one[i] - (double)other[i]));
    }
    if (!(most > 0 && apart < 1e-4 * most)) {
        test_fail(run, __FILE__, __LINE__, "logits of up to %g are %g apart", most, apart);
    }
}

static esp_tensor read_by_name(test_run *run, folders *f, const char *folder, const char *name)
{
    esp_tensor tensor = {0};
    esp_checkpoint *from = NULL;
    CHECK_OK(esp_checkpoint_open(f->context, folder, &from, error));
    int64_t index = from != NULL ? esp_checkpoint_find(from, name) : -1;
    if (index < 0) {
        test_fail(run, __FILE__, __LINE__, "%s is missing", name);
    } else {
        esp_weight_info info = esp_checkpoint_get(from, index);
        CHECK_OK(esp_tensor_create(f->context, info.dtype, info.rank, info.shape, &tensor, error));
        CHECK_OK(esp_checkpoint_read_dense(from, index, &tensor, error));
    }
    esp_checkpoint_close(from);
    return tensor;
}

/* A turn keeps lengths, and does turn. */
static void check_table(test_run *run, folders *f)
{
    esp_tensor whole = read_by_name(run, f, f->whole, TABLE);
    esp_tensor once = read_by_name(run, f, f->once, TABLE);
    const float *a = whole.data, *b = once.data;
    double apart = 0, lengths = 0;
    for (int r = 0; r < WORDS; r++) {
        double length[2] = {0, 0};
        for (int j = 0; j < CHANNELS; j++) {
            double x = (double)a[r * CHANNELS + j], y = (double)b[r * CHANNELS + j];
            length[0] += x * x;
            length[1] += y * y;
            apart = fmax(apart, fabs(x - y));
        }
        lengths = fmax(lengths, fabs(length[0] - length[1]) / (length[0] + 1e-30));
    }
    CHECK(lengths < 1e-6);
    CHECK(apart > 1e-3);
    esp_tensor_free(f->context, &whole);
    esp_tensor_free(f->context, &once);
}

static void check_norms(test_run *run, folders *f)
{
    static const char *const names[] = {"model.norm.weight",
                                        "model.layers.2.input_layernorm.weight",
                                        "model.layers.5.post_attention_layernorm.weight"};
    for (int i = 0; i < ESP_COUNT(names); i++) {
        esp_tensor norm = read_by_name(run, f, f->once, names[i]);
        for (int j = 0; j < CHANNELS; j++) {
            CHECK(((const float *)norm.data)[j] == 1);
        }
        esp_tensor_free(f->context, &norm);
    }
}

static void same(test_run *run)
{
    static float logits[3][WORDS];
    esp_turn_summary summary = {0};
    folders f;
    folders_open(run, &f);
    write_whole(run, &f);
    REQUIRE_OK(turn(&f, f.whole, f.once, "128:2:5", &summary, error));
    CHECK_INT(summary.channels, CHANNELS);
    CHECK_INT(summary.readers, 5 * LAYERS);
    CHECK(summary.untied);
    CHECK(summary.stored_bytes == summary.source_bytes + sizeof(float) * WORDS * CHANNELS);
    CHECK(summary.strongest_axes > summary.strongest_channels && summary.strongest_channels > 0.25);
    logits_of(run, f.context, f.device, f.whole, logits[0], WORDS);
    logits_of(run, f.context, f.device, f.once, logits[1], WORDS);
    check_near(run, logits[0], logits[1]);
    check_table(run, &f);
    check_norms(run, &f);
    test_sub(run, "a head of its own"); /* and what was turned has little left to gain */
    REQUIRE_OK(turn(&f, f.once, f.twice, "panel:64@0.75", &summary, error));
    CHECK(!summary.untied && summary.stored_bytes == summary.source_bytes);
    logits_of(run, f.context, f.device, f.twice, logits[2], WORDS);
    check_near(run, logits[0], logits[2]);
    CHECK(summary.strongest_axes < 1.01 * summary.strongest_channels);
    folders_close(run, &f);
}

/* ---- what it is for ---- */

static void pays(test_run *run)
{
    static const char *const others = "model.layers.[2-5].*"; /* two of six layers do */
    esp_calibration_summary errors[2];
    folders f;
    folders_open(run, &f);
    REQUIRE_OK(turn(&f, PROSE, f.once, "128:2:5", NULL, error));
    for (int turned = 0; turned < 2; turned++) {
        const esp_calibration_options options = {.text = f.text,
                                                 .text_bytes = f.bytes,
                                                 .tokens = 1024,
                                                 .method = ESP_METHOD_SPARSE_GPT,
                                                 .dense_inputs = true};
        esp_prune_options prune = with_pattern(run, "128:2:5");
        prune.force = true;
        prune.skips = &others;
        prune.skip_count = 1;
        REQUIRE_OK(esp_prune_calibrated(f.device, turned ? f.once : PROSE, f.twice, &prune,
                                        &options, NULL, &errors[turned], error));
    }
    if (!(errors[1].mean_error < 0.9 * errors[0].mean_error)) {
        test_fail(run, __FILE__, __LINE__, "%g where the model as it is has %g",
                  errors[1].mean_error, errors[0].mean_error);
    }
    folders_close(run, &f);
}

/* ---- what cannot be held ---- */

/* models/prose in f16, where a row of queries is large and so is what the norm does to it. */
static void write_steep(test_run *run, folders *f)
{
    esp_checkpoint *from = NULL;
    esp_checkpoint_writer *writer = NULL;
    REQUIRE_OK(esp_checkpoint_open(f->context, PROSE, &from, error));
    REQUIRE_OK(esp_checkpoint_writer_create(f->context, from, f->whole, true, &writer, error));
    for (int64_t i = 0; i < esp_checkpoint_count(from); i++) {
        esp_weight_info info = esp_checkpoint_get(from, i);
        info.dtype = ESP_F16;
        info.stored_bytes = 0;
        info.has_crc32c = false;
        CHECK_OK(esp_checkpoint_writer_declare(writer, &info, error));
    }
    CHECK_OK(esp_checkpoint_writer_begin(writer, error));
    for (int64_t i = 0; i < esp_checkpoint_count(from); i++) {
        esp_weight_info info = esp_checkpoint_get(from, i);
        int64_t count = info.shape[0] * (info.rank > 1 ? info.shape[1] : 1);
        bool steep = strcmp(info.name, "model.layers.3.input_layernorm.weight") == 0;
        esp_tensor tensor, narrow;
        REQUIRE_OK(
            esp_tensor_create(f->context, info.dtype, info.rank, info.shape, &tensor, error));
        REQUIRE_OK(esp_tensor_create(f->context, ESP_F16, info.rank, info.shape, &narrow, error));
        CHECK_OK(esp_checkpoint_read_dense(from, i, &tensor, error));
        for (int64_t k = 0; k < count; k++) {
            bool large =
                strcmp(info.name, "model.layers.3.self_attn.q_proj.weight") == 0 && k < CHANNELS;
            float value = steep ? 3000 : large ? 90 : esp_weight_at(info.dtype, tensor.data, k);
            esp_narrow(ESP_F16, &value, 1, (char *)narrow.data + 2 * k);
        }
        CHECK_OK(esp_checkpoint_writer_write_dense(writer, info.name, &narrow, error));
        esp_tensor_free(f->context, &tensor);
        esp_tensor_free(f->context, &narrow);
    }
    CHECK_OK(esp_checkpoint_writer_finish(writer, error));
    esp_checkpoint_writer_free(writer);
    esp_checkpoint_close(from);
}

static void not_finite(test_run *run)
{
    folders f;
    folders_open(run, &f);
    write_steep(run, &f);
    int before = test_entries(test_folder(run));
    CHECK_FAILS(turn(&f, f.whole, f.once, "2:4", NULL, error), ESP_CHECK_FAILED, "turn.not_finite");
    CHECK_INT(test_entries(test_folder(run)), before);
    test_sub(run, "weights that are no numbers");
    const char *damaged = tiny_folder(run, "nan");
    before = test_entries(test_folder(run));
    CHECK_FAILS(turn(&f, damaged, f.once, "2:4", NULL, error), ESP_CHECK_FAILED, "turn.not_finite");
    CHECK_INT(test_entries(test_folder(run)), before);
    folders_close(run, &f);
}

/* ---- groups ---- */

static void groups(test_run *run)
{
    static const struct {
        const char *pattern;
        int64_t group;
    } rows[] = {{"2:4", 4},     {"4:8", 8},           {"1:16", 16},
                {"128:2:5", 5}, {"panel:64@0.75", 4}, {"dense", 4}};
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        const esp_pattern pattern = with_pattern(run, rows[i].pattern).pattern;
        test_sub(run, "%s", rows[i].pattern);
        CHECK_INT(esp_turn_group(&pattern), rows[i].group);
    }
}

/* ---- refusals ---- */

static bool never(void *user, const char *what, double done, double total, const char *unit)
{
    (void)what, (void)done, (void)total, (void)unit;
    *(bool *)user = true;
    return true;
}

static bool stop(void *user, const char *what, double done, double total, const char *unit)
{
    (void)user, (void)done, (void)total, (void)unit;
    return strcmp(what, "turning") != 0;
}

static void refusals(test_run *run)
{
    folders f;
    folders_open(run, &f);
    const esp_calibration_options calibration = {
        .text = f.text, .text_bytes = f.bytes, .tokens = TOKENS};
    esp_turn_options options = {.calibration = &calibration, .force = true};
    CHECK_FAILS(turn(&f, ESP_SOURCE_DIR "/models/glyphs", f.once, "2:4", NULL, error),
                ESP_UNSUPPORTED, "turn.no_rms_norm");
    CHECK_FAILS(turn(&f, tiny_folder(run, "bert"), f.once, "2:4", NULL, error), ESP_UNSUPPORTED,
                "turn.no_rms_norm");
    CHECK_FAILS(esp_turn_checkpoint(f.device, PROSE, NULL, &options, NULL, error), ESP_BAD_ARGUMENT,
                "prune.no_target");
    options.calibration = NULL;
    CHECK_FAILS(esp_turn_checkpoint(f.device, PROSE, f.once, &options, NULL, error),
                ESP_BAD_ARGUMENT, "turn.no_samples");
    CHECK_FAILS(esp_turn_checkpoint(f.device, PROSE, f.once, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "turn.no_samples");
    options.calibration = &calibration;
    options.pattern = (esp_pattern){.kind = ESP_PATTERN_PANEL, .v = 64, .m = INT64_MAX};
    CHECK_FAILS(esp_turn_checkpoint(f.device, PROSE, f.once, &options, NULL, error),
                ESP_BAD_ARGUMENT, "pattern.m_too_large");
    options.pattern = (esp_pattern){.kind = ESP_PATTERN_DENSE};
    test_sub(run, "interrupted");
    int before = test_entries(test_folder(run));
    options.calibration = &calibration;
    options.progress = stop;
    CHECK_FAILS(esp_turn_checkpoint(f.device, PROSE, f.once, &options, NULL, error), ESP_CANCELLED,
                "cancelled");
    CHECK_INT(test_entries(test_folder(run)), before);
    test_sub(run, "compressed");
    esp_prune_options prune = with_pattern(run, "2:4");
    prune.force = true;
    CHECK_OK(
        esp_prune_checkpoint(f.context, tiny_folder(run, "plain"), f.twice, &prune, NULL, error));
    CHECK_FAILS(turn(&f, f.twice, f.once, "2:4", NULL, error), ESP_BAD_ARGUMENT, "turn.compressed");
    test_sub(run, "a folder that is there, before samples are looked at");
    bool looked = false;
    options.force = false;
    options.progress = never;
    options.user = &looked;
    CHECK_FAILS(esp_turn_checkpoint(f.device, PROSE, f.twice, &options, NULL, error), ESP_FAILED,
                "checkpoint.exists");
    CHECK(!looked);
    folders_close(run, &f);
}

static const test_case cases[] = {
    {"same", same},     {"pays", pays},         {"not finite", not_finite},
    {"groups", groups}, {"refusals", refusals},
};

TEST_MAIN(cases)
