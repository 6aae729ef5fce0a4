/* Private to src/format: lists of what is stored. csr, bsr, rows and cols differ in what a unit is
 * (an entry, a block, a row, a column); the rest is the same. Units lie at places of lines: `kept`
 * of all lines * places are stored, line by line, places ascending. Where fewer units live, zero
 * units fill the lowest free places, so that a masked weight has one encoding. */
#ifndef ESP_FORMAT_LISTS_H
#define ESP_FORMAT_LISTS_H

#include "format/formats.h"

/* What messages call things. */
typedef struct esp_list_words {
    const char *list, *offsets; /* parts; offsets NULL: one line */
    const char *line, *place;   /* "row", "column" */
    const char *units;          /* "entries" */
} esp_list_words;

typedef struct esp_list_view {
    const esp_list_words *words;
    int64_t lines, places, kept;
    void *list; /* [kept]: the place of each stored unit, U16 or U32 */
    bool wide_list;
    void *offsets;     /* [lines + 1]: the first unit of each line, U32 or U64; NULL: one line */
    bool wide_offsets; /* U64 */
} esp_list_view;

/* What every listed form refuses: a row order, and sizes that indices cannot hold. */
esp_status esp_list_check_sizes(int64_t out_features, int64_t in_features, bool has_rows,
                                esp_error *error);
/* Layout of the list and offsets parts. */
void esp_list_set_parts(const esp_list_words *words, int64_t lines, int64_t places, int64_t kept,
                        esp_sparse_part *list, esp_sparse_part *offsets);
esp_list_view esp_list_view_of(const esp_sparse *sparse, const esp_list_words *words, int64_t lines,
                               int64_t places);

static inline int64_t esp_list_place(const esp_list_view *view, int64_t k)
{
    return view->wide_list ? (int64_t)((const uint32_t *)view->list)[k]
                           : (int64_t)((const uint16_t *)view->list)[k];
}

/* As stored; esp_list_begin is what unchecked contents may be read by. */
static inline uint64_t esp_list_offset(const esp_list_view *view, int64_t line)
{
    return view->wide_offsets ? ((const uint64_t *)view->offsets)[line]
                              : (uint64_t)((const uint32_t *)view->offsets)[line];
}

/* The first unit of a line, never beyond the last unit. */
static inline int64_t esp_list_begin(const esp_list_view *view, int64_t line)
{
    if (view->offsets == NULL) {
        return line == 0 ? 0 : view->kept;
    }
    uint64_t offset = esp_list_offset(view, line);
    return offset < (uint64_t)view->kept ? (int64_t)offset : view->kept;
}

/* ---- encode ---- */

typedef struct esp_list_source {
    const void *user;
    /* Bits of the places of a line whose unit must be stored, unused bits 0. scratch: of the
     * calling thread, scratch_words long. */
    void (*live_line)(const void *user, int64_t line, uint64_t *scratch, uint64_t *live);
    int64_t scratch_words;
    /* Writes the unit of a live place as stored unit k; NULL: the caller does later. */
    void (*store)(const void *user, int64_t line, int64_t place, int64_t k);
    int64_t grain; /* lines of one piece of work */
} esp_list_source;

/* Fills list and offsets. More live units than kept: "format.mask_mismatch" with the first one that
 * has no room. */
esp_status esp_list_encode(const esp_sparse *sparse, const esp_list_view *view,
                           const esp_list_source *source, esp_error *error);

/* ---- check ---- */

/* Looks at stored unit k and says whether it is all zero; fails where its values break a rule. */
typedef esp_status (*esp_list_unit_fn)(const void *user, int64_t line, int64_t k, bool *zero,
                                       esp_error *error);
esp_status esp_list_check(const esp_sparse *sparse, const esp_list_view *view,
                          esp_list_unit_fn unit, const void *user, esp_error *error);

/* "values: row 3, entry 2: what". */
esp_status esp_list_bad_unit(const esp_list_view *view, const char *code, const char *part,
                             int64_t line, int64_t k, const char *wrong, esp_error *error);

/* ---- bits ---- */

static inline bool esp_bit(const uint64_t *words, int64_t bit)
{
    return words[bit / 64] >> bit % 64 & 1;
}

static inline void esp_set_bit(uint64_t *words, int64_t bit)
{
    words[bit / 64] |= (uint64_t)1 << bit % 64;
}

/* Whether any bit of [begin, end) is set. */
bool esp_any_bit(const uint64_t *words, int64_t begin, int64_t end);

#endif
