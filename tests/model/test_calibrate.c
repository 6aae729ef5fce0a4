/* Calibrated pruning of whole folders: what is written fits its pattern, is the same each time, and
 * says how it was made; each kind of model; and what is refused. */
#include <math.h>

#include "model/calibrated_tools.h"
#include "model/model.h"

static void patterns(test_run *run)
{
    static const struct {
        const char *pattern, *stored;
        esp_method method;
    } wanted[] = {{"2:4", "\"2:4\"", ESP_METHOD_SPARSE_GPT},
                  {"16:2:8", "\"16:2:8\"", ESP_METHOD_SPARSE_GPT},
                  {"64:2:5", ":2:5\"", ESP_METHOD_OBD},
                  {"16:2:8", "\"16:2:8\"", ESP_METHOD_OBS},
                  {"panel:16@0.75", "\"panel:16@0.75\"", ESP_METHOD_OBS},
                  {"16:2:8", "\"16:2:8\"", ESP_METHOD_JOINT},
                  {"panel:16@0.75", "\"panel:16@0.75\"", ESP_METHOD_JOINT},
                  {"2:4", "\"2:4\"", ESP_METHOD_JOINT},
                  {"4:8", "\"4:8\"", ESP_METHOD_WANDA},
                  {"panel:16@0.75", "\"panel:16@0.75\"", ESP_METHOD_SPARSE_GPT},
                  {"block:16x16@0.5", "\"block:16x16@0.5\"", ESP_METHOD_RIA},
                  {"unstructured@0.8", "\"unstructured@0.8\"", ESP_METHOD_SPARSE_GPT},
                  {"16:2:16", "\"16:2:16\"", ESP_METHOD_SQUARE}};
    const char *model = tiny_folder(run, "plain");
    char once[1100], again[1100];
    snprintf(once, sizeof once, "%s/once", test_folder(run));
    snprintf(again, sizeof again, "%s/again", test_folder(run));
    for (int i = 0; i < ESP_COUNT(wanted); i++) {
        test_sub(run, "%s by %s", wanted[i].pattern, esp_method_name(wanted[i].method));
        seen_errors seen = {0}, same = {0};
        esp_calibration_summary summary = {0};
        esp_calibration_options options = with_text(wanted[i].method, true);
        options.targets = (esp_targets)(i % 3);
        CHECK_OK(prune_at(run, 2, model, once, wanted[i].pattern, options, &summary, &seen, error));
        CHECK_OK(prune_at(run, 2, model, again, wanted[i].pattern, options, NULL, &same, error));
        CHECK(same_file(once, again, "model.safetensors"));
        CHECK(same_file(once, again, "espalier.json"));
        check_folder(run, once, wanted[i].stored, 14);
        CHECK_INT(seen.layers, 14);
        /* what the refit is for; the joint search ends with one */
        CHECK(!seen.odd &&
              seen.error < (wanted[i].method == ESP_METHOD_JOINT ? 1.001 : 1.0) * seen.masked);
        CHECK(summary.tokens > 2000 && summary.samples > 10 && summary.mean_error > 0);
        size_t bytes;
        char *marker = file_text(once, "espalier.json", &bytes);
        CHECK(marker != NULL && strstr(marker, "\"calibration\": {\"method\": \"") != NULL);
        free(marker);
    }
}

/* Without a look at inputs it is what prune does. */
static void plain_magnitude(test_run *run)
{
    const char *model = tiny_folder(run, "plain");
    char one[1100], other[1100];
    esp_prune_options prune = with_pattern(run, "16:2:8");
    snprintf(one, sizeof one, "%s/magnitude", test_folder(run));
    snprintf(other, sizeof other, "%s/prune", test_folder(run));
    CHECK_OK(prune_at(run, 1, model, one, "16:2:8", with_text(ESP_METHOD_MAGNITUDE, false), NULL,
                      NULL, error));
    esp_context *context = test_context(run, 1);
    CHECK_OK(esp_prune_checkpoint(context, model, other, &prune, NULL, error));
    CHECK(same_file(one, other, "model.safetensors") && same_file(one, other, "config.json"));
    test_context_free(run, context);
}

