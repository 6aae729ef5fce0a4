/* WordPiece (Schuster and Nakajima, 2012, as BERT uses it): a word is cut from left to right into
 * the longest tokens of the vocabulary, those inside a word being spelled with a prefix ("##"). A
 * word that cannot be cut to its end is one unknown token, as is one of too many characters.
 *
 * The tokens are sorted by their bytes, prefix left out, so that the longest one is found by
 * narrowing a range byte by byte: a word of n bytes takes O(n) narrowings a token. */
#include "model/tokenizer.h"

/* The bytes of a token behind `skip`. */
static esp_span spelled(const esp_tokenizer *tokenizer, int32_t id, uint32_t skip)
{
    esp_span span = tokenizer->tokens[id].spelled;
    return (esp_span){.offset = span.offset + skip, .length = span.length - skip};
}

/* Bounds of the tokens in [*low, *high) whose byte at `depth` is `byte`; all share those before. */
static void narrow(const esp_tokenizer *tokenizer, const esp_word_list *list, size_t depth,
                   unsigned char byte, int64_t *low, int64_t *high)
{
    int64_t bounds[2];
    for (int upper = 0; upper < 2; upper++) {
        int64_t first = *low, last = *high;
        while (first < last) {
            int64_t middle = first + (last - first) / 2;
            esp_span span = spelled(tokenizer, list->ids[middle], list->skip);
            int have =
                span.length <= depth ? -1 : (unsigned char)esp_span_text(tokenizer, span)[depth];
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

/* The longest token that text begins with, or -1; its bytes in *taken. */
static int32_t longest(const esp_tokenizer *tokenizer, const esp_word_list *list, const char *text,
                       size_t length, size_t *taken)
{
    int32_t best = -1;
    int64_t low = 0, high = list->count;
    for (size_t depth = 0; depth < length && low < high; depth++) {
        narrow(tokenizer, list, depth, (unsigned char)text[depth], &low, &high);
        if (low < high && spelled(tokenizer, list->ids[low], list->skip).length == depth + 1) {
            best = list->ids[low];
            *taken = depth + 1;
        }
    }
    return best;
}

static bool is_too_long(const esp_tokenizer *tokenizer, const char *word, size_t length)
{
    int64_t characters = 0;
    for (size_t i = 0; i < length; i++) {
        characters += ((unsigned char)word[i] & 0xc0) != 0x80;
    }
    return characters > tokenizer->max_word_characters;
}

esp_status esp_wordpiece_encode(esp_encoder *encoder, const char *word, size_t length)
{
    const esp_tokenizer *tokenizer = encoder->tokenizer;
    size_t before = encoder->count, taken = 0;
    bool unknown = is_too_long(tokenizer, word, length);
    for (size_t at = 0; at < length && !unknown; at += taken) {
        const esp_word_list *list = at == 0 ? &tokenizer->starts : &tokenizer->insides;
        int32_t id = longest(tokenizer, list, word + at, length - at, &taken);
        unknown = id < 0;
        if (!unknown) {
            ESP_TRY(esp_encoder_push(encoder, id));
        }
    }
    if (unknown) {
        encoder->count = before;
        return esp_encoder_push(encoder, tokenizer->unknown);
    }
    return ESP_OK;
}

/* ---- loading ---- */

typedef struct order {
    const esp_tokenizer *tokenizer;
    uint32_t skip;
} order;

static int by_bytes(const void *a, const void *b, void *user)
{
    const order *by = user;
    esp_span left = spelled(by->tokenizer, *(const int32_t *)a, by->skip);
    esp_span right = spelled(by->tokenizer, *(const int32_t *)b, by->skip);
    size_t shared = ESP_MIN(left.length, right.length);
    int found =
        memcmp(esp_span_text(by->tokenizer, left), esp_span_text(by->tokenizer, right), shared);
    return found != 0 ? found : (left.length > right.length) - (left.length < right.length);
}

/* The tokens that begin with `prefix` and go on behind it. */
static esp_status list_words(esp_tokenizer *tokenizer, const json_t *vocabulary, const char *prefix,
                             esp_word_list *list, esp_error *error)
{
    size_t count = json_object_size(vocabulary), skip = strlen(prefix);
    list->ids = esp_alloc_array(tokenizer->context, count, sizeof *list->ids);
    if (list->ids == NULL) {
        return esp_fail_memory(error, count * sizeof *list->ids, "reading the vocabulary");
    }
    list->skip = (uint32_t)skip;
    const char *token;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)vocabulary, token, value)
    {
        if (strncmp(token, prefix, skip) == 0 && token[skip] != '\0') {
            list->ids[list->count++] = (int32_t)json_integer_value(value);
        }
    }
    order by = {tokenizer, list->skip};
    qsort_r(list->ids, (size_t)list->count, sizeof *list->ids, by_bytes, &by);
    return ESP_OK;
}

esp_status esp_wordpiece_load(esp_tokenizer *tokenizer, const json_t *model, esp_error *error)
{
    const json_t *vocabulary = json_object_get(model, "vocab");
    const json_t *most = json_object_get(model, "max_input_chars_per_word");
    const char *prefix = json_string_value(json_object_get(model, "continuing_subword_prefix"));
    if (prefix == NULL) {
        return esp_tokenizer_bad_field(tokenizer, "model.continuing_subword_prefix", "a string",
                                       error);
    }
    if (!json_is_integer(most) || json_integer_value(most) < 0) {
        return esp_tokenizer_bad_field(tokenizer, "model.max_input_chars_per_word",
                                       "a whole number", error);
    }
    tokenizer->max_word_characters = json_integer_value(most);
    ESP_TRY(list_words(tokenizer, vocabulary, "", &tokenizer->starts, error));
    return list_words(tokenizer, vocabulary, prefix, &tokenizer->insides, error);
}
