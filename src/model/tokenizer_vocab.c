/* Vocabulary and merges of a BPE model. Ids are a table by id; merges are sorted by the pair of ids
 * they join, so that no choice of names in a hostile file makes look-ups slow. */
#include "model/tokenizer.h"

/* The byte that a character of the GPT-2 alphabet stands for, or -1: printable Latin-1 stands for
 * itself, all other bytes in order for U+0100 and up. */
static int byte_of_point(int32_t point)
{
    if ((point >= '!' && point <= '~') || (point >= 0xa1 && point <= 0xac) ||
        (point >= 0xae && point <= 0xff)) {
        return point;
    }
    int32_t rank = point - 0x100;
    if (rank < 0 || rank > 67) {
        return -1;
    }
    return rank <= 32 ? rank : rank <= 66 ? rank - 33 + 0x7f : 0xad;
}

void esp_tokenizer_unspell(const char *text, size_t length, esp_buffer *out)
{
    size_t begin = out->length;
    for (size_t at = 0; at < length;) {
        int32_t point = 0;
        at += esp_utf8_next(text + at, length - at, &point);
        int byte = byte_of_point(point);
        if (byte < 0) {
            out->length = begin;
            esp_buffer_append(out, text, length);
            return;
        }
        char raw = (char)byte;
        esp_buffer_append(out, &raw, 1);
    }
}

esp_status esp_tokenizer_id(const esp_tokenizer *tokenizer, const json_t *value, const char *token,
                            int32_t *id, esp_error *error)
{
    json_int_t number = json_is_integer(value) ? json_integer_value(value) : -1;
    if (number < 0 || number >= ESP_TOKENIZER_MAX_TOKENS) {
        return esp_fail(error, ESP_BAD_FILE, "tokenizer.bad_id",
                        "%s: the id of token \"%.80s\" must be an integer in 0..%d",
                        tokenizer->path, token, ESP_TOKENIZER_MAX_TOKENS - 1);
    }
    *id = (int32_t)number;
    return ESP_OK;
}

static esp_status largest_id(const esp_tokenizer *tokenizer, const json_t *vocabulary,
                             const json_t *added_tokens, int64_t *size, esp_error *error)
{
    const char *token;
    json_t *value;
    int32_t id = 0;
    int64_t largest = -1;
    json_object_foreach((json_t *)(uintptr_t)vocabulary, token, value)
    {
        ESP_TRY(esp_tokenizer_id(tokenizer, value, token, &id, error));
        largest = ESP_MAX(largest, id);
    }
    for (size_t i = 0; i < json_array_size(added_tokens); i++) {
        const json_t *entry = json_array_get(added_tokens, i);
        const char *content = json_string_value(json_object_get(entry, "content"));
        ESP_TRY(esp_tokenizer_id(tokenizer, json_object_get(entry, "id"),
                                 content != NULL ? content : "", &id, error));
        largest = ESP_MAX(largest, id);
    }
    *size = largest + 1;
    return ESP_OK;
}

static esp_status place(esp_tokenizer *tokenizer, const char *content, int32_t id, esp_error *error)
{
    esp_token *token = &tokenizer->tokens[id];
    if (token->known) {
        return esp_fail(error, ESP_BAD_FILE, "tokenizer.duplicate_id",
                        "%s: token \"%.80s\" has id %d, which another token has already",
                        tokenizer->path, content, (int)id);
    }
    size_t offset = tokenizer->bytes.length;
    if (tokenizer->byte_level) {
        esp_tokenizer_unspell(content, strlen(content), &tokenizer->bytes);
    } else {
        esp_buffer_text(&tokenizer->bytes, content);
    }
    if (tokenizer->bytes.failed || tokenizer->bytes.length > UINT32_MAX) {
        return esp_fail_memory(error, tokenizer->bytes.length, "reading the vocabulary");
    }
    *token = (esp_token){.spelled = {.offset = (uint32_t)offset,
                                     .length = (uint32_t)(tokenizer->bytes.length - offset)},
                         .known = true};
    if (tokenizer->byte_level) { /* prints what it is spelled */
        token->printed = token->first = token->spelled;
        return ESP_OK;
    }
    return esp_tokenizer_decode_token(tokenizer, content, token, error);
}

/* An added token repeats a token of the vocabulary with the same id, or is a new one with a free
 * id. */
