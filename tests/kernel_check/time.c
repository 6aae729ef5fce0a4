/* --bench: each selected kernel, forced by name, against the dense ones, by the program's own
 * measurement (cli/bench_problem.c), at each selected level. */
#include "bench.h"
#include "check.h"

/* Problems of a size that a last-level cache holds, one of each kind that the format stores. */
static const char *const shapes[] = {"1024x1024x1", "1024x1024x128"};
static const char *const types[] = {"f32/c:f32", "f16/c:f32", "bf16/c:f32", "bf16/c:bf16"};
static const struct {
    const char *format, *pattern;
} patterns[] = {{"dense", "dense"},         {"panel", "64:2:8"},         {"nm", "4:8"},
                {"bsr", "block:32x32@0.8"}, {"csr", "unstructured@0.8"}, {"rows", "rows@0.5"},
                {"cols", "cols@0.5"}};

static bool can_run(const cli_state *cli, int kernel, const char *text)
{
    esp_matmul_problem problem;
    return esp_matmul_problem_parse(text, &problem, NULL) == ESP_OK &&
           esp_kernel_why_not(kernel, cli->device, &problem) == NULL;
}

/* The standard problems that the kernel takes; returns how many. */
static int list_problems(const cli_state *cli, int kernel, char texts[][ESP_PROBLEM_TEXT_MAX],
                         int capacity)
{
    int count = 0, of_type = ESP_COUNT(shapes), of_pattern = of_type * ESP_COUNT(types);
    for (int i = 0; i < ESP_COUNT(patterns) * of_pattern && count < capacity; i++) {
        const char *type = types[i / of_type % ESP_COUNT(types)], *options = strchr(type, '/');
        snprintf(texts[count], ESP_PROBLEM_TEXT_MAX, "matmul/%s/%.*s/%s/a:f32%s",
                 patterns[i / of_pattern].pattern, (int)(options - type), type, shapes[i % of_type],
                 options);
        bool wanted = strcmp(patterns[i / of_pattern].format, esp_kernel_get(kernel).format) == 0;
        count += wanted && can_run(cli, kernel, texts[count]);
    }
    return count;
}

static esp_status bench_kernel(cli_state *cli, int kernel, esp_error *error)
{
    enum { MOST = 64 };
    static char texts[MOST][ESP_PROBLEM_TEXT_MAX];
    const char *list[MOST];
    const char *asked = the_options.problem;
    int count = 1;
    if (asked == NULL) {
        count = list_problems(cli, kernel, texts, MOST);
        for (int i = 0; i < count; i++) {
            list[i] = texts[i];
        }
    } else {
        list[0] = asked;
        count = can_run(cli, kernel, asked);
    }
    cli->common.kernel = esp_kernel_get(kernel).name;
    return count > 0 ? bench_problems(cli, list, count, error) : ESP_OK;
}

static esp_status bench_level(const char *level, esp_error *error)
{
    bench_args args = {
        .rounds = the_options.rounds, .rotate = the_options.rotate, .against = "dense", .seed = 1};
    cli_state cli = {.args = &args, .common = {.json = the_options.json, .device = "cpu"}};
    esp_context_options options = {.threads = the_options.threads, .cpu_level = level};
    TRY(esp_context_create(&options, &cli.context, error));
    progress_begin(&cli.progress, true);
    esp_status status = cli_open_device(&cli, error);
    for (int i = 0; i < esp_kernel_count() && status == ESP_OK; i++) {
        esp_kernel_info info = esp_kernel_get(i);
        status = check_is_selected(&info) ? bench_kernel(&cli, i, error) : ESP_OK;
    }
    esp_device_close(cli.device);
    esp_context_free(cli.context);
    return status;
}

/* All levels only where they are asked for: lower ones are there to be right, not to be fast. */
esp_status check_bench(esp_error *error)
{
    const char *levels[MAX_LEVELS];
    int count = check_levels(levels);
    bool all = strcmp(the_options.level, "*") != 0;
    for (int i = 0; i < (all ? count : ESP_MIN(count, 1)); i++) {
        TRY(bench_level(levels[i], error));
    }
    return ESP_OK;
}
