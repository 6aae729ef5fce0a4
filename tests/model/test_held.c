/* Norms that weights hold, on a far device (far_backend.h) whose kernels finish them, against the
 * reference, which does not know of them: every family, every pattern, whichever kernels take part,
 * moments left or found. Products check that the moments they are given are those of what they
 * read. */
#include <math.h>

#include <espalier/prune.h>

#include "failing_allocator.h"
#include "far_backend.h"
#include "golden_vision.h"
#include "model/vit.h"

/* What the kernels of the far device do. */
typedef struct far_way {
    const char *name;
    far_norm_mode mode;
    bool leaves;
    bool apart;       /* norms are not held */
    esp_dtype rounds; /* as far_state */
} far_way;

static const far_way ways[] = {
    {"kernels that norm and leave moments", FAR_NORMS_ALL, true, false, ESP_DTYPE_INVALID},
    {"kernels that norm", FAR_NORMS_ALL, false, false, ESP_DTYPE_INVALID},
    {"some that do", FAR_NORMS_SOME, true, false, ESP_DTYPE_INVALID},
    {"none that do", FAR_NORMS_NONE, true, false, ESP_DTYPE_INVALID}};

typedef struct pair {
    golden_model near, far;
    far_state state;
} pair;

static esp_status load_far(esp_context *context, const char *folder, const far_way *way, pair *made,
                           esp_error *error)
{
    esp_model_options options = {.memory = ESP_MEMORY_SPARSE};
    ESP_TRY(esp_device_open(context, "ref", &made->far.device, error));
    far_install(&made->state, made->far.device);
    made->state.rounds = way->rounds;
    if (!way->apart) {
        far_hold_norms(&made->state, way->mode, way->leaves);
    }
    ESP_TRY(esp_checkpoint_open(context, folder, &made->far.checkpoint, error));
    return esp_model_load(made->far.device, made->far.checkpoint, &options, &made->far.model,
                          error);
}

static void close_far(pair *opened)
{
    esp_device *device = opened->far.device;
    esp_model_free(opened->far.model);
    esp_checkpoint_close(opened->far.checkpoint);
    if (far_now != NULL) {
        far_remove(&opened->state, device);
    }
    esp_device_close(device);
}

static void pair_open(test_run *run, esp_context *context, const char *folder, const far_way *way,
                      pair *made)
{
    *made = (pair){.near = {0}};
    REQUIRE_OK(golden_load(context, folder, "ref", ESP_COMPUTE_F32, &made->near, error));
    REQUIRE_OK(load_far(context, folder, way, made, error));
}

static void pair_close(pair *opened)
{
    golden_close(&opened->near);
    close_far(opened);
}

/* Numbers of both, one result behind the other. */
typedef struct numbers {
    float *data;
    int64_t count;
} numbers;

static void append(numbers *all, const float *data, int64_t count)
{
    float *grown = realloc(all->data, (size_t)(all->count + count) * sizeof *grown);
    if (grown == NULL) {
        abort();
    }
    memcpy(grown + all->count, data, (size_t)count * sizeof *grown);
    all->data = grown;
    all->count += count;
}

static void see(void *user, const char *name, const float *data, int64_t features, int64_t tokens)
{
    (void)name;
    append(user, data, features * tokens);
}

static double largest_share; /* of what is allowed */

/* Each of a layer's sums of `features` products has, either way, an error of at most features units
 * of the sum of their sizes, which normed inputs and such weights keep near the results' own; a
 * norm turns the stream's error, relative to its size, into one of as much. unit: of
 * the type that weights are rounded to once more where they hold a norm. */
static void compare(test_run *run, numbers *near, numbers *far, int64_t features, int64_t layers,
                    double unit)
{
    double most = 0, worst = 0;
    CHECK_INT(near->count, far->count);
    for (int64_t i = 0; i < ESP_MIN(near->count, far->count); i++) {
        double difference = fabs((double)near->data[i] - (double)far->data[i]);
        test_note_largest(&most, fabs((double)near->data[i]));
        worst = difference <= worst ? worst : difference; /* NaN stays */
    }
    double bound = ((double)features * 0x1p-24 + unit) * (double)(2 * layers + 1);
    if (!(worst <= bound * most) || most == 0) {
        test_fail(run, __FILE__, __LINE__, "differences of %.3g at numbers of %.3g, allowed %.3g",
                  worst, most, bound * most);
    }
    test_note_largest(&largest_share, worst / most / bound);
    free(near->data);
    free(far->data);
}