/* In steps a layer loses less on equal inputs than at once, by every method that has steps;
 * patterns that have none come out the same. */
static void gradual(test_run *run)
{
    static const esp_method methods[] = {ESP_METHOD_MAGNITUDE, ESP_METHOD_SQUARE,
                                         ESP_METHOD_OBD,       ESP_METHOD_WANDA,
                                         ESP_METHOD_RIA,       ESP_METHOD_SPARSE_GPT};
    const char *model = tiny_folder(run, "plain");
    char once[1100], again[1100];
    snprintf(once, sizeof once, "%s/direct", test_folder(run));
    snprintf(again, sizeof again, "%s/gradual", test_folder(run));
    for (int i = 0; i < ESP_COUNT(methods); i++) {
        test_sub(run, "%s", esp_method_name(methods[i]));
        esp_calibration_options options = with_text(methods[i], true);
        esp_calibration_summary summary[2] = {{0}};
        options.dense_inputs = true;
        for (int k = 0; k < 2; k++) {
            options.gradual = k == 1;
            CHECK_OK(prune_at(run, 2, model, once, "16:2:8", options, &summary[k], NULL, error));
        }
        check_folder(run, once, "\"16:2:8\"", 14);
        if (!(summary[1].mean_error < summary[0].mean_error)) {
            test_fail(run, __FILE__, __LINE__, "errors: at once %g, in steps %g",
                      summary[0].mean_error, summary[1].mean_error);
        }
    }
    test_sub(run, "a pattern without steps");
    esp_calibration_options options = with_text(ESP_METHOD_WANDA, true);
    CHECK_OK(prune_at(run, 2, model, once, "2:4", options, NULL, NULL, error));
    options.gradual = true;
    CHECK_OK(prune_at(run, 2, model, again, "2:4", options, NULL, NULL, error));
    CHECK(same_file(once, again, "model.safetensors"));
    test_sub(run, "refusals");
    options.refit = false;
    CHECK_FAILS(prune_at(run, 1, model, once, "16:2:8", options, NULL, NULL, error),
                ESP_BAD_ARGUMENT, "calibrate.bad_options");
    options.refit = true;
    options.method = ESP_METHOD_OBS;
    CHECK_FAILS(prune_at(run, 1, model, once, "16:2:8", options, NULL, NULL, error),
                ESP_BAD_ARGUMENT, "calibrate.bad_options");
}

/* ---- errors of layers ---- */

enum { MOST_SEEN = 32 };

typedef struct seen_list {
    int count;
    esp_calibrated_layer layers[MOST_SEEN];
} seen_list;

static void list_layer(void *user, const esp_calibrated_layer *layer)
{
    seen_list *list = user;
    if (list->count < MOST_SEEN) {
        list->layers[list->count++] = *layer;
    }
}

static void prune_listed(test_run *run, esp_calibration_options options, seen_list *list,
                         esp_calibration_summary *summary)
{
    char out[1100];
    esp_context *context = test_context(run, 1);
    esp_device *device = NULL;
    esp_prune_options prune = with_pattern(run, "16:2:8");
    snprintf(out, sizeof out, "%s/listed", test_folder(run));
    prune.force = true;
    options.on_layer = list_layer;
    options.user = list;
    *list = (seen_list){0};
    CHECK_OK(esp_device_open(context, "cpu", &device, error));
    CHECK_OK(esp_prune_calibrated(device, tiny_folder(run, "plain"), out, &prune, &options, NULL,
                                  summary, error));
    esp_device_close(device);
    test_context_free(run, context);
}

/* The number that as many are above as below; slow and plain. */
static bool is_median(const seen_list *list, double median)
{
    int below = 0, above = 0;
    for (int i = 0; i < list->count; i++) {
        below += list->layers[i].error < median;
        above += list->layers[i].error > median;
    }
    return below == above;
}

/* With the dense model's inputs a layer's target is itself, and what is done to one layer does not
 * reach another. */
