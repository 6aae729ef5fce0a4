/* Defaults, then the environment, then the command line; each value goes through the same strict
 * reader, so that an error names its source and the range. */
#include "options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

/* Where a value comes from, for messages. */
typedef struct value_source {
    char name[64]; /* "--threads", "ESPALIER_THREADS" */
    const char *command;
} value_source;

static esp_status bad_value(const value_source *source, const char *text, const char *expected,
                            esp_error *error)
{
    return cli_fail(error, ESP_BAD_ARGUMENT, "usage.bad_value",
                    "%s '%s': %s was expected; see 'espalier %s --help'", source->name, text,
                    expected, source->command);
}

static esp_status read_integer(const cli_option *option, const value_source *source,
                               const char *text, int64_t *value, esp_error *error)
{
    char expected[96];
    char *end;
    snprintf(expected, sizeof expected, "a whole number from %lld to %lld",
             (long long)option->least, (long long)option->most);
    errno = 0;
    long long read = strtoll(text, &end, 10);
    bool clean = text[0] == '-' || (text[0] >= '0' && text[0] <= '9');
    if (!clean || *end != '\0' || end == text || errno != 0 || read < option->least ||
        read > option->most) {
        return bad_value(source, text, expected, error);
    }
    *value = read;
    return ESP_OK;
}

static esp_status read_number(const cli_option *option, const value_source *source,
                              const char *text, double *value, esp_error *error)
{
    char expected[96];
    char *end;
    snprintf(expected, sizeof expected, "a number from %lld to %lld", (long long)option->least,
             (long long)option->most);
    bool clean = text[0] != '\0' && strspn(text, "0123456789+-.eE") == strlen(text);
    errno = 0;
    double read = strtod(text, &end);
    if (!clean || *end != '\0' || !isfinite(read) || read < (double)option->least ||
        read > (double)option->most) {
        return bad_value(source, text, expected, error);
    }
    *value = read;
    return ESP_OK;
}

static esp_status read_choice(const cli_option *option, const value_source *source,
                              const char *text, int *value, esp_error *error)
{
    char expected[192] = "one of";
    for (int i = 0; option->choices[i] != NULL; i++) {
        if (strcmp(option->choices[i], text) == 0) {
            *value = i;
            return ESP_OK;
        }
        size_t used = strlen(expected);
        snprintf(expected + used, sizeof expected - used, "%s %s", i > 0 ? "," : "",
                 option->choices[i]);
    }
    return bad_value(source, text, expected, error);
}

static esp_status add_item(text_list *list, const char *text, esp_error *error)
{
    const char **items = realloc(list->items, ((size_t)list->count + 1) * sizeof *items);
    if (items == NULL) {
        return cli_fail_memory(error, "a list of options");
    }
    items[list->count++] = text;
    list->items = items;
    return ESP_OK;
}

static esp_status set_value(const cli_option *option, void *base, const value_source *source,
                            const char *text, esp_error *error)
{
    void *field = (char *)base + option->offset;
    switch (option->kind) {
    case OPTION_FLAG:
        *(bool *)field = true;
        return ESP_OK;
    case OPTION_TEXT:
        *(const char **)field = text;
        return ESP_OK;
    case OPTION_LIST:
        return add_item(field, text, error);
    case OPTION_INTEGER:
        return read_integer(option, source, text, field, error);
    case OPTION_NUMBER:
        return read_number(option, source, text, field, error);
    case OPTION_CHOICE:
        return read_choice(option, source, text, field, error);
    }
    return cli_fail(error, ESP_FAILED, "usage.bad_table", "option %s has no kind", option->name);
}

static esp_status set_defaults(const cli_state *cli, const cli_option *options, void *base,
                               esp_error *error)
{
    for (const cli_option *option = options; option->name != NULL; option++) {
        value_source source = {.command = cli->command->name};
        const char *text = option->environment != NULL ? getenv(option->environment) : NULL;
        snprintf(source.name, sizeof source.name, "%s",
                 text != NULL ? option->environment : option->name);
        if (text == NULL || text[0] == '\0') {
            text = option->fallback;
        }
        if (text != NULL) {
            TRY(set_value(option, base, &source, text, error));
        }
    }
    return ESP_OK;
}

