/* SentencePiece-like tokenizers against goldens of the Hugging Face library
 * (tools/golden/make_sentencepiece.py): two files and variants of them, ids of generated texts, and
 * what the ids print as. */
#include <stdio.h>
#include <string.h>

#include "model/tokenizer.h"
#include "test.h"
#include "tokenizer_variants.h"

static void compare_variant(test_run *run, esp_context *context, const char *name,
                            const json_t *expected, const json_t *more)
{
    esp_tokenizer *tokenizer = NULL;
    source from;
    json_t *json = variant_file(json_string_value(json_object_get(expected, "base")), expected);
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
    /* Bytes 0x80 and up mostly are no part of a character then, and print in another way there. */
    compare_lists(run, tokenizer, name, expected, &from, 131, 259);
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
