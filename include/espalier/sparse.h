/* sparse.h - masks (which entries live) and compressed weights (what a file holds).
 *
 * Weights are [out_features][in_features], row-major. A mask is portable and carries no values; a
 * compressed weight (esp_sparse) is the canonical form of one pattern, drawn byte by byte in
 * docs/formats.md. A kernel's private reorder ("packed") is a third thing: see matmul.h. */
#ifndef ESPALIER_SPARSE_H
#define ESPALIER_SPARSE_H

#include <espalier/pattern.h>
#include <espalier/tensor.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- masks ---- */

/* One bit an entry, plus, for panels whose columns are freely chosen, the columns that each panel
 * keeps, because bits alone do not say how columns form groups of four. */
typedef struct esp_mask esp_mask;

/* All entries dropped. */
ESP_MUST_CHECK ESP_API esp_status esp_mask_create(esp_context *context, int64_t out_features,
                                                  int64_t in_features, esp_mask **mask,
                                                  esp_error *error);
/* Live = not zero (-0.0 counts as zero, NaN as non-zero). dense: rank 2, F32/F16/BF16. */
ESP_MUST_CHECK ESP_API esp_status esp_mask_from_dense(esp_context *context, const esp_tensor *dense,
                                                      esp_mask **mask, esp_error *error);
ESP_API void esp_mask_free(esp_mask *mask);
ESP_API int64_t esp_mask_out_features(const esp_mask *mask);
ESP_API int64_t esp_mask_in_features(const esp_mask *mask);
ESP_API bool esp_mask_get(const esp_mask *mask, int64_t row, int64_t column);
ESP_API void esp_mask_set(esp_mask *mask, int64_t row, int64_t column, bool live);
ESP_API int64_t esp_mask_count(const esp_mask *mask);

/* Panel columns: columns[panel][kept], panel p holding the stored rows p*v .. p*v+v-1; absolute
 * columns, UINT32_MAX for padding, groups of four ascending inside (padding last), none twice.
 * Copied. ESP_BAD_ARGUMENT when it is not so. */
ESP_MUST_CHECK ESP_API esp_status esp_mask_set_columns(esp_mask *mask, int64_t v, int64_t kept,
                                                       const uint32_t *columns, esp_error *error);
/* NULL when the mask carries none. */
ESP_API const uint32_t *esp_mask_columns(const esp_mask *mask, int64_t *v, int64_t *kept);
/* Row order: stored row i is output row rows[i] (a bijection of out_features). Copied. */
ESP_MUST_CHECK ESP_API esp_status esp_mask_set_rows(esp_mask *mask, const uint32_t *rows,
                                                    esp_error *error);
ESP_API const uint32_t *esp_mask_rows(const esp_mask *mask);
/* Writes +0.0 over every dropped entry; live entries keep their bits but -0.0 becomes +0.0. */
ESP_MUST_CHECK ESP_API esp_status esp_mask_apply(const esp_mask *mask, esp_tensor *dense,
                                                 esp_error *error);

/* ---- compressed weights ---- */

typedef struct esp_sparse esp_sparse;

#define ESP_SPARSE_MAX_PARTS 4

/* One stored array of a compressed weight: file name is WEIGHT + "." + name ("values", "positions",
 * "columns", "rows", "row_offsets", "block_columns", "block_row_offsets"); a dense weight has one
 * part with an empty name, stored under WEIGHT itself. */
typedef struct esp_sparse_part {
    const char *name;
    esp_tensor tensor;
} esp_sparse_part;

/* Shapes and dtypes of the parts of a weight, without building it (data pointers NULL): what a file
 * header needs. dtype F32/F16/BF16. has_rows: with a row order (panels only). Returns the number of
 * parts in *count. */
ESP_MUST_CHECK ESP_API esp_status esp_sparse_layout(const esp_pattern *pattern, esp_dtype dtype,
                                                    int64_t out_features, int64_t in_features,
                                                    bool has_rows,
                                                    esp_sparse_part parts[ESP_SPARSE_MAX_PARTS],
                                                    int *count, esp_error *error);
/* Exact stored bytes: the sum over the layout's parts. */
ESP_MUST_CHECK ESP_API esp_status esp_sparse_layout_bytes(const esp_pattern *pattern,
                                                          esp_dtype dtype, int64_t out_features,
                                                          int64_t in_features, bool has_rows,
                                                          size_t *bytes, esp_error *error);

