/* JSON lines, by jansson. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "output.h"

#define REAL_DIGITS 12

void record_child(cli_record *parent, const char *key, cli_record child)
{
    parent->failed |= child.failed || json_object_set_new(parent->json, key, child.json) != 0;
}

void record_add(cli_record *list, cli_record child)
{
    list->failed |= child.failed || json_array_append_new(list->json, child.json) != 0;
}

static void put(cli_record *record, const char *key, json_t *value)
{
    record->failed |= json_object_set_new(record->json, key, value) != 0;
}

cli_record record_object(void)
{
    json_t *json = json_object();
    return (cli_record){json, json == NULL};
}

cli_record record_list(void)
{
    json_t *json = json_array();
    return (cli_record){json, json == NULL};
}

cli_record record_begin(const char *name)
{
    cli_record record = record_object();
    char schema[64];
    snprintf(schema, sizeof schema, "espalier.%s", name);
    record_text(&record, "schema", schema);
    record_int(&record, "version", 1);
    return record;
}

/* JSON strings are UTF-8; paths and names from outside may not be. */
static json_t *repaired_text(const char *text)
{
    char *repaired = NULL;
    size_t length = 0;
    FILE *memory = open_memstream(&repaired, &length);
    if (memory == NULL) {
        return NULL;
    }
    utf8_stream utf8 = {.stream = memory};
    utf8_push(&utf8, text, strlen(text));
    utf8_end(&utf8);
    json_t *json = fclose(memory) == 0 ? json_string(repaired) : NULL;
    free(repaired);
    return json;
}

void record_text(cli_record *record, const char *key, const char *text)
{
    if (text == NULL) {
        put(record, key, json_null());
        return;
    }
    json_t *json = json_string(text);
    put(record, key, json != NULL ? json : repaired_text(text));
}

void record_int(cli_record *record, const char *key, int64_t value)
{
    put(record, key, json_integer(value));
}

void record_real(cli_record *record, const char *key, double value)
{
    put(record, key, isfinite(value) ? json_real(value) : json_null());
}

void record_bool(cli_record *record, const char *key, bool value)
{
    put(record, key, json_boolean(value));
}

void record_shape(cli_record *record, const char *key, int rank, const int64_t *shape)
{
    cli_record list = record_list();
    for (int i = 0; i < rank; i++) {
        list.failed |= json_array_append_new(list.json, json_integer(shape[i])) != 0;
    }
    record_child(record, key, list);
}

esp_status record_print(cli_record *record, esp_error *error)
{
    char *text = record->failed
                     ? NULL
                     : json_dumps(record->json, JSON_COMPACT | JSON_REAL_PRECISION(REAL_DIGITS));
    record_free(record);
    if (text == NULL) {
        return cli_fail_memory(error, "JSON output");
    }
    errno = 0;
    bool written = fputs(text, stdout) >= 0 && fputc('\n', stdout) != EOF && fflush(stdout) == 0;
    int why = errno;
    free(text);
    return written ? ESP_OK
                   : cli_fail(error, ESP_IO, "output.write_failed",
                              "standard output could not be written: %s", strerror(why));
}

void record_free(cli_record *record)
{
    json_decref(record->json);
    *record = (cli_record){0};
}
