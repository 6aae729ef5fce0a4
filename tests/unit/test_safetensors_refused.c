/* Every way in which a safetensors file can be wrong is refused with its own code. The numbers are
 * those of docs/refused-inputs.md. */
#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <espalier/checkpoint.h>

#include "safetensors_bytes.h"

#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

static void check_refused(test_run *run, const char *path, const char *code)
{
    esp_context *context = test_context(run, 1);
    esp_safetensors *file = NULL;
    esp_error error = {0};
    esp_status status = esp_safetensors_open(context, path, &file, &error);
    if (status != ESP_BAD_FILE || strcmp(error.code, code) != 0) {
        test_fail(run, __FILE__, __LINE__, "got %s \"%s\" (%s), expected \"%s\"",
                  esp_status_name(status), error.code, error.message, code);
    }
    CHECK(file == NULL);
    CHECK(strstr(error.message, path) != NULL); /* says which file */
    esp_safetensors_close(file);
    test_context_free(run, context);
}

static void check_bytes_refused(test_run *run, const void *data, size_t length, const char *code)
{
    const char *path = test_path(test_folder(run), "refused.safetensors");
    test_write_file(run, path, data, length);
    check_refused(run, path, code);
    unlink(path);
}

/* ---- whole files ---- */

#define BYTES(text) text, sizeof(text) - 1
#define LFS                                                                                        \
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22ea\n"   \
    "size 12345\n"

static void containers(test_run *run)
{
    static const struct {
        int number;
        const char *name, *data;
        size_t length;
        const char *code;
    } rows[] = {
        {1, "empty file", BYTES(""), "safetensors.empty_file"},
        {2, "seven bytes", BYTES("\2\0\0\0\0\0\0"), "safetensors.too_short"},
        {3, "N = 0", BYTES("\0\0\0\0\0\0\0\0"), "safetensors.empty_header"},
        {3, "N = 0 and more", BYTES("\0\0\0\0\0\0\0\0{}"), "safetensors.empty_header"},
        {4, "N beyond the file", BYTES("\3\0\0\0\0\0\0\0{}"), "safetensors.header_truncated"},
        {4, "N and nothing behind it", BYTES("\2\0\0\0\0\0\0\0"), "safetensors.header_truncated"},
        {5, "N = 2^64-1", BYTES("\377\377\377\377\377\377\377\377{}"),
         "safetensors.header_length_overflow"},
        {6, "N = 2^63", BYTES("\0\0\0\0\0\0\0\200{}"), "safetensors.header_length_sign"},
        {7, "N = 100000001", BYTES("\1\341\365\5\0\0\0\0{}"), "safetensors.header_too_large"},
        {9, "git-lfs pointer", BYTES(LFS), "safetensors.is_git_lfs_pointer"},
        {10, "HTML page", BYTES("<!DOCTYPE html>\n<html><title>404</title>"),
         "safetensors.is_html"},
        {10, "HTML page behind spaces", BYTES("\r\n  <HTML lang=en>"), "safetensors.is_html"},
        {10, "XML error", BYTES("<?xml version=\"1.0\"?><Error/>"), "safetensors.is_html"},
        {11, "gzip", BYTES("\x1f\x8b\x08\0\0\0\0\0\0\3rest"), "safetensors.is_gzip"},
        {11, "zip", BYTES("PK\3\4\x14\0\0\0\0\0rest"), "safetensors.is_zip"},
        {11, "pickle protocol 2", BYTES("\200\2}q\0(X\1\0\0\0w"), "safetensors.is_pickle"},
        {11, "pickle protocol 4", BYTES("\200\4\225\x10\0\0\0\0\0\0\0}"), "safetensors.is_pickle"},
        {0, "GGUF", BYTES("GGUF\3\0\0\0\1\0\0\0"), "safetensors.is_gguf"},
        {0, "HDF5", BYTES("\x89HDF\r\n\x1a\n\0\0"), "safetensors.is_hdf5"},
        {0, "JSON text", BYTES("{\"error\": \"not found\"}"), "safetensors.is_json"},
        {12, "big-endian N", BYTES("\0\0\0\0\0\0\0\2{}"), "safetensors.big_endian"},
        {12, "big-endian N, padded", BYTES("\0\0\0\0\0\0\0\10{}      "), "safetensors.big_endian"},
    };
    for (int i = 0; i < COUNT(rows); i++) {
        test_sub(run, "%d %s", rows[i].number, rows[i].name);
        check_bytes_refused(run, rows[i].data, rows[i].length, rows[i].code);
    }
}

