/* The GPU's kernels between products and attention at the shapes that models have: microseconds of
 * one launch among many that are recorded one behind the other, and what share of the bandwidth of
 * a copy its reads and writes have. Small ones stay in the L2, as they do in a model. Usage:
 * gpu_ops [ROUNDS [PART]], 5 rounds unless given, of which the median is printed; PART of a name
 * chooses kernels. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "cuda/gpu_ops.h"

#define LAUNCHES 20
#define ROOM ((size_t)320 << 20) /* of each of three areas */

typedef struct arena {
    char *area[3];
    float *floats; /* small numbers: weights, angles, positions */
    int32_t *ids;
    gpu_place *places;
    double gb_per_s; /* of a copy */
} arena;

typedef int (*launch_fn)(const arena *memory, const int64_t *size, void *stream);

typedef struct timed {
    const char *what, *model;
    launch_fn launch;
    int64_t size[4];
    double bytes; /* read and written, of each number in size[0] x size[1] */
} timed;

static int rms(const arena *m, const int64_t *s, void *stream)
{
    gpu_norm norm = {GPU_F16, m->area[0], s[2], m->floats,  NULL,
                     1e-5f,   s[0],       s[1], m->area[1], s[2]};
    return gpu_rms_norm(&norm, stream);
}

static int layer(const arena *m, const int64_t *s, void *stream)
{
    gpu_norm norm = {GPU_F16, m->area[0], s[2], m->floats,  m->floats,
                     1e-5f,   s[0],       s[1], m->area[1], s[2]};
    return gpu_layer_norm(&norm, stream);
}

static int swiglu(const arena *m, const int64_t *s, void *stream)
{
    return gpu_swiglu(GPU_F16, m->area[0], s[2], m->area[1], s[2], s[0], s[1], m->area[2], s[2],
                      stream);
}

/* heads of 128 in size[0]: q, k and v alike. */
static int append(const arena *m, const int64_t *s, void *stream)
{
    char *q = m->area[0];
    int64_t rows = s[0] / 3, step = rows * s[2] * 2;
    gpu_rope_append append = {.type = GPU_F16,
                              .q = q,
                              .k = q + step,
                              .v = q + 2 * step,
                              .stride = s[2],
                              .heads = rows / 128,
                              .kv_heads = rows / 128,
                              .head_dim = 128,
                              .tokens = s[1],
                              .cosines = m->floats,
                              .sines = m->floats,
                              .angle_stride = s[2],
                              .keys = m->area[1],
                              .values = m->area[2],
                              .capacity = s[1],
                              .places = s[3] != 0 ? m->places : NULL};
    return gpu_rope_append_run(&append, stream);
}

static int angles(const arena *m, const int64_t *s, void *stream)
{
    gpu_positions positions = {.base = 100, .running = true};
    return gpu_rope_angles(m->floats, &positions, 2 * s[0], s[1], (float *)m->area[0],
                           (float *)m->area[1], s[2], stream);
}

static int embed(const arena *m, const int64_t *s, void *stream)
{
    gpu_lookup lookup = {m->area[0], m->ids, 30000};
    return gpu_embed(GPU_F16, &lookup, 1, s[0], s[1], m->area[1], s[2], stream);
}

static int gather(const arena *m, const int64_t *s, void *stream)
{
    return gpu_gather_columns(GPU_F16, m->area[0], s[2], s[0], m->ids, s[1], s[3] != 0, m->area[1],
                              s[2], stream);
}

/* size[3]: images of 224 x 224 (of 1024 x 1024 if it is 1), patches of 16. */
static int patches(const arena *m, const int64_t *s, void *stream)
{
    int64_t side = s[3] == 1 ? 1024 : 224;
    gpu_patches cut = {.pixel_type = GPU_F32,
                       .pixels = m->area[0],
                       .images = s[3],
                       .channels = 3,
                       .height = side,
                       .width = side,
                       .patch = 16,
                       .type = GPU_F16,
                       .y = m->area[1],
                       .y_stride = s[2],
                       .pitch = s[1] / s[3]};
    return gpu_cut_patches(&cut, stream);
}

static int place(const arena *m, const int64_t *s, void *stream)
{
    gpu_image_tokens tokens = {.type = GPU_F16,
                               .from = m->area[0],
                               .from_stride = s[2],
                               .from_pitch = 200,
                               .features = s[0],
                               .images = s[3],
                               .patches = 196,
                               .specials = 1,
                               .pitch = 200,
                               .positions = m->floats,
                               .positions_stride = 200,
                               .x = m->area[1],
                               .x_stride = s[2]};
    return gpu_place_image_tokens(&tokens, stream);
}

