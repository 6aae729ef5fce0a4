/* Bit c % 8 of byte c / 8 of a row says that column c has a stored value; values lie row by row in
 * column order. sparse-24-bitmask sets exactly two bits in each four columns, also where a value is
 * zero, so that rows have one length; sparse-bitmask stores the non-zeros alone and says where each
 * row begins. Source: the layout that compressed-tensors 0.9 writes. */
#include "io/bitmask.h"

#include <inttypes.h>
#include <string.h>

static const char *const part_names[] = {"shape", "compressed", "bitmask", "row_offsets"};

const char *esp_form_name(esp_folder_form form)
{
    return form == ESP_FORM_SPARSE_24_BITMASK ? "sparse-24-bitmask"
           : form == ESP_FORM_SPARSE_BITMASK  ? "sparse-bitmask"
                                              : "espalier";
}

const char *esp_bitmask_part_name(int part)
{
    return part_names[part];
}

int esp_bitmask_part_count(esp_folder_form form)
{
    return form == ESP_FORM_SPARSE_24_BITMASK ? 3 : 4;
}

int64_t esp_bitmask_row_bytes(int64_t columns)
{
    return columns / 8 + (columns % 8 != 0);
}

static esp_sparse_part part_of(int part, esp_dtype dtype, int rank, int64_t a, int64_t b)
{
    return (esp_sparse_part){.name = part_names[part],
                             .tensor = {.dtype = dtype, .rank = rank, .shape = {a, b}}};
}

void esp_bitmask_layout(esp_folder_form form, const esp_weight_info *weight, int64_t live,
                        esp_sparse_part parts[ESP_BITMASK_MAX_PARTS], int *count)
{
    int64_t rows = weight->shape[0], columns = weight->shape[1];
    bool groups = form == ESP_FORM_SPARSE_24_BITMASK;
    parts[ESP_BITMASK_SHAPE] = part_of(ESP_BITMASK_SHAPE, ESP_I64, groups ? 2 : 1, 2, 1);
    parts[ESP_BITMASK_VALUES] =
        groups ? part_of(ESP_BITMASK_VALUES, weight->dtype, 2, rows, columns / 2)
               : part_of(ESP_BITMASK_VALUES, weight->dtype, 1, live, 0);
    parts[ESP_BITMASK_BITS] =
        part_of(ESP_BITMASK_BITS, ESP_U8, 2, rows, esp_bitmask_row_bytes(columns));
    parts[ESP_BITMASK_OFFSETS] = part_of(ESP_BITMASK_OFFSETS, ESP_I64, 1, rows, 0);
    *count = esp_bitmask_part_count(form);
}

/* A dense tensor as rows of columns. */
static void size_of(const esp_tensor *dense, int64_t *rows, int64_t *columns)
{
    *rows = dense->rank == 2 ? dense->shape[0] : 1;
    *columns = dense->shape[dense->rank - 1];
}

/* ---- decode ---- */

static bool bit_at(const unsigned char *bits, int64_t column)
{
    return bits[column / 8] >> (column % 8) & 1;
}

static esp_status check_row(esp_folder_form form, const unsigned char *bits, int64_t row,
                            int64_t columns, esp_error *error)
{
    if (columns % 8 != 0 && bits[columns / 8] >> (columns % 8) != 0) {
        return esp_fail(error, ESP_BAD_FILE, "foreign.pad_bits_set",
                        "part \"bitmask\", row %" PRId64 ": bits are set behind the last column",
                        row);
    }
    for (int64_t group = 0; form == ESP_FORM_SPARSE_24_BITMASK && group < columns / 4; group++) {
        unsigned four = (unsigned)bits[group / 2] >> 4 * (group % 2) & 15;
        int count = __builtin_popcount(four);
        if (count != 2) {
            return esp_fail(error, ESP_BAD_FILE, "foreign.group_count",
                            "part \"bitmask\", row %" PRId64 ", columns %" PRId64 "..%" PRId64
                            ": %d bits are set, exactly 2 were expected",
                            row, 4 * group, 4 * group + 3, count);
        }
    }
    return ESP_OK;
}

static int64_t count_row(const unsigned char *bits, int64_t row_bytes)
{
    int64_t count = 0;
    for (int64_t i = 0; i < row_bytes; i++) {
        count += __builtin_popcount(bits[i]);
    }
    return count;
}

/* All that must be right before values may be copied. */
static esp_status check_contents(esp_folder_form form, const esp_sparse_part *parts, int64_t rows,
                                 int64_t columns, esp_error *error)
{
    const unsigned char *bits = parts[ESP_BITMASK_BITS].tensor.data;
    const int64_t *offsets = parts[ESP_BITMASK_OFFSETS].tensor.data;
    int64_t row_bytes = esp_bitmask_row_bytes(columns), values, sum = 0;
    ESP_TRY(esp_tensor_size(&parts[ESP_BITMASK_VALUES].tensor, &values, NULL, error));
    for (int64_t row = 0; row < rows; row++, bits += row_bytes) {
        ESP_TRY(check_row(form, bits, row, columns, error));
        if (form == ESP_FORM_SPARSE_BITMASK && offsets[row] != sum) {
            return esp_fail(error, ESP_BAD_FILE, "foreign.row_offsets",
                            "part \"row_offsets\", row %" PRId64 ": is %" PRId64
                            ", the rows before it have %" PRId64 " values",
                            row, offsets[row], sum);
        }
        sum += count_row(bits, row_bytes);
    }
    if (sum != values) {
        return esp_fail(error, ESP_BAD_FILE, "foreign.value_count",
                        "part \"bitmask\" has %" PRId64
                        " bits set, part \"compressed\" has %" PRId64 " values",
                        sum, values);
    }
    return ESP_OK;
}

