/* compress.h - weights made where they lie: dense weights in a GPU's memory are pruned and
 * compressed there, as training leaves them, and never cross the bus.
 *
 * Masks are bit for bit those of esp_prune_mask, compressed weights bit for bit those of
 * esp_sparse_encode and esp_pack. Devices whose memory is the host's refuse with
 * "compress.host_memory": their way is esp_prune_mask, esp_sparse_encode, esp_pack. */
#ifndef ESPALIER_COMPRESS_H
#define ESPALIER_COMPRESS_H

#include <espalier/matmul.h>
#include <espalier/prune.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A dense weight in memory of the device, row-major. */
typedef struct esp_device_dense {
    esp_dtype dtype; /* F16, BF16 */
    int64_t out_features, in_features;
    const void *data;
    int64_t stride; /* elements between rows; 0: tight */
} esp_device_dense;

/* A mask in memory of the device. */
typedef struct esp_device_mask {
    /* [out][ceil(in / 64)]: bit c % 64 of word c / 64 of a row is column c; unused bits are 0. */
    uint64_t *bits;
    /* [ceil(out / V)][kept], absolute columns, UINT32_MAX for padding (see esp_mask_set_columns);
     * kept is esp_pattern_kept's. NULL for 2:4. */
    uint32_t *columns;
} esp_device_mask;

/* Chooses what lives and writes mask->bits, and for V:2:M mask->columns, which it needs. 2:4 and
 * V:2:M; a free panel's columns are chosen on the host ("prune.host_only"). options NULL: |w|,
 * auto. Given to the stream (as esp_matmul_args.stream): it does not wait and allocates nothing,
 * and may be captured in a graph. Codes of esp_prune_mask, and "compress.not_on_device",
 * "compress.misaligned", "compress.missing_operand", "compress.bad_stride". */
ESP_MUST_CHECK ESP_API esp_status esp_device_prune(
    esp_device *device, const esp_device_dense *dense, const esp_pattern *pattern,
    const esp_mask_options *options, const esp_device_mask *mask, void *stream, esp_error *error);

/* A weight on the device of the given pattern, 2:4, V:2:M or panel:V@s, whose entries are all zero:
 * what esp_packed_compress fills. F16, BF16. Freed by esp_packed_free. */
ESP_MUST_CHECK ESP_API esp_status esp_packed_create(esp_device *device, const esp_pattern *pattern,
                                                    esp_dtype dtype, int64_t out_features,
                                                    int64_t in_features, esp_packed **packed,
                                                    esp_error *error);

/* Compresses a dense weight into a packed one of the same type and shape, as often as is liked;
 * rows stay in order. mask NULL, or its bits: the non-zeros of dense. mask->columns is read for
 * panel:V@s only (NULL: live columns in ascending order); those of V:2:M follow from what lives.
 *
 * It is given to the stream, after the work that the caller gave it before, and waited for, so that
 * the weight is complete when the call returns; allocates nothing. No product may be reading the
 * weight meanwhile. ESP_CHECK_FAILED "format.mask_mismatch", naming row and group or panel, when
 * what lives does not fit the pattern, and ESP_BAD_ARGUMENT "mask.bad_columns" for a list that
 * breaks its rules: the device looks for both. After a failure the weight's entries are unspecified
 * until it is compressed again. */
ESP_MUST_CHECK ESP_API esp_status esp_packed_compress(esp_packed *packed,
                                                      const esp_device_dense *dense,
                                                      const esp_device_mask *mask, void *stream,
                                                      esp_error *error);

#ifdef __cplusplus
}
#endif
#endif
