/* What comes from outside: parts that do not belong together are not taken, every broken invariant
 * has its code and its place, and unchecked contents never lead outside memory. */
#include "weights.h"

/* A weight taken apart into copies that a test may break. */
typedef struct broken {
    esp_context *context;
    esp_pattern pattern;
    esp_dtype dtype;
    int64_t out, in;
    int count;
    esp_sparse_part parts[ESP_SPARSE_MAX_PARTS + 1];
} broken;

static broken take_apart(test_run *run, esp_context *context, const esp_sparse *sparse)
{
    broken made = {.context = context,
                   .pattern = esp_sparse_pattern(sparse),
                   .dtype = esp_sparse_dtype(sparse),
                   .out = esp_sparse_out_features(sparse),
                   .in = esp_sparse_in_features(sparse),
                   .count = esp_sparse_part_count(sparse)};
    for (int i = 0; i < made.count; i++) {
        esp_sparse_part part = esp_sparse_get_part(sparse, i);
        made.parts[i].name = part.name;
        CHECK_OK(esp_tensor_create(context, part.tensor.dtype, part.tensor.rank, part.tensor.shape,
                                   &made.parts[i].tensor, error));
        memcpy(made.parts[i].tensor.data, part.tensor.data, tensor_bytes(&part.tensor));
    }
    return made;
}

static void free_broken(broken *weight)
{
    for (int i = 0; i < weight->count; i++) {
        esp_tensor_free(weight->context, &weight->parts[i].tensor);
    }
}

static esp_tensor *part_of(broken *weight, const char *name)
{
    for (int i = 0; i < weight->count; i++) {
        if (strcmp(weight->parts[i].name, name) == 0) {
            return &weight->parts[i].tensor;
        }
    }
    abort();
}

static esp_status assemble(const broken *weight, esp_sparse **sparse, esp_error *error)
{
    return esp_sparse_from_parts(weight->context, &weight->pattern, weight->dtype, weight->out,
                                 weight->in, weight->parts, weight->count, sparse, error);
}

/* bf16 weights of 3 x 9, as in docs/formats.md; row 1 ends in zeros. */
static const float example[27] = {1, 0, 0, 2, 0, 0, -1, 0, .5f, 0, 0, 0, 3, 0,
                                  4, 0, 0, 0, 0, 1, 2,  0, 0,   0, 0, 3, 0};

static broken example_weight(test_run *run, esp_context *context, const char *text, bool with_rows)
{
    uint16_t halves[27];
    esp_narrow(ESP_BF16, example, 27, halves);
    esp_tensor dense = {.dtype = ESP_BF16, .rank = 2, .shape = {3, 9}, .data = halves};
    esp_pattern pattern = pattern_of(run, text);
    esp_mask *mask = NULL;
    esp_sparse *sparse = NULL;
    CHECK_OK(esp_mask_from_dense(context, &dense, &mask, error));
    if (with_rows) {
        CHECK_OK(esp_mask_set_rows(mask, (const uint32_t[]){1, 0, 2}, error));
    }
    CHECK_OK(esp_sparse_encode(context, &pattern, &dense, mask, &sparse, error));
    CHECK_OK(esp_sparse_check(sparse, error));
    broken made = take_apart(run, context, sparse);
    esp_sparse_free(sparse);
    esp_mask_free(mask);
    return made;
}

/* ---- contents ---- */

