/* Problem strings, devices, the catalogue, the choice of a kernel and the checks before a run. */
#include <limits.h>

#include "failing_allocator.h"
#include "product.h"

static void strings_round_trip(test_run *run)
{
    static const char *const texts[] = {
        "matmul/dense/f32/1x1x1",
        "matmul/64:2:8/f16/4096x4096x512",
        "matmul/64:2:8/bf16/4096x4096x512/x:tok/y:tok/a:f32/o:bf16/c:bf16/ep:bias+gelu+residual",
        "matmul/4:8/f32/7x9x1/y:tok/ep:scale+bias+gelu_tanh",
        "matmul/2:4/bf16/4096x384x1/a:f32/c:f32/ep:swiglu",
        "matmul/panel:64@0.75/f32/10x10x10/o:f16/ep:relu",
        "matmul/dense/f32/4294967296x2x3/ep:silu",
    };
    for (int i = 0; i < ESP_COUNT(texts); i++) {
        test_sub(run, "%s", texts[i]);
        esp_matmul_problem problem = problem_of(run, texts[i]), again;
        char text[ESP_PROBLEM_TEXT_MAX];
        esp_matmul_problem_print(&problem, text);
        CHECK_TEXT(text, texts[i]);
        CHECK_OK(esp_matmul_problem_parse(text, &again, error));
        CHECK(esp_pattern_equal(&problem.pattern, &again.pattern));
        CHECK(problem.epilogue == again.epilogue && problem.compute == again.compute);
    }
    test_sub(run, "options in any order, defaults spelled out");
    esp_matmul_problem problem = problem_of(
        run, "matmul/2:4/bf16/8x8x8/ep:residual+bias/c:auto/y:feat/o:bf16/a:bf16/x:feat");
    char text[ESP_PROBLEM_TEXT_MAX];
    esp_matmul_problem_print(&problem, text);
    CHECK_TEXT(text, "matmul/2:4/bf16/8x8x8/ep:bias+residual");
}

static void wrong_strings(test_run *run)
{
    static const struct {
        const char *text, *code, *names;
    } rows[] = {
        {"", "problem.bad_operation", "matmul/"},
        {"matmul", "pattern.", ""},
        {"conv/2:4/f32/1x1x1", "problem.bad_operation", "conv"},
        {"matmul/5:4/f32/1x1x1", "pattern.", "5:4"},
        {"matmul/2:4/f64/1x1x1", "problem.bad_type", "f64"},
        {"matmul/2:4/F32/1x1x1", "problem.bad_type", "F32"},
        {"matmul/2:4/f32", "problem.bad_sizes", "OUTxINxTOKENS"},
        {"matmul/2:4/f32/1x1", "problem.bad_sizes", "1x1"},
        {"matmul/2:4/f32/1x1x1x1", "problem.bad_sizes", "1x1x1x1"},
        {"matmul/2:4/f32/1x1x", "problem.bad_sizes", "1x1x"},
        {"matmul/2:4/f32/-1x1x1", "problem.bad_sizes", "-1x1x1"},
        {"matmul/2:4/f32/ 1x1x1", "problem.bad_sizes", " 1x1x1"},
        {"matmul/2:4/f32/0x1x1", "problem.bad_sizes", "out is 0"},
        {"matmul/2:4/f32/1x1x2147483649", "problem.bad_sizes", "tokens"},
        {"matmul/2:4/f32/1x4294967297x1", "problem.bad_sizes", "in is"},
        {"matmul/2:4/f32/99999999999x1x1", "problem.bad_sizes", "99999999999"},
        {"matmul/2:4/f32/4294967296x4294967296x1", "problem.too_large", "4294967296"},
        {"matmul/2:4/f32/1x1x1/", "problem.bad_option", "''"},
        {"matmul/2:4/f32/1x1x1/x", "problem.bad_option", "'x'"},
        {"matmul/2:4/f32/1x1x1/z:tok", "problem.bad_option", "z:tok"},
        {"matmul/2:4/f32/1x1x1/x:row", "problem.bad_layout", "row"},
        {"matmul/2:4/f32/1x1x1/x:tok/x:tok", "problem.repeated_option", "x:"},
        {"matmul/2:4/f32/1x1x1/a:i8", "problem.bad_type", "activation"},
        {"matmul/2:4/f32/1x1x1/o:u8", "problem.bad_type", "output"},
        {"matmul/2:4/f32/1x1x1/c:f16", "problem.bad_compute", "f16"},
        {"matmul/2:4/f32/1x1x1/ep:", "problem.bad_epilogue", "''"},
        {"matmul/2:4/f32/1x1x1/ep:bias+", "problem.bad_epilogue", "''"},
        {"matmul/2:4/f32/1x1x1/ep:tanh", "problem.bad_epilogue", "tanh"},
        {"matmul/2:4/f32/1x1x1/ep:bias+bias", "problem.bad_epilogue", "twice"},
        {"matmul/2:4/f32/1x1x1/ep:relu+silu", "problem.bad_epilogue", "at most one"},
        {"matmul/2:4/f32/3x1x1/ep:swiglu", "problem.odd_swiglu", "even"},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "'%s'", rows[i].text);
        esp_matmul_problem problem = {.tokens = 77};
        esp_error error = {0};
        CHECK(esp_matmul_problem_parse(rows[i].text, &problem, &error) != ESP_OK);
        CHECK(strncmp(error.code, rows[i].code, strlen(rows[i].code)) == 0);
        CHECK(strstr(error.message, rows[i].names) != NULL);
        CHECK_INT(problem.tokens, 77);
    }
}

