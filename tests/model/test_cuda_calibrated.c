/* Calibrated pruning of every family on a GPU next to the CPU's: on equal inputs each layer's error
 * is the host's to within what 16-bit activations explain, and nearly all of the mask is the same;
 * SAM's walk stays on the device. A run that is killed there goes on with the same bits. */
#include <math.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "drawn_images.h"

enum { NO_GPU = 77 };

/* ---- killed and started again: first of all, since a child cannot use a GPU that its parent has
 * opened ---- */

typedef struct killing {
    int left; /* layers; below 0: never */
} killing;

static void die_at(void *user, const esp_calibrated_layer *layer)
{
    killing *at = user;
    (void)layer;
    if (at->left-- == 0) {
        raise(SIGKILL);
    }
}

typedef struct wanted {
    const char *model, *pattern;
    esp_calibration_options options;
} wanted;

/* In a child, which is killed once `layers` are done. Its exit status, -1 when it was killed. */
static int prune_in_child(test_run *run, const wanted *asked, const char *out, int layers)
{
    esp_prune_options prune = with_pattern(run, asked->pattern);
    esp_calibration_options options = asked->options;
    killing at = {layers};
    int how = 0;
    prune.force = true;
    options.on_layer = die_at;
    options.user = &at;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        esp_context *context = NULL;
        esp_device *device = NULL;
        esp_error why = {0};
        if (esp_context_create(NULL, &context, &why) != ESP_OK ||
            esp_device_open(context, "cuda:0", &device, &why) != ESP_OK) {
            _exit(NO_GPU);
        }
        bool failed = esp_prune_calibrated(device, asked->model, out, &prune, &options, NULL, NULL,
                                           &why) != ESP_OK;
        if (failed) {
            fprintf(stderr, "%s [%s]\n", why.message, why.code);
        }
        _exit(failed);
    }
    CHECK(waitpid(child, &how, 0) == child);
    return WIFEXITED(how) ? WEXITSTATUS(how) : -1;
}

static void resumed_at_all_layers(test_run *run, wanted of, int layers)
{
    wanted *asked = &of;
    char whole[1100], out[1100], state[1200];
    snprintf(whole, sizeof whole, "%s/whole", test_folder(run));
    snprintf(out, sizeof out, "%s/resumed", test_folder(run));
    snprintf(state, sizeof state, "%s.unfinished", out);
    asked->options.state_dir = NULL;
    int status = prune_in_child(run, asked, whole, -1);
    if (status == NO_GPU) {
        test_skip(run, "no GPU");
        return;
    }
    CHECK_INT(status, 0);
    asked->options.state_dir = state;
    for (int layer = 0; layer < layers; layer += 3) {
        test_sub(run, "%s, killed in layer %d", asked->model, layer);
        CHECK_INT(prune_in_child(run, asked, out, layer), -1);
        CHECK_INT(prune_in_child(run, asked, out, -1), 0);
        CHECK(same_file(whole, out, "model.safetensors"));
        CHECK(same_file(whole, out, "espalier.json"));
        CHECK(access(state, F_OK) != 0);
    }
}

static void resumed(test_run *run)
{
    const esp_image_set set = {.count = 24, .read = draw_image};
    wanted text = {tiny_folder(run, "plain"), "16:2:8", with_text(ESP_METHOD_JOINT, true)};
    resumed_at_all_layers(run, text, 14);
    wanted images = {image_model(run, "h_sam_padded_windows", 80),
                     "2:4",
                     {.images = &set, .method = ESP_METHOD_JOINT, .refit = true}};
    REQUIRE(images.model != NULL);
    resumed_at_all_layers(run, images, 12);
}

/* ---- beside the CPU ---- */

typedef struct outcome {
    char folder[1100];
    error_list list;
    esp_calibration_summary summary;
} outcome;

static esp_status prune_on(test_run *run, const char *name, const wanted *asked, outcome *made,
                           esp_error *error)
{
    esp_context *context = test_context(run, 2);
    esp_device *device = NULL;
    esp_prune_options prune = with_pattern(run, asked->pattern);
    esp_calibration_options options = asked->options;
    *made = (outcome){.list = {0}};
    snprintf(made->folder, sizeof made->folder, "%s/on-%.3s", test_folder(run), name);
    prune.force = true;
    options.on_layer = list_error;
    options.user = &made->list;
    esp_status status = esp_device_open(context, name, &device, error);
    if (status == ESP_OK) {
        status = esp_prune_calibrated(device, asked->model, made->folder, &prune, &options, NULL,
                                      &made->summary, error);
    }
    esp_device_close(device);
    test_context_free(run, context);
    return status;
}

/* Of the weights that the first folder keeps, the share that the second keeps, too. */
static void share_places(test_run *run, const outcome *first, const outcome *second, double *share)
{
    esp_context *context = test_context(run, 1);
    esp_checkpoint *a = NULL, *b = NULL;
    int64_t kept = 0, both = 0;
    CHECK_OK(esp_checkpoint_open(context, first->folder, &a, error));
    CHECK_OK(esp_checkpoint_open(context, second->folder, &b, error));
    for (int64_t i = 0; a != NULL && b != NULL && i < esp_checkpoint_count(a); i++) {
        esp_weight_info weight = esp_checkpoint_get(a, i);
        esp_tensor of_a, of_b;
        if (weight.pattern.kind == ESP_PATTERN_DENSE) {
            continue;
        }
        REQUIRE_OK(esp_tensor_create(context, weight.dtype, 2, weight.shape, &of_a, error));
        REQUIRE_OK(esp_tensor_create(context, weight.dtype, 2, weight.shape, &of_b, error));
        REQUIRE_OK(esp_checkpoint_read_dense(a, i, &of_a, error));
        REQUIRE_OK(esp_checkpoint_read_dense(b, esp_checkpoint_find(b, weight.name), &of_b, error));
        for (int64_t k = 0; k < weight.shape[0] * weight.shape[1]; k++) {
            bool in_a = !esp_weight_is_zero(weight.dtype, of_a.data, k);
            kept += in_a;
            both += in_a && !esp_weight_is_zero(weight.dtype, of_b.data, k);
        }
        esp_tensor_free(context, &of_a);
        esp_tensor_free(context, &of_b);
    }
    esp_checkpoint_close(a);
    esp_checkpoint_close(b);
    test_context_free(run, context);
    *share = kept > 0 ? (double)both / (double)kept : 0;
}

