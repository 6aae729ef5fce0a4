/* What a safetensors file may be is read right; files cut or changed anywhere never crash the
 * reader; and what the writer makes is what it should be, byte by byte. */
#include <stdio.h>
#include <unistd.h>

#include "failing_allocator.h"
#include "io/io.h"
#include "safetensors_bytes.h"

static esp_safetensors *open_bytes(test_run *run, esp_context *context, const char *header,
                                   const char *content, size_t content_bytes)
{
    const char *path = test_path(test_folder(run), "accepted.safetensors");
    esp_safetensors *file = NULL;
    write_safetensors(run, path, header, content, content_bytes);
    CHECK_OK(esp_safetensors_open(context, path, &file, error));
    return file;
}

/* ---- accepted ---- */

static const struct {
    const char *name, *header, *content;
    size_t bytes;
    int64_t count;
} accepted[] = {
    {"no tensor", "{}", "", 0, 0},
    {"empty metadata", "{\"__metadata__\":{}}", "", 0, 0},
    {"padding behind", "{}      ", "", 0, 0},
    {"space of every kind around", " \t\r\n{\n} \t\r\n", "", 0, 0},
    {"zero dim", "{\"w\":{\"dtype\":\"F32\",\"shape\":[3,0],\"data_offsets\":[0,0]}}", "", 0, 1},
    {"rank 0", "{\"w\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}", "a", 1, 1},
    {"unaligned start",
     "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
     "\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[1,5]}}",
     "abcde", 5, 2},
    {"out of order, fields too",
     "{\"b\":{\"data_offsets\":[2,4],\"dtype\":\"U8\",\"shape\":[2]},"
     "\"a\":{\"shape\":[2],\"data_offsets\":[0,2],\"dtype\":\"I8\"}}",
     "abcd", 4, 2},
    {"several empty ones at one place",
     "{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},"
     "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
     "\"c\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},"
     "\"d\":{\"dtype\":\"U8\",\"shape\":[0,7],\"data_offsets\":[2,2]}}",
     "ab", 2, 4},
    {"four-bit elements", "{\"w\":{\"dtype\":\"F4\",\"shape\":[4],\"data_offsets\":[0,2]}}", "ab",
     2, 1},
    {"six-bit elements", "{\"w\":{\"dtype\":\"F6_E3M2\",\"shape\":[4],\"data_offsets\":[0,3]}}",
     "abc", 3, 1},
};

static void accepted_files(test_run *run)
{
    for (int i = 0; i < ESP_COUNT(accepted); i++) {
        test_sub(run, "%s", accepted[i].name);
        esp_context *context = test_context(run, 1);
        esp_safetensors *file =
            open_bytes(run, context, accepted[i].header, accepted[i].content, accepted[i].bytes);
        if (file != NULL) {
            char all[8];
            size_t at = 0;
            CHECK_INT(esp_safetensors_count(file), accepted[i].count);
            for (int64_t k = 0; k < esp_safetensors_count(file); k++) {
                esp_tensor_info info = esp_safetensors_get(file, k);
                CHECK_INT(esp_safetensors_find(file, info.name), k);
                CHECK_OK(esp_safetensors_read(file, k, all + at, error));
                at += info.bytes;
            }
            CHECK(at == accepted[i].bytes && memcmp(all, accepted[i].content, at) == 0);
        }
        esp_safetensors_close(file);
        test_context_free(run, context);
    }
}

static void every_dtype(test_run *run)
{
    for (int dtype = ESP_BOOL; dtype <= ESP_F6_E3M2; dtype++) {
        char header[200];
        unsigned bytes = esp_dtype_bits((esp_dtype)dtype) * 8 / 8;
        test_sub(run, "%s", esp_dtype_name((esp_dtype)dtype));
        snprintf(header, sizeof header,
                 "{\"w\":{\"dtype\":\"%s\",\"shape\":[2,4],\"data_offsets\":[0,%u]}}",
                 esp_dtype_name((esp_dtype)dtype), bytes);
        esp_context *context = test_context(run, 1);
        esp_safetensors *file = open_bytes(run, context, header, NULL, bytes);
        if (file != NULL) {
            CHECK_INT(esp_safetensors_get(file, 0).dtype, dtype);
            CHECK_INT(esp_safetensors_get(file, 0).shape[1], 4);
        }
        esp_safetensors_close(file);
        test_context_free(run, context);
    }
}

