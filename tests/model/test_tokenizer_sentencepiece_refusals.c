/* SentencePiece-like tokenizer.json files that must be refused, each by its code, and odd ones that
 * must be taken; then changed bytes and failing memory. */
#include <stdio.h>
#include <string.h>

#include "model/tokenizer.h"
#include "test.h"
#include "tokenizer_changes.h"
#include "tokenizer_memory.h"

#define U ESP_UNSUPPORTED
#define MARK "\xe2\x96\x81"
#define METASPACE(options) "{\"type\":\"Metaspace\",\"replacement\":\"" MARK "\"" options "}"
#define NORMALIZERS(parts) "{\"type\":\"Sequence\",\"normalizers\":[" parts "]}"
#define STEPS(parts) "{\"type\":\"Sequence\",\"pretokenizers\":[" parts "]}"
#define DECODERS(parts) "{\"type\":\"Sequence\",\"decoders\":[" parts "]}"
#define REPLACE(kind, pattern, content)                                                            \
    "{\"type\":\"Replace\",\"pattern\":{\"" kind "\":\"" pattern "\"},\"content\":" content "}"
#define TO_SPACE REPLACE("String", MARK, "\" \"")
#define FALLBACK "{\"type\":\"ByteFallback\"}"
#define FUSE "{\"type\":\"Fuse\"}"
#define STRIP(content, start, stop)                                                                \
    "{\"type\":\"Strip\",\"content\":" content ",\"start\":" start ",\"stop\":" stop "}"
#define DIGITS "{\"type\":\"Digits\"},"
#define NFC "{\"type\":\"NFC\"},"

#define NORMALIZER "tokenizer.unsupported_normalizer"
#define PRE_TOKENIZER "tokenizer.unsupported_pre_tokenizer"
#define DECODER "tokenizer.unsupported_decoder"
#define BAD_FIELD "tokenizer.bad_field"