static esp_status place_added(esp_tokenizer *tokenizer, const json_t *vocabulary,
                              const json_t *added_tokens, esp_error *error)
{
    for (size_t i = 0; i < json_array_size(added_tokens); i++) {
        const json_t *entry = json_array_get(added_tokens, i);
        const char *content = json_string_value(json_object_get(entry, "content"));
        if (content == NULL || content[0] == '\0') {
            continue; /* refused by esp_tokenizer_load_added */
        }
        int32_t id = 0;
        ESP_TRY(esp_tokenizer_id(tokenizer, json_object_get(entry, "id"), content, &id, error));
        const json_t *same = json_object_get(vocabulary, content);
        if (same == NULL) {
            ESP_TRY(place(tokenizer, content, id, error));
        } else if (json_integer_value(same) != id) {
            return esp_fail(error, ESP_BAD_FILE, "tokenizer.id_conflict",
                            "%s: added token \"%.80s\" has id %d, but the vocabulary gives it %d",
                            tokenizer->path, content, (int)id, (int)json_integer_value(same));
        }
    }
    return ESP_OK;
}

/* Every byte that UTF-8 text can hold needs a token, or text would be lost without a word. */
static esp_status check_bytes(const esp_tokenizer *tokenizer, esp_error *error)
{
    for (int byte = 0; byte < 0xf5 && tokenizer->unknown < 0; byte++) {
        if (tokenizer->byte_ids[byte] < 0 && byte != 0xc0 && byte != 0xc1) {
            return esp_fail(
                error, ESP_BAD_FILE, "tokenizer.missing_byte",
                "%s: no token stands for byte 0x%02x and there is no unk_token, so text "
                "would be lost; train with the whole byte alphabet or with byte_fallback",
                tokenizer->path, (unsigned)byte);
        }
    }
    return ESP_OK;
}

/* The byte that a token of one character stands for, or of <0xNN> written as it must be. */
static int byte_of_token(const esp_tokenizer *tokenizer, const char *token)
{
    int32_t point = 0;
    size_t length = strlen(token);
    if (tokenizer->byte_level) {
        return length > 0 && esp_utf8_next(token, length, &point) == length ? byte_of_point(point)
                                                                            : -1;
    }
    char spelled[8];
    int byte = tokenizer->byte_fallback ? esp_tokenizer_byte_token(token, length) : -1;
    snprintf(spelled, sizeof spelled, "<0x%02X>", (unsigned)byte & 0xff);
    return byte >= 0 && strcmp(spelled, token) == 0 ? byte : -1;
}

static void list_bytes(esp_tokenizer *tokenizer, const json_t *vocabulary)
{
    const char *token;
    json_t *value;
    for (int byte = 0; byte < 256; byte++) {
        tokenizer->byte_ids[byte] = -1;
    }
    json_object_foreach((json_t *)(uintptr_t)vocabulary, token, value)
    {
        int byte = byte_of_token(tokenizer, token);
        if (byte >= 0) {
            tokenizer->byte_ids[byte] = (int32_t)json_integer_value(value);
        }
    }
}

static int by_point(const void *a, const void *b)
{
    int32_t left = ((const esp_character *)a)->point, right = ((const esp_character *)b)->point;
    return (left > right) - (left < right);
}

static esp_status list_characters(esp_tokenizer *tokenizer, const json_t *vocabulary,
                                  esp_error *error)
{
    size_t count = json_object_size(vocabulary);
    tokenizer->characters =
        esp_alloc_array(tokenizer->context, count, sizeof *tokenizer->characters);
    if (tokenizer->characters == NULL) {
        return esp_fail_memory(error, count * sizeof *tokenizer->characters,
                               "reading the vocabulary");
    }
    const char *token;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)vocabulary, token, value)
    {
        int32_t point = 0;
        size_t length = strlen(token);
        if (length > 0 && esp_utf8_next(token, length, &point) == length) {
            tokenizer->characters[tokenizer->character_count++] =
                (esp_character){.point = point, .id = (int32_t)json_integer_value(value)};
        }
    }
    qsort(tokenizer->characters, (size_t)tokenizer->character_count, sizeof *tokenizer->characters,
          by_point);
    return ESP_OK;
}

static esp_status find_unknown(esp_tokenizer *tokenizer, const json_t *model,
                               const json_t *vocabulary, esp_error *error)
{
    const json_t *unknown = json_object_get(model, "unk_token");
    tokenizer->unknown = -1;
    if ((unknown == NULL || json_is_null(unknown)) && !tokenizer->wordpiece) {
        return ESP_OK;
    }
    const json_t *id =
        json_is_string(unknown) ? json_object_get(vocabulary, json_string_value(unknown)) : NULL;
    if (id == NULL) {
        return esp_fail(error, ESP_BAD_FILE, "tokenizer.bad_unk",
                        "%s: unk_token must %sname a token of the vocabulary", tokenizer->path,
                        tokenizer->wordpiece ? "" : "be null or ");
    }
    tokenizer->unknown = (int32_t)json_integer_value(id);
    return ESP_OK;
}

