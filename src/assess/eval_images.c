/* Accuracy of classifiers, and how far the results of a model are from those of its baseline.
 *
 * Images of one prepared size go through in batches; a batch ends where the size changes. Sums run
 * in the set's order and in double. */
#include <math.h>
#include <string.h>

#include "assess/parts.h"
#include "model/model.h"

#define DEFAULT_BATCH 16
#define MAX_BATCH 4096

typedef struct contestant {
    const esp_model *model;
    esp_vision *vision;
    float *output; /* [batch][size] */
} contestant;

typedef struct image_eval {
    esp_context *context;
    const esp_image_processor *processor;
    const esp_image_set *set;
    const esp_image_eval_options *options;
    esp_image_eval_result *result;
    contestant sides[2];                /* model, baseline (model NULL: none) */
    int64_t batch, size;                /* size: numbers of one result */
    int64_t height, width, held, first; /* images waiting: `held` from `first` on */
    float *pixels;
    double squares, differences;
    esp_eval_part *parts; /* [set->count] */
    bool classifies;
} image_eval;

/* ---- one result ---- */

/* How many labels score higher; of equals the earlier ones. */
static int64_t rank_of(const float *scores, int64_t count, int64_t label)
{
    int64_t above = 0;
    for (int64_t i = 0; i < count; i++) {
        above += scores[i] > scores[label] || (scores[i] == scores[label] && i < label);
    }
    return above;
}

static double log_sum_exp(const float *scores, int64_t count, int64_t *best)
{
    double sum = 0;
    *best = 0;
    for (int64_t i = 1; i < count; i++) {
        *best = scores[i] > scores[*best] ? i : *best;
    }
    for (int64_t i = 0; i < count; i++) {
        sum += exp((double)scores[i] - (double)scores[*best]);
    }
    return (double)scores[*best] + log(sum);
}

static void add_distance(image_eval *run, const float *ours, const float *theirs)
{
    esp_image_eval_result *result = run->result;
    double dot = 0, own = 0, other = 0;
    for (int64_t i = 0; i < run->size; i++) {
        double a = (double)ours[i], b = (double)theirs[i];
        dot += a * b;
        own += a * a;
        other += b * b;
        run->differences += (a - b) * (a - b);
        result->largest_error = fmax(result->largest_error, fabs(a - b));
    }
    double cosine = own > 0 && other > 0 ? dot / sqrt(own * other) : (double)(own == other);
    run->squares += other;
    result->mean_cosine += cosine;
    result->least_cosine = fmin(result->least_cosine, cosine);
}

static void add_agreement(image_eval *run, const float *ours, const float *theirs,
                          esp_eval_part *part)
{
    int64_t best, other_best;
    double total = log_sum_exp(ours, run->size, &best);
    double other = log_sum_exp(theirs, run->size, &other_best), kl = 0;
    for (int64_t i = 0; i < run->size; i++) {
        double log_p = (double)theirs[i] - other;
        kl += exp(log_p) * (log_p - ((double)ours[i] - total));
    }
    part->kl = kl;
    run->result->mean_kl += kl;
    run->result->top1_agreement += best == other_best;
}

static void add_label(image_eval *run, const float *ours, const float *theirs, int64_t label,
                      esp_eval_part *part)
{
    esp_image_eval_result *result = run->result;
    int64_t best, rank = rank_of(ours, run->size, label);
    part->top1 = rank < 1;
    part->nats = log_sum_exp(ours, run->size, &best) - (double)ours[label];
    result->top1 += rank < 1;
    result->top5 += rank < 5;
    result->nats += part->nats;
    if (theirs != NULL) {
        part->baseline_nats = log_sum_exp(theirs, run->size, &best) - (double)theirs[label];
        rank = rank_of(theirs, run->size, label);
        result->baseline_top1 += rank < 1;
        result->baseline_top5 += rank < 5;
    }
}

static bool is_finite(const float *values, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(values[i])) {
            return false;
        }
    }
    return true;
}

