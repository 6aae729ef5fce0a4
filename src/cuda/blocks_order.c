/* Which rows of blocks share a band, and in which order everything is stored.
 *
 * A tile of the kernels for many tokens loads each piece of X that any row of its band needs once,
 * so bands should be of rows that need the same pieces. Finding the best groups is hard; this takes
 * the rows from the longest on and gives each the partner, among the next few hundred, that shares
 * most with what the band has. For random blocks that saves a tenth (64 rows a block, 0.8 pruned)
 * to a fifth (32 rows, 0.9) of the reads; rows of pruned weights are more alike than that. */
#include "cuda/blocks_order.h"

#define CANDIDATES 512
#define NONE (-1)

typedef struct builder {
    const block_lists *lists;
    block_order *order;
    int64_t rows, columns; /* counted in units */
    int64_t words;         /* of a row's bits */
    int of_band;           /* rows of a band */
    uint64_t *bits;        /* [rows][words]: which units a row has */
    int32_t *count;        /* [rows]: how many */
    int32_t *grouped;      /* [bands][of_band]: rows in the order of their bands; NONE */
    int32_t *band_at;      /* [bands]: which group is the i-th band */
    uint64_t *any;         /* [words] */
    int32_t *columns_of;   /* [columns]: of the band being stored */
    uint32_t *blocks_of;   /* [of_band][columns]: block that covers a unit, plus 1 */
} builder;

static int64_t power_of_two_in(int64_t number, int64_t most)
{
    int64_t power = 1;
    while (power < most && number % (2 * power) == 0) {
        power *= 2;
    }
    return power;
}

/* ---- lists ---- */

static int64_t first_block(const block_lists *lists, int64_t line)
{
    uint64_t at = lists->offsets_wide ? ((const uint64_t *)lists->offsets)[line]
                                      : ((const uint32_t *)lists->offsets)[line];
    return at < (uint64_t)lists->kept ? (int64_t)at : lists->kept;
}

/* In unit columns; may lie outside. */
static int64_t block_place(const builder *b, int64_t k)
{
    int64_t column = b->lists->columns_wide ? (int64_t)((const uint32_t *)b->lists->columns)[k]
                                            : (int64_t)((const uint16_t *)b->lists->columns)[k];
    return column * (b->lists->block_columns / b->order->unit_columns);
}

typedef void unit_fn(builder *b, int64_t row, int slot, int64_t column, int64_t block);

/* Calls `take` for each unit of a row that exists. */
static void each_unit(builder *b, int64_t row, int slot, unit_fn *take)
{
    int64_t line = row * b->order->unit_rows / b->lists->block_rows;
    int64_t across = b->lists->block_columns / b->order->unit_columns;
    int64_t end = first_block(b->lists, line + 1);
    for (int64_t k = first_block(b->lists, line); k < end; k++) {
        int64_t place = block_place(b, k);
        for (int64_t c = place; c < ESP_MIN(place + across, b->columns); c++) {
            take(b, row, slot, c, k);
        }
    }
}

static void mark(builder *b, int64_t row, int slot, int64_t column, int64_t block)
{
    (void)slot, (void)block;
    uint64_t *word = &b->bits[row * b->words + column / 64], bit = (uint64_t)1 << column % 64;
    b->count[row] += (*word & bit) == 0;
    *word |= bit;
}

static void note_block(builder *b, int64_t row, int slot, int64_t column, int64_t block)
{
    (void)row;
    b->blocks_of[slot * b->columns + column] = (uint32_t)block + 1;
}

/* ---- grouping ---- */

/* Rows by falling count, equal ones in order; counts are small numbers. */
static void sort_by_count(const int32_t *count, int64_t items, int64_t most, int32_t *starts,
                          int32_t *sorted)
{
    memset(starts, 0, (size_t)(most + 2) * sizeof *starts);
    for (int64_t i = 0; i < items; i++) {
        starts[most - count[i] + 1]++;
    }
    for (int64_t c = 0; c <= most; c++) {
        starts[c + 1] += starts[c];
    }
    for (int64_t i = 0; i < items; i++) {
        sorted[starts[most - count[i]]++] = (int32_t)i;
    }
}

