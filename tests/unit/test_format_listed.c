/* csr, bsr, rows and cols: every broken invariant has its code and its place, masks that do not fit
 * are named, damaged contents never lead outside memory, and coordinates come and go. (Round trips,
 * golden bytes and the independent reader: with the other formats.) */
#include <stdio.h>

#include "weights.h"

/* bf16, 4 x 6. unstructured@0.5 keeps 12 of 24, 10 live, so (0, 1) and (0, 2) are filled.
 * block:3x4@0.25 keeps 3 of 4 blocks, rows@0.25 3 of 4 rows, cols@0.5 3 of 6 columns. */
static const float example[24] = {1, 0, 0, 2, 0, 3, 0, 0, 0, 0, 0, 0,
                                  4, 5, 0, 6, 0, 7, 8, 0, 0, 9, 0, 10};
static const float narrow[24] = {1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0,
                                 4, 0, 0, 6, 0, 0, 8, 0, 0, 9, 0, 0};

static esp_sparse *example_weight(test_run *run, esp_context *context, const char *text)
{
    uint16_t halves[24];
    bool columns = strncmp(text, "cols", 4) == 0 || strncmp(text, "block", 5) == 0;
    esp_narrow(ESP_BF16, columns ? narrow : example, 24, halves);
    esp_tensor dense = {.dtype = ESP_BF16, .rank = 2, .shape = {4, 6}, .data = halves};
    esp_pattern pattern = pattern_of(run, text);
    esp_sparse *sparse = NULL;
    CHECK_OK(esp_sparse_encode(context, &pattern, &dense, NULL, &sparse, error));
    CHECK_OK(esp_sparse_check(sparse, error));
    return sparse;
}

static uint8_t *part_data(const esp_sparse *sparse, const char *name)
{
    const esp_tensor *part = esp_sparse_find_part(sparse, name);
    return part->data;
}

