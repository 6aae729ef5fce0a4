/* What calibrated pruning changes of a model first, so that it computes the same: orders of
 * channels, turned values. */
#include <math.h>

#include "assess/calibrate.h"
#include "base/memory.h"
#include "model/calibrated_tools.h"

/* Errors by which orders were taken are those that pruning ends with on equal inputs. */
static void check_judged(test_run *run, esp_device *device, const char *model,
                         const esp_prune_options *panels, esp_calibration_options options,
                         const esp_permutation *permutation)
{
    char out[1100];
    esp_permutation_summary summary;
    esp_prune_options prune = *panels;
    snprintf(out, sizeof out, "%s/judged", test_folder(run));
    esp_permutation_get_summary(permutation, &summary);
    options.dense_inputs = prune.force = true;
    options.targets = ESP_TARGETS_LAYER;
    for (int i = 0; i < 2; i++) {
        esp_calibration_summary ended = {0};
        prune.permutation = i == 0 ? NULL : permutation;
        CHECK_OK(esp_prune_calibrated(device, model, out, &prune, &options, NULL, &ended, error));
        double expected = i == 0 ? summary.error_before : summary.error_after;
        if (!(fabs(ended.mean_error - expected) < 1e-4 * expected)) {
            test_fail(run, __FILE__, __LINE__, "%s order: error %g, judged %g",
                      i == 0 ? "own" : "new", ended.mean_error, expected);
        }
    }
    CHECK(summary.judged_layers >= 12 && summary.error_after < summary.error_before);
}