static void dense_inputs(test_run *run)
{
    seen_list wanda, refit, pruned;
    esp_calibration_summary summary = {0};
    esp_calibration_options options = with_text(ESP_METHOD_WANDA, false);
    prune_listed(run, options, &pruned, &summary);
    CHECK(is_median(&pruned, summary.median_error));
    CHECK(summary.median_error == summary.median_own_error);
    options.dense_inputs = true;
    prune_listed(run, options, &wanda, &summary);
    options.refit = true;
    prune_listed(run, options, &refit, &summary);
    CHECK(is_median(&refit, summary.median_error));
    CHECK(summary.median_error < summary.median_masked_error);
    CHECK(wanda.count == 14 && refit.count == 14 && pruned.count == 14);
    for (int i = 0; i < wanda.count && i < refit.count; i++) {
        const esp_calibrated_layer *layer = &refit.layers[i];
        /* up to the rounding of weights to their type */
        CHECK(fabs(layer->masked_error - wanda.layers[i].error) < 1e-3 * layer->masked_error);
        CHECK(layer->error < layer->masked_error);
        CHECK(layer->own_error == layer->error);
    }
    /* the first layer reads the same either way, a later one does not */
    CHECK(pruned.layers[0].error == wanda.layers[0].error);
    CHECK(pruned.layers[13].error != wanda.layers[13].error);
}

/* ---- images ---- */

static esp_status read_image(void *user, int64_t index, esp_image *image, esp_error *error)
{
    static uint8_t pixels[40 * 40 * 3];
    int64_t unreadable = *(const int64_t *)user;
    if (index == unreadable) {
        return esp_fail(error, ESP_BAD_FILE, "image.damaged", "image %lld", (long long)index);
    }
    uint64_t state = (uint64_t)index;
    for (int i = 0; i < ESP_COUNT(pixels); i++) {
        pixels[i] = (uint8_t)(esp_splitmix64(&state) % 256);
    }
    *image = (esp_image){.width = 40, .height = 40, .pixels = pixels};
    return ESP_OK;
}

static void other_models(test_run *run)
{
    char out[1100];
    int64_t unreadable = -1;
    snprintf(out, sizeof out, "%s/other", test_folder(run));
    test_sub(run, "an encoder");
    seen_errors seen = {0};
    CHECK_OK(prune_at(run, 2, tiny_folder(run, "bert"), out, "16:2:8",
                      with_text(ESP_METHOD_SPARSE_GPT, true), NULL, &seen, error));
    check_folder(run, out, "\"16:2:8\"", 12);
    CHECK(seen.layers == 12 && seen.error < seen.masked && !seen.odd);

    const esp_image_set images = {.count = 40, .read = read_image, .user = &unreadable};
    esp_calibration_options options = {
        .images = &images, .method = ESP_METHOD_SPARSE_GPT, .refit = true};
    test_sub(run, "an image encoder with windows");
    seen = (seen_errors){0};
    CHECK_OK(prune_at(run, 2, tiny_folder(run, "sam"), out, "16:2:8", options, NULL, &seen, error));
    check_folder(run, out, "\"16:2:8\"", 8);
    CHECK(seen.layers == 8 && seen.error < seen.masked && !seen.odd);

    test_sub(run, "an unreadable image");
    unreadable = 13;
    CHECK_FAILS(prune_at(run, 1, tiny_folder(run, "sam"), out, "2:4", options, NULL, NULL, error),
                ESP_BAD_FILE, "image.damaged");
    test_sub(run, "no images");
    const esp_image_set none = {.count = 0, .read = read_image, .user = &unreadable};
    options.images = &none;
    CHECK_FAILS(prune_at(run, 1, tiny_folder(run, "sam"), out, "2:4", options, NULL, NULL, error),
                ESP_BAD_ARGUMENT, "calibrate.too_short");
    test_sub(run, "images for a decoder");
    CHECK_FAILS(prune_at(run, 1, tiny_folder(run, "plain"), out, "2:4", options, NULL, NULL, error),
                ESP_BAD_ARGUMENT, "calibrate.wrong_data");
}

/* ---- rows grouped in panels ---- */

