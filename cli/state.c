/* What commands share: the revision, how to fail, the device. */
#include <stdarg.h>
#include <stdio.h>

#include "cli.h"
#include "tuning_file.h"

#ifndef ESPALIER_COMMIT
#define ESPALIER_COMMIT "unknown"
#endif

const char *cli_commit(void)
{
    return ESPALIER_COMMIT;
}

esp_status cli_fail(esp_error *error, esp_status status, const char *code, const char *format, ...)
{
    if (error == NULL) {
        return status;
    }
    error->status = status;
    snprintf(error->code, sizeof error->code, "%s", code);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    for (char *at = error->message; *at != '\0'; at++) {
        *at = (unsigned char)*at < 0x20 || *at == 0x7f ? '?' : *at;
    }
    return status;
}

esp_status cli_fail_memory(esp_error *error, const char *what)
{
    return cli_fail(error, ESP_OUT_OF_MEMORY, "memory.exhausted", "out of memory for %s", what);
}

bool cli_progress_step(void *user, const char *what, double done, double total, const char *unit)
{
    cli_state *const *begin = user;
    return progress_step(&(*begin)->progress, what, done, total, unit);
}

esp_status cli_open_device(cli_state *cli, esp_error *error)
{
    if (cli->device != NULL) {
        return ESP_OK;
    }
    TRY(esp_device_open(cli->context, cli->common.device, &cli->device, error));
    tuning_load(cli);
    return ESP_OK;
}
