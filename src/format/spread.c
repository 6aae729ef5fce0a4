/* V:2:5 as 2:4 over all columns in another order, for kernels that would rather read a fifth more
 * of X than choose among its columns.
 *
 * Of each five columns a row has two weights at most. So its first four are a group of 2:4, and the
 * fifths of two fives are one more group, with two places that stand for no column:
 *
 *   columns   0 1 2 3 4 | 5 6 7 8 9        groups   0 1 2 3 | 5 6 7 8 | 4 - 9 -
 *
 * Where one column is left over, "the fifth" is the first of each five, so that the one is a fifth:
 * a four would reach past the end.
 *
 * Five by five becomes four by four, 12 places for 10 columns. The places come in periods of 32
 * fives: first the 16 groups of their fifths, then their fours; the last period has the fours that
 * there are. A short last five of two columns or more is all in its four.
 *
 * What fills a group of fewer than two weights is zero, as everywhere, but not at the lowest
 * position: at a column that the panel keeps, or where no column is. So a column that no panel
 * keeps is never multiplied, here neither. */
#include "format/panel.h"

#define FIVES 32 /* of a period */
#define FIFTHS 16

static const esp_pattern two_of_four = {.kind = ESP_PATTERN_PANEL};

bool esp_pattern_spreads(const esp_pattern *pattern)
{
    return pattern->kind == ESP_PATTERN_PANEL && pattern->v != 0 && pattern->m == 5;
}

int64_t esp_spread_places(int64_t in_features)
{
    int64_t fives = esp_ceil_div(in_features, 5), left = fives % FIVES;
    return 4 * (fives / FIVES * (FIFTHS + FIVES) + (left > 0 ? FIFTHS + left : 0));
}

static int fifth_of(int64_t in)
{
    return in % 5 == 1 && in > 5 ? 0 : 4;
}

static int64_t group_of_four(int64_t five)
{
    return five / FIVES * (FIFTHS + FIVES) + FIFTHS + five % FIVES;
}

static int64_t group_of_fifth(int64_t five)
{
    return five / FIVES * (FIFTHS + FIVES) + five % FIVES / 2;
}

typedef struct spread_job {
    esp_panel_view from, to;
    int fifth; /* which column of a five it is */
} spread_job;

/* What a row has in one five, the fifth last. */
typedef struct five {
    int64_t at[5]; /* index of the value; -1: zero */
    unsigned kept; /* bits of columns that the panel keeps */
} five;

/* Contents may be unchecked: what lies outside its five is passed over. */
static five find_five(const spread_job *job, int64_t stored, int64_t number)
{
    const esp_panel_view *view = &job->from;
    five found = {.at = {-1, -1, -1, -1, -1}};
    unsigned nibble = esp_panel_nibble(view, stored, number);
    for (int i = 0; i < 4; i++) {
        int64_t column = esp_panel_column(view, stored / view->v, 4 * number + i) - 5 * number;
        if (column < 0 || column >= 5) {
            continue;
        }
        int64_t place = (column + 4 - job->fifth) % 5;
        found.kept |= 1u << place;
        if ((int)(nibble & 3) == i || (int)(nibble >> 2) == i) {
            found.at[place] = (stored * view->quads + number) * 2 + ((int)(nibble >> 2) == i);
        }
    }
    return found;
}

static void put_nibble(const esp_panel_view *view, int64_t stored, int64_t group, unsigned nibble)
{
    uint8_t *pair = view->positions + stored * view->position_bytes + group / 2;
    int shift = (int)(group % 2) * 4;
    *pair = (uint8_t)((*pair & ~(15u << shift)) | nibble << shift);
}

/* Two of the four: those with weights, then others that are kept, then those that do not exist (a
 * short five). */
static void put_four(const spread_job *job, int64_t stored, int64_t number, const five *it)
{
    unsigned weights = 0;
    for (int i = 0; i < 4; i++) {
        weights |= (unsigned)(it->at[i] >= 0) << i;
    }
    int64_t width = ESP_MIN(job->from.in - 5 * number - (job->fifth == 0), 4);
    unsigned chosen = 0, absent = 15u << width & 15u;
    const unsigned turns[] = {weights, it->kept & 15u, absent, 15u};
    for (int turn = 0; turn < ESP_COUNT(turns); turn++) {
        for (int i = 0; i < 4 && __builtin_popcount(chosen) < 2; i++) {
            chosen |= turns[turn] & 1u << i;
        }
    }
    int lower = __builtin_ctz(chosen), upper = 31 - __builtin_clz(chosen);
    int64_t group = group_of_four(number), value = (stored * job->to.quads + group) * 2;
    put_nibble(&job->to, stored, group, (unsigned)lower | (unsigned)upper << 2);
    if (it->at[lower] >= 0) {
        esp_copy_weight(job->to.width, job->to.values, value, job->from.values, it->at[lower]);
    }
    if (it->at[upper] >= 0) {
        esp_copy_weight(job->to.width, job->to.values, value + 1, job->from.values, it->at[upper]);
    }
}

/* Its place in the group is the first of its half, or the second, which is empty. */
static void put_fifth(const spread_job *job, int64_t stored, int64_t number, const five *it)
{
    if (it->at[4] < 0) {
        return;
    }
    int64_t group = group_of_fifth(number), half = number % 2;
    unsigned nibble = esp_panel_nibble(&job->to, stored, group);
    nibble &= half == 0 ? 12u : 3u;
    put_nibble(&job->to, stored, group, nibble | (half == 0 ? 0u : 2u << 2));
    esp_copy_weight(job->to.width, job->to.values, (stored * job->to.quads + group) * 2 + half,
                    job->from.values, it->at[4]);
}

static void spread_rows(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const spread_job *job = user;
    for (int64_t stored = begin; stored < end; stored++) {
        for (int64_t group = 0; group < job->to.quads; group++) {
            put_nibble(&job->to, stored, group, 1u | 3u << 2); /* of fifths: both empty places */
        }
        for (int64_t number = 0; number < job->from.quads; number++) {
            five it = find_five(job, stored, number);
            put_four(job, stored, number, &it);
            put_fifth(job, stored, number, &it);
        }
    }
}

esp_status esp_sparse_spread(const esp_sparse *sparse, esp_sparse **spread, esp_error *error)
{
    const esp_tensor *rows = esp_sparse_find_part(sparse, "rows");
    esp_sparse *made = NULL;
    ESP_TRY(esp_sparse_create(sparse->context, &two_of_four, sparse->dtype, sparse->out_features,
                              esp_spread_places(sparse->in_features), rows != NULL, &made, error));
    spread_job job = {esp_panel_view_of(sparse), esp_panel_view_of(made),
                      fifth_of(sparse->in_features)};
    if (rows != NULL) {
        memcpy(job.to.rows, rows->data,
               (size_t)sparse->out_features * esp_dtype_bytes(rows->dtype));
    }
    esp_parallel_for(sparse->context, job.from.out, esp_format_row_grain(job.from.in), spread_rows,
                     &job);
    *spread = made;
    return ESP_OK;
}