static esp_status add_image(image_eval *run, int64_t place, esp_error *error)
{
    const float *ours = run->sides[0].output + place * run->size;
    const float *theirs =
        run->sides[1].model != NULL ? run->sides[1].output + place * run->size : NULL;
    if (!is_finite(ours, run->size) || (theirs != NULL && !is_finite(theirs, run->size))) {
        return esp_fail(error, ESP_CHECK_FAILED, "eval.not_finite",
                        "image %lld makes the %s give NaN or infinity; 'espalier verify --strict' "
                        "looks for them in its weights",
                        (long long)(run->first + place),
                        is_finite(ours, run->size) ? "baseline" : "model");
    }
    esp_eval_part *part = &run->parts[run->first + place];
    *part = (esp_eval_part){.index = run->first + place, .tokens = 1};
    if (run->classifies) {
        add_label(run, ours, theirs, run->set->labels[part->index], part);
    }
    if (theirs != NULL) {
        add_distance(run, ours, theirs);
    }
    if (theirs != NULL && run->classifies) {
        add_agreement(run, ours, theirs, part);
    }
    run->result->images++;
    return ESP_OK;
}

/* ---- batches ---- */

static esp_status flush(image_eval *run, esp_error *error)
{
    const esp_image_eval_options *options = run->options;
    for (int i = 0; i < 2 && run->held > 0; i++) {
        contestant *side = &run->sides[i];
        if (side->model != NULL) {
            ESP_TRY(esp_vision_run(side->vision, run->pixels, run->held, side->output, error));
        }
    }
    for (int64_t place = 0; place < run->held; place++) {
        ESP_TRY(add_image(run, place, error));
    }
    run->first += run->held;
    run->held = 0;
    if (options->progress != NULL &&
        !options->progress(options->user, "evaluating", (double)run->first, (double)run->set->count,
                           "images")) {
        return esp_fail(error, ESP_CANCELLED, "cancelled", "evaluation was interrupted");
    }
    return ESP_OK;
}

/* Memory for batches of images of another size. */
static esp_status resize(image_eval *run, int64_t height, int64_t width, esp_error *error)
{
    size_t floats;
    ESP_TRY(flush(run, error));
    esp_release(run->context, run->pixels);
    run->pixels = NULL;
    if (!esp_mul_size((size_t)(3 * height * width), (size_t)run->batch, &floats)) {
        return esp_fail_memory(error, SIZE_MAX, "images");
    }
    run->pixels = esp_alloc_array(run->context, floats, sizeof(float));
    if (run->pixels == NULL) {
        return esp_fail_memory(error, floats * sizeof(float), "images");
    }
    for (int i = 0; i < 2; i++) {
        contestant *side = &run->sides[i];
        esp_vision_free(side->vision);
        side->vision = NULL;
        if (side->model != NULL) {
            ESP_TRY(
                esp_vision_create(side->model, height, width, run->batch, &side->vision, error));
        }
    }
    run->height = height;
    run->width = width;
    return ESP_OK;
}

static esp_status take_image(image_eval *run, int64_t index, esp_error *error)
{
    esp_image image;
    int64_t height, width;
    ESP_TRY(run->set->read(run->set->user, index, &image, error));
    ESP_TRY(esp_image_processor_size(run->processor, image.width, image.height, &height, &width,
                                     error));
    if (height != run->height || width != run->width) {
        ESP_TRY(resize(run, height, width, error));
    }
    ESP_TRY(esp_image_process(run->processor, &image, run->pixels + run->held * 3 * height * width,
                              error));
    run->held++;
    return run->held == run->batch ? flush(run, error) : ESP_OK;
}

/* ---- the whole set ---- */

static esp_status evaluate(image_eval *run, esp_error *error)
{
    esp_image_eval_result *result = run->result;
    double start = esp_seconds(), count;
    for (int64_t i = 0; i < run->set->count; i++) {
        ESP_TRY(take_image(run, i, error));
    }
    ESP_TRY(flush(run, error));
    count = (double)result->images;
    result->seconds = esp_seconds() - start;
    result->nats /= count;
    result->mean_kl /= count;
    result->top1_agreement /= count;
    result->mean_cosine /= count;
    result->relative_error = run->squares > 0       ? sqrt(run->differences / run->squares)
                             : run->differences > 0 ? INFINITY
                                                    : 0;
    return esp_parts_finish(run->context, &run->options->parts, run->parts, run->set->count,
                            &result->intervals, error);
}

