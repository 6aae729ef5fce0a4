/* Masks as objects: bits, columns, row order, and what they refuse. And memory: every allocation of
 * formats and pruning fails once, and nothing leaks or is half done. */
#include "prune/prune.h"
#include "weights.h"

static void bits_and_counts(test_run *run)
{
    static const int64_t widths[] = {0, 1, 63, 64, 65, 127, 128, 130};
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < ESP_COUNT(widths); i++) {
        test_sub(run, "%lld columns", (long long)widths[i]);
        esp_context *context = test_context(run, 2);
        int64_t in = widths[i], live = 0;
        bool plain[3][130] = {{false}};
        esp_mask *mask = NULL;
        REQUIRE_OK(esp_mask_create(context, 3, in, &mask, error));
        CHECK_INT(esp_mask_out_features(mask), 3);
        CHECK_INT(esp_mask_in_features(mask), in);
        CHECK_INT(esp_mask_count(mask), 0);
        for (int k = 0; in > 0 && k < 400; k++) {
            int64_t r = (int64_t)esp_random_below(&random, 3);
            int64_t c = (int64_t)esp_random_below(&random, (uint64_t)in);
            plain[r][c] = esp_random_below(&random, 2) != 0;
            esp_mask_set(mask, r, c, plain[r][c]);
        }
        for (int64_t k = 0; k < 3 * in; k++) {
            CHECK(esp_mask_get(mask, k / in, k % in) == plain[k / in][k % in]);
            live += plain[k / in][k % in];
        }
        CHECK_INT(esp_mask_count(mask), live);
        esp_mask_free(mask);
        test_context_free(run, context);
    }
    esp_mask_free(NULL);
    esp_sparse_free(NULL);
}

static void live_means_not_zero(test_run *run)
{
    static const esp_dtype dtypes[] = {ESP_F32, ESP_F16, ESP_BF16};
    esp_context *context = test_context(run, 2);
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int t = 0; t < 3; t++) {
        test_sub(run, "%s", esp_dtype_short_name(dtypes[t]));
        esp_tensor dense = hostile_tensor(run, context, &random, dtypes[t], 37, 201);
        esp_mask *mask = NULL;
        REQUIRE_OK(esp_mask_from_dense(context, &dense, &mask, error));
        uint32_t magnitude = t == 0 ? 0x7fffffffu : 0x7fffu;
        for (int64_t k = 0; k < 37 * 201; k++) {
            bool live = (bits_at(dtypes[t], dense.data, k) & magnitude) != 0;
            CHECK(esp_mask_get(mask, k / 201, k % 201) == live);
        }
        esp_mask_free(mask);
        esp_tensor_free(context, &dense);
    }
    test_context_free(run, context);
}

static void columns_of_panels(test_run *run)
{
    enum { PAD = -1 };
    static const struct {
        const char *name;
        int v, kept, columns[16];
        bool right;
    } rows[] = {
        {"right", 2, 8, {0, 1, 2, 3, 5, 6, 7, PAD, 1, 3, 5, 7, 0, 2, PAD, PAD}, true},
        {"groups in any order", 4, 8, {4, 5, 6, 7, 0, 1, 2, 3}, true},
        {"all padding", 9, 4, {PAD, PAD, PAD, PAD}, true},
        {"not ascending", 4, 4, {0, 2, 1, 3}, false},
        {"twice in a group", 4, 4, {0, 1, 1, 3}, false},
        {"twice in a panel", 4, 8, {0, 1, 2, 3, 3, 4, 5, 6}, false},
        {"padding first", 4, 4, {PAD, 0, 1, 2}, false},
        {"out of range", 4, 4, {0, 1, 2, 8}, false},
        {"no multiple of four", 4, 6, {0, 1, 2, 3, 4, 5}, false},
        {"nothing kept", 4, 0, {0}, false},
        {"no rows", 0, 4, {0, 1, 2, 3}, false},
        {"wrong in the last panel", 2, 4, {0, 1, 2, 3, 4, 5, 7, 6}, false},
    };
    esp_context *context = test_context(run, 1);
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s", rows[i].name);
        uint32_t columns[16];
        for (int k = 0; k < 16; k++) {
            columns[k] = rows[i].columns[k] == PAD ? UINT32_MAX : (uint32_t)rows[i].columns[k];
        }
        esp_mask *mask = NULL;
        int64_t v = 77, kept = 77;
        REQUIRE_OK(esp_mask_create(context, 4, 8, &mask, error));
        CHECK(esp_mask_columns(mask, &v, &kept) == NULL && v == 77);
        if (rows[i].right) {
            CHECK_OK(esp_mask_set_columns(mask, rows[i].v, rows[i].kept, columns, error));
            CHECK_OK(esp_mask_set_columns(mask, rows[i].v, rows[i].kept, columns, error));
            const uint32_t *set = esp_mask_columns(mask, &v, &kept);
            CHECK(set != NULL && v == rows[i].v && kept == rows[i].kept);
            CHECK(set != NULL && memcmp(set, columns, 4 * (size_t)kept) == 0);
        } else {
            CHECK_FAILS(esp_mask_set_columns(mask, rows[i].v, rows[i].kept, columns, error),
                        ESP_BAD_ARGUMENT, "mask.bad_columns");
            CHECK(esp_mask_columns(mask, &v, &kept) == NULL);
        }
        esp_mask_free(mask);
    }
    test_context_free(run, context);
}

