/* Text to ids: repair -> added tokens -> normalizer -> added tokens -> steps -> words -> template.
 * Pieces are handed on at once, depth first; no list of them is ever built. */
#include "model/tokenizer.h"

esp_status esp_encoder_push(esp_encoder *encoder, int32_t id)
{
    if (encoder->count == encoder->capacity) {
        size_t capacity = encoder->capacity < 64 ? 64 : encoder->capacity * 2, bytes;
        int32_t *grown = NULL;
        if (esp_mul_size(capacity, sizeof *grown, &bytes)) {
            grown = esp_realloc(encoder->tokenizer->context, encoder->ids,
                                encoder->count * sizeof *grown, bytes);
        }
        if (grown == NULL) {
            return esp_fail_memory(encoder->error, capacity, "collecting token ids");
        }
        encoder->ids = grown;
        encoder->capacity = capacity;
    }
    encoder->ids[encoder->count++] = id;
    return ESP_OK;
}

static esp_status run_step(esp_encoder *encoder, int index, const char *text, size_t length,
                           bool first);

static esp_status split_step(esp_encoder *encoder, int index, const char *text, size_t length,
                             bool first)
{
    const esp_step *step = &encoder->tokenizer->steps[index];
    size_t done = 0, from = 0, start = 0, end = 0;
    bool after_match = false, found;
    for (;;) {
        ESP_TRY(esp_regex_next(encoder, step->regex, text, length, &from, &after_match, &found,
                               &start, &end));
        size_t stop = found ? start : length;
        if (stop > done && !step->drop_others) {
            ESP_TRY(run_step(encoder, index + 1, text + done, stop - done, first && done == 0));
        }
        if (!found) {
            return ESP_OK;
        }
        if (end > start && !step->drop_matches) {
            ESP_TRY(run_step(encoder, index + 1, text + start, end - start, first && start == 0));
        }
        done = end;
    }
}

static esp_status prefix_step(esp_encoder *encoder, int index, const char *text, size_t length,
                              bool first)
{
    if (text[0] == ' ') {
        return run_step(encoder, index + 1, text, length, first);
    }
    esp_buffer_clear(&encoder->prefixed);
    esp_buffer_text(&encoder->prefixed, " ");
    esp_buffer_append(&encoder->prefixed, text, length);
    if (encoder->prefixed.failed) {
        return esp_fail_memory(encoder->error, length, "encoding text");
    }
    return run_step(encoder, index + 1, encoder->prefixed.data, encoder->prefixed.length, first);
}

/* The piece with its spaces replaced, in encoder->prefixed. */
static esp_status replace_spaces(esp_encoder *encoder, const esp_metaspace *metaspace,
                                 const char *text, size_t length, bool first)
{
    const char *mark = metaspace->replacement;
    size_t size = strlen(mark);
    esp_buffer *out = &encoder->prefixed;
    esp_buffer_clear(out);
    bool marked = text[0] == ' ' || (length >= size && memcmp(text, mark, size) == 0);
    bool wanted = metaspace->scheme == ESP_PREPEND_ALWAYS ||
                  (metaspace->scheme == ESP_PREPEND_FIRST && first);
    esp_buffer_append(out, mark, wanted && !marked ? size : 0);
    for (size_t done = 0; done < length;) {
        const char *space = memchr(text + done, ' ', length - done);
        size_t stop = space != NULL ? (size_t)(space - text) : length;
        esp_buffer_append(out, text + done, stop - done);
        esp_buffer_append(out, mark, space != NULL ? size : 0);
        done = stop + 1;
    }
    return out->failed ? esp_fail_memory(encoder->error, length, "encoding text") : ESP_OK;
}

static esp_status metaspace_step(esp_encoder *encoder, int index, const char *text, size_t length,
                                 bool first)
{
    const esp_metaspace *metaspace = &encoder->tokenizer->steps[index].metaspace;
    size_t size = strlen(metaspace->replacement), done = 0;
    ESP_TRY(replace_spaces(encoder, metaspace, text, length, first));
    text = encoder->prefixed.data;
    length = encoder->prefixed.length;
    while (done < length) {
        const char *next = NULL;
        if (metaspace->split && length - done > size) {
            next = memmem(text + done + 1, length - done - 1, metaspace->replacement, size);
        }
        size_t stop = next != NULL ? (size_t)(next - text) : length;
        ESP_TRY(run_step(encoder, index + 1, text + done, stop - done, first && done == 0));
        done = stop;
    }
    return ESP_OK;
}

