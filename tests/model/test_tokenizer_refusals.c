/* tokenizer.json files that must be refused, each by its code, and odd ones that must be taken. A
 * row changes one part of a good file. */
#include <stdio.h>
#include <string.h>

#include "model/tokenizer.h"
#include "test.h"
#include "tokenizer_changes.h"

#define U ESP_UNSUPPORTED
#define SPLIT(pattern)                                                                             \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" pattern "\"},\"behavior\":\"Isolated\"}"
#define WITH_BYTE_LEVEL(part)                                                                      \
    "{\"type\":\"Sequence\",\"pretokenizers\":[" part                                              \
    ",{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]}"
#define REGEX(pattern) WITH_BYTE_LEVEL(SPLIT(pattern))
#define TOKEN(id, content) "[{\"id\":" id ",\"content\":\"" content "\",\"special\":true}]"
#define TEMPLATE(single)                                                                           \
    "{\"type\":\"TemplateProcessing\",\"single\":[" single                                         \
    "],\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[1]}}}"
#define TEXT_A "{\"Sequence\":{\"id\":\"A\"}}"
#define BOS "{\"SpecialToken\":{\"id\":\"<s>\"}}"

static const change changes[] = {
    {"no version", "version", NULL, "tokenizer.version", U, "none"},
    {"version 2.0", "version", "\"2.0\"", "tokenizer.version", U, "2.0"},
    {"model Unigram", "model", "{\"type\":\"Unigram\",\"vocab\":[]}", "tokenizer.unsupported_model",
     U, "Unigram"},
    {"model WordPiece", "model.type", "\"WordPiece\"", "tokenizer.unsupported_model", U,
     "WordPiece"},
    {"no model", "model", NULL, "tokenizer.unsupported_model", U, NULL},
    {"dropout", "model.dropout", "0.1", "tokenizer.unsupported_model", U, "dropout"},
    {"byte_fallback", "model.byte_fallback", "true", "tokenizer.unsupported_model", U,
     "byte_fallback"},
    {"subword prefix", "model.continuing_subword_prefix", "\"##\"", "tokenizer.unsupported_model",
     U, "continuing_subword_prefix"},
    {"word suffix", "model.end_of_word_suffix", "\"</w>\"", "tokenizer.unsupported_model", U, NULL},
    {"normalizer Lowercase", "normalizer", "{\"type\":\"Lowercase\"}",
     "tokenizer.unsupported_normalizer", U, "Lowercase"},
    {"normalizer Strip in a Sequence", "normalizer",
     "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"Strip\"}]}",
     "tokenizer.unsupported_normalizer", U, "Strip"},
    {"normalizer without type", "normalizer", "{}", "tokenizer.unsupported_normalizer", U, NULL},
    {"no pre_tokenizer", "pre_tokenizer", "null", "tokenizer.unsupported_decoder", U, "ByteLevel"},
    {"pre_tokenizer Whitespace", "pre_tokenizer", "{\"type\":\"Whitespace\"}",
     "tokenizer.unsupported_pre_tokenizer", U, "Whitespace"},
    {"Metaspace beside ByteLevel", "pre_tokenizer",
     WITH_BYTE_LEVEL("{\"type\":\"Metaspace\",\"replacement\":\"_\"}"),
     "tokenizer.unsupported_pre_tokenizer", U, "Metaspace"},
    {"ByteLevel is not last", "pre_tokenizer",
     "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\",\"add_prefix_space\":"
     "false},{\"type\":\"Digits\"}]}",
     "tokenizer.unsupported_pre_tokenizer", U, "ByteLevel"},
    {"no ByteLevel", "pre_tokenizer", "{\"type\":\"Sequence\",\"pretokenizers\":[" SPLIT("a") "]}",
     "tokenizer.unsupported_decoder", U, "ByteLevel"},
    {"empty Sequence", "pre_tokenizer", "{\"type\":\"Sequence\",\"pretokenizers\":[]}",
     "tokenizer.unsupported_pre_tokenizer", U, NULL},
    {"Split merged with previous", "pre_tokenizer",
     WITH_BYTE_LEVEL("{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":"
                     "\"MergedWithPrevious\"}"),
     "tokenizer.unsupported_pre_tokenizer", U, "MergedWithPrevious"},
    {"17 steps", "pre_tokenizer",
     WITH_BYTE_LEVEL("{\"type\":\"Digits\"},{\"type\":\"Digits\"},{\"type\":\"Digits\"},{\"type\":"
                     "\"Digits\"},{\"type\":\"Digits\"},{\"type\":\"Digits\"},{\"type\":\"Digits\"}"
                     ",{\"type\":\"Digits\"},{\"type\":\"Digits\"},{\"type\":\"Digits\"},{\"type\":"
                     "\"Digits\"},{\"type\":\"Digits\"},{\"type\":\"Digits\"},{\"type\":\"Digits\"}"
                     ",{\"type\":\"Digits\"},{\"type\":\"Digits\"},{\"type\":\"Digits\"}"),
     "tokenizer.unsupported_pre_tokenizer", U, "16"},
    {"Split without pattern", "pre_tokenizer", WITH_BYTE_LEVEL("{\"type\":\"Split\"}"),
     "tokenizer.bad_field", ESP_OK, "pattern"},
    {"ByteLevel without add_prefix_space", "pre_tokenizer", "{\"type\":\"ByteLevel\"}",
     "tokenizer.bad_field", ESP_OK, "add_prefix_space"},
    {"use_regex is a number", "pre_tokenizer",
     "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":1}", "tokenizer.bad_field",
     ESP_OK, "use_regex"},
    {"regex does not compile", "pre_tokenizer", REGEX("(ab"), "tokenizer.bad_regex", ESP_OK, "(ab"},
    {"regex with a bad range", "pre_tokenizer", REGEX("[z-a]"), "tokenizer.bad_regex", ESP_OK,
     NULL},
    {"regex with an unknown property", "pre_tokenizer", REGEX("\\\\p{Nonsense}"),
     "tokenizer.bad_regex", ESP_OK, NULL},
    {"regex \\h", "pre_tokenizer", REGEX("\\\\h+"), "tokenizer.unsupported_regex", U, "escape"},
    {"regex \\b", "pre_tokenizer", REGEX("\\\\bx"), "tokenizer.unsupported_regex", U, "escape"},
    {"regex ends in a backslash", "pre_tokenizer", REGEX("a\\\\"), "tokenizer.unsupported_regex", U,
     "escape"},
    {"regex class intersection", "pre_tokenizer", REGEX("[a-z&&b]"), "tokenizer.unsupported_regex",
     U, "class"},
    {"regex nested class", "pre_tokenizer", REGEX("[a[b]]"), "tokenizer.unsupported_regex", U,
     "class"},
    {"regex verb", "pre_tokenizer", REGEX("(*COMMIT)a"), "tokenizer.unsupported_regex", U, "group"},
    {"regex recursion", "pre_tokenizer", REGEX("a(?R)?"), "tokenizer.unsupported_regex", U,
     "group"},
    {"regex callout", "pre_tokenizer", REGEX("(?C1)a"), "tokenizer.unsupported_regex", U, "group"},
    {"no decoder", "decoder", "null", "tokenizer.unsupported_decoder", U, "ByteLevel"},
    {"decoder WordPiece", "decoder", "{\"type\":\"WordPiece\"}", "tokenizer.unsupported_decoder", U,
     "WordPiece"},
    {"post_processor Bert without tokens", "post_processor", "{\"type\":\"BertProcessing\"}",
     "tokenizer.bad_template", ESP_OK, "cls"},
    {"post_processor Roberta in a Sequence", "post_processor",
     "{\"type\":\"Sequence\",\"processors\":[{\"type\":\"RobertaProcessing\"}]}",
     "tokenizer.unsupported_post_processor", U, "RobertaProcessing"},
    {"template without text", "post_processor", TEMPLATE(BOS), "tokenizer.bad_template", ESP_OK,
     NULL},
    {"template with the text twice", "post_processor", TEMPLATE(TEXT_A "," TEXT_A),
     "tokenizer.bad_template", ESP_OK, NULL},
    {"template with text B", "post_processor", TEMPLATE("{\"Sequence\":{\"id\":\"B\"}}"),
     "tokenizer.bad_template", ESP_OK, NULL},
    {"template with an unknown token", "post_processor",
     TEMPLATE("{\"SpecialToken\":{\"id\":\"<x>\"}}," TEXT_A), "tokenizer.bad_template", ESP_OK,
     NULL},
    {"template with an id of no token", "post_processor",
     "{\"type\":\"TemplateProcessing\",\"single\":[" BOS "," TEXT_A
     "],\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[90000]}}}",
     "tokenizer.bad_template", ESP_OK, NULL},
    {"template with 17 tokens", "post_processor",
     TEMPLATE(BOS "," BOS "," BOS "," BOS "," BOS "," BOS "," BOS "," BOS "," BOS "," BOS "," BOS
                  "," BOS "," BOS "," BOS "," BOS "," BOS "," BOS "," TEXT_A),
     "tokenizer.bad_template", ESP_OK, "16"},
    {"vocab is a list", "model.vocab", "[]", "tokenizer.bad_field", ESP_OK, "vocab"},
    {"merges is an object", "model.merges", "{}", "tokenizer.bad_field", ESP_OK, "merges"},
    {"added_tokens is an object", "added_tokens", "{}", "tokenizer.bad_field", ESP_OK,
     "added_tokens"},
    {"id is text", "model.vocab.zzzz", "\"7\"", "tokenizer.bad_id", ESP_OK, "zzzz"},
    {"id is 1.5", "model.vocab.zzzz", "1.5", "tokenizer.bad_id", ESP_OK, "zzzz"},
    {"id is negative", "model.vocab.zzzz", "-1", "tokenizer.bad_id", ESP_OK, "zzzz"},
    {"id is 2^31", "model.vocab.zzzz", "2147483648", "tokenizer.bad_id", ESP_OK, "zzzz"},
    {"two tokens with one id", "model.vocab.zzzz", "77", "tokenizer.duplicate_id", ESP_OK, "77"},
    {"added token takes another's id", "added_tokens", TOKEN("77", "<zz>"),
     "tokenizer.duplicate_id", ESP_OK, "<zz>"},
    {"added token twice", "added_tokens",
     "[{\"id\":8000,\"content\":\"<zz>\"},{\"id\":8000,\"content\":\"<zz>\"}]",
     "tokenizer.duplicate_id", ESP_OK, "<zz>"},
    {"added token contradicts the vocabulary", "added_tokens", TOKEN("9000", "<s>"),
     "tokenizer.id_conflict", ESP_OK, "<s>"},
    {"added token is empty", "added_tokens", TOKEN("9000", ""), "tokenizer.empty_token", ESP_OK,
     NULL},
    {"added token without content", "added_tokens", "[{\"id\":9000}]", "tokenizer.bad_field",
     ESP_OK, "content"},
    {"added token without id", "added_tokens", "[{\"content\":\"<zz>\"}]", "tokenizer.bad_id",
     ESP_OK, "<zz>"},
    {"added token flag is text", "added_tokens",
     "[{\"id\":9000,\"content\":\"<zz>\",\"lstrip\":\"yes\"}]", "tokenizer.bad_field", ESP_OK,
     "lstrip"},
    {"unk_token is unknown", "model.unk_token", "\"<unk>\"", "tokenizer.bad_unk", ESP_OK, NULL},
    {"unk_token is a number", "model.unk_token", "0", "tokenizer.bad_unk", ESP_OK, NULL},
    {"a byte has no token", "model.vocab.\xc4\x80", NULL, "tokenizer.missing_byte", ESP_OK, "0x00"},
    {"merge names an absent token", "model.merges", "[\"a zzzz\"]", "tokenizer.merge_unknown_token",
     ESP_OK, "zzzz"},
    {"merge makes an absent token", "model.merges", "[\"z q\"]", "tokenizer.merge_unknown_token",
     ESP_OK, "zq"},
    {"merge of one part", "model.merges", "[\"ab\"]", "tokenizer.merge_syntax", ESP_OK, NULL},
    {"merge of three parts", "model.merges", "[\"a b c\"]", "tokenizer.merge_syntax", ESP_OK, NULL},
    {"merge of three elements", "model.merges", "[[\"a\",\"b\",\"c\"]]", "tokenizer.merge_syntax",
     ESP_OK, NULL},
    {"merge of numbers", "model.merges", "[[1,2]]", "tokenizer.merge_syntax", ESP_OK, NULL},

    {.name = "accepted: no added tokens", .path = "added_tokens", .value = NULL},
    {.name = "accepted: no merges", .path = "model.merges", .value = "[]"},
    {.name = "accepted: a hole in the ids", .path = "model.vocab.zzzz", .value = "5000"},
    {.name = "accepted: dropout 0", .path = "model.dropout", .value = "0.0"},
    {.name = "accepted: no type of model", .path = "model.type", .value = NULL},
    {.name = "accepted: truncation", .path = "truncation", .value = "{\"max_length\":512}"},
    {.name = "accepted: unk_token", .path = "model.unk_token", .value = "\"<s>\""},
    {.name = "accepted: decoder in a Sequence",
     .path = "decoder",
     .value = "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"ByteLevel\"}]}"},
    {.name = "accepted: text before BOS",
     .path = "post_processor",
     .value = TEMPLATE(TEXT_A "," BOS)},
};

