/* The normalizer: a list of rewritings, each applied to one piece of text between added tokens. The
 * text goes to and fro between two buffers; a Unicode form leaves ASCII as it is. */
#include "model/tokenizer.h"

static esp_status refuse(const esp_tokenizer *tokenizer, const char *what, esp_error *error)
{
    return esp_fail(error, ESP_UNSUPPORTED, "tokenizer.unsupported_normalizer",
                    "%s: normalizer %.80s is not supported; known are null, NFC, NFD, NFKC, NFKD, "
                    "Prepend, Replace, BertNormalizer and Sequence of them",
                    tokenizer->path, what[0] != '\0' ? what : "without a type");
}

esp_status esp_tokenizer_keep_text(esp_tokenizer *tokenizer, const char *text, esp_span *span,
                                   esp_error *error)
{
    size_t offset = tokenizer->bytes.length;
    esp_buffer_text(&tokenizer->bytes, text);
    if (tokenizer->bytes.failed || tokenizer->bytes.length > UINT32_MAX) {
        return esp_fail_memory(error, tokenizer->bytes.length, "reading the tokenizer");
    }
    *span = (esp_span){.offset = (uint32_t)offset,
                       .length = (uint32_t)(tokenizer->bytes.length - offset)};
    return ESP_OK;
}

const char *esp_span_text(const esp_tokenizer *tokenizer, esp_span span)
{
    return tokenizer->bytes.data != NULL ? tokenizer->bytes.data + span.offset : "";
}

static esp_status load_replace(esp_tokenizer *tokenizer, const json_t *part, esp_fold *fold,
                               esp_error *error)
{
    const json_t *pattern = json_object_get(part, "pattern");
    const char *regex = json_string_value(json_object_get(pattern, "Regex"));
    const char *literal = json_string_value(json_object_get(pattern, "String"));
    const char *content = json_string_value(json_object_get(part, "content"));
    if ((regex == NULL && literal == NULL) || content == NULL) {
        return esp_tokenizer_bad_field(
            tokenizer, "Replace of the normalizer",
            "\"pattern\" {\"Regex\": ...} or {\"String\": ...} and \"content\", a string", error);
    }
    ESP_TRY(esp_tokenizer_keep_text(tokenizer, content, &fold->content, error));
    ESP_TRY(esp_tokenizer_compile(tokenizer, regex != NULL ? regex : literal, regex == NULL,
                                  &fold->regex, error));
    uint32_t empty = 0;
    (void)pcre2_pattern_info(fold->regex, PCRE2_INFO_MATCHEMPTY, &empty);
    return empty == 0 ? ESP_OK
                      : refuse(tokenizer, "Replace with a pattern that matches nothing", error);
}

static esp_status load_bert(const esp_tokenizer *tokenizer, const json_t *part, esp_fold *fold,
                            esp_error *error)
{
    ESP_TRY(esp_tokenizer_bool(tokenizer, part, "clean_text", true, &fold->clean, error));
    ESP_TRY(esp_tokenizer_bool(tokenizer, part, "handle_chinese_chars", true,
                               &fold->ideographs_apart, error));
    ESP_TRY(esp_tokenizer_bool(tokenizer, part, "lowercase", true, &fold->lower, error));
    /* Absent or null: as for lowercase. */
    return esp_tokenizer_bool(tokenizer, part, "strip_accents", fold->lower, &fold->strip_marks,
                              error);
}

