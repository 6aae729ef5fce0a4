/* The search for orders of channels: orders against what masks keep and against errors that decide,
 * and what is refused. */
#include <math.h>
#include <stdlib.h>

#include "failing_allocator.h"
#include "prune/prune.h"
#include "test.h"
#include "unit/pipeline_tools.h"

/* ---- orders ---- */

typedef struct two_layers {
    int64_t in, hidden, out;
    float *first, *second;           /* [hidden][in], [out][hidden] */
    float *first_left, *second_left; /* as they were */
} two_layers;

static void draw_scores(esp_random *random, float *scores, float *copy, int64_t rows,
                        int64_t columns)
{
    for (int64_t i = 0; i < rows * columns; i++) {
        double a = esp_random_uniform(random), b = esp_random_uniform(random);
        scores[i] = copy[i] = (float)(a * b * (1 + (double)(i % columns % 5)));
    }
}

static void draw_layers(esp_random *random, two_layers *made)
{
    *made = (two_layers){.in = 8 + (int64_t)esp_random_below(random, 60),
                         .hidden = 16 + (int64_t)esp_random_below(random, 120),
                         .out = 4 + (int64_t)esp_random_below(random, 60)};
    made->first = calloc((size_t)(made->hidden * made->in), sizeof *made->first);
    made->first_left = calloc((size_t)(made->hidden * made->in), sizeof *made->first);
    made->second = calloc((size_t)(made->out * made->hidden), sizeof *made->second);
    made->second_left = calloc((size_t)(made->out * made->hidden), sizeof *made->second);
    draw_scores(random, made->first, made->first_left, made->hidden, made->in);
    draw_scores(random, made->second, made->second_left, made->out, made->hidden);
}

static void free_layers(two_layers *layers)
{
    free(layers->first);
    free(layers->first_left);
    free(layers->second);
    free(layers->second_left);
}

/* What a mask by prune keeps of a weight. */
static double kept_by_mask(test_run *run, esp_context *context, float *weights, int64_t out,
                           int64_t in, const esp_pattern *pattern)
{
    esp_mask *mask = NULL;
    esp_tensor dense = {.dtype = ESP_F32, .rank = 2, .shape = {out, in}, .data = weights};
    double sum = 0;
    CHECK_OK(esp_prune_mask(context, &dense, pattern, NULL, &mask, NULL, error));
    for (int64_t i = 0; mask != NULL && i < out * in; i++) {
        sum += esp_mask_get(mask, i / in, i % in) ? (double)weights[i] : 0;
    }
    esp_mask_free(mask);
    return sum;
}

/* Errors that have nothing to do with scores: drawn from the order that the weight lies in. */
typedef struct judge {
    const esp_permute_weight *weights;
    bool refuses; /* every error is larger than those before */
    int calls;
} judge;

static esp_status judge_error(void *user, int64_t weight, double *layer_error, esp_error *error)
{
    (void)error;
    judge *own = user;
    const esp_permute_weight *of = &own->weights[weight];
    uint64_t state = esp_crc32c(0, of->scores, (size_t)(of->out * of->in) * sizeof *of->scores);
    own->calls++;
    *layer_error = own->refuses ? own->calls : (double)(esp_splitmix64(&state) >> 11) * 0x1p-53;
    return ESP_OK;
}