static const change changes[] = {
    {"normalizer Precompiled", "normalizer", "{\"type\":\"Precompiled\"}", NORMALIZER, U,
     "Precompiled"},
    {"normalizer Lowercase in a Sequence", "normalizer",
     NORMALIZERS(NFC "{\"type\":\"Lowercase\"}"), NORMALIZER, U, "Lowercase"},
    {"Sequence in a Sequence", "normalizer", NORMALIZERS(NORMALIZERS("")), NORMALIZER, U,
     "Sequence"},
    {"Sequence without normalizers", "normalizer", "{\"type\":\"Sequence\"}", NORMALIZER, U,
     "Sequence"},
    {"17 normalizers", "normalizer",
     NORMALIZERS(NFC NFC NFC NFC NFC NFC NFC NFC NFC NFC NFC NFC NFC NFC NFC NFC
                 "{\"type\":\"NFD\"}"),
     NORMALIZER, U, "16"},
    {"Replace of nothing", "normalizer", REPLACE("Regex", " *", "\"x\""), NORMALIZER, U, "Replace"},
    {"Replace of an empty string", "normalizer", REPLACE("String", "", "\"x\""), NORMALIZER, U,
     "Replace"},
    {"Replace without pattern", "normalizer", "{\"type\":\"Replace\",\"content\":\"\"}", BAD_FIELD,
     ESP_OK, "Replace"},
    {"Replace by a number", "normalizer", REPLACE("String", "a", "1"), BAD_FIELD, ESP_OK,
     "Replace"},
    {"Replace that does not compile", "normalizer", REPLACE("Regex", "(a", "\"\""),
     "tokenizer.bad_regex", ESP_OK, "(a"},
    {"Replace with a back reference", "normalizer", REPLACE("Regex", "(a)\\\\1", "\"\""),
     "tokenizer.unsupported_regex", U, "escape"},
    {"Prepend of a list", "normalizer", "{\"type\":\"Prepend\",\"prepend\":[]}", BAD_FIELD, ESP_OK,
     "Prepend"},

    {"Metaspace without replacement", "pre_tokenizer", "{\"type\":\"Metaspace\"}", BAD_FIELD,
     ESP_OK, "replacement"},
    {"Metaspace with two characters", "pre_tokenizer",
     "{\"type\":\"Metaspace\",\"replacement\":\"ab\"}", BAD_FIELD, ESP_OK, "replacement"},
    {"Metaspace with no character", "pre_tokenizer",
     "{\"type\":\"Metaspace\",\"replacement\":\"\"}", BAD_FIELD, ESP_OK, "replacement"},
    {"prepend_scheme sometimes", "pre_tokenizer", METASPACE(",\"prepend_scheme\":\"sometimes\""),
     BAD_FIELD, ESP_OK, "prepend_scheme"},
    {"prepend_scheme is null", "pre_tokenizer", METASPACE(",\"prepend_scheme\":null"), BAD_FIELD,
     ESP_OK, "prepend_scheme"},
    {"prepend_scheme contradicts add_prefix_space", "pre_tokenizer",
     METASPACE(",\"prepend_scheme\":\"first\",\"add_prefix_space\":false"), BAD_FIELD, ESP_OK,
     "prepend_scheme"},
    {"add_prefix_space is a number", "pre_tokenizer", METASPACE(",\"add_prefix_space\":1"),
     BAD_FIELD, ESP_OK, "add_prefix_space"},
    {"split is text", "pre_tokenizer", METASPACE(",\"split\":\"yes\""), BAD_FIELD, ESP_OK, "split"},
    {"Metaspace twice", "pre_tokenizer", STEPS(METASPACE("") "," METASPACE("")), PRE_TOKENIZER, U,
     "twice"},
    {"17 steps", "pre_tokenizer",
     STEPS(DIGITS DIGITS DIGITS DIGITS DIGITS DIGITS DIGITS DIGITS DIGITS DIGITS DIGITS DIGITS
               DIGITS DIGITS DIGITS DIGITS METASPACE("")),
     PRE_TOKENIZER, U, "16"},
    {"pre_tokenizer UnicodeScripts", "pre_tokenizer",
     STEPS("{\"type\":\"UnicodeScripts\"}," METASPACE("")), PRE_TOKENIZER, U, "UnicodeScripts"},
    {"ByteLevel with byte_fallback", "pre_tokenizer",
     "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}", "tokenizer.unsupported_model", U,
     "byte_fallback"},

    {"no decoder", "decoder", "null", DECODER, U, "type"},
    {"decoder ByteLevel", "decoder", "{\"type\":\"ByteLevel\"}", DECODER, U, "ByteLevel"},
    {"decoder CTC in a Sequence", "decoder", DECODERS(FUSE ",{\"type\":\"CTC\"}"), DECODER, U,
     "CTC"},
    {"empty Sequence of decoders", "decoder", DECODERS(""), DECODER, U, "Sequence"},
    {"decoder Replace with a Regex", "decoder", REPLACE("Regex", MARK, "\" \""), DECODER, U,
     "Regex"},
    {"decoder Replace of nothing", "decoder", REPLACE("String", "", "\" \""), BAD_FIELD, ESP_OK,
     "Replace"},
    {"decoder Replace without content", "decoder", REPLACE("String", "a", "null"), BAD_FIELD,
     ESP_OK, "Replace"},
    {"Replace behind ByteFallback", "decoder", DECODERS(FALLBACK "," TO_SPACE), DECODER, U,
     "behind ByteFallback"},
    {"Replace behind Fuse", "decoder", DECODERS(FUSE "," TO_SPACE), DECODER, U,
     "Replace behind Fuse"},
    {"ByteFallback behind Fuse", "decoder", DECODERS(FUSE "," FALLBACK), DECODER, U,
     "ByteFallback behind Fuse"},
    {"Metaspace behind ByteFallback", "decoder", DECODERS(FALLBACK "," METASPACE("")), DECODER, U,
     "Metaspace behind"},
    {"decoder Metaspace without replacement", "decoder", "{\"type\":\"Metaspace\"}", BAD_FIELD,
     ESP_OK, "replacement"},
    {"17 Replaces", "decoder",
     DECODERS(TO_SPACE "," TO_SPACE "," TO_SPACE "," TO_SPACE "," TO_SPACE "," TO_SPACE "," TO_SPACE
                       "," TO_SPACE "," TO_SPACE "," TO_SPACE "," TO_SPACE "," TO_SPACE "," TO_SPACE
                       "," TO_SPACE "," TO_SPACE "," TO_SPACE "," TO_SPACE),
     DECODER, U, "16"},
    {"Strip before Fuse", "decoder", DECODERS(STRIP("\" \"", "1", "0") "," FUSE), DECODER, U,
     "Strip"},
    {"Strip twice", "decoder",
     DECODERS(FUSE "," STRIP("\" \"", "1", "0") "," STRIP("\" \"", "1", "0")), DECODER, U, "Strip"},
    {"Strip at the end", "decoder", DECODERS(FUSE "," STRIP("\" \"", "1", "1")), DECODER, U,
     "stop"},
    {"Strip of a word", "decoder", DECODERS(FUSE "," STRIP("\"ab\"", "1", "0")), DECODER, U,
     "ASCII"},
    {"Strip of another alphabet", "decoder", DECODERS(FUSE "," STRIP("\"" MARK "\"", "1", "0")),
     DECODER, U, "ASCII"},
    {"Strip without content", "decoder", DECODERS(FUSE "," STRIP("null", "1", "0")), BAD_FIELD,
     ESP_OK, "Strip"},
    {"Strip of -1", "decoder", DECODERS(FUSE "," STRIP("\" \"", "-1", "0")), BAD_FIELD, ESP_OK,
     "Strip"},
    {"Strip of 2^40", "decoder", DECODERS(FUSE "," STRIP("\" \"", "1099511627776", "0")), BAD_FIELD,
     ESP_OK, "Strip"},

    {"byte_fallback is text", "model.byte_fallback", "\"yes\"", BAD_FIELD, ESP_OK, "byte_fallback"},
    {"neither fallback nor unknown token", "model",
     "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"<s>\":1,\"<0x00>\":2},\"merges\":[]}",
     "tokenizer.missing_byte", ESP_OK, "0x00"},
    {"half a fallback and no unknown token", "model",
     "{\"type\":\"BPE\",\"byte_fallback\":true,\"vocab\":{\"<0x00>\":0,\"<s>\":1,\"<0x01>\":2},"
     "\"merges\":[]}",
     "tokenizer.missing_byte", ESP_OK, "0x02"},
    {"merge of an absent token", "model.merges", "[\"a zzzz\"]", "tokenizer.merge_unknown_token",
     ESP_OK, "zzzz"},

    {.name = "accepted: no unk_token", .path = "model.unk_token", .value = "null"},
    {.name = "accepted: no pre_tokenizer", .path = "pre_tokenizer", .value = "null"},
    {.name = "accepted: empty Sequence of normalizers",
     .path = "normalizer",
     .value = NORMALIZERS("")},
    {.name = "accepted: a normalizer that takes all away",
     .path = "normalizer",
     .value = REPLACE("Regex", "(?:.|\\\\n)+", "\"\"")},
    {.name = "accepted: add_prefix_space false of old files",
     .path = "pre_tokenizer",
     .value = METASPACE(",\"add_prefix_space\":false,\"str_rep\":\"" MARK "\"")},
    {.name = "accepted: Strip of none",
     .path = "decoder",
     .value = DECODERS(TO_SPACE "," FUSE "," STRIP("\" \"", "0", "0"))},
};

