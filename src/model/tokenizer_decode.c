/* The decoder: ids to text. Everything it does to a single token is done once, while loading, so
 * that each token has the bytes it prints; what depends on the place in the text is left for
 * esp_tokenizer_next: a Strip takes characters off the start of a text, a Metaspace takes the
 * spaces out of its first token. */
#include "model/tokenizer.h"

static esp_status refuse(const esp_tokenizer *tokenizer, const char *what, esp_error *error)
{
    return esp_fail(error, ESP_UNSUPPORTED, "tokenizer.unsupported_decoder",
                    "%s: decoder %.80s is not supported; known are ByteLevel for byte-level BPE, "
                    "null and WordPiece for WordPiece, else Metaspace and Sequence of Replace, "
                    "ByteFallback, Fuse, Strip",
                    tokenizer->path, what[0] != '\0' ? what : "without a type");
}

static esp_status new_replace(esp_tokenizer *tokenizer, const char *from, const char *to,
                              esp_error *error)
{
    esp_decoder *decoder = &tokenizer->decoder;
    if (decoder->replace_count == ESP_TOKENIZER_MAX_STEPS) {
        return refuse(tokenizer, "Sequence of more than 16 parts", error);
    }
    esp_replace *replace = &decoder->replaces[decoder->replace_count++];
    ESP_TRY(esp_tokenizer_keep_text(tokenizer, from, &replace->from, error));
    return esp_tokenizer_keep_text(tokenizer, to, &replace->to, error);
}

static esp_status load_replace(esp_tokenizer *tokenizer, const json_t *part, esp_error *error)
{
    const json_t *pattern = json_object_get(part, "pattern");
    const char *from = json_string_value(json_object_get(pattern, "String"));
    const char *to = json_string_value(json_object_get(part, "content"));
    if (json_object_get(pattern, "Regex") != NULL) {
        return refuse(tokenizer, "Replace with a Regex", error);
    }
    if (from == NULL || from[0] == '\0' || to == NULL) {
        return esp_tokenizer_bad_field(tokenizer, "Replace of the decoder",
                                       "\"pattern\" {\"String\": ...} and \"content\", a string",
                                       error);
    }
    if (tokenizer->decoder.byte_fallback || tokenizer->decoder.first_differs) {
        return refuse(tokenizer, "Replace behind ByteFallback or Metaspace", error);
    }
    return new_replace(tokenizer, from, to, error);
}

static esp_status load_metaspace(esp_tokenizer *tokenizer, const json_t *part, esp_error *error)
{
    esp_metaspace metaspace = {0};
    ESP_TRY(esp_tokenizer_metaspace(tokenizer, part, &metaspace, error));
    if (tokenizer->decoder.replace_count > 0 || tokenizer->decoder.byte_fallback) {
        return refuse(tokenizer, "Metaspace behind Replace or ByteFallback", error);
    }
    tokenizer->decoder.first_differs = metaspace.scheme != ESP_PREPEND_NEVER;
    return new_replace(tokenizer, metaspace.replacement, " ", error);
}

/* Only what can be known from a token and those before it: a Strip at the end of a text cannot. */
static esp_status load_strip(esp_tokenizer *tokenizer, const json_t *part, esp_error *error)
{
    esp_decoder *decoder = &tokenizer->decoder;
    const char *content = json_string_value(json_object_get(part, "content"));
    const json_t *start = json_object_get(part, "start"), *stop = json_object_get(part, "stop");
    json_int_t most = json_is_integer(start) ? json_integer_value(start) : -1;
    if (content == NULL || content[0] == '\0' || most < 0 || most > INT32_MAX ||
        !json_is_integer(stop)) {
        return esp_tokenizer_bad_field(
            tokenizer, "Strip of the decoder",
            "\"content\", a character, and the numbers \"start\" and \"stop\"", error);
    }
    if (content[1] != '\0' || (content[0] & 0x80) != 0) {
        return refuse(tokenizer, "Strip of something else than one ASCII character", error);
    }
    if (json_integer_value(stop) != 0) {
        return refuse(tokenizer, "Strip with a \"stop\" that is not 0", error);
    }
    if (!decoder->fused || decoder->strip_most > 0 || decoder->first_differs) {
        return refuse(tokenizer, "Strip without Fuse before it, twice or behind Metaspace", error);
    }
    decoder->strip = content[0];
    decoder->strip_most = (int32_t)most;
    return ESP_OK;
}

