/* Added tokens: strings that are cut out of a text before anything else looks at it. At each place
 * the longest one wins; single_word, lstrip and rstrip then reject it or widen it over white space.
 */
#include <utf8proc.h>

#include "model/tokenizer.h"

/* What to look for: the content, rewritten as the text will be. It prints as that, so that a space
 * that a normalizer makes part of it comes out again. */
static esp_status keep_content(esp_tokenizer *tokenizer, const char *content, bool normalized,
                               esp_added_token *token, esp_error *error)
{
    esp_encoder encoder;
    esp_encoder_begin(&encoder, tokenizer, error);
    size_t length = strlen(content), offset = tokenizer->bytes.length;
    esp_status status = normalized ? esp_normalize(&encoder, &content, &length) : ESP_OK;
    if (status == ESP_OK) {
        esp_buffer_append(&tokenizer->bytes, content, length);
        token->offset = (uint32_t)offset;
        token->length = (uint32_t)length;
    }
    if (status == ESP_OK && normalized && length > 0) {
        status =
            esp_tokenizer_decode_token(tokenizer, content, &tokenizer->tokens[token->id], error);
    }
    esp_encoder_end(&encoder);
    if (tokenizer->bytes.failed || tokenizer->bytes.length > UINT32_MAX) {
        return esp_fail_memory(error, tokenizer->bytes.length, "reading added tokens");
    }
    return status;
}

static esp_status load_one(esp_tokenizer *tokenizer, const json_t *entry, esp_error *error)
{
    const char *content = json_string_value(json_object_get(entry, "content"));
    if (content == NULL) {
        return esp_tokenizer_bad_field(tokenizer, "added_tokens[].content", "a string", error);
    }
    if (content[0] == '\0') {
        return esp_fail(error, ESP_BAD_FILE, "tokenizer.empty_token",
                        "%s: an added token is empty; remove it from added_tokens",
                        tokenizer->path);
    }
    bool normalized = false, special = false;
    esp_added_token token = {0};
    ESP_TRY(esp_tokenizer_id(tokenizer, json_object_get(entry, "id"), content, &token.id, error));
    ESP_TRY(esp_tokenizer_bool(tokenizer, entry, "special", false, &special, error));
    ESP_TRY(esp_tokenizer_bool(tokenizer, entry, "normalized", !special, &normalized, error));
    ESP_TRY(esp_tokenizer_bool(tokenizer, entry, "single_word", false, &token.single_word, error));
    ESP_TRY(esp_tokenizer_bool(tokenizer, entry, "lstrip", false, &token.lstrip, error));
    ESP_TRY(esp_tokenizer_bool(tokenizer, entry, "rstrip", false, &token.rstrip, error));

    ESP_TRY(keep_content(tokenizer, content, normalized, &token, error));
    tokenizer->tokens[token.id].special = special;
    if (token.length == 0) {
        return ESP_OK; /* a normalizer that takes everything away: never found */
    }
    esp_added_set *set = normalized ? &tokenizer->normalized : &tokenizer->raw;
    set->tokens[set->count++] = token;
    return ESP_OK;
}

static int by_bytes(const void *a, const void *b, void *bytes)
{
    const esp_added_token *left = a, *right = b;
    const char *text = bytes;
    int order =
        memcmp(text + left->offset, text + right->offset, ESP_MIN(left->length, right->length));
    return order != 0 ? order : (left->length > right->length) - (left->length < right->length);
}

esp_status esp_tokenizer_load_added(esp_tokenizer *tokenizer, const json_t *added_tokens,
                                    esp_error *error)
{
    size_t count = json_array_size(added_tokens);
    esp_added_set *sets[] = {&tokenizer->raw, &tokenizer->normalized};
    for (int i = 0; i < 2; i++) {
        sets[i]->tokens = esp_alloc_array(tokenizer->context, count, sizeof *sets[i]->tokens);
        if (sets[i]->tokens == NULL) {
            return esp_fail_memory(error, count * sizeof *sets[i]->tokens, "reading added tokens");
        }
    }
    for (size_t i = 0; i < count; i++) {
        ESP_TRY(load_one(tokenizer, json_array_get(added_tokens, i), error));
    }
    for (int i = 0; i < 2; i++) {
        qsort_r(sets[i]->tokens, (size_t)sets[i]->count, sizeof *sets[i]->tokens, by_bytes,
                tokenizer->bytes.data);
    }
    return ESP_OK;
}

/* Bounds of the tokens in [*low, *high) whose byte at `depth` is `byte`; all share the bytes
 * before. */
static void narrow(const esp_added_set *set, const char *bytes, size_t depth, unsigned char byte,
                   int64_t *low, int64_t *high)
{
    int64_t bounds[2];
    for (int upper = 0; upper < 2; upper++) {
        int64_t first = *low, last = *high;
        while (first < last) {
            int64_t middle = first + (last - first) / 2;
            const esp_added_token *token = &set->tokens[middle];
            int have = token->length <= depth ? -1 : (unsigned char)bytes[token->offset + depth];
            if (have < byte + upper) {
                first = middle + 1;
            } else {
                last = middle;
            }
        }
        bounds[upper] = first;
    }
    *low = bounds[0];
    *high = bounds[1];
}

