/* Calibrated pruning with a device that has memory of its own (far_backend.h) and sums, multiplies
 * and inverts for it: what the device is given is what the layers read, columns of padding hold
 * NaN, held matrices are the device's copies, and every layer's error is that of the reference;
 * images that are cut into windows run on the host; a device without algebra is refused, but for
 * advice, of which the host then does this part. */
#include <math.h>

#include "assess/advise.h"
#include "drawn_images.h"
#include "far_backend.h"
#include "tensor/tensor.h"

enum { MOST_HELD = 8 };

typedef struct loops {
    esp_device_algebra base;
    esp_algebra *host;
    const double *owner[MOST_HELD];
    double *copy[MOST_HELD];
    int64_t count[MOST_HELD];
    int sums_on_device, sums, inverses;
} loops;

static loops algebra;

static int find(const double *matrix)
{
    for (int i = 0; i < MOST_HELD; i++) {
        if (algebra.owner[i] == matrix) {
            return i;
        }
    }
    return -1;
}

/* What stands for a matrix. */
static const double *of(const double *matrix)
{
    int at = find(matrix);
    return at >= 0 ? algebra.copy[at] : matrix;
}

static void drop(esp_device_algebra *base, const double *matrix)
{
    int at = matrix != NULL ? find(matrix) : -1;
    (void)base;
    if (at >= 0) {
        free(algebra.copy[at]);
        algebra.owner[at] = NULL;
        algebra.copy[at] = NULL;
    }
}

static esp_status hold(esp_device_algebra *base, const double *matrix, int64_t count, bool zeros,
                       esp_error *error)
{
    drop(base, matrix);
    int at = find(NULL);
    if (at < 0) {
        return esp_fail(error, ESP_FAILED, "fake.full", "too much is held");
    }
    algebra.owner[at] = matrix;
    algebra.count[at] = count;
    algebra.copy[at] = calloc((size_t)count, sizeof(double));
    if (!zeros) {
        memcpy(algebra.copy[at], matrix, (size_t)count * sizeof(double));
    }
    return ESP_OK;
}

static esp_status fetch(esp_device_algebra *base, double *matrix, esp_error *error)
{
    int at = find(matrix);
    (void)base;
    if (at < 0) {
        return esp_fail(error, ESP_FAILED, "fake.lost", "it is not held");
    }
    memcpy(matrix, algebra.copy[at], (size_t)algebra.count[at] * sizeof(double));
    return ESP_OK;
}

static esp_status multiply(esp_device_algebra *base, const esp_algebra_product *product,
                           esp_error *error)
{
    esp_algebra_product own = *product;
    (void)base, (void)error;
    own.a = of(own.a);
    own.b = of(own.b);
    esp_algebra_multiply(algebra.host, &own);
    return ESP_OK;
}

/* [features][tokens], tight. */
static double *numbers_of(const esp_token_rows *x, int64_t tokens)
{
    const float *data = x->data, *less = x->less;
    double *numbers = malloc((size_t)(x->features * tokens + 1) * sizeof *numbers);
    int64_t run = x->run > 0 ? x->run : tokens;
    for (int64_t i = 0; i < x->features * tokens; i++) {
        int64_t feature = i / tokens, token = i % tokens;
        int64_t at = feature * x->stride + token / run * x->pitch + token % run;
        numbers[i] = (double)data[at] - (less != NULL ? (double)less[at] : 0);
    }
    return numbers;
}

static esp_status add_gram(esp_device_algebra *base, const esp_token_rows *x,
                           const esp_token_rows *y, int64_t tokens, double *h, esp_error *error)
{
    int at = find(h);
    (void)base;
    if (at < 0 || x->type != ESP_F32 || y->type != ESP_F32 || tokens > x->stride) {
        return esp_fail(error, ESP_FAILED, "fake.lost", "no such sums");
    }
    algebra.sums++;
    algebra.sums_on_device += x->on_device && y->on_device;
    far_open();
    double *of_x = numbers_of(x, tokens), *of_y = x == y ? of_x : numbers_of(y, tokens);
    far_close();
    for (int64_t i = 0; i < x->features; i++) {
        for (int64_t j = 0; j < (x == y ? i + 1 : y->features); j++) {
            double sum = 0;
            for (int64_t t = 0; t < tokens; t++) {
                sum += of_x[i * tokens + t] * of_y[j * tokens + t];
            }
            algebra.copy[at][i * y->features + j] += sum;
        }
    }
    free(of_y != of_x ? of_y : NULL);
    free(of_x);
    return ESP_OK;
}

