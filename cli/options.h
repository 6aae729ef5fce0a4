/* Options as data: one table per command, from which parsing and help text are made.
 *
 * Numbers are read strictly: the whole text, within the stated range. */
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H

#include <espalier/base.h>
#include <stdio.h>

typedef enum option_kind {
    OPTION_FLAG = 0, /* bool */
    OPTION_TEXT,     /* const char * */
    OPTION_LIST,     /* text_list: may be given several times */
    OPTION_INTEGER,  /* int64_t */
    OPTION_NUMBER,   /* double */
    OPTION_CHOICE    /* int: index into choices */
} option_kind;

typedef struct text_list {
    const char **items;
    int count;
} text_list;

typedef struct cli_option {
    const char *name; /* without dashes; NULL ends a table */
    char letter;      /* 0: none */
    option_kind kind;
    size_t offset;        /* of the value in the options struct */
    const char *argument; /* as the help calls it */
    const char *help;
    const char *fallback;       /* default, as text; NULL: zero */
    const char *environment;    /* variable that gives the default; NULL: none */
    int64_t least, most;        /* INTEGER, NUMBER: inclusive */
    const char *const *choices; /* CHOICE: NULL-terminated */
    bool required;
} cli_option;

typedef struct cli_command cli_command;
typedef struct cli_state cli_state;

/* Reads argv (behind the command's name) into cli. --help ends the reading with cli->common.help.
 * ESP_BAD_ARGUMENT, code "usage.*". */
ESP_MUST_CHECK esp_status options_parse(cli_state *cli, int argc, char **argv, esp_error *error);
/* Frees what parsing allocated: lists, operands, args. */
void options_free(cli_state *cli);

/* Help texts: of the program, of one command. */
void options_help_program(FILE *stream);
void options_help_command(const cli_command *command, FILE *stream);
/* Choices, default and environment variable of an option, as its help ends; "" for none. */
void options_range(const cli_option *option, char *text, size_t capacity);

/* The candidate nearest to text, NULL when none is near. candidates: NULL-terminated. */
const char *options_nearest(const char *text, const char *const *candidates);

#endif