/* ---- the command line ---- */

typedef struct argv_reader {
    cli_state *cli;
    int argc, next;
    char **argv;
} argv_reader;

static const cli_option *find_name(const cli_option *options, const char *name, size_t length)
{
    for (; options->name != NULL; options++) {
        if (strlen(options->name) == length && strncmp(options->name, name, length) == 0) {
            return options;
        }
    }
    return NULL;
}

static const cli_option *find_letter(const cli_option *options, char letter)
{
    for (; options->name != NULL; options++) {
        if (options->letter == letter) {
            return options;
        }
    }
    return NULL;
}

static void collect_names(const cli_option *options, const char **names, int *count, int capacity)
{
    for (; options->name != NULL && *count < capacity; options++) {
        names[(*count)++] = options->name;
    }
}

static esp_status unknown_option(const cli_state *cli, const char *text, esp_error *error)
{
    const char *names[64];
    int count = 0;
    collect_names(cli->command->options, names, &count, COUNT(names) - 1);
    collect_names(common_option_table, names, &count, COUNT(names) - 1);
    names[count] = NULL;
    char name[64];
    snprintf(name, sizeof name, "%s", text + strspn(text, "-"));
    name[strcspn(name, "=")] = '\0';
    const char *near = options_nearest(name, names);
    return cli_fail(error, ESP_BAD_ARGUMENT, "usage.unknown_option",
                    "unknown option '%s'%s%s%s; see 'espalier %s --help'", text,
                    near != NULL ? "; did you mean --" : "", near != NULL ? near : "",
                    near != NULL ? "?" : "", cli->command->name);
}

static esp_status apply(argv_reader *reader, const cli_option *option, void *base,
                        const char *written, const char *value, esp_error *error)
{
    value_source source = {.command = reader->cli->command->name};
    snprintf(source.name, sizeof source.name, "%s", written);
    if (option->kind == OPTION_FLAG) {
        if (value != NULL) {
            return cli_fail(error, ESP_BAD_ARGUMENT, "usage.extra_value",
                            "%s takes no value; see 'espalier %s --help'", written, source.command);
        }
        return set_value(option, base, &source, "", error);
    }
    if (value == NULL && reader->next < reader->argc) {
        value = reader->argv[reader->next++];
    }
    if (value == NULL) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.missing_value",
                        "%s needs a value (%s); see 'espalier %s --help'", written,
                        option->argument, source.command);
    }
    return set_value(option, base, &source, value, error);
}

static esp_status read_long(argv_reader *reader, const char *text, esp_error *error)
{
    cli_state *cli = reader->cli;
    const char *equals = strchr(text, '=');
    size_t length = equals != NULL ? (size_t)(equals - text) : strlen(text);
    const char *value = equals != NULL ? equals + 1 : NULL;
    char written[64];
    snprintf(written, sizeof written, "%.*s", (int)(length < 60 ? length : 60), text);
    const cli_option *option = find_name(cli->command->options, text + 2, length - 2);
    if (option != NULL) {
        return apply(reader, option, cli->args, written, value, error);
    }
    option = find_name(common_option_table, text + 2, length - 2);
    if (option != NULL) {
        return apply(reader, option, &cli->common, written, value, error);
    }
    return unknown_option(cli, text, error);
}

static esp_status read_short(argv_reader *reader, const char *text, esp_error *error)
{
    cli_state *cli = reader->cli;
    char written[3] = {'-', text[1], '\0'};
    void *base = cli->args;
    const cli_option *option = find_letter(cli->command->options, text[1]);
    if (option == NULL) {
        base = &cli->common;
        option = find_letter(common_option_table, text[1]);
    }
    if (option == NULL) {
        return unknown_option(cli, text, error);
    }
    return apply(reader, option, base, written, text[2] != '\0' ? text + 2 : NULL, error);
}