static void facts_are_right(test_run *run)
{
    static const char header[] =
        "  {\"__metadata__\":{\"format\":\"pt\",\"a\\\"b\":\"\\ud83c\\udf33\\n\"},"
        "\"\\u00e9t\\u00e9\":{\"dtype\":\"BF16\",\"shape\":[1,2],\"data_offsets\":[4,8]},"
        "\"\\/\\\\\\u20ac\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
    esp_context *context = test_context(run, 1);
    esp_safetensors *file = open_bytes(run, context, header, "abcdefgh", 8);
    REQUIRE(file != NULL);
    CHECK_INT(esp_safetensors_count(file), 2);
    CHECK_TEXT(esp_safetensors_get(file, 0).name, "/\\\xe2\x82\xac");
    esp_tensor_info info = esp_safetensors_get(file, 1);
    CHECK_TEXT(info.name, "\xc3\xa9t\xc3\xa9");
    CHECK_INT(info.dtype, ESP_BF16);
    CHECK_INT(info.rank, 2);
    CHECK_INT(info.shape[0], 1);
    CHECK_INT(info.shape[1], 2);
    CHECK_INT(info.bytes, 4);
    CHECK_INT(info.file_offset, 8 + strlen(header) + 4);
    CHECK_TEXT(esp_safetensors_metadata(file, "format"), "pt");
    CHECK_TEXT(esp_safetensors_metadata(file, "a\"b"), "\xf0\x9f\x8c\xb3\n");
    CHECK(esp_safetensors_metadata(file, "absent") == NULL);
    CHECK_INT(esp_safetensors_find(file, "absent"), -1);
    CHECK_INT(esp_safetensors_find(file, ""), -1);
    esp_safetensors_close(file);
    esp_safetensors_close(NULL);
    test_context_free(run, context);
}

static void rank_64(test_run *run)
{
    char header[400] = "{\"w\":{\"dtype\":\"U8\",\"shape\":[2";
    for (int i = 1; i < 64; i++) {
        strcat(header, ",1");
    }
    strcat(header, "],\"data_offsets\":[0,2]}}");
    esp_context *context = test_context(run, 1);
    esp_safetensors *file = open_bytes(run, context, header, "ab", 2);
    REQUIRE(file != NULL);
    CHECK_INT(esp_safetensors_get(file, 0).rank, 64);
    esp_safetensors_close(file);
    test_context_free(run, context);
}

/* ---- cut and changed files ---- */

static const char small_header[] =
    "{\"__metadata__\":{\"format\":\"pt\"},"
    "\"embed\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
    "\"n\\u006frm\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[16,24]}}";

static void every_prefix(test_run *run)
{
    const char *path = test_path(test_folder(run), "prefix.safetensors");
    file_bytes whole =
        make_file(strlen(small_header), small_header, strlen(small_header), NULL, 24);
    for (size_t length = 0; length < whole.length; length++) {
        test_sub(run, "%zu of %zu bytes", length, whole.length);
        esp_context *context = test_context(run, 1);
        esp_safetensors *file = NULL;
        unlink(path); /* writing over a file makes some file systems flush it */
        test_write_file(run, path, whole.data, length);
        CHECK_FAILS(esp_safetensors_open(context, path, &file, error), ESP_BAD_FILE, NULL);
        CHECK(file == NULL);
        esp_safetensors_close(file);
        test_context_free(run, context);
    }
    free(whole.data);
}

/* Whatever opens must be consistent: ranges inside the file, sizes that fit the shapes. */
static void check_consistent(test_run *run, const esp_safetensors *file, uint64_t size)
{
    uint64_t total = 0;
    for (int64_t i = 0; i < esp_safetensors_count(file); i++) {
        char data[64];
        esp_tensor_info info = esp_safetensors_get(file, i);
        uint64_t bits = esp_dtype_bits(info.dtype);
        for (int k = 0; k < info.rank; k++) {
            bits *= (uint64_t)info.shape[k];
        }
        CHECK(bits == info.bytes * 8);
        CHECK(info.file_offset <= size && info.bytes <= size - info.file_offset);
        CHECK_INT(esp_safetensors_find(file, info.name), i);
        total += info.bytes;
        if (info.bytes <= sizeof data) {
            CHECK_OK(esp_safetensors_read(file, i, data, error));
        }
    }
    CHECK_INT(total, 24);
}

static int try_bytes(test_run *run, const char *path, const file_bytes *bytes)
{
    esp_context *context = test_context(run, 1);
    esp_safetensors *file = NULL;
    esp_error error = {0};
    unlink(path);
    test_write_file(run, path, bytes->data, bytes->length);
    esp_status status = esp_safetensors_open(context, path, &file, &error);
    if (status == ESP_OK) {
        check_consistent(run, file, bytes->length);
    } else {
        CHECK_INT(status, ESP_BAD_FILE);
        CHECK(error.code[0] != '\0' && error.message[0] != '\0');
    }
    esp_safetensors_close(file);
    test_context_free(run, context);
    return status == ESP_OK;
}

