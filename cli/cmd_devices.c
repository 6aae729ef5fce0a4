/* espalier devices */
#include "cli.h"
#include "output.h"
#include "sizes.h"

#define MAX_DEVICES 32

static cli_record device_json(const esp_device_info *info)
{
    cli_record record = record_object();
    record_text(&record, "name", info->name);
    record_text(&record, "description", info->description);
    record_int(&record, "threads", info->threads);
    record_int(&record, "memory_bytes", (int64_t)info->memory_bytes);
    record_bool(&record, "usable", info->usable);
    record_text(&record, "why_not", info->usable ? NULL : info->why_not);
    return record;
}

static esp_status print_json(const esp_device_info *infos, int count, esp_error *error)
{
    cli_record record = record_begin("devices"), list = record_list();
    for (int i = 0; i < count; i++) {
        record_add(&list, device_json(&infos[i]));
    }
    record_child(&record, "devices", list);
    return record_print(&record, error);
}

static esp_status run(cli_state *cli, esp_error *error)
{
    esp_device_info infos[MAX_DEVICES];
    int count = esp_device_list(cli->context, infos, MAX_DEVICES);
    count = count < MAX_DEVICES ? count : MAX_DEVICES;
    if (cli->common.json) {
        return print_json(infos, count, error);
    }
    static const char *const heads[] = {"<device", ">threads", ">memory", "<usable",
                                        "<description"};
    cli_table table;
    char memory[SIZE_TEXT_MAX];
    table_begin(&table, COUNT(heads), heads);
    for (int i = 0; i < count; i++) {
        table_cell(&table, "%s", infos[i].name);
        table_cell(&table, "%d", infos[i].threads);
        table_cell(&table, "%s", size_bytes((double)infos[i].memory_bytes, memory));
        table_cell(&table, "%s", infos[i].usable ? "yes" : infos[i].why_not);
        table_cell(&table, "%s", infos[i].description);
    }
    esp_status status = table_print(&table, stdout, error);
    table_free(&table);
    return status;
}

static const cli_option options[] = {{.name = NULL}};

const cli_command devices_command = {.name = "devices",
                                     .summary = "list what products can run on",
                                     .operands = "",
                                     .options = options,
                                     .run = run};