/* judges: NULL, scores decide. */
static void search_layers(test_run *run, esp_context *context, const esp_pattern *pattern,
                          two_layers *layers, judge *judges)
{
    esp_permutation *permutation = NULL;
    int hidden = -1, in = -1;
    REQUIRE_OK(esp_permutation_create(context, &permutation, error));
    CHECK_OK(esp_permutation_add_axis(permutation, "hidden", layers->hidden, &hidden, error));
    CHECK_OK(esp_permutation_add_axis(permutation, "in", layers->in, &in, error));
    CHECK_OK(esp_permutation_bind(permutation, "first", 0, hidden, error));
    CHECK_OK(esp_permutation_bind(permutation, "first", 1, in, error));
    CHECK_OK(esp_permutation_bind(permutation, "second", 1, hidden, error));
    esp_search how = esp_prune_search_of(ESP_SEARCH_AUTO, pattern);
    esp_permute_weight weights[] = {
        {layers->first, layers->hidden, layers->in, *pattern, how, hidden, in},
        {layers->second, layers->out, layers->hidden, *pattern, how, -1, hidden}};
    const esp_space spaces[] = {
        {layers->hidden, layers->hidden, 1, {{hidden, 0, layers->hidden, 1}}, 1},
        {layers->in, layers->in, 1, {{in, 0, layers->in, 1}}, 1}};
    const esp_permute_job job = {.context = context,
                                 .weights = weights,
                                 .weight_count = 2,
                                 .spaces = spaces,
                                 .space_count = 2,
                                 .rounds = 2,
                                 .permutation = permutation,
                                 .error_of = judges != NULL ? judge_error : NULL,
                                 .error_user = judges};
    if (judges != NULL) {
        judges->weights = weights;
    }
    double before =
        kept_by_mask(run, context, layers->first_left, layers->hidden, layers->in, pattern) +
        kept_by_mask(run, context, layers->second_left, layers->out, layers->hidden, pattern);
    CHECK_OK(esp_permute(&job, error));
    CHECK_OK(esp_permutation_check(permutation, error));
    CHECK(fabs(permutation->kept_before - before) <= 1e-9 * before);
    CHECK(permutation->kept_after >= permutation->kept_before);
    /* The tensors in the new order are what the search ended with, and masks keep what it says. */
    esp_tensor first = {.dtype = ESP_F32,
                        .rank = 2,
                        .shape = {layers->hidden, layers->in},
                        .data = layers->first_left};
    esp_tensor second = {.dtype = ESP_F32,
                         .rank = 2,
                         .shape = {layers->out, layers->hidden},
                         .data = layers->second_left};
    CHECK_OK(esp_permutation_apply(permutation, "first", &first, error));
    CHECK_OK(esp_permutation_apply(permutation, "second", &second, error));
    CHECK(memcmp(layers->first, layers->first_left,
                 (size_t)(layers->hidden * layers->in) * sizeof(float)) == 0);
    CHECK(memcmp(layers->second, layers->second_left,
                 (size_t)(layers->out * layers->hidden) * sizeof(float)) == 0);
    double after = kept_by_mask(run, context, layers->first, layers->hidden, layers->in, pattern) +
                   kept_by_mask(run, context, layers->second, layers->out, layers->hidden, pattern);
    CHECK(fabs(permutation->kept_after - after) <= 1e-9 * after);
    if (judges != NULL) {
        double errors[2];
        for (int i = 0; i < 2; i++) {
            CHECK_OK(judge_error(judges, i, &errors[i], error));
        }
        CHECK_INT(permutation->judged, 2);
        CHECK(judges->refuses || fabs(errors[0] + errors[1] - permutation->error_after) < 1e-12);
        CHECK(permutation->error_after <= permutation->error_before);
        CHECK(!judges->refuses ||
              (!esp_axis_is_moved(&permutation->axes[0]) && permutation->error_after == 3));
    }
    esp_permutation_free(permutation);
}

static const char *const patterns[] = {"2:4",    "8:2:8",  "16:2:5",   "4:2:7",
                                       "8:2:12", "16:2:8", "1000:2:8", "panel:8@0.75"};

static void orders_never_lose(test_run *run)
{
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < ESP_COUNT(patterns); i++) {
        test_sub(run, "%s", patterns[i]);
        esp_context *context = test_context(run, 1 + i % 3);
        esp_pattern pattern = {0};
        CHECK_OK(esp_pattern_parse(patterns[i], &pattern, error));
        for (int k = 0; k < 6 && !test_failed(run); k++) {
            two_layers layers;
            draw_layers(&random, &layers);
            search_layers(run, context, &pattern, &layers, NULL);
            free_layers(&layers);
        }
        test_context_free(run, context);
    }
}

/* A pass whose errors do not fall leaves no trace; of others the errors are those of the end. */
static void errors_decide(test_run *run)
{
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < 2 * ESP_COUNT(patterns); i++) {
        judge judges = {.refuses = i % 2 == 1};
        esp_context *context = test_context(run, 1);
        esp_pattern pattern = {0};
        two_layers layers;
        test_sub(run, "%s%s", patterns[i / 2], judges.refuses ? ", all refused" : "");
        CHECK_OK(esp_pattern_parse(patterns[i / 2], &pattern, error));
        draw_layers(&random, &layers);
        search_layers(run, context, &pattern, &layers, &judges);
        free_layers(&layers);
        test_context_free(run, context);
    }
}