esp_status esp_tokenizer_load_vocabulary(esp_tokenizer *tokenizer, const json_t *model,
                                         const json_t *added_tokens, esp_error *error)
{
    const json_t *vocabulary = json_object_get(model, "vocab");
    if (!json_is_object(vocabulary)) {
        return esp_tokenizer_bad_field(tokenizer, "model.vocab", "an object token -> id", error);
    }
    size_t count = json_object_size(vocabulary) + json_array_size(added_tokens);
    if (count > ESP_TOKENIZER_MAX_TOKENS) {
        return esp_fail(error, ESP_BAD_FILE, "tokenizer.too_large",
                        "%s: %zu tokens; at most %d are accepted", tokenizer->path, count,
                        ESP_TOKENIZER_MAX_TOKENS);
    }
    ESP_TRY(largest_id(tokenizer, vocabulary, added_tokens, &tokenizer->size, error));
    size_t size = (size_t)tokenizer->size;
    tokenizer->tokens = esp_alloc_array(tokenizer->context, size, sizeof *tokenizer->tokens);
    if (tokenizer->tokens == NULL) {
        return esp_fail_memory(error, size * sizeof *tokenizer->tokens, "reading the vocabulary");
    }
    const char *token;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)vocabulary, token, value)
    {
        ESP_TRY(place(tokenizer, token, (int32_t)json_integer_value(value), error));
    }
    ESP_TRY(find_unknown(tokenizer, model, vocabulary, error));
    list_bytes(tokenizer, vocabulary);
    ESP_TRY(check_bytes(tokenizer, error));
    if (!tokenizer->byte_level && !tokenizer->wordpiece) {
        ESP_TRY(list_characters(tokenizer, vocabulary, error));
    }
    return place_added(tokenizer, vocabulary, added_tokens, error);
}

/* ---- merges ---- */

/* Both spellings: "left right" and ["left", "right"]. left points into scratch or the JSON. */
static bool read_merge(const json_t *entry, esp_buffer *left, esp_buffer *right)
{
    esp_buffer_clear(left);
    esp_buffer_clear(right);
    if (json_is_array(entry)) {
        const char *first = json_string_value(json_array_get(entry, 0));
        const char *second = json_string_value(json_array_get(entry, 1));
        if (json_array_size(entry) != 2 || first == NULL || second == NULL) {
            return false;
        }
        esp_buffer_text(left, first);
        esp_buffer_text(right, second);
        return true;
    }
    const char *text = json_string_value(entry);
    const char *space = text != NULL ? strchr(text, ' ') : NULL;
    if (space == NULL || strchr(space + 1, ' ') != NULL) {
        return false;
    }
    esp_buffer_append(left, text, (size_t)(space - text));
    esp_buffer_text(right, space + 1);
    return true;
}

static esp_status find_part(const esp_tokenizer *tokenizer, const json_t *vocabulary, size_t rank,
                            const esp_buffer *part, int32_t *id, esp_error *error)
{
    const char *text = part->data != NULL ? part->data : "";
    const json_t *value = json_object_get(vocabulary, text);
    if (value == NULL) {
        return esp_fail(error, ESP_BAD_FILE, "tokenizer.merge_unknown_token",
                        "%s: merge %zu needs token \"%.80s\", which is not in the vocabulary",
                        tokenizer->path, rank, text);
    }
    *id = (int32_t)json_integer_value(value);
    return ESP_OK;
}

static esp_status load_merge(const esp_tokenizer *tokenizer, const json_t *vocabulary, size_t rank,
                             const json_t *entry, esp_buffer *left, esp_buffer *right,
                             esp_merge *merge, esp_error *error)
{
    if (!read_merge(entry, left, right)) {
        return esp_fail(error, ESP_BAD_FILE, "tokenizer.merge_syntax",
                        "%s: merge %zu must be \"left right\" or [\"left\", \"right\"]",
                        tokenizer->path, rank);
    }
    if (left->failed || right->failed) {
        return esp_fail_memory(error, left->length, "reading the merges");
    }
    int32_t first = 0, second = 0, joined = 0;
    ESP_TRY(find_part(tokenizer, vocabulary, rank, left, &first, error));
    ESP_TRY(find_part(tokenizer, vocabulary, rank, right, &second, error));
    esp_buffer_append(left, right->data != NULL ? right->data : "", right->length);
    if (left->failed) {
        return esp_fail_memory(error, left->length, "reading the merges");
    }
    ESP_TRY(find_part(tokenizer, vocabulary, rank, left, &joined, error));
    *merge = (esp_merge){.pair = (uint64_t)(uint32_t)first << 32 | (uint32_t)second,
                         .rank = (uint32_t)rank,
                         .id = joined};
    return ESP_OK;
}