/* How far errors of layers may be apart, and how much of the masks must be the same. Inputs are
 * rounded to f16 (2^-11) or bf16 (2^-8) a few times on their way, sums are not; where columns of
 * whole panels or weights of a like cost change places, next to nothing is gained or lost. */
typedef struct bounds {
    double error, shared;
    /* Layer o of each block of `of` reads windows, which the host puts together and counts their
     * padding, but not in block `but`; of 0: no windows. */
    int of, o, but;
} bounds;

static const bounds by_bf16 = {.error = 0.1, .shared = 0.93};
static const bounds by_f16 = {.error = 0.03, .shared = 0.96};
static const bounds by_windows = {.error = 0.03, .shared = 0.9, .of = 4, .o = 1, .but = 1};

static bool reads_padding(const bounds *within, int layer)
{
    return within->of > 0 && layer % within->of == within->o && layer / within->of != within->but;
}

static void compare(test_run *run, const wanted *asked, const bounds *within)
{
    outcome host, gpu;
    double worst = 0, shared = 0;
    REQUIRE_OK(prune_on(run, "cuda:0", asked, &gpu, error));
    REQUIRE_OK(prune_on(run, "cpu", asked, &host, error));
    CHECK_TEXT(gpu.summary.layers_on, "cuda:0");
    CHECK_INT(gpu.list.count, host.list.count);
    for (int i = 0; i < host.list.count; i++) {
        bool padded = reads_padding(within, i);
        double off = fabs(gpu.list.errors[i] / host.list.errors[i] - 1);
        worst = fmax(worst, padded ? 0 : off);
        if (!(off <= (padded ? 1 : within->error))) {
            test_fail(run, __FILE__, __LINE__, "layer %d: error %g, on the host %g", i,
                      gpu.list.errors[i], host.list.errors[i]);
        }
    }
    share_places(run, &host, &gpu, &shared);
    if (!(shared >= within->shared)) {
        test_fail(run, __FILE__, __LINE__, "only %.4f of the kept places are the host's", shared);
    }
    if (getenv("TEST_SHOW") != NULL) {
        printf("%s %s by %s: %d layers, worst error off by %.2e, %.4f of the places\n",
               asked->model, asked->pattern, esp_method_name(asked->options.method),
               host.list.count, worst, shared);
    }
}

static const struct {
    const char *pattern;
    esp_method method;
} ways[] = {{"2:4", ESP_METHOD_WANDA},         {"2:4", ESP_METHOD_SPARSE_GPT},
            {"16:2:8", ESP_METHOD_OBS},        {"16:2:8", ESP_METHOD_JOINT},
            {"2:4", ESP_METHOD_JOINT},         {"panel:16@0.75", ESP_METHOD_JOINT},
            {"16:2:8", ESP_METHOD_SPARSE_GPT}, {"16:2:8", ESP_METHOD_VENOM}};

static void in_all_ways(test_run *run, const char *model, const esp_calibration_options *options,
                        const bounds *within)
{
    for (int i = 0; i < ESP_COUNT(ways); i++) {
        wanted asked = {model, ways[i].pattern, *options};
        test_sub(run, "%s by %s", ways[i].pattern, esp_method_name(ways[i].method));
        asked.options.method = ways[i].method;
        asked.options.refit = true;
        asked.options.dense_inputs = true;
        compare(run, &asked, within);
    }
}

static bool has_gpu(test_run *run)
{
    esp_context *context = test_context(run, 1);
    bool has = golden_has_gpu(context);
    test_context_free(run, context);
    if (!has) {
        test_skip(run, "no GPU");
    }
    return has;
}

static void texts(test_run *run)
{
    static const char *const kinds[] = {"plain", "bert"};
    const esp_calibration_options options = with_text(ESP_METHOD_WANDA, true);
    for (int i = 0; i < ESP_COUNT(kinds) && has_gpu(run); i++) {
        in_all_ways(run, tiny_folder(run, kinds[i]), &options, i == 0 ? &by_bf16 : &by_f16);
    }
}

static void images(test_run *run)
{
    static const struct {
        const char *name;
        int side, count;
        const bounds *within;
    } models[] = {{"a_vit_batch", 32, 150, &by_f16},
                  {"d_deit_two_heads", 32, 150, &by_f16},
                  {"h_sam_padded_windows", 80, 24, &by_windows}};
    for (int i = 0; i < ESP_COUNT(models) && has_gpu(run); i++) {
        const esp_image_set set = {.count = models[i].count, .read = draw_image};
        const esp_calibration_options options = {.images = &set};
        const char *folder = image_model(run, models[i].name, models[i].side);
        REQUIRE(folder != NULL);
        in_all_ways(run, folder, &options, models[i].within);
    }
}

static const test_case cases[] = {{"resumed", resumed}, {"texts", texts}, {"images", images}};
TEST_MAIN(cases)
