/* decode(encode(W, mask)) is W masked, bit for bit, whatever the shape, pattern and dtype; the
 * layout promises exactly the bytes made; what is made passes its check and is the only encoding.
 * TEST_LONG=1: shapes up to 8192 x 8192 and many more of them. */
#include <math.h>

#include "weights.h"

static const char *const patterns[] = {"dense",
                                       "2:4",
                                       "4:8",
                                       "1:2",
                                       "1:4",
                                       "3:7",
                                       "1:16",
                                       "8:64",
                                       "5:100",
                                       "64:2:8",
                                       "64:2:5",
                                       "128:2:8",
                                       "3:2:7",
                                       "1:2:10",
                                       "16:2:64",
                                       "8:2:1024",
                                       "1048576:2:6",
                                       "panel:64@0.75",
                                       "panel:5@0.5",
                                       "panel:3@0.9",
                                       "unstructured@0.9",
                                       "unstructured@0.3",
                                       "block:32x32@0.8",
                                       "block:4x1@0.5",
                                       "block:3x7@0.25",
                                       "block:1x1@0.75",
                                       "block:65536x2@0.5",
                                       "rows@0.5",
                                       "rows@0.99",
                                       "cols@0.5",
                                       "cols@0.1"};
static const esp_dtype dtypes[] = {ESP_F32, ESP_F16, ESP_BF16};

static void check_layout(test_run *run, const esp_sparse *sparse, bool has_rows)
{
    esp_pattern pattern = esp_sparse_pattern(sparse);
    esp_sparse_part parts[ESP_SPARSE_MAX_PARTS];
    int count = 0;
    size_t promised = 0, actual = 0;
    int64_t out = esp_sparse_out_features(sparse), in = esp_sparse_in_features(sparse);
    CHECK_OK(esp_sparse_layout(&pattern, esp_sparse_dtype(sparse), out, in, has_rows, parts, &count,
                               error));
    CHECK_OK(esp_sparse_layout_bytes(&pattern, esp_sparse_dtype(sparse), out, in, has_rows,
                                     &promised, error));
    CHECK_INT(esp_sparse_part_count(sparse), count);
    uint32_t crc = 0;
    for (int i = 0; i < count; i++) {
        esp_sparse_part part = esp_sparse_get_part(sparse, i);
        CHECK_TEXT(part.name, parts[i].name);
        CHECK_INT(part.tensor.dtype, parts[i].tensor.dtype);
        CHECK_INT(part.tensor.rank, parts[i].tensor.rank);
        CHECK(memcmp(part.tensor.shape, parts[i].tensor.shape, sizeof part.tensor.shape) == 0);
        CHECK(esp_sparse_find_part(sparse, part.name) != NULL);
        actual += tensor_bytes(&part.tensor);
        crc = esp_crc32c(crc, part.tensor.data, tensor_bytes(&part.tensor));
    }
    CHECK_INT(actual, promised);
    CHECK_INT(esp_sparse_bytes(sparse), promised);
    CHECK_INT(esp_sparse_crc32c(sparse), crc);
}

static bool same_parts(const esp_sparse *a, const esp_sparse *b)
{
    bool same = esp_sparse_part_count(a) == esp_sparse_part_count(b);
    for (int i = 0; same && i < esp_sparse_part_count(a); i++) {
        esp_tensor x = esp_sparse_get_part(a, i).tensor, y = esp_sparse_get_part(b, i).tensor;
        size_t bytes = tensor_bytes(&x);
        same = bytes == tensor_bytes(&y) && (bytes == 0 || memcmp(x.data, y.data, bytes) == 0);
    }
    return same;
}

/* Parts handed in reverse order make the same weight. */
static void check_from_parts(test_run *run, esp_context *context, const esp_sparse *sparse)
{
    esp_pattern pattern = esp_sparse_pattern(sparse);
    esp_sparse_part parts[ESP_SPARSE_MAX_PARTS];
    int count = esp_sparse_part_count(sparse);
    for (int i = 0; i < count; i++) {
        parts[count - 1 - i] = esp_sparse_get_part(sparse, i);
    }
    esp_sparse *again = NULL;
    CHECK_OK(esp_sparse_from_parts(context, &pattern, esp_sparse_dtype(sparse),
                                   esp_sparse_out_features(sparse), esp_sparse_in_features(sparse),
                                   parts, count, &again, error));
    CHECK(again != NULL && same_parts(sparse, again));
    esp_sparse_free(again);
}

static bool same_bytes(const esp_tensor *a, const esp_tensor *b)
{
    size_t bytes = tensor_bytes(a);
    return bytes == tensor_bytes(b) && (bytes == 0 || memcmp(a->data, b->data, bytes) == 0);
}

