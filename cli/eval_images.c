/* espalier eval MODEL --images: how many images of a set a classifier gets right, and how far
 * results are from a dense model's. */
#include <math.h>

#include "images.h"
#include "sizes.h"

typedef struct eval_job {
    cli_state *cli;
    const char *path, *baseline_path;
    loaded_model model, baseline;
    opened_images *images;
    eval_parts parts;
    esp_image_eval_result result;
} eval_job;

/* ---- results ---- */

/* An image as products see it. */
static esp_model_call call_of(const eval_job *job)
{
    return (esp_model_call){.tokens = job->model.info.context};
}

static bool classifies(const eval_job *job)
{
    return job->model.info.kind == ESP_MODEL_CLASSIFIER;
}

static double share(const eval_job *job, int64_t count)
{
    return (double)count / (double)job->result.images;
}

static void print_accuracy(const eval_job *job)
{
    const esp_image_eval_result *result = &job->result;
    printf("%-16s %.4f (%lld)\n", "top-1", share(job, result->top1), (long long)result->top1);
    printf("%-16s %.4f (%lld)\n", "top-5", share(job, result->top5), (long long)result->top5);
    printf("%-16s %.4f nats\n", "cross-entropy", result->nats);
    if (result->has_baseline) {
        printf("%-16s %s\n", "baseline", job->baseline_path);
        printf("%-16s %.4f\n", "  top-1", share(job, result->baseline_top1));
        printf("%-16s %.4f\n", "  top-5", share(job, result->baseline_top5));
        printf("%-16s %.5f nats\n", "  mean KL", result->mean_kl);
        printf("%-16s %.4f\n", "  same top label", result->top1_agreement);
    }
}

static void print_distance(const eval_job *job)
{
    const esp_image_eval_result *result = &job->result;
    if (!result->has_baseline) {
        return;
    }
    printf("%-16s mean %.6f, least %.6f\n", "cosine", result->mean_cosine, result->least_cosine);
    printf("%-16s %.4g relative, %.4g largest\n", "error", result->relative_error,
           result->largest_error);
}

static void print_text(const eval_job *job)
{
    const esp_image_eval_result *result = &job->result;
    char size[SIZE_TEXT_MAX], kernels[KERNELS_TEXT_MAX];
    printf("%-16s %s (%s in files)\n", "model", job->cli->operands[0],
           size_bytes((double)job->model.file_bytes, size));
    printf("%-16s %s, %lld\n", "images", job->path, (long long)result->images);
    if (classifies(job)) {
        print_accuracy(job);
    } else if (result->has_baseline) {
        printf("%-16s %s\n", "baseline", job->baseline_path);
    }
    print_distance(job);
    eval_parts_print(&job->parts, &result->intervals, result->has_baseline, true);
    printf("%-16s %s, compute %s, %d threads, %.2f s, %.1f images/s\n", "run",
           esp_device_name(job->cli->device), model_compute(&job->model.info),
           esp_context_threads(job->cli->context), result->seconds,
           (double)result->images / fmax(result->seconds, 1e-9));
    printf("%-16s %s\n", "kernels", model_kernels_text(job->model.model, call_of(job), kernels));
    device_bytes_note(job->cli, &job->model);
    explain_note(job->cli, job->model.model, "", "note", call_of(job), stdout);
}

static esp_status print_json(eval_job *job, esp_error *error)
{
    const esp_image_eval_result *result = &job->result;
    bool has = result->has_baseline, labelled = classifies(job);
    double unknown = (double)NAN;
    cli_record record = record_begin("eval");
    record_text(&record, "model", job->cli->operands[0]);
    record_text(&record, "image_set", job->path);
    record_int(&record, "file_bytes", (int64_t)job->model.file_bytes);
    record_int(&record, "images", result->images);
    record_real(&record, "top1", labelled ? share(job, result->top1) : unknown);
    record_real(&record, "top5", labelled ? share(job, result->top5) : unknown);
    record_real(&record, "cross_entropy", labelled ? result->nats : unknown);
    record_text(&record, "baseline", job->baseline_path);
    bool both = has && labelled;
    record_real(&record, "baseline_top1", both ? share(job, result->baseline_top1) : unknown);
    record_real(&record, "baseline_top5", both ? share(job, result->baseline_top5) : unknown);
    record_real(&record, "mean_kl", both ? result->mean_kl : unknown);
    record_real(&record, "top1_agreement", both ? result->top1_agreement : unknown);
    record_real(&record, "mean_cosine", has ? result->mean_cosine : unknown);
    record_real(&record, "least_cosine", has ? result->least_cosine : unknown);
    record_real(&record, "relative_error", has ? result->relative_error : unknown);
    record_real(&record, "largest_error", has ? result->largest_error : unknown);
    eval_parts_json(&job->parts, &result->intervals, has, true, &record);
    record_real(&record, "seconds", result->seconds);
    record_text(&record, "device", esp_device_name(job->cli->device));
    record_text(&record, "compute", model_compute(&job->model.info));
    record_int(&record, "threads", esp_context_threads(job->cli->context));
    record_child(&record, "kernels", model_kernels_json(job->model.model, call_of(job)));
    record_int(&record, "resident_bytes", (int64_t)job->model.info.resident_bytes);
    device_bytes_json(loaded_memory(&job->model), &record);
    explain_memory_json(job->cli, &job->model.info, &record);
    return explain_and_print(job->cli, job->model.model, call_of(job), &record, error);
}

/* ---- the whole ---- */

static esp_status evaluate(eval_job *job, int64_t limit, const eval_parts_args *args,
                           esp_error *error)
{
    cli_state *cli = job->cli;
    TRY(eval_parts_open(&job->parts, args, error));
    TRY(load_model(cli, cli->operands[0], false, &job->model, error));
    TRY(opened_images_create(cli, job->path, limit, &job->model, &job->images, error));
    if (job->baseline_path != NULL) {
        TRY(load_model(cli, job->baseline_path, false, &job->baseline, error));
    }
    esp_eval_parts parts = eval_parts_options(&job->parts);
    TRY(opened_images_eval(job->images, job->model.model, job->baseline.model, &parts, &job->result,
                           error));
    progress_end(&cli->progress);
    if (cli->common.json) {
        return print_json(job, error);
    }
    print_text(job);
    return cli->plan->explain ? explain_model(cli, job->model.model, call_of(job), stdout, error)
                              : (esp_status)ESP_OK;
}

esp_status eval_images(cli_state *cli, const char *path, const char *baseline, int64_t limit,
                       const eval_parts_args *args, esp_error *error)
{
    eval_job job = {.cli = cli, .path = path, .baseline_path = baseline};
    esp_status status = evaluate(&job, limit, args, error);
    eval_parts_free(&job.parts);
    opened_images_free(job.images);
    loaded_model_free(&job.baseline);
    loaded_model_free(&job.model);
    return status;
}