static void devices(test_run *run)
{
    esp_context *context = test_context(run, 2);
    esp_device_info infos[8];
    int count = esp_device_list(context, infos, 8);
    CHECK(count >= 2);
    CHECK_INT(esp_device_list(context, NULL, 0), count);
    CHECK_TEXT(infos[0].name, "ref");
    CHECK_TEXT(infos[1].name, "cpu");
    CHECK_INT(infos[1].threads, 2);
    CHECK(infos[1].usable && infos[1].memory_bytes > 1u << 20);
    esp_device *device = NULL;
    CHECK_FAILS(esp_device_open(context, "tpu", &device, error), ESP_BAD_ARGUMENT,
                "device.unknown");
    CHECK(device == NULL);
    CHECK_OK(esp_device_open(context, NULL, &device, error));
    CHECK_TEXT(esp_device_name(device), "cpu");
    esp_device_close(device);
    esp_device_close(NULL);
    test_context_free(run, context);
}

/* What opening says, and the name of what was opened. */
static void open_named(esp_context *context, const char *name, esp_error *error, char opened[16])
{
    esp_device *device = NULL;
    *error = (esp_error){0};
    opened[0] = '\0';
    if (esp_device_open(context, name, &device, error) == ESP_OK) {
        snprintf(opened, 16, "%s", esp_device_name(device));
    }
    esp_device_close(device);
}

/* A GPU that is there is opened as cuda:0 either way, one that is not is refused alike. */
static void bare_names(test_run *run)
{
    static const char *const rows[][2] = {{"ref", "ref"}, {"cpu", "cpu"}, {"cuda", "cuda:0"}};
    esp_context *context = test_context(run, 1);
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        esp_error bare, full;
        char by_bare[16], by_full[16];
        test_sub(run, "%s", rows[i][0]);
        open_named(context, rows[i][0], &bare, by_bare);
        open_named(context, rows[i][1], &full, by_full);
        CHECK_TEXT(by_bare, by_full);
        CHECK_TEXT(bare.code, full.code);
        CHECK(by_full[0] == '\0' || strcmp(by_full, rows[i][1]) == 0);
    }
    test_context_free(run, context);
}

