/* Samples: pieces of the text or batches of images, drawn by seed where there are more than are
 * wanted, embedded at once, so that only activations are kept. */
#include "assess/calibrate.h"

#define MAX_TEMPLATE 16
#define DEFAULT_TOKENS 65536
#define DEFAULT_CONTEXT 2048
#define LEAST_TOKENS 128       /* of all samples */
#define TOKENS_OF_A_BATCH 1024 /* of images */

/* ---- which ---- */

/* `wanted` of `count` numbers, ascending, each set as likely (Knuth's algorithm S). */
static void draw(uint64_t seed, int64_t count, int64_t wanted, int64_t *chosen)
{
    esp_random random;
    esp_random_seed(&random, seed);
    for (int64_t i = 0, have = 0; have < wanted; i++) {
        if ((int64_t)esp_random_below(&random, (uint64_t)(count - i)) < wanted - have) {
            chosen[have++] = i;
        }
    }
}

static int64_t most_tokens(const esp_calibration *calibration)
{
    int64_t asked = calibration->options->tokens;
    return asked > 0 ? asked : DEFAULT_TOKENS;
}

static esp_status make_list(esp_calibration *calibration, int64_t count, esp_error *error)
{
    calibration->samples =
        esp_alloc_array(calibration->context, (size_t)count, sizeof *calibration->samples);
    if (calibration->samples == NULL) {
        return esp_fail_memory(error, (size_t)count * sizeof *calibration->samples, "samples");
    }
    return ESP_OK;
}

static esp_status open_walks(esp_calibration *calibration, const esp_walk_size *size,
                             esp_error *error)
{
    ESP_TRY(esp_walk_open(calibration->device, calibration->checkpoint, size, &calibration->dense,
                          error));
    ESP_TRY(esp_walk_open(calibration->device, calibration->checkpoint, size, &calibration->pruned,
                          error));
    return ESP_OK;
}

/* The next sample of the list, at the beginning of both models. */
static esp_status add_sample(esp_calibration *calibration, const esp_walk_batch *batch,
                             esp_error *error)
{
    esp_walked_batch *sample = &calibration->samples[calibration->sample_count];
    sample->batch = *batch;
    sample->tokens = esp_walk_places_of(calibration->dense, batch).tokens;
    calibration->sample_count++;
    ESP_TRY(esp_walk_stream_take(calibration->dense, batch, &sample->dense, error));
    ESP_TRY(esp_walk_stream_take(calibration->pruned, batch, &sample->pruned, error));
    ESP_TRY(esp_walk_embed(calibration->dense, batch, sample->dense, error));
    ESP_TRY(esp_walk_stream_copy(calibration->dense, batch, sample->pruned, sample->dense, error));
    sample->batch.pixels = NULL;
    calibration->summary.tokens += sample->tokens;
    return ESP_OK;
}

/* ---- text ---- */

typedef struct text_job {
    esp_calibration *calibration;
    esp_tokenizer *tokenizer;
    int32_t *ids;
    int64_t count;
    int32_t before[MAX_TEMPLATE], behind[MAX_TEMPLATE];
    int before_count, behind_count;
    int64_t length; /* tokens of the text in a sample */
} text_job;

static esp_status find_length(text_job *job, const esp_model_info *info, esp_error *error)
{
    int64_t asked = job->calibration->options->context;
    int64_t context = asked > 0 ? asked : ESP_MIN(info->context, DEFAULT_CONTEXT);
    int64_t around = job->before_count + job->behind_count;
    job->length = context - around;
    if (context > info->context || job->length < 1 || around > 2 * MAX_TEMPLATE) {
        return esp_fail(
            error, ESP_BAD_ARGUMENT, "calibrate.bad_context",
            "samples of %lld tokens, %lld of them the tokenizer's own: from %lld to the "
            "model's %lld are possible",
            (long long)context, (long long)around, (long long)around + 1, (long long)info->context);
    }
    if (job->count < LEAST_TOKENS) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "calibrate.too_short",
                        "%s: %lld tokens: at least %d are needed, and 20 for each input feature of "
                        "the widest layer are wanted; give a longer text",
                        esp_calibration_source(job->calibration->options), (long long)job->count,
                        LEAST_TOKENS);
    }
    job->length = ESP_MIN(job->length, job->count);
    return ESP_OK;
}

static esp_status check_ids(const text_job *job, const esp_model_info *info, esp_error *error)
{
    for (int64_t i = 0; i < job->count; i++) {
        if (job->ids[i] < 0 || job->ids[i] >= info->vocabulary) {
            return esp_fail(
                error, ESP_BAD_FILE, "calibrate.tokenizer_differs",
                "the tokenizer gives id %d, but the model's vocabulary has %lld tokens; "
                "tokenizer.json does not belong to this model",
                (int)job->ids[i], (long long)info->vocabulary);
        }
    }
    return ESP_OK;
}