static int shared_units(const builder *b, int64_t row)
{
    int shared = 0;
    for (int64_t i = 0; i < b->words; i++) {
        shared += __builtin_popcountll(b->any[i] & b->bits[row * b->words + i]);
    }
    return shared;
}

/* The place in `left` of the row that adds least per unit that it has. */
static int64_t best_partner(const builder *b, const int32_t *left, int64_t count)
{
    int64_t best = 0;
    double most = -1;
    for (int64_t i = 0; i < ESP_MIN(count, CANDIDATES); i++) {
        double share = (shared_units(b, left[i]) + 1e-3) / (b->count[left[i]] + 1e-3);
        if (share > most) {
            most = share;
            best = i;
        }
    }
    return best;
}

static int32_t take_row(builder *b, int32_t *left, int64_t *count, int64_t at)
{
    int32_t row = left[at];
    (*count)--;
    memmove(left + at, left + at + 1, (size_t)(*count - at) * sizeof *left);
    for (int64_t i = 0; i < b->words; i++) {
        b->any[i] |= b->bits[row * b->words + i];
    }
    return row;
}

/* `left`: all rows, sorted. */
static void group_rows(builder *b, int32_t *left)
{
    int64_t count = b->rows;
    for (int64_t band = 0; band < b->order->bands; band++) {
        memset(b->any, 0, (size_t)b->words * sizeof *b->any);
        for (int i = 0; i < b->of_band; i++) {
            int32_t *to = &b->grouped[band * b->of_band + i];
            if (count == 0) {
                *to = NONE;
                continue;
            }
            *to = take_row(b, left, &count, i == 0 ? 0 : best_partner(b, left, count));
        }
    }
}

/* ---- bands ---- */

static int steps_of(const block_order *order, int64_t units)
{
    return (int)esp_ceil_div(units * order->unit_columns, GPU_STEP_COLUMNS);
}

/* The columns that any row of the group has, ascending; returns how many. */
static int64_t band_columns(builder *b, int64_t group)
{
    int64_t found = 0;
    for (int64_t i = 0; i < b->words; i++) {
        uint64_t any = 0;
        for (int j = 0; j < b->of_band; j++) {
            int32_t row = b->grouped[group * b->of_band + j];
            any |= row != NONE ? b->bits[row * b->words + i] : 0;
        }
        for (; any != 0; any &= any - 1) {
            b->columns_of[found++] = (int32_t)(64 * i + __builtin_ctzll(any));
        }
    }
    return found;
}

/* Number of the fragment in the canonical weight, or NONE. */
static int64_t source_of(const builder *b, int64_t group, int64_t column, int strip, int k)
{
    const block_order *order = b->order;
    int strips = order->unit_rows / 16, tall = order->unit_columns / 16, slot = strip / strips;
    int64_t row = b->grouped[group * b->of_band + slot];
    uint32_t block = b->blocks_of[slot * b->columns + column];
    if (row == NONE || block == 0 ||
        row * order->unit_rows + strip % strips * 16 >= b->lists->out ||
        column * order->unit_columns + k % tall * 16 >= b->lists->in) {
        return NONE;
    }
    int64_t rows = b->lists->block_rows / 16, columns = b->lists->block_columns / 16;
    int64_t strip_of_block = row * strips % rows + strip % strips;
    int64_t column_of_block = column * tall % columns + k % tall;
    return ((int64_t)(block - 1) * rows + strip_of_block) * columns + column_of_block;
}

/* 64 columns of one half: from the units columns_of[first...]. */
static void store_half_step(builder *b, int64_t group, int half, int64_t first, int64_t units,
                            gpu_block_step *step)
{
    block_order *order = b->order;
    step->first[half] = (uint32_t)order->fragments;
    for (int k = 0; k < 4; k++) {
        int64_t unit = first + k * 16 / order->unit_columns;
        for (int s = 0; s < 4 && unit < units; s++) {
            int64_t source = source_of(b, group, b->columns_of[unit], 4 * half + s, k);
            if (source != NONE) {
                step->present |= 1u << (16 * half + 4 * k + s);
                order->sources[order->fragments++] = (uint32_t)source;
            }
        }
    }
}