static void row_orders(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_mask *mask = NULL;
    REQUIRE_OK(esp_mask_create(context, 3, 8, &mask, error));
    CHECK(esp_mask_rows(mask) == NULL);
    CHECK_FAILS(esp_mask_set_rows(mask, (const uint32_t[]){0, 1, 3}, error), ESP_BAD_ARGUMENT,
                "mask.bad_rows");
    CHECK_FAILS(esp_mask_set_rows(mask, (const uint32_t[]){0, 1, 1}, error), ESP_BAD_ARGUMENT,
                "mask.bad_rows");
    CHECK(esp_mask_rows(mask) == NULL);
    CHECK_OK(esp_mask_set_rows(mask, (const uint32_t[]){0, 1, 2}, error));
    CHECK_OK(esp_mask_set_rows(mask, (const uint32_t[]){2, 0, 1}, error));
    CHECK(memcmp(esp_mask_rows(mask), (const uint32_t[]){2, 0, 1}, 12) == 0);
    esp_mask_free(mask);
    test_context_free(run, context);
}

static void refusals(test_run *run)
{
    esp_context *context = test_context(run, 1);
    float data[8] = {0};
    esp_tensor right = {.dtype = ESP_F32, .rank = 2, .shape = {2, 4}, .data = data};
    esp_tensor vector = {.dtype = ESP_F32, .rank = 1, .shape = {8}, .data = data};
    esp_tensor integers = {.dtype = ESP_I32, .rank = 2, .shape = {2, 4}, .data = data};
    esp_mask *mask = NULL;
    CHECK_FAILS(esp_mask_create(context, -1, 4, &mask, error), ESP_BAD_ARGUMENT, "mask.bad_shape");
    CHECK_FAILS(esp_mask_create(context, 4, -1, &mask, error), ESP_BAD_ARGUMENT, "mask.bad_shape");
    CHECK_FAILS(esp_mask_create(context, INT64_MAX, INT64_MAX, &mask, error), ESP_OUT_OF_MEMORY,
                "memory.exhausted");
    CHECK_FAILS(esp_mask_from_dense(context, &vector, &mask, error), ESP_BAD_ARGUMENT,
                "mask.bad_tensor");
    CHECK_FAILS(esp_mask_from_dense(context, &integers, &mask, error), ESP_BAD_ARGUMENT,
                "mask.bad_tensor");
    CHECK(mask == NULL);
    REQUIRE_OK(esp_mask_create(context, 4, 2, &mask, error));
    CHECK_FAILS(esp_mask_apply(mask, &right, error), ESP_BAD_ARGUMENT, "mask.shape_mismatch");
    CHECK_FAILS(esp_mask_apply(mask, &vector, error), ESP_BAD_ARGUMENT, "mask.bad_tensor");
    esp_mask_free(mask);
    test_context_free(run, context);
}

/* ---- memory ---- */

typedef struct counting {
    long until_failure; /* allocations that still succeed */
    long live;
    bool failed;
} counting;