/* ---- headers ---- */

#define T(fields) "{\"w\":{" fields "}}"
#define DTYPE "\"dtype\":\"U8\""
#define SHAPE "\"shape\":[4]"
#define OFFSETS "\"data_offsets\":[0,4]"
#define W "\"w\":{" DTYPE "," SHAPE "," OFFSETS "}"
#define U8(name, begin, end, size)                                                                 \
    "\"" name "\":{\"dtype\":\"U8\",\"shape\":[" #size "],\"data_offsets\":[" #begin "," #end "]}"
#define AS(dtype, shape, begin, end)                                                               \
    "{\"w\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" begin "," end "]}}"

typedef struct header_row {
    int number;
    const char *name, *header;
    size_t length;
    size_t data; /* bytes behind the header */
    const char *code;
} header_row;

static void check_headers(test_run *run, const header_row *rows, int count)
{
    for (int i = 0; i < count; i++) {
        const header_row *row = &rows[i];
        test_sub(run, "%d %s", row->number, row->name);
        file_bytes bytes = make_file(row->length, row->header, row->length, NULL, row->data);
        check_bytes_refused(run, bytes.data, bytes.length, row->code);
        free(bytes.data);
    }
}

static void spelling(test_run *run)
{
    static const header_row rows[] = {
        {8, "data required, none there", BYTES("{" W "}"), 0, "safetensors.data_missing"},
        {17, "a byte that is not UTF-8", BYTES("{\"w\377\":1}"), 0, "safetensors.not_utf8"},
        {17, "outside of strings", BYTES("{\377}"), 0, "safetensors.not_utf8"},
        {17, "continuation missing", BYTES("{\"\303\":1}"), 0, "safetensors.not_utf8"},
        {17, "beyond U+10FFFF", BYTES("{\"\364\220\200\200\":1}"), 0, "safetensors.not_utf8"},
        {18, "overlong, two bytes", BYTES("{\"\300\257\":1}"), 0, "safetensors.overlong_utf8"},
        {18, "overlong, three bytes", BYTES("{\"\340\200\257\":1}"), 0,
         "safetensors.overlong_utf8"},
        {18, "overlong, four bytes", BYTES("{\"\360\200\200\257\":1}"), 0,
         "safetensors.overlong_utf8"},
        {19, "lone high surrogate", BYTES("{\"\\ud800\":1}"), 0, "safetensors.lone_surrogate"},
        {19, "lone low surrogate", BYTES("{\"\\udc00\":1}"), 0, "safetensors.lone_surrogate"},
        {19, "high and no low", BYTES("{\"\\ud800\\u0041\":1}"), 0, "safetensors.lone_surrogate"},
        {19, "surrogate in UTF-8", BYTES("{\"\355\240\200\":1}"), 0, "safetensors.utf8_surrogate"},
        {20, "top-level array", BYTES("[]"), 0, "safetensors.not_object"},
        {20, "top-level string", BYTES("\"{}\""), 0, "safetensors.not_object"},
        {20, "top-level number", BYTES("12"), 0, "safetensors.not_object"},
        {21, "unterminated object", BYTES("{\"w\":{"), 0, "safetensors.unterminated"},
        {21, "unterminated string", BYTES("{\"w"), 0, "safetensors.unterminated"},
        {21, "ends in an escape", BYTES("{\"w\\"), 0, "safetensors.unterminated"},
        {21, "only spaces", BYTES("        "), 0, "safetensors.unterminated"},
        {22, "a second object", BYTES("{}{}"), 0, "safetensors.after_object"},
        {22, "a byte behind", BYTES("{} x"), 0, "safetensors.after_object"},
        {22, "padding with NUL", BYTES("{}\0\0"), 0, "safetensors.after_object"},
        {30, "NUL by escape", BYTES("{\"w\\u0000\":1}"), 0, "safetensors.nul_in_name"},
        {30, "NUL byte", BYTES("{\"w\0\":1}"), 0, "safetensors.nul_in_name"},
        {30, "NUL in metadata", BYTES("{\"__metadata__\":{\"a\":\"\\u0000\"}}"), 0,
         "safetensors.nul_in_text"},
        {33, "1e3", BYTES(AS("U8", "1e3", "0", "4")), 4, "safetensors.number_exponent"},
        {34, "1.0", BYTES(AS("U8", "1.0", "0", "4")), 4, "safetensors.number_fraction"},
        {35, "-1", BYTES(AS("U8", "4", "-1", "4")), 4, "safetensors.number_negative"},
        {36, "01", BYTES(AS("U8", "01", "0", "1")), 1, "safetensors.number_leading_zero"},
        {37, "20 digits", BYTES(AS("U8", "4", "0", "18446744073709551615")), 4,
         "safetensors.number_too_large"},
        {37, "23 digits", BYTES(AS("U8", "99999999999999999999999", "0", "4")), 4,
         "safetensors.number_too_large"},
        {38, "NaN", BYTES(AS("U8", "NaN", "0", "4")), 4, "safetensors.number_not_finite"},
        {38, "Infinity", BYTES(AS("U8", "Infinity", "0", "4")), 4, "safetensors.number_not_finite"},
        {38, "-Infinity", BYTES(AS("U8", "-Infinity", "0", "4")), 4,
         "safetensors.number_not_finite"},
        {39, "comment", BYTES("{/* c */" W "}"), 4, "safetensors.comment"},
        {39, "line comment", BYTES("{" W "// c\n}"), 4, "safetensors.comment"},
        {39, "trailing comma", BYTES("{" W ",}"), 4, "safetensors.trailing_comma"},
        {39, "trailing comma in an array", BYTES(AS("U8", "4,", "0", "4")), 4,
         "safetensors.trailing_comma"},
        {40, "byte order mark", BYTES("\357\273\277{}"), 0, "safetensors.byte_order_mark"},
        {0, "control byte in a name", BYTES("{\"w\n\":1}"), 0, "safetensors.control_in_string"},
        {0, "unknown escape", BYTES("{\"\\x41\":1}"), 0, "safetensors.bad_escape"},
        {0, "short \\u", BYTES("{\"\\u00g0\":1}"), 0, "safetensors.bad_escape"},
        {0, "missing colon", BYTES("{\"w\" 1}"), 0, "safetensors.json_syntax"},
        {0, "missing value", BYTES("{\"w\":}"), 0, "safetensors.json_syntax"},
        {0, "missing comma", BYTES("{\"a\":1 \"b\":2}"), 0, "safetensors.json_syntax"},
        {0, "leading comma", BYTES("{,}"), 0, "safetensors.json_syntax"},
        {0, "wrong bracket", BYTES("{\"a\":[1}}"), 0, "safetensors.json_syntax"},
        {0, "single quotes", BYTES("{'w':1}"), 0, "safetensors.json_syntax"},
        {0, "bare word", BYTES("{\"w\":yes}"), 0, "safetensors.json_syntax"},
        {0, "plus sign", BYTES("{\"w\":+1}"), 0, "safetensors.json_syntax"},
    };
    check_headers(run, rows, COUNT(rows));
}