static void broken_contents(test_run *run)
{
    static const struct {
        const char *pattern, *part;
        int at;
        uint8_t byte;
        const char *code, *place;
    } rows[] = {
        /* columns 0 1 2 3 5 | | 0 1 3 5 | 0 3 5, offsets 0 5 5 9 12 */
        {"unstructured@0.5", "columns", 8, 6, "sparse.index_out_of_range", "row 0, entry 4"},
        {"unstructured@0.5", "columns", 11, 1, "sparse.index_out_of_range", "row 2, entry 0"},
        {"unstructured@0.5", "columns", 6, 2, "sparse.indices_not_ascending", "row 0, entry 3"},
        {"unstructured@0.5", "columns", 12, 0, "sparse.indices_not_ascending", "row 2, entry 1"},
        {"unstructured@0.5", "values", 3, 0x80, "sparse.negative_zero", "row 0, entry 1"},
        {"unstructured@0.5", "row_offsets", 0, 1, "sparse.offsets_wrong_ends", "from 1 to 12"},
        {"unstructured@0.5", "row_offsets", 16, 11, "sparse.offsets_wrong_ends", "from 0 to 11"},
        {"unstructured@0.5", "row_offsets", 17, 1, "sparse.offsets_wrong_ends", "from 0 to 268"},
        {"unstructured@0.5", "row_offsets", 8, 3, "sparse.offsets_not_increasing", "row 1"},
        {"unstructured@0.5", "row_offsets", 4, 7, "sparse.offsets_not_increasing", "row 0"},
        {"unstructured@0.5", "row_offsets", 15, 9, "sparse.offsets_not_increasing", "row 2"},
        /* blocks 0 1 | 0, of 3 x 4 in 4 x 6; block 1 is a zero one */
        {"block:3x4@0.25", "block_columns", 2, 2, "sparse.index_out_of_range",
         "block row 0, entry 1"},
        {"block:3x4@0.25", "block_columns", 2, 0, "sparse.indices_not_ascending",
         "block row 0, entry 1"},
        {"block:3x4@0.25", "block_row_offsets", 4, 3, "sparse.offsets_not_increasing",
         "block row 0"},
        {"block:3x4@0.25", "block_row_offsets", 8, 2, "sparse.offsets_wrong_ends", "from 0 to 2"},
        {"block:3x4@0.25", "values", 2 * 14 + 1, 0x3f, "sparse.padding_not_zero",
         "block row 0, entry 1"},
        {"block:3x4@0.25", "values", 2 * 28 + 1, 0x3f, "sparse.padding_not_zero",
         "block row 1, entry 0"},
        {"block:3x4@0.25", "values", 2 * 1 + 1, 0x80, "sparse.negative_zero",
         "block row 0, entry 0"},
        {"block:3x4@0.25", "values", 2 * 14 + 1, 0x80, "sparse.negative_zero",
         "block row 0, entry 1"},
        /* rows 0 2 3 */
        {"rows@0.25", "rows", 4, 4, "sparse.index_out_of_range", "entry 2"},
        {"rows@0.25", "rows", 2, 0, "sparse.indices_not_ascending", "entry 1"},
        {"rows@0.25", "values", 3, 0x80, "sparse.negative_zero", "stored row 0, entry 1"},
        /* columns 0 1 3, column 1 a zero one */
        {"cols@0.5", "columns", 4, 6, "sparse.index_out_of_range", "entry 2"},
        {"cols@0.5", "columns", 4, 1, "sparse.indices_not_ascending", "entry 2"},
        {"cols@0.5", "columns", 2, 2, "sparse.fill_not_canonical", "entry 1"},
        {"cols@0.5", "values", 3, 0x80, "sparse.negative_zero", "stored row 0, entry 1"},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s %s[%d] = %02x: %s", rows[i].pattern, rows[i].part, rows[i].at,
                 rows[i].byte, rows[i].code);
        esp_context *context = test_context(run, 2);
        esp_sparse *sparse = example_weight(run, context, rows[i].pattern);
        REQUIRE(sparse != NULL);
        part_data(sparse, rows[i].part)[rows[i].at] = rows[i].byte;
        esp_error fault = {0};
        esp_status status = esp_sparse_check(sparse, &fault);
        test_check_failure(run, __FILE__, __LINE__, "check", status, &fault, ESP_BAD_FILE,
                           rows[i].code);
        if (strstr(fault.message, rows[i].place) == NULL ||
            strncmp(fault.message, rows[i].part, strlen(rows[i].part)) != 0) {
            test_fail(run, __FILE__, __LINE__, "does not name %s, %s: %s", rows[i].part,
                      rows[i].place, fault.message);
        }
        esp_sparse_free(sparse);
        test_context_free(run, context);
    }
}

/* Zeros that fill up anywhere but at the lowest free place. */
static void fills_that_are_not_lowest(test_run *run)
{
    esp_context *context = test_context(run, 1);
    test_sub(run, "csr, a gap in the same row");
    esp_sparse *sparse = example_weight(run, context, "unstructured@0.5");
    uint16_t *values = (uint16_t *)(void *)part_data(sparse, "values");
    values[4] = 0; /* 0 0 0 2 _ 0: column 4 is free */
    CHECK_FAILS(esp_sparse_check(sparse, error), ESP_BAD_FILE, "sparse.fill_not_canonical");
    values[4] = 0x4040;
    values[5] = 0; /* row 2, column 0: rows 0 and 1 have free places */
    CHECK_FAILS(esp_sparse_check(sparse, error), ESP_BAD_FILE, "sparse.fill_not_canonical");
    esp_sparse_free(sparse);
    test_sub(run, "bsr, a gap in the row before");
    sparse = example_weight(run, context, "block:2x2@0.3"); /* blocks 0 1 | 0 1 */
    REQUIRE(sparse != NULL);
    values = (uint16_t *)(void *)part_data(sparse, "values");
    CHECK_INT(esp_sparse_find_part(sparse, "values")->shape[0], 4);
    memset(values + 2 * 4, 0, 8);
    CHECK_FAILS(esp_sparse_check(sparse, error), ESP_BAD_FILE, "sparse.fill_not_canonical");
    esp_sparse_free(sparse);
    test_sub(run, "rows");
    sparse = example_weight(run, context, "rows@0.25");
    memset(part_data(sparse, "values") + 12, 0, 12); /* row 2, while row 1 is free */
    CHECK_FAILS(esp_sparse_check(sparse, error), ESP_BAD_FILE, "sparse.fill_not_canonical");
    esp_sparse_free(sparse);
    test_context_free(run, context);
}

