/* Calls of the GPU's products by what is around the kernels: forms of weights, threads that share a
 * plan, arguments that are wrong, also by being another GPU's. Without a GPU every case is skipped.
 */
#include <pthread.h>

#include "product_device.h"

/* ---- forms ---- */

/* A plan for the spread form wants a weight that holds it; what else it holds does not matter. */
static void run_in_forms(test_run *run, esp_device *device, const product *p, unsigned forms)
{
    const esp_plan_options wish = {.forms = ESP_FORM_SPREAD};
    const esp_pack_options held = {.forms = forms};
    esp_plan *plan = NULL;
    esp_packed *packed = NULL;
    test_sub(run, "forms %u", forms);
    CHECK_OK(esp_plan_create_with(device, &p->problem, &wish, &plan, error));
    CHECK_OK(esp_pack_with(device, p->sparse, &held, &packed, error));
    if (plan != NULL && packed != NULL) {
        char *memory = esp_device_alloc(device, 1 << 20);
        esp_matmul_args args = {.weight = packed, .x = memory, .y = memory + (1 << 19)};
        CHECK_INT(esp_plan_form(plan), ESP_FORM_SPREAD);
        CHECK(!esp_plan_runs_dense(plan));
        CHECK_INT(esp_packed_forms(packed), forms);
        if ((forms & ESP_FORM_SPREAD) != 0) {
            CHECK_OK(esp_matmul_run(plan, &args, error));
        } else {
            CHECK_FAILS(esp_matmul_run(plan, &args, error), ESP_BAD_ARGUMENT,
                        "matmul.missing_form");
        }
        CHECK_OK(esp_device_wait(device, error));
        esp_device_release(device, memory);
    }
    esp_packed_free(packed);
    esp_plan_free(plan);
}