static esp_status mirror(esp_device_algebra *base, const double *matrix, int64_t n,
                         esp_error *error)
{
    (void)base, (void)error;
    esp_algebra_mirror(algebra.copy[find(matrix)], n);
    return ESP_OK;
}

static esp_status invert(esp_device_algebra *base, const double *gram, int64_t n, double *inverse,
                         bool *definite, esp_error *error)
{
    size_t bytes = (size_t)(n * n) * sizeof(double);
    algebra.inverses++;
    memcpy(inverse, of(gram), bytes);
    *definite = esp_algebra_factor(algebra.host, inverse, n);
    if (*definite) {
        esp_algebra_invert(algebra.host, inverse, n);
    }
    return *definite ? hold(base, inverse, n * n, false, error) : ESP_OK;
}

static void close_algebra(esp_device_algebra *base)
{
    (void)base;
    esp_algebra_close(algebra.host);
}

static const esp_device_algebra_ops ops = {.close = close_algebra,
                                           .hold = hold,
                                           .fetch = fetch,
                                           .drop = drop,
                                           .multiply = multiply,
                                           .add_gram = add_gram,
                                           .mirror = mirror,
                                           .invert = invert};

static esp_status open_algebra(esp_device *device, esp_device_algebra **base, esp_error *error)
{
    algebra = (loops){.base = {.ops = &ops, .name = "loops"}};
    ESP_TRY(esp_algebra_open(device->context, &algebra.host, error));
    *base = &algebra.base;
    return ESP_OK;
}

static esp_status copy(esp_device *device, void *to, const void *from, size_t bytes,
                       esp_error *error)
{
    (void)device, (void)error;
    far_open();
    memcpy(to, from, bytes);
    far_close();
    return ESP_OK;
}

/* ---- both ways ---- */

static esp_status prune_on(test_run *run, bool on_device, const char *model, const char *pattern,
                           esp_calibration_options options, error_list *list,
                           esp_calibration_summary *summary, esp_error *error)
{
    esp_context *context = test_context(run, 1);
    esp_device *device = NULL;
    esp_prune_options prune = with_pattern(run, pattern);
    far_state state;
    char out[1100];
    snprintf(out, sizeof out, "%s/%s", test_folder(run), on_device ? "device" : "host");
    prune.force = true;
    options.on_layer = list_error;
    options.user = list;
    ESP_TRY(esp_device_open(context, "ref", &device, error));
    if (on_device) {
        far_install(&state, device);
        state.backend.copy = copy;
        state.backend.algebra_open = open_algebra;
    }
    esp_status status =
        esp_prune_calibrated(device, model, out, &prune, &options, NULL, summary, error);
    if (on_device) {
        far_remove(&state, device);
    }
    esp_device_close(device);
    test_context_free(run, context);
    return status;
}

static void compare(test_run *run, const char *model, const char *pattern,
                    esp_calibration_options options, bool layers_there)
{
    error_list by_host = {0}, by_device = {0};
    esp_calibration_summary summary = {0};
    REQUIRE_OK(prune_on(run, false, model, pattern, options, &by_host, NULL, error));
    REQUIRE_OK(prune_on(run, true, model, pattern, options, &by_device, &summary, error));
    CHECK_INT(by_device.count, by_host.count);
    CHECK_TEXT(summary.algebra, "loops");
    CHECK_TEXT(summary.layers_on, layers_there ? "ref" : "cpu");
    CHECK(algebra.sums > 0 && (algebra.sums_on_device == algebra.sums) == layers_there);
    for (int i = 0; i < ESP_MIN(by_host.count, ESP_COUNT(by_host.errors)); i++) {
        /* Another order of sums flips a mask's bit somewhere, and what comes behind reads other
         * inputs; on equal inputs that stays in its layer. */
        double bound = options.dense_inputs ? 0.005 : i < by_host.count / 2 ? 0.05 : 0.15;
        if (!(fabs(by_device.errors[i] - by_host.errors[i]) <= bound * by_host.errors[i])) {
            test_fail(run, __FILE__, __LINE__, "layer %d: error %g, on the host %g", i,
                      by_device.errors[i], by_host.errors[i]);
        }
    }
    for (int i = 0; i < MOST_HELD; i++) {
        CHECK(algebra.owner[i] == NULL);
    }
}

#ifdef __SANITIZE_ADDRESS__ /* ten times as slow: every other way there */
#define WAYS_APART 2
#else
#define WAYS_APART 1
#endif

