/* Weights of measured products: one random matrix, pruned by magnitude into each pattern that is
 * asked for. Pruning and encoding are done once; copies beyond the first are packed from the same
 * compressed weight into memory of their own. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench_job.h"

#define MAX_COPIES 16384

static void free_set(weight_set *set)
{
    for (int i = 0; i < set->count; i++) {
        esp_packed_free(set->copies[i]);
    }
    esp_packed_free(set->ref);
    esp_sparse_free(set->sparse);
    free(set->copies);
    free(set);
}

static void forget(weight_store *store)
{
    while (store->sets != NULL) {
        weight_set *set = store->sets;
        store->sets = set->after;
        free_set(set);
    }
    free(store->dense.data);
    store->dense.data = NULL;
}

void bench_weights_free(weight_store *store)
{
    forget(store);
    esp_device_close(store->ref);
    store->ref = NULL;
}

static esp_status make_values(weight_store *store, const esp_matmul_problem *problem,
                              esp_error *error)
{
    const bench_args *args = store->cli->args;
    if (store->dense.data != NULL && store->dtype == problem->weight_type &&
        store->out_features == problem->out_features &&
        store->in_features == problem->in_features) {
        return ESP_OK;
    }
    forget(store);
    store->dtype = problem->weight_type;
    store->out_features = problem->out_features;
    store->in_features = problem->in_features;
    store->dense = (esp_tensor){.dtype = problem->weight_type,
                                .rank = 2,
                                .shape = {problem->out_features, problem->in_features}};
    size_t bytes;
    return bench_random_matrix(problem->out_features, problem->in_features, problem->weight_type,
                               1.0f / sqrtf((float)problem->in_features), (uint64_t)args->seed * 16,
                               &store->dense.data, &bytes, error);
}

static esp_status encode_widened(weight_store *store, weight_set *set, esp_error *error)
{
    int64_t elems;
    size_t bytes;
    esp_tensor wide = store->dense;
    wide.dtype = ESP_F32;
    TRY(esp_tensor_size(&wide, &elems, &bytes, error));
    wide.data = bench_aligned_memory(bytes);
    if (wide.data == NULL) {
        return cli_fail_memory(error, "the weight in f32");
    }
    esp_widen(store->dense.dtype, store->dense.data, elems, wide.data);
    esp_status status =
        esp_sparse_encode(store->cli->context, &set->pattern, &wide, NULL, &set->sparse, error);
    free(wide.data);
    return status;
}

static esp_status encode(weight_store *store, weight_set *set, esp_error *error)
{
    esp_context *context = store->cli->context;
    esp_mask *mask = NULL;
    if (set->dtype != store->dense.dtype) {
        return encode_widened(store, set, error);
    }
    if (set->pattern.kind != ESP_PATTERN_DENSE) {
        TRY(esp_prune_mask(context, &store->dense, &set->pattern, NULL, &mask, NULL, error));
    }
    esp_status status =
        esp_sparse_encode(context, &set->pattern, &store->dense, mask, &set->sparse, error);
    esp_mask_free(mask);
    return status;
}

static bool same_pattern(const esp_pattern *a, const esp_pattern *b)
{
    char text_a[ESP_PATTERN_TEXT_MAX], text_b[ESP_PATTERN_TEXT_MAX];
    esp_pattern_print(a, text_a);
    esp_pattern_print(b, text_b);
    return strcmp(text_a, text_b) == 0;
}

static esp_status find_set(weight_store *store, const esp_pattern *pattern, esp_dtype dtype,
                           unsigned form, weight_set **found, esp_error *error)
{
    for (weight_set *set = store->sets; set != NULL; set = set->after) {
        if (set->dtype == dtype && set->form == form && same_pattern(&set->pattern, pattern)) {
            *found = set;
            return ESP_OK;
        }
    }
    weight_set *set = calloc(1, sizeof *set);
    if (set == NULL) {
        return cli_fail_memory(error, "a weight");
    }
    *set = (weight_set){.pattern = *pattern, .dtype = dtype, .form = form, .after = store->sets};
    store->sets = set;
    *found = set;
    return encode(store, set, error);
}

static esp_status pack_one(weight_store *store, weight_set *set, esp_error *error)
{
    if (set->count == set->capacity) {
        int capacity = 2 * set->capacity + 8;
        esp_packed **copies = realloc(set->copies, (size_t)capacity * sizeof(esp_packed *));
        if (copies == NULL) {
            return cli_fail_memory(error, "copies of the weight");
        }
        set->copies = copies;
        set->capacity = capacity;
    }
    const esp_pack_options options = {.forms = set->form};
    TRY(esp_pack_with(store->cli->device, set->sparse, &options, &set->copies[set->count], error));
    set->count++;
    return ESP_OK;
}

esp_status bench_weight(weight_store *store, const esp_matmul_problem *problem, bool widened,
                        unsigned form, size_t rotate_bytes, weight_set **found, esp_error *error)
{
    weight_set *set = NULL;
    if (!widened) { /* else the problem itself came before */
        TRY(make_values(store, problem, error));
    }
    TRY(find_set(store, &problem->pattern, widened ? ESP_F32 : problem->weight_type, form, &set,
                 error));
    if (set->count == 0) {
        TRY(pack_one(store, set, error));
        size_t compressed = esp_sparse_bytes(set->sparse);
        set->bytes = esp_packed_bytes(set->copies[0]);
        set->stream_bytes = compressed < set->bytes ? compressed : set->bytes;
    }
    size_t wanted = set->stream_bytes > 0 ? rotate_bytes / set->stream_bytes + 1 : 1;
    set->used = wanted < MAX_COPIES ? (int)wanted : MAX_COPIES;
    set->next = 0;
    while (set->count < set->used) {
        if (!progress_step(&store->cli->progress, "packing copies", set->count, set->used,
                           "weights")) {
            return cli_fail(error, ESP_CANCELLED, "cancelled", "the measurement was interrupted");
        }
        TRY(pack_one(store, set, error));
    }
    *found = set;
    return ESP_OK;
}

esp_status bench_weight_ref(weight_store *store, weight_set *set, esp_error *error)
{
    if (store->ref == NULL) {
        TRY(esp_device_open(store->cli->context, "ref", &store->ref, error));
    }
    return set->ref != NULL ? ESP_OK : esp_pack(store->ref, set->sparse, &set->ref, error);
}