static void descriptors(test_run *run)
{
    static const header_row rows[] = {
        {23, "duplicate tensor", BYTES("{" W "," W "}"), 4, "safetensors.duplicate_key"},
        {23, "duplicate tensor, other content",
         BYTES("{" W ",\"w\":{\"dtype\":\"F32\",\"shape\":[1]," OFFSETS "}}"), 4,
         "safetensors.duplicate_key"},
        {24, "duplicate by an escape",
         BYTES("{" W ",\"\\u0077\":{" DTYPE "," SHAPE ",\"data_offsets\":[4,8]}}"), 8,
         "safetensors.duplicate_key_escaped"},
        {25, "duplicate dtype", BYTES(T(DTYPE "," DTYPE "," SHAPE "," OFFSETS)), 4,
         "safetensors.duplicate_field"},
        {25, "duplicate shape by an escape",
         BYTES(T(DTYPE "," SHAPE "," OFFSETS ",\"sh\\u0061pe\":[4]")), 4,
         "safetensors.duplicate_field"},
        {26, "duplicate __metadata__", BYTES("{\"__metadata__\":{},\"__metadata__\":{}}"), 0,
         "safetensors.duplicate_metadata"},
        {26, "duplicate metadata key", BYTES("{\"__metadata__\":{\"a\":\"1\",\"\\u0061\":\"2\"}}"),
         0, "safetensors.duplicate_metadata_key"},
        {27, "metadata number", BYTES("{\"__metadata__\":{\"a\":1}}"), 0,
         "safetensors.metadata_not_strings"},
        {27, "metadata object", BYTES("{\"__metadata__\":{\"a\":{}}}"), 0,
         "safetensors.metadata_not_strings"},
        {27, "metadata null", BYTES("{\"__metadata__\":{\"a\":null}}"), 0,
         "safetensors.metadata_not_strings"},
        {27, "metadata is an array", BYTES("{\"__metadata__\":[]}"), 0,
         "safetensors.metadata_not_object"},
        {31, "empty name", BYTES("{\"\":{" DTYPE "," SHAPE "," OFFSETS "}}"), 4,
         "safetensors.empty_name"},
        {41, "missing dtype", BYTES(T(SHAPE "," OFFSETS)), 4, "safetensors.missing_dtype"},
        {42, "missing shape", BYTES(T(DTYPE "," OFFSETS)), 4, "safetensors.missing_shape"},
        {43, "missing offsets", BYTES(T(DTYPE "," SHAPE)), 4, "safetensors.missing_offsets"},
        {44, "unknown dtype", BYTES(AS("F17", "4", "0", "4")), 4, "safetensors.unknown_dtype"},
        {44, "empty dtype", BYTES(AS("", "4", "0", "4")), 4, "safetensors.unknown_dtype"},
        {45, "lower-case dtype", BYTES(AS("f32", "1", "0", "4")), 4, "safetensors.dtype_case"},
        {46, "extra field", BYTES(T(DTYPE "," SHAPE "," OFFSETS ",\"x\":1")), 4,
         "safetensors.unknown_field"},
        {47, "one offset", BYTES(T(DTYPE "," SHAPE ",\"data_offsets\":[0]")), 4,
         "safetensors.offsets_not_two"},
        {47, "three offsets", BYTES(T(DTYPE "," SHAPE ",\"data_offsets\":[0,4,4]")), 4,
         "safetensors.offsets_not_two"},
        {47, "no offset", BYTES(T(DTYPE "," SHAPE ",\"data_offsets\":[]")), 4,
         "safetensors.offsets_not_two"},
        {48, "begin behind end", BYTES(AS("U8", "4", "4", "0")), 4, "safetensors.offsets_reversed"},
        {49, "end beyond the data", BYTES("{" U8("w", 0, 16, 16) "}"), 8, "safetensors.truncated"},
        {50, "hole at the start", BYTES("{" U8("w", 4, 8, 4) "}"), 8, "safetensors.hole_at_start"},
        {51, "hole in the middle", BYTES("{" U8("a", 0, 4, 4) "," U8("b", 6, 8, 2) "}"), 8,
         "safetensors.hole"},
        {52, "trailing bytes", BYTES("{" W "}"), 5, "safetensors.trailing_bytes"},
        {52, "no tensor but data", BYTES("{}"), 1, "safetensors.trailing_bytes"},
        {53, "partial overlap", BYTES("{" U8("a", 0, 4, 4) "," U8("b", 3, 8, 5) "}"), 8,
         "safetensors.overlap"},
        {53, "one inside another", BYTES("{" U8("a", 0, 8, 8) "," U8("b", 2, 4, 2) "}"), 8,
         "safetensors.overlap"},
        {53, "empty tensor inside another", BYTES("{" U8("a", 0, 8, 8) "," U8("b", 2, 2, 0) "}"), 8,
         "safetensors.overlap"},
        {54, "identical ranges", BYTES("{" U8("a", 0, 4, 4) "," U8("b", 0, 4, 4) "}"), 4,
         "safetensors.identical_ranges"},
        {55, "shape product overflow", BYTES(AS("U8", "4611686018427387904,8", "0", "4")), 4,
         "safetensors.shape_overflow"},
        {55, "overflow beside a zero", BYTES(AS("U8", "4611686018427387904,8,0", "0", "0")), 0,
         "safetensors.shape_overflow"},
        {56, "bits overflow", BYTES(AS("F32", "4611686018427387904", "0", "4")), 4,
         "safetensors.bits_overflow"},
        {57, "shape and range differ", BYTES(AS("F32", "2", "0", "4")), 4,
         "safetensors.size_mismatch"},
        {57, "rank 0 with two elements' bytes", BYTES(AS("F32", "", "0", "8")), 8,
         "safetensors.size_mismatch"},
        {59, "F4 with an odd count", BYTES(AS("F4", "3", "0", "2")), 2, "safetensors.sub_byte"},
        {59, "F6 with three", BYTES(AS("F6_E2M3", "3", "0", "3")), 3, "safetensors.sub_byte"},
        {60, "dim 2^63", BYTES(AS("U8", "9223372036854775808", "0", "4")), 4,
         "safetensors.dim_too_large"},
        {0, "descriptor is a number", BYTES("{\"w\":1}"), 0, "safetensors.wrong_type"},
        {0, "descriptor is an array", BYTES("{\"w\":[]}"), 0, "safetensors.wrong_type"},
        {0, "dtype is a number", BYTES(T("\"dtype\":1," SHAPE "," OFFSETS)), 4,
         "safetensors.wrong_type"},
        {0, "shape is a string", BYTES(T(DTYPE ",\"shape\":\"4\"," OFFSETS)), 4,
         "safetensors.wrong_type"},
        {0, "size is a string", BYTES(T(DTYPE ",\"shape\":[\"4\"]," OFFSETS)), 4,
         "safetensors.wrong_type"},
        {0, "offset is null", BYTES(T(DTYPE "," SHAPE ",\"data_offsets\":[0,null]")), 4,
         "safetensors.wrong_type"},
        {0, "offsets are an object", BYTES(T(DTYPE "," SHAPE ",\"data_offsets\":{}")), 4,
         "safetensors.wrong_type"},
    };
    check_headers(run, rows, COUNT(rows));
}