/* *loss: the mean error of the layers, each by itself. */
static esp_status regroup(test_run *run, bool groups, const char *pattern, const char *rule,
                          esp_method method, bool gradual, double *loss, esp_error *error)
{
    const char *model = tiny_folder(run, "plain");
    esp_calibration_summary summary = {0};
    esp_context *context = test_context(run, 2);
    esp_device *device = NULL;
    esp_calibration_options options = with_text(method, gradual);
    esp_prune_options prune = with_pattern(run, pattern);
    const esp_pattern_rule rules[] = {
        {.glob = "*q_proj*", .pattern = with_pattern(run, rule).pattern}};
    char out[1100];
    snprintf(out, sizeof out, "%s/regrouped", test_folder(run));
    options.gradual = gradual;
    options.dense_inputs = true;
    prune.mask.regroup = groups;
    prune.force = true;
    prune.rules = rules;
    prune.rule_count = ESP_COUNT(rules);
    esp_status status = esp_device_open(context, "cpu", &device, error);
    if (status == ESP_OK) {
        status = esp_prune_calibrated(device, model, out, &prune, &options, NULL, &summary, error);
    }
    esp_device_close(device);
    test_context_free(run, context);
    *loss = summary.mean_error;
    return status;
}

/* Rows are grouped by what their weights cost, whatever chooses the panels' columns then. Panels of
 * all rows have no order. */
static void regrouped(test_run *run)
{
    static const struct {
        const char *pattern, *rule;
        esp_method method;
        bool gradual;
    } wanted[] = {{"16:2:8", "2:4", ESP_METHOD_WANDA, false},
                  {"panel:16@0.75", "2:4", ESP_METHOD_SPARSE_GPT, false},
                  {"16:2:8", "16:2:8", ESP_METHOD_SPARSE_GPT, true},
                  {"16:2:8", "2:4", ESP_METHOD_SPARSE_GPT, false},
                  {"2:4", "2:4", ESP_METHOD_OBS, false},
                  {"256:2:8", "64:2:8", ESP_METHOD_OBS, false},
                  {"64:2:8", "64:2:8", ESP_METHOD_OBS, false}, /* layers of 176 rows */
                  {"2:4", "16:2:8", ESP_METHOD_OBS, false},
                  {"16:2:8", "panel:32@0.5", ESP_METHOD_VENOM, false},
                  {"panel:256@0.75", "64:2:8", ESP_METHOD_JOINT, false},
                  {"panel:16@0.75", "2:4", ESP_METHOD_JOINT, false},
                  {"16:2:5", "16:2:8", ESP_METHOD_JOINT, false}};
    char out[1100];
    snprintf(out, sizeof out, "%s/regrouped", test_folder(run));
    for (int i = 0; i < ESP_COUNT(wanted); i++) {
        double plain = 0, grouped = 0;
        test_sub(run, "%s by %s", wanted[i].pattern, esp_method_name(wanted[i].method));
        CHECK_OK(regroup(run, false, wanted[i].pattern, wanted[i].rule, wanted[i].method,
                         wanted[i].gradual, &plain, error));
        CHECK_OK(regroup(run, true, wanted[i].pattern, wanted[i].rule, wanted[i].method,
                         wanted[i].gradual, &grouped, error));
        check_folder(run, out, "\"format_version\"", 14);
        if (wanted[i].method >= ESP_METHOD_SPARSE_GPT && !(grouped <= 1.01 * plain)) {
            test_fail(run, __FILE__, __LINE__, "mean error %g, in groups %g", plain, grouped);
        }
        if (getenv("TEST_SHOW") != NULL) {
            printf("%s %s: %g, in groups %g\n", wanted[i].pattern, wanted[i].rule, plain, grouped);
        }
    }
}

/* ---- refusals ---- */

