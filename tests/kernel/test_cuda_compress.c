/* Weights made on a GPU against those made on the host, bit for bit: masks against esp_prune_mask,
 * packed bytes against esp_sparse_encode and esp_pack. Shapes and groups that divide nothing,
 * aligned and unaligned rows, ties, NaN, infinities and -0.0. What is refused:
 * test_cuda_compress_refusals.c. Without a GPU every case is skipped. */
#include "device_weight.h"

#include "cuda/room.h"

/* ---- packed bytes ---- */

static void *download(test_run *run, esp_device *device, const void *from, size_t bytes)
{
    void *to = malloc(bytes);
    CHECK_OK(esp_device_download(device, to, from, bytes, error));
    return to;
}

static void compare_part(test_run *run, esp_device *device, const char *name, const void *expected,
                         const void *actual, size_t bytes)
{
    unsigned char *a = download(run, device, expected, bytes);
    unsigned char *b = download(run, device, actual, bytes);
    size_t at = 0;
    while (at < bytes && a[at] == b[at]) {
        at++;
    }
    if (at < bytes) {
        test_fail(run, __FILE__, __LINE__, "%s: byte %zu of %zu is %02x, expected %02x", name, at,
                  bytes, b[at], a[at]);
    }
    free(a);
    free(b);
}

static void compare_packed(test_run *run, esp_device *device, const esp_packed *expected,
                           const esp_packed *actual)
{
    const gpu_panels *a = &((const cuda_weight *)expected->state)->panels;
    const gpu_panels *b = &((const cuda_weight *)actual->state)->panels;
    size_t blocks = (size_t)a->panels * (size_t)a->blocks, steps = (size_t)a->steps;
    CHECK_INT(b->panels, a->panels);
    CHECK_INT(b->blocks, a->blocks);
    CHECK_INT(b->steps, a->steps);
    CHECK_INT(b->panel_rows, a->panel_rows);
    CHECK_INT(b->block_rows, a->block_rows);
    CHECK_INT(b->wide, a->wide);
    CHECK(((const cuda_weight *)expected->state)->pairs_together ==
          ((const cuda_weight *)actual->state)->pairs_together);
    if (test_failed(run)) {
        return;
    }
    compare_part(run, device, "rows", a->rows, b->rows, blocks * (size_t)a->block_rows * 4);
    if (a->columns != NULL) {
        compare_part(run, device, "columns", a->columns, b->columns,
                     (size_t)a->panels * steps * GPU_STEP_COLUMNS * (a->wide ? 4 : 2));
    }
    compare_part(run, device, "data", a->data, b->data,
                 blocks * steps * (size_t)a->block_rows * GPU_ROW_BYTES);
}

/* NULL when what lives does not fit the pattern. */
static esp_packed *packed_on_host(test_run *run, esp_context *context, esp_device *device,
                                  const esp_pattern *pattern, const esp_tensor *dense,
                                  const esp_mask *mask)
{
    esp_sparse *sparse = NULL;
    esp_packed *packed = NULL;
    esp_error why = {0};
    if (esp_sparse_encode(context, pattern, dense, mask, &sparse, &why) != ESP_OK) {
        CHECK_TEXT(why.code, "format.mask_mismatch");
        return NULL;
    }
    CHECK_OK(esp_pack(device, sparse, &packed, error));
    esp_sparse_free(sparse);
    return packed;
}

/* Compresses on the device what was packed on the host, or was refused there. */
static void compress_as(test_run *run, esp_device *device, const esp_packed *expected,
                        esp_packed *made, const weight *w, const esp_device_mask *mask)
{
    if (expected == NULL) {
        CHECK_FAILS(esp_packed_compress(made, &w->dense, mask, NULL, error), ESP_CHECK_FAILED,
                    "format.mask_mismatch");
        return;
    }
    CHECK_OK(esp_packed_compress(made, &w->dense, mask, NULL, error));
    compare_packed(run, device, expected, made);
    CHECK_INT(esp_packed_bytes(made), esp_packed_bytes(expected));
}

/* ---- equal to the host ---- */

typedef struct weight_case {
    const char *pattern;
    int64_t out, in, stride, offset;
    esp_dtype dtype;
    bool special;
} weight_case;

