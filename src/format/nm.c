/* keep:group (every pair but 2:4): each row keeps `keep` of each `group` neighbouring columns.
 *
 *   values     dtype  [out][kept]                       a row's groups from the left
 *   positions  U8     [out][ceil(kept * bits / 8)]      bits = ceil(log2(group)), 1..16
 *
 * kept = keep * (in / group) + min(keep, in mod group): a remainder group of r columns keeps
 * min(keep, r). A row's positions are one little-endian bit stream: position k takes the bits k *
 * bits upward, bit b of the stream being bit b % 8 of byte b / 8; unused high bits of the last byte
 * are 0. A position counts from the left end of its group. Invariants: positions strictly increase
 * inside a group and lie in it; missing entries are +0.0 at the lowest free positions; no -0.0. */
#include "format/formats.h"

typedef struct nm_view {
    int64_t out, in, keep, group, kept;
    unsigned bits;          /* of a position */
    int64_t position_bytes; /* of a row */
    size_t width;
    void *values;
    uint8_t *positions;
} nm_view;

static unsigned position_bits(int64_t group)
{
    unsigned bits = 0;
    while ((int64_t)1 << bits < group) {
        bits++;
    }
    return bits;
}

static bool accepts(const esp_pattern *pattern)
{
    return pattern->kind == ESP_PATTERN_NM;
}

static esp_status layout(const esp_pattern *pattern, esp_dtype dtype, int64_t out_features,
                         int64_t in_features, bool has_rows,
                         esp_sparse_part parts[ESP_SPARSE_MAX_PARTS], int *count, esp_error *error)
{
    if (has_rows) {
        return esp_fail(error, ESP_UNSUPPORTED, "format.no_row_order",
                        "a keep:group weight has no row order; only panel formats do");
    }
    if (in_features > ESP_FORMAT_MAX_FEATURES) {
        return esp_fail(error, ESP_UNSUPPORTED, "format.too_large",
                        "a keep:group weight has at most 4294967295 columns, not %lld",
                        (long long)in_features);
    }
    int64_t kept = esp_pattern_kept(pattern, in_features);
    esp_format_set_part(&parts[0], "values", dtype, out_features, kept);
    esp_format_set_part(&parts[1], "positions", ESP_U8, out_features,
                        esp_ceil_div(kept * (int64_t)position_bits(pattern->group), 8));
    *count = 2;
    return ESP_OK;
}

static nm_view view_of(const esp_sparse *sparse)
{
    const esp_pattern *pattern = &sparse->pattern;
    int64_t kept = esp_pattern_kept(pattern, sparse->in_features);
    unsigned bits = position_bits(pattern->group);
    return (nm_view){
        .out = sparse->out_features,
        .in = sparse->in_features,
        .keep = pattern->keep,
        .group = pattern->group,
        .kept = kept,
        .bits = bits,
        .position_bytes = esp_ceil_div(kept * (int64_t)bits, 8),
        .width = esp_dtype_bytes(sparse->dtype),
        .values = esp_sparse_find_part(sparse, "values")->data,
        .positions = esp_sparse_find_part(sparse, "positions")->data,
    };
}

/* ---- the bit stream of a row ---- */

typedef struct bit_stream {
    uint8_t *next;
    uint64_t held; /* bits not yet written, or read ahead */
    unsigned count;
} bit_stream;

static void put_bits(bit_stream *stream, unsigned bits, uint64_t value)
{
    stream->held |= value << stream->count;
    for (stream->count += bits; stream->count >= 8; stream->count -= 8) {
        *stream->next++ = (uint8_t)stream->held;
        stream->held >>= 8;
    }
}

static void flush_bits(bit_stream *stream)
{
    if (stream->count > 0) {
        *stream->next++ = (uint8_t)stream->held;
    }
}

static int64_t take_bits(bit_stream *stream, unsigned bits)
{
    for (; stream->count < bits; stream->count += 8) {
        stream->held |= (uint64_t)*stream->next++ << stream->count;
    }
    int64_t value = (int64_t)(stream->held & (((uint64_t)1 << bits) - 1));
    stream->held >>= bits;
    stream->count -= bits;
    return value;
}

static bit_stream stream_of(const nm_view *view, int64_t row)
{
    return (bit_stream){.next = view->positions + row * view->position_bytes};
}

/* ---- encode ---- */

typedef struct encode_job {
    nm_view view;
    const esp_tensor *dense;
    const esp_mask *mask;
    int64_t row_words;
    uint64_t *scratch; /* [threads][row_words]: a row's live bits */
} encode_job;

static bool bit_of(const uint64_t *words, int64_t bit)
{
    return words[bit / 64] >> bit % 64 & 1;
}

