/* Measuring on a GPU: recorded work and its times; tuning, which lets no kernel in that differs
 * from the reference, also where operands and results never leave the device; plans that choose by
 * what was measured; and the times that ship with the library, which need no GPU to be read. */
#include "product_device.h"

#ifdef ESP_HAVE_CUDA
#include "cuda/room.h"
#endif

/* ---- recorded work ---- */

typedef struct fill_work {
    esp_device *device;
    char *memory;
    int calls;
    bool fails;
} fill_work;

static esp_status nothing(void *user, void *stream, esp_error *error)
{
    fill_work *work = user;
    (void)stream;
    work->calls++;
    return work->fails ? esp_fail(error, ESP_FAILED, "test.work", "it fails") : ESP_OK;
}

static void records_on(test_run *run, esp_device *device)
{
    fill_work work = {.device = device};
    esp_recording *recording = NULL;
    double us = -1;
    CHECK_OK(esp_record(device, nothing, &work, &recording, error));
    CHECK(work.calls > 0);
    REQUIRE(recording != NULL);
    CHECK_OK(esp_recording_time(recording, 3, &us, error));
    CHECK(us >= 0);
    esp_recording_free(recording);
    work.fails = true;
    recording = NULL;
    CHECK_FAILS(esp_record(device, nothing, &work, &recording, error), ESP_FAILED, "test.work");
    CHECK(recording == NULL);
    esp_recording_free(NULL);
}

