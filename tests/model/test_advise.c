/* Advice: losses that are those of pruning, what is predicted of whole models, wishes for them, and
 * random weights. */
#include <math.h>

#include <espalier/advise.h>

#include "model/calibrated_tools.h"

/* The first layers read the same in advice and in a pruning, so they lose the same. */
static void advised(test_run *run)
{
    const char *model = tiny_folder(run, "plain");
    char out[1100];
    snprintf(out, sizeof out, "%s/advised", test_folder(run));
    esp_context *context = test_context(run, 1);
    esp_device *device = NULL;
    esp_checkpoint *checkpoint = NULL;
    esp_advice *advice = NULL;
    esp_prune_options prune = with_pattern(run, "16:2:8");
    esp_calibration_options options = with_text(ESP_METHOD_JOINT, true);
    error_list list = {0};
    const int64_t tokens = 8;
    REQUIRE(esp_device_open(context, "cpu", &device, NULL) == ESP_OK);
    CHECK_OK(esp_checkpoint_open(context, model, &checkpoint, error));
    options.targets = ESP_TARGETS_LAYER;
    const esp_advise_options wanted = {.patterns = &prune.pattern,
                                       .pattern_count = 1,
                                       .tokens = &tokens,
                                       .token_count = 1,
                                       .rounds = 1,
                                       .calibration = &options};
    CHECK_OK(esp_advice_create(device, checkpoint, &wanted, &advice, error));
    options.on_layer = list_error;
    options.user = &list;
    CHECK_OK(esp_prune_calibrated(device, model, out, &prune, &options, NULL, NULL, error));
    double least = 1, most = 0;
    for (int64_t i = 0; advice != NULL && i < esp_advice_layers(advice); i++) {
        const esp_advised_way *way = &esp_advice_layer(advice, i).ways[1];
        CHECK(way->calibrated && way->error > 0 && way->error < 1);
        for (int k = 0; k < 3; k++) {
            double difference = fabs(way->error - list.errors[k]);
            least = k == 0 ? ESP_MIN(least, difference) : least;
        }
        most = ESP_MAX(most, way->error);
    }
    CHECK(least < 1e-6 && most > 0);
    esp_advice_free(advice);
    esp_checkpoint_close(checkpoint);
    esp_device_close(device);
    test_context_free(run, context);
}

/* ---- the whole model ---- */

typedef struct advice_bed {
    esp_context *context;
    esp_device *device;
    esp_checkpoint *checkpoint;
    esp_pattern pattern;
    int64_t tokens[2];
    esp_advise_options options;
} advice_bed;

static void bed_open(test_run *run, advice_bed *bed, const char *model)
{
    *bed = (advice_bed){.context = test_context(run, 1), .tokens = {1, 32}};
    REQUIRE_OK(esp_device_open(bed->context, "cpu", &bed->device, error));
    REQUIRE_OK(esp_checkpoint_open(bed->context, model, &bed->checkpoint, error));
    CHECK_OK(esp_pattern_parse("2:4", &bed->pattern, error));
    bed->options = (esp_advise_options){.patterns = &bed->pattern,
                                        .pattern_count = 1,
                                        .tokens = bed->tokens,
                                        .token_count = 2,
                                        .rounds = 3,
                                        .whole = true};
}

static void bed_close(test_run *run, advice_bed *bed)
{
    esp_checkpoint_close(bed->checkpoint);
    esp_device_close(bed->device);
    test_context_free(run, bed->context);
}

/* What is predicted follows from what was measured; and bytes are the file's. */
static void check_prediction(test_run *run, const advice_bed *bed, const esp_advice *advice)
{
    double ratios = 0, bytes = 0;
    for (int t = 0; t < 2; t++) {
        esp_advised_whole whole = esp_advice_whole(advice, t);
        double dense = 0, mixed = 0;
        for (int64_t i = 0; i < esp_advice_layers(advice); i++) {
            esp_advised_layer layer = esp_advice_layer(advice, i);
            dense += layer.ways[0].us[t];
            mixed += layer.ways[layer.chosen].us[t];
        }
        double linear = ESP_MIN(dense, whole.dense_us);
        CHECK_INT(whole.tokens, bed->tokens[t]);
        CHECK(whole.why_not[0] == '\0' && whole.dense_us > 0 && whole.other_us >= 0);
        CHECK(fabs(whole.linear_us - linear) < 1e-9 * linear);
        CHECK(fabs(whole.linear_us + whole.other_us - whole.dense_us) < 1e-9 * whole.dense_us);
        CHECK(fabs(whole.other_us + linear * mixed / dense - whole.advised_us) <
              1e-9 * whole.dense_us);
        ratios += whole.advised_us / whole.dense_us / 2;
    }
    esp_advised_point chosen = esp_advice_chosen(advice);
    CHECK(fabs(chosen.whole_speedup * ratios - 1) < 1e-9);
    for (int64_t i = 0; i < esp_checkpoint_count(bed->checkpoint); i++) {
        bytes += (double)esp_checkpoint_get(bed->checkpoint, i).dense_bytes;
    }
    for (int64_t i = 0; i < esp_advice_layers(advice); i++) {
        esp_advised_layer layer = esp_advice_layer(advice, i);
        bytes += (double)layer.ways[layer.chosen].stored_bytes;
        bytes -= (double)layer.ways[0].stored_bytes;
    }
    CHECK((double)chosen.model_bytes == bytes);
}

