/* Calibrated pruning that is stopped: nothing half done is left, and it goes on where it was. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "model/calibrated_tools.h"

static void die_at(void *user, const esp_calibrated_layer *layer)
{
    int *left = user;
    (void)layer;
    if ((*left)-- == 0) {
        raise(SIGKILL);
    }
}

/* A child that prunes and is killed once `layers` are done. */
static void killed_after(test_run *run, esp_device *device, const esp_prune_options *prune,
                         esp_calibration_options options, const char *out, int layers)
{
    int how = 0, left = layers;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        esp_error error;
        options.on_layer = die_at;
        options.user = &left;
        bool failed = esp_prune_calibrated(device, tiny_folder(run, "plain"), out, prune, &options,
                                           NULL, NULL, &error) != ESP_OK;
        _exit(failed);
    }
    CHECK(waitpid(child, &how, 0) == child && WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
}

static void resumed(test_run *run)
{
    static const char *const patterns_of[] = {"16:2:8", "panel:16@0.75", "unstructured@0.7"};
    const char *model = tiny_folder(run, "plain");
    char whole[1100], out[1100], state[1100], file[1200];
    snprintf(whole, sizeof whole, "%s/whole", test_folder(run));
    snprintf(out, sizeof out, "%s/resumed", test_folder(run));
    snprintf(state, sizeof state, "%s/resumed.unfinished", test_folder(run));
    esp_context *context = test_context(run, 1); /* no threads: the children fork */
    esp_device *device = NULL;
    esp_calibration_options options = with_text(ESP_METHOD_JOINT, true);
    REQUIRE(esp_device_open(context, "cpu", &device, NULL) == ESP_OK);
    for (int i = 0; i < ESP_COUNT(patterns_of); i++) {
        esp_prune_options prune = with_pattern(run, patterns_of[i]);
        esp_calibration_summary summary = {0};
        prune.force = true;
        options.state_dir = NULL;
        CHECK_OK(esp_prune_calibrated(device, model, whole, &prune, &options, NULL, NULL, error));
        options.state_dir = state;
        for (int layers = 0; layers < 14; layers++) {
            test_sub(run, "%s, killed in layer %d", patterns_of[i], layers);
            killed_after(run, device, &prune, options, out, layers);
            if (layers % 3 == 1) {
                continue; /* twice in a row */
            }
            if (layers == 8) { /* a damaged file is none; found anew, it fits the next */
                snprintf(file, sizeof file, "%s/000004.layer", state);
                CHECK(truncate(file, 1000) == 0);
            }
            CHECK_OK(
                esp_prune_calibrated(device, model, out, &prune, &options, NULL, &summary, error));
            CHECK_INT(summary.recalled, layers == 8 ? 8 : layers + 1);
            CHECK(same_file(whole, out, "model.safetensors"));
            CHECK(same_file(whole, out, "espalier.json"));
            CHECK(access(state, F_OK) != 0);
        }
    }
    test_sub(run, "other options");
    esp_prune_options prune = with_pattern(run, "16:2:8");
    esp_calibration_summary summary = {0};
    prune.force = true;
    killed_after(run, device, &prune, options, out, 5);
    options.damping = 0.02;
    CHECK_OK(esp_prune_calibrated(device, model, out, &prune, &options, NULL, &summary, error));
    CHECK_INT(summary.recalled, 0);
    test_sub(run, "a folder of something else");
    options.state_dir = model;
    CHECK_FAILS(esp_prune_calibrated(device, model, out, &prune, &options, NULL, NULL, error),
                ESP_BAD_ARGUMENT, "calibrate.bad_state");
    esp_device_close(device);
    test_context_free(run, context);
}

static bool stop_late(void *user, const char *what, double done, double total, const char *unit)
{
    (void)user, (void)what, (void)unit;
    return done < total / 2;
}

static void interrupted(test_run *run)
{
    esp_context *context = test_context(run, 2);
    esp_device *device = NULL;
    char out[1100];
    snprintf(out, sizeof out, "%s/interrupted", test_folder(run));
    REQUIRE_OK(esp_device_open(context, "cpu", &device, error));
    const char *model = tiny_folder(run, "plain");
    int before = test_entries(test_folder(run));
    esp_prune_options prune = with_pattern(run, "2:4");
    esp_calibration_options options = with_text(ESP_METHOD_SPARSE_GPT, true);
    prune.progress = stop_late;
    CHECK_FAILS(esp_prune_calibrated(device, model, out, &prune, &options, NULL, NULL, error),
                ESP_CANCELLED, "cancelled");
    CHECK_INT(test_entries(test_folder(run)), before);
    esp_device_close(device);
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"interrupted", interrupted},
    {"going on after a kill", resumed},
};

TEST_MAIN(cases)