static json_t *good_file(void)
{
    return json_load_file(ESP_SOURCE_DIR "/tests/golden/tokenizer/llama3.tokenizer.json", 0, NULL);
}

static void refused_and_taken(test_run *run)
{
    check_changes(run, good_file, changes, ESP_COUNT(changes));
}

static void files(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_tokenizer *tokenizer = NULL;
    const char *folder = test_folder(run);
    const char *path = test_path(folder, "tokenizer.json");
    test_sub(run, "file.not_found");
    CHECK_FAILS(esp_tokenizer_open(context, "/nonexistent/folder", &tokenizer, error), ESP_BAD_FILE,
                "file.not_found");
    test_sub(run, "json.syntax");
    test_write_file(run, path, "{\"version\":", 11);
    CHECK_FAILS(esp_tokenizer_open(context, folder, &tokenizer, error), ESP_BAD_FILE,
                "json.syntax");
    test_sub(run, "json.duplicate_key: a token twice");
    const char *twice = "{\"model\":{\"vocab\":{\"a\":1,\"a\":2}}}";
    test_write_file(run, path, twice, strlen(twice));
    CHECK_FAILS(esp_tokenizer_open(context, folder, &tokenizer, error), ESP_BAD_FILE,
                "json.duplicate_key");
    test_sub(run, "json.too_large: ten million tokens");
    FILE *file = fopen(path, "wb"); /* sparse: refused by its size before anything is read */
    CHECK(file != NULL && fseek(file, 150L << 20, SEEK_SET) == 0 && fputc('}', file) == '}');
    if (file != NULL) {
        fclose(file);
    }
    CHECK_FAILS(esp_tokenizer_open(context, folder, &tokenizer, error), ESP_BAD_FILE,
                "json.too_large");
    CHECK(tokenizer == NULL);
    test_context_free(run, context);
}