static void wrong_parts(test_run *run)
{
    static const struct {
        const char *pattern, *part;
        int rank; /* given instead */
        int64_t grow;
        const char *code;
    } rows[] = {
        {"unstructured@0.5", "columns", 2, 0, "sparse.wrong_shape"},
        {"unstructured@0.5", "values", 1, 1, "sparse.wrong_shape"},
        {"unstructured@0.5", "row_offsets", 1, -1, "sparse.wrong_shape"},
        {"block:3x4@0.25", "values", 2, 0, "sparse.wrong_shape"},
        {"block:3x4@0.25", "block_columns", 1, 1, "sparse.wrong_shape"},
        {"rows@0.25", "rows", 1, -1, "sparse.wrong_shape"},
        {"cols@0.5", "columns", 1, 1, "sparse.wrong_shape"},
        {"cols@0.5", "columns", 0, 0, "sparse.missing_part"},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s %s rank %d%+lld", rows[i].pattern, rows[i].part, rows[i].rank,
                 (long long)rows[i].grow);
        esp_context *context = test_context(run, 1);
        esp_sparse *sparse = example_weight(run, context, rows[i].pattern), *made = NULL;
        REQUIRE(sparse != NULL);
        esp_sparse_part parts[ESP_SPARSE_MAX_PARTS];
        int count = esp_sparse_part_count(sparse), given = 0;
        for (int k = 0; k < count; k++) {
            parts[given] = esp_sparse_get_part(sparse, k);
            if (strcmp(parts[given].name, rows[i].part) != 0) {
                given++;
            } else if (rows[i].rank > 0) {
                parts[given].tensor.rank = rows[i].rank;
                parts[given++].tensor.shape[0] += rows[i].grow;
            }
        }
        esp_pattern pattern = pattern_of(run, rows[i].pattern);
        CHECK_FAILS(
            esp_sparse_from_parts(context, &pattern, ESP_BF16, 4, 6, parts, given, &made, error),
            ESP_BAD_FILE, rows[i].code);
        CHECK(made == NULL);
        esp_sparse_free(sparse);
        test_context_free(run, context);
    }
}

static void masks_that_do_not_fit(test_run *run)
{
    static const struct {
        const char *pattern, *place, *numbers;
    } rows[] = {
        {"unstructured@0.75", "row 2, column 5", "10 entries hold weights, the pattern keeps 6"},
        {"unstructured@0.99", "row 0, column 3", "keeps 1 of 24"},
        {"block:2x2@0.5", "block row 1, block column 0",
         "6 blocks hold weights, the pattern keeps 3"},
        {"rows@0.5", "row 3", "3 rows hold weights, the pattern keeps 2 of 4"},
        {"cols@0.5", "column 5", "4 columns hold weights, the pattern keeps 3 of 6"},
    };
    uint16_t halves[24];
    esp_narrow(ESP_BF16, example, 24, halves);
    esp_tensor dense = {.dtype = ESP_BF16, .rank = 2, .shape = {4, 6}, .data = halves};
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s: %s", rows[i].pattern, rows[i].place);
        esp_context *context = test_context(run, 2);
        esp_pattern pattern = pattern_of(run, rows[i].pattern);
        esp_sparse *sparse = NULL;
        esp_error fault = {0};
        esp_status status = esp_sparse_encode(context, &pattern, &dense, NULL, &sparse, &fault);
        test_check_failure(run, __FILE__, __LINE__, "encode", status, &fault, ESP_CHECK_FAILED,
                           "format.mask_mismatch");
        if (strncmp(fault.message, rows[i].place, strlen(rows[i].place)) != 0 ||
            strstr(fault.message, rows[i].numbers) == NULL) {
            test_fail(run, __FILE__, __LINE__, "%s", fault.message);
        }
        CHECK(sparse == NULL);
        test_context_free(run, context);
    }
}

