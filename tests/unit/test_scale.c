/* Compressed weights with columns scaled, and what is found of rows, against the same on their
 * dense form: small integers, so that sums and products are exact; and what scaling would lose. */
#include <math.h>

#include "weights.h"

static const char *const patterns[] = {"dense",       "2:4",           "4:2:8",
                                       "8:2:5",       "1:4",           "3:7",
                                       "panel:4@0.5", "block:4x8@0.5", "unstructured@0.6",
                                       "rows@0.3",    "cols@0.4"};
static const esp_dtype dtypes[] = {ESP_F32, ESP_F16, ESP_BF16};

/* Whole numbers from -8 to 8, as the type has them. */
static void fill(esp_random *random, esp_tensor *dense, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        float value = (float)esp_random_below(random, 17) - 8.0f;
        char stored[sizeof value];
        esp_narrow(dense->dtype, &value, 1, stored);
        size_t width = esp_dtype_bytes(dense->dtype);
        memcpy((char *)dense->data + (size_t)i * width, stored, width);
    }
}

static float *decoded(test_run *run, esp_context *context, const esp_sparse *sparse)
{
    int64_t count = sparse->out_features * sparse->in_features;
    float *values = calloc((size_t)count + 1, sizeof *values);
    esp_tensor dense =
        make_tensor(run, context, sparse->dtype, sparse->out_features, sparse->in_features);
    CHECK_OK(esp_sparse_decode(sparse, &dense, error));
    esp_widen(sparse->dtype, dense.data, count, values);
    esp_tensor_free(context, &dense);
    return values;
}

static void check_values(test_run *run, const esp_sparse *sparse)
{
    size_t width = esp_dtype_bytes(sparse->dtype);
    for (int i = 0; i < sparse->part_count; i++) { /* padding and missing weights too */
        const esp_sparse_part *part = &sparse->parts[i];
        bool holds = part->name[0] == '\0' || strcmp(part->name, "values") == 0;
        for (size_t k = 0; holds && k < tensor_bytes(&part->tensor) / width; k++) {
            uint32_t bits = bits_at(sparse->dtype, part->tensor.data, (int64_t)k);
            CHECK(bits != (width == 4 ? 0x80000000u : 0x8000u));
        }
    }
}

static void check_scaling(test_run *run, esp_context *context, esp_sparse *sparse,
                          const float *dense, const float *factors, const float *addends)
{
    int64_t out = sparse->out_features, in = sparse->in_features;
    esp_scaled_row *rows = calloc((size_t)out, sizeof *rows);
    const esp_scaling scaling = {factors, addends, sparse->dtype, rows};
    CHECK(esp_sparse_scale(sparse, &scaling));
    float *scaled = decoded(run, context, sparse);
    for (int64_t row = 0; row < out; row++) {
        double sum = 0, addend = 0, all = 0;
        for (int64_t c = 0; c < in; c++) {
            float value = dense[row * in + c] * factors[c];
            CHECK(scaled[row * in + c] == value && (value != 0 || !signbit(scaled[row * in + c])));
            sum += (double)value;
            all += (double)value * (double)value;
            addend += addends != NULL ? (double)dense[row * in + c] * (double)addends[c] : 0;
        }
        CHECK(rows[row].sum == sum && rows[row].addend == addend);
        CHECK(rows[row].lost == 0 && rows[row].all == all);
    }
    check_values(run, sparse);
    free(rows);
    free(scaled);
}