/* Eight columns that matter lie in the first group, and rows of two kinds are interleaved: a good
 * order keeps everything. */
static void hidden_structure_is_found(test_run *run)
{
    enum { ROWS = 32, COLUMNS = 32 };
    float scores[ROWS * COLUMNS];
    for (int row = 0; row < ROWS; row++) {
        for (int column = 0; column < COLUMNS; column++) {
            scores[row * COLUMNS + column] = column < 8 ? 1 : 0.001f;
        }
    }
    esp_context *context = test_context(run, 2);
    esp_permutation *permutation = NULL;
    int in = -1;
    REQUIRE_OK(esp_permutation_create(context, &permutation, error));
    CHECK_OK(esp_permutation_add_axis(permutation, "in", COLUMNS, &in, error));
    esp_permute_weight weight = {scores, ROWS, COLUMNS, {0}, ESP_SEARCH_EXACT, -1, in};
    CHECK_OK(esp_pattern_parse("8:2:8", &weight.pattern, error));
    const esp_space space = {COLUMNS, COLUMNS, 1, {{in, 0, COLUMNS, 1}}, 1};
    const esp_permute_job job = {.context = context,
                                 .weights = &weight,
                                 .weight_count = 1,
                                 .spaces = &space,
                                 .space_count = 1,
                                 .rounds = 2,
                                 .permutation = permutation};
    CHECK_OK(esp_permute(&job, error));
    CHECK(permutation->kept_before < 2.1 * ROWS);
    CHECK(permutation->kept_after > 7.99 * ROWS);
    esp_permutation_free(permutation);
    test_context_free(run, context);
}

/* ---- joint search of free panels ---- */

static double kept_by_search(test_run *run, esp_context *context, const esp_tensor *dense,
                             const esp_pattern *pattern, esp_search search)
{
    const esp_mask_options options = {.search = search};
    esp_mask *mask = NULL;
    esp_sparse *sparse = NULL;
    esp_mask_report report = {0};
    const float *weights = dense->data;
    double sum = 0;
    CHECK_OK(esp_prune_mask(context, dense, pattern, &options, &mask, &report, error));
    CHECK_OK(esp_sparse_encode(context, pattern, dense, mask, &sparse, error));
    for (int64_t i = 0; mask != NULL && i < dense->shape[0] * dense->shape[1]; i++) {
        bool counts = esp_mask_get(mask, i / dense->shape[1], i % dense->shape[1]);
        sum += counts && isfinite(weights[i]) ? fabs((double)weights[i]) : 0;
    }
    esp_sparse_free(sparse);
    esp_mask_free(mask);
    return sum;
}

static void joint_search_never_loses(test_run *run)
{
    static const char *const free_patterns[] = {"panel:8@0.75", "panel:16@0.5", "panel:3@0.9",
                                                "panel:1000@0.6", "panel:64@0.8"};
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    double all = 0, all_joint = 0;
    for (int i = 0; i < 60 && !test_failed(run); i++) {
        esp_context *context = test_context(run, 1 + i % 3);
        esp_pattern pattern = {0};
        int64_t out = 1 + (int64_t)esp_random_below(&random, 70);
        int64_t in = i == 0 ? 1 : 1 + (int64_t)esp_random_below(&random, i % 7 == 0 ? 1500 : 200);
        float *weights = calloc((size_t)(out * in), sizeof *weights);
        for (int64_t k = 0; k < out * in; k++) {
            double a = esp_random_uniform(&random), b = esp_random_uniform(&random);
            weights[k] = (float)(a * b - 0.25);
        }
        if (i % 5 == 4) {
            weights[0] = NAN;
            weights[out * in - 1] = INFINITY;
        }
        esp_tensor dense = {.dtype = ESP_F32, .rank = 2, .shape = {out, in}, .data = weights};
        CHECK_OK(esp_pattern_parse(free_patterns[i % ESP_COUNT(free_patterns)], &pattern, error));
        double plain = kept_by_search(run, context, &dense, &pattern, ESP_SEARCH_AUTO);
        double joint = kept_by_search(run, context, &dense, &pattern, ESP_SEARCH_JOINT);
        CHECK(i % 5 == 4 || joint >= plain * (1 - 1e-12));
        all += plain;
        all_joint += joint;
        free(weights);
        test_context_free(run, context);
    }
    CHECK(all_joint > 1.02 * all);
}

