/* The forms that a weight is held in, and the choice between sparse and dense kernels, by predicted
 * and by measured times. */
#include <limits.h>

#include "failing_allocator.h"
#include "fake_backend.h"

#define BOTH ((unsigned)(ESP_FORM_SPARSE | ESP_FORM_DENSE))

/* ---- forms ---- */

static const char *const patterns[] = {"2:4",      "16:2:8",           "panel:8@0.7",
                                       "3:8",      "unstructured@0.6", "block:4x4@0.5",
                                       "rows@0.5", "cols@0.5"};

/* A weight in each set of forms gives the product of the reference, whichever kernel reads it. */
static void every_form_runs(test_run *run)
{
    esp_context *context = test_context(run, 2);
    esp_device *device = NULL;
    REQUIRE_OK(esp_device_open(context, "cpu", &device, error));
    for (int i = 0; i < ESP_COUNT(patterns) * 3; i++) {
        char text[96];
        unsigned forms = (unsigned)(i / ESP_COUNT(patterns)) + 1;
        snprintf(text, sizeof text, "matmul/%s/bf16/48x40x%d/a:f32/ep:bias+residual",
                 patterns[i % ESP_COUNT(patterns)], i % 2 == 0 ? 1 : 19);
        test_sub(run, "%s in forms %u", text, forms);
        esp_matmul_problem problem = problem_of(run, text);
        product p = product_make(run, context, &problem, 5, INTEGERS, true, true);
        float *expected = result_of(&p), *actual = result_of(&p);
        run_kernel(run, &p, "ref", NULL, expected);
        const esp_pack_options options = {forms};
        esp_packed *packed = NULL;
        CHECK_OK(esp_pack_with(device, p.sparse, &options, &packed, error));
        CHECK_INT(esp_packed_forms(packed), forms);
        CHECK_INT(esp_packed_bytes(packed), (forms & 1 ? esp_sparse_bytes(p.sparse) : 0) +
                                                (forms & 2 ? (size_t)48 * 40 * 2 : 0));
        for (unsigned form = ESP_FORM_SPARSE; form <= ESP_FORM_DENSE; form++) {
            esp_plan *plan = NULL;
            const esp_plan_options wish = {.forms = form};
            CHECK_OK(esp_plan_create_with(device, &problem, &wish, &plan, error));
            CHECK_INT(esp_plan_form(plan), form);
            CHECK(form == ESP_FORM_SPARSE || esp_plan_runs_dense(plan));
            if ((forms & form) != 0) {
                run_plan(run, &p, plan, packed, actual);
                CHECK(memcmp(expected, actual, (size_t)(p.out_rows * problem.tokens) * 4) == 0);
            } else {
                float y[1];
                char *space = aligned_alloc(64, esp_plan_workspace_bytes(plan) / 64 * 64 + 64);
                esp_matmul_args args = {.weight = packed,
                                        .x = p.x,
                                        .y = y,
                                        .bias = p.bias,
                                        .residual = y,
                                        .workspace = space};
                CHECK_FAILS(esp_matmul_run(plan, &args, error), ESP_BAD_ARGUMENT,
                            "matmul.missing_form");
                free(space);
            }
            esp_plan_free(plan);
        }
        esp_packed_free(packed);
        product_free(&p);
        free(expected);
        free(actual);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

static void dense_has_one_form(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_device *device = NULL;
    esp_matmul_problem problem = problem_of(run, "matmul/dense/f32/8x8x2");
    product p = product_make(run, context, &problem, 1, INTEGERS, false, false);
    REQUIRE_OK(esp_device_open(context, "cpu", &device, error));
    for (unsigned forms = 0; forms < 9; forms++) {
        const esp_pack_options options = {forms};
        esp_packed *packed = NULL;
        test_sub(run, "forms %u", forms);
        if (forms == 8) {
            CHECK_FAILS(esp_pack_with(device, p.sparse, &options, &packed, error), ESP_BAD_ARGUMENT,
                        "pack.bad_forms");
            CHECK(packed == NULL);
            continue;
        }
        REQUIRE_OK(esp_pack_with(device, p.sparse, &options, &packed, error));
        CHECK_INT(esp_packed_forms(packed), BOTH);
        CHECK_INT(esp_packed_bytes(packed), 8 * 8 * 4);
        esp_packed_free(packed);
    }
    esp_plan *plan = NULL;
    const esp_plan_options wrong = {.forms = 8}, sparse = {.require_sparse = true};
    CHECK_FAILS(esp_plan_create_with(device, &problem, &wrong, &plan, error), ESP_BAD_ARGUMENT,
                "plan.bad_forms");
    test_sub(run, "a dense weight runs dense, but not for a sparse one");
    REQUIRE_OK(esp_plan_create_with(device, &problem, &sparse, &plan, error));
    CHECK(!esp_plan_runs_dense(plan));
    esp_plan_reason reason = esp_plan_get_reason(plan);
    CHECK(reason.sparse_kernel == NULL && reason.dense_kernel != NULL && reason.dense_us > 0);
    esp_plan_free(plan);
    product_free(&p);
    esp_device_close(device);
    test_context_free(run, context);
}

/* Of all choices of forms: a device of which `read` are read gives those, else the sparse one. */
static void check_forms(test_run *run, esp_device *device, const product *p, unsigned read)
{
    for (unsigned forms = 1; forms < 8; forms++) {
        const esp_pack_options options = {forms};
        unsigned left = forms & read;
        esp_packed *packed = NULL;
        test_sub(run, "forms %u of %u", forms, read);
        REQUIRE_OK(esp_pack_with(device, p->sparse, &options, &packed, error));
        CHECK_INT(esp_packed_forms(packed), left != 0 ? left : ESP_FORM_SPARSE);
        esp_packed_free(packed);
    }
}

/* The bit asks for nothing on a device whose kernels do not read that form. */
static void nothing_is_spread(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_device *device = NULL;
    esp_matmul_problem problem = problem_of(run, "matmul/16:2:5/f32/32x64x3");
    product p = product_make(run, context, &problem, 1, INTEGERS, false, false);
    REQUIRE_OK(esp_device_open(context, "cpu", &device, error));
    check_forms(run, device, &p, BOTH);
    product_free(&p);
    esp_device_close(device);
    test_context_free(run, context);
}

/* A kernel that reads the form but does not run here asks for nothing, either. */
static void spread_where_a_kernel_runs(test_run *run)
{
    static const char *const refusals[] = {NULL, "it needs another device"};
    esp_matmul_problem problem = problem_of(run, "matmul/16:2:5/f32/32x64x3");
    for (int i = 0; i < ESP_COUNT(refusals); i++) {
        const fake kernel = {"a", "panel", 1, .why_not = refusals[i]};
        unsigned read = refusals[i] == NULL ? BOTH | ESP_FORM_SPREAD : BOTH;
        fake_backend backend;
        esp_context *context = test_context(run, 1);
        esp_device *device = NULL;
        product p = product_make(run, context, &problem, 1, INTEGERS, false, false);
        REQUIRE_OK(esp_device_open(context, "ref", &device, error));
        fake_install(&backend, device, &kernel, 1);
        backend.kernels[0].spread = true;
        check_forms(run, device, &p, read);
        product_free(&p);
        esp_device_close(device);
        test_context_free(run, context);
    }
}

static void packing_runs_out_of_memory(test_run *run)
{
    failing heap = {.left = LONG_MAX};
    esp_context_options options = {.threads = 1,
                                   .allocator = {failing_allocate, failing_release, &heap}};
    esp_context *context = NULL;
    esp_device *device = NULL;
    REQUIRE_OK(esp_context_create(&options, &context, error));
    REQUIRE_OK(esp_device_open(context, "cpu", &device, error));
    esp_matmul_problem problem = problem_of(run, "matmul/16:2:8/bf16/32x64x3/a:f32");
    product p = product_make(run, context, &problem, 5, INTEGERS, true, false);
    for (unsigned forms = ESP_FORM_DENSE; forms <= BOTH; forms++) {
        const esp_pack_options wish = {forms};
        esp_status status = ESP_OUT_OF_MEMORY;
        long before = heap.live;
        int failures = 0;
        for (; status == ESP_OUT_OF_MEMORY && failures < 100; failures++) {
            esp_packed *packed = NULL;
            test_sub(run, "forms %u: allocation %d fails", forms, failures);
            heap.left = failures;
            status = esp_pack_with(device, p.sparse, &wish, &packed, NULL);
            heap.left = LONG_MAX;
            CHECK((packed != NULL) == (status == ESP_OK));
            esp_packed_free(packed);
            CHECK_INT(heap.live, before);
        }
        CHECK_INT(status, ESP_OK);
        CHECK(failures > 3);
    }
    product_free(&p);
    esp_device_close(device);
    esp_context_free(context);
    CHECK_INT(heap.live, 0);
}

/* ---- choices ---- */

#define PANEL "matmul_panel_f32_f32__ref_fake"
#define SLOW "matmul_panel_f32_f32__ref_fake_slow"
#define EXPAND "matmul_panel_f32_f32__ref_fake_expand"
#define DENSE "matmul_dense_f32_f32__ref_fake"

typedef struct choice_case {
    const char *name;
    double panel, dense, expand; /* predicted us; 0: it cannot run */
    esp_plan_options options;
    const char *kernel, *code; /* chosen; or the error */
    bool runs_dense;
} choice_case;

static void choices_by_prediction(test_run *run)
{
    static const choice_case rows[] = {
        {"dense has no form", 10, 5, 0, {.forms = 0}, PANEL, NULL, false},
        {"dense is faster", 10, 5, 0, {.forms = BOTH}, DENSE, NULL, true},
        {"sparse is faster", 4, 5, 0, {.forms = BOTH}, PANEL, NULL, false},
        {"equal: sparse", 5, 5, 0, {.forms = BOTH}, PANEL, NULL, false},
        {"expanding is fastest", 10, 7, 5, {.forms = BOTH}, EXPAND, NULL, true},
        {"expanding needs no dense form", 10, 2, 5, {.forms = 1}, EXPAND, NULL, true},
        {"only a dense form", 1, 5, 2, {.forms = 2}, DENSE, NULL, true},
        {"sparse required", 4, 5, 0, {.forms = BOTH, .require_sparse = true}, PANEL, NULL, false},
        {"sparse required, dense faster",
         10,
         5,
         0,
         {.forms = BOTH, .require_sparse = true},
         NULL,
         "plan.dense_is_faster",
         false},
        {"sparse required, expanding faster",
         10,
         0,
         5,
         {.require_sparse = true},
         NULL,
         "plan.dense_is_faster",
         false},
        {"sparse required, only dense",
         0,
         5,
         0,
         {.forms = BOTH, .require_sparse = true},
         NULL,
         "plan.no_sparse_kernel",
         false},
        {"forced sparse", 10, 5, 0, {.kernel_glob = "*panel*", .forms = BOTH}, PANEL, NULL, false},
        {"forced dense", 4, 5, 0, {.kernel_glob = "*dense*", .forms = BOTH}, DENSE, NULL, true},
        {"forced dense without the form",
         4,
         5,
         0,
         {.kernel_glob = "*dense*"},
         NULL,
         "plan.no_kernel",
         false},
    };
    esp_context *context = test_context(run, 1);
    esp_device *device = NULL;
    REQUIRE_OK(esp_device_open(context, "ref", &device, error));
    const esp_backend *real = device->backend;
    esp_matmul_problem problem = problem_of(run, "matmul/64:2:8/f32/64x64x4");
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        const choice_case *row = &rows[i];
        const fake fakes[] = {
            {PANEL, "panel", row->panel, 0, row->panel == 0 ? "it is off" : NULL, false, 0},
            {EXPAND, "panel", row->expand, 0, row->expand == 0 ? "it is off" : NULL, true, 0},
            {DENSE, "dense", row->dense, 0, row->dense == 0 ? "it is off" : NULL, false, 0}};
        fake_backend made;
        device->backend = real;
        fake_install(&made, device, fakes, ESP_COUNT(fakes));
        test_sub(run, "%s", row->name);
        esp_plan *plan = NULL;
        esp_error why = {0};
        esp_status status = esp_plan_create_with(device, &problem, &row->options, &plan, &why);
        esp_plan_candidate seen[4] = {{0}};
        int count = 0, chosen = 0;
        CHECK_OK(esp_plan_explain(device, &problem, &row->options, seen, 4, &count, error));
        CHECK_INT(count, 3);
        for (int k = 0; k < count; k++) {
            chosen += seen[k].chosen;
            CHECK(!seen[k].chosen || (row->kernel != NULL && !strcmp(seen[k].kernel, row->kernel)));
            CHECK((seen[k].why_not == NULL) == (seen[k].predicted_us > 0));
        }
        CHECK_INT(chosen, row->kernel != NULL);
        if (row->code != NULL) {
            CHECK_INT(status, ESP_UNSUPPORTED);
            CHECK_TEXT(why.code, row->code);
            CHECK(plan == NULL);
        } else if (plan != NULL) {
            CHECK_TEXT(esp_plan_kernel(plan), row->kernel);
            CHECK_INT(esp_plan_runs_dense(plan), row->runs_dense);
            esp_plan_reason reason = esp_plan_get_reason(plan);
            CHECK(reason.us == (row->runs_dense ? reason.dense_us : reason.sparse_us));
            CHECK_INT(reason.tuned_tokens, 0);
        } else {
            CHECK(plan != NULL);
        }
        if (row->code != NULL && strcmp(row->code, "plan.dense_is_faster") == 0) {
            CHECK(strstr(why.message, "5.0 us") != NULL && strstr(why.message, "10.0 us") != NULL);
        }
        esp_plan_free(plan);
    }
    device->backend = real;
    esp_device_close(device);
    test_context_free(run, context);
}

/* ---- measured times ---- */

static void measured(test_run *run, esp_device *device, const char *problem_text, double panel,
                     double slow, double dense)
{
    esp_matmul_problem problem = problem_of(run, problem_text);
    const esp_plan_candidate times[] = {{.kernel = PANEL, .tuned_us = panel},
                                        {.kernel = SLOW, .tuned_us = slow},
                                        {.kernel = DENSE, .tuned_us = dense}};
    CHECK_OK(esp_tuning_put(device, &problem, times, 3, error));
}

static const char *chosen(esp_device *device, const char *text, const esp_plan_options *options,
                          test_run *run, esp_plan_reason *reason)
{
    esp_matmul_problem problem = problem_of(run, text);
    esp_plan plan;
    const esp_plan_options both = {.forms = BOTH};
    esp_error error = {0};
    if (esp_plan_fill(device, &problem, options != NULL ? options : &both, &plan, &error) !=
        ESP_OK) {
        return "";
    }
    *reason = plan.reason;
    return plan.kernel->name;
}

static void choices_by_measurement(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_device *device = NULL;
    esp_plan_reason reason = {0};
    REQUIRE_OK(esp_device_open(context, "ref", &device, error));
    const esp_backend *real = device->backend;
    fake fakes[] = {{PANEL, "panel", 1, 0, NULL, false, 0},
                    {SLOW, "panel", 50, 0, NULL, false, 0},
                    {DENSE, "dense", 2, 0, NULL, false, 0}};
    fake_backend made;
    fake_install(&made, device, fakes, 3);
#define FAMILY "matmul/64:2:8/f32/64x64x"
    measured(run, device, FAMILY "1/c:f32", 7, 5, 9);
    measured(run, device, FAMILY "16/c:f32", 30, 40, 20);
    measured(run, device, FAMILY "512/c:f32", 300, 200, 400);

    static const struct {
        int tokens, from; /* from: the measurement that speaks; 0: none */
    } rows[] = {{1, 1},     {2, 1},     {3, 1},     {4, 1}, /* 4 is as near to 1 as to 16 */
                {5, 16},    {16, 16},   {64, 16},   {65, 0},     {127, 0},
                {128, 512}, {300, 512}, {512, 512}, {2048, 512}, {2049, 0}};
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        char text[96];
        snprintf(text, sizeof text, FAMILY "%d", rows[i].tokens);
        const char *kernel = chosen(device, text, NULL, run, &reason);
        test_sub(run, "%d tokens by the measurement at %d", rows[i].tokens, rows[i].from);
        CHECK_TEXT(kernel, rows[i].from == 16 ? DENSE : rows[i].from == 0 ? PANEL : SLOW);
        CHECK_INT(reason.tuned_tokens, rows[i].from);
    }
    test_sub(run, "measured times are what is told");
    chosen(device, FAMILY "16", NULL, run, &reason);
    CHECK(reason.us == 20 && reason.sparse_us == 30 && reason.dense_us == 20);
    CHECK_TEXT(reason.sparse_kernel, PANEL);

    test_sub(run, "what a kernel takes longer among others comes on top");
    made.kernels[1].among_us = 3; /* 7, 5 + 3, 9 */
    CHECK_TEXT(chosen(device, FAMILY "1", NULL, run, &reason), PANEL);
    CHECK(reason.us == 7 && reason.sparse_us == 7);
    made.kernels[0].among_us = 5, made.kernels[1].among_us = 5;
    CHECK_TEXT(chosen(device, FAMILY "1", NULL, run, &reason), DENSE);
    CHECK(reason.us == 9 && reason.sparse_us == 10);
    CHECK_TEXT(chosen(device, FAMILY "65", NULL, run, &reason), DENSE); /* 1 + 5, 50 + 5, 2 */
    CHECK(reason.us == 2);
    made.kernels[0].among_us = 0, made.kernels[1].among_us = 0;

    test_sub(run, "not asked for");
    const esp_plan_options ignore = {.forms = BOTH, .ignore_tuning = true};
    CHECK_TEXT(chosen(device, FAMILY "16", &ignore, run, &reason), PANEL);
    CHECK_INT(reason.tuned_tokens, 0);

    test_sub(run, "another problem");
    CHECK_TEXT(chosen(device, FAMILY "16/ep:bias", NULL, run, &reason), PANEL);
    CHECK_TEXT(chosen(device, FAMILY "16/c:bf16", NULL, run, &reason), PANEL);
    CHECK_TEXT(chosen(device, "matmul/64:2:8/f32/64x72x16", NULL, run, &reason), PANEL);

    test_sub(run, "no dense form: the fastest measured of the rest");
    const esp_plan_options sparse = {.forms = ESP_FORM_SPARSE};
    CHECK_TEXT(chosen(device, FAMILY "16", &sparse, run, &reason), PANEL);
    CHECK_INT(reason.tuned_tokens, 16);

    test_sub(run, "a measured kernel that cannot run any more");
    made.fakes[2].why_not = "it is gone";
    CHECK_TEXT(chosen(device, FAMILY "16", NULL, run, &reason), PANEL);
    CHECK_INT(reason.tuned_tokens, 16);
    made.fakes[0].why_not = made.fakes[1].why_not = "it is gone";
    made.fakes[2].why_not = NULL;
    CHECK_TEXT(chosen(device, FAMILY "16", NULL, run, &reason), DENSE);

    test_sub(run, "another device");
    made.fakes[0].why_not = made.fakes[1].why_not = NULL;
    snprintf(device->identity, sizeof device->identity, "another machine");
    CHECK_TEXT(chosen(device, FAMILY "16", NULL, run, &reason), PANEL);
    CHECK_INT(reason.tuned_tokens, 0);

    device->backend = real;
    esp_device_close(device);
    test_context_free(run, context);
}

