/* WordPiece tokenizers against goldens of the Hugging Face library
 * (tools/golden/make_wordpiece.py): a file and variants of it, ids of generated texts, what the ids
 * print as; and what every character of Unicode becomes. */
#include <stdio.h>
#include <string.h>

#include "model/tokenizer.h"
#include "test.h"
#include "tokenizer_variants.h"

#define START 0xcbf29ce484222325u

static void compare_variant(test_run *run, esp_context *context, const char *name,
                            const json_t *expected, const json_t *all)
{
    esp_tokenizer *tokenizer = NULL;
    source from;
    json_t *json = variant_file("bert", expected);
    const char *folder = test_folder(run);
    write_tokenizer(run, folder, json);
    json_decref(json);
    test_sub(run, "%s opens", name);
    CHECK_OK(esp_tokenizer_open(context, folder, &tokenizer, error));
    if (tokenizer == NULL) {
        return;
    }
    CHECK(source_open(&from, (uint64_t)json_integer_value(json_object_get(expected, "seed"))));
    json_array_extend(from.fragments, json_object_get(all, "more"));
    json_array_extend(from.ranges, json_object_get(all, "ranges"));
    compare_by_hand(run, tokenizer, name, expected);
    compare_batches(run, tokenizer, name, expected, &from);
    compare_lists(run, tokenizer, name, expected, &from, 0, 0);
    json_decref(from.json);
    esp_tokenizer_close(tokenizer);
}

static void equals_the_other_library(test_run *run)
{
    esp_context *context = test_context(run, 1);
    json_t *all = golden("wordpiece.json"), *expected;
    const char *name;
    int variants = 0;
    json_object_foreach(json_object_get(all, "variants"), name, expected)
    {
        compare_variant(run, context, name, expected, all);
        variants++;
    }
    CHECK(variants >= 15);
    json_decref(all);
    test_context_free(run, context);
}

/* ---- every character ---- */

static bool is_character(uint32_t point)
{
    return point != 0 && !(point >= 0xd800 && point < 0xe000);
}

/* Each character of a block between a letter and two marks. */
static void append_between_marks(uint32_t first, esp_buffer *text)
{
    for (uint32_t point = first; point < first + 256; point++) {
        if (is_character(point)) {
            esp_buffer_text(text, "A");
            append_point(point, text);
            esp_buffer_text(text, "\xcc\xa3\xe3\x80\xae"
                                  "b"); /* classes 220 and 224; only the first is nonspacing */
        }
    }
}

static void normalized_planes(test_run *run, esp_context *context, int bits, const json_t *planes)
{
    esp_fold fold = {.kind = ESP_FOLD_BERT,
                     .clean = (bits & 1) != 0,
                     .ideographs_apart = (bits & 2) != 0,
                     .strip_marks = (bits & 4) != 0,
                     .lower = (bits & 8) != 0};
    esp_buffer text, out;
    esp_buffer_init(&text, context);
    esp_buffer_init(&out, context);
    CHECK_INT(json_array_size(planes), 17);
    for (uint32_t plane = 0; plane < 17; plane++) {
        uint64_t hash = START;
        test_sub(run, "normalized with flags %d, plane %u", bits, plane);
        for (uint32_t block = 0; block < 256; block++) {
            esp_buffer_clear(&text);
            esp_buffer_clear(&out);
            append_between_marks(plane << 16 | block << 8, &text);
            if (text.length > 0) { /* not so for surrogates */
                CHECK_OK(esp_bert_normalize(&fold, text.data, text.length, &out, error));
            }
            hash = hash_text(&out, hash);
        }
        check_hash(run, hash, json_array_get(planes, plane));
    }
    esp_buffer_free(&text);
    esp_buffer_free(&out);
}

