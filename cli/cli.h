/* What every part of the program knows: the run's common options, the sub-commands, how to fail.
 *
 * The program uses the public headers only. A command's result goes to stdout, everything else
 * (progress, statistics, warnings, errors) to stderr. */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include <espalier/espalier.h>

#include "options.h"
#include "progress.h"

/* Options that every command takes. */
typedef struct common_options {
    bool json, quiet, verbose, help;
    int64_t threads;
    int compute; /* esp_compute */
    const char *device;
    const char *kernel; /* NULL: by score */
} common_options;

typedef struct plan_args plan_args; /* explain.h */

struct cli_state {
    const cli_command *command;
    common_options common;
    void *args;            /* the command's own options, command->args_bytes */
    const plan_args *plan; /* how kernels are chosen, part of args; NULL: as by default */
    int64_t plan_tokens;   /* token count that a loaded model's forms are chosen for; 0: 1 */
    const char **operands;
    int operand_count;
    cli_progress progress;
    esp_context *context;
    esp_device *device; /* NULL until cli_open_device */
};

struct cli_command {
    const char *name;
    const char *summary;  /* one line */
    const char *operands; /* as in the usage line */
    int least_operands, most_operands;
    const char *notes;         /* paragraphs at the end of the help; NULL: none */
    const cli_option *options; /* ends with a zero entry */
    size_t args_bytes;
    esp_status (*run)(cli_state *cli, esp_error *error);
};

extern const cli_command *const commands[]; /* NULL-terminated */
extern const cli_option common_option_table[];
extern const cli_command info_command, advise_command, prune_command, shrink_command, turn_command,
    convert_command, eval_command, run_command, bench_command, tune_command, verify_command,
    kernels_command, devices_command;

/* Fills error with one printable line and returns status. */
esp_status cli_fail(esp_error *error, esp_status status, const char *code, const char *format, ...)
    ESP_PRINTF(4, 5);
esp_status cli_fail_memory(esp_error *error, const char *what);

#define TRY(expression)                                                                            \
    do {                                                                                           \
        esp_status try_status_ = (expression);                                                     \
        if (try_status_ != ESP_OK) {                                                               \
            return try_status_;                                                                    \
        }                                                                                          \
    } while (0)
#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

/* An esp_progress_fn for what begins with a cli_state *, as views and reports do. */
bool cli_progress_step(void *user, const char *what, double done, double total, const char *unit);

/* Opens cli->device, once. */
ESP_MUST_CHECK esp_status cli_open_device(cli_state *cli, esp_error *error);

/* Revision that was built, "unknown" outside of a checkout. */
const char *cli_commit(void);

#endif
