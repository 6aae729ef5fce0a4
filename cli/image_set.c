/* Images of a set, read and decoded one by one as they are asked for. */
#include <stdlib.h>
#include <string.h>

#include "image_file.h"
#include "images.h"

struct opened_images {
    cli_state *cli;
    const loaded_model *model; /* whose labels they are */
    esp_image_processor *processor;
    image_list list;
    int64_t *labels; /* NULL where the model has none */
    image_file file; /* the one that was read last */
};

/* ---- labels ---- */

/* The label of that name, else the one of that number; -1: neither. */
static int64_t find_label(const opened_images *images, const char *name)
{
    for (int64_t i = 0; i < images->model->info.labels; i++) {
        if (strcmp(esp_model_label(images->model->model, i), name) == 0) {
            return i;
        }
    }
    char *end = NULL;
    long long number = strtoll(name, &end, 10);
    bool whole = end != name && *end == '\0';
    return whole && number >= 0 && number < images->model->info.labels ? number : -1;
}

static esp_status number_labels(opened_images *images, esp_error *error)
{
    if (images->model->info.kind != ESP_MODEL_CLASSIFIER) {
        return ESP_OK;
    }
    images->labels = malloc((size_t)images->list.count * sizeof *images->labels);
    if (images->labels == NULL) {
        return cli_fail_memory(error, "labels");
    }
    for (int64_t i = 0; i < images->list.count; i++) {
        const listed_image *image = &images->list.images[i];
        if (image->label == NULL) {
            return cli_fail(error, ESP_BAD_FILE, "images.no_label",
                            "%s: has no label; put it in a folder named after it, or name it in "
                            "an index",
                            image->path);
        }
        bool again = i > 0 && strcmp(image->label, images->list.images[i - 1].label) == 0;
        images->labels[i] = again ? images->labels[i - 1] : find_label(images, image->label);
        if (images->labels[i] < 0) {
            return cli_fail(error, ESP_BAD_FILE, "images.unknown_label",
                            "%s: its label \"%s\" is none of the model's %lld (id2label in "
                            "config.json)",
                            image->path, image->label, (long long)images->model->info.labels);
        }
    }
    return ESP_OK;
}

/* ---- reading ---- */

static esp_status read_image(void *user, int64_t index, esp_image *image, esp_error *error)
{
    opened_images *images = user;
    image_file_free(&images->file);
    if (interrupted()) {
        return cli_fail(error, ESP_CANCELLED, "cancelled", "reading images was interrupted");
    }
    TRY(image_file_read(images->list.images[index].path, &images->file, error));
    *image = images->file.image;
    return ESP_OK;
}

/* Every n-th of the list, so that a part of a sorted set holds all of its labels. */
static void thin_out(image_list *list, int64_t limit)
{
    if (limit <= 0 || limit >= list->count) {
        return;
    }
    for (int64_t i = 0; i < limit; i++) {
        int64_t from = i * list->count / limit;
        listed_image moved = list->images[i];
        list->images[i] = list->images[from];
        list->images[from] = moved;
    }
    for (int64_t i = limit; i < list->count; i++) {
        free(list->images[i].path);
        free(list->images[i].label);
    }
    list->count = limit;
}

/* ---- the whole ---- */

void opened_images_free(opened_images *images)
{
    if (images == NULL) {
        return;
    }
    image_file_free(&images->file);
    image_list_free(&images->list);
    esp_image_processor_close(images->processor);
    free(images->labels);
    free(images);
}

esp_status opened_images_list(cli_state *cli, const char *path, opened_images **images,
                              esp_error *error)
{
    opened_images *made = calloc(1, sizeof *made);
    if (made == NULL) {
        return cli_fail_memory(error, "a set of images");
    }
    made->cli = cli;
    esp_status status = image_list_load(path, &made->list, error);
    if (status != ESP_OK) {
        opened_images_free(made);
        return status;
    }
    *images = made;
    return ESP_OK;
}

esp_image_set opened_images_set(opened_images *images)
{
    return (esp_image_set){
        .count = images->list.count, .labels = images->labels, .read = read_image, .user = images};
}

static esp_status open_set(opened_images *images, const char *path, int64_t limit, esp_error *error)
{
    TRY(image_list_load(path, &images->list, error));
    thin_out(&images->list, limit);
    TRY(number_labels(images, error));
    return esp_image_processor_open(images->cli->context, images->cli->operands[0],
                                    &images->processor, error);
}

esp_status opened_images_create(cli_state *cli, const char *path, int64_t limit,
                                const loaded_model *model, opened_images **images, esp_error *error)
{
    opened_images *made = calloc(1, sizeof *made);
    if (made == NULL) {
        return cli_fail_memory(error, "a set of images");
    }
    made->cli = cli;
    made->model = model;
    esp_status status = open_set(made, path, limit, error);
    if (status != ESP_OK) {
        opened_images_free(made);
        return status;
    }
    *images = made;
    return ESP_OK;
}

esp_status opened_images_eval(opened_images *images, const esp_model *model,
                              const esp_model *baseline, const esp_eval_parts *parts,
                              esp_image_eval_result *result, esp_error *error)
{
    const esp_image_set set = opened_images_set(images);
    esp_image_eval_options options = {.progress = progress_step, .user = &images->cli->progress};
    if (parts != NULL) {
        options.parts = *parts;
    }
    return esp_eval_images(model, baseline, images->processor, &set, &options, result, error);
}