static esp_status bert_step(esp_encoder *encoder, int index, const char *text, size_t length,
                            bool first)
{
    size_t from = 0, start = 0, end = 0;
    while (esp_bert_next(text, length, &from, &start, &end)) {
        ESP_TRY(run_step(encoder, index + 1, text + start, end - start, first && start == 0));
    }
    return ESP_OK;
}

/* length > 0 */
static esp_status run_step(esp_encoder *encoder, int index, const char *text, size_t length,
                           bool first)
{
    if (index == encoder->tokenizer->step_count) {
        return encoder->tokenizer->wordpiece ? esp_wordpiece_encode(encoder, text, length)
                                             : esp_bpe_encode(encoder, text, length);
    }
    switch (encoder->tokenizer->steps[index].kind) {
    case ESP_STEP_PREFIX_SPACE:
        return prefix_step(encoder, index, text, length, first);
    case ESP_STEP_METASPACE:
        return metaspace_step(encoder, index, text, length, first);
    case ESP_STEP_BERT:
        return bert_step(encoder, index, text, length, first);
    default:
        return split_step(encoder, index, text, length, first);
    }
}

static esp_status encode_words(esp_encoder *encoder, const char *text, size_t length, bool first)
{
    return run_step(encoder, 0, text, length, first);
}

static esp_status encode_plain(esp_encoder *encoder, const char *text, size_t length, bool first)
{
    ESP_TRY(esp_normalize(encoder, &text, &length));
    return esp_added_split(encoder, &encoder->tokenizer->normalized, text, length, first,
                           encode_words);
}

static esp_status encode_all(esp_encoder *encoder, const char *text, size_t length, bool special)
{
    const esp_tokenizer *tokenizer = encoder->tokenizer;
    for (int i = 0; special && i < tokenizer->prefix_count; i++) {
        ESP_TRY(esp_encoder_push(encoder, tokenizer->prefix[i]));
    }
    if (length > 0) {
        ESP_TRY(esp_added_split(encoder, &tokenizer->raw, text, length, true, encode_plain));
    }
    for (int i = 0; special && i < tokenizer->suffix_count; i++) {
        ESP_TRY(esp_encoder_push(encoder, tokenizer->suffix[i]));
    }
    return ESP_OK;
}

void esp_encoder_begin(esp_encoder *encoder, const esp_tokenizer *tokenizer, esp_error *error)
{
    *encoder = (esp_encoder){.tokenizer = tokenizer, .error = error};
    esp_buffer_init(&encoder->prefixed, tokenizer->context);
    esp_buffer_init(&encoder->folded[0], tokenizer->context);
    esp_buffer_init(&encoder->folded[1], tokenizer->context);
}

void esp_encoder_end(esp_encoder *encoder)
{
    esp_release(encoder->tokenizer->context, encoder->symbols);
    esp_release(encoder->tokenizer->context, encoder->heap);
    esp_buffer_free(&encoder->prefixed);
    esp_buffer_free(&encoder->folded[0]);
    esp_buffer_free(&encoder->folded[1]);
    pcre2_match_data_free(encoder->match);
    pcre2_match_context_free(encoder->limits);
    pcre2_jit_stack_free(encoder->stack);
}

esp_status esp_tokenizer_encode(const esp_tokenizer *tokenizer, const char *text, size_t length,
                                bool special, int32_t **ids, int64_t *count, esp_error *error)
{
    esp_context *context = tokenizer->context;
    esp_encoder encoder;
    esp_buffer repaired;
    esp_encoder_begin(&encoder, tokenizer, error);
    esp_buffer_init(&repaired, context);
    esp_status status = ESP_OK;
    if (!esp_utf8_valid(text, length)) {
        esp_utf8_repair(text, length, &repaired);
        text = repaired.data;
        length = repaired.length;
        if (repaired.failed) {
            status = esp_fail_memory(error, length, "repairing text");
        }
    }
    if (status == ESP_OK) {
        status = encode_all(&encoder, text, length, special);
    }
    if (status == ESP_OK && encoder.ids == NULL) {
        encoder.ids = esp_alloc(context, sizeof *encoder.ids);
        if (encoder.ids == NULL) {
            status = esp_fail_memory(error, sizeof *encoder.ids, "collecting token ids");
        }
    }
    if (status == ESP_OK) {
        *ids = encoder.ids;
        *count = (int64_t)encoder.count;
    } else {
        esp_release(context, encoder.ids);
    }
    esp_buffer_free(&repaired);
    esp_encoder_end(&encoder);
    return status;
}

void esp_ids_free(const esp_tokenizer *tokenizer, int32_t *ids)
{
    esp_release(tokenizer->context, ids);
}