static void spread_form(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_device *device = open_gpu(run, context);
    esp_matmul_problem problem = problem_of(run, "matmul/16:2:5/f16/128x256x40");
    const char *names[64];
    if (device != NULL && usable_on(device, &problem, names) > 0) {
        product p = product_make(run, context, &problem, test_seed(run), INTEGERS, false, false);
        for (unsigned forms = 1; forms < 8; forms++) {
            run_in_forms(run, device, &p, forms);
        }
        test_sub(run, "patterns that have no such form");
        esp_matmul_problem other = problem_of(run, "matmul/16:2:6/f16/128x256x40");
        product q = product_make(run, context, &other, test_seed(run), INTEGERS, false, false);
        const esp_pack_options spread = {.forms = ESP_FORM_SPREAD};
        esp_packed *packed = NULL;
        CHECK_OK(esp_pack_with(device, q.sparse, &spread, &packed, error));
        CHECK_INT(esp_packed_forms(packed), ESP_FORM_SPARSE);
        esp_packed_free(packed);
        product_free(&q);
        product_free(&p);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* ---- weights without kernels of their own ---- */

#define BOTH_FORMS ((unsigned)(ESP_FORM_SPARSE | ESP_FORM_DENSE))

/* Operands are tight, Y is f32 and feature-major. */
static void run_dense_form(test_run *run, esp_device *device, const product *p,
                           const esp_plan *plan, const esp_packed *weight)
{
    size_t x_bytes = (size_t)x_elements(p) * esp_dtype_bytes(p->problem.act_type);
    size_t y_bytes = (size_t)y_elements(p) * sizeof(float);
    float *expected = result_of(p), *actual = result_of(p);
    char *x = esp_device_alloc(device, x_bytes), *y = esp_device_alloc(device, y_bytes);
    char *workspace = esp_device_alloc(device, esp_plan_workspace_bytes(plan));
    const esp_matmul_args args = {.weight = weight, .x = x, .y = y, .workspace = workspace};
    CHECK_OK(esp_device_upload(device, x, p->x, x_bytes, error));
    CHECK_OK(esp_device_fill(device, y, 0xff, y_bytes, error));
    CHECK_OK(esp_matmul_run(plan, &args, error));
    CHECK_OK(esp_device_wait(device, error));
    CHECK_OK(esp_device_download(device, actual, y, y_bytes, error));
    run_kernel(run, p, "ref", NULL, expected);
    compare_exact(run, p, expected, actual);
    esp_device_release(device, x);
    esp_device_release(device, y);
    esp_device_release(device, workspace);
    free(expected);
    free(actual);
}

/* Refused in the form of its pattern, by this code; run dense, and said to be, where that form is
 * allowed. */
static void check_runs_dense(test_run *run, esp_device *device, const product *p,
                             const char *pack_code)
{
    const esp_plan_options required = {.forms = BOTH_FORMS, .require_sparse = true};
    const esp_plan_options allowed = {.forms = BOTH_FORMS};
    const esp_pack_options dense = {.forms = ESP_FORM_DENSE}, both = {.forms = BOTH_FORMS};
    esp_packed *weight = NULL;
    esp_plan *plan = NULL;
    CHECK_FAILS(esp_pack(device, p->sparse, &weight, error), ESP_UNSUPPORTED, pack_code);
    CHECK_FAILS(esp_pack_with(device, p->sparse, &both, &weight, error), ESP_UNSUPPORTED,
                pack_code);
    CHECK_FAILS(esp_plan_create(device, &p->problem, NULL, &plan, error), ESP_UNSUPPORTED,
                "plan.no_kernel");
    CHECK_FAILS(esp_plan_create_with(device, &p->problem, &required, &plan, error), ESP_UNSUPPORTED,
                "plan.no_sparse_kernel");
    REQUIRE_OK(esp_plan_create_with(device, &p->problem, &allowed, &plan, error));
    CHECK_OK(esp_pack_with(device, p->sparse, &dense, &weight, error));
    CHECK(esp_plan_runs_dense(plan));
    CHECK_INT(esp_plan_form(plan), ESP_FORM_DENSE);
    CHECK(esp_plan_get_reason(plan).sparse_kernel == NULL);
    CHECK_TEXT(esp_plan_get_reason(plan).dense_kernel, esp_plan_kernel(plan));
    if (weight != NULL) {
        CHECK_INT(esp_packed_forms(weight), ESP_FORM_DENSE);
        run_dense_form(run, device, p, plan, weight);
    }
    esp_packed_free(weight);
    esp_plan_free(plan);
}

static void other_patterns_run_dense(test_run *run)
{
    static const char *const texts[][2] = {
        {"matmul/unstructured@0.9/f16/304x400x70/o:f32", "pack.unsupported_pattern"},
        {"matmul/unstructured@0.5/bf16/77x333x5/o:f32", "pack.unsupported_pattern"},
        {"matmul/unstructured@0.7/f32/64x96x33", "pack.unsupported_pattern"},
        {"matmul/3:8/f16/128x256x40/o:f32", "pack.unsupported_pattern"},
        {"matmul/block:8x8@0.5/bf16/128x256x9/o:f32", "pack.unsupported_pattern"},
        {"matmul/rows@0.5/f16/128x256x33/o:f32", "pack.unsupported_pattern"},
        {"matmul/cols@0.5/bf16/128x256x1/o:f32", "pack.unsupported_pattern"},
        {"matmul/2:4/f32/96x200x24", "pack.unsupported_type"}};
    esp_context *context = test_context(run, 1);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(texts); i++) {
        test_sub(run, "%s", texts[i][0]);
        esp_matmul_problem problem = problem_of(run, texts[i][0]);
        product p = product_make(run, context, &problem, test_seed(run), INTEGERS, false, false);
        check_runs_dense(run, device, &p, texts[i][1]);
        product_free(&p);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* ---- threads ---- */

#define CALLERS 4
#define RUNS 6 /* of each caller, one after the other on its stream, each into a Y of its own */

/* A thread with all that is its own; plan and weight are everybody's. */
typedef struct caller {
    const esp_plan *plan;
    const esp_packed *weight;
    pthread_barrier_t *start;
    char *x, *y, *workspace; /* y: RUNS of them */
    size_t y_bytes;
    void *stream;
    esp_status status;
    esp_error error;
} caller;

static esp_matmul_args args_of(const caller *c, int run_number)
{
    return (esp_matmul_args){.weight = c->weight,
                             .x = c->x,
                             .y = c->y + (size_t)run_number * c->y_bytes,
                             .workspace = c->workspace,
                             .stream = c->stream};
}

static void *call_often(void *user)
{
    caller *c = user;
    pthread_barrier_wait(c->start);
    for (int i = 0; i < RUNS && c->status == ESP_OK; i++) {
        esp_matmul_args args = args_of(c, i);
        c->status = esp_matmul_run(c->plan, &args, &c->error);
    }
    return NULL;
}

/* X of its own, results that no product leaves. */
static caller caller_make(test_run *run, esp_device *device, const product *p, const esp_plan *plan,
                          const esp_packed *weight, uint64_t seed)
{
    esp_dtype type = p->problem.act_type;
    size_t x_bytes = (size_t)x_elements(p) * esp_dtype_bytes(type);
    caller made = {.plan = plan, .weight = weight};
    made.y_bytes = (size_t)y_elements(p) * esp_dtype_bytes(p->problem.out_type);
    made.y_bytes = (made.y_bytes + 255) / 256 * 256;
    made.x = esp_device_alloc(device, x_bytes);
    made.y = esp_device_alloc(device, RUNS * made.y_bytes);
    made.workspace = esp_device_alloc(device, esp_plan_workspace_bytes(plan));
    CHECK(made.x != NULL && made.y != NULL && made.workspace != NULL);
    char *x = malloc(x_bytes);
    esp_random random;
    esp_random_seed(&random, seed);
    for (int64_t i = 0; i < x_elements(p); i++) {
        put(type, x, i, random_value(&random, REALS, false));
    }
    CHECK_OK(esp_device_upload(device, made.x, x, x_bytes, error));
    CHECK_OK(esp_device_fill(device, made.y, 0xff, RUNS * made.y_bytes, error));
    CHECK_OK(device->backend->stream_open(device, &made.stream, error));
    free(x);
    return made;
}

static void caller_free(esp_device *device, caller *c)
{
    device->backend->stream_close(device, c->stream);
    esp_device_release(device, c->x);
    esp_device_release(device, c->y);
    esp_device_release(device, c->workspace);
}

/* What all its calls left is what one call leaves when nobody else calls. */
static void compare_with_one_call(test_run *run, esp_device *device, const product *p, caller *c)
{
    size_t bytes = (size_t)y_elements(p) * esp_dtype_bytes(p->problem.out_type);
    char *many = malloc(RUNS * c->y_bytes), *one = malloc(bytes);
    CHECK_INT(c->status, ESP_OK);
    CHECK_TEXT(c->error.message, "");
    CHECK_OK(esp_device_download(device, many, c->y, RUNS * c->y_bytes, error));
    CHECK_OK(esp_device_fill(device, c->y, 0, bytes, error));
    esp_matmul_args args = args_of(c, 0);
    CHECK_OK(esp_matmul_run(c->plan, &args, error));
    CHECK_OK(esp_device_wait(device, error));
    CHECK_OK(esp_device_download(device, one, c->y, bytes, error));
    for (int i = 0; i < RUNS; i++) {
        if (memcmp(many + (size_t)i * c->y_bytes, one, bytes) != 0) {
            test_fail(run, __FILE__, __LINE__, "run %d differs from a call by itself", i);
        }
    }
    free(many);
    free(one);
}

/* The threads come first: what a plan or the device keeps from the first call on, they make. */
static void call_at_once(test_run *run, esp_device *device, const product *p, const char *kernel)
{
    const esp_plan_options wish = {.kernel_glob = kernel,
                                   .forms = ESP_FORM_SPARSE | ESP_FORM_SPREAD};
    esp_plan *plan = NULL;
    esp_packed *weight = NULL;
    REQUIRE_OK(esp_plan_create_with(device, &p->problem, &wish, &plan, error));
    const esp_pack_options form = {.forms = esp_plan_form(plan)};
    CHECK_OK(esp_pack_with(device, p->sparse, &form, &weight, error));
    caller callers[CALLERS];
    pthread_t threads[CALLERS];
    pthread_barrier_t start;
    pthread_barrier_init(&start, NULL, CALLERS);
    for (int i = 0; i < CALLERS; i++) {
        callers[i] = caller_make(run, device, p, plan, weight, test_seed(run) + (uint64_t)i);
        callers[i].start = &start;
    }
    for (int i = 0; i < CALLERS; i++) {
        if (pthread_create(&threads[i], NULL, call_often, &callers[i]) != 0) {
            perror("pthread_create");
            exit(1); /* the others wait for it */
        }
    }
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(threads[i], NULL);
    }
    CHECK_OK(esp_device_wait(device, error));
    for (int i = 0; i < CALLERS; i++) {
        compare_with_one_call(run, device, p, &callers[i]);
    }
    for (int i = 0; i < CALLERS; i++) {
        caller_free(device, &callers[i]);
    }
    pthread_barrier_destroy(&start);
    esp_packed_free(weight);
    esp_plan_free(plan);
}

static void threads_share_a_plan(test_run *run)
{
    static const char *const texts[] = {"matmul/2:4/f16/1024x1024x520",
                                        "matmul/2:4/bf16/768x3072x200/x:tok",
                                        "matmul/64:2:8/f16/1000x1100x296",
                                        "matmul/128:2:8/bf16/1024x1000x301/x:tok/ep:gelu",
                                        "matmul/64:2:8/f16/2048x2048x8",
                                        "matmul/64:2:5/f16/512x640x136/ep:swiglu",
                                        "matmul/block:64x64@0.7/f16/768x768x264",
                                        "matmul/dense/f16/1008x1000x304",
                                        "matmul/dense/bf16/1001x1003x130/y:tok/ep:silu",
                                        "matmul/dense/f32/500x500x120"};
    esp_context *context = test_context(run, 1);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(texts); i++) {
        esp_matmul_problem problem = problem_of(run, texts[i]);
        const char *names[64];
        int count = usable_on(device, &problem, names);
        product p = product_make(run, context, &problem, test_seed(run), REALS, false, false);
        for (int k = 0; k < count; k++) {
            test_sub(run, "%s %s", texts[i], names[k]);
            call_at_once(run, device, &p, names[k]);
        }
        product_free(&p);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* ---- wrong arguments ---- */

static void wrong_arguments(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_device *device = open_gpu(run, context);
    if (device == NULL) {
        test_context_free(run, context);
        return;
    }
    esp_matmul_problem problem =
        problem_of(run, "matmul/64:2:8/f16/128x256x33/x:tok/ep:scale+bias+residual");
    product p = product_make(run, context, &problem, test_seed(run), INTEGERS, false, false);
    esp_packed *packed = NULL;
    esp_plan *plan = NULL;
    CHECK_OK(esp_pack(device, p.sparse, &packed, error));
    CHECK_OK(esp_plan_create(device, &problem, NULL, &plan, error));
    size_t bytes = 1 << 20;
    char *memory = esp_device_alloc(device, bytes);
    char *workspace = esp_device_alloc(device, esp_plan_workspace_bytes(plan));
    esp_matmul_args right = {.weight = packed,
                             .x = memory,
                             .y = memory + bytes / 2,
                             .scale = (const float *)(const void *)memory,
                             .bias = (const float *)(const void *)memory,
                             .residual = memory,
                             .workspace = workspace};
    CHECK_OK(esp_matmul_run(plan, &right, error));
    test_sub(run, "operands in host memory");
    esp_matmul_args wrong = right;
    wrong.x = p.x;
    CHECK_FAILS(esp_matmul_run(plan, &wrong, error), ESP_BAD_ARGUMENT, "matmul.not_on_device");
    wrong = right;
    wrong.bias = p.bias;
    CHECK_FAILS(esp_matmul_run(plan, &wrong, error), ESP_BAD_ARGUMENT, "matmul.not_on_device");
    wrong = right;
    wrong.residual = p.residual;
    CHECK_FAILS(esp_matmul_run(plan, &wrong, error), ESP_BAD_ARGUMENT, "matmul.not_on_device");
    test_sub(run, "missing operands");
    wrong = right;
    wrong.y = NULL;
    CHECK_FAILS(esp_matmul_run(plan, &wrong, error), ESP_BAD_ARGUMENT, "matmul.missing_operand");
    wrong = right;
    wrong.workspace = NULL;
    CHECK_FAILS(esp_matmul_run(plan, &wrong, error), ESP_BAD_ARGUMENT, "matmul.missing_operand");
    test_sub(run, "half an element off");
    wrong = right;
    wrong.x = memory + 1;
    CHECK_FAILS(esp_matmul_run(plan, &wrong, error), ESP_BAD_ARGUMENT, "matmul.misaligned");
    wrong = right;
    wrong.y = memory + bytes / 2 + 1;
    CHECK_FAILS(esp_matmul_run(plan, &wrong, error), ESP_BAD_ARGUMENT, "matmul.misaligned");
    wrong = right;
    wrong.residual = memory + 1;
    CHECK_FAILS(esp_matmul_run(plan, &wrong, error), ESP_BAD_ARGUMENT, "matmul.misaligned");
    wrong = right;
    wrong.scale = (const float *)(const void *)(memory + 2);
    CHECK_FAILS(esp_matmul_run(plan, &wrong, error), ESP_BAD_ARGUMENT, "matmul.misaligned");
    wrong = right;
    wrong.bias = (const float *)(const void *)(memory + 2);
    CHECK_FAILS(esp_matmul_run(plan, &wrong, error), ESP_BAD_ARGUMENT, "matmul.misaligned");
    test_sub(run, "too little memory behind a pointer");
    char *little = esp_device_alloc(device, 256);
    wrong = right;
    wrong.workspace = little;
    CHECK_FAILS(esp_matmul_run(plan, &wrong, error), ESP_BAD_ARGUMENT, "matmul.too_small");
    wrong = right;
    wrong.y = memory + bytes - 256;
    CHECK_FAILS(esp_matmul_run(plan, &wrong, error), ESP_BAD_ARGUMENT, "matmul.too_small");
    wrong = right;
    wrong.x_stride = (int64_t)1 << 40;
    CHECK_FAILS(esp_matmul_run(plan, &wrong, error), ESP_BAD_ARGUMENT, "matmul.too_small");
    esp_device_release(device, little);
    test_sub(run, "memory that was freed");
    char *freed = esp_device_alloc(device, 8 << 20);
    wrong = right;
    wrong.y = freed;
    CHECK_OK(esp_matmul_run(plan, &wrong, error));
    CHECK_OK(esp_device_wait(device, error));
    esp_device_release(device, freed);
    CHECK_FAILS(esp_matmul_run(plan, &wrong, error), ESP_BAD_ARGUMENT, "matmul.not_on_device");
    test_sub(run, "addresses of nothing");
    wrong = right;
    wrong.x = (const void *)(uintptr_t)64;
    CHECK_FAILS(esp_matmul_run(plan, &wrong, error), ESP_BAD_ARGUMENT, "matmul.not_on_device");
    wrong.x = (const void *)(UINTPTR_MAX - 63);
    CHECK_FAILS(esp_matmul_run(plan, &wrong, error), ESP_BAD_ARGUMENT, "matmul.not_on_device");
    test_sub(run, "formats and types that it does not read");
    esp_matmul_problem other = problem_of(run, "matmul/4:8/f16/16x16x4");
    product q = product_make(run, context, &other, test_seed(run), INTEGERS, false, false);
    esp_packed *none = NULL;
    CHECK_FAILS(esp_pack(device, q.sparse, &none, error), ESP_UNSUPPORTED,
                "pack.unsupported_pattern");
    product_free(&q);
    other = problem_of(run, "matmul/2:4/f32/16x16x4");
    q = product_make(run, context, &other, test_seed(run), INTEGERS, false, false);
    CHECK_FAILS(esp_pack(device, q.sparse, &none, error), ESP_UNSUPPORTED, "pack.unsupported_type");
    product_free(&q);
    esp_plan *no_plan = NULL;
    CHECK_FAILS(esp_plan_create(device, &other, NULL, &no_plan, error), ESP_UNSUPPORTED,
                "plan.no_kernel");
    test_sub(run, "still works");
    CHECK_OK(esp_matmul_run(plan, &right, error));
    CHECK_OK(esp_device_wait(device, error));
    esp_device_release(device, memory);
    esp_device_release(device, workspace);
    esp_plan_free(plan);
    esp_packed_free(packed);
    product_free(&p);
    esp_device_close(device);
    test_context_free(run, context);
}

/* ---- two GPUs ---- */

/* Opens the first two that can be used; returns whether there are so many. */
static bool open_two(test_run *run, esp_context *context, esp_device *devices[2])
{
    esp_device_info infos[32];
    int count = esp_device_list(context, infos, ESP_COUNT(infos)), found = 0;
    for (int i = 0; i < ESP_MIN(count, ESP_COUNT(infos)) && found < 2; i++) {
        if (strncmp(infos[i].name, "cuda:", 5) == 0 && infos[i].usable) {
            CHECK_OK(esp_device_open(context, infos[i].name, &devices[found], error));
            found++;
        }
    }
    if (found < 2) {
        test_skip(run, "fewer than two GPUs that can be used");
    }
    return found == 2;
}

/* A plan, its weight and memory of one device. */
typedef struct place {
    esp_device *device;
    esp_plan *plan;
    esp_packed *weight;
    char *memory, *workspace;
} place;

#define PLACE_BYTES (1 << 20)

static place place_make(test_run *run, esp_device *device, const product *p)
{
    place made = {.device = device};
    CHECK_OK(esp_pack(device, p->sparse, &made.weight, error));
    CHECK_OK(esp_plan_create(device, &p->problem, NULL, &made.plan, error));
    made.memory = esp_device_alloc(device, PLACE_BYTES);
    made.workspace = esp_device_alloc(device, esp_plan_workspace_bytes(made.plan));
    CHECK(made.memory != NULL && made.workspace != NULL);
    return made;
}

static void place_free(place *made)
{
    esp_device_release(made->device, made->memory);
    esp_device_release(made->device, made->workspace);
    esp_packed_free(made->weight);
    esp_plan_free(made->plan);
}

static esp_matmul_args args_at(const place *here)
{
    return (esp_matmul_args){.weight = here->weight,
                             .x = here->memory,
                             .y = here->memory + PLACE_BYTES / 2,
                             .scale = (const float *)(const void *)here->memory,
                             .bias = (const float *)(const void *)here->memory,
                             .residual = here->memory,
                             .workspace = here->workspace};
}

/* Each operand of `there` in a call `here` is refused, and what is right works in between. */
static void refuse_from(test_run *run, const place *here, const place *there)
{
    const esp_matmul_args right = args_at(here), other = args_at(there);
    esp_matmul_args wrong[7];
    for (int i = 0; i < ESP_COUNT(wrong); i++) {
        wrong[i] = right;
    }
    wrong[0].x = other.x;
    wrong[1].y = other.y;
    wrong[2].scale = other.scale;
    wrong[3].bias = other.bias;
    wrong[4].residual = other.residual;
    wrong[5].workspace = other.workspace;
    wrong[6].weight = other.weight;
    for (int i = 0; i < ESP_COUNT(wrong); i++) {
        test_sub(run, "on '%s' operand %d of '%s'", esp_device_name(here->device), i,
                 esp_device_name(there->device));
        CHECK_FAILS(esp_matmul_run(here->plan, &wrong[i], error), ESP_BAD_ARGUMENT,
                    i == 6 ? "matmul.bad_weight" : "matmul.not_on_device");
        CHECK_OK(esp_matmul_run(here->plan, &right, error));
        CHECK_OK(esp_device_wait(here->device, error));
    }
}

/* The plan needs a workspace: X by token is transposed there. */
static void operands_of_another_gpu(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_device *devices[2] = {NULL, NULL};
    if (open_two(run, context, devices)) {
        esp_matmul_problem problem =
            problem_of(run, "matmul/64:2:8/f16/128x256x33/x:tok/ep:scale+bias+residual");
        product p = product_make(run, context, &problem, test_seed(run), INTEGERS, false, false);
        place places[2] = {place_make(run, devices[0], &p), place_make(run, devices[1], &p)};
        CHECK(esp_plan_workspace_bytes(places[0].plan) > 0);
        refuse_from(run, &places[0], &places[1]);
        refuse_from(run, &places[1], &places[0]);
        place_free(&places[0]);
        place_free(&places[1]);
        product_free(&p);
    }
    esp_device_close(devices[0]);
    esp_device_close(devices[1]);
    test_context_free(run, context);
}

static const test_case cases[] = {{"spread_form", spread_form},
                                  {"other_patterns_run_dense", other_patterns_run_dense},
                                  {"threads_share_a_plan", threads_share_a_plan},
                                  {"wrong_arguments", wrong_arguments},
                                  {"operands_of_another_gpu", operands_of_another_gpu}};
TEST_MAIN(cases)