/* Compresses dense [out][in] under a mask. mask NULL: the non-zeros of dense (pattern dense: every
 * entry verbatim, -0.0 too). Live entries keep their bits (NaN payload included; -0.0 becomes
 * +0.0). ESP_CHECK_FAILED "format.mask_mismatch", naming row, column and group, when the mask does
 * not fit the pattern. */
ESP_MUST_CHECK ESP_API esp_status esp_sparse_encode(esp_context *context,
                                                    const esp_pattern *pattern,
                                                    const esp_tensor *dense, const esp_mask *mask,
                                                    esp_sparse **sparse, esp_error *error);
/* Takes over copies of the given parts (as read from a file), any order, names as in the layout;
 * shapes and dtypes must be exactly those of the layout. Contents are not checked: call
 * esp_sparse_check before use of anything from outside. */
ESP_MUST_CHECK ESP_API esp_status esp_sparse_from_parts(esp_context *context,
                                                        const esp_pattern *pattern, esp_dtype dtype,
                                                        int64_t out_features, int64_t in_features,
                                                        const esp_sparse_part *parts, int count,
                                                        esp_sparse **sparse, esp_error *error);
ESP_API void esp_sparse_free(esp_sparse *sparse);

/* dense: caller's memory, same dtype, [out][in]; everything dropped becomes +0.0. */
ESP_MUST_CHECK ESP_API esp_status esp_sparse_decode(const esp_sparse *sparse, esp_tensor *dense,
                                                    esp_error *error);
/* Every invariant of the format; ESP_BAD_FILE with a code "sparse.*" and the place of the first
 * violation (part, row, group). */
ESP_MUST_CHECK ESP_API esp_status esp_sparse_check(const esp_sparse *sparse, esp_error *error);

ESP_API esp_pattern esp_sparse_pattern(const esp_sparse *sparse);
ESP_API esp_dtype esp_sparse_dtype(const esp_sparse *sparse);
ESP_API int64_t esp_sparse_out_features(const esp_sparse *sparse);
ESP_API int64_t esp_sparse_in_features(const esp_sparse *sparse);
ESP_API int esp_sparse_part_count(const esp_sparse *sparse);
/* The part's data belongs to `sparse`. */
ESP_API esp_sparse_part esp_sparse_get_part(const esp_sparse *sparse, int index);
ESP_API size_t esp_sparse_bytes(const esp_sparse *sparse);
/* crc32c over the bytes of all parts in layout order: the checksum that config.json holds. */
ESP_API uint32_t esp_sparse_crc32c(const esp_sparse *sparse);

/* ---- coordinates: a view for import and export, never stored ---- */

/* Entry i is values[i] (of dtype) at row rows[i], column columns[i]. */
typedef struct esp_coo {
    esp_dtype dtype; /* F32, F16, BF16 */
    int64_t out_features, in_features;
    int64_t count;
    uint32_t *rows, *columns;
    void *values;
} esp_coo;

/* The non-zeros, row by row, columns ascending; arrays of the context's memory, freed by
 * esp_coo_free. Needs memory for the dense weight meanwhile. */
ESP_MUST_CHECK ESP_API esp_status esp_sparse_to_coo(const esp_sparse *sparse, esp_coo *coo,
                                                    esp_error *error);
ESP_API void esp_coo_free(esp_context *context, esp_coo *coo);
/* Compresses entries given in any order. ESP_BAD_ARGUMENT "coo.out_of_range" and "coo.duplicate",
 * naming entry, row and column; "format.mask_mismatch" when they do not fit the pattern. */
ESP_MUST_CHECK ESP_API esp_status esp_sparse_from_coo(esp_context *context,
                                                      const esp_pattern *pattern,
                                                      const esp_coo *coo, esp_sparse **sparse,
                                                      esp_error *error);

/* Called with pieces of text. */
typedef void (*esp_write_fn)(void *user, const char *text, size_t length);
/* A person's view: header line, then at most max_rows rows of values with their columns. */
ESP_API void esp_sparse_print(const esp_sparse *sparse, int64_t max_rows, esp_write_fn write,
                              void *user);

#ifdef __cplusplus
}
#endif
#endif