/* Everything that times depend on is in the identity. */
static void identities(test_run *run)
{
    static const char *const levels[] = {"portable", "avx2", "avx512"};
    char seen[6][ESP_DEVICE_IDENTITY_MAX];
    for (int i = 0; i < 6; i++) {
        esp_context_options options = {.threads = 1 + i / 3, .cpu_level = levels[i % 3]};
        esp_context *context = NULL;
        esp_device *device = NULL;
        REQUIRE_OK(esp_context_create(&options, &context, error));
        REQUIRE_OK(esp_device_open(context, "cpu", &device, error));
        snprintf(seen[i], sizeof seen[i], "%s", esp_device_identity(device));
        CHECK(esp_device_identity(device) == esp_device_identity(device));
        CHECK(strstr(seen[i], "cpu | ") == seen[i] && strstr(seen[i], " GiB | ") != NULL);
        CHECK(strstr(seen[i], esp_version()) != NULL);
        for (const char *at = seen[i]; *at != '\0'; at++) {
            CHECK(*at >= 0x20 && *at < 0x7f);
        }
        esp_device_close(device);
        esp_context_free(context);
    }
    CHECK(strcmp(seen[0], seen[3]) != 0);
    if (strstr(seen[2], "avx512") != NULL) {
        CHECK(strcmp(seen[0], seen[1]) != 0 && strcmp(seen[1], seen[2]) != 0);
    }
}

