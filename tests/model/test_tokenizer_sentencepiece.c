/* SentencePiece-like tokenizers against goldens of the Hugging Face library
 * (tools/golden/make_sentencepiece.py): two files and variants of them, ids of generated texts, and
 * what the ids print as. */
#include <stdio.h>
#include <string.h>

#include "model/tokenizer.h"
#include "test.h"
#include "tokenizer_texts.h"

static void write_tokenizer(test_run *run, const char *folder, const json_t *json)
{
    char *text = json_dumps(json, JSON_COMPACT);
    test_write_file(run, test_path(folder, "tokenizer.json"), text, strlen(text));
    free(text);
}

static json_t *base_file(const char *name)
{
    char path[64];
    snprintf(path, sizeof path, "%s.tokenizer.json", name);
    return golden(path);
}

/* The base with the values of "set" put at their dotted paths and the tokens "without" taken out.
 */
static json_t *variant_file(const json_t *variant)
{
    json_t *json = base_file(json_string_value(json_object_get(variant, "base")));
    const char *path;
    json_t *value;
    size_t i;
    json_object_foreach(json_object_get(variant, "set"), path, value)
    {
        bool of_model = strncmp(path, "model.", 6) == 0;
        json_object_set(of_model ? json_object_get(json, "model") : json,
                        of_model ? path + 6 : path, value);
    }
    json_t *vocabulary = json_object_get(json_object_get(json, "model"), "vocab");
    json_array_foreach(json_object_get(variant, "without"), i, value)
    {
        char renamed[32];
        snprintf(renamed, sizeof renamed, "no %s", json_string_value(value));
        json_object_set(vocabulary, renamed, json_object_get(vocabulary, json_string_value(value)));
        json_object_del(vocabulary, json_string_value(value));
    }
    return json;
}

static uint64_t hash_text(const esp_buffer *text, uint64_t hash)
{
    hash = fnv((uint32_t)text->length, hash);
    for (size_t i = 0; i < text->length; i++) {
        hash = (hash ^ (unsigned char)text->data[i]) * 0x100000001b3u;
    }
    return hash;
}

static void print_ids(const esp_tokenizer *tokenizer, const int32_t *ids, int64_t count, bool show,
                      esp_buffer *out)
{
    int32_t place = 0;
    esp_buffer_clear(out);
    for (int64_t i = 0; i < count; i++) {
        size_t length = 77;
        const char *bytes = esp_tokenizer_next(tokenizer, ids[i], show, &place, &length);
        esp_buffer_append(out, bytes != NULL ? bytes : "", length);
    }
}

/* The hash covers all lists of a batch without special tokens, then all with them. */
typedef struct printed {
    int32_t ids[16384];
    int64_t starts[513];
    int count;
} printed;

static uint64_t hash_printed(const esp_tokenizer *tokenizer, const printed *lists)
{
    uint64_t hash = 0xcbf29ce484222325u;
    esp_buffer out;
    esp_buffer_init(&out, tokenizer->context);
    for (int show = 0; show < 2; show++) {
        for (int i = 0; i < lists->count; i++) {
            print_ids(tokenizer, lists->ids + lists->starts[i],
                      lists->starts[i + 1] - lists->starts[i], show == 1, &out);
            hash = hash_text(&out, hash);
        }
    }
    esp_buffer_free(&out);
    return hash;
}

static bool keep(printed *lists, const int32_t *ids, int64_t count)
{
    int64_t start = lists->starts[lists->count];
    if (lists->count >= ESP_COUNT(lists->starts) - 1 || start + count > ESP_COUNT(lists->ids)) {
        return false;
    }
    if (count > 0) {
        memcpy(lists->ids + start, ids, (size_t)count * sizeof *ids);
    }
    lists->starts[++lists->count] = start + count;
    return true;
}

static void check_hash(test_run *run, uint64_t hash, const json_t *expected)
{
    char found[17];
    snprintf(found, sizeof found, "%016llx", (unsigned long long)hash);
    CHECK_TEXT(found, json_string_value(expected));
}

