/* What the kernel for few tokens on Hopper reads beside fragments: halves of bands as runs of
 * fragments, cut into pieces of eight (gpu_blocks.h). */
#include <stdlib.h>

#include "cuda/blocks_order.h"

typedef struct piece_writer {
    uint32_t *words; /* of the piece */
    int fragments, places;
    int32_t place; /* the last one, counted in 16 columns */
} piece_writer;

static void begin_piece(piece_writer *piece, uint32_t *words)
{
    *piece = (piece_writer){.words = words, .place = -1};
    for (int i = 0; i < GPU_PIECE_FRAGMENTS; i++) {
        words[i] = GPU_PLACE_WORD(GPU_NO_PLACE, 0, 0);
    }
}

/* Fragments with one place in X follow each other. */
static void add_fragment(piece_writer *piece, int32_t place, int strip)
{
    if (place != piece->place) {
        uint32_t *word = &piece->words[piece->places++];
        *word = GPU_PLACE_WORD(place, GPU_PLACE_SLOT(*word), GPU_PLACE_STRIP(*word));
        piece->place = place;
    }
    uint32_t *word = &piece->words[piece->fragments++];
    *word = GPU_PLACE_WORD(*word >> 5, (uint32_t)piece->places - 1, (uint32_t)strip);
}

/* The half's words from `to` on; returns its fragments. */
static int32_t list_half(const block_order *order, int band, int half, uint32_t *to)
{
    piece_writer piece = {0};
    int32_t count = 0;
    for (int i = order->band_steps[band]; i < order->band_steps[band + 1]; i++) {
        uint32_t present = order->steps[i].present >> (16 * half) & 0xffff;
        for (; present != 0; present &= present - 1) {
            int bit = __builtin_ctz(present);
            if (count % GPU_PIECE_FRAGMENTS == 0) {
                begin_piece(&piece, to + count);
            }
            add_fragment(&piece, order->steps[i].column[bit / 4] / 16, bit % 4);
            count++;
        }
    }
    return count;
}

static int64_t pieces_of(int64_t fragments)
{
    return esp_ceil_div(fragments, GPU_PIECE_FRAGMENTS);
}

static int64_t count_half(const block_order *order, int band, int half)
{
    int64_t count = 0;
    for (int i = order->band_steps[band]; i < order->band_steps[band + 1]; i++) {
        count += __builtin_popcount(order->steps[i].present >> (16 * half) & 0xffff);
    }
    return count;
}

/* The longest first; equal ones in their order. */
static int compare_runs(const void *a, const void *b)
{
    const gpu_block_run *one = a, *other = b;
    if (one->fragments != other->fragments) {
        return one->fragments > other->fragments ? -1 : 1;
    }
    return one->half < other->half ? -1 : 1;
}

/* A cluster takes a pair, so pairs should be equally long. */
static void pair_runs(gpu_block_run *sorted, int count, gpu_block_run *pairs)
{
    for (int i = 0; i < count / 2; i++) {
        pairs[2 * i] = sorted[i];
        pairs[2 * i + 1] = sorted[count - 1 - i];
    }
}

static void list_runs(const block_order *order, gpu_block_run *runs, uint32_t *words)
{
    int64_t piece = 0;
    for (int half = 0; half < 2 * order->bands; half++) {
        int band = half / 2, first_step = order->band_steps[band];
        bool any = first_step < order->band_steps[band + 1];
        runs[half] = (gpu_block_run){
            .first = any ? order->steps[first_step].first[half % 2] : 0,
            .fragments = list_half(order, band, half % 2, words + piece * GPU_PIECE_FRAGMENTS),
            .piece = (uint32_t)piece,
            .half = (uint32_t)half};
        piece += pieces_of(runs[half].fragments);
    }
}

esp_status cuda_list_pieces(esp_context *context, const block_order *order, block_pieces *made,
                            esp_error *error)
{
    *made = (block_pieces){0};
    for (int band = 0; band < order->bands; band++) {
        made->count +=
            pieces_of(count_half(order, band, 0)) + pieces_of(count_half(order, band, 1));
    }
    size_t run_bytes = (size_t)order->bands * 2 * sizeof *made->runs;
    size_t word_bytes = ((size_t)made->count + 1) * GPU_PIECE_FRAGMENTS * sizeof *made->words;
    gpu_block_run *runs = esp_alloc_zero(context, run_bytes);
    made->runs = esp_alloc_zero(context, run_bytes);
    made->words = esp_alloc_zero(context, word_bytes);
    bool there = runs != NULL && made->runs != NULL && made->words != NULL;
    if (there) {
        list_runs(order, runs, made->words);
        qsort(runs, (size_t)order->bands * 2, sizeof *runs, compare_runs);
        pair_runs(runs, 2 * order->bands, made->runs);
    } else {
        cuda_pieces_free(context, made);
    }
    esp_release(context, runs);
    return there ? ESP_OK
                 : esp_fail_memory(error, 2 * run_bytes + word_bytes,
                                   "the pieces of a weight's blocks");
}

void cuda_pieces_free(esp_context *context, block_pieces *pieces)
{
    esp_release(context, pieces->runs);
    esp_release(context, pieces->words);
    *pieces = (block_pieces){0};
}