static int by_pair(const void *a, const void *b)
{
    const esp_merge *left = a, *right = b;
    if (left->pair != right->pair) {
        return left->pair < right->pair ? -1 : 1;
    }
    return (left->rank > right->rank) - (left->rank < right->rank);
}

static int by_bytes(const void *a, const void *b, void *user)
{
    const esp_tokenizer *tokenizer = user;
    const esp_span *left = &tokenizer->tokens[*(const int32_t *)a].spelled;
    const esp_span *right = &tokenizer->tokens[*(const int32_t *)b].spelled;
    size_t shared = ESP_MIN(left->length, right->length);
    const char *bytes = tokenizer->bytes.data;
    int order = shared == 0 ? 0 : memcmp(bytes + left->offset, bytes + right->offset, shared);
    return order != 0 ? order : (left->length > right->length) - (left->length < right->length);
}

/* Whole words are looked up by their spelling, so a token of a byte-level file that is not spelled
 * in the byte alphabet can never be one; an empty token neither. */
static esp_status load_words(esp_tokenizer *tokenizer, const json_t *vocabulary, esp_error *error)
{
    size_t count = json_object_size(vocabulary);
    tokenizer->words = esp_alloc_array(tokenizer->context, count, sizeof *tokenizer->words);
    if (tokenizer->words == NULL) {
        return esp_fail_memory(error, count * sizeof *tokenizer->words, "reading the vocabulary");
    }
    const char *token;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)vocabulary, token, value)
    {
        bool spelled = token[0] != '\0';
        size_t length = tokenizer->byte_level ? strlen(token) : 0;
        for (size_t at = 0; at < length && spelled;) {
            int32_t point = 0;
            at += esp_utf8_next(token + at, length - at, &point);
            spelled = byte_of_point(point) >= 0;
        }
        if (spelled) {
            tokenizer->words[tokenizer->word_count++] = (int32_t)json_integer_value(value);
        }
    }
    qsort_r(tokenizer->words, (size_t)tokenizer->word_count, sizeof *tokenizer->words, by_bytes,
            tokenizer);
    return ESP_OK;
}

esp_status esp_tokenizer_load_merges(esp_tokenizer *tokenizer, const json_t *model,
                                     esp_error *error)
{
    const json_t *vocabulary = json_object_get(model, "vocab");
    const json_t *merges = json_object_get(model, "merges");
    size_t count = json_array_size(merges);
    if (!json_is_array(merges)) {
        return esp_tokenizer_bad_field(tokenizer, "model.merges", "an array", error);
    }
    if (count > ESP_TOKENIZER_MAX_TOKENS) {
        return esp_fail(error, ESP_BAD_FILE, "tokenizer.too_large",
                        "%s: %zu merges; at most %d are accepted", tokenizer->path, count,
                        ESP_TOKENIZER_MAX_TOKENS);
    }
    tokenizer->merges = esp_alloc_array(tokenizer->context, count, sizeof *tokenizer->merges);
    if (tokenizer->merges == NULL) {
        return esp_fail_memory(error, count * sizeof *tokenizer->merges, "reading the merges");
    }
    esp_buffer left, right;
    esp_buffer_init(&left, tokenizer->context);
    esp_buffer_init(&right, tokenizer->context);
    esp_status status = ESP_OK;
    for (size_t rank = 0; rank < count && status == ESP_OK; rank++) {
        status = load_merge(tokenizer, vocabulary, rank, json_array_get(merges, rank), &left,
                            &right, &tokenizer->merges[rank], error);
    }
    esp_buffer_free(&left);
    esp_buffer_free(&right);
    ESP_TRY(status);
    qsort(tokenizer->merges, count, sizeof *tokenizer->merges, by_pair);
    for (size_t i = 0; i < count; i++) { /* of a pair listed twice the later entry counts */
        int64_t last = tokenizer->merge_count - 1;
        bool again = last >= 0 && tokenizer->merges[last].pair == tokenizer->merges[i].pair;
        tokenizer->merges[again ? last : tokenizer->merge_count++] = tokenizer->merges[i];
    }
    bool whole_words = false;
    ESP_TRY(esp_tokenizer_bool(tokenizer, model, "ignore_merges", false, &whole_words, error));
    return whole_words ? load_words(tokenizer, vocabulary, error) : ESP_OK;
}
