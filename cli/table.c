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

/* One line; cells behind the last one with text leave no blanks. */
static void print_line(const cli_table *table, const char *const *cells, const size_t *widths,
                       FILE *stream)
{
    int last = table->columns - 1;
    while (last > 0 && cells[last][0] == '\0') {
        last--;
    }
    for (int c = 0; c <= last; c++) {
        int gap = (int)(widths[c] - width_of(cells[c]));
        bool left = table->heads[c][0] == '<';
        fprintf(stream, "%*s%s%*s%s", left ? 0 : gap, "", cells[c], left && c < last ? gap : 0, "",
                c < last ? "  " : "\n");
    }
}

esp_status table_print(const cli_table *table, FILE *stream, esp_error *error)
{
    if (table->failed) {
        return cli_fail_memory(error, "a table");
    }
    size_t columns = (size_t)table->columns, widths[TABLE_MAX_COLUMNS] = {0};
    const char *heads[TABLE_MAX_COLUMNS] = {NULL};
    for (size_t c = 0; c < columns; c++) {
        heads[c] = table->heads[c] + 1;
        widths[c] = width_of(heads[c]);
        for (size_t i = c; i < table->count; i += columns) {
            size_t width = width_of(table->cells[i]);
            widths[c] = width > widths[c] ? width : widths[c];
        }
    }
    print_line(table, heads, widths, stream);
    for (size_t i = 0; i + columns <= table->count; i += columns) {
        print_line(table, (const char *const *)table->cells + i, widths, stream);
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
