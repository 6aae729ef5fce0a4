/* The manual page and the bash completion, printed by `espalier --generate man|bash` while the
 * program is built. Both come from the tables that the program parses by, so that neither can fall
 * behind. */
#include <ctype.h>
#include <string.h>

#include "cli.h"
#include "generate.h"

/* ---- manual page: roff with the man macros ---- */

/* Text for roff: backslashes, hyphens that are minus signs, and control characters at a line's
 * start lose their meaning; an empty line becomes a paragraph. */
static void roff_text(const char *text, FILE *stream)
{
    bool line_begins = true;
    for (; *text != '\0'; text++) {
        if (line_begins && (*text == '.' || *text == '\'')) {
            fputs("\\&", stream);
        }
        line_begins = *text == '\n';
        if (*text == '\\') {
            fputs("\\e", stream);
        } else if (*text == '-') {
            fputs("\\-", stream);
        } else if (*text == '\n' && text[1] == '\n') {
            fputs("\n.PP", stream);
        } else {
            fputc(*text, stream);
        }
    }
}

static void roff_option(const cli_option *option, FILE *stream)
{
    char range[160];
    options_range(option, range, sizeof range);
    fputs(".TP\n", stream);
    if (option->letter != '\0') {
        fprintf(stream, "\\fB\\-%c\\fR, ", option->letter);
    }
    fputs("\\fB\\-\\-", stream);
    roff_text(option->name, stream);
    fputs("\\fR", stream);
    if (option->argument != NULL) {
        fprintf(stream, " \\fI%s\\fR", option->argument);
    }
    fputc('\n', stream);
    roff_text(option->help, stream);
    roff_text(range, stream);
    fputc('\n', stream);
}

static void roff_options(const cli_option *options, FILE *stream)
{
    for (; options->name != NULL; options++) {
        roff_option(options, stream);
    }
}

static void roff_command(const cli_command *command, FILE *stream)
{
    fprintf(stream, ".SS \"espalier %s\"\n.B espalier %s\n", command->name, command->name);
    roff_text(command->operands, stream);
    fprintf(stream, "%s[options]\n.PP\n", command->operands[0] != '\0' ? " " : "");
    fprintf(stream, "%c", toupper((unsigned char)command->summary[0]));
    roff_text(command->summary + 1, stream);
    fputs(".\n", stream);
    roff_options(command->options, stream);
    if (command->notes != NULL) {
        fputs(".PP\n", stream);
        roff_text(command->notes, stream);
        fputc('\n', stream);
    }
}

static void roff_tagged(const char *tag, const char *text, FILE *stream)
{
    fprintf(stream, ".TP\n.B %s\n", tag);
    roff_text(text, stream);
    fputc('\n', stream);
}

static void roff_exit_codes(FILE *stream)
{
    static const char *const codes[][2] = {
        {"0", "Done."},
        {"1", "Failed: the system refused (disk, permissions), a target is there already, or "
              "standard output could not be written."},
        {"2", "Wrong usage: unknown option, wrong value, wrong pattern, a glob that matches "
              "nothing."},
        {"3", "Bad file: missing, damaged, not what it must be."},
        {"4", "Unsupported here: well-formed, but not something that this build or machine can "
              "do."},
        {"5", "A check failed: zeros do not fit a pattern, verify --strict, a kernel that "
              "differs from the reference."},
        {"6", "Out of memory."},
        {"130", "Interrupted; half-written folders are removed."},
    };
    fputs(".SH EXIT STATUS\n", stream);
    for (int i = 0; i < COUNT(codes); i++) {
        roff_tagged(codes[i][0], codes[i][1], stream);
    }
}

static void roff_environment(FILE *stream)
{
    fputs(".SH ENVIRONMENT\nOptions win over the environment.\n", stream);
    for (const cli_option *option = common_option_table; option->name != NULL; option++) {
        if (option->environment != NULL) {
            fprintf(stream, ".TP\n.B %s\nDefault of \\fB\\-\\-%s\\fR.\n", option->environment,
                    option->name);
        }
    }
    roff_tagged("ESPALIER_CPU",
                "Limits the instruction set: auto, portable, avx2, avx512, avx512bf16 or amx.",
                stream);
    roff_tagged("ESPALIER_TUNING",
                "The file of measured times, kept by tune; empty: none. By default espalier/tuning "
                "in $XDG_CACHE_HOME, else in ~/.cache.",
                stream);
    roff_tagged("NO_COLOR", "Switches colour off when set.", stream);
    roff_tagged("TMPDIR", "Folder of temporary files.", stream);
}

static void generate_man(FILE *stream)
{
    fprintf(
        stream,
        ".TH ESPALIER 1 \"\" \"espalier %s\" \"User Commands\"\n.SH NAME\n"
        "espalier \\- prune, compress and run transformer models, and show what it gains\n"
        ".SH SYNOPSIS\n.B espalier\n.I COMMAND\n[arguments] [options]\n.br\n"
        ".B espalier\n.I COMMAND\n.B \\-\\-help\n.br\n.B espalier \\-\\-version\n"
        ".SH DESCRIPTION\n"
        "Takes a trained transformer, prunes its weights to a pattern that hardware runs fast,\n"
        "compresses what is left, runs it, and measures what that cost and gained next to\n"
        "the dense model.\n.PP\n"
        "Results go to standard output, everything else to standard error. With\n"
        ".B \\-\\-json\neach line of standard output is one JSON object with \"schema\" and\n"
        "\"version\".\n.SH COMMANDS\n",
        esp_version());
    for (int i = 0; commands[i] != NULL; i++) {
        roff_command(commands[i], stream);
    }
    fputs(".SH OPTIONS OF EVERY COMMAND\n", stream);
    roff_options(common_option_table, stream);
    roff_exit_codes(stream);
    roff_environment(stream);
    fputs(".SH SEE ALSO\n.BR espalier\\-format (5)\n", stream);
}

