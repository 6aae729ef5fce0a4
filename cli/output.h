/* What goes to stdout: aligned tables and JSON lines. Both remember a failed allocation and say so
 * at the end, so that callers need not ask after every cell. */
#ifndef CLI_OUTPUT_H
#define CLI_OUTPUT_H

#include <espalier/base.h>
#include <jansson.h>
#include <stdio.h>

/* ---- tables ---- */

#define TABLE_MAX_COLUMNS 16

typedef struct cli_table {
    int columns;
    const char *heads[TABLE_MAX_COLUMNS]; /* "<name" is left-aligned, ">name" right-aligned */
    char **cells;
    size_t count, capacity;
    bool failed;
} cli_table;

void table_begin(cli_table *table, int columns, const char *const *heads);
/* The next cell, row by row; control bytes become '?'. */
void table_cell(cli_table *table, const char *format, ...) ESP_PRINTF(2, 3);
ESP_MUST_CHECK esp_status table_print(const cli_table *table, FILE *stream, esp_error *error);
void table_free(cli_table *table);

/* ---- JSON ---- */

typedef struct cli_record {
    json_t *json;
    bool failed;
} cli_record;

/* {"schema": "espalier.NAME", "version": 1} */
cli_record record_begin(const char *name);
cli_record record_object(void);
cli_record record_list(void);
void record_text(cli_record *record, const char *key, const char *text); /* NULL gives null */
void record_int(cli_record *record, const char *key, int64_t value);
void record_real(cli_record *record, const char *key, double value); /* null when not finite */
void record_bool(cli_record *record, const char *key, bool value);
void record_shape(cli_record *record, const char *key, int rank, const int64_t *shape);
void record_child(cli_record *parent, const char *key, cli_record child); /* takes over child */
void record_add(cli_record *list, cli_record child);                      /* takes over child */
/* One line on stdout; frees the record. */
ESP_MUST_CHECK esp_status record_print(cli_record *record, esp_error *error);
void record_free(cli_record *record);

/* ---- text ---- */

/* Turns bytes that come in any pieces into well-formed UTF-8: an incomplete sequence waits for its
 * rest, an ill-formed one becomes U+FFFD. */
typedef struct utf8_stream {
    FILE *stream;
    unsigned char held[4];
    int have, need;
} utf8_stream;

void utf8_push(utf8_stream *utf8, const char *bytes, size_t length);
void utf8_end(utf8_stream *utf8);

/* ---- errors, the end ---- */

/* "espalier: error: MESSAGE [CODE]" on stderr and, with json, {"schema": "espalier.error"} on
 * stdout. */
void output_error(const esp_error *error, esp_status status, bool json);
int output_exit_code(esp_status status);
/* Flushes stdout; false when anything was not written. */
bool output_finish(void);

#endif