static void whole_models(test_run *run)
{
    static const char *const kinds[] = {"plain", "bert"};
    for (int m = 0; m < ESP_COUNT(kinds); m++) {
        advice_bed bed;
        esp_advice *advice = NULL;
        test_sub(run, "%s", kinds[m]);
        bed_open(run, &bed, tiny_folder(run, kinds[m]));
        bed.options.stored_share = 0.7;
        REQUIRE_OK(esp_advice_create(bed.device, bed.checkpoint, &bed.options, &advice, error));
        check_prediction(run, &bed, advice);
        esp_advice_free(advice);
        bed_close(run, &bed);
    }
}

/* A wish for the whole model is fulfilled, or what is possible is named. */
static void whole_wishes(test_run *run)
{
    advice_bed bed;
    esp_advice *advice = NULL;
    esp_error why = {0};
    bed_open(run, &bed, tiny_folder(run, "plain"));
    test_sub(run, "dense fulfils it");
    bed.options.whole_speedup = 1;
    CHECK_OK(esp_advice_create(bed.device, bed.checkpoint, &bed.options, &advice, error));
    CHECK(advice != NULL && esp_advice_chosen(advice).whole_speedup >= 1 - 1e-9);
    CHECK(advice != NULL && esp_advice_chosen(advice).error == 0);
    esp_advice_free(advice);
    advice = NULL;
    test_sub(run, "what some mix gives");
    bed.options.whole_speedup = 1.05;
    esp_status status = esp_advice_create(bed.device, bed.checkpoint, &bed.options, &advice, &why);
    CHECK(status == ESP_OK ? esp_advice_chosen(advice).whole_speedup >= 1.05 * (1 - 1e-9)
                           : strcmp(why.code, "advise.out_of_reach") == 0);
    esp_advice_free(advice);
    advice = NULL;
    test_sub(run, "more than any gives");
    bed.options.whole_speedup = 1000;
    CHECK_FAILS(esp_advice_create(bed.device, bed.checkpoint, &bed.options, &advice, error),
                ESP_BAD_ARGUMENT, "advise.out_of_reach");
    test_sub(run, "without a look at it");
    bed.options.whole = false;
    CHECK_FAILS(esp_advice_create(bed.device, bed.checkpoint, &bed.options, &advice, error),
                ESP_BAD_ARGUMENT, "advise.bad_options");
    test_sub(run, "two wishes");
    bed.options.whole = true;
    bed.options.speedup = 2;
    CHECK_FAILS(esp_advice_create(bed.device, bed.checkpoint, &bed.options, &advice, error),
                ESP_BAD_ARGUMENT, "advise.bad_options");
    test_sub(run, "tokens that do not fit");
    bed.options.speedup = 0;
    bed.tokens[1] = 5000;
    bed.options.rounds = 1;
    CHECK_FAILS(esp_advice_create(bed.device, bed.checkpoint, &bed.options, &advice, error),
                ESP_BAD_ARGUMENT, "advise.no_whole");
    bed_close(run, &bed);
}

/* Each shape is masked once, and its layers lose the same. */
static void drawn(test_run *run)
{
    advice_bed bed;
    esp_advice *advice = NULL;
    const esp_draw_options draw = {.dtype = ESP_BF16, .seed = 1};
    bed_open(run, &bed, tiny_folder(run, "plain"));
    esp_checkpoint_close(bed.checkpoint);
    bed.checkpoint = NULL;
    REQUIRE_OK(
        esp_checkpoint_draw(bed.device, tiny_folder(run, "plain"), &draw, &bed.checkpoint, error));
    REQUIRE_OK(esp_advice_create(bed.device, bed.checkpoint, &bed.options, &advice, error));
    CHECK_INT(esp_advice_layers(advice), 14);
    for (int64_t i = 0; i < esp_advice_layers(advice); i++) {
        esp_advised_layer one = esp_advice_layer(advice, i);
        CHECK(one.ways[1].error > 0.05 && one.ways[1].error < 0.3);
        for (int64_t k = 0; k < i; k++) {
            esp_advised_layer other = esp_advice_layer(advice, k);
            bool same =
                one.out_features == other.out_features && one.in_features == other.in_features;
            CHECK(!same || one.ways[1].error == other.ways[1].error);
        }
    }
    CHECK(esp_advice_whole(advice, 0).dense_us > 0);
    esp_advice_free(advice);
    bed_close(run, &bed);
}

static const test_case cases[] = {
    {"advice", advised},
    {"whole models", whole_models},
    {"whole wishes", whole_wishes},
    {"drawn", drawn},
};

TEST_MAIN(cases)