static void forms_of_planes(test_run *run, esp_context *context, const char *form,
                            const json_t *planes)
{
    bool composed = strchr(form, 'C') != NULL, compatible = strchr(form, 'K') != NULL;
    esp_buffer text, out;
    esp_buffer_init(&text, context);
    esp_buffer_init(&out, context);
    for (uint32_t plane = 0; plane < 17; plane++) {
        uint64_t hash = START;
        test_sub(run, "%s, plane %u", form, plane);
        for (uint32_t block = 0; block < 256; block++) {
            esp_buffer_clear(&text);
            esp_buffer_clear(&out);
            append_between_marks(plane << 16 | block << 8, &text);
            if (text.length > 0) {
                CHECK_OK(
                    esp_utf8_normalize(text.data, text.length, composed, compatible, &out, error));
            }
            hash = hash_text(&out, hash);
        }
        check_hash(run, hash, json_array_get(planes, plane));
    }
    esp_buffer_free(&text);
    esp_buffer_free(&out);
}

static void words_of_planes(test_run *run, esp_context *context, const json_t *planes)
{
    esp_buffer text, word;
    esp_buffer_init(&text, context);
    esp_buffer_init(&word, context);
    for (uint32_t plane = 0; plane < 17; plane++) {
        uint64_t hash = START;
        test_sub(run, "words, plane %u", plane);
        for (uint32_t first = plane << 16; first < (plane + 1) << 16; first += 256) {
            esp_buffer_clear(&text);
            for (uint32_t point = first; point < first + 256; point++) {
                if (is_character(point)) {
                    esp_buffer_text(&text, "a");
                    append_point(point, &text);
                }
            }
            size_t from = 0, start = 0, end = 0;
            while (text.length > 0 && esp_bert_next(text.data, text.length, &from, &start, &end)) {
                esp_buffer_clear(&word);
                esp_buffer_append(&word, text.data + start, end - start);
                hash = hash_text(&word, hash);
            }
        }
        check_hash(run, hash, json_array_get(planes, plane));
    }
    esp_buffer_free(&text);
    esp_buffer_free(&word);
}

static void every_character(test_run *run)
{
    esp_context *context = test_context(run, 1);
    json_t *all = golden("wordpiece.json"), *planes;
    const json_t *characters = json_object_get(all, "characters");
    const char *bits;
    int sets = 0;
    json_object_foreach(json_object_get(characters, "normalized"), bits, planes)
    {
        normalized_planes(run, context, atoi(bits), planes);
        sets++;
    }
    CHECK_INT(sets, 5);
    json_object_foreach(json_object_get(characters, "forms"), bits, planes)
    {
        forms_of_planes(run, context, bits, planes);
        sets++;
    }
    CHECK_INT(sets, 9);
    words_of_planes(run, context, json_object_get(characters, "words"));
    json_decref(all);
    test_context_free(run, context);
}

/* Half a megabyte of one word, of marks that must be sorted, of punctuation. */
static void long_texts_are_no_attack(test_run *run)
{
    static const char *const units[] = {
        "a", "ab ", "!", "\xcc\x81\xcc\xa3", "\xe4\xb8\xad", "\xe3\x80\xae\xcc\x80"};
    esp_context *context = test_context(run, 1);
    json_t *json = base_file("bert");
    json_object_set_new(json_object_get(json, "model"), "max_input_chars_per_word",
                        json_integer(1 << 30));
    const char *folder = test_folder(run);
    esp_tokenizer *tokenizer = NULL;
    write_tokenizer(run, folder, json);
    json_decref(json);
    REQUIRE_OK(esp_tokenizer_open(context, folder, &tokenizer, error));
    for (int i = 0; i < ESP_COUNT(units); i++) {
        esp_buffer text;
        esp_buffer_init(&text, context);
        while (text.length < 500000) {
            esp_buffer_text(&text, units[i]);
        }
        test_sub(run, "of unit %d", i);
        int32_t *ids = NULL;
        int64_t count = 0;
        double start = esp_seconds();
        CHECK_OK(
            esp_tokenizer_encode(tokenizer, text.data, text.length, false, &ids, &count, error));
        CHECK(esp_seconds() - start < 30);
        esp_ids_free(tokenizer, ids);
        esp_buffer_free(&text);
    }
    esp_tokenizer_close(tokenizer);
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"ids and texts equal those of the other library", equals_the_other_library},
    {"every character", every_character},
    {"long texts are no attack", long_texts_are_no_attack},
};
TEST_MAIN(cases)