esp_status esp_bitmask_decode(esp_folder_form form, const esp_sparse_part *parts, esp_tensor *dense,
                              esp_error *error)
{
    int64_t rows, columns;
    size_t width = esp_dtype_bytes(dense->dtype), bytes;
    const unsigned char *bits = parts[ESP_BITMASK_BITS].tensor.data;
    const char *values = parts[ESP_BITMASK_VALUES].tensor.data;
    char *to = dense->data;
    size_of(dense, &rows, &columns);
    ESP_TRY(esp_tensor_size(dense, NULL, &bytes, error));
    ESP_TRY(check_contents(form, parts, rows, columns, error));
    if (bytes > 0) {
        memset(to, 0, bytes);
    }
    for (int64_t row = 0; row < rows; row++, bits += esp_bitmask_row_bytes(columns)) {
        for (int64_t column = 0; column < columns; column++, to += width) {
            if (bit_at(bits, column)) {
                if (!esp_weight_is_zero(dense->dtype, values, 0)) {
                    memcpy(to, values, width);
                }
                values += width;
            }
        }
    }
    return ESP_OK;
}

/* ---- encode ---- */

/* The bits of four columns: non-zeros, filled up to two from the left; 0 when there are more. */
static unsigned group_bits(const esp_tensor *dense, int64_t first)
{
    unsigned bits = 0;
    for (unsigned i = 0; i < 4; i++) {
        bits |= (unsigned)!esp_weight_is_zero(dense->dtype, dense->data, first + i) << i;
    }
    for (unsigned i = 0; i < 4 && __builtin_popcount(bits) < 2; i++) {
        bits |= 1u << i;
    }
    return __builtin_popcount(bits) == 2 ? bits : 0;
}

static esp_status mark_groups(const esp_tensor *dense, int64_t row, unsigned char *bits,
                              esp_error *error)
{
    int64_t columns = dense->shape[1];
    for (int64_t group = 0; group < columns / 4; group++) {
        unsigned four = group_bits(dense, row * columns + 4 * group);
        if (four == 0) {
            return esp_fail(error, ESP_CHECK_FAILED, "foreign.does_not_fit",
                            "row %" PRId64 ", columns %" PRId64 "..%" PRId64
                            ": more than two of four weights are not zero",
                            row, 4 * group, 4 * group + 3);
        }
        bits[group / 2] |= (unsigned char)(four << 4 * (group % 2));
    }
    return ESP_OK;
}

static void mark_live(const esp_tensor *dense, int64_t row, unsigned char *bits)
{
    int64_t columns = dense->shape[1];
    for (int64_t column = 0; column < columns; column++) {
        bool live = !esp_weight_is_zero(dense->dtype, dense->data, row * columns + column);
        bits[column / 8] |= (unsigned char)((unsigned)live << column % 8);
    }
}

/* The values of one row; what the bits mark and is zero becomes +0.0. */
static char *copy_values(const esp_tensor *dense, int64_t row, const unsigned char *bits, char *to)
{
    int64_t columns = dense->shape[1];
    size_t width = esp_dtype_bytes(dense->dtype);
    for (int64_t column = 0; column < columns; column++) {
        int64_t at = row * columns + column;
        if (bit_at(bits, column)) {
            if (esp_weight_is_zero(dense->dtype, dense->data, at)) {
                memset(to, 0, width);
            } else {
                memcpy(to, (const char *)dense->data + (size_t)at * width, width);
            }
            to += width;
        }
    }
    return to;
}

esp_status esp_bitmask_encode(esp_folder_form form, const esp_tensor *dense,
                              const esp_sparse_part *parts, esp_error *error)
{
    int64_t rows = dense->shape[0], row_bytes = esp_bitmask_row_bytes(dense->shape[1]);
    int64_t room, used = 0;
    int64_t *shape = parts[ESP_BITMASK_SHAPE].tensor.data;
    int64_t *offsets = parts[ESP_BITMASK_OFFSETS].tensor.data;
    unsigned char *bits = parts[ESP_BITMASK_BITS].tensor.data;
    char *values = parts[ESP_BITMASK_VALUES].tensor.data;
    ESP_TRY(esp_tensor_size(&parts[ESP_BITMASK_VALUES].tensor, &room, NULL, error));
    shape[0] = rows;
    shape[1] = dense->shape[1];
    for (int64_t row = 0; row < rows; row++, bits += row_bytes) {
        memset(bits, 0, (size_t)row_bytes);
        if (form == ESP_FORM_SPARSE_24_BITMASK) {
            ESP_TRY(mark_groups(dense, row, bits, error));
        } else {
            mark_live(dense, row, bits);
            offsets[row] = used;
        }
        used += count_row(bits, row_bytes);
        if (used > room) {
            break;
        }
        values = copy_values(dense, row, bits, values);
    }
    return used == room ? ESP_OK
                        : esp_fail(error, ESP_BAD_ARGUMENT, "foreign.value_count",
                                   "%" PRId64 " values were promised, the weight has %s", room,
                                   used > room ? "more" : "fewer");
}
