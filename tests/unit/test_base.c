/* base and tensor: numbers, checksums, globs, threads, errors, files. */
#include <string.h>

#include "base/base.h"
#include "tensor/tensor.h"
#include "test.h"

static void crc32c_vectors(test_run *run)
{
    unsigned char bytes[32];
    CHECK_INT(esp_crc32c(0, "123456789", 9), 0xe3069283u);
    memset(bytes, 0, sizeof bytes);
    CHECK_INT(esp_crc32c(0, bytes, sizeof bytes), 0x8a9136aau); /* RFC 3720 B.4 */
    memset(bytes, 0xff, sizeof bytes);
    CHECK_INT(esp_crc32c(0, bytes, sizeof bytes), 0x62a8ab43u);
    for (size_t cut = 0; cut <= 9; cut++) {
        uint32_t crc = esp_crc32c(0, "123456789", cut);
        CHECK_INT(esp_crc32c(crc, "123456789" + cut, 9 - cut), 0xe3069283u);
    }
}

/* By instruction, where the processor has it, and by tables: every length, place and start. */
static void crc32c_both_ways(test_run *run)
{
    unsigned char bytes[96];
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] = (unsigned char)esp_random_below(&random, 256);
    }
    CHECK_INT(esp_crc32c_by_tables(0, "123456789", 9), 0xe3069283u);
    for (size_t from = 0; from < 9; from++) {
        for (size_t length = 0; from + length <= sizeof bytes; length++) {
            uint32_t start = (uint32_t)esp_random_below(&random, UINT64_C(1) << 32);
            CHECK_INT(esp_crc32c(start, bytes + from, length),
                      esp_crc32c_by_tables(start, bytes + from, length));
        }
    }
}

/* Every 16-bit pattern widens and narrows to itself; NaN stays NaN. */
static void half_round_trips(test_run *run)
{
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        float f16 = esp_float_of_f16((uint16_t)bits);
        float bf16 = esp_float_of_bf16((uint16_t)bits);
        if (f16 != f16) {
            CHECK((esp_f16_of_float(f16) & 0x7c00) == 0x7c00 && (esp_f16_of_float(f16) & 0x3ff));
        } else {
            CHECK_INT(esp_f16_of_float(f16), bits);
        }
        if (bf16 != bf16) {
            float again = esp_float_of_bf16(esp_bf16_of_float(bf16));
            CHECK(again != again);
        } else {
            CHECK_INT(esp_bf16_of_float(bf16), bits);
        }
    }
}

/* Against the neighbours: the result must be the nearest, ties to the even one. */
static void half_rounds_to_nearest_even(test_run *run)
{
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < 200000 && !test_failed(run); i++) {
        float value = esp_float_of_bits((uint32_t)esp_random_u64(&random));
        if (value != value || value > 65504.0f || value < -65504.0f) {
            continue;
        }
        uint16_t half = esp_f16_of_float(value);
        double error = (double)esp_float_of_f16(half) - (double)value;
        for (int step = -1; step <= 1; step += 2) {
            uint16_t other = (uint16_t)(half + step);
            if ((other & 0x7fff) > 0x7c00 || (half & 0x7fff) == 0) {
                continue;
            }
            double other_error = (double)esp_float_of_f16(other) - (double)value;
            double a = error < 0 ? -error : error, b = other_error < 0 ? -other_error : other_error;
            CHECK(a < b || (a == b && (half & 1) == 0));
        }
    }
    CHECK_INT(esp_f16_of_float(65520.0f), 0x7c00);
    CHECK_INT(esp_f16_of_float(65519.996f), 0x7bff);
    CHECK_INT(esp_bf16_of_float(esp_float_of_bits(0x3f808000u)), 0x3f80);
    CHECK_INT(esp_bf16_of_float(esp_float_of_bits(0x3f818000u)), 0x3f82);
}