static void store_columns(const builder *b, int64_t first, int64_t units, gpu_block_step *step)
{
    int width = b->order->unit_columns;
    for (int k = 0; k < 4; k++) {
        int64_t unit = first + k * 16 / width;
        int64_t column = unit < units ? b->columns_of[unit] : b->columns;
        step->column[k] = (int32_t)(column * width + k * 16 % width);
    }
}

static void store_rows(const builder *b, int64_t group, int32_t *rows)
{
    int height = b->order->unit_rows;
    for (int i = 0; i < GPU_BAND_ROWS; i++) {
        int64_t unit = b->grouped[group * b->of_band + i / height];
        int64_t row = unit * height + i % height;
        rows[i] = unit != NONE && row < b->lists->out ? (int32_t)row : NONE;
    }
}

static void store_band(builder *b, int64_t group, int64_t band)
{
    block_order *order = b->order;
    int64_t units = band_columns(b, group), each = GPU_STEP_COLUMNS / order->unit_columns;
    int first_step = order->band_steps[band];
    memset(b->blocks_of, 0, (size_t)(b->of_band * b->columns) * sizeof *b->blocks_of);
    for (int j = 0; j < b->of_band; j++) {
        int64_t row = b->grouped[group * b->of_band + j];
        if (row != NONE) {
            each_unit(b, row, j, note_block);
        }
    }
    for (int half = 0; half < 2; half++) {
        for (int64_t unit = 0, i = first_step; unit < units; unit += each, i++) {
            store_half_step(b, group, half, unit, units, &order->steps[i]);
            store_columns(b, unit, units, &order->steps[i]);
        }
    }
    order->band_steps[band + 1] = first_step + steps_of(order, units);
    store_rows(b, group, order->rows + band * GPU_BAND_ROWS);
}

/* ---- all of it ---- */

static esp_status make_room(esp_context *context, builder *b, esp_error *error)
{
    size_t bands = (size_t)b->order->bands, of_band = (size_t)b->of_band;
    const struct {
        void *to; /* of a pointer */
        size_t count, size;
    } wanted[] = {{&b->bits, (size_t)(b->rows * b->words), sizeof *b->bits},
                  {&b->count, (size_t)b->rows, sizeof *b->count},
                  {&b->grouped, bands * of_band, sizeof *b->grouped},
                  {&b->band_at, bands, sizeof *b->band_at},
                  {&b->any, (size_t)b->words, sizeof *b->any},
                  {&b->columns_of, (size_t)b->columns, sizeof *b->columns_of},
                  {&b->blocks_of, of_band * (size_t)b->columns, sizeof *b->blocks_of},
                  {&b->order->band_steps, bands + 1, sizeof *b->order->band_steps},
                  {&b->order->rows, bands * GPU_BAND_ROWS, sizeof *b->order->rows}};
    for (int i = 0; i < ESP_COUNT(wanted); i++) {
        size_t bytes = (wanted[i].count + 1) * wanted[i].size;
        void *memory = esp_alloc_zero(context, bytes);
        if (memory == NULL) {
            return esp_fail_memory(error, bytes, "the order of a weight's blocks");
        }
        memcpy(wanted[i].to, &memory, sizeof memory);
    }
    return ESP_OK;
}

static void release_room(esp_context *context, builder *b)
{
    void *all[] = {b->bits, b->count, b->grouped, b->band_at, b->any, b->columns_of, b->blocks_of};
    for (int i = 0; i < ESP_COUNT(all); i++) {
        esp_release(context, all[i]);
    }
}