/* That what was meant to run did: in which way norms were run. */
static void check_way(test_run *run, const far_way *way, const far_norming *seen)
{
    CHECK_INT(seen->wrong, 0);
    CHECK((seen->finished > 0) == (way->mode != FAR_NORMS_NONE));
    CHECK(way->mode == FAR_NORMS_SOME ||
          (seen->left > 0) == (way->leaves && way->mode == FAR_NORMS_ALL));
    CHECK((seen->found + seen->left > 0) == (way->mode != FAR_NORMS_NONE));
    CHECK(seen->alone > 0); /* of one token, and the last one */
    if (way->mode == FAR_NORMS_ALL && !way->leaves) {
        CHECK(seen->found <= seen->finished); /* once a norm, however many read it */
    }
}

/* Of a description's weights: what rounding them once more changes. */
static double unit_of(const json_t *golden)
{
    const char *type = json_string_value(json_object_get(golden, "dtype"));
    return strcmp(type, "F16") == 0 ? 0x1p-11 : strcmp(type, "BF16") == 0 ? 0x1p-8 : 0;
}

/* What a model makes of a golden's inputs, of the type that the function knows. */
typedef void (*run_fn)(test_run *run, const golden_model *loaded, const void *inputs,
                       numbers *results);

/* Near and far, one behind the other. */
static void try_model(test_run *run, esp_context *context, const char *folder, const json_t *json,
                      const far_way *way, run_fn run_one, const void *inputs)
{
    pair models;
    esp_model_info info;
    numbers results[2] = {{NULL, 0}, {NULL, 0}};
    pair_open(run, context, folder, way, &models);
    esp_model_get_info(models.far.model, &info);
    run_one(run, &models.near, inputs, &results[0]);
    run_one(run, &models.far, inputs, &results[1]);
    compare(run, &results[0], &results[1], 4 * info.hidden_size, info.layers, unit_of(json));
    check_way(run, way, &models.state.norming);
    pair_close(&models);
}

/* ---- images ---- */

static void run_images(test_run *run, const golden_model *loaded, const void *inputs,
                       numbers *results)
{
    const golden_vision *golden = inputs;
    int64_t shape[3], size = 1;
    int rank = esp_vision_output_shape(loaded->model, shape);
    for (int i = 0; i < rank; i++) {
        size *= shape[i];
    }
    esp_vision *vision = NULL;
    float *output = calloc((size_t)(golden->images * size), sizeof *output);
    REQUIRE_OK(esp_vision_create(loaded->model, golden->height, golden->width, golden->images,
                                 &vision, error));
    esp_vision_observe(vision, see, results);
    CHECK_OK(esp_vision_run(vision, golden->pixels, golden->images, output, error));
    esp_vision_observe(vision, NULL, NULL);
    append(results, output, golden->images * size);
    for (int again = 0; again < 3; again++) { /* given, kept and given again */
        int64_t images = again == 2 ? 1 : golden->images;
        CHECK_OK(esp_vision_run(vision, golden->pixels, images, output, error));
        append(results, output, images * size);
    }
    free(output);
    esp_vision_free(vision);
}

static void try_images(test_run *run, esp_context *context, const char *folder,
                       const golden_vision *golden, const far_way *way)
{
    try_model(run, context, folder, golden->json, way, run_images, golden);
}

static void images(test_run *run)
{
    static const char *const names[] = {
        "a_vit_batch", "b_vit_head80_other_size", "d_deit_two_heads",     "e_deit_tanh_no_bias",
        "f_timm_vit",  "g_timm_deit_two_heads",   "h_sam_padded_windows", "j_sam_original_names"};
    for (int i = 0; i < ESP_COUNT(names); i++) {
        for (int k = 0; k < ESP_COUNT(ways); k++) {
            golden_vision golden;
            esp_context *context = test_context(run, 1);
            REQUIRE(golden_vision_open(&golden, names[i]));
            test_sub(run, "%s, %s", names[i], ways[k].name);
            try_images(run, context, golden_folder(run, context, golden.json), &golden, &ways[k]);
            golden_vision_free(&golden);
            test_context_free(run, context);
        }
    }
}