static void globs(test_run *run)
{
    static const struct {
        const char *glob, *text;
        bool match;
    } rows[] = {
        {"*", "", true},
        {"*", "abc", true},
        {"a*c", "abbbc", true},
        {"a*c", "abbb", false},
        {"?", "", false},
        {"a?c", "abc", true},
        {"[a-c]x", "bx", true},
        {"[!a-c]x", "bx", false},
        {"[!a-c]x", "dx", true},
        {"[]]", "]", true},
        {"[ab", "a", false},
        {"*.weight", "m.q.weight", true},
        {"*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaac", false},
        {"", "", true},
        {"", "a", false},
        {"**x", "yx", true},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "'%s' against '%s'", rows[i].glob, rows[i].text);
        CHECK_INT(esp_glob_match(rows[i].glob, rows[i].text), rows[i].match);
    }
}

static void count_visits(void *user, int64_t begin, int64_t end, int thread)
{
    unsigned char *visits = user;
    (void)thread;
    for (int64_t i = begin; i < end; i++) {
        visits[i]++;
    }
}

static void loops_visit_each_index_once(test_run *run)
{
    static unsigned char visits[10007];
    for (int threads = 1; threads <= 5; threads++) {
        test_sub(run, "%d threads", threads);
        esp_context *context = test_context(run, threads);
        for (int64_t grain = 1; grain < 20000; grain = grain * 3 + 1) {
            memset(visits, 0, sizeof visits);
            esp_parallel_for(context, sizeof visits, grain, count_visits, visits);
            for (size_t i = 0; i < sizeof visits; i++) {
                CHECK(visits[i] == 1);
            }
        }
        esp_parallel_for(context, 0, 1, count_visits, visits);
        test_context_free(run, context);
    }
}

static void errors_are_one_printable_line(test_run *run)
{
    esp_error error;
    CHECK_INT(esp_fail(&error, ESP_BAD_FILE, "x.y", "a%sb", "\x1b[31m\n\t"), ESP_BAD_FILE);
    CHECK_TEXT(error.message, "a?[31m??b");
    CHECK_TEXT(error.code, "x.y");
    char longer[3000];
    memset(longer, 'x', sizeof longer);
    memcpy(longer + 1022, "\xc3\xa9", 2);
    longer[2999] = '\0';
    CHECK_INT(esp_fail(&error, ESP_FAILED, "x", "%s", longer), ESP_FAILED);
    CHECK_INT(strlen(error.message), 1022); /* not half a character */
    CHECK_INT(esp_fail_within(&error, ESP_FAILED, "file"), ESP_FAILED);
    CHECK(strncmp(error.message, "file: xxx", 9) == 0);
    CHECK_INT(esp_fail(NULL, ESP_IO, "x", "y"), ESP_IO);
}

static void context_options(test_run *run)
{
    esp_context *context = NULL;
    esp_context_options options = {.threads = -1};
    CHECK_FAILS(esp_context_create(&options, &context, error), ESP_BAD_ARGUMENT,
                "context.bad_threads");
    options = (esp_context_options){.threads = 1025};
    CHECK_FAILS(esp_context_create(&options, &context, error), ESP_BAD_ARGUMENT,
                "context.bad_threads");
    options = (esp_context_options){.cpu_level = "mmx"};
    CHECK_FAILS(esp_context_create(&options, &context, error), ESP_BAD_ARGUMENT,
                "context.bad_cpu_level");
    CHECK(context == NULL);
    esp_context_free(NULL);
}

static void tensor_sizes(test_run *run)
{
    size_t bytes = 7;
    int64_t elems = 7;
    esp_tensor tensor = {.dtype = ESP_F16, .rank = 2, .shape = {3, 5}};
    CHECK_OK(esp_tensor_size(&tensor, &elems, &bytes, error));
    CHECK_INT(elems, 15);
    CHECK_INT(bytes, 30);
    tensor = (esp_tensor){.dtype = ESP_F4, .rank = 1, .shape = {3}};
    CHECK_FAILS(esp_tensor_size(&tensor, &elems, &bytes, error), ESP_BAD_ARGUMENT,
                "tensor.bad_shape");
    tensor = (esp_tensor){.dtype = ESP_U8, .rank = 3, .shape = {INT64_MAX, INT64_MAX, 2}};
    CHECK_FAILS(esp_tensor_size(&tensor, &elems, &bytes, error), ESP_OUT_OF_MEMORY,
                "tensor.too_large");
    tensor.shape[2] = 0;
    CHECK_OK(esp_tensor_size(&tensor, &elems, &bytes, error));
    CHECK_INT(bytes, 0);
    tensor = (esp_tensor){.dtype = ESP_F64, .rank = 1, .shape = {INT64_MAX / 8}};
    CHECK_FAILS(esp_tensor_size(&tensor, &elems, &bytes, error), ESP_OUT_OF_MEMORY,
                "tensor.too_large");
    tensor = (esp_tensor){.dtype = ESP_F32, .rank = 0};
    CHECK_OK(esp_tensor_size(&tensor, &elems, &bytes, error));
    CHECK_INT(elems, 1);
    for (int i = ESP_BOOL; i <= ESP_F6_E3M2; i++) {
        CHECK_INT(esp_dtype_from_name(esp_dtype_name((esp_dtype)i)), i);
        CHECK_INT(esp_dtype_from_short_name(esp_dtype_short_name((esp_dtype)i)), i);
    }
    CHECK_INT(esp_dtype_from_name("f32"), ESP_DTYPE_INVALID);
}