/* Live bits in [begin, end), counted word by word. */
static int64_t count_live(const uint64_t *live, int64_t begin, int64_t end)
{
    int64_t count = 0;
    for (int64_t word = begin / 64; word * 64 < end; word++) {
        uint64_t bits = live[word];
        if (word * 64 < begin) {
            bits &= UINT64_MAX << begin % 64;
        }
        if (end - word * 64 < 64) {
            bits &= ((uint64_t)1 << (end - word * 64)) - 1;
        }
        count += __builtin_popcountll(bits);
    }
    return count;
}

/* The first live column at or after `from`; the caller knows that there is one. */
static int64_t next_live(const uint64_t *live, int64_t from)
{
    int64_t word = from / 64;
    uint64_t bits = live[word] & UINT64_MAX << from % 64;
    while (bits == 0) {
        bits = live[++word];
    }
    return word * 64 + __builtin_ctzll(bits);
}

static esp_status too_many_live(const encode_job *job, int64_t row, int64_t group, int64_t count,
                                esp_error *error)
{
    const nm_view *view = &job->view;
    int64_t first = group * view->group;
    return esp_fail(error, ESP_CHECK_FAILED, "format.mask_mismatch",
                    "row %lld, group %lld (columns %lld to %lld): %lld hold weights, the pattern "
                    "keeps %lld of each %lld",
                    (long long)row, (long long)group, (long long)first,
                    (long long)(ESP_MIN(view->in, first + view->group) - 1), (long long)count,
                    (long long)view->keep, (long long)view->group);
}

static esp_status encode_row(void *user, int64_t row, int thread, esp_error *error)
{
    const encode_job *job = user;
    const nm_view *view = &job->view;
    uint64_t *live = job->scratch + thread * job->row_words;
    esp_format_live_row(job->dense, job->mask, row, live);
    bit_stream stream = stream_of(view, row);
    int64_t value = row * view->kept;
    for (int64_t first = 0; first < view->in; first += view->group) {
        int64_t end = ESP_MIN(view->in, first + view->group);
        int64_t kept = ESP_MIN(view->keep, end - first);
        int64_t count = count_live(live, first, end);
        if (count > kept) {
            return too_many_live(job, row, first / view->group, count, error);
        }
        int64_t fill = kept - count, column = first;
        for (int64_t i = 0; i < kept; i++, value++, column++) {
            column = fill > 0 ? column : next_live(live, column);
            if (bit_of(live, column)) {
                esp_copy_weight(view->width, view->values, value, job->dense->data,
                                row * view->in + column);
            } else {
                fill--;
            }
            put_bits(&stream, view->bits, (uint64_t)(column - first));
        }
    }
    flush_bits(&stream);
    return ESP_OK;
}

static esp_status encode(const esp_tensor *dense, const esp_mask *mask, esp_sparse *sparse,
                         esp_error *error)
{
    esp_context *context = sparse->context;
    encode_job job = {.view = view_of(sparse),
                      .dense = dense,
                      .mask = mask,
                      .row_words = esp_mask_row_words(mask)};
    size_t words = (size_t)context->threads * (size_t)job.row_words;
    job.scratch = esp_alloc_array(context, words, sizeof *job.scratch);
    if (job.scratch == NULL) {
        return esp_fail_memory(error, words * sizeof *job.scratch, "live rows");
    }
    esp_status status = esp_format_each(context, job.view.out, esp_format_row_grain(job.view.in),
                                        encode_row, &job, error);
    esp_release(context, job.scratch);
    return status;
}

/* ---- decode ---- */

typedef struct decode_job {
    nm_view view;
    char *dense;
} decode_job;

/* Contents may be unchecked: what points outside its group is passed over. */
static void decode_rows(void *user, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const decode_job *job = user;
    const nm_view *view = &job->view;
    for (int64_t row = begin; row < end; row++) {
        char *to = job->dense + (size_t)(row * view->in) * view->width;
        memset(to, 0, (size_t)view->in * view->width);
        bit_stream stream = stream_of(view, row);
        int64_t value = row * view->kept;
        for (int64_t first = 0; first < view->in; first += view->group) {
            int64_t size = ESP_MIN(view->group, view->in - first);
            for (int64_t i = 0; i < ESP_MIN(view->keep, size); i++, value++) {
                int64_t position = take_bits(&stream, view->bits);
                if (position < size) {
                    esp_copy_weight(view->width, to, first + position, view->values, value);
                }
            }
        }
    }
}