/* Windows that are gathered, whose padding is zeros where tokens are normed: those norms stay. And
 * keys and values of what lies outside, without a bias of their own. */
static void windows(test_run *run)
{
    for (int side = 3; side < 5; side++) {
        golden_vision golden;
        esp_context *context = test_context(run, 1);
        REQUIRE(golden_vision_open(&golden, "h_sam_padded_windows"));
        test_sub(run, "windows of %d", side);
        json_t *config = json_object_get(json_object_get(golden.json, "config"), "vision_config");
        json_t *tensors = json_object_get(golden.json, "tensors");
        json_object_set_new(config, "window_size", json_integer(side));
        json_object_set_new(config, "qkv_bias", json_false());
        json_object_set_new(config, "use_rel_pos", json_false());
        for (size_t i = json_array_size(tensors); i-- > 0;) {
            const char *name =
                json_string_value(json_object_get(json_array_get(tensors, i), "name"));
            if (strstr(name, "qkv.bias") != NULL || strstr(name, "rel_pos") != NULL) {
                json_array_remove(tensors, i);
            }
        }
        try_images(run, context, golden_folder(run, context, golden.json), &golden, &ways[0]);
        golden_vision_free(&golden);
        test_context_free(run, context);
    }
}

/* ---- decoders ---- */

enum { PROMPT = 13, STEPS = 3, SEQUENCES = 2 };

static void feed(test_run *run, esp_session *session, const int32_t *ids, int64_t count, bool all,
                 int64_t vocabulary, numbers *results)
{
    int64_t rows = all ? count : 1;
    float *logits = calloc((size_t)(rows * vocabulary), sizeof *logits);
    CHECK_OK(esp_session_feed(session, ids, count, logits, all, error));
    append(results, logits, rows * vocabulary);
    free(logits);
}

static void run_sessions(test_run *run, const golden_model *loaded, const void *inputs,
                         numbers *results)
{
    const golden_data *golden = inputs;
    esp_session *sessions[SEQUENCES] = {NULL};
    int64_t vocabulary = golden->vocabulary;
    float *logits = calloc((size_t)(SEQUENCES * vocabulary), sizeof *logits);
    for (int k = 0; k < SEQUENCES; k++) {
        REQUIRE_OK(esp_session_create(loaded->model, 40, PROMPT - 2, &sessions[k], error));
        esp_session_observe(sessions[k], k == 0 ? see : NULL, results);
        feed(run, sessions[k], golden->ids, PROMPT - k, k == 0, vocabulary, results);
        esp_session_observe(sessions[k], NULL, NULL);
        for (int step = 0; step < STEPS; step++) {
            feed(run, sessions[k], golden->ids + PROMPT + step, 1, false, vocabulary, results);
        }
        feed(run, sessions[k], golden->ids, 5, false, vocabulary, results);
    }
    for (int step = 0; step < STEPS; step++) {
        CHECK_OK(esp_sessions_feed(sessions, SEQUENCES, golden->ids + step, logits, error));
        append(results, logits, SEQUENCES * vocabulary);
    }
    for (int k = 0; k < SEQUENCES; k++) {
        esp_session_free(sessions[k]);
    }
    free(logits);
}

static void try_decoder(test_run *run, esp_context *context, const char *folder,
                        const golden_data *golden, const far_way *way)
{
    try_model(run, context, folder, golden->json, way, run_sessions, golden);
}

static void decoders(test_run *run)
{
    for (int i = 0; i < ESP_COUNT(golden_names); i++) {
        for (int k = 0; k < ESP_COUNT(ways); k++) {
            golden_data golden;
            esp_context *context = test_context(run, 1);
            REQUIRE(golden_open(&golden, golden_names[i]));
            test_sub(run, "%s, %s", golden_names[i], ways[k].name);
            bool slow = strstr(golden_names[i], "1024") != NULL && k > 0;
            if (golden.count > PROMPT + STEPS && !slow) {
                try_decoder(run, context, golden_folder(run, context, golden.json), &golden,
                            &ways[k]);
            }
            golden_free(&golden);
            test_context_free(run, context);
        }
    }
}

