/* One pass over the mask, 128 rows at a time. For V:2:M the row condition (at most two of each M)
 * is the same for all V, and the panel condition (at most four columns of each M in use) is asked
 * of the union of the panel's rows, where the union of 2V rows is that of two times V: so each word
 * is looked at once per row and once per panel height. A pattern that failed is not asked again. */
#include "assess/fit.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "format/format.h"
#include "pipeline/pipeline.h"

/* Sparsest first. */
static const int group_sizes[] = {32, 16, 10, 9, 8, 7, 6, 5};
static const int panel_rows[] = {16, 32, 64, 128};
enum { GROUPS = ESP_COUNT(group_sizes), HEIGHTS = ESP_COUNT(panel_rows), BLOCK_ROWS = 128 };

typedef struct fit_state {
    esp_context *context;
    const esp_mask *mask;
    int64_t rows, columns, words;
    uint64_t *unions; /* per thread: HEIGHTS rows of `words` */
    atomic_bool not_2_4, not_4_8;
    atomic_bool bad_rows[GROUPS];            /* more than two of a group in one row */
    atomic_bool bad_panels[GROUPS][HEIGHTS]; /* more than four columns of a group in one panel */
} fit_state;

static bool is_set(atomic_bool *flag)
{
    return atomic_load_explicit(flag, memory_order_relaxed);
}

static void set(atomic_bool *flag)
{
    atomic_store_explicit(flag, true, memory_order_relaxed);
}

/* Bits [first, first + count), count <= 32; beyond the row they are zero. */
static uint64_t bits_at(const uint64_t *row, int64_t words, int64_t first, int count)
{
    int64_t word = first / 64;
    int shift = (int)(first % 64);
    uint64_t bits = row[word] >> shift;
    if (shift + count > 64 && word + 1 < words) {
        bits |= row[word + 1] << (64 - shift);
    }
    return bits & (((uint64_t)1 << count) - 1);
}

/* No group of `group` columns holds more than `most` entries. */
static bool groups_hold(const fit_state *state, const uint64_t *row, int group, int most)
{
    for (int64_t first = 0; first < state->columns; first += group) {
        if (__builtin_popcountll(bits_at(row, state->words, first, group)) > most) {
            return false;
        }
    }
    return true;
}

static void look_at_row(fit_state *state, const uint64_t *row)
{
    if (!is_set(&state->not_2_4) && !groups_hold(state, row, 4, 2)) {
        set(&state->not_2_4);
    }
    if (!is_set(&state->not_4_8) && !groups_hold(state, row, 8, 4)) {
        set(&state->not_4_8);
    }
    for (int g = 0; g < GROUPS; g++) {
        if (!is_set(&state->bad_rows[g]) && !groups_hold(state, row, group_sizes[g], 2)) {
            set(&state->bad_rows[g]);
        }
    }
}

static void look_at_panel(fit_state *state, const uint64_t *used, int height)
{
    for (int g = 0; g < GROUPS; g++) {
        if (!is_set(&state->bad_rows[g]) && !is_set(&state->bad_panels[g][height]) &&
            !groups_hold(state, used, group_sizes[g], 4)) {
            set(&state->bad_panels[g][height]);
        }
    }
}

static bool is_any_panel_left(fit_state *state)
{
    for (int g = 0; g < GROUPS; g++) {
        if (!is_set(&state->bad_rows[g]) && !is_set(&state->bad_panels[g][0])) {
            return true;
        }
    }
    return false;
}

/* Rows [begin, end) of one block; unions[h] gathers the open panel of height panel_rows[h]. */
static void look_at_block(fit_state *state, int64_t begin, int64_t end, uint64_t *unions)
{
    size_t row_bytes = (size_t)state->words * sizeof *unions;
    memset(unions, 0, HEIGHTS * row_bytes);
    for (int64_t row = begin; row < end; row++) {
        const uint64_t *bits = esp_mask_row(state->mask, row);
        look_at_row(state, bits);
        if (!is_any_panel_left(state)) {
            continue; /* 2:4 and 4:8 may still fit */
        }
        for (int64_t w = 0; w < state->words; w++) {
            unions[w] |= bits[w];
        }
        for (int h = 0; h < HEIGHTS; h++) {
            bool full = (row + 1 - begin) % panel_rows[h] == 0;
            if (!full && row + 1 < end) {
                break; /* taller panels are open too */
            }
            uint64_t *used = unions + h * state->words;
            look_at_panel(state, used, h);
            for (int64_t w = 0; h + 1 < HEIGHTS && w < state->words; w++) {
                used[state->words + w] |= used[w];
            }
            memset(used, 0, row_bytes);
        }
    }
}