static void every_byte_changed(test_run *run)
{
    static const unsigned char changes[] = {0x01, 0x20, 0x80, 0xff, 0x22, 0x5c, 0x7b, 0x04};
    const char *path = test_path(test_folder(run), "changed.safetensors");
    file_bytes whole =
        make_file(strlen(small_header), small_header, strlen(small_header), NULL, 24);
    int refused = 0, accepted_count = 0;
    for (size_t at = 0; at < 8 + strlen(small_header); at++) {
        test_sub(run, "byte %zu changed", at);
        for (size_t i = 0; i < sizeof changes; i++) {
            whole.data[at] = (char)(whole.data[at] ^ changes[i]);
            int fine = try_bytes(run, path, &whole);
            accepted_count += fine;
            refused += !fine;
            whole.data[at] = (char)(whole.data[at] ^ changes[i]);
        }
    }
    test_sub(run, "most changes are refused");
    CHECK(refused > 3 * accepted_count && accepted_count > 0);
    free(whole.data);
}

/* Several bytes at once, drawn from what JSON is made of. */
static void random_changes(test_run *run)
{
    static const char alphabet[] = "{}[]\",:\\0123456789eE.-+ \nu\xc3\x28/*tfnull";
    const char *path = test_path(test_folder(run), "random.safetensors");
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int round = 0; round < 1000 && !test_failed(run); round++) {
        file_bytes bytes =
            make_file(strlen(small_header), small_header, strlen(small_header), NULL, 24);
        uint64_t changes = 1 + esp_random_below(&random, 4);
        for (uint64_t i = 0; i < changes; i++) {
            size_t at = 8 + esp_random_below(&random, strlen(small_header));
            bytes.data[at] = alphabet[esp_random_below(&random, sizeof alphabet - 1)];
        }
        try_bytes(run, path, &bytes);
        free(bytes.data);
    }
}

/* ---- many tensors ---- */

static void many_tensors_open_quickly(test_run *run)
{
    const int count = 100000;
    char *header = malloc((size_t)count * 120);
    char *at = header;
    at += sprintf(at, "{");
    for (int i = 0; i < count; i++) {
        at += sprintf(at,
                      "%s\"model.layers.%d.mlp.weight\":{\"dtype\":\"U8\",\"shape\":[1],"
                      "\"data_offsets\":[%d,%d]}",
                      i > 0 ? "," : "", (i * 7919) % count, i, i + 1);
    }
    strcpy(at, "}");
    esp_context *context = test_context(run, 1);
    double started = esp_seconds();
    esp_safetensors *file = open_bytes(run, context, header, NULL, (size_t)count);
    double taken = esp_seconds() - started;
    REQUIRE(file != NULL);
    CHECK_INT(esp_safetensors_count(file), count);
    CHECK_INT(esp_safetensors_find(file, "model.layers.7919.mlp.weight"), 1);
    CHECK(taken < 5.0); /* far above what is usual: only a wrong growth is caught */
    esp_safetensors_close(file);
    test_context_free(run, context);
    free(header);
}

/* ---- the writer ---- */

static void declare(test_run *run, esp_safetensors_writer *writer, const char *name,
                    esp_dtype dtype, int64_t size)
{
    esp_tensor tensor = {.dtype = dtype, .rank = 1, .shape = {size}};
    CHECK_OK(esp_safetensors_writer_declare(writer, name, &tensor, error));
}

static void written_bytes(test_run *run)
{
    static const char expected[] =
        "\0\1\0\0\0\0\0\0{\"__metadata__\":{\"format\":\"pt\"},"
        "\"z\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
        "\"a\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[4,8]},"
        "\"c\\\"\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[8,10]},"
        "\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[10,13]}}       zzzzaaaaccbbb";
    const char *path = test_path(test_folder(run), "written.safetensors");
    esp_context *context = test_context(run, 1);
    esp_safetensors_writer *writer = NULL;
    uint64_t bytes = 0;
    char *text = NULL;
    size_t length = 0;
    REQUIRE_OK(esp_safetensors_writer_create(context, &writer, error));
    declare(run, writer, "b", ESP_U8, 3);
    declare(run, writer, "a", ESP_BF16, 2);
    declare(run, writer, "z", ESP_F32, 1);
    declare(run, writer, "c\"", ESP_F16, 1);
    CHECK_OK(esp_safetensors_writer_place(writer, &bytes, error));
    CHECK_OK(esp_safetensors_writer_begin(writer, path, error));
    CHECK_FAILS(esp_safetensors_writer_write(writer, "x", "", error), ESP_BAD_ARGUMENT,
                "safetensors.bad_write");
    CHECK_OK(esp_safetensors_writer_write(writer, "c\"", "cc", error));
    CHECK_OK(esp_safetensors_writer_write(writer, "z", "zzzz", error));
    CHECK_FAILS(esp_safetensors_writer_write(writer, "z", "zzzz", error), ESP_BAD_ARGUMENT,
                "safetensors.bad_write");
    CHECK_OK(esp_safetensors_writer_write(writer, "b", "bbb", error));
    CHECK_FAILS(esp_safetensors_writer_finish(writer, error), ESP_BAD_ARGUMENT,
                "safetensors.not_written");
    CHECK_OK(esp_safetensors_writer_write(writer, "a", "aaaa", error));
    CHECK_OK(esp_safetensors_writer_finish(writer, error));
    esp_safetensors_writer_free(writer);
    REQUIRE_OK(esp_file_read_all(context, path, 1000, "x", &text, &length, error));
    CHECK_INT(bytes, length);
    CHECK_INT(length, sizeof expected - 1);
    CHECK_INT(text[0], (unsigned char)expected[0]);
    CHECK(length == sizeof expected - 1 && memcmp(text, expected, length) == 0);
    if (test_failed(run)) {
        printf("%s\n", text + 8);
    }
    esp_release(context, text);
    test_context_free(run, context);
}