static void too_many_tokens(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_tokenizer *tokenizer = NULL;
    json_t *json = good_file();
    json_t *vocabulary = json_object_get(json_object_get(json, "model"), "vocab");
    char name[24];
    for (int i = 0; i < ESP_TOKENIZER_MAX_TOKENS; i++) {
        snprintf(name, sizeof name, "x%d", i);
        json_object_set_new(vocabulary, name, json_integer(i));
    }
    CHECK_FAILS(esp_tokenizer_open(context, write_file(run, json), &tokenizer, error), ESP_BAD_FILE,
                "tokenizer.too_large");
    json_decref(json);
    test_context_free(run, context);
}

/* A pattern that backtracks without bound is stopped, with and without the just-in-time compiler.
 */
static void endless_regex(test_run *run)
{
    static const char *const patterns[] = {REGEX("(?:a+)+b"), REGEX("(?:a|a)*c"),
                                           REGEX("(a?){40}a{40}x")};
    char text[4096];
    memset(text, 'a', sizeof text);
    memcpy(text + sizeof text - 4, "?bcx", 4); /* what the patterns need last is there, in vain */
    esp_context *context = test_context(run, 1);
    for (int i = 0; i < ESP_COUNT(patterns); i++) {
        esp_tokenizer *tokenizer = NULL;
        int32_t *ids = NULL;
        int64_t count = -5;
        json_t *json = good_file();
        test_sub(run, "tokenizer.regex_limit: pattern %d", i);
        put(json, "pre_tokenizer", patterns[i]);
        CHECK_OK(esp_tokenizer_open(context, write_file(run, json), &tokenizer, error));
        CHECK_FAILS(esp_tokenizer_encode(tokenizer, text, sizeof text, true, &ids, &count, error),
                    ESP_BAD_FILE, "tokenizer.regex_limit");
        CHECK(ids == NULL && count == -5);
        esp_tokenizer_close(tokenizer);
        json_decref(json);
    }
    test_context_free(run, context);
}