static esp_status add_text(text_job *job, int64_t piece, esp_error *error)
{
    esp_calibration *calibration = job->calibration;
    int64_t length = job->before_count + job->length + job->behind_count;
    int32_t *ids = esp_alloc_array(calibration->context, (size_t)length, sizeof *ids);
    if (ids == NULL) {
        return esp_fail_memory(error, (size_t)length * sizeof *ids, "a sample");
    }
    memcpy(ids, job->before, (size_t)job->before_count * sizeof *ids);
    memcpy(ids + job->before_count, job->ids + piece * job->length,
           (size_t)job->length * sizeof *ids);
    memcpy(ids + job->before_count + job->length, job->behind,
           (size_t)job->behind_count * sizeof *ids);
    calibration->summary.data_crc32c =
        esp_crc32c(calibration->summary.data_crc32c, ids, (size_t)length * sizeof *ids);
    esp_walk_batch batch = {.ids = ids, .tokens = length};
    return add_sample(calibration, &batch, error);
}

static esp_status cut_text(text_job *job, esp_error *error)
{
    esp_calibration *calibration = job->calibration;
    esp_walk_size size = {0};
    esp_model_info shape;
    ESP_TRY(esp_model_info_read(calibration->device, calibration->checkpoint, &shape, error));
    ESP_TRY(find_length(job, &shape, error));
    ESP_TRY(check_ids(job, &shape, error));
    size.tokens = job->before_count + job->length + job->behind_count;
    ESP_TRY(open_walks(calibration, &size, error));
    int64_t pieces = job->count / job->length;
    int64_t wanted = ESP_MIN(pieces, esp_ceil_div(most_tokens(calibration), size.tokens));
    int64_t *chosen = esp_alloc_array(calibration->context, (size_t)wanted, sizeof *chosen);
    if (chosen == NULL) {
        return esp_fail_memory(error, (size_t)wanted * sizeof *chosen, "samples");
    }
    draw(calibration->options->seed, pieces, wanted, chosen);
    esp_status status = make_list(calibration, wanted, error);
    for (int64_t i = 0; i < wanted && status == ESP_OK; i++) {
        status = add_text(job, chosen[i], error);
    }
    esp_release(calibration->context, chosen);
    calibration->summary.samples = calibration->sample_count;
    return status;
}

static esp_status load_text(esp_calibration *calibration, const char *model_dir, esp_error *error)
{
    const esp_calibration_options *options = calibration->options;
    text_job job = {.calibration = calibration};
    ESP_TRY(esp_tokenizer_open(calibration->context, model_dir, &job.tokenizer, error));
    job.before_count = esp_tokenizer_prefix(job.tokenizer, job.before, MAX_TEMPLATE);
    job.behind_count = esp_tokenizer_suffix(job.tokenizer, job.behind, MAX_TEMPLATE);
    esp_status status =
        job.before_count > MAX_TEMPLATE || job.behind_count > MAX_TEMPLATE
            ? esp_fail(error, ESP_UNSUPPORTED, "calibrate.long_template",
                       "the tokenizer puts %d tokens around a text; at most %d are supported",
                       job.before_count + job.behind_count, MAX_TEMPLATE)
            : esp_tokenizer_encode(job.tokenizer, options->text, options->text_bytes, false,
                                   &job.ids, &job.count, error);
    status = status == ESP_OK ? cut_text(&job, error) : status;
    esp_ids_free(job.tokenizer, job.ids);
    esp_tokenizer_close(job.tokenizer);
    return status;
}

/* ---- images ---- */

typedef struct image_job {
    esp_calibration *calibration;
    esp_image_processor *processor;
    int64_t height, width;
    int64_t each;  /* images of a batch */
    float *pixels; /* [each][3][height][width] */
} image_job;

static esp_status read_image(const image_job *job, int64_t number, float *pixels, esp_error *error)
{
    const esp_image_set *set = job->calibration->options->images;
    esp_image image;
    int64_t height = 0, width = 0;
    ESP_TRY(set->read(set->user, number, &image, error));
    ESP_TRY(esp_image_processor_size(job->processor, image.width, image.height, &height, &width,
                                     error));
    if (height != job->height || width != job->width) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "calibrate.image_size",
                        "image %lld becomes %lldx%lld, the first one %lldx%lld; give images that "
                        "the model's preprocessor brings to one size",
                        (long long)number, (long long)width, (long long)height,
                        (long long)job->width, (long long)job->height);
    }
    return esp_image_process(job->processor, &image, pixels, error);
}

