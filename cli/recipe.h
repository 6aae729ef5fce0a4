/* Recipes: which layer gets which pattern, as a file that advise writes and prune reads. */
#ifndef CLI_RECIPE_H
#define CLI_RECIPE_H

#include <jansson.h>

#include "cli.h"

/* {"espalier_recipe": 1, "pattern": DEFAULT, "layers": {NAME: PATTERN, ...}}; other keys are for
 * people. NAME: a tensor's, with or without ".weight"; no glob. */
typedef struct recipe {
    json_t *json; /* the names lie there */
    esp_pattern pattern;
    esp_pattern_rule *rules;
    int count;
} recipe;

/* "recipe.unreadable", "recipe.not_recipe", "recipe.bad_layer"; the recipe is to be freed after a
 * failure too. */
ESP_MUST_CHECK esp_status recipe_load(const char *path, recipe *read, esp_error *error);
void recipe_free(recipe *read);
/* Replaces the file whole. json: an object as above; released. */
ESP_MUST_CHECK esp_status recipe_write(const char *path, json_t *json, esp_error *error);

#endif
