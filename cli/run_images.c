/* espalier run MODEL IMAGE...: the likeliest labels of each image, or its map of vectors. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "image_file.h"
#include "images.h"
#include "sizes.h"

typedef struct run_job {
    cli_state *cli;
    const run_images_args *args;
    loaded_model model;
    esp_image_processor *processor;
    esp_vision *vision;
    int64_t height, width; /* that vision is for */
    float *pixels;
    int64_t shape[3], size; /* of one result */
    int rank, count;        /* images */
    float *results;         /* [count][size] */
    double seconds;         /* in the model */
} run_job;

static double now_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* ---- one image ---- */

static esp_status prepare(run_job *job, const esp_image *image, esp_error *error)
{
    int64_t height, width;
    TRY(esp_image_processor_size(job->processor, image->width, image->height, &height, &width,
                                 error));
    if (height != job->height || width != job->width) {
        esp_vision_free(job->vision);
        job->vision = NULL;
        free(job->pixels);
        job->pixels = malloc((size_t)(3 * height * width) * sizeof *job->pixels);
        if (job->pixels == NULL) {
            return cli_fail_memory(error, "an image");
        }
        TRY(esp_vision_create(job->model.model, height, width, 1, &job->vision, error));
        job->height = height;
        job->width = width;
    }
    return esp_image_process(job->processor, image, job->pixels, error);
}

static esp_status run_one(run_job *job, int index, esp_error *error)
{
    image_file file = {0};
    if (interrupted()) {
        return cli_fail(error, ESP_CANCELLED, "cancelled", "it was interrupted");
    }
    TRY(image_file_read(job->cli->operands[1 + index], &file, error));
    esp_status status = prepare(job, &file.image, error);
    image_file_free(&file);
    TRY(status);
    double start = now_seconds();
    TRY(esp_vision_run(job->vision, job->pixels, 1, job->results + index * job->size, error));
    job->seconds += now_seconds() - start;
    return ESP_OK;
}

/* ---- results ---- */

typedef struct ranked {
    int64_t index;
    double probability;
} ranked;

static int compare(const void *a, const void *b)
{
    const ranked *first = a, *second = b;
    if (first->probability != second->probability) {
        return first->probability > second->probability ? -1 : 1;
    }
    return first->index < second->index ? -1 : 1;
}

/* Labels by probability, which is the softmax of the scores; NULL without memory. */
static ranked *rank_labels(const float *scores, int64_t count)
{
    ranked *list = malloc((size_t)count * sizeof *list);
    double most = -INFINITY, sum = 0;
    for (int64_t i = 0; i < count; i++) {
        most = fmax(most, (double)scores[i]);
    }
    for (int64_t i = 0; i < count; i++) {
        sum += exp((double)scores[i] - most);
    }
    for (int64_t i = 0; list != NULL && i < count; i++) {
        list[i] = (ranked){i, exp((double)scores[i] - most) / sum};
    }
    if (list != NULL) {
        qsort(list, (size_t)count, sizeof *list, compare);
    }
    return list;
}

static int64_t shown(const run_job *job)
{
    return job->args->top < job->size ? job->args->top : job->size;
}

static esp_status check_finite(const run_job *job, int index, esp_error *error)
{
    for (int64_t i = 0; i < job->size; i++) {
        if (!isfinite(job->results[index * job->size + i])) {
            return cli_fail(error, ESP_CHECK_FAILED, "run.not_finite",
                            "%s: the model gives NaN or infinity; 'espalier verify --strict' looks "
                            "for them in its weights",
                            job->cli->operands[1 + index]);
        }
    }
    return ESP_OK;
}

static esp_status print_labels(const run_job *job, int index, esp_error *error)
{
    ranked *list = rank_labels(job->results + index * job->size, job->size);
    if (list == NULL) {
        return cli_fail_memory(error, "labels");
    }
    printf("%s\n", job->cli->operands[1 + index]);
    for (int64_t i = 0; i < shown(job); i++) {
        printf("  %.4f  %s\n", list[i].probability,
               esp_model_label(job->model.model, list[i].index));
    }
    free(list);
    return ESP_OK;
}

static esp_status record_labels(const run_job *job, int index, cli_record *image, esp_error *error)
{
    const float *scores = job->results + index * job->size;
    ranked *list = rank_labels(scores, job->size);
    if (list == NULL) {
        return cli_fail_memory(error, "labels");
    }
    cli_record top = record_list();
    for (int64_t i = 0; i < shown(job); i++) {
        cli_record entry = record_object();
        record_text(&entry, "label", esp_model_label(job->model.model, list[i].index));
        record_int(&entry, "index", list[i].index);
        record_real(&entry, "probability", list[i].probability);
        record_real(&entry, "score", (double)scores[list[i].index]);
        record_add(&top, entry);
    }
    record_child(image, "top", top);
    free(list);
    return ESP_OK;
}

/* Root mean square and largest magnitude, so that a map can be told from another at a glance. */
static void summarise(const run_job *job, int index, double *rms, double *largest)
{
    double sum = 0;
    *largest = 0;
    for (int64_t i = 0; i < job->size; i++) {
        double value = (double)job->results[index * job->size + i];
        sum += value * value;
        *largest = fmax(*largest, fabs(value));
    }
    *rms = sqrt(sum / (double)job->size);
}