static void decoders(test_run *run)
{
    static const struct {
        const char *pattern;
        esp_method method;
        esp_targets targets;
        bool dense_inputs;
    } wanted[] = {{"2:4", ESP_METHOD_SPARSE_GPT, ESP_TARGETS_STREAM, false},
                  {"16:2:8", ESP_METHOD_OBS, ESP_TARGETS_DENSE, false},
                  {"16:2:8", ESP_METHOD_OBS, ESP_TARGETS_DENSE, true},
                  {"2:4", ESP_METHOD_SPARSE_GPT, ESP_TARGETS_LAYER, true},
                  {"16:2:8", ESP_METHOD_JOINT, ESP_TARGETS_LAYER, false},
                  {"2:4", ESP_METHOD_WANDA, ESP_TARGETS_STREAM, false}};
    const char *model = tiny_folder(run, "plain");
    for (int i = 0; i < ESP_COUNT(wanted); i += WAYS_APART) {
        test_sub(run, "%s by %s", wanted[i].pattern, esp_method_name(wanted[i].method));
        esp_calibration_options options = with_text(wanted[i].method, true);
        options.text_bytes = TEXT_BYTES / 2;
        options.targets = wanted[i].targets;
        options.turn_values = i == 0;
        options.dense_inputs = wanted[i].dense_inputs;
        compare(run, model, wanted[i].pattern, options, true);
        CHECK(algebra.inverses > 0);
    }
}

static void encoders(test_run *run)
{
    esp_calibration_options options = with_text(ESP_METHOD_SPARSE_GPT, true);
    options.text_bytes = TEXT_BYTES / 2;
    compare(run, tiny_folder(run, "bert"), "2:4", options, true);
}

/* Whose numbers of tokens, 17 and 18 for an image, are no multiples of a device's step; and one
 * with windows that the device does not take, whose layers stay on the host. */
static void images(test_run *run)
{
    static const char *const names[] = {"a_vit_batch", "d_deit_two_heads"};
    const esp_image_set set = {.count = 50, .read = draw_image};
    const esp_calibration_options options = {
        .images = &set, .method = ESP_METHOD_SPARSE_GPT, .refit = true};
    for (int i = 0; i < ESP_COUNT(names); i++) {
        test_sub(run, "%s", names[i]);
        const char *folder = image_model(run, names[i], 32);
        REQUIRE(folder != NULL);
        compare(run, folder, "2:4", options, true);
    }
    test_sub(run, "windows");
    compare(run, tiny_folder(run, "sam"), "2:4", options, false);
}

/* Windows that the device takes as they lie: all layers are pruned there as on the host, but that
 * what o reads in the padding of windows is no part of its moments. */
static void padded_windows(test_run *run)
{
    enum { LINEARS = 4, O = 1, GLOBAL = 1 };
    const esp_image_set set = {.count = 6, .read = draw_image};
    const esp_calibration_options options = {
        .images = &set, .method = ESP_METHOD_SPARSE_GPT, .refit = true, .dense_inputs = true};
    error_list by_host = {0}, by_device = {0};
    esp_calibration_summary summary = {0};
    const char *folder = image_model(run, "h_sam_padded_windows", 80);
    REQUIRE(folder != NULL);
    REQUIRE_OK(prune_on(run, false, folder, "2:4", options, &by_host, NULL, error));
    REQUIRE_OK(prune_on(run, true, folder, "2:4", options, &by_device, &summary, error));
    CHECK_TEXT(summary.layers_on, "ref");
    CHECK(algebra.sums > 0 && algebra.sums_on_device == algebra.sums);
    CHECK(by_host.count == 3 * LINEARS && by_device.count == by_host.count);
    for (int i = 0; i < by_host.count; i++) {
        bool padded = i % LINEARS == O && i / LINEARS != GLOBAL;
        double bound = padded ? 0.5 : 0.005;
        if (!(fabs(by_device.errors[i] - by_host.errors[i]) <= bound * by_host.errors[i])) {
            test_fail(run, __FILE__, __LINE__, "layer %d: error %g, on the host %g", i,
                      by_device.errors[i], by_host.errors[i]);
        }
    }
}

/* ---- advice ---- */

enum { MOST_ADVISED = 32 };