static void look_at_blocks(void *user, int64_t begin, int64_t end, int thread)
{
    fit_state *state = user;
    uint64_t *unions = state->unions + (int64_t)thread * HEIGHTS * state->words;
    for (int64_t block = begin; block < end; block++) {
        int64_t first = block * BLOCK_ROWS;
        look_at_block(state, first, ESP_MIN(first + BLOCK_ROWS, state->rows), unions);
    }
}

static void add_name(char text[ESP_FIT_TEXT_MAX], const char *name)
{
    size_t used = strlen(text);
    snprintf(text + used, ESP_FIT_TEXT_MAX - used, "%s%s", used > 0 ? ", " : "", name);
}

/* Tallest panel that fits and is no taller than the weight (or the lowest); -1: none. A panel that
 * fails makes all taller ones fail, which were perhaps not asked. */
static int best_height(fit_state *state, int g)
{
    if (is_set(&state->bad_rows[g]) || group_sizes[g] > state->columns) {
        return -1;
    }
    int best = -1;
    for (int h = 0; h < HEIGHTS && (h == 0 || panel_rows[h] <= state->rows); h++) {
        if (is_set(&state->bad_panels[g][h])) {
            break;
        }
        best = h;
    }
    return best;
}

static void print_fits(fit_state *state, char text[ESP_FIT_TEXT_MAX])
{
    int heights[GROUPS];
    for (int g = 0; g < GROUPS; g++) {
        heights[g] = best_height(state, g);
        bool implied = false;
        for (int larger = 0; larger < g; larger++) {
            implied |= heights[larger] >= heights[g]; /* sparser, and at least as tall */
        }
        if (heights[g] >= 0 && !implied) {
            char name[32];
            snprintf(name, sizeof name, "%d:2:%d", panel_rows[heights[g]], group_sizes[g]);
            add_name(text, name);
        }
    }
    if (!is_set(&state->not_2_4)) {
        add_name(text, "2:4");
    } else if (!is_set(&state->not_4_8)) {
        add_name(text, "4:8");
    }
}

void esp_fit_patterns(esp_context *context, const esp_mask *mask, char text[ESP_FIT_TEXT_MAX])
{
    fit_state state = {.context = context,
                       .mask = mask,
                       .rows = esp_mask_out_features(mask),
                       .columns = esp_mask_in_features(mask),
                       .words = esp_mask_row_words(mask)};
    int64_t live = esp_mask_count(mask);
    text[0] = '\0';
    if (state.rows == 0 || state.columns == 0 ||
        (double)live > 0.75 * (double)state.rows * (double)state.columns) {
        return;
    }
    if (live == 0) {
        snprintf(text, ESP_FIT_TEXT_MAX, "all zero");
        return;
    }
    size_t per_thread = (size_t)HEIGHTS * (size_t)state.words * sizeof *state.unions;
    state.unions = esp_alloc_array(context, (size_t)context->threads, per_thread);
    if (state.unions == NULL) {
        snprintf(text, ESP_FIT_TEXT_MAX, "not looked at: out of memory");
        return;
    }
    esp_parallel_for(context, esp_ceil_div(state.rows, BLOCK_ROWS), 1, look_at_blocks, &state);
    esp_release(context, state.unions);
    print_fits(&state, text);
}

void esp_fit_qualifies(const esp_weight_info *weight, char text[ESP_QUALIFIES_TEXT_MAX])
{
    static const char *const usual[] = {"2:4", "64:2:5", "64:2:8", "128:2:8"};
    const char *why_not = esp_linear_layer_why_not(weight);
    if (why_not != NULL || weight->shape[0] == 0 || weight->shape[1] == 0) {
        snprintf(text, ESP_QUALIFIES_TEXT_MAX, "none: %s", why_not != NULL ? why_not : "empty");
        return;
    }
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; i < ESP_COUNT(usual) && used < ESP_QUALIFIES_TEXT_MAX; i++) {
        esp_pattern pattern;
        size_t bytes;
        char remark[48] = "";
        if (esp_pattern_parse(usual[i], &pattern, NULL) != ESP_OK ||
            esp_sparse_layout_bytes(&pattern, weight->dtype, weight->shape[0], weight->shape[1],
                                    false, &bytes, NULL) != ESP_OK ||
            bytes >= weight->dense_bytes) {
            continue;
        }
        int64_t group = pattern.m > 0 ? pattern.m : 4, last = weight->shape[1] % group;
        if (pattern.v > weight->shape[0]) {
            snprintf(remark, sizeof remark, " (V=%lld)", (long long)weight->shape[0]);
        } else if (last != 0) {
            snprintf(remark, sizeof remark, " (last group %lld)", (long long)last);
        }
        used += (size_t)snprintf(text + used, ESP_QUALIFIES_TEXT_MAX - used, "%s%s%s",
                                 used > 0 ? ", " : "", usual[i], remark);
    }
    if (used == 0) {
        snprintf(text, ESP_QUALIFIES_TEXT_MAX, "none: too small to get smaller");
    }
}
