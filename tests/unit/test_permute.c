/* The search for orders of channels: assignments against every assignment there is, orders against
 * what masks keep, and what is refused. */
#include <math.h>
#include <stdlib.h>

#include "failing_allocator.h"
#include "prune/assignment.h"
#include "test.h"
#include "unit/pipeline_tools.h"

/* ---- assignments ---- */

#define MOST 7

typedef struct trial {
    int64_t sources, sinks, capacity[MOST];
    double benefit[MOST * MOST];
} trial;

/* The best of all assignments of the sources from `source` on. */
static double try_all(const trial *of, int64_t source, int64_t *room)
{
    double best = -INFINITY;
    if (source == of->sources) {
        return 0;
    }
    for (int64_t sink = 0; sink < of->sinks; sink++) {
        if (room[sink] > 0) {
            room[sink]--;
            double rest = try_all(of, source + 1, room);
            room[sink]++;
            best = fmax(best, of->benefit[source * of->sinks + sink] + rest);
        }
    }
    return best;
}

/* Whole numbers, often equal, so that sums are exact and there are ties. */
static void draw(esp_random *random, trial *made, bool square)
{
    *made = (trial){.sinks = 1 + (int64_t)esp_random_below(random, MOST)};
    int64_t places = 0;
    for (int64_t sink = 0; sink < made->sinks; sink++) {
        made->capacity[sink] = square ? 1 : 1 + (int64_t)esp_random_below(random, 3);
        places += made->capacity[sink];
    }
    int64_t most = ESP_MIN(places, MOST);
    made->sources = square ? made->sinks : 1 + (int64_t)esp_random_below(random, (uint64_t)most);
    uint64_t range = esp_random_below(random, 2) == 0 ? 5 : 1000;
    for (int64_t i = 0; i < made->sources * made->sinks; i++) {
        made->benefit[i] = (double)esp_random_below(random, range) - (double)(range / 2);
    }
}

static void check_trial(test_run *run, esp_context *context, const trial *of, bool square)
{
    uint32_t sink_of[MOST];
    int64_t room[MOST];
    double sum = 0;
    memcpy(room, of->capacity, sizeof room);
    REQUIRE_OK(esp_assign(context, of->sources, of->sinks, square ? NULL : of->capacity,
                          of->benefit, sink_of, error));
    for (int64_t i = 0; i < of->sources; i++) {
        REQUIRE(sink_of[i] < of->sinks);
        sum += of->benefit[i * of->sinks + sink_of[i]];
        CHECK(--room[sink_of[i]] >= 0);
    }
    memcpy(room, of->capacity, sizeof room);
    CHECK(sum == try_all(of, 0, room));
}

static void best_of_all_assignments(test_run *run)
{
    esp_random random;
    esp_context *context = test_context(run, 1);
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < 2000; i++) {
        trial made;
        bool square = i % 2 == 0;
        draw(&random, &made, square);
        check_trial(run, context, &made, square);
    }
    test_context_free(run, context);
}

/* Duals prove it where there are too many to try: 300 channels on 12 panels of 25, and no exchange
 * of two channels gains. */
static void large_assignments_cannot_be_improved(test_run *run)
{
    enum { SOURCES = 300, SINKS = 12 };
    esp_random random;
    esp_context *context = test_context(run, 1);
    double *benefit = calloc((size_t)SOURCES * SINKS, sizeof *benefit);
    int64_t capacity[SINKS], used[SINKS] = {0};
    uint32_t sink_of[SOURCES];
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < SOURCES * SINKS; i++) {
        benefit[i] = esp_random_uniform(&random);
    }
    for (int i = 0; i < SINKS; i++) {
        capacity[i] = SOURCES / SINKS;
    }
    CHECK_OK(esp_assign(context, SOURCES, SINKS, capacity, benefit, sink_of, error));
    for (int a = 0; a < SOURCES; a++) {
        used[sink_of[a]]++;
        for (int b = 0; b < a; b++) {
            double now =
                benefit[a * SINKS + (int)sink_of[a]] + benefit[b * SINKS + (int)sink_of[b]];
            double then =
                benefit[a * SINKS + (int)sink_of[b]] + benefit[b * SINKS + (int)sink_of[a]];
            CHECK(then <= now + 1e-12);
        }
    }
    for (int i = 0; i < SINKS; i++) {
        CHECK_INT(used[i], capacity[i]);
    }
    free(benefit);
    test_context_free(run, context);
}

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

static void search_layers(test_run *run, esp_context *context, const esp_pattern *pattern,
                          two_layers *layers)
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
                                 .permutation = permutation};
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
            search_layers(run, context, &pattern, &layers);
            free_layers(&layers);
        }
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
    const esp_permute_job job = {context, &weight, 1, &space, 1, 2, permutation, NULL, NULL};
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
    {"best of all assignments", best_of_all_assignments},
    {"large assignments cannot be improved", large_assignments_cannot_be_improved},
    {"orders never lose", orders_never_lose},
    {"hidden structure is found", hidden_structure_is_found},
    {"joint search never loses", joint_search_never_loses},
    {"joint search finds the best", joint_search_finds_the_best},
    {"not a bijection", not_a_bijection},
    {"no memory", no_memory},
    {"records are checked", records_are_checked},
};
TEST_MAIN(cases)