static void layouts(test_run *run)
{
    static const struct {
        const char *pattern;
        int64_t out, in, kept;
    } rows[] = {
        {"unstructured@0.9", 10, 10, 10},
        {"unstructured@0.5", 1, 1, 1},
        {"unstructured@0.5", 3, 1, 1},
        {"unstructured@0.5", 5, 1, 2},
        {"unstructured@0.999", 5, 5, 1},
        {"unstructured@0.5", 0, 7, 0},
        {"block:2x2@0.5", 3, 3, 2},
        {"block:9x9@0.9", 3, 3, 1},
        {"rows@0.3", 5, 0, 3},
        {"rows@0.9", 5, 2, 1},
        {"cols@0.25", 2, 10, 7},
        {"cols@0.5", 2, 0, 0},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s %lldx%lld", rows[i].pattern, (long long)rows[i].out,
                 (long long)rows[i].in);
        esp_pattern pattern = pattern_of(run, rows[i].pattern);
        esp_sparse_part parts[ESP_SPARSE_MAX_PARTS];
        int count = 0;
        CHECK_OK(esp_sparse_layout(&pattern, ESP_F16, rows[i].out, rows[i].in, false, parts, &count,
                                   error));
        CHECK_INT(parts[1].tensor.shape[0], rows[i].kept);
    }
    test_sub(run, "offsets of 64 bits, a row order, too many rows");
    esp_pattern csr = pattern_of(run, "unstructured@0.5"), rows_half = pattern_of(run, "rows@0.5");
    esp_sparse_part parts[ESP_SPARSE_MAX_PARTS];
    int count = 0;
    CHECK_OK(esp_sparse_layout(&csr, ESP_F16, 4294967294, 2, false, parts, &count, error));
    CHECK_INT(parts[2].tensor.dtype, ESP_U32);
    CHECK_OK(esp_sparse_layout(&csr, ESP_F16, 4294967295, 3, false, parts, &count, error));
    CHECK_INT(parts[2].tensor.dtype, ESP_U64);
    CHECK_FAILS(esp_sparse_layout(&csr, ESP_F16, 4, 4, true, parts, &count, error), ESP_UNSUPPORTED,
                "format.no_row_order");
    CHECK_FAILS(esp_sparse_layout(&rows_half, ESP_F16, 4294967296, 1, false, parts, &count, error),
                ESP_UNSUPPORTED, "format.too_large");
    CHECK_FAILS(esp_sparse_layout(&csr, ESP_F16, 1, 4294967296, false, parts, &count, error),
                ESP_UNSUPPORTED, "format.too_large");
}

static void ignore(void *user, const char *text, size_t length)
{
    (void)text;
    *(size_t *)user += length;
}

/* Unchecked contents: every byte of list and offsets at random, decoded, checked and printed. */
static void damage_stays_inside(test_run *run)
{
    static const char *const patterns[] = {"unstructured@0.5", "block:3x4@0.25", "rows@0.25",
                                           "cols@0.5"};
    esp_context *context = test_context(run, 2);
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < 400; i++) {
        esp_sparse *sparse = example_weight(run, context, patterns[i % 4]);
        esp_tensor dense = make_tensor(run, context, ESP_BF16, 4, 6);
        size_t printed = 0;
        for (int k = 1; k < esp_sparse_part_count(sparse); k++) {
            esp_tensor part = esp_sparse_get_part(sparse, k).tensor;
            for (size_t b = 0; b < tensor_bytes(&part); b++) {
                if (esp_random_below(&random, 4) == 0) {
                    ((uint8_t *)part.data)[b] = (uint8_t)esp_random_u64(&random);
                }
            }
        }
        CHECK_OK(esp_sparse_decode(sparse, &dense, error));
        esp_status status = esp_sparse_check(sparse, NULL);
        CHECK(status == ESP_OK || status == ESP_BAD_FILE);
        esp_sparse_print(sparse, 4, ignore, &printed);
        CHECK(printed > 0);
        esp_tensor_free(context, &dense);
        esp_sparse_free(sparse);
    }
    test_context_free(run, context);
}

static void collect(void *user, const char *text, size_t length)
{
    esp_buffer_append(user, text, length);
}