/* ---- too much of something ---- */

typedef struct text {
    char *data;
    size_t length;
} text;

static void put(text *to, const char *piece)
{
    size_t length = strlen(piece);
    memcpy(to->data + to->length, piece, length);
    to->length += length;
}

static void check_made(test_run *run, text header, size_t data, const char *code)
{
    file_bytes bytes = make_file(header.length, header.data, header.length, NULL, data);
    check_bytes_refused(run, bytes.data, bytes.length, code);
    free(bytes.data);
    free(header.data);
}

static text deep_header(void)
{
    text made = {malloc(300000), 0};
    put(&made, "{\"w\":");
    memset(made.data + made.length, '[', 100000);
    memset(made.data + made.length + 100000, ']', 100000);
    made.length += 200000;
    put(&made, "}");
    return made;
}

/* count tensors named t0.. that all lie at [0, 1), or (apart) side by side. */
static text many_tensors(int count, int apart)
{
    text made = {malloc((size_t)count * 80 + 100), 0};
    char piece[100];
    put(&made, "{");
    for (int i = 0; i < count; i++) {
        int at = apart ? i : 0;
        snprintf(piece, sizeof piece,
                 "%s\"t%d\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}",
                 i > 0 ? "," : "", i, at, at + 1);
        put(&made, piece);
    }
    put(&made, "}");
    return made;
}