static esp_status load_fold(esp_tokenizer *tokenizer, const json_t *part, esp_error *error)
{
    static const char *const kinds[] = {[ESP_FOLD_NFC] = "NFC",
                                        [ESP_FOLD_NFD] = "NFD",
                                        [ESP_FOLD_NFKC] = "NFKC",
                                        [ESP_FOLD_NFKD] = "NFKD",
                                        [ESP_FOLD_PREPEND] = "Prepend",
                                        [ESP_FOLD_REPLACE] = "Replace",
                                        [ESP_FOLD_BERT] = "BertNormalizer"};
    const char *type = esp_tokenizer_type(part);
    int kind = 0;
    while (kind < ESP_COUNT(kinds) && strcmp(kinds[kind], type) != 0) {
        kind++;
    }
    if (kind == ESP_COUNT(kinds)) {
        return refuse(tokenizer, type, error);
    }
    if (tokenizer->fold_count == ESP_TOKENIZER_MAX_STEPS) {
        return refuse(tokenizer, "Sequence of more than 16 parts", error);
    }
    esp_fold *fold = &tokenizer->folds[tokenizer->fold_count++];
    fold->kind = (esp_fold_kind)kind;
    if (fold->kind == ESP_FOLD_REPLACE) {
        return load_replace(tokenizer, part, fold, error);
    }
    if (fold->kind == ESP_FOLD_BERT) {
        return load_bert(tokenizer, part, fold, error);
    }
    if (fold->kind == ESP_FOLD_PREPEND) {
        const char *text = json_string_value(json_object_get(part, "prepend"));
        return text != NULL
                   ? esp_tokenizer_keep_text(tokenizer, text, &fold->content, error)
                   : esp_tokenizer_bad_field(tokenizer, "Prepend.prepend", "a string", error);
    }
    return ESP_OK;
}

esp_status esp_tokenizer_load_normalizer(esp_tokenizer *tokenizer, const json_t *normalizer,
                                         esp_error *error)
{
    if (normalizer == NULL || json_is_null(normalizer)) {
        return ESP_OK;
    }
    const json_t *parts = json_object_get(normalizer, "normalizers");
    if (strcmp(esp_tokenizer_type(normalizer), "Sequence") != 0) {
        return load_fold(tokenizer, normalizer, error);
    }
    if (!json_is_array(parts)) {
        return refuse(tokenizer, "Sequence without normalizers", error);
    }
    for (size_t i = 0; i < json_array_size(parts); i++) {
        ESP_TRY(load_fold(tokenizer, json_array_get(parts, i), error));
    }
    return ESP_OK;
}

static bool is_ascii(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if ((unsigned char)text[i] >= 0x80) {
            return false;
        }
    }
    return true;
}

static esp_status replace_matches(esp_encoder *encoder, const esp_fold *fold, const char *text,
                                  size_t length, esp_buffer *out)
{
    const char *content = esp_span_text(encoder->tokenizer, fold->content);
    size_t done = 0, from = 0, start = 0, end = 0;
    bool after_match = false, found;
    for (;;) {
        ESP_TRY(esp_regex_next(encoder, fold->regex, text, length, &from, &after_match, &found,
                               &start, &end));
        size_t stop = found ? start : length;
        esp_buffer_append(out, text + done, stop - done);
        if (!found) {
            return ESP_OK;
        }
        esp_buffer_append(out, content, fold->content.length);
        done = end;
    }
}

static esp_status apply(esp_encoder *encoder, const esp_fold *fold, const char *text, size_t length,
                        esp_buffer *out)
{
    switch (fold->kind) {
    case ESP_FOLD_PREPEND:
        esp_buffer_append(out, esp_span_text(encoder->tokenizer, fold->content),
                          fold->content.length);
        esp_buffer_append(out, text, length);
        return ESP_OK;
    case ESP_FOLD_REPLACE:
        return replace_matches(encoder, fold, text, length, out);
    case ESP_FOLD_BERT:
        return esp_bert_normalize(fold, text, length, out, encoder->error);
    default: {
        bool composed = fold->kind == ESP_FOLD_NFC || fold->kind == ESP_FOLD_NFKC;
        bool compatible = fold->kind == ESP_FOLD_NFKC || fold->kind == ESP_FOLD_NFKD;
        return esp_utf8_normalize(text, length, composed, compatible, out, encoder->error);
    }
    }
}

esp_status esp_normalize(esp_encoder *encoder, const char **text, size_t *length)
{
    const esp_tokenizer *tokenizer = encoder->tokenizer;
    int side = 0;
    for (int i = 0; i<tokenizer->fold_count && * length> 0; i++) {
        const esp_fold *fold = &tokenizer->folds[i];
        if (fold->kind < ESP_FOLD_PREPEND && is_ascii(*text, *length)) {
            continue;
        }
        esp_buffer *out = &encoder->folded[side];
        esp_buffer_clear(out);
        ESP_TRY(apply(encoder, fold, *text, *length, out));
        if (out->failed) {
            return esp_fail_memory(encoder->error, *length, "normalising text");
        }
        *text = out->data != NULL ? out->data : "";
        *length = out->length;
        side = 1 - side;
    }
    return ESP_OK;
}