/* Encodes dense under mask and checks everything; expected: what decoding must give. */
static void check_encoding(test_run *run, esp_context *context, const esp_pattern *pattern,
                           const esp_tensor *dense, const esp_mask *mask,
                           const esp_tensor *expected)
{
    esp_sparse *sparse = NULL, *again = NULL;
    CHECK_OK(esp_sparse_encode(context, pattern, dense, mask, &sparse, error));
    if (sparse == NULL) {
        return;
    }
    bool panel = pattern->kind == ESP_PATTERN_PANEL;
    check_layout(run, sparse, panel && esp_mask_rows(mask) != NULL);
    CHECK_OK(esp_sparse_check(sparse, error));
    check_from_parts(run, context, sparse);
    esp_tensor decoded = make_tensor(run, context, dense->dtype, dense->shape[0], dense->shape[1]);
    if (decoded.data != NULL && tensor_bytes(&decoded) > 0) {
        memset(decoded.data, 0x5a, tensor_bytes(&decoded));
    }
    CHECK_OK(esp_sparse_decode(sparse, &decoded, error));
    CHECK(same_bytes(&decoded, expected));
    /* Without a mask the zeros say it all, unless columns are free or rows are reordered. */
    bool free_columns = panel && pattern->v != 0 && pattern->m == 0;
    if (!free_columns && esp_mask_rows(mask) == NULL) {
        CHECK_OK(esp_sparse_encode(context, pattern, &decoded, NULL, &again, error));
        CHECK(again != NULL && same_parts(sparse, again));
    }
    esp_sparse_free(again);
    esp_sparse_free(sparse);
    esp_tensor_free(context, &decoded);
}

static void round_trip(test_run *run, esp_context *context, esp_random *random, const char *text,
                       esp_dtype dtype, int64_t out, int64_t in, bool with_rows)
{
    test_sub(run, "%s %s %lldx%lld%s", text, esp_dtype_short_name(dtype), (long long)out,
             (long long)in, with_rows ? " row order" : "");
    esp_pattern pattern = pattern_of(run, text);
    esp_tensor dense = hostile_tensor(run, context, random, dtype, out, in);
    esp_mask *mask = random_mask(run, context, random, &pattern, out, in, with_rows);
    esp_tensor expected = masked_copy(run, context, &dense, mask);
    check_encoding(run, context, &pattern, &dense, mask, &expected);
    esp_tensor applied = dense;
    CHECK_OK(esp_mask_apply(mask, &applied, error));
    CHECK(same_bytes(&applied, &expected));
    esp_mask_free(mask);
    esp_tensor_free(context, &dense);
    esp_tensor_free(context, &expected);
}

static int64_t log_uniform(esp_random *random, int64_t largest)
{
    return (int64_t)exp(esp_random_uniform(random) * log((double)largest + 1));
}

static void random_shapes(test_run *run)
{
    esp_context *context = test_context(run, 2);
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    bool full = getenv("TEST_LONG") != NULL;
    int64_t weights = full ? 8192 * 8192 : 60000;
    for (int i = 0; i < (full ? 40 : 6) * ESP_COUNT(patterns); i++) {
        int64_t out = log_uniform(&random, 8192), in = log_uniform(&random, 8192);
        while (out * in > weights) {
            out = log_uniform(&random, 8192);
            in = log_uniform(&random, 8192);
        }
        bool with_rows = esp_random_below(&random, 4) == 0;
        round_trip(run, context, &random, patterns[i % ESP_COUNT(patterns)],
                   dtypes[i / ESP_COUNT(patterns) % 3], out, in, with_rows);
    }
    test_context_free(run, context);
}

static void awkward_shapes(test_run *run)
{
    static const int64_t shapes[][2] = {{1, 1},   {1, 2},    {2, 3},    {5, 1}, {1, 65}, {63, 9},
                                        {65, 63}, {127, 64}, {129, 33}, {0, 8}, {8, 0},  {0, 0}};
    esp_context *context = test_context(run, 2);
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int s = 0; s < ESP_COUNT(shapes); s++) {
        for (int p = 0; p < ESP_COUNT(patterns); p++) {
            round_trip(run, context, &random, patterns[p], dtypes[(s + p) % 3], shapes[s][0],
                       shapes[s][1], (s + p) % 5 == 0);
        }
    }
    test_context_free(run, context);
}