/* ---- patterns ---- */

static const char *const patterns[] = {
    "2:4",       "8:2:8",    "8:2:5", "1:4", "panel:8@0.5", "block:8x8@0.5", "unstructured@0.5",
    "rows@0.25", "cols@0.25"};

static const char *pruned(test_run *run, esp_context *context, const char *source,
                          const char *pattern)
{
    static char folder[600];
    static int made;
    esp_prune_options options = {0};
    snprintf(folder, sizeof folder, "%s-held%d", source, ++made);
    CHECK_OK(esp_pattern_parse(pattern, &options.pattern, error));
    CHECK_OK(esp_prune_checkpoint(context, source, folder, &options, NULL, error));
    return folder;
}

static void sparse_images(test_run *run)
{
    static const char *const names[] = {"d_deit_two_heads", "h_sam_padded_windows"};
    for (int i = 0; i < ESP_COUNT(names) * ESP_COUNT(patterns); i++) {
        golden_vision golden;
        const char *name = names[i % 2], *pattern = patterns[i / 2];
        esp_context *context = test_context(run, 1);
        REQUIRE(golden_vision_open(&golden, name));
        test_sub(run, "%s, %s", name, pattern);
        const char *source = golden_folder(run, context, golden.json);
        try_images(run, context, pruned(run, context, source, pattern), &golden,
                   &ways[i / 2 % ESP_COUNT(ways)]);
        golden_vision_free(&golden);
        test_context_free(run, context);
    }
}

static void sparse_decoders(test_run *run)
{
    for (int i = 0; i < ESP_COUNT(patterns); i++) {
        golden_data golden;
        esp_context *context = test_context(run, 1);
        REQUIRE(golden_open(&golden, "j_qwen2"));
        test_sub(run, "%s", patterns[i]);
        const char *source = golden_folder(run, context, golden.json);
        try_decoder(run, context, pruned(run, context, source, patterns[i]), &golden,
                    &ways[i % ESP_COUNT(ways)]);
        golden_free(&golden);
        test_context_free(run, context);
    }
}

/* ---- 16 bits ---- */

/* What reads: images, or text. */
typedef struct input {
    const golden_vision *images;
    const golden_data *text;
} input;

static numbers run_input(test_run *run, const golden_model *loaded, const input *read)
{
    numbers results = {NULL, 0};
    if (read->images != NULL) {
        run_images(run, loaded, read->images, &results);
    } else {
        run_sessions(run, loaded, read->text, &results);
    }
    return results;
}

static numbers run_rounded(test_run *run, esp_context *context, const char *folder,
                           const far_way *way, const input *read)
{
    pair models = {.near = {0}};
    numbers results = {NULL, 0};
    CHECK_OK(load_far(context, folder, way, &models, error));
    if (models.far.model != NULL) {
        results = run_input(run, &models.far, read);
    }
    close_far(&models);
    return results;
}

static double distance(const numbers *exact, const numbers *found)
{
    double sum = 0, all = 0;
    for (int64_t i = 0; i < ESP_MIN(exact->count, found->count); i++) {
        double apart = (double)found->data[i] - (double)exact->data[i];
        sum += apart * apart, all += (double)exact->data[i] * (double)exact->data[i];
    }
    return sqrt(sum / all);
}

/* Against f32: a norm that is held is rounded with its weight, once, and no longer with every
 * token. */
