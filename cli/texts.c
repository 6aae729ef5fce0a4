/* Lines of a file as texts. */
#include "texts.h"

#include <stdlib.h>
#include <string.h>

static int64_t count_lines(const char *block, size_t length)
{
    int64_t count = length > 0 && block[length - 1] != '\n';
    for (size_t i = 0; i < length; i++) {
        count += block[i] == '\n';
    }
    return count;
}

esp_status text_lines_load(const char *path, text_lines *lines, esp_error *error)
{
    size_t length = 0, at = 0;
    TRY(load_text(path, &lines->block, &length, error));
    int64_t count = count_lines(lines->block, length);
    lines->lines = calloc((size_t)count + 1, sizeof *lines->lines);
    if (lines->lines == NULL) {
        return cli_fail_memory(error, path);
    }
    for (; lines->count < count; lines->count++) {
        const char *begin = lines->block + at;
        const char *end = memchr(begin, '\n', length - at);
        size_t bytes = end != NULL ? (size_t)(end - begin) : length - at;
        at += bytes + 1;
        bytes -= bytes > 0 && begin[bytes - 1] == '\r';
        lines->lines[lines->count] = (esp_text){begin, bytes};
    }
    return ESP_OK;
}

void text_lines_free(text_lines *lines)
{
    free(lines->block);
    free(lines->lines);
    *lines = (text_lines){0};
}

esp_status check_encoder(const cli_state *cli, const loaded_model *loaded, esp_error *error)
{
    if (loaded->info.kind == ESP_MODEL_ENCODER) {
        return ESP_OK;
    }
    return cli_fail(error, ESP_BAD_ARGUMENT, "run.no_encoder",
                    "%s (%s) makes no vectors of texts; %s", cli->operands[0],
                    loaded->info.architecture,
                    strcmp(cli->command->name, "run") == 0 ? "give it a --prompt"
                                                           : "give --text FILE to be predicted");
}

esp_status check_decoder(const cli_state *cli, const loaded_model *loaded, esp_error *error)
{
    if (loaded->info.kind == ESP_MODEL_DECODER) {
        return ESP_OK;
    }
    return cli_fail(error, ESP_BAD_ARGUMENT, "run.no_decoder",
                    "%s (%s) goes on from no prompt: give --text for vectors of texts",
                    cli->operands[0], loaded->info.architecture);
}