static int unfold(const arena *m, const int64_t *s, void *stream)
{
    gpu_unfold unfold = {.type = GPU_F16,
                         .x = m->area[0],
                         .x_stride = s[2],
                         .y = m->area[1],
                         .y_stride = s[2],
                         .features = s[0] / 9,
                         .grids = 1,
                         .height = 64,
                         .width = 64,
                         .pitch = 4096,
                         .side = 3};
    return gpu_unfold_grids(&unfold, stream);
}

static int pool(const arena *m, const int64_t *s, void *stream)
{
    gpu_pool pool = {.type = GPU_F16,
                     .x = m->area[0],
                     .x_stride = s[2],
                     .features = s[0],
                     .texts = s[3],
                     .first = m->ids,
                     .lengths = m->ids + (1 << 20),
                     .normalize = true,
                     .vectors = (float *)m->area[1]};
    return gpu_pool_texts(&pool, stream);
}

static int argmax(const arena *m, const int64_t *s, void *stream)
{
    return gpu_argmax(GPU_F32, m->area[0], s[0], s[1], s[0], m->ids + (1 << 21), stream);
}

static int turn(const arena *m, const int64_t *s, void *stream)
{
    return gpu_convert(GPU_F16, m->area[0], s[2], GPU_F32, m->area[1], s[0], s[0], s[1], true,
                       stream);
}

static const timed all[] = {
    {"layer_norm", "DeiT-base b256", layer, {768, 51200, 51200}, 4},
    {"layer_norm", "DeiT-base b1", layer, {768, 200, 200}, 4},
    {"layer_norm", "ViT-large b64", layer, {1024, 12800, 12800}, 4},
    {"layer_norm", "SAM ViT-H", layer, {1280, 4096, 4096}, 4},
    {"layer_norm", "SAM neck", layer, {256, 4096, 4096}, 4},
    {"layer_norm", "BERT-large 32x512", layer, {1024, 16384, 16384}, 4},
    {"rms_norm", "Llama-7B prefill 2048", rms, {4096, 2048, 2048}, 4},
    {"rms_norm", "Llama-7B prefill 512", rms, {4096, 512, 512}, 4},
    {"rms_norm", "Llama-7B decode 16", rms, {4096, 16, 16}, 4},
    {"rms_norm", "Llama-7B decode 8", rms, {4096, 8, 8}, 4},
    {"rms_norm", "Llama-7B decode 1", rms, {4096, 1, 1}, 4},
    {"rms_norm", "decode 1, stride 8", rms, {4096, 1, 8}, 4},
    {"rms_norm", "13B decode 1", rms, {5120, 1, 1}, 4},
    {"rope_append", "Llama-7B prefill 2048", append, {12288, 2048, 2048}, 4},
    {"rope_append", "Llama-7B decode 16", append, {12288, 16, 16, 1}, 4},
    {"rope_append", "Llama-7B decode 1", append, {12288, 1, 1, 1}, 4},
    {"rope_angles", "Llama-7B prefill 2048", angles, {64, 2048, 2048}, 8},
    {"rope_angles", "Llama-7B decode 1", angles, {64, 1, 1}, 8},
    {"swiglu", "Llama-7B prefill 2048", swiglu, {11008, 2048, 2048}, 6},
    {"swiglu", "Llama-7B decode 1", swiglu, {11008, 1, 1}, 6},
    {"embed", "Llama-7B prefill 2048", embed, {4096, 2048, 2048}, 4},
    {"embed", "Llama-7B decode 1", embed, {4096, 1, 1}, 4},
    {"argmax", "Llama-7B decode 1", argmax, {32000, 1, 32000}, 4},
    {"argmax", "Llama-7B decode 16", argmax, {32000, 16, 32000}, 4},
    {"gather", "SAM into windows", gather, {1280, 5000, 5000}, 4},
    {"gather and add", "SAM back", gather, {1280, 4096, 5000, 1}, 6},
    {"patches", "DeiT-base b256", patches, {768, 51200, 51200, 256}, 6},
    {"patches", "SAM ViT-H", patches, {768, 4096, 4096, 1}, 6},
    {"image tokens", "DeiT-base b256", place, {768, 51200, 51200, 256}, 4},
    {"unfold", "SAM neck", unfold, {2304, 4096, 4096}, 2.3},
    {"pool", "BERT-large 32x512", pool, {1024, 16384, 16384, 32}, 2},
    {"turn to f32", "SAM output", turn, {256, 4096, 4096}, 6},
};