/* Of four columns that matter to every row no three may share a quad. */
static void joint_search_finds_the_best(test_run *run)
{
    enum { ROWS = 4, COLUMNS = 16 };
    float weights[ROWS * COLUMNS];
    for (int row = 0; row < ROWS; row++) {
        for (int column = 0; column < COLUMNS; column++) {
            weights[row * COLUMNS + column] = column % 4 == 0 ? 5 : 1.0f / (float)(2 + column);
        }
    }
    esp_context *context = test_context(run, 1);
    esp_tensor dense = {.dtype = ESP_F32, .rank = 2, .shape = {ROWS, COLUMNS}, .data = weights};
    esp_pattern pattern = {0};
    CHECK_OK(esp_pattern_parse("panel:4@0.75", &pattern, error));
    /* Eight columns in two quads, so the four that matter need not share one. */
    double joint = kept_by_search(run, context, &dense, &pattern, ESP_SEARCH_JOINT);
    CHECK(joint == 4 * 5 * ROWS);
    test_context_free(run, context);
}

/* ---- rows grouped by a row order ---- */

/* The mask fits the pattern in its row order, and what is encoded by it decodes to what is masked.
 */
static double kept_by_regrouping(test_run *run, esp_context *context, const esp_tensor *dense,
                                 const esp_pattern *pattern, bool regroup)
{
    const esp_mask_options options = {.regroup = regroup};
    esp_mask *mask = NULL;
    esp_sparse *sparse = NULL;
    esp_tensor masked = {0}, decoded = {0};
    size_t count = (size_t)(dense->shape[0] * dense->shape[1]), stored = 0;
    double sum = 0;
    CHECK_OK(esp_prune_mask(context, dense, pattern, &options, &mask, NULL, error));
    CHECK_OK(esp_sparse_encode(context, pattern, dense, mask, &sparse, error));
    CHECK_OK(esp_tensor_create(context, ESP_F32, 2, dense->shape, &masked, error));
    CHECK_OK(esp_tensor_create(context, ESP_F32, 2, dense->shape, &decoded, error));
    memcpy(masked.data, dense->data, count * sizeof(float));
    CHECK_OK(esp_mask_apply(mask, &masked, error));
    CHECK_OK(esp_sparse_decode(sparse, &decoded, error));
    CHECK(memcmp(masked.data, decoded.data, count * sizeof(float)) == 0);
    bool has_rows = esp_prune_stores_rows(&options, pattern, dense->shape[0]);
    CHECK(has_rows == (esp_mask_rows(mask) != NULL));
    CHECK_OK(esp_sparse_layout_bytes(pattern, ESP_F32, dense->shape[0], dense->shape[1], has_rows,
                                     &stored, error));
    CHECK_INT(esp_sparse_bytes(sparse), stored);
    for (size_t i = 0; i < count; i++) {
        sum += fabs((double)((const float *)masked.data)[i]);
    }
    esp_tensor_free(context, &masked);
    esp_tensor_free(context, &decoded);
    esp_sparse_free(sparse);
    esp_mask_free(mask);
    return sum;
}

static void regrouping_never_loses(test_run *run)
{
    static const char *const grouped[] = {"8:2:8",        "16:2:5", "panel:8@0.75", "4:2:12",
                                          "panel:16@0.6", "64:2:8", "2:4",          "4:8"};
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    double all = 0, all_regrouped = 0;
    for (int i = 0; i < 48 && !test_failed(run); i++) {
        esp_context *context = test_context(run, 1 + i % 3);
        esp_pattern pattern = {0};
        int64_t out = 1 + (int64_t)esp_random_below(&random, 90);
        int64_t in = 1 + (int64_t)esp_random_below(&random, 120);
        float *weights = calloc((size_t)(out * in), sizeof *weights);
        for (int64_t k = 0; k < out * in; k++) {
            double a = esp_random_uniform(&random), b = esp_random_uniform(&random);
            weights[k] = (float)(a * b - 0.25);
        }
        esp_tensor dense = {.dtype = ESP_F32, .rank = 2, .shape = {out, in}, .data = weights};
        CHECK_OK(esp_pattern_parse(grouped[i % ESP_COUNT(grouped)], &pattern, error));
        pattern.v = ESP_MIN(pattern.v, out);
        double plain = kept_by_regrouping(run, context, &dense, &pattern, false);
        double regrouped = kept_by_regrouping(run, context, &dense, &pattern, true);
        CHECK(regrouped >= plain * (1 - 1e-12));
        all += plain;
        all_regrouped += regrouped;
        free(weights);
        test_context_free(run, context);
    }
    CHECK(all_regrouped > 1.005 * all);
}