static void broken_contents(test_run *run)
{
    /* One byte of one part is set; `place` is what the message must name. The good bytes stand in
     * docs/formats.md; with a row order (1, 0, 2) the panel's rows are exchanged. */
    static const struct {
        const char *pattern, *part;
        int at;
        uint8_t byte;
        const char *code, *place;
        bool with_rows;
    } rows[] = {
        {"2:2:6", "positions", 0, 0x80, "sparse.positions_not_increasing", "row 0, group 0", 0},
        {"2:2:6", "positions", 1, 0x5e, "sparse.positions_not_increasing", "row 1, group 1", 0},
        {"2:2:6", "positions", 2, 0x19, "sparse.positions_not_increasing", "row 2, group 1", 0},
        {"2:2:6", "positions", 1, 0x8e, "sparse.fill_not_canonical", "row 1, group 1", 0},
        {"2:2:6", "positions", 2, 0x99, "sparse.fill_not_canonical", "row 2, group 1", 0},
        {"2:2:6", "positions", 0, 0xc8, "sparse.padding_not_zero", "row 0, group 1", 0},
        {"2:2:6", "values", 13, 0x80, "sparse.negative_zero", "row 1, group 1", 0},
        {"2:2:6", "values", 21, 0x80, "sparse.negative_zero", "row 2, group 1", 0},
        {"2:2:6", "columns", 1, 0x01, "sparse.column_out_of_range", "panel 0, group 0, entry 0", 0},
        {"2:2:6", "columns", 8, 0x09, "sparse.column_out_of_range", "panel 0, group 1, entry 0", 0},
        {"2:2:6", "columns", 0, 0x03, "sparse.columns_not_ascending", "group 0, entry 1", 0},
        {"2:2:6", "columns", 2, 0x00, "sparse.column_twice", "panel 0, group 0, entry 1", 0},
        {"2:2:6", "columns", 6, 0x07, "sparse.column_outside_group", "column 7", 0},
        {"2:2:6", "columns", 24, 0x05, "sparse.column_outside_group", "panel 1, group 1", 0},
        {"2:2:6", "rows", 0, 0x03, "sparse.rows_not_bijection", "stored row 0", 1},
        {"2:2:6", "rows", 0, 0x00, "sparse.rows_not_bijection", "stored row 1", 1},
        {"2:2:6", "rows", 5, 0x01, "sparse.rows_not_bijection", "stored row 2", 1},
        {"3:5", "positions", 0, 0x00, "sparse.positions_not_increasing", "row 0, group 0", 0},
        {"3:5", "positions", 0, 0xcd, "sparse.position_out_of_group", "row 0, group 0", 0},
        {"3:5", "positions", 5, 0x02, "sparse.position_out_of_group", "row 1, group 1", 0},
        {"3:5", "positions", 6, 0x80, "sparse.positions_not_increasing", "group 0, entry 1", 0},
        {"3:5", "positions", 8, 0x05, "sparse.pad_bits_set", "row 2", 0},
        {"3:5", "positions", 0, 0xd0, "sparse.fill_not_canonical", "row 0, group 0", 0},
        {"3:5", "values", 3, 0x80, "sparse.negative_zero", "row 0, group 0", 0},
        {"2:4", "positions", 1, 0x14, "sparse.pad_bits_set", "row 0", 0},
        {"2:4", "positions", 3, 0x15, "sparse.positions_not_increasing", "row 1, group 2", 0},
        {"2:4", "positions", 1, 0x05, "sparse.positions_not_increasing", "row 0, group 2", 0},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s %s[%d] = %02x: %s", rows[i].pattern, rows[i].part, rows[i].at,
                 rows[i].byte, rows[i].code);
        esp_context *context = test_context(run, 2);
        broken weight = example_weight(run, context, rows[i].pattern, rows[i].with_rows);
        bool on_padding = strcmp(rows[i].code, "sparse.padding_not_zero") == 0;
        const char *named = on_padding ? "values" : rows[i].part;
        ((uint8_t *)part_of(&weight, rows[i].part)->data)[rows[i].at] = rows[i].byte;
        esp_sparse *sparse = NULL;
        esp_error fault = {0};
        CHECK_OK(assemble(&weight, &sparse, error));
        esp_status status = esp_sparse_check(sparse, &fault);
        test_check_failure(run, __FILE__, __LINE__, "check", status, &fault, ESP_BAD_FILE,
                           rows[i].code);
        if (strstr(fault.message, rows[i].place) == NULL ||
            strncmp(fault.message, named, strlen(named)) != 0) {
            test_fail(run, __FILE__, __LINE__, "does not name %s, %s: %s", named, rows[i].place,
                      fault.message);
        }
        esp_sparse_free(sparse);
        free_broken(&weight);
        test_context_free(run, context);
    }
}

static void broken_column_counts(test_run *run)
{
    esp_context *context = test_context(run, 1);
    broken weight = example_weight(run, context, "2:2:6", false);
    uint16_t *columns = part_of(&weight, "columns")->data;
    esp_sparse *sparse = NULL;
    test_sub(run, "padding for a column");
    columns[3] = UINT16_MAX;
    CHECK_OK(assemble(&weight, &sparse, error));
    CHECK_FAILS(esp_sparse_check(sparse, error), ESP_BAD_FILE, "sparse.wrong_column_count");
    esp_sparse_free(sparse);
    test_sub(run, "padding before a column");
    columns[3] = 5;
    columns[1] = UINT16_MAX;
    CHECK_OK(assemble(&weight, &sparse, error));
    CHECK_FAILS(esp_sparse_check(sparse, error), ESP_BAD_FILE, "sparse.wrong_column_count");
    esp_sparse_free(sparse);
    test_sub(run, "a column for padding");
    columns[1] = 1;
    columns[7] = 8;
    columns[6] = 7;
    columns[5] = 6;
    columns[4] = 4;
    CHECK_OK(assemble(&weight, &sparse, error));
    CHECK_FAILS(esp_sparse_check(sparse, error), ESP_BAD_FILE, NULL);
    esp_sparse_free(sparse);
    free_broken(&weight);
    test_context_free(run, context);
}