static void try_one(test_run *run, esp_context *context, esp_random *random, const char *text,
                    esp_dtype dtype, int64_t out, int64_t in, bool ordered)
{
    test_sub(run, "%s %s %lldx%lld%s", text, esp_dtype_short_name(dtype), (long long)out,
             (long long)in, ordered ? " row order" : "");
    esp_pattern pattern = pattern_of(run, text);
    esp_tensor weight = make_tensor(run, context, dtype, out, in);
    float *factors = calloc(2 * (size_t)in, sizeof *factors), *addends = factors + in;
    esp_sparse *sparse = NULL;
    fill(random, &weight, out * in);
    for (int64_t c = 0; c < in; c++) {
        factors[c] = (float)esp_random_below(random, 9) - 4.0f; /* 0 too */
        addends[c] = (float)esp_random_below(random, 100) - 50.0f;
    }
    esp_mask *mask = random_mask(run, context, random, &pattern, out, in, ordered);
    REQUIRE_OK(esp_sparse_encode(context, &pattern, &weight, mask, &sparse, error));
    float *dense = decoded(run, context, sparse);
    check_scaling(run, context, sparse, dense, factors, in % 2 == 0 ? NULL : addends);
    free(factors);
    free(dense);
    esp_sparse_free(sparse);
    esp_mask_free(mask);
    esp_tensor_free(context, &weight);
}

static void all_formats(test_run *run)
{
    static const int64_t sizes[][2] = {{1, 1}, {8, 40}, {13, 67}, {21, 700}};
    esp_context *context = test_context(run, 3);
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < ESP_COUNT(patterns) * ESP_COUNT(sizes) * ESP_COUNT(dtypes) * 2; i++) {
        const int64_t *size = sizes[i % ESP_COUNT(sizes)];
        int rest = i / ESP_COUNT(sizes);
        esp_dtype dtype = dtypes[rest % ESP_COUNT(dtypes)];
        rest /= ESP_COUNT(dtypes);
        try_one(run, context, &random, patterns[rest / 2], dtype, size[0], size[1], rest % 2 == 1);
    }
    test_context_free(run, context);
}

/* ---- what would be lost ---- */

static bool can(test_run *run, esp_context *context, esp_dtype from, esp_dtype to, float weight,
                float factor)
{
    esp_pattern pattern = pattern_of(run, "dense");
    esp_tensor dense = make_tensor(run, context, from, 3, 5);
    const float factors[] = {1, factor, factor, factor, factor};
    esp_scaled_row rows[3];
    const esp_scaling scaling = {factors, NULL, to, rows};
    esp_sparse *sparse = NULL;
    for (int64_t i = 0; i < 15; i++) {
        float value = i % 5 == 0 ? 0.0f : weight;
        esp_narrow(from, &value, 1, (char *)dense.data + (size_t)i * esp_dtype_bytes(from));
    }
    CHECK_OK(esp_sparse_encode(context, &pattern, &dense, NULL, &sparse, error));
    bool possible = esp_sparse_scale(sparse, &scaling);
    esp_sparse_free(sparse);
    esp_tensor_free(context, &dense);
    return possible;
}

static void losses(test_run *run)
{
    esp_context *context = test_context(run, 1);
    CHECK(can(run, context, ESP_F16, ESP_F16, 32768, 1.5f));
    CHECK(!can(run, context, ESP_F16, ESP_F16, 32768, 2));
    CHECK(can(run, context, ESP_BF16, ESP_BF16, 32768, 1e30f));
    CHECK(!can(run, context, ESP_BF16, ESP_BF16, 32768, 3e38f));
    CHECK(can(run, context, ESP_F32, ESP_F16, 60000, 1.01f));
    CHECK(!can(run, context, ESP_F32, ESP_F16, 60000, 1.1f));
    CHECK(can(run, context, ESP_F16, ESP_F16, 0.02f, 0.0123f));
    CHECK(!can(run, context, ESP_F16, ESP_F16, 0.02f, 1.23e-5f)); /* two bits are left */
    CHECK(can(run, context, ESP_BF16, ESP_BF16, 0.02f, 1.23e-5f));
    CHECK(can(run, context, ESP_F16, ESP_F16, 0, 3));
    CHECK(!can(run, context, ESP_F16, ESP_F16, 1, NAN));
    CHECK(!can(run, context, ESP_F16, ESP_F16, INFINITY, 1));
    test_context_free(run, context);
}

static const test_case cases[] = {{"all_formats", all_formats}, {"losses", losses}};
TEST_MAIN(cases)
