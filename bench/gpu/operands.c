/* Random operands: bits are drawn for a few megabytes and repeated, since products of random
 * numbers cost power that products of zeros do not. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

static uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

/* 16-bit numbers of either type around 1, of both signs. */
static void fill_random(esp_dtype type, uint16_t *to, size_t count, uint64_t seed)
{
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    for (size_t i = 0; i < count; i++) {
        uint64_t bits = next_random(&state) >> 20;
        uint16_t exponent =
            type == ESP_F16 ? (uint16_t)((12 + bits % 4) << 10) : (uint16_t)((124 + bits % 4) << 7);
        uint16_t mantissa = (uint16_t)(bits >> 4 & (type == ESP_F16 ? 0x3ff : 0x7f));
        to[i] = (uint16_t)((bits >> 20 & 1) << 15 | exponent | mantissa);
    }
}

static void *upload_random(esp_dtype type, size_t elements, uint64_t seed)
{
    size_t drawn = elements < 1 << 22 ? elements : 1 << 22;
    uint16_t *host = malloc(drawn * 2);
    char *memory = NULL;
    fill_random(type, host, drawn, seed);
    NEED(cudaMalloc((void **)&memory, elements * 2));
    for (size_t at = 0; at < elements; at += drawn) {
        size_t count = elements - at < drawn ? elements - at : drawn;
        NEED(cudaMemcpy(memory + at * 2, host, count * 2, cudaMemcpyHostToDevice));
    }
    free(host);
    return memory;
}

void operands_make(const esp_matmul_problem *problem, size_t l2_bytes, operands *made)
{
    size_t out = (size_t)problem->out_features, in = (size_t)problem->in_features;
    size_t tokens = (size_t)problem->tokens;
    *made = (operands){.problem = *problem, .copies_w = 1};
    if (problem->tokens <= 64) { /* even the smallest compressed form times this is cold */
        size_t wanted = 24 * l2_bytes / (out * in * 2) + 2;
        made->copies_w = (int)(wanted < 40 ? wanted : 40);
    }
    for (int i = 0; i < X_COPIES; i++) {
        made->x[i] = upload_random(problem->act_type, in * tokens, 100 + (uint64_t)i);
        NEED(cudaMalloc(&made->y[i], out * tokens * 4));
    }
    for (int i = 0; i < made->copies_w; i++) {
        made->w[i] = upload_random(problem->weight_type, out * in, 200 + (uint64_t)i);
    }
}

void operands_free(operands *all)
{
    for (int i = 0; i < X_COPIES; i++) {
        NEED(cudaFree(all->x[i]));
        NEED(cudaFree(all->y[i]));
    }
    for (int i = 0; i < all->copies_w; i++) {
        NEED(cudaFree(all->w[i]));
    }
}

/* ---- weights ---- */

static void fill_positions(uint8_t *to, size_t rows, size_t row_bytes, int64_t kept, uint64_t seed)
{
    static const uint8_t legal[6] = {0x4, 0x8, 0xc, 0x9, 0xd, 0xe}; /* a | b << 2, a < b */
    for (size_t r = 0; r < rows; r++) {
        for (size_t i = 0; i < row_bytes; i++) {
            uint64_t bits = next_random(&seed) >> 16;
            bool high = (int64_t)(8 * i + 4) < kept;
            to[r * row_bytes + i] =
                (uint8_t)(legal[bits % 6] | (high ? legal[bits / 6 % 6] << 4 : 0));
        }
    }
}

/* Four of the `count` columns from `first` on, ascending; all ones where there are fewer. */
static void pick_four(uint16_t *to, int64_t first, int64_t count, uint64_t *state)
{
    int64_t need = 4, made = 0;
    for (int64_t i = 0; i < count && need > 0; i++) {
        if (count - i <= need || (int64_t)(next_random(state) >> 16) % (count - i) < need) {
            to[made++] = (uint16_t)(first + i);
            need--;
        }
    }
    for (; made < 4; made++) {
        to[made] = UINT16_MAX;
    }
}

static void fill_columns(uint16_t *to, const esp_pattern *pattern, int64_t panels, int64_t kept,
                         int64_t in, uint64_t seed)
{
    for (int64_t p = 0; p < panels; p++) {
        for (int64_t g = 0; g < kept / 4; g++) {
            int64_t first = g * pattern->m, left = in - first;
            pick_four(to + p * kept + 4 * g, first, left < pattern->m ? left : pattern->m, &seed);
        }
    }
}

/* Blocks wherever chance puts them, as many as the pattern keeps: rows of blocks differ in length.
 */
static void fill_block_lists(const esp_matmul_problem *problem, int64_t kept, esp_tensor *columns,
                             esp_tensor *offsets, uint64_t seed)
{
    int64_t rows = offsets->shape[0] - 1, left = kept, k = 0;
    int64_t across =
        (problem->in_features + problem->pattern.block_cols - 1) / problem->pattern.block_cols;
    uint32_t *begin = offsets->data;
    for (int64_t i = 0; i < rows * across; i++) {
        if (i % across == 0) {
            begin[i / across] = (uint32_t)k;
        }
        if ((int64_t)(next_random(&seed) >> 16) % (rows * across - i) < left) {
            ((uint16_t *)columns->data)[k++] = (uint16_t)(i % across);
            left--;
        }
    }
    begin[rows] = (uint32_t)k;
}

esp_sparse *random_sparse(esp_context *context, const esp_matmul_problem *problem, uint64_t seed)
{
    esp_error error = {0};
    esp_sparse_part parts[ESP_SPARSE_MAX_PARTS];
    int count = 0;
    const esp_pattern *pattern = &problem->pattern;
    int64_t out = problem->out_features, in = problem->in_features;
    int64_t kept = esp_pattern_kept(pattern, in);
    NEED(esp_sparse_layout(pattern, problem->weight_type, out, in, false, parts, &count, &error));
    for (int i = 0; i < count; i++) {
        size_t bytes = 0;
        esp_tensor *part = &parts[i].tensor;
        NEED(esp_tensor_size(part, NULL, &bytes, &error));
        part->data = calloc(1, bytes);
        if (strcmp(parts[i].name, "positions") == 0) {
            fill_positions(part->data, (size_t)part->shape[0], (size_t)part->shape[1], kept,
                           seed + 77);
        } else if (strcmp(parts[i].name, "columns") == 0) {
            fill_columns(part->data, pattern, part->shape[0], kept, in, seed + 99);
        } else if (strncmp(parts[i].name, "block_", 6) != 0) {
            fill_random(problem->weight_type, part->data, bytes / 2, seed);
        }
    }
    if (pattern->kind == ESP_PATTERN_BLOCK) {
        fill_block_lists(problem, parts[0].tensor.shape[0], &parts[1].tensor, &parts[2].tensor,
                         seed + 33);
    }
    esp_sparse *made = NULL;
    if (esp_sparse_from_parts(context, pattern, problem->weight_type, out, in, parts, count, &made,
                              &error) != ESP_OK) {
        fprintf(stderr, "gpu_bench: %s\n", error.message);
        exit(1);
    }
    for (int i = 0; i < count; i++) {
        free(parts[i].tensor.data);
    }
    return made;
}