/* All of a checkpoint's linear layers, in one way besides dense. */
static void list_layers(const esp_checkpoint *checkpoint, const esp_pattern *pattern,
                        esp_advice *advice)
{
    for (int64_t i = 0; i < esp_checkpoint_count(checkpoint) && advice->count < MOST_ADVISED; i++) {
        esp_weight_info weight = esp_checkpoint_get(checkpoint, i);
        if (esp_linear_layer_why_not(&weight) == NULL) {
            advice->table[advice->count * 2 + 1] =
                (esp_advised_way){.pattern = *pattern, .possible = true};
            advice->layers[advice->count++] = (esp_advised_layer){.name = weight.name};
        }
    }
}

/* Errors of layers; only this part of advice: kernels are not timed on such a device. */
static esp_status advise_on(test_run *run, bool on_device, bool has_algebra, error_list *list,
                            esp_error *error)
{
    const esp_prune_options prune = with_pattern(run, "16:2:8");
    const esp_calibration_options calibration = with_text(ESP_METHOD_JOINT, true);
    const esp_advise_options options = {.calibration = &calibration};
    esp_advised_layer layers[MOST_ADVISED];
    esp_advised_way table[2 * MOST_ADVISED] = {{.possible = false}};
    esp_context *context = test_context(run, 1);
    esp_device *device = NULL;
    esp_checkpoint *checkpoint = NULL;
    far_state state;
    algebra = (loops){.sums = 0};
    ESP_TRY(esp_device_open(context, "ref", &device, error));
    ESP_TRY(esp_checkpoint_open(context, tiny_folder(run, "plain"), &checkpoint, error));
    if (on_device) {
        far_install(&state, device);
        state.backend.copy = copy;
        state.backend.algebra_open = has_algebra ? open_algebra : NULL;
    }
    esp_advice advice = {.context = context,
                         .device = device,
                         .checkpoint = checkpoint,
                         .options = &options,
                         .ways = 2,
                         .layers = layers,
                         .table = table};
    list_layers(checkpoint, &prune.pattern, &advice);
    esp_status status = esp_advice_calibrate(&advice, error);
    for (int64_t i = 0; i < advice.count; i++) {
        const esp_advised_way *way = &table[i * 2 + 1];
        CHECK(way->calibrated && way->error > 0 && way->error < 1);
        list->errors[list->count++] = way->error;
    }
    if (on_device) {
        far_remove(&state, device);
    }
    esp_checkpoint_close(checkpoint);
    esp_device_close(device);
    test_context_free(run, context);
    return status;
}

/* By the device's algebra where it has one, else by the host's. */
static void advised(test_run *run)
{
    error_list by_host = {0};
    REQUIRE_OK(advise_on(run, false, false, &by_host, error));
    for (int has_algebra = 0; has_algebra < 2; has_algebra++) {
        test_sub(run, has_algebra ? "with algebra" : "without");
        error_list by_device = {0};
        REQUIRE_OK(advise_on(run, true, has_algebra, &by_device, error));
        CHECK(by_host.count > 0 && by_device.count == by_host.count);
        CHECK((algebra.sums > 0) == has_algebra && algebra.sums_on_device == algebra.sums);
        CHECK((algebra.inverses > 0) == has_algebra);
        for (int i = 0; i < by_host.count; i++) {
            if (!(fabs(by_device.errors[i] - by_host.errors[i]) <= 0.005 * by_host.errors[i])) {
                test_fail(run, __FILE__, __LINE__, "layer %d: error %g, on the host %g", i,
                          by_device.errors[i], by_host.errors[i]);
            }
        }
        for (int i = 0; i < MOST_HELD; i++) {
            CHECK(algebra.owner[i] == NULL);
        }
    }
}

/* ---- refusals ---- */

static void no_algebra(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_device *device = NULL;
    const esp_calibration_options options = with_text(ESP_METHOD_WANDA, false);
    const esp_prune_options prune = with_pattern(run, "2:4");
    far_state state;
    char out[1100];
    snprintf(out, sizeof out, "%s/refused", test_folder(run));
    REQUIRE_OK(esp_device_open(context, "ref", &device, error));
    far_install(&state, device);
    state.backend.algebra_open = NULL;
    CHECK_FAILS(esp_prune_calibrated(device, tiny_folder(run, "plain"), out, &prune, &options, NULL,
                                     NULL, error),
                ESP_UNSUPPORTED, "calibrate.bad_device");
    far_remove(&state, device);
    esp_device_close(device);
    test_context_free(run, context);
}

static const test_case cases[] = {{"decoders", decoders}, {"encoders", encoders},
                                  {"images", images},     {"padded windows", padded_windows},
                                  {"advised", advised},   {"no_algebra", no_algebra}};
TEST_MAIN(cases)