static int in_order(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, in_order);
    return values[count / 2];
}

/* us of a launch; < 0: it failed. */
static double time_one(const arena *memory, const timed *one, int rounds)
{
    double us[64];
    for (int r = 0; r < rounds; r++) {
        gpu_recording *recording = NULL;
        void *stream = NULL;
        bool captured = false;
        int failed = gpu_recording_create(&recording, &stream);
        failed = failed == 0 ? gpu_recording_begin(recording) : failed;
        for (int i = 0; i < LAUNCHES && failed == 0; i++) {
            failed = one->launch(memory, one->size, stream);
        }
        int ended = gpu_recording_end(recording, &captured);
        failed = failed == 0 ? ended : failed;
        if (failed == 0) {
            failed = gpu_recording_replay(recording, 2, &us[r]);
            failed = failed == 0 ? gpu_recording_replay(recording, 5, &us[r]) : failed;
        }
        gpu_recording_free(recording);
        if (failed != 0) {
            fprintf(stderr, "%s: %s\n", one->what, gpu_error_text(failed));
            return -1;
        }
        us[r] /= 5 * LAUNCHES;
    }
    return median(us, rounds);
}

static double copy_speed(const arena *memory)
{
    double best = 0;
    cudaEvent_t begin, end;
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    for (int i = 0; i < 10; i++) {
        float ms = 0;
        cudaEventRecord(begin, NULL);
        cudaMemcpyAsync(memory->area[1], memory->area[0], ROOM, cudaMemcpyDeviceToDevice, NULL);
        cudaEventRecord(end, NULL);
        cudaEventSynchronize(end);
        cudaEventElapsedTime(&ms, begin, end);
        double speed = ms > 0 ? 2e-6 * (double)ROOM / (double)ms : 0;
        best = speed > best ? speed : best;
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    return best;
}

static int prepare(arena *memory)
{
    int32_t *ids = calloc((size_t)3 << 20, sizeof *ids);
    gpu_place places[64];
    int failed = ids == NULL;
    for (int i = 0; i < 3 && failed == 0; i++) {
        failed = gpu_alloc(ROOM, (void **)&memory->area[i]);
        failed = failed == 0 ? gpu_fill(memory->area[i], 0, ROOM) : failed;
    }
    failed = failed == 0 ? gpu_alloc(ROOM, (void **)&memory->floats) : failed;
    failed = failed == 0 ? gpu_alloc((size_t)12 << 20, (void **)&memory->ids) : failed;
    failed = failed == 0 ? gpu_alloc(sizeof places, (void **)&memory->places) : failed;
    for (int i = 0; failed == 0 && i < 1 << 20; i++) { /* runs of 14, as windows have */
        ids[i] = i / 14 % 290 * 14 + i % 14;
    }
    for (int i = 0; failed == 0 && i < 32; i++) {
        ids[i] = i * 512;
        ids[(1 << 20) + i] = 512;
    }
    for (int i = 0; failed == 0 && i < 64; i++) {
        places[i] = (gpu_place){memory->area[1] + ((size_t)i << 22),
                                memory->area[2] + ((size_t)i << 22), 100, 512};
    }
    failed = failed == 0 ? gpu_fill(memory->floats, 0, ROOM) : failed;
    failed = failed == 0 ? gpu_upload(memory->ids, ids, (size_t)12 << 20) : failed;
    failed = failed == 0 ? gpu_upload(memory->places, places, sizeof places) : failed;
    free(ids);
    return failed;
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 5;
    arena memory = {0};
    int failed = prepare(&memory);
    if (failed != 0 || rounds < 1 || rounds > 64) {
        fprintf(stderr, "gpu_ops: %s\n", failed != 0 ? gpu_error_text(failed) : "1 to 64 rounds");
        return 1;
    }
    memory.gb_per_s = copy_speed(&memory);
    printf("copy %.0f GB/s\n", memory.gb_per_s);
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        const timed *one = &all[i];
        if (argc > 2 && strstr(one->what, argv[2]) == NULL) {
            continue;
        }
        double us = time_one(&memory, one, rounds);
        double bytes = one->bytes * (double)one->size[0] * (double)one->size[1];
        if (us < 0) {
            return 1;
        }
        printf("%-15s %-22s %6lldx%-6lld %8.2f us  %5.1f %% of copy\n", one->what, one->model,
               (long long)one->size[0], (long long)one->size[1], us,
               100 * bytes / (us * 1e3) / memory.gb_per_s);
    }
    return 0;
}