/* A folder with row orders has the size that was announced and reads back. */
static void regrouped_folder(test_run *run)
{
    esp_context *context = test_context(run, 2);
    esp_prune_options options = with_pattern(run, "16:2:8");
    esp_prune_summary summary = {0};
    char out[1024];
    snprintf(out, sizeof out, "%s/regrouped", test_folder(run));
    options.mask.regroup = true;
    REQUIRE_OK(esp_prune_checkpoint(context, tiny_dense(run), out, &options, &summary, error));
    esp_checkpoint *checkpoint = NULL;
    REQUIRE_OK(esp_checkpoint_open(context, out, &checkpoint, error));
    size_t stored = 0;
    for (int64_t i = 0; i < esp_checkpoint_count(checkpoint); i++) {
        esp_sparse *sparse = NULL;
        esp_weight_info info = esp_checkpoint_get(checkpoint, i);
        stored += info.stored_bytes;
        if (info.pattern.kind != ESP_PATTERN_DENSE) {
            CHECK_OK(esp_checkpoint_read_sparse(checkpoint, i, &sparse, error));
            CHECK(sparse != NULL && esp_sparse_find_part(sparse, "rows") != NULL);
            esp_sparse_free(sparse);
        }
    }
    CHECK_INT(stored, summary.stored_bytes);
    esp_checkpoint_close(checkpoint);
    test_context_free(run, context);
}

/* ---- refusals ---- */

static void not_a_bijection(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_permutation *permutation = NULL;
    int axis = -1;
    float values[12] = {0};
    esp_tensor tensor = {.dtype = ESP_F32, .rank = 2, .shape = {3, 4}, .data = values};
    REQUIRE_OK(esp_permutation_create(context, &permutation, error));
    CHECK_OK(esp_permutation_add_axis(permutation, "hidden", 5, &axis, error));
    CHECK_OK(esp_permutation_bind(permutation, "w", 1, axis, error));
    CHECK_OK(esp_permutation_check(permutation, error));
    permutation->axes[axis].order[2] = 1;
    CHECK_FAILS(esp_permutation_check(permutation, error), ESP_BAD_ARGUMENT,
                "permutation.not_bijection");
    permutation->axes[axis].order[2] = 5;
    CHECK_FAILS(esp_permutation_check(permutation, error), ESP_BAD_ARGUMENT,
                "permutation.not_bijection");
    CHECK_FAILS(esp_permutation_apply(permutation, "w", &tensor, error), ESP_BAD_ARGUMENT,
                "permutation.wrong_shape");
    CHECK_OK(esp_permutation_apply(permutation, "another", &tensor, error));
    esp_permutation_free(permutation);
    test_context_free(run, context);
}

/* Whichever allocation fails, it is said so and nothing is left behind. */
static void no_memory(test_run *run)
{
    const char *folder = tiny_dense(run);
    bool done = false;
    for (long n = 0; !done && !test_failed(run); n += n < 400 ? 1 : 37) {
        failing state = {.left = n};
        esp_context_options options = {.threads = 1,
                                       .allocator = {failing_allocate, failing_release, &state}};
        esp_context *context = NULL;
        esp_permutation *permutation = NULL;
        esp_prune_options prune = with_pattern(run, "16:2:8");
        const esp_permute_options once = {.rounds = 1};
        esp_error error = {0};
        if (esp_context_create(&options, &context, &error) == ESP_OK) {
            esp_status status =
                esp_permutation_search(context, folder, &prune, &once, &permutation, &error);
            done = status == ESP_OK;
            CHECK(done || (status == ESP_OUT_OF_MEMORY && permutation == NULL));
            esp_permutation_free(permutation);
            esp_context_free(context);
        }
        CHECK_INT(state.live, 0);
    }
    CHECK(done);
}

