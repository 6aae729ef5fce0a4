/* A whole model at work: what it is given, and one run of each thing that is timed. Inputs are
 * random; all memory is taken before anything is timed. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "bench_whole.h"

#define CPU_CHUNK 512 /* tokens of a prompt that run together */
#define GPU_CHUNK 4096
#define USUAL_TOKENS 2048 /* of a batch, where none is asked for */
#define USUAL_BEFORE 128  /* tokens before those that a decode adds */
#define USUAL_STEPS 16
#define MOST_SIDE 65536 /* of an image that is believed before the model is loaded */

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* ---- loading ---- */

/* The last part of a path. */
static void name_model(whole_model *model)
{
    const char *end = model->path + strlen(model->path);
    while (end > model->path && end[-1] == '/') {
        end--;
    }
    const char *begin = end;
    while (begin > model->path && begin[-1] != '/') {
        begin--;
    }
    snprintf(model->name, sizeof model->name, "%.*s", (int)(end - begin), begin);
}

static esp_status open_weights(cli_state *cli, whole_model *model, esp_error *error)
{
    const bench_args *args = cli->args;
    if (!model->drawn) {
        return esp_checkpoint_open(cli->context, model->path, &model->loaded.checkpoint, error);
    }
    static const esp_dtype types[] = {ESP_F16, ESP_BF16, ESP_F32}; /* as bench_types has them */
    esp_prune_options prune = {
        .pattern = model->pattern, .skips = args->skips.items, .skip_count = args->skips.count};
    esp_draw_options draw = {.dtype = types[args->type],
                             .seed = (uint64_t)args->seed,
                             .prune = model->pattern.kind == ESP_PATTERN_DENSE ? NULL : &prune};
    return esp_checkpoint_draw(cli->device, model->path, &draw, &model->loaded.checkpoint, error);
}

/* Of the first compressed layer, else "dense"; the type of the first layer. */
static void label_model(whole_model *model)
{
    const esp_model_call one = {.tokens = 1};
    esp_model_layer layer;
    esp_pattern pattern = {.kind = ESP_PATTERN_DENSE};
    for (int64_t i = 0; esp_model_get_layer(model->loaded.model, i, one, &layer); i++) {
        if (i == 0 || (pattern.kind == ESP_PATTERN_DENSE &&
                       layer.problem.pattern.kind != ESP_PATTERN_DENSE)) {
            pattern = layer.problem.pattern;
            snprintf(model->type, sizeof model->type, "%s",
                     layer.problem.weight_type == ESP_F32   ? "f32"
                     : layer.problem.weight_type == ESP_F16 ? "f16"
                                                            : "bf16");
        }
    }
    esp_pattern_print(model->drawn ? &model->pattern : &pattern, model->label);
}

/* ---- what is timed ---- */

static whole_phase *add_phase(whole_model *model)
{
    return &model->phases[model->phase_count++];
}

static void choose_images(const bench_args *args, whole_model *model)
{
    int64_t context = model->loaded.info.context;
    whole_phase *phase = add_phase(model);
    phase->batch = args->batch > 0          ? args->batch
                   : context < USUAL_TOKENS ? USUAL_TOKENS / context
                                            : 1;
    phase->tokens = context;
    phase->product_tokens = phase->batch * context;
    phase->work = (double)phase->batch;
    phase->unit = "images";
    snprintf(phase->name, sizeof phase->name, "b%lld", (long long)phase->batch);
}

static esp_status choose_texts(const bench_args *args, whole_model *model, esp_error *error)
{
    int64_t context = model->loaded.info.context, tokens = args->tokens;
    if (tokens > context) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "bench.context_too_short",
                        "%s: texts of %lld tokens do not fit the model's %lld", model->path,
                        (long long)tokens, (long long)context);
    }
    whole_phase *phase = add_phase(model);
    phase->tokens = tokens > 0 ? tokens : least(USUAL_BEFORE, context);
    phase->batch = args->batch > 0 ? args->batch : 1 + (USUAL_TOKENS - 1) / phase->tokens;
    phase->product_tokens = phase->batch * phase->tokens;
    phase->work = (double)phase->batch;
    phase->unit = "texts";
    snprintf(phase->name, sizeof phase->name, "%lldx%lld", (long long)phase->batch,
             (long long)phase->tokens);
    return ESP_OK;
}

