/* Cells are kept as text until the widths of all are known. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "output.h"

void table_begin(cli_table *table, int columns, const char *const *heads)
{
    *table = (cli_table){.columns = columns};
    for (int i = 0; i < columns; i++) {
        table->heads[i] = heads[i];
    }
}

static bool grow(cli_table *table)
{
    if (table->count < table->capacity) {
        return true;
    }
    size_t capacity = table->capacity * 2 + 64;
    char **cells = realloc(table->cells, capacity * sizeof *cells);
    if (cells == NULL) {
        return false;
    }
    table->cells = cells;
    table->capacity = capacity;
    return true;
}

void table_cell(cli_table *table, const char *format, ...)
{
    char *text = NULL;
    va_list arguments;
    va_start(arguments, format);
    int length = vasprintf(&text, format, arguments);
    va_end(arguments);
    if (length < 0) {
        table->failed = true;
        return;
    }
    if (!grow(table)) {
        free(text);
        table->failed = true;
        return;
    }
    for (char *at = text; *at != '\0'; at++) {
        *at = (unsigned char)*at < 0x20 || *at == 0x7f ? '?' : *at;
    }
    table->cells[table->count++] = text;
}

/* Characters, counting a UTF-8 sequence once. */
static size_t width_of(const char *text)
{
    size_t width = 0;
    for (; *text != '\0'; text++) {
        width += ((unsigned char)*text & 0xc0) != 0x80;
    }
    return width;
}

static void print_cell(const char *text, char alignment, size_t width, bool last, FILE *stream)
{
    int gap = (int)(width - width_of(text));
    if (alignment == '>') {
        fprintf(stream, "%*s%s", gap, "", text);
    } else {
        fprintf(stream, "%s%*s", text, last ? 0 : gap, "");
    }
    fputs(last ? "\n" : "  ", stream);
}

esp_status table_print(const cli_table *table, FILE *stream, esp_error *error)
{
    if (table->failed) {
        return cli_fail_memory(error, "a table");
    }
    size_t columns = (size_t)table->columns, widths[TABLE_MAX_COLUMNS];
    for (size_t c = 0; c < columns; c++) {
        widths[c] = width_of(table->heads[c] + 1);
        for (size_t i = c; i < table->count; i += columns) {
            size_t width = width_of(table->cells[i]);
            widths[c] = width > widths[c] ? width : widths[c];
        }
    }
    for (size_t c = 0; c < columns; c++) {
        print_cell(table->heads[c] + 1, table->heads[c][0], widths[c], c + 1 == columns, stream);
    }
    for (size_t i = 0; i < table->count; i++) {
        size_t c = i % columns;
        print_cell(table->cells[i], table->heads[c][0], widths[c], c + 1 == columns, stream);
    }
    return ESP_OK;
}

void table_free(cli_table *table)
{
    for (size_t i = 0; i < table->count; i++) {
        free(table->cells[i]);
    }
    free(table->cells);
    *table = (cli_table){0};
}