static esp_status check_labels(const image_eval *run, int64_t labels, esp_error *error)
{
    if (!run->classifies) {
        return ESP_OK;
    }
    if (run->set->labels == NULL) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "eval.no_labels",
                        "a classifier is judged by labels, and the images have none");
    }
    for (int64_t i = 0; i < run->set->count; i++) {
        if (run->set->labels[i] < 0 || run->set->labels[i] >= labels) {
            return esp_fail(error, ESP_BAD_ARGUMENT, "eval.bad_label",
                            "image %lld has label %lld, but the model knows 0 to %lld",
                            (long long)i, (long long)run->set->labels[i], (long long)labels - 1);
        }
    }
    return ESP_OK;
}

static esp_status make_parts(image_eval *run, esp_error *error)
{
    const esp_eval_parts *options = &run->options->parts;
    size_t count = (size_t)run->set->count;
    ESP_TRY(esp_parts_check(options, error));
    if (options->resamples > 0 && !run->classifies) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "eval.bad_resamples",
                        "intervals of images are those of a classifier; leave out the resamples");
    }
    run->parts = esp_alloc_array(run->context, count, sizeof *run->parts);
    return run->parts != NULL ? ESP_OK
                              : esp_fail_memory(error, count * sizeof *run->parts, "images");
}

static esp_status set_up(image_eval *run, esp_error *error)
{
    int64_t shapes[2][3] = {{0}}, size = 1;
    int ranks[2] = {0};
    esp_model_info info;
    esp_model_get_info(run->sides[0].model, &info);
    for (int i = 0; i < 2; i++) {
        ranks[i] = run->sides[i].model != NULL
                       ? esp_vision_output_shape(run->sides[i].model, shapes[i])
                       : 0;
    }
    if (ranks[0] == 0) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "vision.no_images",
                        "%s takes no images; give it text", info.architecture);
    }
    if (run->sides[1].model != NULL &&
        (ranks[0] != ranks[1] || memcmp(shapes[0], shapes[1], sizeof shapes[0]) != 0)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "eval.shape_differs",
                        "model and baseline give results of different shapes; give the dense form "
                        "of the same model");
    }
    for (int i = 0; i < ranks[0]; i++) {
        size *= shapes[0][i];
    }
    run->size = size;
    run->classifies = info.kind == ESP_MODEL_CLASSIFIER;
    ESP_TRY(check_labels(run, info.labels, error));
    ESP_TRY(make_parts(run, error));
    for (int i = 0; i < 2; i++) {
        size_t floats = (size_t)(run->batch * size);
        run->sides[i].output = esp_alloc_array(run->context, floats, sizeof(float));
        if (run->sides[i].output == NULL) {
            return esp_fail_memory(error, floats * sizeof(float), "results");
        }
    }
    return ESP_OK;
}

esp_status esp_eval_images(const esp_model *model, const esp_model *baseline,
                           const esp_image_processor *processor, const esp_image_set *set,
                           const esp_image_eval_options *options, esp_image_eval_result *result,
                           esp_error *error)
{
    const esp_image_eval_options defaults = {0};
    esp_image_eval_result found = {.has_baseline = baseline != NULL, .least_cosine = 1};
    image_eval run = {.context = esp_model_context(model),
                      .processor = processor,
                      .set = set,
                      .options = options != NULL ? options : &defaults,
                      .result = &found,
                      .sides = {{.model = model}, {.model = baseline}}};
    run.batch = run.options->batch > 0 ? run.options->batch : DEFAULT_BATCH;
    if (set->count < 1 || run.batch > MAX_BATCH || run.options->batch < 0) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "eval.bad_images",
                        "%lld images in batches of %lld: at least one image, and batches of 1 to "
                        "%d, are possible",
                        (long long)set->count, (long long)run.options->batch, MAX_BATCH);
    }
    esp_status status = set_up(&run, error);
    status = status == ESP_OK ? evaluate(&run, error) : status;
    for (int i = 0; i < 2; i++) {
        esp_vision_free(run.sides[i].vision);
        esp_release(run.context, run.sides[i].output);
    }
    esp_release(run.context, run.pixels);
    esp_release(run.context, run.parts);
    if (status == ESP_OK) {
        *result = found;
    }
    return status;
}