static const weight_case weights[] = {
    {"2:4", 64, 64, 0, 0, ESP_F16, false},        {"2:4", 200, 263, 0, 0, ESP_BF16, true},
    {"2:4", 130, 1000, 1008, 8, ESP_F16, true},   {"2:4", 3, 5, 7, 1, ESP_F16, false},
    {"2:4", 1, 1, 0, 0, ESP_BF16, false},         {"64:2:8", 128, 256, 0, 0, ESP_F16, false},
    {"64:2:8", 200, 1403, 0, 0, ESP_BF16, true},  {"128:2:8", 300, 512, 520, 0, ESP_F16, true},
    {"64:2:5", 150, 703, 0, 0, ESP_F16, true},    {"64:2:5", 64, 640, 641, 3, ESP_BF16, false},
    {"256:2:16", 300, 500, 0, 0, ESP_F16, true},  {"64:2:16", 192, 2048, 0, 0, ESP_BF16, false},
    {"5:2:7", 22, 90, 0, 0, ESP_F16, true},       {"1:2:6", 9, 100, 0, 0, ESP_BF16, true},
    {"64:2:10", 130, 333, 0, 0, ESP_F16, true},   {"100:2:40", 150, 900, 0, 0, ESP_F16, true},
    {"100:2:64", 150, 900, 0, 0, ESP_F16, false}, {"32:2:1000", 70, 2500, 0, 0, ESP_BF16, true},
    {"500:2:9", 300, 66001, 0, 0, ESP_F16, false}};

static const weight_case free_weights[] = {{"panel:64@0.5", 128, 256, 0, 0, ESP_F16, false},
                                           {"panel:24@0.8", 77, 85, 0, 0, ESP_BF16, true},
                                           {"panel:300@0.9", 500, 1003, 1008, 0, ESP_F16, true},
                                           {"panel:1@0.5", 5, 200, 0, 0, ESP_F16, false},
                                           {"panel:7@0.75", 20, 140001, 0, 0, ESP_F16, false}};

static weight_case case_of(test_run *run, const weight_case *list, int i, esp_pattern *pattern)
{
    CHECK_OK(esp_pattern_parse(list[i].pattern, pattern, error));
    test_sub(run, "%s/%s/%lldx%lld stride %lld offset %lld", list[i].pattern,
             esp_dtype_short_name(list[i].dtype), (long long)list[i].out, (long long)list[i].in,
             (long long)list[i].stride, (long long)list[i].offset);
    return list[i];
}

/* Compresses what the host's mask keeps, with and without the mask, and compares. */
static void compress_and_compare(test_run *run, esp_context *context, esp_device *device,
                                 const weight_case *c, const esp_pattern *pattern, uint64_t seed)
{
    weight w = weight_make(run, context, device, c->dtype, c->out, c->in, c->stride, c->offset,
                           c->special, seed);
    esp_mask *mask = NULL;
    esp_packed *made = NULL;
    device_mask m = mask_make(device, pattern, c->out, c->in);
    CHECK_OK(esp_prune_mask(context, &w.host, pattern, NULL, &mask, NULL, error));
    CHECK_OK(esp_packed_create(device, pattern, c->dtype, c->out, c->in, &made, error));
    if (mask != NULL && made != NULL) {
        mask_upload(run, device, mask, &m);
        esp_packed *expected = packed_on_host(run, context, device, pattern, &w.host, mask);
        CHECK(expected != NULL);
        compress_as(run, device, expected, made, &w, &m.mask);
        esp_packed_free(expected);
        /* the non-zeros of an already pruned weight */
        CHECK_OK(esp_mask_apply(mask, &w.host, error));
        int64_t stride = c->stride != 0 ? c->stride : c->in;
        for (int64_t o = 0; o < c->out; o++) {
            CHECK_OK(esp_device_upload(device, (char *)w.memory + (c->offset + o * stride) * 2,
                                       (const char *)w.host.data + o * c->in * 2, (size_t)c->in * 2,
                                       error));
        }
        expected = packed_on_host(run, context, device, pattern, &w.host, NULL);
        compress_as(run, device, expected, made, &w, NULL);
        esp_packed_free(expected);
    }
    esp_packed_free(made);
    esp_mask_free(mask);
    mask_free(device, &m);
    weight_free(context, device, &w);
}