static void compare_batches(test_run *run, const esp_tokenizer *tokenizer, const char *name,
                            const json_t *expected, source *from)
{
    json_int_t batch = json_integer_value(json_object_get(expected, "batch"));
    const json_t *hashes = json_object_get(expected, "hashes");
    const json_t *decoded = json_object_get(expected, "decoded");
    static printed lists;
    esp_buffer text;
    esp_buffer_init(&text, tokenizer->context);
    CHECK(json_array_size(hashes) > 0 && json_array_size(decoded) == json_array_size(hashes));
    for (size_t i = 0; i < json_array_size(hashes); i++) {
        test_sub(run, "%s texts %lld to %lld", name, (long long)i * batch,
                 (long long)(i + 1) * batch - 1);
        uint64_t hash = 0xcbf29ce484222325u;
        lists.count = 0;
        for (json_int_t k = 0; k < batch && !test_failed(run); k++) {
            int32_t *ids = NULL;
            int64_t count = 0;
            make_text(from, &text);
            CHECK_OK(
                esp_tokenizer_encode(tokenizer, text.data, text.length, true, &ids, &count, error));
            hash = hash_ids(ids, count, hash);
            CHECK(keep(&lists, ids, count));
            esp_ids_free(tokenizer, ids);
        }
        check_hash(run, hash, json_array_get(hashes, i));
        check_hash(run, hash_printed(tokenizer, &lists), json_array_get(decoded, i));
    }
    esp_buffer_free(&text);
}

/* Ids in no order that a text could have; without the tokens of bytes 0x80 and up, which mostly are
 * no part of a character then. */
static void compare_lists(test_run *run, const esp_tokenizer *tokenizer, const char *name,
                          const json_t *expected, source *from)
{
    size_t size = (size_t)json_integer_value(json_object_get(expected, "size"));
    static printed lists;
    lists.count = 0;
    test_sub(run, "%s lists of ids", name);
    CHECK_INT(esp_tokenizer_size(tokenizer), size);
    for (json_int_t i = json_integer_value(json_object_get(expected, "lists")); i > 0; i--) {
        int32_t ids[16];
        int count = 0;
        for (size_t k = 1 + below(from, 16); k > 0; k--) {
            int32_t id = (int32_t)below(from, size);
            ids[count] = id;
            count += id < 131 || id >= 259;
        }
        CHECK(keep(&lists, ids, count));
    }
    check_hash(run, hash_printed(tokenizer, &lists), json_object_get(expected, "lists_decoded"));
}

static void compare_by_hand(test_run *run, const esp_tokenizer *tokenizer, const char *name,
                            const json_t *expected)
{
    size_t i, k;
    json_t *row, *id;
    json_array_foreach(json_object_get(expected, "by_hand"), i, row)
    {
        const json_t *text = json_object_get(row, "text");
        int32_t *found = NULL;
        int64_t count = 0;
        test_sub(run, "%s by hand %zu", name, i);
        CHECK_OK(esp_tokenizer_encode(tokenizer, json_string_value(text), json_string_length(text),
                                      false, &found, &count, error));
        CHECK_INT(count, json_array_size(json_object_get(row, "ids")));
        json_array_foreach(json_object_get(row, "ids"), k, id)
        {
            CHECK_INT((int64_t)k < count ? found[k] : -1, json_integer_value(id));
        }
        esp_ids_free(tokenizer, found);
    }
}

static void compare_variant(test_run *run, esp_context *context, const char *name,
                            const json_t *expected, const json_t *more)
{
    esp_tokenizer *tokenizer = NULL;
    source from;
    json_t *json = variant_file(expected);
    const char *folder = test_folder(run);
    write_tokenizer(run, folder, json);
    json_decref(json);
    test_sub(run, "%s opens", name);
    CHECK_OK(esp_tokenizer_open(context, folder, &tokenizer, error));
    if (tokenizer == NULL) {
        return;
    }
    CHECK(source_open(&from, (uint64_t)json_integer_value(json_object_get(expected, "seed"))));
    json_array_extend((json_t *)(uintptr_t)from.fragments, (json_t *)(uintptr_t)more);
    compare_by_hand(run, tokenizer, name, expected);
    compare_batches(run, tokenizer, name, expected, &from);
    compare_lists(run, tokenizer, name, expected, &from);
    json_decref(from.json);
    esp_tokenizer_close(tokenizer);
}

static void equals_the_other_library(test_run *run)
{
    esp_context *context = test_context(run, 1);
    json_t *all = golden("sentencepiece.json");
    const json_t *more = json_object_get(all, "more");
    const char *name;
    json_t *expected;
    int variants = 0;
    json_object_foreach(all, name, expected)
    {
        if (json_is_object(expected)) {
            compare_variant(run, context, name, expected, more);
            variants++;
        }
    }
    CHECK(variants >= 15);
    json_decref(all);
    test_context_free(run, context);
}

