/* espalier, the program: finds the command, reads its options, runs it, and turns its status into
 * an exit code. */
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "generate.h"
#ifdef ESP_HAVE_CUDA
#include "gpu.h"
#endif
#include "output.h"

const cli_command *const commands[] = {&info_command,    &advise_command,
                                       &prune_command,   &shrink_command,
                                       &turn_command,    &convert_command,
                                       &eval_command,    &run_command,
                                       &bench_command,   &tune_command,
                                       &verify_command,  &kernels_command,
                                       &devices_command, NULL};

static const char *const compute_names[] = {"auto", "f32", "bf16", NULL};

#define COMMON(member) offsetof(common_options, member)
const cli_option common_option_table[] = {
    {.name = "json",
     .kind = OPTION_FLAG,
     .offset = COMMON(json),
     .help = "print JSON lines instead of text"},
    {.name = "threads",
     .kind = OPTION_INTEGER,
     .offset = COMMON(threads),
     .argument = "N",
     .help = "threads; 0: one per core",
     .fallback = "0",
     .environment = "ESPALIER_THREADS",
     .least = 0,
     .most = 1024},
    {.name = "compute",
     .kind = OPTION_CHOICE,
     .offset = COMMON(compute),
     .argument = "TYPE",
     .help = "type of the inputs of products",
     .fallback = "auto",
     .choices = compute_names},
    {.name = "device",
     .kind = OPTION_TEXT,
     .offset = COMMON(device),
     .argument = "NAME",
     .help = "ref, cpu, cuda or cuda:N; see 'espalier devices'",
     .fallback = "cpu"},
    {.name = "kernel",
     .kind = OPTION_TEXT,
     .offset = COMMON(kernel),
     .argument = "GLOB",
     .help = "use only kernels of that name; see 'espalier kernels'"},
    {.name = "quiet",
     .letter = 'q',
     .kind = OPTION_FLAG,
     .offset = COMMON(quiet),
     .help = "no progress, no warnings, no statistics"},
    {.name = "verbose",
     .letter = 'v',
     .kind = OPTION_FLAG,
     .offset = COMMON(verbose),
     .help = "say more on stderr"},
    {.name = "help",
     .letter = 'h',
     .kind = OPTION_FLAG,
     .offset = COMMON(help),
     .help = "print this and exit"},
    {.name = NULL}};

static void log_line(void *user, esp_log_level level, const char *message)
{
    cli_state *cli = user;
    bool wanted = level == ESP_LOG_WARNING ? !cli->common.quiet : cli->common.verbose;
    if (wanted) {
        progress_end(&cli->progress);
        fprintf(stderr, "espalier: %s%s\n", level == ESP_LOG_WARNING ? "warning: " : "", message);
    }
}

static esp_status run_command_in_context(cli_state *cli, esp_error *error)
{
    const char *level = getenv("ESPALIER_CPU");
    esp_context_options options = {.threads = (int)cli->common.threads,
                                   .log = log_line,
                                   .log_user = cli,
                                   .cpu_level = level != NULL && level[0] != '\0' ? level : NULL};
    TRY(esp_context_create(&options, &cli->context, error));
    progress_begin(&cli->progress, cli->common.quiet);
    esp_status status = cli->command->run(cli, error);
    progress_end(&cli->progress);
    esp_device_close(cli->device);
    esp_context_free(cli->context);
    return status;
}

static const cli_command *find_command(const char *name)
{
    for (int i = 0; commands[i] != NULL; i++) {
        if (strcmp(commands[i]->name, name) == 0) {
            return commands[i];
        }
    }
    return NULL;
}

static esp_status unknown_command(const char *name, esp_error *error)
{
    const char *names[COUNT(commands)] = {NULL};
    for (int i = 0; commands[i] != NULL; i++) {
        names[i] = commands[i]->name;
    }
    const char *near = options_nearest(name, names);
    return cli_fail(error, ESP_BAD_ARGUMENT, "usage.unknown_command",
                    "unknown command '%s'%s%s%s; see 'espalier --help'", name,
                    near != NULL ? "; did you mean " : "", near != NULL ? near : "",
                    near != NULL ? "?" : "");
}

/* Also when parsing stopped before the flag was reached. */
static bool is_json_asked(int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--json") == 0) {
            return true;
        }
    }
    return false;
}

static esp_status run_program(int argc, char **argv, esp_error *error)
{
    const char *name = argc > 1 ? argv[1] : "";
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        options_help_program(stdout);
        return ESP_OK;
    }
    if (strcmp(name, "--version") == 0) {
        printf("espalier %s (%s)\n", esp_version(), cli_commit());
        return ESP_OK;
    }
    if (strcmp(name, "--generate") == 0 && argc == 3 && generate(argv[2], stdout)) {
        return ESP_OK;
    }
#ifdef ESP_HAVE_CUDA
    if (strcmp(name, GPU_CHILD_OPTION) == 0 && argc == 3) {
        return gpu_child_main(argv[2]) == 0 ? (esp_status)ESP_OK
                                            : cli_fail(error, ESP_UNSUPPORTED, "device.unusable",
                                                       "the GPU could not be opened again");
    }
#endif
    if (name[0] == '\0') {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.missing_command",
                        "a command is missing; see 'espalier --help'");
    }
    cli_state cli = {.command = find_command(name)};
    if (cli.command == NULL) {
        return unknown_command(name, error);
    }
    esp_status status = options_parse(&cli, argc - 2, argv + 2, error);
    if (status == ESP_OK && cli.common.help) {
        options_help_command(cli.command, stdout);
    } else if (status == ESP_OK) {
        status = run_command_in_context(&cli, error);
    }
    options_free(&cli);
    return status;
}

int main(int argc, char **argv)
{
    interrupts_install();
    esp_error error = {.code = "failed", .message = "no reason was given"};
    esp_status status = run_program(argc, argv, &error);
    if (status != ESP_OK) {
        output_error(&error, status, is_json_asked(argc, argv));
        fflush(stdout);
        return output_exit_code(status);
    }
    return output_finish() ? 0 : 1;
}