/* Steps of each group, and room for all of them. */
static esp_status count_steps(esp_context *context, builder *b, int32_t *steps, esp_error *error)
{
    block_order *order = b->order;
    int64_t most = 0, all = 0, units = 0;
    for (int64_t group = 0; group < order->bands; group++) {
        steps[group] = steps_of(order, band_columns(b, group));
        most = ESP_MAX(most, steps[group]);
        all += steps[group];
    }
    for (int64_t row = 0; row < b->rows; row++) {
        units += b->count[row];
    }
    if (all >= INT32_MAX) {
        return esp_fail(error, ESP_UNSUPPORTED, "pack.too_large",
                        "pack: the weight has more blocks than the GPU's kernels can count");
    }
    order->step_count = (int)all;
    size_t fragments = (size_t)units * (size_t)(order->unit_rows * order->unit_columns / 256);
    size_t step_bytes = (size_t)(all + 1) * sizeof *order->steps;
    order->steps = esp_alloc_zero(context, step_bytes);
    order->sources = esp_alloc_zero(context, (fragments + 1) * sizeof *order->sources);
    int32_t *starts = esp_alloc_zero(context, (size_t)(most + 2) * sizeof *starts);
    bool made = order->steps != NULL && order->sources != NULL && starts != NULL;
    if (made) {
        sort_by_count(steps, order->bands, most, starts, b->band_at);
    }
    esp_release(context, starts);
    return made ? ESP_OK : esp_fail_memory(error, step_bytes, "the steps of a weight's blocks");
}

static esp_status build(esp_context *context, builder *b, int32_t *scratch, int32_t *starts,
                        esp_error *error)
{
    for (int64_t row = 0; row < b->rows; row++) {
        each_unit(b, row, 0, mark);
    }
    sort_by_count(b->count, b->rows, b->columns, starts, scratch);
    group_rows(b, scratch);
    ESP_TRY(count_steps(context, b, scratch, error));
    for (int64_t band = 0; band < b->order->bands; band++) {
        store_band(b, b->band_at[band], band);
    }
    return ESP_OK;
}

esp_status cuda_order_blocks(esp_context *context, const block_lists *lists, block_order *made,
                             esp_error *error)
{
    int64_t fragments_of_block = lists->block_rows / 16 * (lists->block_columns / 16);
    if (lists->out > INT32_MAX - 2 * GPU_BAND_ROWS || lists->in > INT32_MAX - 65536 ||
        lists->kept > UINT32_MAX / fragments_of_block - 1) {
        return esp_fail(error, ESP_UNSUPPORTED, "pack.too_large",
                        "pack: %lld rows, %lld columns and %lld blocks are more than the GPU's "
                        "kernels can count",
                        (long long)lists->out, (long long)lists->in, (long long)lists->kept);
    }
    *made =
        (block_order){.unit_rows = (int)power_of_two_in(lists->block_rows, GPU_BAND_ROWS),
                      .unit_columns = (int)power_of_two_in(lists->block_columns, GPU_STEP_COLUMNS)};
    builder b = {.lists = lists, .order = made, .of_band = GPU_BAND_ROWS / made->unit_rows};
    b.rows = esp_ceil_div(lists->out, made->unit_rows);
    b.columns = esp_ceil_div(lists->in, made->unit_columns);
    b.words = esp_ceil_div(b.columns, 64);
    made->bands = (int)esp_ceil_div(b.rows, b.of_band);
    size_t scratch_bytes = (size_t)ESP_MAX(b.rows, made->bands) * sizeof(int32_t);
    size_t starts_bytes = (size_t)(b.columns + 2) * sizeof(int32_t);
    int32_t *scratch = esp_alloc_zero(context, scratch_bytes);
    int32_t *starts = esp_alloc_zero(context, starts_bytes);
    esp_status status = make_room(context, &b, error);
    if (status == ESP_OK && (scratch == NULL || starts == NULL)) {
        status = esp_fail_memory(error, scratch_bytes + starts_bytes, "the order of blocks");
    }
    if (status == ESP_OK) {
        status = build(context, &b, scratch, starts, error);
    }
    esp_release(context, scratch);
    esp_release(context, starts);
    release_room(context, &b);
    if (status != ESP_OK) {
        cuda_block_order_free(context, made);
    }
    return status;
}

void cuda_block_order_free(esp_context *context, block_order *order)
{
    esp_release(context, order->steps);
    esp_release(context, order->band_steps);
    esp_release(context, order->rows);
    esp_release(context, order->sources);
    *order = (block_order){0};
}
