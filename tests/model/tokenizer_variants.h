/* Variants of a golden tokenizer file and what the other library makes of generated texts with
 * each: ids by a hash per batch of texts, and what the ids print as by another one. */
#ifndef TEST_TOKENIZER_VARIANTS_H
#define TEST_TOKENIZER_VARIANTS_H

#include "model/tokenizer.h"
#include "tokenizer_texts.h"

static inline void write_tokenizer(test_run *run, const char *folder, const json_t *json)
{
    char *text = json_dumps(json, JSON_COMPACT);
    test_write_file(run, test_path(folder, "tokenizer.json"), text, strlen(text));
    free(text);
}

static inline json_t *base_file(const char *name)
{
    char path[64];
    snprintf(path, sizeof path, "%s.tokenizer.json", name);
    return golden(path);
}

/* The base with the values of "set" put at their dotted paths and the tokens "without" taken out.
 */
static inline json_t *variant_file(const char *base, const json_t *variant)
{
    json_t *json = base_file(base);
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

static inline uint64_t hash_text(const esp_buffer *text, uint64_t hash)
{
    hash = fnv((uint32_t)text->length, hash);
    for (size_t i = 0; i < text->length; i++) {
        hash = (hash ^ (unsigned char)text->data[i]) * 0x100000001b3u;
    }
    return hash;
}

static inline void print_ids(const esp_tokenizer *tokenizer, const int32_t *ids, int64_t count,
                             bool show, esp_buffer *out)
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

static inline uint64_t hash_printed(const esp_tokenizer *tokenizer, const printed *lists)
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

static inline bool keep(printed *lists, const int32_t *ids, int64_t count)
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

static inline void check_hash(test_run *run, uint64_t hash, const json_t *expected)
{
    char found[17];
    snprintf(found, sizeof found, "%016llx", (unsigned long long)hash);
    CHECK_TEXT(found, json_string_value(expected));
}

static inline void compare_batches(test_run *run, const esp_tokenizer *tokenizer, const char *name,
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

/* Ids in no order that a text could have, but those from `first` to before `end`. */
static inline void compare_lists(test_run *run, const esp_tokenizer *tokenizer, const char *name,
                                 const json_t *expected, source *from, int32_t first, int32_t end)
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
            count += id < first || id >= end;
        }
        CHECK(keep(&lists, ids, count));
    }
    check_hash(run, hash_printed(tokenizer, &lists), json_object_get(expected, "lists_decoded"));
}

static inline void compare_by_hand(test_run *run, const esp_tokenizer *tokenizer, const char *name,
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

#endif