static esp_status first_size(image_job *job, esp_error *error)
{
    const esp_image_set *set = job->calibration->options->images;
    esp_image image;
    if (set->count < 1) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "calibrate.too_short",
                        "%s: there are none to calibrate with",
                        esp_calibration_source(job->calibration->options));
    }
    ESP_TRY(set->read(set->user, 0, &image, error));
    return esp_image_processor_size(job->processor, image.width, image.height, &job->height,
                                    &job->width, error);
}

static esp_status add_images(const image_job *job, const int64_t *chosen, int64_t count,
                             esp_error *error)
{
    esp_calibration *calibration = job->calibration;
    int64_t step = 3 * job->height * job->width;
    for (int64_t i = 0; i < count; i++) {
        ESP_TRY(read_image(job, chosen[i], job->pixels + i * step, error));
    }
    calibration->summary.data_crc32c = esp_crc32c(calibration->summary.data_crc32c, job->pixels,
                                                  (size_t)(count * step) * sizeof *job->pixels);
    const esp_walk_batch batch = {.pixels = job->pixels, .images = count};
    calibration->summary.samples += count;
    return add_sample(calibration, &batch, error);
}

static esp_status add_batches(image_job *job, int64_t of_image, esp_error *error)
{
    esp_calibration *calibration = job->calibration;
    esp_context *context = calibration->context;
    int64_t count = calibration->options->images->count;
    int64_t wanted = ESP_MIN(count, esp_ceil_div(most_tokens(calibration), of_image));
    size_t floats = (size_t)(job->each * 3 * job->height * job->width);
    int64_t *chosen = esp_alloc_array(context, (size_t)wanted, sizeof *chosen);
    job->pixels = esp_alloc_array(context, floats, sizeof *job->pixels);
    esp_status status = make_list(calibration, esp_ceil_div(wanted, job->each), error);
    if (status == ESP_OK && (chosen == NULL || job->pixels == NULL)) {
        status = esp_fail_memory(error, floats * sizeof *job->pixels, "pixels");
    }
    if (status == ESP_OK) {
        draw(calibration->options->seed, count, wanted, chosen);
    }
    for (int64_t i = 0; i < wanted && status == ESP_OK; i += job->each) {
        status = add_images(job, chosen + i, ESP_MIN(job->each, wanted - i), error);
    }
    esp_release(context, chosen);
    esp_release(context, job->pixels);
    return status;
}

static esp_status load_images(esp_calibration *calibration, const char *model_dir, esp_error *error)
{
    image_job job = {.calibration = calibration};
    esp_model_info info;
    ESP_TRY(esp_model_info_read(calibration->device, calibration->checkpoint, &info, error));
    ESP_TRY(esp_image_processor_open(calibration->context, model_dir, &job.processor, error));
    esp_status status = first_size(&job, error);
    if (status == ESP_OK) {
        int64_t patches = (job.height / info.patch_size) * (job.width / info.patch_size);
        job.each = ESP_MAX(1, TOKENS_OF_A_BATCH / ESP_MAX(1, patches));
        const esp_walk_size size = {.images = job.each, .height = job.height, .width = job.width};
        status = open_walks(calibration, &size, error);
    }
    if (status == ESP_OK) {
        const esp_walk_batch one = {.images = 1};
        status = add_batches(&job, esp_walk_places_of(calibration->dense, &one).tokens, error);
    }
    esp_image_processor_close(job.processor);
    return status;
}

/* ---- all ---- */

esp_status esp_calibration_load(esp_calibration *calibration, const char *model_dir,
                                esp_error *error)
{
    const esp_calibration_options *options = calibration->options;
    esp_model_info info;
    ESP_TRY(esp_model_info_read(calibration->device, calibration->checkpoint, &info, error));
    bool of_images = info.kind == ESP_MODEL_CLASSIFIER || info.kind == ESP_MODEL_IMAGE_ENCODER;
    if (of_images != (options->images != NULL) || (options->text != NULL) == of_images) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "calibrate.wrong_data",
                        "%s takes %s: calibrate it with them", info.architecture,
                        of_images ? "images" : "text");
    }
    return of_images ? load_images(calibration, model_dir, error)
                     : load_text(calibration, model_dir, error);
}

void esp_calibration_drop(esp_calibration *calibration)
{
    esp_context *context = calibration->context;
    for (int64_t i = 0; i < calibration->sample_count; i++) {
        esp_walked_batch *sample = &calibration->samples[i];
        esp_release(context, (void *)(uintptr_t)sample->batch.ids);
        esp_walk_stream_free(calibration->dense, sample->dense);
        esp_walk_stream_free(calibration->pruned, sample->pruned);
    }
    esp_release(context, calibration->samples);
    esp_walk_close(calibration->dense);
    esp_walk_close(calibration->pruned);
}