/* ---- parts that do not belong together ---- */

typedef enum damage {
    DROP,
    RENAME,
    TWICE,
    OTHER_DTYPE,
    OTHER_RANK,
    SHORT_ROWS,
    SHORT_COLUMNS
} damage;

static void wrong_parts(test_run *run)
{
    static const struct {
        const char *pattern, *part;
        damage damage;
        const char *code;
    } rows[] = {
        {"2:2:6", "values", DROP, "sparse.missing_part"},
        {"2:2:6", "positions", DROP, "sparse.missing_part"},
        {"2:2:6", "columns", DROP, "sparse.missing_part"},
        {"2:2:6", "columns", RENAME, "sparse.unknown_part"},
        {"2:2:6", "columns", TWICE, "sparse.duplicate_part"},
        {"2:2:6", "values", OTHER_DTYPE, "sparse.wrong_dtype"},
        {"2:2:6", "columns", OTHER_DTYPE, "sparse.wrong_dtype"},
        {"2:2:6", "columns", SHORT_ROWS, "sparse.panel_count"},
        {"2:2:6", "columns", SHORT_COLUMNS, "sparse.wrong_shape"},
        {"2:2:6", "columns", OTHER_RANK, "sparse.wrong_shape"},
        {"2:2:6", "values", SHORT_ROWS, "sparse.wrong_shape"},
        {"2:2:6", "positions", SHORT_COLUMNS, "sparse.wrong_shape"},
        {"2:2:6", "rows", SHORT_ROWS, "sparse.wrong_shape"},
        {"2:2:6", "rows", OTHER_DTYPE, "sparse.wrong_dtype"},
        {"2:4", "values", RENAME, "sparse.unknown_part"},
        {"2:4", "positions", SHORT_COLUMNS, "sparse.wrong_shape"},
        {"3:5", "positions", DROP, "sparse.missing_part"},
        {"3:5", "positions", SHORT_COLUMNS, "sparse.wrong_shape"},
        {"3:5", "values", TWICE, "sparse.duplicate_part"},
        {"dense", "", DROP, "sparse.missing_part"},
        {"dense", "", OTHER_DTYPE, "sparse.wrong_dtype"},
        {"dense", "", SHORT_ROWS, "sparse.wrong_shape"},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s \"%s\" damage %d: %s", rows[i].pattern, rows[i].part, rows[i].damage,
                 rows[i].code);
        esp_context *context = test_context(run, 1);
        bool with_rows = strcmp(rows[i].part, "rows") == 0;
        broken weight = example_weight(run, context, rows[i].pattern, with_rows);
        broken given = weight;
        int at = 0;
        while (strcmp(given.parts[at].name, rows[i].part) != 0) {
            at++;
        }
        esp_tensor *part = &given.parts[at].tensor;
        switch (rows[i].damage) {
        case DROP:
            given.parts[at] = given.parts[--given.count];
            break;
        case RENAME:
            given.parts[at].name = "colums";
            break;
        case TWICE:
            given.parts[given.count++] = given.parts[at];
            break;
        case OTHER_DTYPE:
            part->dtype = ESP_F16;
            break;
        case OTHER_RANK:
            part->rank = 1;
            break;
        case SHORT_ROWS:
            part->shape[0]--;
            break;
        case SHORT_COLUMNS:
            part->shape[1]--;
            break;
        }
        esp_sparse *sparse = NULL;
        CHECK_FAILS(assemble(&given, &sparse, error), ESP_BAD_FILE, rows[i].code);
        CHECK(sparse == NULL);
        free_broken(&weight);
        test_context_free(run, context);
    }
}