static void writer_refuses(test_run *run)
{
    static const char *const names[] = {"", "__metadata__", "\xff", "\xc0\xaf", "\xed\xa0\x80"};
    esp_context *context = test_context(run, 1);
    esp_safetensors_writer *writer = NULL;
    uint64_t bytes;
    esp_tensor tensor = {.dtype = ESP_U8, .rank = 1, .shape = {1}};
    REQUIRE_OK(esp_safetensors_writer_create(context, &writer, error));
    for (int i = 0; i < ESP_COUNT(names); i++) {
        CHECK_FAILS(esp_safetensors_writer_declare(writer, names[i], &tensor, error),
                    ESP_BAD_ARGUMENT, "safetensors.bad_name");
    }
    declare(run, writer, "w", ESP_U8, 1);
    declare(run, writer, "w", ESP_F32, 1);
    CHECK_FAILS(esp_safetensors_writer_place(writer, &bytes, error), ESP_BAD_ARGUMENT,
                "safetensors.declared_twice");
    esp_safetensors_writer_free(writer);
    REQUIRE_OK(esp_safetensors_writer_create(context, &writer, error));
    declare(run, writer, "a", ESP_U8, INT64_MAX / 8);
    declare(run, writer, "b", ESP_U8, INT64_MAX / 8);
    declare(run, writer, "c", ESP_U8, INT64_MAX / 8);
    declare(run, writer, "d", ESP_U8, INT64_MAX / 8);
    declare(run, writer, "e", ESP_U8, INT64_MAX / 8);
    CHECK_FAILS(esp_safetensors_writer_place(writer, &bytes, error), ESP_BAD_ARGUMENT,
                "safetensors.too_large");
    esp_safetensors_writer_free(writer);
    test_context_free(run, context);
}

/* ---- memory that runs out ---- */

/* The n-th allocation fails, for every n: nothing leaks, and the status says so. */
static void every_allocation_fails(test_run *run)
{
    const char *path = test_path(test_folder(run), "memory.safetensors");
    write_safetensors(run, path, small_header, NULL, 24);
    for (int n = 0; n < 64; n++) {
        failing state = {.left = 1000};
        esp_context_options options = {.threads = 1,
                                       .allocator = {failing_allocate, failing_release, &state}};
        esp_context *context = NULL;
        esp_safetensors *file = NULL;
        REQUIRE_OK(esp_context_create(&options, &context, error));
        long before = state.live;
        state.left = n;
        esp_error error = {0};
        esp_status status = esp_safetensors_open(context, path, &file, &error);
        if (status != ESP_OK) {
            test_sub(run, "allocation %d fails", n);
            CHECK_INT(status, ESP_OUT_OF_MEMORY);
            CHECK_INT(state.live, before);
        }
        esp_safetensors_close(file);
        CHECK_INT(state.live, before);
        esp_context_free(context);
        if (status == ESP_OK) {
            CHECK(n > 5);
            return;
        }
    }
    test_fail(run, __FILE__, __LINE__, "never succeeded");
}

static const test_case cases[] = {
    {"accepted files", accepted_files},
    {"every dtype", every_dtype},
    {"facts are right", facts_are_right},
    {"rank 64", rank_64},
    {"every prefix is refused", every_prefix},
    {"every byte changed", every_byte_changed},
    {"random changes", random_changes},
    {"many tensors open quickly", many_tensors_open_quickly},
    {"written bytes", written_bytes},
    {"writer refuses", writer_refuses},
    {"every allocation fails", every_allocation_fails},
};
TEST_MAIN(cases)