static void try_rounded(test_run *run, esp_context *context, const char *folder, const char *name,
                        esp_dtype type, const input *read)
{
    far_way apart = {.apart = true, .rounds = type}, held = ways[0];
    golden_model near;
    held.rounds = type;
    REQUIRE_OK(golden_load(context, folder, "ref", ESP_COMPUTE_F32, &near, error));
    const numbers results[] = {run_input(run, &near, read),
                               run_rounded(run, context, folder, &apart, read),
                               run_rounded(run, context, folder, &held, read)};
    double before = distance(&results[0], &results[1]), after = distance(&results[0], &results[2]);
    printf("%s in %s: %.2e from f32 with norms by themselves, %.2e with norms held\n", name,
           esp_dtype_name(type), before, after);
    CHECK(before > 0 && after <= 1.5 * before);
    for (int i = 0; i < ESP_COUNT(results); i++) {
        free(results[i].data);
    }
    golden_close(&near);
}

static void rounded_prose(test_run *run, esp_context *context)
{
    golden_data text = {.name = "prose", .vocabulary = 4096};
    char folder[512];
    snprintf(folder, sizeof folder, "%s/models/prose", test_source_dir());
    json_t *expected = json_load_file(test_path(folder, "expected.json"), JSON_ALLOW_NUL, NULL);
    const json_t *greedy = json_array_get(json_object_get(expected, "greedy"), 0);
    text.count = golden_ids(json_object_get(greedy, "ids"), text.ids, GOLDEN_MAX_IDS);
    text.count += golden_ids(json_object_get(greedy, "continuation"), text.ids + text.count,
                             GOLDEN_MAX_IDS - text.count);
    CHECK(text.count > PROMPT + STEPS);
    try_rounded(run, context, folder, "prose", ESP_BF16, &(const input){NULL, &text});
    json_decref(expected);
}

static void rounded_glyphs(test_run *run, esp_context *context)
{
    golden_vision images = {.images = 4, .height = 32, .width = 32};
    char folder[512];
    snprintf(folder, sizeof folder, "%s/models/glyphs", test_source_dir());
    images.pixels = golden_pixels(images.images * 3 * images.height * images.width);
    try_rounded(run, context, folder, "glyphs", ESP_BF16, &(const input){&images, NULL});
    free(images.pixels);
}

static void rounded(test_run *run)
{
    golden_data text;
    golden_vision images;
    esp_context *context = test_context(run, 1);
    rounded_prose(run, context);
    rounded_glyphs(run, context);
    REQUIRE(golden_open(&text, "a_tiny_mha_f16"));
    try_rounded(run, context, golden_folder(run, context, text.json), text.name, ESP_F16,
                &(const input){NULL, &text});
    golden_free(&text);
    REQUIRE(golden_vision_open(&images, "e_deit_tanh_no_bias"));
    try_rounded(run, context, golden_folder(run, context, images.json), "e_deit_tanh_no_bias",
                ESP_F16, &(const input){&images, NULL});
    golden_vision_free(&images);
    test_context_free(run, context);
}

/* ---- what does not fit ---- */

/* Sets one f16 number of a folder's only file. */
static void set_number(test_run *run, const char *folder, const char *name, size_t index,
                       uint16_t value)
{
    uint64_t length = 0;
    FILE *file = fopen(test_path(folder, "model.safetensors"), "r+b");
    REQUIRE(file != NULL && fread(&length, sizeof length, 1, file) == 1);
    char *text = calloc(1, (size_t)length + 1);
    REQUIRE(fread(text, 1, (size_t)length, file) == (size_t)length);
    json_t *header = json_loads(text, 0, NULL);
    const json_t *at = json_object_get(json_object_get(header, name), "data_offsets");
    json_int_t offset = json_integer_value(json_array_get(at, 0));
    CHECK(json_is_array(at));
    CHECK(fseek(file, (long)(sizeof length + length + (uint64_t)offset + 2 * index), SEEK_SET) ==
          0);
    CHECK(fwrite(&value, sizeof value, 1, file) == 1);
    fclose(file);
    json_decref(header);
    free(text);
}