static void impossible_requests(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_sparse_part parts[ESP_SPARSE_MAX_PARTS];
    int count = 77;
    size_t bytes = 77;
    esp_pattern two_four = pattern_of(run, "2:4"), nm = pattern_of(run, "4:8");
    test_sub(run, "a row order without panels");
    CHECK_FAILS(esp_sparse_layout(&nm, ESP_BF16, 8, 8, true, parts, &count, error), ESP_UNSUPPORTED,
                "format.no_row_order");
    test_sub(run, "dtype");
    CHECK_FAILS(esp_sparse_layout(&nm, ESP_I32, 8, 8, false, parts, &count, error),
                ESP_BAD_ARGUMENT, "format.bad_dtype");
    test_sub(run, "sizes");
    CHECK_FAILS(esp_sparse_layout(&two_four, ESP_F32, -1, 8, false, parts, &count, error),
                ESP_BAD_ARGUMENT, "tensor.bad_shape");
    CHECK_FAILS(
        esp_sparse_layout(&two_four, ESP_F32, INT64_MAX / 2, 8, false, parts, &count, error),
        ESP_OUT_OF_MEMORY, "tensor.too_large");
    CHECK_FAILS(esp_sparse_layout(&two_four, ESP_F32, 1, 4294967296, false, parts, &count, error),
                ESP_UNSUPPORTED, "format.too_large");
    CHECK_FAILS(esp_sparse_layout_bytes(&two_four, ESP_F32, -1, 8, false, &bytes, error),
                ESP_BAD_ARGUMENT, "tensor.bad_shape");
    CHECK_INT(count, 77);
    CHECK_INT(bytes, 77);
    test_sub(run, "a hostile shape allocates nothing");
    esp_sparse_part empty = {.name = "values", .tensor = {.dtype = ESP_F32, .rank = 1}};
    esp_sparse *sparse = NULL;
    CHECK_FAILS(esp_sparse_from_parts(context, &two_four, ESP_F32, 1LL << 28, 1LL << 28, &empty, 1,
                                      &sparse, error),
                ESP_BAD_FILE, NULL);
    test_sub(run, "tensors");
    float data[8] = {0};
    esp_tensor vector = {.dtype = ESP_F32, .rank = 1, .shape = {8}, .data = data};
    CHECK_FAILS(esp_sparse_encode(context, &two_four, &vector, NULL, &sparse, error),
                ESP_BAD_ARGUMENT, "format.bad_tensor");
    CHECK(sparse == NULL);
    test_context_free(run, context);
}

/* ---- masks that do not fit ---- */

static void mask_mismatches(test_run *run)
{
    static const struct {
        const char *pattern, *place;
        int live[5][2]; /* row, column; ends at -1 */
    } rows[] = {
        {"2:4", "row 1, group 1", {{1, 4}, {1, 5}, {1, 7}, {-1, 0}}},
        {"2:4", "row 2, group 4", {{0, 0}, {2, 16}, {2, 17}, {2, 18}, {-1, 0}}},
        {"2:8", "row 3, group 2", {{3, 16}, {3, 17}, {3, 18}, {-1, 0}}},
        {"1:5", "row 0, group 0 (columns 0 to 4)", {{0, 0}, {0, 4}, {-1, 0}}},
        {"1:17", "row 5, group 1 (columns 17 to 18)", {{5, 17}, {5, 18}, {-1, 0}}},
        {"2:2:8", "panel 1 (rows 2 to 3), group 1", {{2, 8}, {2, 9}, {3, 10}, {3, 12}, {3, 15}}},
        {"2:2:8", "row 4, group 1", {{4, 8}, {4, 9}, {4, 10}, {-1, 0}}},
        {"9:2:8", "row 4, group 2", {{4, 16}, {4, 17}, {4, 18}, {-1, 0}}},
        {"2:2:5", "panel 0 (rows 0 to 1), group 0", {{0, 0}, {0, 1}, {1, 2}, {1, 3}, {1, 4}}},
        {"panel:2@0.9", "panel 0 (from row 0)", {{0, 0}, {0, 5}, {1, 7}, {1, 9}, {1, 18}}},
        {"panel:2@0.5", "row 3, group 0", {{3, 1}, {3, 5}, {3, 18}, {-1, 0}}},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s: %s", rows[i].pattern, rows[i].place);
        esp_context *context = test_context(run, 4);
        esp_pattern pattern = pattern_of(run, rows[i].pattern);
        esp_tensor dense = make_tensor(run, context, ESP_F16, 6, 19);
        for (int k = 0; k < 6 * 19; k++) {
            put_bits_at(ESP_F16, dense.data, k, 0x3c00);
        }
        esp_mask *mask = NULL;
        CHECK_OK(esp_mask_create(context, 6, 19, &mask, error));
        for (int k = 0; k < 5 && rows[i].live[k][0] >= 0; k++) {
            esp_mask_set(mask, rows[i].live[k][0], rows[i].live[k][1], true);
        }
        esp_sparse *sparse = NULL;
        esp_error fault = {0};
        esp_status status = esp_sparse_encode(context, &pattern, &dense, mask, &sparse, &fault);
        test_check_failure(run, __FILE__, __LINE__, "encode", status, &fault, ESP_CHECK_FAILED,
                           "format.mask_mismatch");
        if (strstr(fault.message, rows[i].place) == NULL) {
            test_fail(run, __FILE__, __LINE__, "does not name %s: %s", rows[i].place,
                      fault.message);
        }
        CHECK(sparse == NULL);
        /* the same zeros without a mask are refused alike; a live zero is as good as dropped */
        memset(dense.data, 0, tensor_bytes(&dense));
        CHECK_OK(esp_sparse_encode(context, &pattern, &dense, mask, &sparse, error));
        esp_sparse_free(sparse);
        esp_mask_free(mask);
        esp_tensor_free(context, &dense);
        test_context_free(run, context);
    }
}