/* The longest token that begins at text, or NULL. */
static const esp_added_token *longest(const esp_added_set *set, const char *bytes, const char *text,
                                      size_t length)
{
    const esp_added_token *best = NULL;
    int64_t low = 0, high = set->count;
    for (size_t depth = 0; depth < length && low < high; depth++) {
        narrow(set, bytes, depth, (unsigned char)text[depth], &low, &high);
        if (low < high && set->tokens[low].length == depth + 1) {
            best = &set->tokens[low];
        }
    }
    return best;
}

/* Letters, marks and digits that came after Unicode 15, which is utf8proc's. */
static bool is_newer_word(int32_t point)
{
    static const int32_t ranges[][2] = {
        {0x897, 0x897},     {0x1c89, 0x1c8a},   {0xa7cb, 0xa7cd},   {0xa7da, 0xa7dc},
        {0x105c0, 0x105f3}, {0x10d40, 0x10d65}, {0x10d69, 0x10d6d}, {0x10d6f, 0x10d85},
        {0x10ec2, 0x10ec4}, {0x10efc, 0x10efc}, {0x11380, 0x11389}, {0x1138b, 0x1138b},
        {0x1138e, 0x1138e}, {0x11390, 0x113b5}, {0x113b7, 0x113c0}, {0x113c2, 0x113c2},
        {0x113c5, 0x113c5}, {0x113c7, 0x113ca}, {0x113cc, 0x113d3}, {0x113e1, 0x113e2},
        {0x116d0, 0x116e3}, {0x11bc0, 0x11be0}, {0x11bf0, 0x11bf9}, {0x11f5a, 0x11f5a},
        {0x13460, 0x143fa}, {0x16100, 0x16139}, {0x16d40, 0x16d6c}, {0x16d70, 0x16d79},
        {0x18cff, 0x18cff}, {0x1ccf0, 0x1ccf9}, {0x1e5d0, 0x1e5fa}, {0x2ebf0, 0x2ee5d}};
    for (int i = 0; i < ESP_COUNT(ranges) && point >= ranges[i][0]; i++) {
        if (point <= ranges[i][1]) {
            return true;
        }
    }
    return false;
}

static bool is_word(int32_t point)
{
    switch (utf8proc_category(point)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default: /* Other_Alphabetic outside of these, and Join_Control */
        return (point >= 0x24b6 && point <= 0x24e9) || (point >= 0x1f130 && point <= 0x1f149) ||
               (point >= 0x1f150 && point <= 0x1f169) || (point >= 0x1f170 && point <= 0x1f189) ||
               point == 0x200c || point == 0x200d || is_newer_word(point);
    }
}

/* The code point that ends before text[end]; *start is where it begins. end > 0. */
static int32_t point_before(const char *text, size_t end, size_t *start)
{
    size_t at = end - 1;
    while (at > 0 && ((unsigned char)text[at] & 0xc0) == 0x80) {
        at--;
    }
    int32_t point = 0;
    esp_utf8_next(text + at, end - at, &point);
    *start = at;
    return point;
}

static bool stands_alone(const char *text, size_t length, size_t start, size_t end)
{
    size_t ignored;
    int32_t point = 0;
    if (start > 0 && is_word(point_before(text, start, &ignored))) {
        return false;
    }
    if (end == length) {
        return true;
    }
    esp_utf8_next(text + end, length - end, &point);
    return !is_word(point);
}

static size_t strip_left(const char *text, size_t start)
{
    size_t before;
    while (start > 0 && esp_utf8_is_space(point_before(text, start, &before))) {
        start = before;
    }
    return start;
}

static size_t strip_right(const char *text, size_t length, size_t end)
{
    while (end < length) {
        int32_t point = 0;
        size_t bytes = esp_utf8_next(text + end, length - end, &point);
        if (!esp_utf8_is_space(point)) {
            break;
        }
        end += bytes;
    }
    return end;
}

esp_status esp_added_split(esp_encoder *encoder, const esp_added_set *set, const char *text,
                           size_t length, bool first, esp_piece_fn rest)
{
    const char *bytes = encoder->tokenizer->bytes.data;
    size_t done = 0;
    for (size_t at = 0; set->count > 0 && at < length;) {
        const esp_added_token *token = longest(set, bytes, text + at, length - at);
        if (token == NULL) {
            at++;
            continue;
        }
        size_t start = at, end = at + token->length;
        at = end; /* the search goes on behind the bare match, also when that is rejected */
        if (token->single_word && !stands_alone(text, length, start, end)) {
            continue;
        }
        if (token->lstrip) {
            start = ESP_MAX(strip_left(text, start), done);
        }
        if (token->rstrip) {
            end = strip_right(text, length, end);
        }
        if (start > done) {
            ESP_TRY(rest(encoder, text + done, start - done, first && done == 0));
        }
        ESP_TRY(esp_encoder_push(encoder, token->id));
        done = end;
    }
    return done < length ? rest(encoder, text + done, length - done, first && done == 0) : ESP_OK;
}