/* ---- times that ship ---- */

static esp_shipped_times shipped;

static bool give_shipped(const esp_device *device, const esp_matmul_problem *problem,
                         esp_shipped_times *times)
{
    (void)device, (void)problem;
    *times = shipped;
    return true;
}

/* By prediction the spread kernel is before the gathering one, and the second dense one before the
 * first; the times know the gathering or the spread one, and the first dense one. */
static void choices_by_shipped_times(test_run *run)
{
    static const struct {
        const char *name;
        bool of_spread;
        unsigned forms;
        const char *kernel;
    } rows[] = {
        {"the measured sparse one", false, BOTH | ESP_FORM_SPREAD, "gathers"},
        {"the weight is spread, not gathered", false, ESP_FORM_SPREAD | ESP_FORM_DENSE, "spreads"},
        {"the weight is gathered, not spread", true, BOTH, "gathers"},
        {"of the sparse form alone", true, ESP_FORM_SPARSE, "gathers"},
        {"only dense, gathering measured", false, ESP_FORM_DENSE, "measured"},
        {"only dense, spreading measured", true, ESP_FORM_DENSE, "measured"}};
    static const fake fakes[] = {{"spreads", "panel", 10, 0, NULL, false, 0},
                                 {"gathers", "panel", 12, 0, NULL, false, 0},
                                 {"measured", "dense", 30, 0, NULL, false, 0},
                                 {"predicted", "dense", 25, 0, NULL, false, 0}};
    esp_context *context = test_context(run, 1);
    esp_device *device = NULL;
    fake_backend made;
    REQUIRE_OK(esp_device_open(context, "ref", &device, error));
    fake_install(&made, device, fakes, ESP_COUNT(fakes));
    made.kernels[0].spread = true;
    made.backend.shipped_times = give_shipped;
    esp_matmul_problem problem = problem_of(run, "matmul/64:2:5/f32/64x64x4");
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        const esp_plan_options wish = {.forms = rows[i].forms};
        esp_plan *plan = NULL;
        test_sub(run, "%s", rows[i].name);
        shipped = (esp_shipped_times){4, &made.kernels[rows[i].of_spread ? 0 : 1], &made.kernels[2],
                                      4, 5};
        REQUIRE_OK(esp_plan_create_with(device, &problem, &wish, &plan, error));
        CHECK_TEXT(esp_plan_kernel(plan), rows[i].kernel);
        esp_plan_free(plan);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"every_form_runs", every_form_runs},
    {"dense_has_one_form", dense_has_one_form},
    {"nothing_is_spread", nothing_is_spread},
    {"spread_where_a_kernel_runs", spread_where_a_kernel_runs},
    {"packing_runs_out_of_memory", packing_runs_out_of_memory},
    {"choices_by_prediction", choices_by_prediction},
    {"choices_by_measurement", choices_by_measurement},
    {"choices_by_shipped_times", choices_by_shipped_times},
    {"identities", identities},
};
TEST_MAIN(cases)
