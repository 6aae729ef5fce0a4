/* What compressing on a GPU refuses: weights that do not fit the pattern or the mask, lists of
 * columns that are none, wrong arguments; and that it works afterwards. Without a GPU every case is
 * skipped. */
#include "device_weight.h"

/* ---- what does not fit ---- */

/* A weight of zeros with ones where they are wanted, compressed; then zeros again, which must
 * succeed. */
typedef struct misfit {
    const char *name, *pattern;
    int64_t places[6][2]; /* rows and columns of ones; row -1 ends them */
    esp_status status;
    const char *code, *word; /* the message names this */
} misfit;

static const misfit misfits[] = {{"three of four",
                                  "2:4",
                                  {{9, 4}, {9, 5}, {9, 7}, {-1, 0}},
                                  ESP_CHECK_FAILED,
                                  "format.mask_mismatch",
                                  "row 9, group 1 "},
                                 {"three of the last four",
                                  "2:4",
                                  {{99, 296}, {99, 297}, {99, 298}, {-1, 0}},
                                  ESP_CHECK_FAILED,
                                  "format.mask_mismatch",
                                  "row 99, group 74 "},
                                 {"five columns of a group",
                                  "64:2:8",
                                  {{64, 8}, {65, 9}, {66, 10}, {67, 14}, {68, 15}, {-1, 0}},
                                  ESP_CHECK_FAILED,
                                  "format.mask_mismatch",
                                  "panel 1, group 1 "},
                                 {"three of a row",
                                  "64:2:8",
                                  {{70, 8}, {70, 9}, {70, 15}, {-1, 0}},
                                  ESP_CHECK_FAILED,
                                  "format.mask_mismatch",
                                  "row 70, group 1 "},
                                 {"too far apart to be staged",
                                  "64:2:100",
                                  {{70, 8}, {70, 90}, {70, 95}, {-1, 0}},
                                  ESP_CHECK_FAILED,
                                  "format.mask_mismatch",
                                  "row 70, group 0 "},
                                 {"a column that the list lacks",
                                  "panel:64@0.9",
                                  {{5, 7}, {70, 299}, {-1, 0}},
                                  ESP_CHECK_FAILED,
                                  "format.mask_mismatch",
                                  "row 70, column 299 "}};

