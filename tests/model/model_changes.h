/* Models with one thing changed, in config.json or among the tensors: refused by a code, or taken.
 */
#ifndef TEST_MODEL_CHANGES_H
#define TEST_MODEL_CHANGES_H

#include "golden_model.h"

/* A change to the golden description of a good model. "config" members replace those of
 * config.json, null removed by the word "(remove)". */
typedef struct change {
    const char *name;
    const char *config;  /* JSON object merged into config.json, or NULL */
    const char *drop;    /* a tensor to leave out */
    const char *add;     /* JSON object: a tensor to add */
    const char *reshape; /* a tensor that gets shape [3] */
    const char *dtype;   /* a tensor that is called I64 (4-byte data is replaced by 8-byte) */
    const char *code;    /* NULL: must load */
    esp_status status;
    const char *says; /* the message must hold this */
} change;

static inline void merge(json_t *config, const char *text)
{
    const char *key;
    json_t *value, *parsed = json_loads(text, 0, NULL);
    json_object_foreach(parsed, key, value)
    {
        bool removed = json_is_string(value) && strcmp(json_string_value(value), "(remove)") == 0;
        if (removed) {
            json_object_del(config, key);
        } else {
            json_object_set(config, key, value);
        }
    }
    json_decref(parsed);
}

static inline void apply(json_t *golden, const change *what)
{
    json_t *tensors = json_object_get(golden, "tensors");
    for (size_t i = json_array_size(tensors); i-- > 0;) {
        json_t *entry = json_array_get(tensors, i);
        const char *name = json_string_value(json_object_get(entry, "name"));
        if (what->drop != NULL && strcmp(name, what->drop) == 0) {
            json_array_remove(tensors, i);
        } else if (what->reshape != NULL && strcmp(name, what->reshape) == 0) {
            json_object_set_new(entry, "shape", json_pack("[i]", 3));
        } else if (what->dtype != NULL && strcmp(name, what->dtype) == 0) {
            json_object_set_new(entry, "dtype", json_string("I32"));
        }
    }
    if (what->add != NULL) {
        json_array_append_new(tensors, json_loads(what->add, 0, NULL));
    }
    if (what->config != NULL) {
        merge(json_object_get(golden, "config"), what->config);
    }
}

/* Counts what is held, so that a hostile config cannot make the loader take what no file backs. */
typedef struct budget {
    size_t live, most;
} budget;

static inline void *budget_allocate(void *user, size_t bytes, size_t alignment)
{
    budget *counted = user;
    size_t *memory = aligned_alloc(alignment, (bytes + 2 * alignment - 1) / alignment * alignment);
    if (memory == NULL || bytes > ((size_t)1 << 30)) {
        free(memory);
        return NULL;
    }
    memory[0] = bytes;
    counted->live += bytes;
    counted->most = ESP_MAX(counted->most, counted->live);
    return (char *)memory + alignment;
}

static inline void budget_release(void *user, void *memory)
{
    size_t *begin = (size_t *)(void *)((char *)memory - 64);
    ((budget *)user)->live -= begin[0];
    free(begin);
}

static inline void try_change(test_run *run, esp_context *context, const char *name,
                              const change *what, const char *device)
{
    json_t *golden = golden_json(name);
    golden_model loaded;
    apply(golden, what);
    const char *folder = golden_folder(run, context, golden);
    esp_error problem = {0};
    esp_status status = golden_load(context, folder, device, ESP_COMPUTE_AUTO, &loaded, &problem);
    if (what->code == NULL) {
        CHECK_INT(status, ESP_OK);
        CHECK_TEXT(problem.message, "");
    } else {
        esp_status expected = what->status != ESP_OK ? what->status : ESP_BAD_FILE;
        test_check_failure(run, __FILE__, __LINE__, what->name, status, &problem, expected,
                           what->code);
        CHECK(loaded.model == NULL);
        CHECK(strstr(problem.message, folder) != NULL); /* the file is named */
        if (what->says != NULL && strstr(problem.message, what->says) == NULL) {
            test_fail(run, __FILE__, __LINE__, "\"%s\" does not name \"%s\"", problem.message,
                      what->says);
        }
    }
    golden_close(&loaded);
    json_decref(golden);
}

/* name: of the good description. */
static inline void check_model_changes(test_run *run, const char *name, const change *changes,
                                       int count)
{
    for (int i = 0; i < count; i++) {
        budget counted = {0};
        esp_context_options options = {.threads = 1,
                                       .allocator = {budget_allocate, budget_release, &counted}};
        esp_context *context = NULL;
        test_sub(run, "%s%s%s", changes[i].code != NULL ? changes[i].code : "",
                 changes[i].code != NULL ? ": " : "", changes[i].name);
        REQUIRE_OK(esp_context_create(&options, &context, error));
        try_change(run, context, name, &changes[i], i % 2 == 0 ? "cpu" : "ref");
        esp_context_free(context);
        CHECK_INT(counted.live, 0);
        CHECK(counted.most < 4 << 20);
    }
}

#endif