static void respelled_patterns(test_run *run)
{
    static const struct {
        const char *pattern, *spelled;
    } rows[] = {{"a\\.b", "a\\.b"},
                {"\\u00e9+", "\\x{00e9}+"},
                {"[^\\r\\n\\p{L}]", "[^\\r\\n\\p{L}]"},
                {"(?i:'s)", "(?i:'s)"},
                {"[\\[\\]]", "[\\[\\]]"},
                {"[\\S]", "[\\S\\x{180e}]"},
                {"\\W", "[^\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}]"}};
    esp_context *context = test_context(run, 1);
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        esp_buffer out;
        const char *reason = NULL;
        esp_buffer_init(&out, context);
        test_sub(run, "%s", rows[i].pattern);
        CHECK(esp_regex_translate(rows[i].pattern, &out, &reason));
        CHECK_TEXT(out.data, rows[i].spelled);
        esp_buffer_free(&out);
    }
    test_context_free(run, context);
}

/* Pieces of a file cut at any byte: refused, never a crash. */
static void cut_files(test_run *run)
{
    esp_context *context = test_context(run, 1);
    json_t *json = good_file();
    char *text = json_dumps(json, JSON_COMPACT);
    size_t length = strlen(text);
    const char *folder = test_folder(run), *path = test_path(folder, "tokenizer.json");
    for (size_t cut = 0; cut < length; cut += 1 + length / 97) {
        esp_tokenizer *tokenizer = NULL;
        esp_error problem = {0};
        test_write_file(run, path, text, cut);
        CHECK_INT(esp_tokenizer_open(context, folder, &tokenizer, &problem), ESP_BAD_FILE);
        CHECK(tokenizer == NULL);
    }
    free(text);
    json_decref(json);
    test_context_free(run, context);
}

static void changed_files(test_run *run)
{
    check_changed_bytes(run, good_file, 300);
}

static const test_case cases[] = {
    {"parts", refused_and_taken},
    {"files", files},
    {"tokenizer.too_large", too_many_tokens},
    {"endless regex", endless_regex},
    {"respelled patterns", respelled_patterns},
    {"cut files", cut_files},
    {"changed files", changed_files},
};
TEST_MAIN(cases)