static void refusals(test_run *run)
{
    const char *model = tiny_folder(run, "plain");
    char out[1100], zeros[1100];
    snprintf(out, sizeof out, "%s/refused", test_folder(run));
    snprintf(zeros, sizeof zeros, "%s/zeros", test_folder(run));
    esp_calibration_options good = with_text(ESP_METHOD_WANDA, false), bad = good;

    test_sub(run, "short texts");
    bad.text_bytes = 60;
    CHECK_FAILS(prune_at(run, 1, model, out, "2:4", bad, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "calibrate.too_short");
    bad.text_bytes = 130;
    CHECK_OK(prune_at(run, 1, model, out, "2:4", bad, NULL, NULL, error));
    bad.method = ESP_METHOD_SPARSE_GPT; /* the widest layer reads as many features or more */
    bad.tokens = 32;
    bad.context = 32;
    CHECK_FAILS(prune_at(run, 1, model, out, "2:4", bad, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "calibrate.too_short");

    test_sub(run, "weights that are no numbers");
    static const esp_method methods[] = {ESP_METHOD_WANDA, ESP_METHOD_SPARSE_GPT, ESP_METHOD_JOINT};
    for (int i = 0; i < ESP_COUNT(methods); i++) {
        bad = good;
        bad.method = methods[i];
        CHECK_FAILS(prune_at(run, 1, tiny_folder(run, "nan"), out, "8:2:8", bad, NULL, NULL, error),
                    ESP_CHECK_FAILED, "calibrate.not_finite");
    }
    model = tiny_folder(run, "plain");

    test_sub(run, "options");
    bad = good;
    bad.method = (esp_method)99;
    CHECK_FAILS(prune_at(run, 1, model, out, "2:4", bad, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "calibrate.bad_method");
    bad = good;
    bad.damping = (double)NAN;
    CHECK_FAILS(prune_at(run, 1, model, out, "2:4", bad, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "calibrate.bad_options");
    bad = good;
    bad.context = 1 << 20;
    CHECK_FAILS(prune_at(run, 1, model, out, "2:4", bad, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "calibrate.bad_context");
    CHECK_FAILS(prune_at(run, 1, model, NULL, "2:4", good, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "prune.no_target");

    test_sub(run, "pruned before");
    CHECK_OK(prune_at(run, 1, model, out, "2:4", good, NULL, NULL, error));
    CHECK_FAILS(prune_at(run, 1, out, zeros, "2:4", good, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "prune.already_compressed");
    esp_context *context = test_context(run, 1);
    esp_prune_options dense = {0};
    CHECK_OK(esp_convert_checkpoint(context, out, zeros, ESP_CONVERT_DENSE, &dense, NULL, error));
    test_context_free(run, context);
    CHECK_FAILS(prune_at(run, 1, zeros, out, "2:4", good, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "calibrate.already_pruned");
    esp_calibration_options respect = with_text(ESP_METHOD_SPARSE_GPT, true);
    respect.respect = true;
    CHECK_OK(prune_at(run, 1, zeros, out, "2:4", respect, NULL, NULL, error));
    check_folder(run, out, "\"2:4\"", 14);
}

/* A weight of layer 1 is NaN: it is named, or, left alone, what reads its output. */
static void not_finite(test_run *run)
{
    static const struct {
        const char *skip, *name;
    } rows[] = {{"*.0.mlp.up_proj", "model.layers.1.mlp.up_proj.weight"},
                {"*.1.mlp.up_proj", "model.layers.1.mlp.down_proj.weight"}};
    const char *model = tiny_folder(run, "nan");
    char out[1100];
    snprintf(out, sizeof out, "%s/never", test_folder(run));
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        esp_context *context = test_context(run, 1);
        esp_device *device = NULL;
        const esp_calibration_options options = with_text(ESP_METHOD_SPARSE_GPT, true);
        esp_prune_options prune = with_pattern(run, "2:4");
        esp_error why = {0};
        prune.skips = &rows[i].skip;
        prune.skip_count = 1;
        test_sub(run, "without %s", rows[i].skip);
        REQUIRE_OK(esp_device_open(context, "cpu", &device, error));
        CHECK_INT(esp_prune_calibrated(device, model, out, &prune, &options, NULL, NULL, &why),
                  ESP_CHECK_FAILED);
        CHECK_TEXT(why.code, "calibrate.not_finite");
        CHECK(strstr(why.message, rows[i].name) != NULL && !esp_path_exists(out));
        esp_device_close(device);
        test_context_free(run, context);
    }
}

static const test_case cases[] = {
    {"patterns", patterns},         {"magnitude", plain_magnitude}, {"gradual", gradual},
    {"dense inputs", dense_inputs}, {"other models", other_models}, {"regrouped", regrouped},
    {"refusals", refusals},         {"not finite", not_finite},
};

TEST_MAIN(cases)