/* All layers that read a norm hold it, or none. */
static void too_large(test_run *run)
{
    static const uint16_t large = 0x7800, two = 0x4000; /* 32768, 2 */
    golden_data golden;
    pair models;
    numbers results[2] = {{NULL, 0}, {NULL, 0}};
    esp_context *context = test_context(run, 1);
    REQUIRE(golden_open(&golden, "a_tiny_mha_f16"));
    const char *folder = golden_folder(run, context, golden.json);
    set_number(run, folder, "model.layers.0.self_attn.v_proj.weight", 5, large);
    set_number(run, folder, "model.layers.0.input_layernorm.weight", 5, two);
    pair_open(run, context, folder, &ways[0], &models);
    const esp_llama *llama = models.far.model->parts;
    for (int i = 0; i < llama->layers[0].attention.projections; i++) {
        CHECK(!llama->layers[0].attention.qkv[i].holds_norm);
    }
    CHECK(llama->layers[0].mlp.gate.holds_norm);
    CHECK(llama->layers[1].attention.qkv[0].holds_norm);
    CHECK(!llama->layers[0].mlp.down.holds_norm);
    run_sessions(run, &models.near, &golden, &results[0]);
    run_sessions(run, &models.far, &golden, &results[1]);
    compare(run, &results[0], &results[1], 4 * llama->config.hidden, llama->config.layers,
            unit_of(golden.json));
    pair_close(&models);
    golden_free(&golden);
    test_context_free(run, context);
}

/* ---- no room ---- */

static esp_status load_and_run(esp_context *context, const char *folder,
                               const golden_vision *golden, long refused_from, esp_error *error)
{
    float output[1024];
    pair models = {.near = {0}};
    esp_model_options options = {.memory = ESP_MEMORY_SPARSE};
    esp_vision *vision = NULL;
    ESP_TRY(esp_device_open(context, "ref", &models.far.device, error));
    far_install(&models.state, models.far.device);
    far_hold_norms(&models.state, FAR_NORMS_ALL, true);
    models.state.refused_from = refused_from;
    esp_status status = esp_checkpoint_open(context, folder, &models.far.checkpoint, error);
    if (status == ESP_OK) {
        status = esp_model_load(models.far.device, models.far.checkpoint, &options,
                                &models.far.model, error);
    }
    if (status == ESP_OK) {
        status =
            esp_vision_create(models.far.model, golden->height, golden->width, 1, &vision, error);
    }
    for (int i = 0; i < 2 && status == ESP_OK; i++) {
        status = esp_vision_run(vision, golden->pixels, 1, output, error);
    }
    esp_vision_free(vision);
    close_far(&models);
    return status;
}

/* Memory of the host, or of the device, that runs out at every place. */
static void no_room(test_run *run)
{
    for (int device = 0; device < 2; device++) {
        golden_vision golden;
        esp_context *context = test_context(run, 1);
        REQUIRE(golden_vision_open(&golden, "e_deit_tanh_no_bias"));
        test_sub(run, "%s memory", device ? "device" : "host");
        const char *folder = golden_folder(run, context, golden.json);
        test_context_free(run, context);
        esp_status status = ESP_OUT_OF_MEMORY;
        long n = 1;
        for (; n < 20000 && status != ESP_OK; n++) {
            failing state = {.left = 1000000};
            esp_context_options options = {
                .threads = 1, .allocator = {failing_allocate, failing_release, &state}};
            esp_context *own = NULL;
            esp_error problem = {0};
            REQUIRE_OK(esp_context_create(&options, &own, error));
            state.left = device ? state.left : n;
            status = load_and_run(own, folder, &golden, device ? n : 0, &problem);
            if (status != ESP_OK && status != ESP_OUT_OF_MEMORY) {
                test_fail(run, __FILE__, __LINE__, "allocation %ld: %s", n, problem.message);
            }
            esp_context_free(own);
            CHECK_INT(state.live, 0);
        }
        CHECK_INT(status, ESP_OK);
        CHECK(n > 30);
        golden_vision_free(&golden);
    }
}

static void report(test_run *run)
{
    (void)run;
    printf("norms that weights hold: differences up to %.2g of what is allowed\n", largest_share);
}

static const test_case cases[] = {{"images", images},
                                  {"windows", windows},
                                  {"decoders", decoders},
                                  {"sparse_images", sparse_images},
                                  {"sparse_decoders", sparse_decoders},
                                  {"rounded", rounded},
                                  {"too_large", too_large},
                                  {"no_room", no_room},
                                  {"report", report}};
TEST_MAIN(cases)