/* A prefill of one prompt; then steps of `batch` sequences, some tokens into each. */
static esp_status choose_decoding(const cli_state *cli, whole_model *model, int64_t steps,
                                  esp_error *error)
{
    const bench_args *args = cli->args;
    int64_t context = model->loaded.info.context;
    int64_t prompt = args->tokens > 0 ? args->tokens : least(256, context - steps);
    int64_t before = least(USUAL_BEFORE, prompt);
    if (prompt < 1 || prompt > context || before + steps > context) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "bench.context_too_short",
                        "%s: %lld tokens and %lld new ones do not fit the model's context of %lld",
                        model->path, (long long)prompt, (long long)steps, (long long)context);
    }
    model->chunk = least(prompt, bench_on_gpu(cli) ? GPU_CHUNK : CPU_CHUNK);
    model->session_count = args->batch > 0 ? args->batch : 1;
    whole_phase *prefill = add_phase(model), *decode = add_phase(model);
    *prefill = (whole_phase){.unit = "tokens",
                             .batch = 1,
                             .tokens = prompt,
                             .product_tokens = model->chunk,
                             .work = (double)prompt};
    *decode = (whole_phase){.unit = "tokens",
                            .batch = model->session_count,
                            .tokens = before,
                            .product_tokens = model->session_count,
                            .work = (double)model->session_count};
    snprintf(prefill->name, sizeof prefill->name, "prefill%lld", (long long)prompt);
    snprintf(decode->name, sizeof decode->name, "decode%lld", (long long)decode->batch);
    return ESP_OK;
}

static int64_t step_count(const bench_args *args)
{
    return args->new_tokens > 0 ? args->new_tokens : USUAL_STEPS;
}

static esp_status choose_phases(const cli_state *cli, whole_model *model, esp_error *error)
{
    const esp_model_info *info = &model->loaded.info;
    if (info->image_size > 0) {
        choose_images(cli->args, model);
        return ESP_OK;
    }
    if (info->kind == ESP_MODEL_ENCODER) {
        return choose_texts(cli->args, model, error);
    }
    return choose_decoding(cli, model, step_count(cli->args), error);
}

/* Tokens of an image, by the sizes of config.json or of its vision_config; 0: it has none. */
static int64_t tokens_of_image(const char *config)
{
    json_t *root = json_loads(config, 0, NULL);
    const json_t *vision = json_object_get(root, "vision_config");
    vision = vision != NULL ? vision : root;
    int64_t side = json_integer_value(json_object_get(vision, "image_size"));
    int64_t patch = json_integer_value(json_object_get(vision, "patch_size"));
    json_decref(root);
    return side > 0 && side <= MOST_SIDE && patch > 0 ? (side / patch) * (side / patch) : 0;
}

/* The token count that forms are chosen for, before the model is there to be asked: that of
 * decoding, and of all images or texts of the batch otherwise. */
static int64_t tokens_that_matter(const bench_args *args, const char *config)
{
    int64_t batch = args->batch > 0 ? args->batch : 1, each = tokens_of_image(config);
    if (strstr(config, "ForCausalLM") != NULL) {
        return batch;
    }
    each = each > 0 ? each : args->tokens > 0 ? args->tokens : USUAL_BEFORE;
    return batch * each;
}

/* ---- memory ---- */

static int64_t output_count(const whole_model *model)
{
    const esp_model_info *info = &model->loaded.info;
    int64_t shape[3] = {1, 1, 1}, batch = model->phases[0].batch;
    if (info->image_size > 0) {
        int64_t size = 1;
        int rank = esp_vision_output_shape(model->loaded.model, shape);
        for (int i = 0; i < rank; i++) {
            size *= shape[i];
        }
        return batch * size;
    }
    return info->kind == ESP_MODEL_ENCODER ? batch * info->embedding_size
                                           : model->session_count * info->vocabulary;
}

