/* Help texts, made from the option tables. */
#include <string.h>

#include "cli.h"

#define HELP_COLUMN 28
#define HELP_WIDTH 100

/* Words of text from `column` on, broken before HELP_WIDTH. */
static void print_wrapped(FILE *stream, const char *text, int indent, int column)
{
    while (*text != '\0') {
        size_t length = strcspn(text, " \n");
        if (column > indent && column + (int)length + 1 > HELP_WIDTH) {
            fprintf(stream, "\n%*s", indent, "");
            column = indent;
        } else if (column > indent) {
            fputc(' ', stream);
            column++;
        }
        fwrite(text, 1, length, stream);
        column += (int)length;
        text += length;
        if (*text == '\n') {
            fprintf(stream, "\n%*s", text[1] == '\n' ? 0 : indent, "");
            column = indent;
        }
        text += *text != '\0';
    }
    fputc('\n', stream);
}

void options_range(const cli_option *option, char *text, size_t capacity)
{
    size_t used = 0;
    text[0] = '\0';
    if (option->kind == OPTION_CHOICE) {
        for (int i = 0; option->choices[i] != NULL && used < capacity; i++) {
            used += (size_t)snprintf(text + used, capacity - used, "%s%s", i == 0 ? "; " : " | ",
                                     option->choices[i]);
        }
    }
    if (option->fallback != NULL && used < capacity) {
        used += (size_t)snprintf(text + used, capacity - used, " (default %s)", option->fallback);
    }
    if (option->environment != NULL && used < capacity) {
        snprintf(text + used, capacity - used, " [%s]", option->environment);
    }
}

static void print_option(const cli_option *option, FILE *stream)
{
    char head[96], help[512], range[160];
    char letter[8] = "    ";
    if (option->letter != '\0') {
        snprintf(letter, sizeof letter, "-%c, ", option->letter);
    }
    int used = snprintf(head, sizeof head, "  %s--%s%s%s", letter, option->name,
                        option->argument != NULL ? " " : "",
                        option->argument != NULL ? option->argument : "");
    options_range(option, range, sizeof range);
    snprintf(help, sizeof help, "%s%s", option->help, range);
    fprintf(stream, "%-*s", HELP_COLUMN, head);
    if (used >= HELP_COLUMN) {
        fprintf(stream, "\n%*s", HELP_COLUMN, "");
    }
    print_wrapped(stream, help, HELP_COLUMN, HELP_COLUMN);
}

static void print_options(const char *title, const cli_option *options, FILE *stream)
{
    if (options->name == NULL) {
        return;
    }
    fprintf(stream, "\n%s:\n", title);
    for (; options->name != NULL; options++) {
        print_option(options, stream);
    }
}

void options_help_command(const cli_command *command, FILE *stream)
{
    fprintf(stream, "espalier %s - %s\n\nUsage: espalier %s %s%s[options]\n", command->name,
            command->summary, command->name, command->operands,
            command->operands[0] != '\0' ? " " : "");
    print_options("Options", command->options, stream);
    print_options("Common options", common_option_table, stream);
    if (command->notes != NULL) {
        fputc('\n', stream);
        print_wrapped(stream, command->notes, 0, 0);
    }
}

void options_help_program(FILE *stream)
{
    fputs("espalier - prune, compress and run transformer models, and show what it gains\n\n"
          "Usage: espalier COMMAND [arguments] [options]\n\nCommands:\n",
          stream);
    for (int i = 0; commands[i] != NULL; i++) {
        fprintf(stream, "  %-10s%s\n", commands[i]->name, commands[i]->summary);
    }
    fputs(
        "\nespalier COMMAND --help describes a command. espalier --version names the version.\n\n"
        "Results go to stdout, everything else to stderr; with --json each line of stdout is one\n"
        "JSON object with \"schema\" and \"version\".\n\n"
        "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 bad file, 4 unsupported here, 5 a check\n"
        "failed, 6 out of memory, 130 interrupted.\n\n"
        "Environment: ESPALIER_THREADS as --threads, ESPALIER_CPU limits the instruction set\n"
        "(auto, portable, avx2, avx512, avx512bf16, amx), ESPALIER_TUNING names the file of\n"
        "measured times (empty: none), NO_COLOR. Options win.\n",
        stream);
}