static void json_faults(test_run *run)
{
    static const struct {
        const char *text, *code;
    } rows[] = {
        {"", "json.syntax"},
        {"[1]", "json.not_object"},
        {"{\"a\":1,\"a\":2}", "json.duplicate_key"},
        {"{\"a\":1,\"\\u0061\":2}", "json.duplicate_key"},
        {"{\"a\":1,}", "json.syntax"},
        {"{\"a\":NaN}", "json.syntax"},
        {"{} x", "json.syntax"},
        {"{\"a\":\"\xff\"}", "json.syntax"},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s", rows[i].text);
        json_t *json = NULL;
        CHECK_FAILS(esp_json_parse(rows[i].text, strlen(rows[i].text), "f", &json, error),
                    ESP_BAD_FILE, rows[i].code);
        CHECK(json == NULL);
    }
    test_sub(run, "depth 65");
    char deep[1024] = "{\"a\":";
    memset(deep + 5, '[', 64);
    memset(deep + 69, ']', 64);
    strcpy(deep + 133, "}");
    json_t *json = NULL;
    CHECK_FAILS(esp_json_parse(deep, strlen(deep), "f", &json, error), ESP_BAD_FILE,
                "json.too_deep");
}

static void file_faults(test_run *run)
{
    const char *folder = test_folder(run);
    int descriptor = -1;
    uint64_t bytes = 0;
    CHECK_FAILS(esp_file_open(test_path(folder, "absent"), &descriptor, &bytes, error),
                ESP_BAD_FILE, "file.not_found");
    CHECK_FAILS(esp_file_open(folder, &descriptor, &bytes, error), ESP_BAD_FILE,
                "file.not_regular");
    CHECK_FAILS(esp_file_open("/dev/null", &descriptor, &bytes, error), ESP_BAD_FILE,
                "file.not_regular");
    CHECK_INT(descriptor, -1);
    const char *path = test_path(folder, "new");
    CHECK_OK(esp_file_create(path, &descriptor, error));
    CHECK_OK(esp_file_write_at(descriptor, path, "abc", 3, 2, error));
    CHECK_OK(esp_file_sync_close(descriptor, path, error));
    CHECK_FAILS(esp_file_create(path, &descriptor, error), ESP_IO, "file.exists");
    char five[5];
    CHECK_OK(esp_file_open(path, &descriptor, &bytes, error));
    CHECK_INT(bytes, 5);
    CHECK_OK(esp_file_read_at(descriptor, path, five, 5, 0, error));
    CHECK(memcmp(five, "\0\0abc", 5) == 0);
    CHECK_FAILS(esp_file_read_at(descriptor, path, five, 5, 1, error), ESP_BAD_FILE, "file.shrunk");
    esp_file_close(descriptor);
}

static const test_case cases[] = {
    {"crc32c vectors", crc32c_vectors},
    {"crc32c both ways", crc32c_both_ways},
    {"half floats round trip", half_round_trips},
    {"half floats round to nearest even", half_rounds_to_nearest_even},
    {"globs", globs},
    {"loops visit each index once", loops_visit_each_index_once},
    {"errors are one printable line", errors_are_one_printable_line},
    {"context options", context_options},
    {"tensor sizes", tensor_sizes},
    {"json faults", json_faults},
    {"file faults", file_faults},
};
TEST_MAIN(cases)