static json_t *good_file(void)
{
    return json_load_file(ESP_SOURCE_DIR "/tests/golden/tokenizer/tinyllama.tokenizer.json", 0,
                          NULL);
}

/* The pipeline first, so that most changes hit it. */
static json_t *good_pipeline(void)
{
    json_t *json = good_file(), *first = json_object();
    static const char *const keys[] = {"version", "pre_tokenizer", "decoder", "added_tokens"};
    json_object_set_new(
        first, "normalizer",
        json_loads(NORMALIZERS(NFC REPLACE("Regex", "[\\\\s]{2,3}",
                                           "\" \"") ","
                                                    "{\"type\":\"Prepend\",\"prepend\":\" \"}"),
                   0, NULL));
    for (int i = 0; i < ESP_COUNT(keys); i++) {
        json_object_set(first, keys[i], json_object_get(json, keys[i]));
    }
    json_object_update_missing(first, json);
    json_decref(json);
    return first;
}

static void refused_and_taken(test_run *run)
{
    check_changes(run, good_file, changes, ESP_COUNT(changes));
}

static void changed_files(test_run *run)
{
    check_changed_bytes(run, good_pipeline, 400);
}

/* The work of a Replace is limited as that of a Split is. */
static void endless_replace(test_run *run)
{
    char text[4096];
    memset(text, 'a', sizeof text);
    memcpy(text + sizeof text - 4, "?bcx", 4);
    esp_context *context = test_context(run, 1);
    esp_tokenizer *tokenizer = NULL;
    int32_t *ids = NULL;
    int64_t count = -5;
    json_t *json = good_file();
    put(json, "normalizer", REPLACE("Regex", "(?:a+)+b", "\"\""));
    CHECK_OK(esp_tokenizer_open(context, write_file(run, json), &tokenizer, error));
    CHECK_FAILS(esp_tokenizer_encode(tokenizer, text, sizeof text, true, &ids, &count, error),
                ESP_BAD_FILE, "tokenizer.regex_limit");
    CHECK(ids == NULL && count == -5);
    esp_tokenizer_close(tokenizer);
    json_decref(json);
    test_context_free(run, context);
}

/* Text that a normalizer takes away wholly has no ids, and a token that it does is never found. */
static void nothing_is_left(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_tokenizer *tokenizer = NULL;
    int32_t *ids = NULL;
    int64_t count = -5;
    json_t *json = good_file();
    put(json, "normalizer", REPLACE("Regex", "(?:.|\\\\n)+", "\"\""));
    CHECK_OK(esp_tokenizer_open(context, write_file(run, json), &tokenizer, error));
    if (tokenizer != NULL) {
        CHECK_OK(esp_tokenizer_encode(tokenizer, "<abc> a\nb", 9, false, &ids, &count, error));
        CHECK_INT(count, 0);
        esp_ids_free(tokenizer, ids);
    }
    esp_tokenizer_close(tokenizer);
    json_decref(json);
    test_context_free(run, context);
}

static void failing_memory(test_run *run)
{
    static const char text[] = "caf\xc3\xa9 word\xc3\xa9 e\xcc\x81 <both> <abc> \xff one   two 33 "
                               "wordswordswordswordswordswordswordswordswordswordswordswords";
    json_t *json = good_pipeline();
    put(json, "model.ignore_merges", "true");
    const char *folder = write_file(run, json);
    json_decref(json);
    check_failing_memory(run, folder, text);
}

static const test_case cases[] = {
    {"parts", refused_and_taken},         {"changed files", changed_files},
    {"endless replace", endless_replace}, {"nothing is left", nothing_is_left},
    {"failing memory", failing_memory},
};
TEST_MAIN(cases)