/* Where no GPU can be used, one entry says why, and so does opening any. */
static void no_gpu_says_why(test_run *run)
{
    static const char *const names[] = {"cuda", "cuda:0", "cuda:12"};
    esp_context *context = test_context(run, 1);
    esp_device_info infos[32];
    int count = esp_device_list(context, infos, 32);
    REQUIRE(count >= 3);
    const esp_device_info *last = &infos[(count < 32 ? count : 32) - 1];
    CHECK(strncmp(last->name, "cuda", 4) == 0);
    for (int i = 0; strcmp(last->name, "cuda") == 0 && i < ESP_COUNT(names); i++) {
        esp_device *device = NULL;
        esp_error error = {0};
        test_sub(run, "%s", names[i]);
        CHECK(!last->usable && last->why_not[0] != '\0' && count == 3);
        CHECK_INT(esp_device_open(context, names[i], &device, &error), ESP_UNSUPPORTED);
        CHECK(device == NULL && strncmp(error.code, "device.", 7) == 0);
        CHECK(strstr(error.message, last->why_not) != NULL);
        CHECK(strstr(error.message, names[i]) != NULL);
    }
    esp_device *device = NULL;
    CHECK_FAILS(esp_device_open(context, "cudas", &device, error), ESP_BAD_ARGUMENT,
                "device.unknown");
    test_context_free(run, context);
}

static void catalogue(test_run *run)
{
    int count = esp_kernel_count();
    CHECK(count > 6);
    for (int i = 0; i < count; i++) {
        esp_kernel_info info = esp_kernel_get(i);
        char prefix[64];
        test_sub(run, "%s", info.name);
        snprintf(prefix, sizeof prefix, "matmul_%s_", info.format);
        CHECK(strncmp(info.name, prefix, strlen(prefix)) == 0);
        snprintf(prefix, sizeof prefix, "__%s_%s", info.device, info.level);
        CHECK(strstr(info.name, prefix) != NULL);
        CHECK(info.idea != NULL && info.idea[0] != '\0');
        for (int j = 0; j < i; j++) {
            CHECK(strcmp(info.name, esp_kernel_get(j).name) != 0);
        }
    }
    CHECK_TEXT(esp_kernel_get(count).name, "");
    CHECK_TEXT(esp_kernel_get(-1).name, "");
}

/* Every pattern and weight type has a kernel on both devices, at every instruction-set level. */
static void everything_has_a_kernel(test_run *run)
{
    static const char *const patterns[] = {"dense",         "2:4",          "3:9",
                                           "64:2:8",        "panel:32@0.8", "unstructured@0.9",
                                           "block:8x8@0.5", "rows@0.5",     "cols@0.5"};
    static const char *const types[] = {"f32", "f16", "bf16"};
    static const char *const options[] = {"", "/x:tok/y:tok/ep:scale+bias+silu+residual",
                                          "/ep:swiglu", "/c:bf16", "/a:f32/o:f16"};
    static const char *const levels[] = {"portable", "avx2", "avx512", "avx512bf16", "amx"};
    for (int level = 0; level < ESP_COUNT(levels); level++) {
        setenv("ESPALIER_CPU", levels[level], 1);
        esp_context *context = test_context(run, 1);
        unsetenv("ESPALIER_CPU");
        for (int i = 0; i < 9 * 3 * 5 * 2; i++) {
            char text[128];
            snprintf(text, sizeof text, "matmul/%s/%s/64x96x%d%s", patterns[i % 9],
                     types[i / 9 % 3], i % 2 == 0 ? 1 : 50, options[i / 27 % 5]);
            esp_matmul_problem problem = problem_of(run, text);
            esp_device *device = NULL;
            esp_plan *plan = NULL;
            REQUIRE_OK(esp_device_open(context, i / 135 == 0 ? "ref" : "cpu", &device, error));
            test_sub(run, "%s %s %s", levels[level], esp_device_name(device), text);
            CHECK_OK(esp_plan_create(device, &problem, NULL, &plan, error));
            esp_plan_free(plan);
            esp_device_close(device);
        }
        test_context_free(run, context);
    }
}

