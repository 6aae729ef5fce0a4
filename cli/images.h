/* Models of images: what `run` and `eval` do with them. */
#ifndef CLI_IMAGES_H
#define CLI_IMAGES_H

#include "eval_parts.h"
#include "explain.h"
#include "load.h"

/* ---- run: labels, or maps of vectors (run_images.c) ---- */

typedef struct run_images_args {
    const char *output; /* a safetensors file for maps; NULL: none */
    int64_t top;
} run_images_args;

/* Entries of an option table for the struct `type` that holds a run_images_args named `images`. */
#define RUN_IMAGES_OPTIONS(type)                                                                   \
    {.name = "top",                                                                                \
     .kind = OPTION_INTEGER,                                                                       \
     .offset = offsetof(type, images.top),                                                         \
     .argument = "K",                                                                              \
     .help = "classifiers of images: so many labels each",                                         \
     .fallback = "5",                                                                              \
     .least = 1,                                                                                   \
     .most = 1000},                                                                                \
    {                                                                                              \
        .name = "out", .letter = 'o', .kind = OPTION_TEXT,                                         \
        .offset = offsetof(type, images.output), .argument = "FILE",                               \
        .help = "encoders of images: a safetensors file to write the embeddings to"                \
    }

#define RUN_MOST_IMAGES 65536

/* The operands behind the model are image files. cli->plan is set. */
ESP_MUST_CHECK esp_status run_images(cli_state *cli, const run_images_args *args, esp_error *error);

/* ---- eval: accuracy, distance to a dense model (eval_images.c) ---- */

/* path: a folder or an index. baseline: a model's folder, or NULL. limit: images; 0: all. */
ESP_MUST_CHECK esp_status eval_images(cli_state *cli, const char *path, const char *baseline,
                                      int64_t limit, const eval_parts_args *args, esp_error *error);

/* ---- sets of images (image_list.c) ---- */

typedef struct listed_image {
    char *path;
    char *label; /* NULL: none */
} listed_image;

typedef struct image_list {
    listed_image *images;
    int64_t count, capacity;
} image_list;

/* A folder: its .png, .jpg and .jpeg files, and those of each folder in it under that folder's name
 * as label, in the order of their paths. A file: a path (as seen from the file's folder), a tab and
 * a label a line. To be freed after a failure too. */
ESP_MUST_CHECK esp_status image_list_load(const char *path, image_list *list, esp_error *error);
void image_list_free(image_list *list);

/* A list with what the model needs of it, as esp_eval_images takes it (image_set.c). */
typedef struct opened_images opened_images;
/* limit: images, spread over the list; 0: all. Labels are looked up where the model has any. */
ESP_MUST_CHECK esp_status opened_images_create(cli_state *cli, const char *path, int64_t limit,
                                               const loaded_model *model, opened_images **images,
                                               esp_error *error);
void opened_images_free(opened_images *images);
/* Images alone: no labels, no model. */
ESP_MUST_CHECK esp_status opened_images_list(cli_state *cli, const char *path,
                                             opened_images **images, esp_error *error);
/* What the library reads of them. */
esp_image_set opened_images_set(opened_images *images);
/* A baseline may be NULL, and parts. */
ESP_MUST_CHECK esp_status opened_images_eval(opened_images *images, const esp_model *model,
                                             const esp_model *baseline, const esp_eval_parts *parts,
                                             esp_image_eval_result *result, esp_error *error);

#endif