static int32_t id_of(const json_t *json, const char *token)
{
    const json_t *vocabulary = json_object_get(json_object_get(json, "model"), "vocab");
    return (int32_t)json_integer_value(json_object_get(vocabulary, token));
}

/* The space before a text is printed by esp_tokenizer_token, and by esp_tokenizer_next but at the
 * start; a byte token is a byte; what follows a prompt keeps its space. */
static void printing(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_tokenizer *tokenizer = NULL;
    json_t *json = base_file("tinyllama");
    const char *folder = test_folder(run);
    write_tokenizer(run, folder, json);
    CHECK_OK(esp_tokenizer_open(context, folder, &tokenizer, error));
    int32_t word = id_of(json, "\xe2\x96\x81"
                               "a"),
            byte = id_of(json, "<0xE2>");
    int32_t nul = id_of(json, "<0x00>"), place = 0;
    size_t length = 0;
    if (tokenizer != NULL && word > 0 && byte > 0 && nul > 0) {
        CHECK(memcmp(esp_tokenizer_token(tokenizer, word, false, &length), " a", 2) == 0);
        CHECK_INT(length, 2);
        CHECK(memcmp(esp_tokenizer_token(tokenizer, byte, false, &length), "\xe2", 1) == 0);
        CHECK_INT(length, 1);
        CHECK(memcmp(esp_tokenizer_token(tokenizer, nul, false, &length), "", 1) == 0);
        CHECK_INT(length, 1);
        CHECK(esp_tokenizer_next(tokenizer, 1, false, &place, &length) != NULL);
        CHECK_INT(length, 0); /* the hidden <s> is no start */
        CHECK(esp_tokenizer_next(tokenizer, 1 << 20, false, &place, &length) == NULL);
        CHECK_INT(length, 0);
        CHECK(memcmp(esp_tokenizer_next(tokenizer, word, false, &place, &length), "a", 1) == 0);
        CHECK_INT(length, 1);
        CHECK(memcmp(esp_tokenizer_next(tokenizer, word, false, &place, &length), " a", 2) == 0);
        CHECK_INT(length, 2);
        place = 0;
        CHECK(memcmp(esp_tokenizer_next(tokenizer, 1, true, &place, &length), "<s>", 3) == 0);
        CHECK(memcmp(esp_tokenizer_next(tokenizer, word, false, &place, &length), " a", 2) == 0);
        CHECK_INT(length, 2);
    } else {
        test_fail(run, __FILE__, __LINE__, "the golden file has no such tokens");
    }
    esp_tokenizer_close(tokenizer);
    json_decref(json);
    test_context_free(run, context);
}

/* Half a megabyte that nothing cuts is one word: quadratic merging would take minutes. */
static void long_texts_are_no_attack(test_run *run)
{
    static const char *const units[] = {"a",
                                        "ab",
                                        " ",
                                        "\n",
                                        "the ",
                                        "\xc3\xa9",
                                        "\xe2\x96\x81",
                                        "return self.\n    ",
                                        "\xf0\x9f\x98\x80"};
    esp_context *context = test_context(run, 1);
    for (int i = 0; i < 2; i++) {
        const char *name = i == 0 ? "llama2" : "tinyllama", *folder = test_folder(run);
        esp_tokenizer *tokenizer = NULL;
        json_t *json = base_file(name);
        write_tokenizer(run, folder, json);
        json_decref(json);
        CHECK_OK(esp_tokenizer_open(context, folder, &tokenizer, error));
        for (int k = 0; k < ESP_COUNT(units) && tokenizer != NULL; k++) {
            esp_buffer text;
            esp_buffer_init(&text, context);
            while (text.length < 500000) {
                esp_buffer_text(&text, units[k]);
            }
            test_sub(run, "%s of unit %d", name, k);
            int32_t *ids = NULL;
            int64_t count = 0;
            double start = esp_seconds();
            CHECK_OK(esp_tokenizer_encode(tokenizer, text.data, text.length, false, &ids, &count,
                                          error));
            CHECK(esp_seconds() - start < 30);
            CHECK(count > 0);
            esp_ids_free(tokenizer, ids);
            esp_buffer_free(&text);
        }
        esp_tokenizer_close(tokenizer);
    }
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"ids and texts equal those of the other library", equals_the_other_library},
    {"printing", printing},
    {"long texts are no attack", long_texts_are_no_attack},
};
TEST_MAIN(cases)