static void choices(test_run *run)
{
    setenv("ESPALIER_CPU", "portable", 1);
    esp_context *context = test_context(run, 1);
    unsetenv("ESPALIER_CPU");
    esp_device *device = NULL;
    REQUIRE_OK(esp_device_open(context, "cpu", &device, error));
    esp_matmul_problem problem = problem_of(run, "matmul/64:2:8/f32/64x64x4");
    esp_plan *plan = NULL;
    CHECK_OK(esp_plan_create(device, &problem, NULL, &plan, error));
    CHECK_TEXT(esp_plan_kernel(plan), "matmul_panel_f32_f32__cpu_portable");
    CHECK_INT(plan->problem.compute, ESP_COMPUTE_F32);
    esp_plan_free(plan);
    esp_plan_free(NULL);

    test_sub(run, "a forced kernel that cannot");
    esp_error error = {0};
    plan = NULL;
    CHECK_INT(esp_plan_create(device, &problem, "*dense_f32*", &plan, &error), ESP_UNSUPPORTED);
    CHECK_TEXT(error.code, "plan.no_kernel");
    CHECK(strstr(error.message, "matmul_dense_f32_f32__cpu_portable: it reads dense") != NULL);
    CHECK(plan == NULL);
    CHECK_INT(esp_plan_create(device, &problem, "*", &plan, &error), ESP_OK);
    esp_plan_free(plan);
    plan = NULL;

    test_sub(run, "a name that nobody has");
    CHECK_INT(esp_plan_create(device, &problem, "sgemm", &plan, &error), ESP_UNSUPPORTED);
    CHECK_TEXT(error.code, "plan.no_kernel");
    CHECK(strstr(error.message, "sgemm") != NULL);

    test_sub(run, "kernels of every other pattern");
    problem = problem_of(run, "matmul/block:4x4@0.5/f32/64x64x4");
    CHECK_INT(esp_plan_create(device, &problem, "matmul_[cdnpr]*", &plan, &error), ESP_UNSUPPORTED);
    CHECK_TEXT(error.code, "plan.no_kernel");
    CHECK(plan == NULL);
    CHECK(strlen(error.message) < sizeof error.message - 1);

    test_sub(run, "a problem that is none");
    problem.tokens = 0;
    CHECK_INT(esp_plan_create(device, &problem, NULL, &plan, &error), ESP_BAD_ARGUMENT);
    CHECK_TEXT(error.code, "problem.bad_sizes");
    esp_device_close(device);
    test_context_free(run, context);
}