static esp_status read_operand(argv_reader *reader, const char *text, esp_error *error)
{
    cli_state *cli = reader->cli;
    if (cli->operand_count >= cli->command->most_operands) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.extra_argument",
                        "unexpected argument '%s'; see 'espalier %s --help'", text,
                        cli->command->name);
    }
    cli->operands[cli->operand_count++] = text;
    return ESP_OK;
}

static esp_status check_required(const cli_state *cli, esp_error *error)
{
    if (cli->operand_count < cli->command->least_operands) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.missing_argument",
                        "an argument is missing: espalier %s %s; see 'espalier %s --help'",
                        cli->command->name, cli->command->operands, cli->command->name);
    }
    for (const cli_option *option = cli->command->options; option->name != NULL; option++) {
        if (option->required &&
            *(const char *const *)((const char *)cli->args + option->offset) == NULL) {
            return cli_fail(error, ESP_BAD_ARGUMENT, "usage.missing_option",
                            "--%s %s must be given; see 'espalier %s --help'", option->name,
                            option->argument, cli->command->name);
        }
    }
    return ESP_OK;
}

static esp_status read_all(argv_reader *reader, esp_error *error)
{
    bool options_ended = false;
    while (reader->next < reader->argc) {
        const char *text = reader->argv[reader->next++];
        if (options_ended || text[0] != '-' || text[1] == '\0') {
            TRY(read_operand(reader, text, error));
        } else if (strcmp(text, "--") == 0) {
            options_ended = true;
        } else if (text[1] == '-') {
            TRY(read_long(reader, text, error));
        } else {
            TRY(read_short(reader, text, error));
        }
        if (reader->cli->common.help) {
            return ESP_OK;
        }
    }
    return check_required(reader->cli, error);
}

esp_status options_parse(cli_state *cli, int argc, char **argv, esp_error *error)
{
    cli->args = calloc(1, cli->command->args_bytes + 1);
    cli->operands = calloc((size_t)cli->command->most_operands + 1, sizeof *cli->operands);
    if (cli->args == NULL || cli->operands == NULL) {
        return cli_fail_memory(error, "the command line");
    }
    TRY(set_defaults(cli, common_option_table, &cli->common, error));
    TRY(set_defaults(cli, cli->command->options, cli->args, error));
    argv_reader reader = {.cli = cli, .argc = argc, .argv = argv};
    return read_all(&reader, error);
}

void options_free(cli_state *cli)
{
    if (cli->args != NULL) {
        for (const cli_option *option = cli->command->options; option->name != NULL; option++) {
            if (option->kind == OPTION_LIST) {
                free(((text_list *)(void *)((char *)cli->args + option->offset))->items);
            }
        }
    }
    free(cli->args);
    free(cli->operands);
    cli->args = NULL;
    cli->operands = NULL;
}

/* ---- did you mean ---- */

/* Edits (insert, delete, replace) from a to b; both short. */
static int distance(const char *a, const char *b)
{
    enum { MOST = 64 };
    int row[MOST + 1];
    int length = (int)strlen(b);
    if (length > MOST || strlen(a) > MOST) {
        return MOST;
    }
    for (int j = 0; j <= length; j++) {
        row[j] = j;
    }
    for (int i = 1; a[i - 1] != '\0'; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= length; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            best = row[j] + 1 < best ? row[j] + 1 : best;
            best = row[j - 1] + 1 < best ? row[j - 1] + 1 : best;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[length];
}

const char *options_nearest(const char *text, const char *const *candidates)
{
    const char *nearest = NULL;
    int best = (int)strlen(text) / 3 + 2; /* must be closer than this */
    for (; *candidates != NULL; candidates++) {
        int edits = distance(text, *candidates);
        if (edits < best) {
            best = edits;
            nearest = *candidates;
        }
    }
    return nearest;
}