static void records(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_device *device = NULL;
    REQUIRE_OK(esp_device_open(context, "cpu", &device, error));
    test_sub(run, "on the processor");
    records_on(run, device);
    esp_device_close(device);
    test_sub(run, "on a GPU");
    device = open_gpu(run, context);
    if (device != NULL) {
        records_on(run, device);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

typedef struct product_work {
    const esp_plan *plan;
    esp_matmul_args args;
    int runs;
} product_work;

static esp_status products(void *user, void *stream, esp_error *error)
{
    product_work *work = user;
    work->args.stream = stream;
    for (int i = 0; i < work->runs; i++) {
        ESP_TRY(esp_matmul_run(work->plan, &work->args, error));
    }
    return ESP_OK;
}

/* A replayed product writes Y, and ten take longer than one. */
static void a_product_is_replayed(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_device *device = open_gpu(run, context);
    if (device == NULL) {
        test_context_free(run, context);
        return;
    }
    esp_matmul_problem problem = problem_of(run, "matmul/64:2:8/f16/512x512x256");
    product p = product_make(run, context, &problem, test_seed(run), REALS, false, false);
    size_t y_bytes = (size_t)(512 * 256 * 2), x_bytes = y_bytes;
    char *x = esp_device_alloc(device, x_bytes), *y = esp_device_alloc(device, y_bytes);
    char *host = malloc(y_bytes), *again = malloc(y_bytes);
    esp_packed *packed = NULL;
    esp_plan *plan = NULL;
    esp_recording *one = NULL, *ten = NULL;
    double us_one = 0, us_ten = 0;
    memset(host, 0x11, x_bytes);
    CHECK_OK(esp_device_upload(device, x, host, x_bytes, error));
    CHECK_OK(esp_pack(device, p.sparse, &packed, error));
    CHECK_OK(esp_plan_create(device, &problem, NULL, &plan, error));
    void *workspace = esp_device_alloc(device, esp_plan_workspace_bytes(plan));
    product_work work = {.plan = plan,
                         .args = {.weight = packed, .x = x, .y = y, .workspace = workspace},
                         .runs = 1};
    CHECK_OK(esp_record(device, products, &work, &one, error));
    CHECK_OK(esp_device_download(device, host, y, y_bytes, error));
    CHECK_OK(esp_device_fill(device, y, 0xff, y_bytes, error));
    CHECK_OK(esp_recording_time(one, 100, &us_one, error));
    CHECK_OK(esp_device_download(device, again, y, y_bytes, error));
    CHECK(memcmp(host, again, y_bytes) == 0);
    work.runs = 10;
    CHECK_OK(esp_record(device, products, &work, &ten, error));
    CHECK_OK(esp_recording_time(ten, 100, &us_ten, error));
    CHECK(us_ten > 2 * us_one && us_one > 0);
    esp_recording_free(one);
    esp_recording_free(ten);
    esp_plan_free(plan);
    esp_packed_free(packed);
    esp_device_release(device, workspace);
    esp_device_release(device, x);
    esp_device_release(device, y);
    free(host);
    free(again);
    product_free(&p);
    esp_device_close(device);
    test_context_free(run, context);
}

/* ---- tuning ---- */

typedef struct seen_results {
    int entered, refused, dense, points;
    int64_t last_tokens;
    char refusal[160];
} seen_results;

static void see(void *user, const esp_matmul_problem *problem, const esp_tune_result *result)
{
    seen_results *seen = user;
    seen->points += seen->last_tokens != problem->tokens;
    seen->last_tokens = problem->tokens;
    if (result->refused != NULL) {
        seen->refused++;
        snprintf(seen->refusal, sizeof seen->refusal, "%.80s: %.70s", result->kernel,
                 result->refused);
        return;
    }
    seen->entered += result->median_us > 0 && result->error <= 1 && result->rounds > 0;
    seen->dense += result->runs_dense;
}

static void tunes_on(test_run *run, esp_device *device, esp_context *context)
{
    static const char *const texts[] = {"matmul/64:2:8/f16/96x64x5/ep:bias+residual",
                                        "matmul/2:4/bf16/128x192x70/x:tok/y:tok/ep:scale+silu",
                                        "matmul/128:2:5/f16/300x512x33/ep:swiglu+residual/o:f32",
                                        "matmul/dense/f16/64x40x33",
                                        "matmul/panel:64@0.8/bf16/130x257x3/y:tok"};
    static const int64_t tokens[] = {40, 1, 300, 16};
    for (int i = 0; i < ESP_COUNT(texts); i++) {
        seen_results seen = {.last_tokens = -1};
        const esp_tune_options options = {.rounds = 2, .on_result = see, .user = &seen};
        esp_matmul_problem problem = problem_of(run, texts[i]);
        test_sub(run, "%s at four token counts", texts[i]);
        CHECK_OK(esp_tune_tokens(device, &problem, tokens, 4, &options, error));
        CHECK_INT(seen.points, 4);
        CHECK(seen.entered >= 4);
        CHECK_TEXT(seen.refusal, "");
        CHECK((seen.dense > 0) == (problem.pattern.kind != ESP_PATTERN_DENSE));
        CHECK_INT(esp_tuning_count(context), 4 * (i + 1));
        problem.tokens = 300;
        esp_plan_options both = {.forms = ESP_FORM_SPARSE | ESP_FORM_DENSE};
        esp_plan *plan = NULL;
        REQUIRE_OK(esp_plan_create_with(device, &problem, &both, &plan, error));
        CHECK_INT(esp_plan_get_reason(plan).tuned_tokens, 300);
        CHECK(!esp_plan_get_reason(plan).shipped);
        esp_plan_free(plan);
    }
}

static void tunes(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_device *device = open_gpu(run, context);
    if (device != NULL) {
        tunes_on(run, device, context);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* compute-sanitizer keeps memory for each launch of a graph until the device is waited for, and
 * looks at no further launch when it has none left: so recorded work runs once where it would run
 * often enough to be timed. */
static const esp_backend *often;

static esp_status replay_once(esp_device *device, void *state, int repeats, double *us,
                              esp_error *error)
{
    ESP_TRY(often->replay(device, state, 1, us, error));
    *us *= repeats;
    return ESP_OK;
}

/* Operands and results of a dense product, few enough for the tools that watch every access. */
static void measuring_for_sanitizers(test_run *run)
{
    static const int64_t tokens[] = {33, 5};
    esp_context *context = test_context(run, 1);
    esp_device *device = open_gpu(run, context);
    if (device == NULL) {
        test_context_free(run, context);
        return;
    }
    often = device->backend;
    esp_backend once = *often;
    once.replay = replay_once;
    device->backend = &once;
    for (int by_token = 0; by_token < 2; by_token++) {
        const esp_tune_options options = {.rounds = 1, .rotate_bytes = -1};
        esp_matmul_problem problem = problem_of(
            run, by_token ? "matmul/dense/bf16/64x40x1/x:tok/y:tok" : "matmul/dense/f16/64x40x1");
        CHECK_OK(esp_tune_tokens(device, &problem, tokens, 2, &options, error));
    }
    device->backend = often;
    esp_device_close(device);
    test_context_free(run, context);
}

/* Kernels of the GPU, spoiled behind their back: one output is changed on the device. */
static const esp_kernel *spoiled_real;

static esp_status launch_spoiled(const esp_matmul_call *call, esp_error *error)
{
    uint16_t value = 0;
    const esp_matmul_problem *problem = call->problem;
    char *y = (char *)call->args->y + 2 * (problem->out_features * problem->tokens - 1);
    ESP_TRY(spoiled_real->launch(call, error));
    if (call->args->stream != NULL) {
        return ESP_OK;
    }
    ESP_TRY(esp_device_download(call->device, &value, y, sizeof value, error));
    value = (uint16_t)(value ^ 0x40); /* a sixteenth of it */
    return esp_device_upload(call->device, y, &value, sizeof value, error);
}

static void wrong_kernels_stay_out(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_device *device = open_gpu(run, context);
    if (device == NULL) {
        test_context_free(run, context);
        return;
    }
    const esp_backend *real = device->backend;
    esp_matmul_problem problem = problem_of(run, "matmul/64:2:8/f16/128x256x40");
    int good = -1, bad = -1;
    for (int i = 0; real->kernels[i] != NULL; i++) {
        if (real->kernels[i]->why_not(real->kernels[i], device, &problem) == NULL) {
            good = bad >= 0 && good < 0 ? i : good;
            bad = bad < 0 ? i : bad;
        }
    }
    REQUIRE(good >= 0 && bad >= 0);
    spoiled_real = real->kernels[bad];
    esp_kernel spoiled = *spoiled_real;
    spoiled.launch = launch_spoiled;
    const esp_kernel *kernels[] = {&spoiled, real->kernels[good], NULL};
    esp_backend made = *real;
    made.kernels = kernels;
    device->backend = &made;
    seen_results seen = {.last_tokens = -1};
    const esp_tune_options options = {.rounds = 1, .on_result = see, .user = &seen};
    CHECK_OK(esp_tune(device, &problem, &options, error));
    CHECK_INT(seen.entered, 1);
    CHECK_INT(seen.refused, 1);
    CHECK(strstr(seen.refusal, "differs from the reference") != NULL);
    device->backend = real;
    esp_device_close(device);
    test_context_free(run, context);
}

/* Where dense was measured faster, a plan that may keep both forms runs dense. */
static void dense_where_it_is_faster(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_device *device = open_gpu(run, context);
    const char *dense = "matmul_dense_f16_f16__cuda_cublaslt";
    esp_matmul_problem problem = problem_of(run, "matmul/64:2:5/f16/256x256x100");
    const char *names[64];
    if (device == NULL) {
        test_context_free(run, context);
        return;
    }
    REQUIRE(usable_on(device, &problem, names) > 0);
    REQUIRE_OK(esp_plan_resolve(device, &problem, &problem, error));
    const esp_plan_candidate times[] = {{.kernel = names[0], .tuned_us = 20},
                                        {.kernel = dense, .tuned_us = 10}};
    REQUIRE_OK(esp_tuning_put(device, &problem, times, 2, error));
    esp_plan_options both = {.forms = ESP_FORM_SPARSE | ESP_FORM_DENSE};
    esp_plan *plan = NULL;
    REQUIRE_OK(esp_plan_create_with(device, &problem, &both, &plan, error));
    CHECK_TEXT(esp_plan_kernel(plan), dense);
    CHECK(esp_plan_runs_dense(plan));
    CHECK_TEXT(esp_plan_get_reason(plan).sparse_kernel, names[0]);
    esp_plan_free(plan);
    both.require_sparse = true;
    CHECK_FAILS(esp_plan_create_with(device, &problem, &both, &plan, error), ESP_UNSUPPORTED,
                "plan.dense_is_faster");
    esp_device_close(device);
    test_context_free(run, context);
}

/* ---- times that ship ---- */

#ifdef ESP_HAVE_CUDA

static const char *const made_names[] = {"panel/sm90_64x256", "panel/sm90_gone", "dense/cublaslt",
                                         NULL};
static const cuda_times_family made_families[] = {
    {"64:2:8/4096x4096", {{64, 0, 2, 20, 30}, {512, 0, 2, 40, 60}, {4096, 1, 2, 50, 70}}},
    {"2:4/4096x4096", {{512, 0, 2, 40, 60}}},
    {NULL, {{0, 0, 0, 0, 0}}}};
static const cuda_times made_times[] = {{"NVIDIA H200", made_names, made_families},
                                        {NULL, NULL, NULL}};

/* As if an H200 were there: nothing of it is asked but what it is. */
static void shipped_times(test_run *run)
{
    cuda_state state = {
        .facts = {.name = "NVIDIA H200", .major = 9, .multiprocessors = 132, .gb_per_s = 4800}};
    esp_device device = {.backend = &esp_cuda_backend, .state = &state};
    esp_shipped_times times, other;
    esp_matmul_problem problem = problem_of(run, "matmul/64:2:8/f16/4096x4096x320/c:f32");
    REQUIRE(cuda_times_find(made_times, &device, &problem, &times));
    CHECK_INT(times.tokens, 512);
    CHECK(times.sparse_us == 40 && times.dense_us == 60);
    CHECK_TEXT(times.sparse->name, "matmul_panel_f16_f16__cuda_sm90_64x256");
    CHECK_TEXT(times.dense->name, "matmul_dense_f16_f16__cuda_cublaslt");
    test_sub(run, "bf16 runs the same kernel");
    problem = problem_of(run, "matmul/64:2:8/bf16/4096x4096x512/c:bf16");
    REQUIRE(cuda_times_find(made_times, &device, &problem, &other));
    CHECK_TEXT(other.sparse->name, "matmul_panel_bf16_bf16__cuda_sm90_64x256");
    CHECK(times.sparse_us == other.sparse_us);
    test_sub(run, "an epilogue costs cuBLASLt a pass, which our own kernel spares");
    problem = problem_of(run, "matmul/64:2:8/f16/4096x4096x512/ep:bias+gelu");
    REQUIRE(cuda_times_find(made_times, &device, &problem, &other));
    CHECK(other.dense_us > times.dense_us && other.sparse_us > times.sparse_us);
    CHECK(strstr(other.dense->name, "matmul_dense_f16_f16__cuda_sm90_") != NULL);
    problem = problem_of(run, "matmul/64:2:8/f16/4096x4096x512/o:f32/y:tok/ep:bias+residual");
    REQUIRE(cuda_times_find(made_times, &device, &problem, &other));
    CHECK(strstr(other.dense->name, "matmul_dense_f16_f16__cuda_sm90_") != NULL);
    test_sub(run, "the nearest by ratio, of two the smaller, within a factor of four");
    static const int64_t asked[][2] = {{16, 64}, {128, 64}, {192, 512}, {64, 64}, {512, 512}};
    for (int i = 0; i < ESP_COUNT(asked); i++) {
        problem.tokens = asked[i][0];
        REQUIRE(cuda_times_find(made_times, &device, &problem, &other));
        CHECK_INT(other.tokens, asked[i][1]);
    }
    test_sub(run, "nothing is known");
    static const char *const unknown[] = {
        "matmul/64:2:8/f16/4096x4096x15",   /* too far */
        "matmul/64:2:8/f16/4096x4096x4096", /* the kernel is gone */
        "matmul/2:4/f16/4096x4096x512",     /* the kernel cannot run it */
        "matmul/64:2:8/f16/4096x4096x500",  /* rows that begin in the middle of a line */
        "matmul/64:2:8/f16/4095x4096x512",     "matmul/64:2:8/f16/4096x4096x512/x:tok",
        "matmul/dense/f16/4096x4096x512/c:f32"};
    for (int i = 0; i < ESP_COUNT(unknown); i++) {
        problem = problem_of(run, unknown[i]);
        CHECK(!cuda_times_find(made_times, &device, &problem, &other));
    }
    problem = problem_of(run, "matmul/64:2:8/f16/4096x4096x512");
    snprintf(state.facts.name, sizeof state.facts.name, "NVIDIA H200 NVL");
    CHECK(!cuda_times_find(made_times, &device, &problem, &other));
}

static void check_shipped_family(test_run *run, const cuda_times *table,
                                 const cuda_times_family *of)
{
    cuda_state state = {.facts = {.major = 9, .gb_per_s = 4800}};
    esp_device device = {.backend = &esp_cuda_backend, .state = &state};
    const char *shape = strchr(of->key, '/');
    REQUIRE(shape != NULL);
    snprintf(state.facts.name, sizeof state.facts.name, "%s", table->gpu);
    for (const cuda_times_point *at = of->points; at->tokens > 0; at++) {
        char text[160];
        esp_shipped_times times;
        snprintf(text, sizeof text, "matmul/%.*s/f16/%sx%d", (int)(shape - of->key), of->key,
                 shape + 1, at->tokens);
        esp_matmul_problem problem = problem_of(run, text);
        REQUIRE(cuda_shipped_times(&device, &problem, &times)); /* else its kernel is gone */
        CHECK(times.tokens == at->tokens && times.sparse_us > 0 && times.dense_us > 0);
    }
}

/* Each entry that ships names a kernel that there is and that can run it. */
static void shipped_times_are_not_stale(test_run *run)
{
    if (cuda_shipped[0].gpu == NULL) {
        test_skip(run, "no times ship");
    }
    for (const cuda_times *table = cuda_shipped; table->gpu != NULL; table++) {
        for (const cuda_times_family *of = table->families; of->key != NULL; of++) {
            test_sub(run, "%s on %s", of->key, table->gpu);
            check_shipped_family(run, table, of);
        }
    }
}

#endif

static const test_case cases[] = {
    {"records", records},
    {"a_product_is_replayed", a_product_is_replayed},
    {"tunes", tunes},
    {"measuring_for_sanitizers", measuring_for_sanitizers},
    {"wrong_kernels_stay_out", wrong_kernels_stay_out},
    {"dense_where_it_is_faster", dense_where_it_is_faster},
#ifdef ESP_HAVE_CUDA
    {"shipped_times", shipped_times},
    {"shipped_times_are_not_stale", shipped_times_are_not_stale},
#endif
};
TEST_MAIN(cases)