/* Where 16-bit columns and rows end. */
static void sixteen_bit_borders(test_run *run)
{
    static const struct {
        const char *pattern;
        int64_t out, in;
        esp_dtype columns, rows;
    } cases[] = {
        {"2:2:8", 3, 65535, ESP_U16, ESP_U16},
        {"2:2:8", 3, 65536, ESP_U32, ESP_U16},
        {"2:2:8", 3, 65537, ESP_U32, ESP_U16},
        {"2:2:8", 3, 70001, ESP_U32, ESP_U16},
        {"panel:2@0.5", 3, 65535, ESP_U16, ESP_U16},
        {"panel:2@0.5", 3, 65536, ESP_U32, ESP_U16},
        {"panel:2@0.5", 3, 65537, ESP_U32, ESP_U16},
        {"panel:2@0.75", 3, 70001, ESP_U32, ESP_U16},
        {"2:4", 3, 70001, ESP_DTYPE_INVALID, ESP_U16},
        {"1:65536", 3, 70001, 0, 0},
        {"2:2:8", 65535, 5, ESP_U16, ESP_U16},
        {"2:2:8", 65536, 5, ESP_U16, ESP_U16},
        {"64:2:8", 65537, 5, ESP_U16, ESP_U32},
        {"2:4", 65537, 3, ESP_DTYPE_INVALID, ESP_U32},
        {"unstructured@0.9", 3, 65536, ESP_U16, ESP_DTYPE_INVALID},
        {"unstructured@0.9", 3, 65537, ESP_U32, ESP_DTYPE_INVALID},
        {"cols@0.5", 3, 65536, ESP_U16, ESP_DTYPE_INVALID},
        {"cols@0.5", 3, 65537, ESP_U32, ESP_DTYPE_INVALID},
        {"rows@0.5", 65536, 3, ESP_DTYPE_INVALID, ESP_U16},
        {"rows@0.5", 65537, 3, ESP_DTYPE_INVALID, ESP_U32},
        {"block:2x1@0.5", 3, 65536, ESP_U16, ESP_DTYPE_INVALID},
        {"block:2x1@0.5", 3, 65537, ESP_U32, ESP_DTYPE_INVALID},
    };
    esp_context *context = test_context(run, 2);
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < ESP_COUNT(cases); i++) {
        round_trip(run, context, &random, cases[i].pattern, dtypes[i % 3], cases[i].out,
                   cases[i].in, cases[i].rows != ESP_DTYPE_INVALID);
        esp_pattern pattern = pattern_of(run, cases[i].pattern);
        esp_sparse_part parts[ESP_SPARSE_MAX_PARTS];
        int count = 0;
        bool panel = pattern.kind == ESP_PATTERN_PANEL;
        CHECK_OK(esp_sparse_layout(&pattern, ESP_BF16, cases[i].out, cases[i].in,
                                   panel && cases[i].rows != 0, parts, &count, error));
        for (int k = 0; k < count; k++) {
            if (strcmp(parts[k].name, "columns") == 0 ||
                strcmp(parts[k].name, "block_columns") == 0) {
                CHECK_INT(parts[k].tensor.dtype, cases[i].columns);
            } else if (strcmp(parts[k].name, "rows") == 0) {
                CHECK_INT(parts[k].tensor.dtype, cases[i].rows);
            }
        }
    }
    test_context_free(run, context);
}

/* The largest layer of a 7B model. */
static void large_tensor(test_run *run)
{
    esp_context *context = test_context(run, 2);
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    static const char *const large[] = {
        "64:2:8",          "2:4",      "4:8",     "panel:64@0.75", "unstructured@0.9",
        "block:32x32@0.8", "rows@0.5", "cols@0.5"};
    bool full = getenv("TEST_LONG") != NULL;
    for (int i = 0; i < (full ? ESP_COUNT(large) : 1); i++) {
        round_trip(run, context, &random, large[i], ESP_BF16, 11008, 4096, false);
    }
    test_context_free(run, context);
}

/* Encoding does not depend on how many threads do it. */
static void threads_do_not_matter(test_run *run)
{
    esp_context *one = test_context(run, 1), *four = test_context(run, 4);
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < ESP_COUNT(patterns); i++) {
        test_sub(run, "%s", patterns[i]);
        esp_pattern pattern = pattern_of(run, patterns[i]);
        esp_tensor dense = hostile_tensor(run, one, &random, ESP_BF16, 300, 333);
        esp_mask *mask = random_mask(run, one, &random, &pattern, 300, 333, false);
        esp_sparse *a = NULL, *b = NULL;
        CHECK_OK(esp_sparse_encode(one, &pattern, &dense, mask, &a, error));
        CHECK_OK(esp_sparse_encode(four, &pattern, &dense, mask, &b, error));
        CHECK(a != NULL && b != NULL && same_parts(a, b));
        esp_sparse_free(a);
        esp_sparse_free(b);
        esp_mask_free(mask);
        esp_tensor_free(one, &dense);
    }
    esp_context_free(one);
    test_context_free(run, four);
}

/* Dense without a mask is verbatim: -0.0 stays. Under a mask it follows the common rule. */
static void dense_is_verbatim(test_run *run)
{
    esp_context *context = test_context(run, 1);
    uint16_t weights[4] = {0x8000, 0x7fc1, 0, 0x3f80};
    esp_tensor dense = {.dtype = ESP_BF16, .rank = 2, .shape = {2, 2}, .data = weights};
    esp_pattern pattern = {.kind = ESP_PATTERN_DENSE};
    esp_sparse *sparse = NULL;
    CHECK_OK(esp_sparse_encode(context, &pattern, &dense, NULL, &sparse, error));
    REQUIRE(sparse != NULL);
    CHECK_TEXT(esp_sparse_get_part(sparse, 0).name, "");
    CHECK(memcmp(esp_sparse_get_part(sparse, 0).tensor.data, weights, sizeof weights) == 0);
    CHECK_OK(esp_sparse_check(sparse, error));
    esp_sparse_free(sparse);
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"awkward shapes", awkward_shapes},
    {"random shapes", random_shapes},
    {"sixteen-bit borders", sixteen_bit_borders},
    {"large tensor", large_tensor},
    {"threads do not matter", threads_do_not_matter},
    {"dense is verbatim", dense_is_verbatim},
};
TEST_MAIN(cases)