static void compressing(test_run *run)
{
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    esp_pattern pattern;
    for (int i = 0; device != NULL && i < ESP_COUNT(weights); i++) {
        weight_case c = case_of(run, weights, i, &pattern);
        compress_and_compare(run, context, device, &c, &pattern, test_seed(run) + (uint64_t)i);
    }
    for (int i = 0; device != NULL && i < ESP_COUNT(free_weights); i++) {
        weight_case c = case_of(run, free_weights, i, &pattern);
        compress_and_compare(run, context, device, &c, &pattern, test_seed(run) + (uint64_t)i);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* A few of them, for the tools that watch every access to memory. */
static void compressing_for_sanitizers(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_device *device = open_gpu(run, context);
    esp_pattern pattern;
    for (int i = 0; device != NULL && i < ESP_COUNT(weights); i += 3) {
        weight_case c = case_of(run, weights, i, &pattern);
        if (c.out * c.in < 1000000) {
            compress_and_compare(run, context, device, &c, &pattern, test_seed(run));
        }
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* A weight that was only created is the one whose entries are all zero. */
static void created_weights_are_zero(test_run *run)
{
    static const char *const texts[] = {"2:4", "64:2:8", "panel:100@0.7"};
    esp_context *context = test_context(run, 1);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(texts); i++) {
        esp_pattern pattern;
        esp_tensor zeros = {0};
        esp_packed *made = NULL;
        test_sub(run, "%s", texts[i]);
        CHECK_OK(esp_pattern_parse(texts[i], &pattern, error));
        CHECK_OK(
            esp_tensor_create(context, ESP_F16, 2, (const int64_t[]){150, 300}, &zeros, error));
        memset(zeros.data, 0, 150 * 300 * 2);
        CHECK_OK(esp_packed_create(device, &pattern, ESP_F16, 150, 300, &made, error));
        esp_packed *expected = packed_on_host(run, context, device, &pattern, &zeros, NULL);
        const gpu_panels *a = &((const cuda_weight *)expected->state)->panels;
        const gpu_panels *b = &((const cuda_weight *)made->state)->panels;
        size_t blocks = (size_t)a->panels * (size_t)a->blocks;
        compare_part(run, device, "rows", a->rows, b->rows, blocks * (size_t)a->block_rows * 4);
        compare_part(run, device, "data", a->data, b->data,
                     blocks * (size_t)a->steps * (size_t)a->block_rows * GPU_ROW_BYTES);
        esp_packed_free(expected);
        esp_packed_free(made);
        esp_tensor_free(context, &zeros);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

static void prune_and_compare(test_run *run, esp_context *context, esp_device *device,
                              const weight *w, const esp_pattern *pattern,
                              const esp_mask_options *options)
{
    int64_t out = w->dense.out_features, in = w->dense.in_features;
    esp_mask *expected = NULL;
    device_mask m = mask_make(device, pattern, out, in);
    CHECK_OK(esp_prune_mask(context, &w->host, pattern, options, &expected, NULL, error));
    CHECK_OK(esp_device_prune(device, &w->dense, pattern, options, &m.mask, NULL, error));
    uint64_t *bits = download(run, device, m.mask.bits, m.bits_bytes);
    int64_t words = esp_ceil_div(in, 64);
    for (int64_t i = 0; i < out * words; i++) {
        if (bits[i] != esp_mask_row(expected, 0)[i]) {
            test_fail(run, __FILE__, __LINE__,
                      "score %d search %d: row %lld, columns from %lld: %016llx, expected %016llx",
                      (int)options->score, (int)options->search, (long long)(i / words),
                      (long long)(i % words * 64), (unsigned long long)bits[i],
                      (unsigned long long)esp_mask_row(expected, 0)[i]);
            break;
        }
    }
    free(bits);
    esp_mask_free(expected);
    mask_free(device, &m);
}

static void pruning(test_run *run)
{
    esp_context *context = test_context(run, 2);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(weights); i++) {
        esp_pattern pattern;
        weight_case c = case_of(run, weights, i, &pattern);
        weight w = weight_make(run, context, device, c.dtype, c.out, c.in, c.stride, c.offset,
                               c.special, test_seed(run) + (uint64_t)i);
        for (int score = ESP_SCORE_ABS; score <= ESP_SCORE_SQUARE; score++) {
            for (int search = ESP_SEARCH_AUTO; search <= ESP_SEARCH_SWAPS; search++) {
                esp_mask_options options = {.score = (esp_score)score,
                                            .search = (esp_search)search};
                bool able = search != ESP_SEARCH_EXACT || pattern.m <= ESP_EXACT_WIDEST;
                if (able && (pattern.v != 0 || search == ESP_SEARCH_AUTO)) {
                    prune_and_compare(run, context, device, &w, &pattern, &options);
                }
            }
        }
        weight_free(context, device, &w);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

static const test_case cases[] = {{"compressing", compressing},
                                  {"compressing_for_sanitizers", compressing_for_sanitizers},
                                  {"created_weights_are_zero", created_weights_are_zero},
                                  {"pruning", pruning}};
TEST_MAIN(cases)
