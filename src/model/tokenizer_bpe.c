/* Byte pair encoding of one word (a whole text where the file cuts none): of all neighbouring pairs
 * that the merge list knows, the one of lowest rank (the leftmost of equals) is joined, until none
 * is left.
 *
 * Candidates wait in a binary heap, symbols form a linked list in an array; a candidate whose two
 * symbols are no longer what they were when it was found is stale and dropped. A word of n bytes
 * takes O(n log n) steps, so that a megabyte without a space is no attack. */
#include "model/tokenizer.h"

static const esp_merge *find_merge(const esp_tokenizer *tokenizer, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    int64_t low = 0, high = tokenizer->merge_count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (tokenizer->merges[middle].pair < pair) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    bool found = low < tokenizer->merge_count && tokenizer->merges[low].pair == pair;
    return found ? &tokenizer->merges[low] : NULL;
}

static bool before(const esp_bpe_candidate *a, const esp_bpe_candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->position < b->position;
}

static void heap_push(esp_bpe_candidate *heap, size_t *count, esp_bpe_candidate candidate)
{
    size_t at = (*count)++;
    while (at > 0 && before(&candidate, &heap[(at - 1) / 2])) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = candidate;
}

static esp_bpe_candidate heap_pop(esp_bpe_candidate *heap, size_t *count)
{
    esp_bpe_candidate top = heap[0], last = heap[--*count];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= *count) {
            break;
        }
        if (child + 1 < *count && before(&heap[child + 1], &heap[child])) {
            child++;
        }
        if (!before(&heap[child], &last)) {
            break;
        }
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return top;
}

static void consider(const esp_encoder *encoder, size_t *count, int32_t left)
{
    const esp_bpe_symbol *symbols = encoder->symbols;
    if (left < 0 || symbols[left].next < 0) {
        return;
    }
    int32_t right = symbols[left].next;
    const esp_merge *merge = find_merge(encoder->tokenizer, symbols[left].id, symbols[right].id);
    if (merge != NULL) {
        heap_push(encoder->heap, count,
                  (esp_bpe_candidate){.rank = merge->rank,
                                      .position = (uint32_t)left,
                                      .left = symbols[left].id,
                                      .right = symbols[right].id,
                                      .id = merge->id});
    }
}

static void merge_all(esp_encoder *encoder, int32_t symbol_count)
{
    esp_bpe_symbol *symbols = encoder->symbols;
    size_t count = 0;
    for (int32_t i = 0; i < symbol_count; i++) {
        consider(encoder, &count, i);
    }
    while (count > 0) {
        esp_bpe_candidate best = heap_pop(encoder->heap, &count);
        esp_bpe_symbol *left = &symbols[best.position];
        if (left->id != best.left || left->next < 0 || symbols[left->next].id != best.right) {
            continue;
        }
        esp_bpe_symbol *right = &symbols[left->next];
        left->id = best.id;
        left->next = right->next;
        right->id = -2;
        if (left->next >= 0) {
            symbols[left->next].previous = (int32_t)best.position;
        }
        consider(encoder, &count, left->previous);
        consider(encoder, &count, (int32_t)best.position);
    }
}

static esp_status reserve_word(esp_encoder *encoder, size_t length)
{
    if (length <= encoder->word_capacity) {
        return ESP_OK;
    }
    esp_context *context = encoder->tokenizer->context;
    size_t capacity = ESP_MAX(length, 64), candidates;
    esp_bpe_symbol *symbols = NULL;
    esp_bpe_candidate *heap = NULL;
    /* n - 1 pairs at the start; each of at most n - 1 merges takes one out and puts two in. */
    if (length <= INT32_MAX && esp_mul_size(capacity, 2, &candidates)) {
        symbols = esp_alloc_array(context, capacity, sizeof *symbols);
        heap = esp_alloc_array(context, candidates, sizeof *heap);
    }
    if (symbols == NULL || heap == NULL) {
        esp_release(context, symbols);
        esp_release(context, heap);
        return esp_fail_memory(encoder->error, length, "encoding a long word");
    }
    esp_release(context, encoder->symbols);
    esp_release(context, encoder->heap);
    encoder->symbols = symbols;
    encoder->heap = heap;
    encoder->word_capacity = capacity;
    return ESP_OK;
}

static int compare_word(const esp_tokenizer *tokenizer, int32_t id, const char *word, size_t length)
{
    const esp_token *token = &tokenizer->tokens[id];
    size_t shared = ESP_MIN(token->spelled.length, length);
    int order =
        shared == 0 ? 0 : memcmp(tokenizer->bytes.data + token->spelled.offset, word, shared);
    return order != 0 ? order : (token->spelled.length > length) - (token->spelled.length < length);
}