/* ---- bash completion ---- */

/* What the shell should offer for an option's value: a list of words, or files, or nothing. */
static void bash_values(const cli_option *option, FILE *stream)
{
    static const char *const file_arguments[] = {"FILE", "FOLDER", "MODEL"};
    if (option->kind == OPTION_CHOICE) {
        fputs("words '", stream);
        for (int i = 0; option->choices[i] != NULL; i++) {
            fprintf(stream, "%s%s", i > 0 ? " " : "", option->choices[i]);
        }
        fputs("'", stream);
        return;
    }
    for (int i = 0; i < COUNT(file_arguments); i++) {
        if (strcmp(option->argument, file_arguments[i]) == 0) {
            fputs("files", stream);
            return;
        }
    }
    if (strcmp(option->argument, "PATTERN") == 0) {
        fputs("words 'dense 2:4 4:8 1:4 64:2:5 64:2:8 128:2:8 panel:64@0.75'", stream);
    } else if (strcmp(option->name, "device") == 0) {
        fputs("words 'cpu ref'", stream);
    } else {
        fputs("words ''", stream);
    }
}

/* Cases "COMMAND|--name" of options that take a value; command NULL: any. */
static void bash_value_cases(const char *command, const cli_option *options, FILE *stream)
{
    char head[32];
    snprintf(head, sizeof head, "%s'%s|'", command != NULL ? "" : "*",
             command != NULL ? command : "");
    for (; options->name != NULL; options++) {
        if (options->kind == OPTION_FLAG) {
            continue;
        }
        fprintf(stream, "    %s--%s", head, options->name);
        if (options->letter != '\0') {
            fprintf(stream, " | %s-%c", head, options->letter);
        }
        fputs(") _espalier_", stream);
        bash_values(options, stream);
        fputs("; return ;;\n", stream);
    }
}

static void bash_names(const cli_option *options, FILE *stream)
{
    for (; options->name != NULL; options++) {
        fprintf(stream, " --%s", options->name);
    }
}

/* The words behind "espalier", and each command's own options. */
static void bash_commands(FILE *stream)
{
    fputs("    '')\n        case $cur in\n"
          "        -*) _espalier_words '--help --version' ;;\n        *) _espalier_words '",
          stream);
    for (int i = 0; commands[i] != NULL; i++) {
        fprintf(stream, "%s%s", i > 0 ? " " : "", commands[i]->name);
    }
    fputs("' ;;\n        esac\n        return ;;\n", stream);
    for (int i = 0; commands[i] != NULL; i++) {
        fprintf(stream, "    %s) options='", commands[i]->name);
        bash_names(commands[i]->options, stream);
        fputs("' ;;\n", stream);
    }
}

/* Where nothing is answered, bash offers files. */
static const char bash_helpers[] =
    "# bash completion for espalier; made from its option tables.\n"
    "# Patterns hold characters at which bash breaks words: answers are matched against the whole\n"
    "# word, and what bash holds for done is taken off them.\n"
    "_espalier_words() {\n"
    "    local breaks=${COMP_WORDBREAKS//[!:=@]/} done='' i\n"
    "    [ -n \"$breaks\" ] && done=${cur%\"${cur##*[$breaks]}\"}\n"
    "    compopt +o default 2>/dev/null\n"
    "    COMPREPLY=($(compgen -W \"$1\" -- \"$cur\"))\n"
    "    for i in \"${!COMPREPLY[@]}\"; do\n"
    "        COMPREPLY[i]=${COMPREPLY[i]#\"$done\"}\n"
    "    done\n"
    "}\n"
    "_espalier_files() { COMPREPLY=(); }\n"
    "_espalier() {\n"
    "    local line=${COMP_LINE:0:COMP_POINT} cur prev command='' options=''\n"
    "    local -a typed\n"
    "    COMPREPLY=()\n"
    "    read -ra typed <<<\"$line\"\n"
    "    case $line in *[[:space:]]) typed+=('') ;; esac\n"
    "    cur=${typed[${#typed[@]} - 1]} prev=${typed[${#typed[@]} - 2]}\n"
    "    [ ${#typed[@]} -gt 2 ] && command=${typed[1]}\n"
    "    case $COMP_WORDBREAKS in\n"
    "    *=*) case $cur in --*=*) prev=${cur%%=*} cur=${cur#*=} ;; esac ;;\n"
    "    esac\n"
    "    case \"$command|$prev\" in\n";

static void generate_bash(FILE *stream)
{
    fputs(bash_helpers, stream);
    for (int i = 0; commands[i] != NULL; i++) {
        bash_value_cases(commands[i]->name, commands[i]->options, stream);
    }
    bash_value_cases(NULL, common_option_table, stream);
    fputs("    esac\n    case $command in\n", stream);
    bash_commands(stream);
    fputs("    *) return ;;\n    esac\n    case $cur in\n    -*) _espalier_words \"$options",
          stream);
    bash_names(common_option_table, stream);
    fputs("\" ;;\n    esac\n}\ncomplete -o default -F _espalier espalier\n", stream);
}

bool generate(const char *what, FILE *stream)
{
    if (strcmp(what, "man") == 0) {
        generate_man(stream);
        return true;
    }
    if (strcmp(what, "bash") == 0) {
        generate_bash(stream);
        return true;
    }
    return false;
}