static void no_memory_for_masks(test_run *run)
{
    const esp_mask_options how = {.search = ESP_SEARCH_JOINT, .regroup = true};
    float weights[24 * 40];
    esp_tensor dense = {.dtype = ESP_F32, .rank = 2, .shape = {24, 40}, .data = weights};
    esp_pattern pattern = {0};
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < ESP_COUNT(weights); i++) {
        weights[i] = (float)esp_random_uniform(&random);
    }
    CHECK_OK(esp_pattern_parse("panel:8@0.75", &pattern, error));
    bool done = false;
    for (long n = 0; !done && !test_failed(run); n++) {
        failing state = {.left = n};
        esp_context_options options = {.threads = 1,
                                       .allocator = {failing_allocate, failing_release, &state}};
        esp_context *context = NULL;
        esp_mask *mask = NULL;
        esp_error error = {0};
        if (esp_context_create(&options, &context, &error) == ESP_OK) {
            esp_status status =
                esp_prune_mask(context, &dense, &pattern, &how, &mask, NULL, &error);
            done = status == ESP_OK;
            CHECK(done || (status == ESP_OUT_OF_MEMORY && mask == NULL));
            esp_mask_free(mask);
            esp_context_free(context);
        }
        CHECK_INT(state.live, 0);
    }
    CHECK(done);
}

/* ---- the record in a folder ---- */

static char *read_text(const char *path)
{
    char *text = calloc(1, 1 << 20);
    FILE *file = fopen(path, "rb");
    size_t count = file != NULL && text != NULL ? fread(text, 1, (1 << 20) - 1, file) : 0;
    if (file != NULL) {
        fclose(file);
    }
    if (count == 0) {
        free(text);
        return NULL;
    }
    return text;
}

static void records_are_checked(test_run *run)
{
    static const struct {
        const char *with, *code;
    } records[] = {
        {"\"orders\": {\"layers.0.hidden\": [0,1,2,2]}}\n  }\n}", "permutation.not_bijection"},
        {"\"orders\": {\"layers.0.hidden\": [0,1,-2]}}\n  }\n}", "permutation.not_bijection"},
        {"\"orders\": {\"layers.0.hidden\": 5}}\n  }\n}", "permutation.not_bijection"},
        {"\"orders\": [1]}\n  }\n}", "permutation.bad_record"},
        {"\"orders\": {\"layers.0.hidden\": [2,0,1]}}\n  }\n}", NULL},
    };
    esp_context *context = test_context(run, 1);
    char out[1024];
    snprintf(out, sizeof out, "%s/recorded", test_folder(run));
    esp_prune_options options = with_pattern(run, "16:2:8");
    esp_permutation *permutation = NULL;
    REQUIRE_OK(
        esp_permutation_search(context, tiny_dense(run), &options, NULL, &permutation, error));
    options.permutation = permutation;
    REQUIRE_OK(esp_prune_checkpoint(context, tiny_dense(run), out, &options, NULL, error));
    esp_permutation_free(permutation);
    char *config = read_text(test_path(out, "config.json"));
    REQUIRE(config != NULL);
    CHECK(strstr(config, "\"permutation\": {\"score\": \"abs\"") != NULL);
    for (int i = 0; i < ESP_COUNT(records); i++) {
        esp_checkpoint *checkpoint = NULL;
        test_sub(run, "record %d", i);
        const char *at = strstr(config, "\"orders\"");
        REQUIRE(at != NULL);
        size_t before = (size_t)(at - config);
        char text[1 << 16];
        int length = snprintf(text, sizeof text, "%.*s%s", (int)before, config, records[i].with);
        REQUIRE(length > 0 && (size_t)length < sizeof text);
        test_write_file(run, test_path(out, "config.json"), text, (size_t)length);
        if (records[i].code == NULL) {
            CHECK_OK(esp_checkpoint_open(context, out, &checkpoint, error));
        } else {
            CHECK_FAILS(esp_checkpoint_open(context, out, &checkpoint, error), ESP_BAD_FILE,
                        records[i].code);
        }
        esp_checkpoint_close(checkpoint);
    }
    free(config);
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"orders never lose", orders_never_lose},
    {"errors decide", errors_decide},
    {"hidden structure is found", hidden_structure_is_found},
    {"joint search never loses", joint_search_never_loses},
    {"joint search finds the best", joint_search_finds_the_best},
    {"regrouping never loses", regrouping_never_loses},
    {"regrouped folder", regrouped_folder},
    {"not a bijection", not_a_bijection},
    {"no memory", no_memory},
    {"no memory for masks", no_memory_for_masks},
    {"records are checked", records_are_checked},
};
TEST_MAIN(cases)