static void mask_columns_must_fit(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_pattern pattern = pattern_of(run, "panel:2@0.5");
    float data[16] = {[3] = 1};
    esp_tensor dense = {.dtype = ESP_F32, .rank = 2, .shape = {2, 8}, .data = data};
    esp_mask *mask = NULL;
    esp_sparse *sparse = NULL;
    CHECK_OK(esp_mask_create(context, 2, 8, &mask, error));
    esp_mask_set(mask, 0, 3, true);
    test_sub(run, "other panels");
    CHECK_OK(esp_mask_set_columns(mask, 2, 4, (const uint32_t[]){0, 3, 5, 6}, error));
    CHECK_FAILS(esp_sparse_encode(context, &pattern, &dense, mask, &sparse, error),
                ESP_CHECK_FAILED, "format.mask_mismatch");
    test_sub(run, "a live column that is not listed");
    CHECK_OK(esp_mask_set_columns(mask, 2, 8, (const uint32_t[]){0, 1, 2, 4, 5, 6, 7, UINT32_MAX},
                                  error));
    CHECK_FAILS(esp_sparse_encode(context, &pattern, &dense, mask, &sparse, error),
                ESP_CHECK_FAILED, "format.mask_mismatch");
    test_sub(run, "shape");
    dense.shape[1] = 4;
    CHECK_FAILS(esp_sparse_encode(context, &pattern, &dense, mask, &sparse, error),
                ESP_BAD_ARGUMENT, "mask.shape_mismatch");
    CHECK(sparse == NULL);
    esp_mask_free(mask);
    test_context_free(run, context);
}

/* ---- hostile contents ---- */

/* Every single bit flip of what is not a value: either refused, or a weight that encodes to itself.
 */
static void bit_flips(test_run *run)
{
    static const char *const patterns[] = {"2:4", "3:5", "1:16", "2:2:6", "panel:2@0.5"};
    for (int p = 0; p < ESP_COUNT(patterns); p++) {
        test_sub(run, "%s", patterns[p]);
        esp_context *context = test_context(run, 1);
        esp_random random;
        esp_random_seed(&random, test_seed(run));
        esp_pattern pattern = pattern_of(run, patterns[p]);
        esp_tensor dense = hostile_tensor(run, context, &random, ESP_BF16, 5, 21);
        esp_tensor decoded = make_tensor(run, context, ESP_BF16, 5, 21);
        esp_mask *mask = random_mask(run, context, &random, &pattern, 5, 21, p % 2 == 1);
        esp_sparse *sparse = NULL;
        CHECK_OK(esp_sparse_encode(context, &pattern, &dense, mask, &sparse, error));
        broken weight = take_apart(run, context, sparse);
        int refused = 0, accepted = 0;
        for (int i = 1; i < weight.count; i++) {
            esp_tensor *part = &weight.parts[i].tensor;
            for (size_t bit = 0; bit < 8 * tensor_bytes(part); bit++) {
                uint8_t *byte = (uint8_t *)part->data + bit / 8;
                *byte ^= (uint8_t)(1u << bit % 8);
                esp_sparse *flipped = NULL, *again = NULL;
                CHECK_OK(assemble(&weight, &flipped, error));
                esp_error fault = {0};
                esp_status status = esp_sparse_check(flipped, &fault);
                CHECK_OK(esp_sparse_decode(flipped, &decoded, error)); /* never outside memory */
                CHECK(status == ESP_OK || status == ESP_BAD_FILE);
                refused += status == ESP_BAD_FILE;
                accepted += status == ESP_OK;
                if (status == ESP_OK && (pattern.kind == ESP_PATTERN_NM || pattern.v == 0)) {
                    CHECK_OK(esp_sparse_encode(context, &pattern, &decoded, NULL, &again, error));
                    CHECK(again != NULL && esp_sparse_crc32c(again) == esp_sparse_crc32c(flipped));
                }
                esp_sparse_free(again);
                esp_sparse_free(flipped);
                *byte ^= (uint8_t)(1u << bit % 8);
            }
        }
        CHECK(refused > 0 && accepted > 0);
        free_broken(&weight);
        esp_sparse_free(sparse);
        esp_mask_free(mask);
        esp_tensor_free(context, &dense);
        esp_tensor_free(context, &decoded);
        test_context_free(run, context);
    }
}