static void run_checks(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_matmul_problem problem = problem_of(run, "matmul/2:4/f32/8x12x9/ep:scale+bias+residual");
    esp_matmul_problem other = problem_of(run, "matmul/2:4/f32/8x13x9");
    product p = product_make(run, context, &problem, 1, INTEGERS, false, false);
    product q = product_make(run, context, &other, 1, INTEGERS, false, false);
    esp_device *device = NULL, *ref = NULL;
    esp_packed *packed = NULL, *wrong = NULL, *elsewhere = NULL;
    esp_plan *plan = NULL;
    REQUIRE_OK(esp_device_open(context, "cpu", &device, error));
    REQUIRE_OK(esp_device_open(context, "ref", &ref, error));
    REQUIRE_OK(esp_pack(device, p.sparse, &packed, error));
    REQUIRE_OK(esp_pack(device, q.sparse, &wrong, error));
    REQUIRE_OK(esp_pack(ref, p.sparse, &elsewhere, error));
    CHECK_INT(esp_packed_bytes(packed), esp_sparse_bytes(p.sparse));
    REQUIRE_OK(esp_plan_create(device, &problem, "*portable*", &plan, error));
    CHECK(esp_plan_workspace_bytes(plan) > 0);
    char *workspace = aligned_alloc(64, (esp_plan_workspace_bytes(plan) + 127) / 64 * 64);
    float y[8 * 9];
    const esp_matmul_args right = {.weight = packed,
                                   .x = p.x,
                                   .y = y,
                                   .scale = p.scale,
                                   .bias = p.bias,
                                   .residual = p.residual,
                                   .workspace = workspace};
    CHECK_OK(esp_matmul_run(plan, &right, error));
#define REFUSES(code, change)                                                                      \
    do {                                                                                           \
        esp_matmul_args args = right;                                                              \
        test_sub(run, "run refuses " #change);                                                     \
        args.change;                                                                               \
        CHECK_FAILS(esp_matmul_run(plan, &args, error), ESP_BAD_ARGUMENT, code);                   \
    } while (0)
    REFUSES("matmul.bad_weight", weight = NULL);
    REFUSES("matmul.bad_weight", weight = wrong);
    REFUSES("matmul.bad_weight", weight = elsewhere);
    REFUSES("matmul.missing_operand", x = NULL);
    REFUSES("matmul.missing_operand", y = NULL);
    REFUSES("matmul.missing_operand", scale = NULL);
    REFUSES("matmul.missing_operand", bias = NULL);
    REFUSES("matmul.missing_operand", residual = NULL);
    REFUSES("matmul.missing_operand", workspace = NULL);
    REFUSES("matmul.bad_workspace", workspace = workspace + 4);
    REFUSES("matmul.bad_stride", x_stride = 8);
    REFUSES("matmul.bad_stride", y_stride = -1);
    free(workspace);
    esp_plan_free(plan);
    esp_packed_free(packed);
    esp_packed_free(wrong);
    esp_packed_free(elsewhere);
    esp_packed_free(NULL);
    product_free(&p);
    product_free(&q);
    esp_device_close(device);
    esp_device_close(ref);
    test_context_free(run, context);
}

static void dense_packs_as_it_is(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_device *device = NULL;
    esp_packed *packed = NULL;
    REQUIRE_OK(esp_device_open(context, "cpu", &device, error));
    float values[4] = {1, 2, 3, 4};
    esp_sparse *sparse = NULL;
    esp_tensor dense = {ESP_F32, 2, {2, 2}, values};
    esp_pattern pattern = {.kind = ESP_PATTERN_DENSE};
    REQUIRE_OK(esp_sparse_encode(context, &pattern, &dense, NULL, &sparse, error));
    CHECK_OK(esp_pack(device, sparse, &packed, error));
    esp_packed_free(packed);
    esp_sparse_free(sparse);
    esp_device_close(device);
    test_context_free(run, context);
}

/* ---- the n-th allocation fails, for every n ---- */

/* Everything that allocates between a compressed weight and a plan; all out-parameters stay NULL on
 * failure. */
static esp_status open_pack_plan(esp_context *context, const char *device_name,
                                 const esp_sparse *sparse, const esp_matmul_problem *problem)
{
    esp_device *device = NULL;
    esp_packed *packed = NULL;
    esp_plan *plan = NULL;
    esp_status status = esp_device_open(context, device_name, &device, NULL);
    if (status == ESP_OK) {
        status = esp_pack(device, sparse, &packed, NULL);
    }
    if (status == ESP_OK) {
        status = esp_plan_create(device, problem, NULL, &plan, NULL);
    }
    esp_plan_free(plan);
    esp_packed_free(packed);
    esp_device_close(device);
    return status;
}

static void memory_runs_out(test_run *run)
{
    esp_matmul_problem problem = problem_of(run, "matmul/16:2:8/bf16/32x64x3/a:f32");
    for (int i = 0; i < 2; i++) {
        const char *device = i == 0 ? "ref" : "cpu";
        failing heap = {.left = LONG_MAX};
        esp_context_options options = {.threads = 1,
                                       .allocator = {failing_allocate, failing_release, &heap}};
        esp_context *context = NULL;
        REQUIRE_OK(esp_context_create(&options, &context, error));
        product p = product_make(run, context, &problem, 5, INTEGERS, true, false);
        int failures = 0;
        long before = heap.live;
        esp_status status = ESP_OUT_OF_MEMORY;
        for (; status == ESP_OUT_OF_MEMORY && failures < 100; failures++) {
            test_sub(run, "%s: allocation %d fails", device, failures);
            heap.left = failures;
            status = open_pack_plan(context, device, p.sparse, &problem);
            heap.left = LONG_MAX;
            CHECK_INT(heap.live, before);
        }
        CHECK_INT(status, ESP_OK);
        CHECK(failures > 5);
        product_free(&p);
        esp_context_free(context);
        CHECK_INT(heap.live, 0);
    }
}

static const test_case cases[] = {
    {"strings_round_trip", strings_round_trip},
    {"wrong_strings", wrong_strings},
    {"devices", devices},
    {"bare_names", bare_names},
    {"no_gpu_says_why", no_gpu_says_why},
    {"catalogue", catalogue},
    {"everything_has_a_kernel", everything_has_a_kernel},
    {"choices", choices},
    {"run_checks", run_checks},
    {"memory_runs_out", memory_runs_out},
    {"dense_packs", dense_packs_as_it_is},
};
TEST_MAIN(cases)