static esp_status draw_inputs(const bench_args *args, whole_model *model, esp_error *error)
{
    const esp_model_info *info = &model->loaded.info;
    const whole_phase *first = &model->phases[0];
    uint64_t seed = (uint64_t)args->seed;
    bool images = info->image_size > 0;
    int64_t ids = images ? 0 : first->batch * first->tokens + model->session_count;
    model->ids = calloc((size_t)ids + 1, sizeof *model->ids);
    model->lengths = calloc((size_t)first->batch, sizeof *model->lengths);
    model->outputs = calloc((size_t)output_count(model), sizeof *model->outputs);
    model->next = calloc((size_t)model->session_count + 1, sizeof *model->next);
    if (model->ids == NULL || model->lengths == NULL || model->outputs == NULL ||
        model->next == NULL) {
        return cli_fail_memory(error, "a measurement");
    }
    for (int64_t i = 0; i < ids; i++) {
        model->ids[i] = (int32_t)(bench_random(&seed) % (uint64_t)info->vocabulary);
    }
    for (int64_t i = 0; i < first->batch; i++) {
        model->lengths[i] = first->tokens;
    }
    return ESP_OK;
}

/* The first session holds the prompt of the prefill, all of them the decode. */
static esp_status open_sessions(const bench_args *args, whole_model *model, esp_error *error)
{
    int64_t decoded = model->phases[1].tokens + step_count(args);
    model->sessions = calloc((size_t)model->session_count, sizeof(esp_session *));
    if (model->sessions == NULL) {
        return cli_fail_memory(error, "a measurement");
    }
    for (int64_t i = 0; i < model->session_count; i++) {
        int64_t capacity = decoded, prompt = model->phases[0].tokens,
                chunk = model->phases[1].tokens;
        if (i == 0) {
            capacity = capacity < prompt ? prompt : capacity;
            chunk = model->chunk < model->session_count ? model->session_count : model->chunk;
        }
        capacity = capacity < chunk ? chunk : capacity;
        TRY(esp_session_create(model->loaded.model, capacity, chunk, &model->sessions[i], error));
    }
    return ESP_OK;
}

static esp_status open_vision(const bench_args *args, whole_model *model, esp_error *error)
{
    int64_t side = model->loaded.info.image_size, batch = model->phases[0].batch;
    uint64_t seed = (uint64_t)args->seed;
    TRY(esp_vision_create(model->loaded.model, 0, 0, batch, &model->vision, error));
    TRY(esp_vision_pixels(model->vision, &model->pixels, error));
    for (int64_t i = 0; i < batch * 3 * side * side; i++) {
        model->pixels[i] = (float)(bench_random(&seed) >> 40) * 0x1p-23f - 1;
    }
    model->given = false;
    return ESP_OK;
}

static esp_status open_runner(const bench_args *args, whole_model *model, esp_error *error)
{
    const esp_model_info *info = &model->loaded.info;
    const whole_phase *first = &model->phases[0];
    if (info->image_size > 0) {
        return open_vision(args, model, error);
    }
    if (info->kind == ESP_MODEL_ENCODER) {
        return esp_embedder_create(model->loaded.model, first->batch * first->tokens,
                                   &model->embedder, error);
    }
    return open_sessions(args, model, error);
}

esp_status whole_open(cli_state *cli, whole_model *model, esp_error *error)
{
    const bench_args *args = cli->args;
    name_model(model);
    TRY(cli_open_device(cli, error));
    TRY(open_weights(cli, model, error));
    model->loaded.file_bytes = esp_checkpoint_file_bytes(model->loaded.checkpoint);
    const char *config = esp_checkpoint_config(model->loaded.checkpoint);
    cli->plan_tokens = tokens_that_matter(args, config != NULL ? config : "");
    TRY(load_opened(cli, &model->loaded, error));
    label_model(model);
    TRY(choose_phases(cli, model, error));
    for (int i = 0; i < model->phase_count; i++) {
        model->phases[i].ms = calloc((size_t)args->rounds, sizeof(double));
        if (model->phases[i].ms == NULL) {
            return cli_fail_memory(error, "a measurement");
        }
    }
    TRY(draw_inputs(args, model, error));
    return open_runner(args, model, error);
}

