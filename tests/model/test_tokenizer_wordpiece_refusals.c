/* WordPiece files that must be refused, each by its code, and odd ones that must be taken. A row
 * changes one part of a good file. */
#include <stdio.h>
#include <string.h>

#include "model/tokenizer.h"
#include "test.h"
#include "tokenizer_changes.h"
#include "tokenizer_memory.h"

#define U ESP_UNSUPPORTED

static const change changes[] = {
    {"no unk_token", "model.unk_token", NULL, "tokenizer.bad_unk", ESP_OK, "unk_token"},
    {"unk_token is null", "model.unk_token", "null", "tokenizer.bad_unk", ESP_OK, NULL},
    {"unk_token is unknown", "model.unk_token", "\"<none>\"", "tokenizer.bad_unk", ESP_OK, NULL},
    {"unk_token is not in the vocabulary", "model.vocab.[UNK]", NULL, "tokenizer.bad_unk", ESP_OK,
     NULL},
    {"no prefix", "model.continuing_subword_prefix", NULL, "tokenizer.bad_field", ESP_OK,
     "continuing_subword_prefix"},
    {"prefix is a number", "model.continuing_subword_prefix", "2", "tokenizer.bad_field", ESP_OK,
     NULL},
    {"no longest word", "model.max_input_chars_per_word", NULL, "tokenizer.bad_field", ESP_OK,
     "max_input_chars_per_word"},
    {"longest word is negative", "model.max_input_chars_per_word", "-1", "tokenizer.bad_field",
     ESP_OK, NULL},
    {"longest word is text", "model.max_input_chars_per_word", "\"100\"", "tokenizer.bad_field",
     ESP_OK, NULL},
    {"vocab is a list", "model.vocab", "[]", "tokenizer.bad_field", ESP_OK, "vocab"},
    {"model WordLevel", "model.type", "\"WordLevel\"", "tokenizer.unsupported_model", U,
     "WordLevel"},
    {"two tokens with one id", "model.vocab.zzzz", "77", "tokenizer.duplicate_id", ESP_OK, "77"},
    {"id is 2^31", "model.vocab.zzzz", "2147483648", "tokenizer.bad_id", ESP_OK, "zzzz"},
    {"ByteLevel", "pre_tokenizer", "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}",
     "tokenizer.unsupported_model", U, "ByteLevel"},
    {"pre_tokenizer Whitespace", "pre_tokenizer", "{\"type\":\"Whitespace\"}",
     "tokenizer.unsupported_pre_tokenizer", U, "Whitespace"},
    {"normalizer Lowercase", "normalizer", "{\"type\":\"Lowercase\"}",
     "tokenizer.unsupported_normalizer", U, "Lowercase"},
    {"lowercase is a number", "normalizer", "{\"type\":\"BertNormalizer\",\"lowercase\":1}",
     "tokenizer.bad_field", ESP_OK, "lowercase"},
    {"strip_accents is text", "normalizer",
     "{\"type\":\"BertNormalizer\",\"lowercase\":true,\"strip_accents\":\"no\"}",
     "tokenizer.bad_field", ESP_OK, "strip_accents"},
    {"decoder ByteLevel", "decoder", "{\"type\":\"ByteLevel\"}", "tokenizer.unsupported_decoder", U,
     "ByteLevel"},
    {"decoder without prefix", "decoder", "{\"type\":\"WordPiece\"}", "tokenizer.bad_field", ESP_OK,
     "prefix"},
    {"cleanup is text", "decoder", "{\"type\":\"WordPiece\",\"prefix\":\"##\",\"cleanup\":\"\"}",
     "tokenizer.bad_field", ESP_OK, "cleanup"},
    {"post_processor Roberta", "post_processor", "{\"type\":\"RobertaProcessing\"}",
     "tokenizer.unsupported_post_processor", U, "RobertaProcessing"},
    {"BertProcessing without sep", "post_processor",
     "{\"type\":\"BertProcessing\",\"cls\":[\"[CLS]\",2]}", "tokenizer.bad_template", ESP_OK,
     "sep"},
    {"BertProcessing with an id of no token", "post_processor",
     "{\"type\":\"BertProcessing\",\"cls\":[\"[CLS]\",2],\"sep\":[\"[SEP]\",900000]}",
     "tokenizer.bad_template", ESP_OK, NULL},
    {"BertProcessing with text for an id", "post_processor",
     "{\"type\":\"BertProcessing\",\"cls\":[\"[CLS]\",\"2\"],\"sep\":[\"[SEP]\",3]}",
     "tokenizer.bad_id", ESP_OK, NULL},
    {"added token is empty", "added_tokens", "[{\"id\":9000,\"content\":\"\"}]",
     "tokenizer.empty_token", ESP_OK, NULL},

    {.name = "accepted: no added tokens", .path = "added_tokens", .value = NULL},
    {.name = "accepted: no decoder", .path = "decoder", .value = "null"},
    {.name = "accepted: no normalizer", .path = "normalizer", .value = "null"},
    {.name = "accepted: no pre_tokenizer", .path = "pre_tokenizer", .value = "null"},
    {.name = "accepted: a normalizer that says nothing",
     .path = "normalizer",
     .value = "{\"type\":\"BertNormalizer\"}"},
    {.name = "accepted: words of no character",
     .path = "model.max_input_chars_per_word",
     .value = "0"},
    {.name = "accepted: no prefix", .path = "model.continuing_subword_prefix", .value = "\"\""},
    {.name = "accepted: padding",
     .path = "padding",
     .value = "{\"strategy\":{\"Fixed\":128},\"pad_id\":0}"},
};

static json_t *good_file(void)
{
    return json_load_file(ESP_SOURCE_DIR "/tests/golden/tokenizer/bert.tokenizer.json", 0, NULL);
}

static void refused_and_taken(test_run *run)
{
    check_changes(run, good_file, changes, ESP_COUNT(changes));
}

/* With few tokens, so that an allocation each is not too many to fail one by one. */
static json_t *small_file(void)
{
    json_t *json = good_file(),
           *vocabulary = json_object_get(json_object_get(json, "model"), "vocab");
    const char *token;
    json_t *id;
    void *next;
    json_object_foreach_safe(vocabulary, next, token, id)
    {
        if (json_integer_value(id) > 150) {
            json_object_del(vocabulary, token);
        }
    }
    json_array_clear(json_object_get(json, "added_tokens"));
    return json;
}

static void changed_files(test_run *run)
{
    check_changed_bytes(run, small_file, 2000);
}

static void failing_memory(test_run *run)
{
    static const char text[] = "Caf\xc3\xa9 word\xc3\xa9 e\xcc\x81\xcc\xa3 <both> <abc> \xff one "
                               "two 33 \xe4\xb8\xad\xe6\x96\x87 [MASK] don't";
    json_t *json = small_file();
    const char *folder = write_file(run, json);
    json_decref(json);
    check_failing_memory(run, folder, text);
}

static const test_case cases[] = {
    {"parts", refused_and_taken},
    {"changed files", changed_files},
    {"failing memory", failing_memory},
};
TEST_MAIN(cases)