static void print_for_a_person(test_run *run)
{
    static const struct {
        const char *pattern, *row;
    } rows[] = {
        {"unstructured@0.5", "row 0: 0:1 1:0 2:0 3:2 5:3\n"},
        {"block:3x4@0.25", "row 0: 0:1 1:0 2:0 3:2 4:0 5:0\n"},
        {"rows@0.25", "row 0: 0:1 1:0 2:0 3:2 4:0 5:3\n"},
        {"cols@0.5", "row 0: 0:1 1:0 3:2\n"},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s", rows[i].pattern);
        esp_context *context = test_context(run, 1);
        esp_sparse *sparse = example_weight(run, context, rows[i].pattern);
        esp_buffer text;
        esp_buffer_init(&text, context);
        esp_sparse_print(sparse, 1, collect, &text);
        CHECK(strstr(text.data, rows[i].row) != NULL);
        esp_buffer_free(&text);
        esp_sparse_free(sparse);
        test_context_free(run, context);
    }
}

/* ---- coordinates ---- */

static void coordinates(test_run *run)
{
    static const char *const patterns[] = {"unstructured@0.5", "block:3x4@0.25", "rows@0.25",
                                           "cols@0.5"};
    for (int i = 0; i < ESP_COUNT(patterns); i++) {
        test_sub(run, "%s", patterns[i]);
        esp_context *context = test_context(run, 2);
        esp_sparse *sparse = example_weight(run, context, patterns[i]), *again = NULL;
        esp_coo coo = {0};
        REQUIRE_OK(esp_sparse_to_coo(sparse, &coo, error));
        const float *from = i % 2 == 0 ? example : narrow;
        int64_t at = 0;
        for (int k = 0; k < 24; k++) {
            if (from[k] != 0) {
                CHECK(at < coo.count && coo.rows[at] == (uint32_t)k / 6 &&
                      coo.columns[at] == (uint32_t)k % 6 &&
                      esp_weight_at(ESP_BF16, coo.values, at) == from[k]);
                at++;
            }
        }
        CHECK_INT(coo.count, at);
        for (int64_t a = 0, b = coo.count - 1; a < b; a++, b--) { /* any order */
            uint32_t row = coo.rows[a], column = coo.columns[a];
            uint16_t *values = coo.values, value = values[a];
            coo.rows[a] = coo.rows[b], coo.columns[a] = coo.columns[b], values[a] = values[b];
            coo.rows[b] = row, coo.columns[b] = column, values[b] = value;
        }
        esp_pattern pattern = pattern_of(run, patterns[i]);
        CHECK_OK(esp_sparse_from_coo(context, &pattern, &coo, &again, error));
        CHECK(again != NULL && esp_sparse_crc32c(again) == esp_sparse_crc32c(sparse));
        esp_sparse_free(again);
        again = NULL;
        coo.rows[1] = coo.rows[0], coo.columns[1] = coo.columns[0];
        CHECK_FAILS(esp_sparse_from_coo(context, &pattern, &coo, &again, error), ESP_BAD_ARGUMENT,
                    "coo.duplicate");
        coo.columns[1] = 6;
        CHECK_FAILS(esp_sparse_from_coo(context, &pattern, &coo, &again, error), ESP_BAD_ARGUMENT,
                    "coo.out_of_range");
        coo.dtype = ESP_U8;
        CHECK_FAILS(esp_sparse_from_coo(context, &pattern, &coo, &again, error), ESP_BAD_ARGUMENT,
                    "format.bad_dtype");
        CHECK(again == NULL);
        esp_coo_free(context, &coo);
        esp_sparse_free(sparse);
        test_context_free(run, context);
    }
}

static const test_case cases[] = {
    {"broken contents", broken_contents},
    {"fills that are not lowest", fills_that_are_not_lowest},
    {"wrong parts", wrong_parts},
    {"masks that do not fit", masks_that_do_not_fit},
    {"layouts", layouts},
    {"damage stays inside", damage_stays_inside},
    {"print for a person", print_for_a_person},
    {"coordinates", coordinates},
};
TEST_MAIN(cases)