static text long_name(size_t bytes)
{
    text made = {malloc(bytes + 200), 0};
    put(&made, "{\"");
    memset(made.data + made.length, 'n', bytes);
    made.length += bytes;
    put(&made, "\":{" DTYPE "," SHAPE "," OFFSETS "}}");
    return made;
}

static text high_rank(int rank)
{
    text made = {malloc(1000), 0};
    put(&made, "{\"w\":{" DTYPE ",\"shape\":[4");
    for (int i = 1; i < rank; i++) {
        put(&made, ",1");
    }
    put(&made, "]," OFFSETS "}}");
    return made;
}

static void too_much(test_run *run)
{
    test_sub(run, "28 nesting of 100,000");
    check_made(run, deep_header(), 0, "safetensors.too_deep");
    test_sub(run, "29 1,000,001 entries");
    check_made(run, many_tensors(1000001, 1), 0, "safetensors.too_many_entries");
    test_sub(run, "32 a name of 10 MB");
    check_made(run, long_name(10000000), 4, "safetensors.name_too_long");
    test_sub(run, "32 a name of 4097 bytes");
    check_made(run, long_name(4097), 4, "safetensors.name_too_long");
    test_sub(run, "54 ten on one range");
    check_made(run, many_tensors(10, 0), 1, "safetensors.identical_ranges");
    test_sub(run, "54 100,000 on one range");
    check_made(run, many_tensors(100000, 0), 1, "safetensors.identical_ranges");
    test_sub(run, "58 rank 65");
    check_made(run, high_rank(65), 4, "safetensors.rank_too_high");
}