/* What does not depend on orders comes out the same in any; what does gets better. */
static void permuted(test_run *run)
{
    const char *const models[] = {"plain", "bert"};
    char out[1100];
    snprintf(out, sizeof out, "%s/permuted", test_folder(run));
    esp_context *context = test_context(run, 2);
    esp_device *device = NULL;
    REQUIRE(esp_device_open(context, "cpu", &device, NULL) == ESP_OK);
    for (int m = 0; m < ESP_COUNT(models); m++) {
        const char *model = tiny_folder(run, models[m]);
        esp_prune_options panels = with_pattern(run, "16:2:8"), free = {0};
        esp_calibration_options options = with_text(ESP_METHOD_JOINT, true);
        esp_permutation *permutation = NULL;
        esp_permutation_summary summary;
        error_list lists[4] = {{0}};
        CHECK_OK(
            esp_permutation_calibrate(device, model, &panels, NULL, &options, &permutation, error));
        esp_permutation_get_summary(permutation, &summary);
        CHECK(summary.moved_orders > 0 && summary.kept_after > summary.kept_before);
        check_judged(run, device, model, &panels, options, permutation);
        CHECK_OK(esp_pattern_parse("unstructured@0.7", &free.pattern, error));
        options.on_layer = list_error;
        panels.force = free.force = true;
        for (int i = 0; i < 4; i++) {
            esp_prune_options *prune = i < 2 ? &free : &panels;
            test_sub(run, "%s, %s order, %s", models[m], i % 2 == 0 ? "own" : "new",
                     i < 2 ? "unstructured" : "panels");
            prune->permutation = i % 2 == 0 ? NULL : permutation;
            options.user = &lists[i];
            CHECK_OK(esp_prune_calibrated(device, model, out, prune, &options, NULL, NULL, error));
        }
        double own = 0, new = 0;
        for (int k = 0; k < lists[0].count; k++) {
            /* A sum in another order may decide a tie between weights otherwise, which is 1e-4 of
             * an error here, and every layer reads what those before it made: differences grow from
             * layer to layer. */
            double apart = fabs(lists[0].errors[k] - lists[1].errors[k]) / lists[0].errors[k];
            if (!(apart <= (k < 7 ? 1e-3 : 5e-2))) {
                test_fail(run, __FILE__, __LINE__, "layer %d: errors %g and %g", k,
                          lists[0].errors[k], lists[1].errors[k]);
            }
            own += lists[2].errors[k];
            new += lists[3].errors[k];
        }
        CHECK(new < own);
        esp_permutation_free(permutation);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* Options of the method count where orders are judged, those of the look at inputs do not; and what
 * the pruning would refuse is refused before the search. */
static void gradual(test_run *run)
{
    const char *model = tiny_folder(run, "plain");
    esp_context *context = test_context(run, 2);
    esp_device *device = NULL;
    esp_permutation *permutation = NULL;
    esp_prune_options panels = with_pattern(run, "16:2:8");
    esp_calibration_options options = with_text(ESP_METHOD_WANDA, true);
    REQUIRE(esp_device_open(context, "cpu", &device, NULL) == ESP_OK);
    options.gradual = true;
    CHECK_OK(
        esp_permutation_calibrate(device, model, &panels, NULL, &options, &permutation, error));
    if (permutation != NULL) {
        check_judged(run, device, model, &panels, options, permutation);
    }
    esp_permutation_free(permutation);
    options.refit = false;
    CHECK_FAILS(
        esp_permutation_calibrate(device, model, &panels, NULL, &options, &permutation, error),
        ESP_BAD_ARGUMENT, "calibrate.bad_options");
    options.gradual = false;
    options.method = (esp_method)(ESP_METHOD_VENOM + 1);
    CHECK_FAILS(
        esp_permutation_calibrate(device, model, &panels, NULL, &options, &permutation, error),
        ESP_BAD_ARGUMENT, "calibrate.bad_method");
    esp_device_close(device);
    test_context_free(run, context);
}

/* ---- turned values ---- */

/* Errors are against the outputs of the dense model, so turning must not change what it computes.
 */
static void turned(test_run *run)
{
    static const struct {
        const char *model;
        bool turns, permutes;
    } models[] = {{"plain", true, false}, {"plain", true, true}, {"bert", false, false}};
    char out[1100];
    snprintf(out, sizeof out, "%s/turned", test_folder(run));
    esp_context *context = test_context(run, 2);
    esp_device *device = NULL;
    REQUIRE(esp_device_open(context, "cpu", &device, NULL) == ESP_OK);
    for (int m = 0; m < ESP_COUNT(models); m++) {
        test_sub(run, "%s%s", models[m].model, models[m].permutes ? ", permuted" : "");
        const char *model = tiny_folder(run, models[m].model);
        esp_prune_options panels = with_pattern(run, "16:2:8"), prune = {.force = true};
        esp_calibration_options options = with_text(ESP_METHOD_JOINT, true);
        esp_permutation *permutation = NULL;
        esp_calibration_summary summary[2] = {{0}};
        if (models[m].permutes) {
            CHECK_OK(esp_permutation_calibrate(device, model, &panels, NULL, &options, &permutation,
                                               error));
        }
        prune.permutation = permutation;
        CHECK_OK(esp_pattern_parse("unstructured@0.7", &prune.pattern, error));
        for (int i = 0; i < 2; i++) {
            options.turn_values = i == 1;
            CHECK_OK(esp_prune_calibrated(device, model, out, &prune, &options, NULL, &summary[i],
                                          error));
        }
        CHECK(models[m].turns == (summary[1].turned_layers > 0));
        CHECK(summary[1].mean_error < 1.1 * summary[0].mean_error);
        CHECK(models[m].turns || summary[1].mean_error == summary[0].mean_error);
        prune.pattern = panels.pattern;
        options.turn_values = false;
        CHECK_OK(
            esp_prune_calibrated(device, model, out, &prune, &options, NULL, &summary[0], error));
        options.turn_values = true;
        CHECK_OK(
            esp_prune_calibrated(device, model, out, &prune, &options, NULL, &summary[1], error));
        CHECK(summary[1].mean_error < 1.02 * summary[0].mean_error);
        esp_permutation_free(permutation);
    }
    esp_device_close(device);
    test_context_free(run, context);
    test_sub(run, "with zeros that are to stay");
    esp_calibration_options odd = with_text(ESP_METHOD_JOINT, true);
    odd.turn_values = odd.respect = true;
    CHECK_FAILS(prune_at(run, 1, tiny_folder(run, "plain"), out, "2:4", odd, NULL, NULL, error),
                ESP_BAD_ARGUMENT, "calibrate.bad_options");
}

/* Before anything is summed. */
static void too_large(test_run *run)
{
    CHECK_FAILS(esp_orders_check_memory(114e9, (uint64_t)64 << 30, error), ESP_OUT_OF_MEMORY,
                "permutation.needs_memory");
    CHECK_OK(esp_orders_check_memory(114e9, (uint64_t)128 << 30, error));
    CHECK_OK(esp_orders_check_memory(114e9, 0, error));
    CHECK(esp_memory_available() > 0);
}

static const test_case cases[] = {
    {"too_large", too_large},

    {"in other orders", permuted},
    {"gradual", gradual},
    {"turned values", turned},
};

TEST_MAIN(cases)