static void close_runner(whole_model *model)
{
    for (int64_t i = 0; model->sessions != NULL && i < model->session_count; i++) {
        esp_session_free(model->sessions[i]);
    }
    free(model->sessions);
    esp_vision_free(model->vision);
    esp_embedder_free(model->embedder);
    model->sessions = NULL;
    model->vision = NULL;
    model->embedder = NULL;
    model->pixels = NULL;
}

void whole_release(whole_model *model)
{
    esp_model_info info = model->loaded.info;
    close_runner(model);
    loaded_model_free(&model->loaded);
    free(model->ids);
    free(model->lengths);
    free(model->outputs);
    free(model->next);
    model->ids = NULL;
    model->lengths = NULL;
    model->outputs = NULL;
    model->next = NULL;
    model->loaded.info = info;
}

esp_status whole_renew(const bench_args *args, whole_model *model, esp_error *error)
{
    close_runner(model);
    return open_runner(args, model, error);
}

/* ---- running ---- */

static esp_status feed(whole_model *model, esp_session *session, int64_t tokens, int64_t chunk,
                       esp_error *error)
{
    for (int64_t at = 0; at < tokens; at += chunk) {
        int64_t count = least(chunk, tokens - at);
        TRY(esp_session_feed(session, model->ids + at, count,
                             at + count == tokens ? model->outputs : NULL, false, error));
    }
    return ESP_OK;
}

/* Not timed: what a phase finds. A decode starts anew when its sequences are full. */
esp_status whole_prepare(whole_model *model, int phase, esp_error *error)
{
    int64_t before = model->phases[phase].tokens;
    if (model->sessions == NULL || phase == 0) {
        if (model->sessions != NULL) {
            esp_session_truncate(model->sessions[0], 0);
        }
        return ESP_OK;
    }
    for (int64_t i = 0; i < model->session_count; i++) {
        esp_session *session = model->sessions[i];
        if (esp_session_length(session) < before) {
            int64_t chunk = i == 0 ? model->chunk : before;
            esp_session_truncate(session, 0);
            TRY(feed(model, session, before, chunk, error));
        }
        esp_session_truncate(session, before);
    }
    return ESP_OK;
}

esp_status whole_run(whole_model *model, int phase, esp_error *error)
{
    const whole_phase *what = &model->phases[phase];
    if (model->vision != NULL) {
        /* The device keeps the pixels, as other programs' inputs are there before they are timed.
         */
        const float *pixels = model->given ? NULL : model->pixels;
        model->given = true;
        return esp_vision_run(model->vision, pixels, what->batch, model->outputs, error);
    }
    if (model->embedder != NULL) {
        return esp_embed_ids(model->embedder, model->ids, model->lengths, what->batch,
                             model->outputs, error);
    }
    if (phase == 0) {
        return feed(model, model->sessions[0], what->tokens, model->chunk, error);
    }
    return esp_sessions_feed_greedy(model->sessions, what->batch, model->ids, model->next, error);
}

esp_status whole_time_given(const cli_state *cli, whole_model *model, esp_error *error)
{
    enum { RUNS = 5 };
    double ms[RUNS];
    if (model->vision == NULL || !bench_on_gpu(cli)) {
        return ESP_OK;
    }
    for (int i = 0; i < RUNS; i++) {
        double start = seconds_now();
        model->given = false;
        TRY(whole_run(model, 0, error));
        ms[i] = 1e3 * (seconds_now() - start);
    }
    model->phases[0].given_ms = bench_median(ms, RUNS);
    return ESP_OK;
}