static esp_status decode(const esp_sparse *sparse, esp_tensor *dense, esp_error *error)
{
    (void)error;
    decode_job job = {view_of(sparse), dense->data};
    if (job.view.in > 0) {
        esp_parallel_for(sparse->context, job.view.out, esp_format_row_grain(job.view.in),
                         decode_rows, &job);
    }
    return ESP_OK;
}

/* ---- check ---- */

static esp_status bad_entry(esp_error *error, const char *code, const char *part, int64_t row,
                            int64_t group, int64_t entry, const char *wrong)
{
    return esp_fail(error, ESP_BAD_FILE, code, "%s: row %lld, group %lld, entry %lld: %s", part,
                    (long long)row, (long long)group, (long long)entry, wrong);
}

static esp_status check_group(const esp_sparse *sparse, const nm_view *view, int64_t row,
                              int64_t group, int64_t value, bit_stream *stream, esp_error *error)
{
    int64_t size = ESP_MIN(view->group, view->in - group * view->group);
    int64_t kept = ESP_MIN(view->keep, size), free_position = 0;
    bool gap = false;
    for (int64_t i = 0; i < kept; i++) {
        int64_t position = take_bits(stream, view->bits);
        if (position >= size) {
            return bad_entry(error, "sparse.position_out_of_group", "positions", row, group, i,
                             "the position lies beyond the end of its group");
        }
        if (position < free_position) {
            return bad_entry(error, "sparse.positions_not_increasing", "positions", row, group, i,
                             "positions of a group must strictly increase");
        }
        gap |= position > free_position;
        free_position = position + 1;
        if (!esp_weight_is_zero(sparse->dtype, view->values, value + i)) {
            continue;
        }
        if (esp_weight_is_negative_zero(sparse->dtype, view->values, value + i)) {
            return bad_entry(error, "sparse.negative_zero", "values", row, group, i,
                             "-0.0 is stored, zeros are +0.0");
        }
        if (gap) {
            return bad_entry(error, "sparse.fill_not_canonical", "positions", row, group, i,
                             "zeros that fill a group take the lowest free positions");
        }
    }
    return ESP_OK;
}

static esp_status check_row(void *user, int64_t row, int thread, esp_error *error)
{
    (void)thread;
    const esp_sparse *sparse = user;
    nm_view view = view_of(sparse);
    bit_stream stream = stream_of(&view, row);
    int64_t value = row * view.kept;
    for (int64_t group = 0; group * view.group < view.in; group++) {
        ESP_TRY(check_group(sparse, &view, row, group, value, &stream, error));
        value += ESP_MIN(view.keep, view.in - group * view.group);
    }
    if (stream.held != 0) {
        return esp_fail(error, ESP_BAD_FILE, "sparse.pad_bits_set",
                        "positions: row %lld: the unused high bits of its last byte must be 0",
                        (long long)row);
    }
    return ESP_OK;
}

static esp_status check(const esp_sparse *sparse, esp_error *error)
{
    esp_sparse view = *sparse;
    return esp_format_each(sparse->context, sparse->out_features,
                           esp_format_row_grain(sparse->in_features), check_row, &view, error);
}

static void print_row(const esp_sparse *sparse, int64_t row, esp_buffer *text)
{
    nm_view view = view_of(sparse);
    const esp_tensor *values = esp_sparse_find_part(sparse, "values");
    bit_stream stream = stream_of(&view, row);
    esp_buffer_printf(text, "row %lld:", (long long)row);
    int64_t shown = ESP_MIN(view.kept, ESP_FORMAT_PRINT_ENTRIES);
    for (int64_t i = 0; i < shown; i++) { /* all groups but the last hold `keep` entries */
        int64_t column = i / view.keep * view.group + take_bits(&stream, view.bits);
        esp_format_print_entry(sparse, values, row * view.kept + i, column, text);
    }
    esp_buffer_text(text, view.kept > shown ? " ...\n" : "\n");
}

static void each_run(const esp_sparse *sparse, int64_t stored, esp_run_fn see, void *user)
{
    const nm_view view = view_of(sparse);
    bit_stream stream = stream_of(&view, stored);
    esp_run run = {.row = stored, .first = stored * view.kept};
    for (int64_t first = 0; first < view.in; first += view.group) {
        for (int64_t i = 0; i < ESP_MIN(view.keep, view.in - first); i++) {
            esp_run_add(&run, (uint32_t)(first + take_bits(&stream, view.bits)), see, user);
        }
    }
    esp_run_end(&run, see, user);
}

const esp_format esp_format_nm = {
    .name = "nm",
    .accepts = accepts,
    .layout = layout,
    .encode = encode,
    .decode = decode,
    .check = check,
    .print_row = print_row,
    .each_run = each_run,
};