static void *allocate(void *user, size_t bytes, size_t alignment)
{
    counting *state = user;
    if (state->until_failure-- == 0) {
        state->failed = true;
        return NULL;
    }
    state->live++;
    return aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

static void release(void *user, void *memory)
{
    ((counting *)user)->live--;
    free(memory);
}

/* The masks of the other doors, and coordinates. */
static esp_status other_ways(esp_context *context, const esp_pattern *pattern,
                             const esp_tensor *dense, const esp_sparse *sparse)
{
    static const esp_weight_norm_options options = {0.5, 2, 4, 3, ESP_NORM_L1};
    esp_mask *mask = NULL, *second = NULL, *two_way = NULL;
    esp_coo coo = {0};
    esp_sparse *again = NULL;
    esp_status status = esp_weight_norm_mask(context, dense, &options, NULL, &mask, NULL);
    if (status == ESP_OK) {
        status = esp_weight_norm_mask(context, dense, &options, mask, &second, NULL);
    }
    if (status == ESP_OK) {
        status = esp_two_way_mask(context, dense, ESP_TWO_WAY_EXACT, &two_way, NULL);
    }
    if (status == ESP_OK) {
        status = esp_sparse_to_coo(sparse, &coo, NULL);
    }
    if (status == ESP_OK) {
        status = esp_sparse_from_coo(context, pattern, &coo, &again, NULL);
    }
    esp_sparse_free(again);
    esp_coo_free(context, &coo);
    esp_mask_free(two_way);
    esp_mask_free(second);
    esp_mask_free(mask);
    return status;
}

/* The way of a weight: prune, encode, take apart, put together, check, decode. */
static esp_status whole_way(esp_context *context, const esp_pattern *pattern,
                            const esp_tensor *dense, esp_tensor *decoded)
{
    static const uint32_t rows[] = {5, 4, 3, 2, 1, 0};
    esp_mask *mask = NULL;
    esp_sparse *sparse = NULL, *again = NULL;
    esp_mask_report report;
    esp_sparse_part parts[ESP_SPARSE_MAX_PARTS];
    esp_status status = esp_prune_mask(context, dense, pattern, NULL, &mask, &report, NULL);
    if (status == ESP_OK && pattern->kind == ESP_PATTERN_PANEL && pattern->v == 0) {
        status = esp_mask_set_rows(mask, rows, NULL);
    }
    if (status == ESP_OK) {
        status = esp_sparse_encode(context, pattern, dense, mask, &sparse, NULL);
    }
    for (int i = 0; status == ESP_OK && i < esp_sparse_part_count(sparse); i++) {
        parts[i] = esp_sparse_get_part(sparse, i);
    }
    if (status == ESP_OK) {
        status =
            esp_sparse_from_parts(context, pattern, dense->dtype, dense->shape[0], dense->shape[1],
                                  parts, esp_sparse_part_count(sparse), &again, NULL);
    }
    if (status == ESP_OK) {
        status = esp_sparse_check(again, NULL);
    }
    if (status == ESP_OK) {
        status = esp_sparse_decode(again, decoded, NULL);
    }
    if (status == ESP_OK && pattern->kind == ESP_PATTERN_UNSTRUCTURED) {
        status = other_ways(context, pattern, dense, again);
    }
    bool free_columns = pattern->v != 0 && pattern->m == 0;
    if (status == ESP_OK && !free_columns) {
        esp_sparse_free(again);
        again = NULL;
        status = esp_sparse_encode(context, pattern, decoded, NULL, &again, NULL);
    }
    esp_sparse_free(again);
    esp_sparse_free(sparse);
    esp_mask_free(mask);
    return status;
}

static void every_allocation_fails_once(test_run *run)
{
    static const char *const patterns[] = {
        "dense",         "2:4",      "4:8",          "2:20",
        "4:2:8",         "4:2:16",   "panel:4@0.75", "unstructured@0.5",
        "block:2x5@0.5", "rows@0.5", "cols@0.5"};
    float data[6 * 24], decoded_data[6 * 24];
    for (int i = 0; i < ESP_COUNT(data); i++) {
        data[i] = (float)(i * 37 % 101) - 50;
    }
    esp_tensor dense = {.dtype = ESP_F32, .rank = 2, .shape = {6, 24}, .data = data};
    esp_tensor decoded = dense;
    decoded.data = decoded_data;
    for (int i = 0; i < ESP_COUNT(patterns); i++) {
        test_sub(run, "%s", patterns[i]);
        esp_pattern pattern = pattern_of(run, patterns[i]);
        bool complete = false;
        for (long fail_at = 0; fail_at < 1000 && !complete; fail_at++) {
            counting state = {.until_failure = -1};
            esp_context_options options = {.threads = 1, .allocator = {allocate, release, &state}};
            esp_context *context = NULL;
            REQUIRE_OK(esp_context_create(&options, &context, error));
            long before = state.live;
            state.until_failure = fail_at;
            esp_status status = whole_way(context, &pattern, &dense, &decoded);
            complete = !state.failed;
            CHECK_INT(status, state.failed ? ESP_OUT_OF_MEMORY : ESP_OK);
            CHECK_INT(state.live, before);
            esp_context_free(context);
            CHECK_INT(state.live, 0);
            CHECK(!complete || fail_at > 3);
        }
        CHECK(complete);
    }
}

static const test_case cases[] = {
    {"bits and counts", bits_and_counts},
    {"live means not zero", live_means_not_zero},
    {"columns of panels", columns_of_panels},
    {"row orders", row_orders},
    {"refusals", refusals},
    {"every allocation fails once", every_allocation_fails_once},
};
TEST_MAIN(cases)