static void print_map(const run_job *job, int index)
{
    double rms, largest;
    summarise(job, index, &rms, &largest);
    printf("%s\n  embedding %lldx%lldx%lld, root mean square %.6g, largest %.6g\n",
           job->cli->operands[1 + index], (long long)job->shape[0], (long long)job->shape[1],
           (long long)job->shape[2], rms, largest);
}

static void record_map(const run_job *job, int index, cli_record *image)
{
    double rms, largest;
    summarise(job, index, &rms, &largest);
    record_shape(image, "embedding_shape", job->rank, job->shape);
    record_real(image, "root_mean_square", rms);
    record_real(image, "largest", largest);
}

static esp_status write_maps(const run_job *job, esp_error *error)
{
    static const char *const names[] = {"image_embeddings"};
    const esp_tensor tensor = {.dtype = ESP_F32,
                               .rank = 4,
                               .shape = {job->count, job->shape[0], job->shape[1], job->shape[2]},
                               .data = job->results};
    return esp_safetensors_write(job->cli->context, job->args->output, names, &tensor, 1, error);
}

/* ---- all images ---- */

/* An image is a call. */
static esp_model_call call_of(const run_job *job)
{
    return (esp_model_call){.tokens = job->model.info.context};
}

static esp_status print_json(const run_job *job, esp_error *error)
{
    cli_record record = record_begin("run"), images = record_list();
    esp_status status = ESP_OK;
    for (int i = 0; i < job->count && status == ESP_OK; i++) {
        cli_record image = record_object();
        record_text(&image, "path", job->cli->operands[1 + i]);
        if (job->rank == 1) {
            status = record_labels(job, i, &image, error);
        } else {
            record_map(job, i, &image);
        }
        record_add(&images, image);
    }
    record_text(&record, "model", job->cli->operands[0]);
    record_child(&record, "images", images);
    record_text(&record, "output", job->args->output);
    record_real(&record, "seconds", job->seconds);
    record_text(&record, "device", esp_device_name(job->cli->device));
    record_text(&record, "compute", model_compute(&job->model.info));
    record_int(&record, "threads", esp_context_threads(job->cli->context));
    record_child(&record, "kernels", model_kernels_json(job->model.model, call_of(job)));
    record_int(&record, "resident_bytes", (int64_t)job->model.info.resident_bytes);
    device_bytes_json(loaded_memory(&job->model), &record);
    explain_memory_json(job->cli, &job->model.info, &record);
    if (status != ESP_OK) {
        record_free(&record);
        return status;
    }
    return explain_and_print(job->cli, job->model.model, call_of(job), &record, error);
}

static void print_statistics(const run_job *job)
{
    char kernels[KERNELS_TEXT_MAX];
    fprintf(stderr, "espalier: %d image%s in %.3f s; %s, compute %s, %d threads\n", job->count,
            job->count == 1 ? "" : "s", job->seconds, esp_device_name(job->cli->device),
            model_compute(&job->model.info), esp_context_threads(job->cli->context));
    fprintf(stderr, "espalier: kernels: %s\n",
            model_kernels_text(job->model.model, call_of(job), kernels));
    device_bytes_note(job->cli, &job->model);
    explain_note(job->cli, job->model.model, "espalier: ", "note", call_of(job), stderr);
}

static esp_status print_text(const run_job *job, esp_error *error)
{
    for (int i = 0; i < job->count; i++) {
        if (job->rank == 1) {
            TRY(print_labels(job, i, error));
        } else {
            print_map(job, i);
        }
    }
    fflush(stdout);
    if (!job->cli->common.quiet) {
        print_statistics(job);
    }
    return job->cli->plan->explain
               ? explain_model(job->cli, job->model.model, call_of(job), stderr, error)
               : (esp_status)ESP_OK;
}

static esp_status check_model(run_job *job, esp_error *error)
{
    job->rank = esp_vision_output_shape(job->model.model, job->shape);
    if (job->rank == 0) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "vision.no_images",
                        "%s (%s) takes no images; see 'espalier run --help'", job->cli->operands[0],
                        job->model.info.architecture);
    }
    if (job->rank == 1 && job->args->output != NULL) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.extra_option",
                        "--out takes embeddings, but %s is a classifier", job->cli->operands[0]);
    }
    job->size = 1;
    for (int i = 0; i < job->rank; i++) {
        job->size *= job->shape[i];
    }
    job->results = calloc((size_t)job->count * (size_t)job->size, sizeof *job->results);
    return job->results != NULL ? ESP_OK : cli_fail_memory(error, "results");
}

static esp_status run_all(run_job *job, esp_error *error)
{
    cli_state *cli = job->cli;
    TRY(load_model(cli, cli->operands[0], false, &job->model, error));
    TRY(check_model(job, error));
    TRY(esp_image_processor_open(cli->context, cli->operands[0], &job->processor, error));
    for (int i = 0; i < job->count; i++) {
        TRY(run_one(job, i, error));
        TRY(check_finite(job, i, error));
    }
    if (job->args->output != NULL) {
        TRY(write_maps(job, error));
    }
    return cli->common.json ? print_json(job, error) : print_text(job, error);
}

esp_status run_images(cli_state *cli, const run_images_args *args, esp_error *error)
{
    run_job job = {.cli = cli, .args = args, .count = cli->operand_count - 1};
    esp_status status = run_all(&job, error);
    esp_vision_free(job.vision);
    esp_image_processor_close(job.processor);
    loaded_model_free(&job.model);
    free(job.pixels);
    free(job.results);
    return status;
}
