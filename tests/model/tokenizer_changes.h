/* Files made from a good tokenizer.json by changing one part, for test_tokenizer*_refusals.c: each
 * must be refused by its code, or open. */
#ifndef TEST_TOKENIZER_CHANGES_H
#define TEST_TOKENIZER_CHANGES_H

#include <stdio.h>
#include <string.h>

#include "base/base.h"
#include "test.h"

typedef struct change {
    const char *name;
    const char *path;  /* "model.vocab": where the value goes */
    const char *value; /* JSON; NULL: remove */
    const char *code;  /* NULL: must open */
    esp_status status; /* ESP_OK: ESP_BAD_FILE */
    const char *says;  /* the message must hold this */
} change;

/* Sets or removes the value at a dotted path (the last part may hold anything). */
static void put(json_t *json, const char *path, const char *value)
{
    char key[64];
    const char *dot;
    for (; (dot = strchr(path, '.')) != NULL; path = dot + 1) {
        snprintf(key, sizeof key, "%.*s", (int)(dot - path), path);
        json = json_object_get(json, key);
    }
    if (value == NULL) {
        json_object_del(json, path);
    } else {
        json_object_set_new(json, path, json_loads(value, JSON_DECODE_ANY, NULL));
    }
}

static const char *write_file(test_run *run, const json_t *json)
{
    char *text = json_dumps(json, JSON_COMPACT);
    const char *folder = test_folder(run);
    test_write_file(run, test_path(folder, "tokenizer.json"), text, strlen(text));
    free(text);
    return folder;
}

static void check_change(test_run *run, esp_context *context, json_t *json, const change *what)
{
    esp_tokenizer *tokenizer = NULL;
    esp_error problem = {0};
    test_sub(run, "%s%s%s", what->code != NULL ? what->code : "", what->code != NULL ? ": " : "",
             what->name);
    put(json, what->path, what->value);
    esp_status status = esp_tokenizer_open(context, write_file(run, json), &tokenizer, &problem);
    if (what->code == NULL) {
        CHECK_INT(status, ESP_OK);
        CHECK_TEXT(problem.message, "");
    } else {
        test_check_failure(run, __FILE__, __LINE__, what->name, status, &problem,
                           what->status != ESP_OK ? what->status : ESP_BAD_FILE, what->code);
        CHECK(tokenizer == NULL);
        CHECK(strstr(problem.message, "tokenizer.json") != NULL);
        if (what->says != NULL && strstr(problem.message, what->says) == NULL) {
            test_fail(run, __FILE__, __LINE__, "\"%s\" does not name \"%s\"", problem.message,
                      what->says);
        }
    }
    esp_tokenizer_close(tokenizer);
}

static inline void check_changes(test_run *run, json_t *(*good)(void), const change *changes,
                                 int count)
{
    esp_context *context = test_context(run, 1);
    for (int i = 0; i < count; i++) {
        json_t *json = good();
        check_change(run, context, json, &changes[i]);
        json_decref(json);
    }
    test_context_free(run, context);
}

/* Random bytes changed: whatever opens must encode without a fault. */
static inline void check_changed_bytes(test_run *run, json_t *(*good)(void), int rounds)
{
    static const char text[] = "Hello \xc3\xa9t\xc3\xa9 <|start|> 123 \xff\n\n  end";
    esp_context *context = test_context(run, 1);
    json_t *json = good();
    char *intact = json_dumps(json, JSON_COMPACT), *changed = strdup(intact);
    size_t length = strlen(intact);
    const char *folder = test_folder(run), *path = test_path(folder, "tokenizer.json");
    int opened = 0;
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int round = 0; round < rounds; round++) {
        memcpy(changed, intact, length);
        /* half of the rounds in the first kilobyte, where the pipeline is described */
        size_t span = round % 2 == 0 ? ESP_MIN(length, 1024) : length;
        for (uint64_t n = 1 + esp_random_below(&random, 3); n > 0; n--) {
            changed[esp_random_below(&random, span)] = (char)(' ' + esp_random_below(&random, 95));
        }
        esp_tokenizer *tokenizer = NULL;
        int32_t *ids = NULL;
        int64_t count = 0;
        int32_t place = 0;
        test_write_file(run, path, changed, length);
        if (esp_tokenizer_open(context, folder, &tokenizer, NULL) != ESP_OK) {
            CHECK(tokenizer == NULL);
            continue;
        }
        opened++;
        if (esp_tokenizer_encode(tokenizer, text, sizeof text - 1, true, &ids, &count, NULL) ==
            ESP_OK) {
            for (int64_t i = 0; i < count; i++) {
                size_t bytes;
                CHECK(ids[i] >= 0 && ids[i] < esp_tokenizer_size(tokenizer));
                CHECK(esp_tokenizer_next(tokenizer, ids[i], true, &place, &bytes) != NULL);
            }
        }
        esp_ids_free(tokenizer, ids);
        esp_tokenizer_close(tokenizer);
    }
    CHECK(opened > 0);
    free(intact);
    free(changed);
    json_decref(json);
    test_context_free(run, context);
}

#endif