static esp_status load_part(esp_tokenizer *tokenizer, const json_t *part, esp_error *error)
{
    const char *type = esp_tokenizer_type(part);
    esp_decoder *decoder = &tokenizer->decoder;
    if (strcmp(type, "Strip") == 0) {
        return load_strip(tokenizer, part, error);
    }
    bool fuse = strcmp(type, "Fuse") == 0, fallback = strcmp(type, "ByteFallback") == 0;
    bool replace = strcmp(type, "Replace") == 0, metaspace = strcmp(type, "Metaspace") == 0;
    if (decoder->fused && (fallback || replace || metaspace)) {
        char what[64];
        snprintf(what, sizeof what, "%.20s behind Fuse", type);
        return refuse(tokenizer, what, error);
    }
    decoder->fused |= fuse;
    decoder->byte_fallback |= fallback;
    if (fuse || fallback) {
        return ESP_OK;
    }
    return replace     ? load_replace(tokenizer, part, error)
           : metaspace ? load_metaspace(tokenizer, part, error)
                       : refuse(tokenizer, type, error);
}

/* Null: tokens with a space between them, as they are spelled. */
static esp_status load_wordpiece(esp_tokenizer *tokenizer, const json_t *part, esp_error *error)
{
    esp_decoder *decoder = &tokenizer->decoder;
    decoder->wordpiece = decoder->first_differs = true;
    if (part == NULL || json_is_null(part)) {
        return ESP_OK;
    }
    const char *prefix = json_string_value(json_object_get(part, "prefix"));
    if (strcmp(esp_tokenizer_type(part), "WordPiece") != 0) {
        return refuse(tokenizer, esp_tokenizer_type(part), error);
    }
    if (prefix == NULL) {
        return esp_tokenizer_bad_field(tokenizer, "WordPiece.prefix", "a string", error);
    }
    decoder->marks_inside = true;
    ESP_TRY(esp_tokenizer_keep_text(tokenizer, prefix, &decoder->inside, error));
    return esp_tokenizer_bool(tokenizer, part, "cleanup", true, &decoder->cleanup, error);
}

esp_status esp_tokenizer_load_decoder(esp_tokenizer *tokenizer, const json_t *decoder,
                                      esp_error *error)
{
    const json_t *parts = json_object_get(decoder, "decoders");
    bool sequence = strcmp(esp_tokenizer_type(decoder), "Sequence") == 0;
    size_t count = sequence ? json_array_size(parts) : 1;
    if (tokenizer->wordpiece) {
        return load_wordpiece(tokenizer, decoder, error);
    }
    if (tokenizer->byte_level) {
        const json_t *only = sequence && count == 1 ? json_array_get(parts, 0) : decoder;
        bool known = strcmp(esp_tokenizer_type(only), "ByteLevel") == 0;
        return known ? ESP_OK : refuse(tokenizer, esp_tokenizer_type(only), error);
    }
    if (count == 0) {
        return refuse(tokenizer, "Sequence without parts", error);
    }
    for (size_t i = 0; i < count; i++) {
        ESP_TRY(load_part(tokenizer, sequence ? json_array_get(parts, i) : decoder, error));
    }
    return ESP_OK;
}

/* ---- the bytes of a token ---- */

static void replace_all(const esp_buffer *in, const char *from, size_t from_length, const char *to,
                        size_t to_length, esp_buffer *out)
{
    size_t done = 0;
    esp_buffer_clear(out);
    for (size_t at = 0; in->length >= from_length && at <= in->length - from_length;) {
        if (memcmp(in->data + at, from, from_length) == 0) {
            esp_buffer_append(out, in->data + done, at - done);
            esp_buffer_append(out, to, to_length);
            done = at += from_length;
        } else {
            at++;
        }
    }
    esp_buffer_append(out, in->data != NULL ? in->data + done : "", in->length - done);
}

int esp_tokenizer_byte_token(const char *text, size_t length)
{
    static const char digits[] = "0123456789abcdef0123456789ABCDEF";
    if (length != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') {
        return -1;
    }
    int value = 0;
    for (int i = 3; i < 5; i++) {
        const char *digit = text[i] != '\0' ? strchr(digits, text[i]) : NULL;
        if (digit == NULL) {
            return -1;
        }
        value = value * 16 + (int)(digit - digits) % 16;
    }
    return value;
}

static void swap(esp_buffer *a, esp_buffer *b)
{
    esp_buffer kept = *a;
    *a = *b;
    *b = kept;
}