static void wrong_masks(test_run *run)
{
    enum { OUT = 100, IN = 300 };
    esp_context *context = test_context(run, 1);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(misfits); i++) {
        const misfit *wrong = &misfits[i];
        esp_pattern pattern;
        esp_packed *packed = NULL;
        test_sub(run, "%s", wrong->name);
        CHECK_OK(esp_pattern_parse(wrong->pattern, &pattern, error));
        weight w = weight_make(run, context, device, ESP_F16, OUT, IN, 0, 0, false, 1);
        uint16_t *host = calloc((size_t)OUT * IN, 2);
        device_mask m = mask_make(device, &pattern, OUT, IN);
        CHECK_OK(esp_packed_create(device, &pattern, ESP_F16, OUT, IN, &packed, error));
        for (int k = 0; wrong->places[k][0] >= 0; k++) {
            host[wrong->places[k][0] * IN + wrong->places[k][1]] = 0x3c00;
        }
        CHECK_OK(esp_device_upload(device, w.memory, host, w.bytes, error));
        esp_device_mask mask = {.bits = NULL, .columns = NULL};
        if (pattern.v != 0 && pattern.m == 0) { /* both panels: columns 0, 1, 2... */
            int64_t kept = esp_pattern_kept(&pattern, IN);
            uint32_t *columns = malloc((size_t)(2 * kept) * 4);
            for (int64_t j = 0; j < 2 * kept; j++) {
                columns[j] = (uint32_t)(j % kept);
            }
            CHECK_OK(esp_device_upload(device, m.mask.columns, columns, m.columns_bytes, error));
            mask.columns = m.mask.columns;
            free(columns);
        }
        esp_error why = {0};
        CHECK_INT(esp_packed_compress(packed, &w.dense, &mask, NULL, &why), wrong->status);
        CHECK_TEXT(why.code, wrong->code);
        CHECK(strstr(why.message, wrong->word) != NULL);
        memset(host, 0, w.bytes);
        CHECK_OK(esp_device_upload(device, w.memory, host, w.bytes, error));
        CHECK_OK(esp_packed_compress(packed, &w.dense, &mask, NULL, error));
        free(host);
        esp_packed_free(packed);
        mask_free(device, &m);
        weight_free(context, device, &w);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

static void wrong_lists(test_run *run)
{
    static const struct {
        const char *name;
        uint32_t at, column;
    } wrong[] = {{"beyond the last column", 5, 300},
                 {"twice in a group", 5, 4},
                 {"twice in a panel", 9, 3},
                 {"descending", 6, 4},
                 {"a column behind padding", 4, UINT32_MAX}};
    enum { OUT = 100, IN = 300, KEPT = 60 };
    esp_context *context = test_context(run, 1);
    esp_device *device = open_gpu(run, context);
    for (int i = 0; device != NULL && i < ESP_COUNT(wrong); i++) {
        esp_pattern pattern;
        esp_packed *packed = NULL;
        uint32_t columns[2 * KEPT];
        test_sub(run, "%s", wrong[i].name);
        CHECK_OK(esp_pattern_parse("panel:64@0.9", &pattern, error));
        REQUIRE(esp_pattern_kept(&pattern, IN) == KEPT);
        weight w = weight_make(run, context, device, ESP_F16, OUT, IN, 0, 0, false, 1);
        void *zeros = calloc(1, w.bytes);
        device_mask m = mask_make(device, &pattern, OUT, IN);
        CHECK_OK(esp_packed_create(device, &pattern, ESP_F16, OUT, IN, &packed, error));
        CHECK_OK(esp_device_upload(device, w.memory, zeros, w.bytes, error));
        for (uint32_t j = 0; j < 2 * KEPT; j++) {
            columns[j] = j % KEPT;
        }
        columns[KEPT + wrong[i].at] = wrong[i].column;
        CHECK_OK(esp_device_upload(device, m.mask.columns, columns, m.columns_bytes, error));
        esp_device_mask mask = {.bits = NULL, .columns = m.mask.columns};
        esp_error why = {0};
        CHECK_INT(esp_packed_compress(packed, &w.dense, &mask, NULL, &why), ESP_BAD_ARGUMENT);
        CHECK_TEXT(why.code, "mask.bad_columns");
        CHECK(strstr(why.message, "panel 1, entry ") != NULL);
        free(zeros);
        esp_packed_free(packed);
        mask_free(device, &m);
        weight_free(context, device, &w);
    }
    esp_device_close(device);
    test_context_free(run, context);
}

/* ---- wrong arguments ---- */

static void wrong_arguments(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_device *device = open_gpu(run, context);
    if (device == NULL) {
        test_context_free(run, context);
        return;
    }
    enum { OUT = 100, IN = 300 };
    esp_pattern pattern, other;
    esp_packed *packed = NULL, *none = NULL;
    CHECK_OK(esp_pattern_parse("64:2:8", &pattern, error));
    weight w = weight_make(run, context, device, ESP_F16, OUT, IN, 0, 0, false, 1);
    device_mask m = mask_make(device, &pattern, OUT, IN);
    CHECK_OK(esp_packed_create(device, &pattern, ESP_F16, OUT, IN, &packed, error));
    const esp_device_dense right = w.dense;
    esp_device_dense wrong = right;
    test_sub(run, "NULL, host memory, half an element off, too short");
    wrong.data = NULL;
    CHECK_FAILS(esp_packed_compress(packed, &wrong, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "compress.missing_operand");
    wrong.data = w.host.data;
    CHECK_FAILS(esp_packed_compress(packed, &wrong, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "compress.not_on_device");
    CHECK_FAILS(esp_device_prune(device, &wrong, &pattern, NULL, &m.mask, NULL, error),
                ESP_BAD_ARGUMENT, "compress.not_on_device");
    wrong.data = w.memory + 1;
    CHECK_FAILS(esp_packed_compress(packed, &wrong, NULL, NULL, error), ESP_BAD_ARGUMENT, NULL);
    wrong = right;
    wrong.stride = (int64_t)1 << 40;
    CHECK_FAILS(esp_packed_compress(packed, &wrong, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "compress.not_on_device");
    wrong.stride = IN - 1;
    CHECK_FAILS(esp_packed_compress(packed, &wrong, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "compress.bad_stride");
    test_sub(run, "masks");
    esp_device_mask bad = {.bits = w.host.data, .columns = m.mask.columns};
    CHECK_FAILS(esp_packed_compress(packed, &right, &bad, NULL, error), ESP_BAD_ARGUMENT,
                "compress.not_on_device");
    bad = (esp_device_mask){.bits = m.mask.bits, .columns = NULL};
    CHECK_FAILS(esp_device_prune(device, &right, &pattern, NULL, &bad, NULL, error),
                ESP_BAD_ARGUMENT, "compress.missing_operand");
    bad = (esp_device_mask){.bits = NULL, .columns = m.mask.columns};
    CHECK_FAILS(esp_device_prune(device, &right, &pattern, NULL, &bad, NULL, error),
                ESP_BAD_ARGUMENT, "compress.missing_operand");
    test_sub(run, "patterns, types, shapes");
    wrong = right;
    wrong.out_features = OUT + 1;
    CHECK_FAILS(esp_packed_compress(packed, &wrong, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "compress.bad_weight");
    wrong = right;
    wrong.dtype = ESP_BF16;
    CHECK_FAILS(esp_packed_compress(packed, &wrong, NULL, NULL, error), ESP_BAD_ARGUMENT,
                "compress.bad_weight");
    wrong.dtype = ESP_F32;
    CHECK_FAILS(esp_packed_compress(packed, &wrong, NULL, NULL, error), ESP_UNSUPPORTED,
                "pack.unsupported_type");
    CHECK_FAILS(esp_packed_create(device, &pattern, ESP_F16, 0, IN, &none, error), ESP_BAD_ARGUMENT,
                "compress.bad_shape");
    CHECK_OK(esp_pattern_parse("4:8", &other, error));
    CHECK_FAILS(esp_packed_create(device, &other, ESP_F16, OUT, IN, &none, error), ESP_UNSUPPORTED,
                "pack.unsupported_pattern");
    CHECK_OK(esp_pattern_parse("panel:64@0.5", &other, error));
    CHECK_FAILS(esp_device_prune(device, &right, &other, NULL, &m.mask, NULL, error),
                ESP_UNSUPPORTED, "prune.host_only");
    CHECK_OK(esp_pattern_parse("64:2:11", &other, error));
    esp_mask_options options = {.search = ESP_SEARCH_EXACT};
    CHECK_FAILS(esp_device_prune(device, &right, &other, &options, &m.mask, NULL, error),
                ESP_BAD_ARGUMENT, "prune.exact_too_wide");
    test_sub(run, "still works");
    CHECK_OK(esp_device_prune(device, &right, &pattern, NULL, &m.mask, NULL, error));
    CHECK_OK(esp_packed_compress(packed, &right, &m.mask, NULL, error));
    esp_packed_free(packed);
    mask_free(device, &m);
    weight_free(context, device, &w);
    esp_device_close(device);
    test_context_free(run, context);
}

static const test_case cases[] = {{"wrong_masks", wrong_masks},
                                  {"wrong_lists", wrong_lists},
                                  {"wrong_arguments", wrong_arguments}};
TEST_MAIN(cases)