static void noise_is_refused(test_run *run)
{
    static const char *const patterns[] = {"2:4", "3:5", "7:65536", "2:2:6", "panel:2@0.5"};
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int p = 0; p < ESP_COUNT(patterns); p++) {
        test_sub(run, "%s", patterns[p]);
        esp_context *context = test_context(run, 2);
        esp_pattern pattern = pattern_of(run, patterns[p]);
        broken weight = {
            .context = context, .pattern = pattern, .dtype = ESP_F32, .out = 7, .in = 77};
        CHECK_OK(esp_sparse_layout(&pattern, ESP_F32, 7, 77, pattern.kind == ESP_PATTERN_PANEL,
                                   weight.parts, &weight.count, error));
        for (int i = 0; i < weight.count; i++) {
            esp_tensor *part = &weight.parts[i].tensor;
            CHECK_OK(esp_tensor_create(context, part->dtype, part->rank, part->shape, part, error));
        }
        esp_tensor decoded = make_tensor(run, context, ESP_F32, 7, 77);
        for (int round = 0; round < 50; round++) {
            for (int i = 0; i < weight.count; i++) {
                uint8_t *bytes = weight.parts[i].tensor.data;
                for (size_t k = 0; k < tensor_bytes(&weight.parts[i].tensor); k++) {
                    bytes[k] = (uint8_t)esp_random_u64(&random);
                }
            }
            esp_sparse *sparse = NULL;
            CHECK_OK(assemble(&weight, &sparse, error));
            CHECK_FAILS(esp_sparse_check(sparse, error), ESP_BAD_FILE, NULL);
            CHECK_OK(esp_sparse_decode(sparse, &decoded, error));
            esp_sparse_free(sparse);
        }
        esp_tensor_free(context, &decoded);
        free_broken(&weight);
        test_context_free(run, context);
    }
}

static void decode_wants_its_tensor(test_run *run)
{
    esp_context *context = test_context(run, 1);
    broken weight = example_weight(run, context, "2:4", false);
    esp_sparse *sparse = NULL;
    CHECK_OK(assemble(&weight, &sparse, error));
    static const esp_tensor wrong[] = {{.dtype = ESP_F16, .rank = 2, .shape = {3, 9}},
                                       {.dtype = ESP_BF16, .rank = 2, .shape = {9, 3}},
                                       {.dtype = ESP_BF16, .rank = 1, .shape = {27}}};
    for (int i = 0; i < ESP_COUNT(wrong); i++) {
        esp_tensor tensor = wrong[i];
        CHECK_FAILS(esp_sparse_decode(sparse, &tensor, error), ESP_BAD_ARGUMENT,
                    "format.bad_tensor");
    }
    esp_sparse_free(sparse);
    free_broken(&weight);
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"broken contents", broken_contents},
    {"broken column counts", broken_column_counts},
    {"wrong parts", wrong_parts},
    {"impossible requests", impossible_requests},
    {"mask mismatches", mask_mismatches},
    {"mask columns must fit", mask_columns_must_fit},
    {"bit flips", bit_flips},
    {"noise is refused", noise_is_refused},
    {"decode wants its tensor", decode_wants_its_tensor},
};
TEST_MAIN(cases)