/* A space before each word but the first; with cleanup none where English has none. */
static void print_wordpiece(const esp_tokenizer *tokenizer, const char *spelled, bool at_start,
                            esp_buffer *now, esp_buffer *next)
{
    static const char *const tidier[][2] = {{" .", "."},     {" ?", "?"},           {" !", "!"},
                                            {" ,", ","},     {" ' ", "'"},          {" n't", "n't"},
                                            {" 'm", "'m"},   {" do not", " don't"}, {" 's", "'s"},
                                            {" 've", "'ve"}, {" 're", "'re"}};
    const esp_decoder *decoder = &tokenizer->decoder;
    const char *inside = esp_span_text(tokenizer, decoder->inside);
    size_t length = decoder->inside.length;
    bool within = !at_start && decoder->marks_inside && strncmp(spelled, inside, length) == 0;
    esp_buffer_text(now, at_start || within ? "" : " ");
    esp_buffer_text(now, within ? spelled + length : spelled);
    for (int i = 0; decoder->cleanup && i < ESP_COUNT(tidier); i++) {
        replace_all(now, tidier[i][0], strlen(tidier[i][0]), tidier[i][1], strlen(tidier[i][1]),
                    next);
        swap(now, next);
    }
}

/* at_start: as the first token of a text, where that differs. */
static esp_status print_token(esp_tokenizer *tokenizer, const char *spelled, bool at_start,
                              esp_span *span, esp_error *error)
{
    const esp_decoder *decoder = &tokenizer->decoder;
    esp_buffer now, next;
    esp_buffer_init(&now, tokenizer->context);
    esp_buffer_init(&next, tokenizer->context);
    if (decoder->wordpiece) {
        print_wordpiece(tokenizer, spelled, at_start, &now, &next);
    } else {
        esp_buffer_text(&now, spelled);
    }
    for (int i = 0; i < decoder->replace_count; i++) {
        const esp_replace *replace = &decoder->replaces[i];
        replace_all(&now, esp_span_text(tokenizer, replace->from), replace->from.length,
                    esp_span_text(tokenizer, replace->to), at_start ? 0 : replace->to.length,
                    &next);
        swap(&now, &next);
    }
    int byte = decoder->byte_fallback ? esp_tokenizer_byte_token(now.data, now.length) : -1;
    if (byte >= 0) {
        char raw = (char)byte;
        esp_buffer_clear(&now);
        esp_buffer_append(&now, &raw, 1);
    }
    size_t offset = tokenizer->bytes.length;
    esp_buffer_append(&tokenizer->bytes, now.data != NULL ? now.data : "", now.length);
    bool failed = now.failed || next.failed || tokenizer->bytes.failed;
    *span = (esp_span){.offset = (uint32_t)offset, .length = (uint32_t)now.length};
    esp_buffer_free(&now);
    esp_buffer_free(&next);
    return failed || tokenizer->bytes.length > UINT32_MAX
               ? esp_fail_memory(error, offset, "reading the vocabulary")
               : ESP_OK;
}

esp_status esp_tokenizer_decode_token(esp_tokenizer *tokenizer, const char *spelled,
                                      esp_token *token, esp_error *error)
{
    if (tokenizer->byte_level) {
        size_t offset = tokenizer->bytes.length;
        esp_tokenizer_unspell(spelled, strlen(spelled), &tokenizer->bytes);
        token->printed.offset = (uint32_t)offset;
        token->printed.length = (uint32_t)(tokenizer->bytes.length - offset);
        token->first = token->printed;
        return tokenizer->bytes.failed || tokenizer->bytes.length > UINT32_MAX
                   ? esp_fail_memory(error, offset, "reading the vocabulary")
                   : ESP_OK;
    }
    ESP_TRY(print_token(tokenizer, spelled, false, &token->printed, error));
    token->first = token->printed;
    return tokenizer->decoder.first_differs
               ? print_token(tokenizer, spelled, true, &token->first, error)
               : ESP_OK;
}

const char *esp_tokenizer_token(const esp_tokenizer *tokenizer, int32_t id, bool show_special,
                                size_t *length)
{
    if (id < 0 || id >= tokenizer->size || !tokenizer->tokens[id].known) {
        *length = 0;
        return NULL;
    }
    const esp_token *token = &tokenizer->tokens[id];
    *length = token->special && !show_special ? 0 : token->printed.length;
    return esp_span_text(tokenizer, token->printed);
}

/* *place counts the characters taken off the start; -1: nothing is taken off any more. */
const char *esp_tokenizer_next(const esp_tokenizer *tokenizer, int32_t id, bool show_special,
                               int32_t *place, size_t *length)
{
    const esp_decoder *decoder = &tokenizer->decoder;
    const char *text = esp_tokenizer_token(tokenizer, id, show_special, length);
    if (text == NULL || *place < 0 || (tokenizer->tokens[id].special && !show_special)) {
        return text;
    }
    if (decoder->first_differs) {
        *place = -1;
        *length = tokenizer->tokens[id].first.length;
        return esp_span_text(tokenizer, tokenizer->tokens[id].first);
    }
    while (*length > 0 && *place < decoder->strip_most && text[0] == decoder->strip) {
        text++;
        --*length;
        ++*place;
    }
    if (*length > 0 || *place == decoder->strip_most) {
        *place = -1;
    }
    return text;
}