/* The id of a whole word, or -1. */
static int32_t find_word(const esp_tokenizer *tokenizer, const char *word, size_t length)
{
    int64_t low = 0, high = tokenizer->word_count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        int order = compare_word(tokenizer, tokenizer->words[middle], word, length);
        if (order == 0) {
            return tokenizer->words[middle];
        }
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return -1;
}

static void add_symbol(esp_encoder *encoder, int32_t *count, int32_t id)
{
    encoder->symbols[*count] =
        (esp_bpe_symbol){.id = id, .previous = *count - 1, .next = *count + 1};
    ++*count;
}

/* One symbol a byte; bytes that no token stands for become the unknown token, a run of them one if
 * the file says so. */
static int32_t list_bytes(esp_encoder *encoder, const char *word, size_t length)
{
    const esp_tokenizer *tokenizer = encoder->tokenizer;
    int32_t count = 0;
    bool was_unknown = false;
    for (size_t i = 0; i < length; i++) {
        int32_t id = tokenizer->byte_ids[(unsigned char)word[i]];
        bool unknown = id < 0;
        if (unknown && (tokenizer->unknown < 0 || (was_unknown && tokenizer->fuse_unknown))) {
            continue;
        }
        was_unknown = unknown;
        add_symbol(encoder, &count, unknown ? tokenizer->unknown : id);
    }
    if (count > 0) {
        encoder->symbols[count - 1].next = -1;
    }
    return count;
}

static int32_t find_character(const esp_tokenizer *tokenizer, int32_t point)
{
    int64_t low = 0, high = tokenizer->character_count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (tokenizer->characters[middle].point < point) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    bool found = low < tokenizer->character_count && tokenizer->characters[low].point == point;
    return found ? tokenizer->characters[low].id : -1;
}

/* Every byte of a character that has no token has one, or the bytes are not used at all. */
static bool falls_back(const esp_tokenizer *tokenizer, const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (tokenizer->byte_ids[(unsigned char)text[i]] < 0) {
            return false;
        }
    }
    return tokenizer->byte_fallback;
}

/* One symbol a character, or one a byte where it falls back, or the unknown token. An unknown one
 * waits until the next character that is a token: bytes overtake it, as in the other library. */
static int32_t list_characters(esp_encoder *encoder, const char *word, size_t length)
{
    const esp_tokenizer *tokenizer = encoder->tokenizer;
    int32_t count = 0;
    bool waiting = false;
    for (size_t at = 0, bytes; at < length; at += bytes) {
        int32_t point = 0;
        bytes = esp_utf8_next(word + at, length - at, &point);
        int32_t id = find_character(tokenizer, point);
        bool fallback = id < 0 && falls_back(tokenizer, word + at, bytes);
        if (waiting && (id >= 0 || (!fallback && !tokenizer->fuse_unknown))) {
            add_symbol(encoder, &count, tokenizer->unknown);
            waiting = false;
        }
        if (id >= 0) {
            add_symbol(encoder, &count, id);
        }
        for (size_t i = 0; fallback && i < bytes; i++) {
            add_symbol(encoder, &count, tokenizer->byte_ids[(unsigned char)word[at + i]]);
        }
        waiting = waiting || (id < 0 && !fallback && tokenizer->unknown >= 0);
    }
    if (waiting) {
        add_symbol(encoder, &count, tokenizer->unknown);
    }
    if (count > 0) {
        encoder->symbols[count - 1].next = -1;
    }
    return count;
}

esp_status esp_bpe_encode(esp_encoder *encoder, const char *word, size_t length)
{
    if (length == 0) {
        return ESP_OK;
    }
    int32_t whole =
        encoder->tokenizer->words != NULL ? find_word(encoder->tokenizer, word, length) : -1;
    if (whole >= 0) {
        return esp_encoder_push(encoder, whole);
    }
    ESP_TRY(reserve_word(encoder, length));
    int32_t count = encoder->tokenizer->byte_level ? list_bytes(encoder, word, length)
                                                   : list_characters(encoder, word, length);
    merge_all(encoder, count);
    for (int32_t at = count > 0 ? 0 : -1; at >= 0; at = encoder->symbols[at].next) {
        ESP_TRY(esp_encoder_push(encoder, encoder->symbols[at].id));
    }
    return ESP_OK;
}
