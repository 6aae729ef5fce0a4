/* tuning.h - measured times of products, which win over predicted ones when a plan is made.
 *
 * The table belongs to the context. The library fills it by measuring (esp_tune) or from a text
 * that the caller kept (esp_tuning_read); it reads and writes no file by itself. A time counts only
 * under the identity of the device it was measured on (esp_device_identity) and for its problem:
 * pattern, types, sizes, layouts, compute type and epilogue must be equal. Of the token counts that
 * were measured the nearest by ratio speaks for the one asked for, of two equally near ones the
 * smaller, if it is within a factor of four; further away predictions rule. */
#ifndef ESPALIER_TUNING_H
#define ESPALIER_TUNING_H

#include <espalier/matmul.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- the table as text ---- */

#define ESP_TUNING_MAX_BYTES ((size_t)16 << 20)

/* Adds the measurements of a text made by esp_tuning_write: all or none. Where the table has the
 * same problem of the same device, the later measurement stays. Refuses, with ESP_BAD_FILE,
 * "tuning.not_tuning_file", "tuning.newer_version", "tuning.damaged" (cut, changed: the checksum
 * is wrong), "tuning.bad_line", "tuning.too_large". Measurements of other devices are kept, too. */
ESP_MUST_CHECK ESP_API esp_status esp_tuning_read(esp_context *context, const char *text,
                                                  size_t length, esp_error *error);
/* The whole table, every device, as lines of text with a checksum at the end; write is called with
 * pieces. ESP_OUT_OF_MEMORY only. */
ESP_MUST_CHECK ESP_API esp_status esp_tuning_write(esp_context *context, esp_write_fn write,
                                                   void *user, esp_error *error);
/* Measurements in the table: problems at one token count on one device. */
ESP_API int64_t esp_tuning_count(esp_context *context);
ESP_API void esp_tuning_clear(esp_context *context);

/* ---- measuring ---- */

/* What became of one candidate. */
typedef struct esp_tune_result {
    const char *kernel;
    bool runs_dense;            /* a dense product of a sparse weight */
    const char *refused;        /* NULL: it entered the table; else why not (valid in the call) */
    double median_us, least_us; /* 0 when it was not timed */
    double predicted_us;        /* its score */
    double error;               /* largest difference to the reference over the allowed one */
    int rounds;                 /* 1: so slow at first sight that it was timed no further */
} esp_tune_result;
typedef void (*esp_tune_fn)(void *user, const esp_matmul_problem *problem,
                            const esp_tune_result *result);

typedef struct esp_tune_options {
    int rounds;            /* interleaved, of which the median counts; 0: 9 */
    int64_t rotate_bytes;  /* copies of the weight of that size together are used in turn; 0: one
                              above 256 tokens, else twice the last cache (64 to 256 MiB), on a GPU
                              128 MiB; < 0: one */
    uint64_t seed;         /* of weights and activations */
    esp_tune_fn on_result; /* called for every candidate when all are measured */
    esp_progress_fn progress;
    void *user;
} esp_tune_options;

/* Measures every kernel of the device that can run the problem, dense ones on the same weight with
 * its zeros included, and enters the times into the context's table. A candidate enters only if
 * its results agree with the reference back end: equal on small integers, where every sum is exact,
 * and within the derived error bound on real numbers, every output checked. options NULL: all
 * defaults. ESP_CHECK_FAILED "tune.no_candidate" when none is left; ESP_UNSUPPORTED
 * "plan.no_kernel" when none can run. */
ESP_MUST_CHECK ESP_API esp_status esp_tune(esp_device *device, const esp_matmul_problem *problem,
                                           const esp_tune_options *options, esp_error *error);
/* The same at each of `count` token counts (the problem's own does not matter), which share the
 * weight and the reference's results: on a GPU most of the time. ESP_BAD_ARGUMENT "tune.no_tokens"
 * when there are none. */
ESP_MUST_CHECK ESP_API esp_status esp_tune_tokens(esp_device *device,
                                                  const esp_matmul_problem *problem,
                                                  const int64_t *tokens, int count,
                                                  const esp_tune_options *options,
                                                  esp_error *error);

#ifdef __cplusplus
}
#endif
#endif