/* ---- not files ---- */

static void not_files(test_run *run)
{
    const char *folder = test_folder(run), *path;
    test_sub(run, "13 a folder");
    check_refused(run, folder, "file.not_regular");
    test_sub(run, "13 a FIFO");
    path = test_path(folder, "fifo.safetensors");
    CHECK_INT(mkfifo(path, 0600), 0);
    check_refused(run, path, "file.not_regular");
    test_sub(run, "13 a device");
    check_refused(run, "/dev/zero", "file.not_regular");
    test_sub(run, "16 a circle of links");
    path = test_path(folder, "circle.safetensors");
    CHECK_INT(symlink("circle.safetensors", path), 0);
    check_refused(run, path, "file.symlink_loop");
    test_sub(run, "0 absent");
    check_refused(run, test_path(folder, "absent"), "file.not_found");
}

/* Root may read everything, so the case is run as somebody else. */
static void unreadable(test_run *run)
{
    const char *path = test_path(test_folder(run), "secret.safetensors");
    bool root = geteuid() == 0;
    write_safetensors(run, path, "{}", NULL, 0);
    chmod(path, 0);
    test_sub(run, "14 unreadable");
    if (root && seteuid(65534) != 0) {
        test_skip(run, "cannot become another user");
        return;
    }
    check_refused(run, path, "file.unreadable");
    if (root) {
        CHECK_INT(seteuid(0), 0);
    }
}

static void shrinking(test_run *run)
{
    const char *path = test_path(test_folder(run), "shrinks.safetensors");
    esp_context *context = test_context(run, 1);
    esp_safetensors *file = NULL;
    char four[4];
    test_sub(run, "15 shrinks while it is open");
    write_safetensors(run, path, "{" W "}", "abcd", 4);
    REQUIRE_OK(esp_safetensors_open(context, path, &file, error));
    CHECK_OK(esp_safetensors_read(file, 0, four, error));
    CHECK(memcmp(four, "abcd", 4) == 0);
    CHECK_INT(truncate(path, 20), 0);
    CHECK_FAILS(esp_safetensors_read(file, 0, four, error), ESP_BAD_FILE, "file.shrunk");
    esp_safetensors_close(file);
    test_context_free(run, context);
}

/* The message of a cut download gives both sizes. */
static void sizes_in_message(test_run *run)
{
    const char *path = test_path(test_folder(run), "cut.safetensors");
    esp_context *context = test_context(run, 1);
    esp_safetensors *file = NULL;
    esp_error error = {0};
    char expected[32];
    write_safetensors(run, path, "{" U8("w", 0, 16, 16) "}", NULL, 6);
    CHECK_INT(esp_safetensors_open(context, path, &file, &error), ESP_BAD_FILE);
    snprintf(expected, sizeof expected, "%zu bytes", 8 + strlen("{" U8("w", 0, 16, 16) "}") + 16);
    CHECK(strstr(error.message, expected) != NULL);
    snprintf(expected, sizeof expected, "has %zu", 8 + strlen("{" U8("w", 0, 16, 16) "}") + 6);
    CHECK(strstr(error.message, expected) != NULL);
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"whole files", containers},  {"spelling of the header", spelling},
    {"descriptors", descriptors}, {"too much", too_much},
    {"not files", not_files},     {"unreadable", unreadable},
    {"shrinking", shrinking},     {"sizes in the message", sizes_in_message},
};
TEST_MAIN(cases)
