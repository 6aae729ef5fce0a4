/* kernel_check [options]: checks every kernel of the cpu at every level of this processor against
 * the reference, and with --bench times them afterwards. Prints its seed first and, for a failure,
 * the command that replays it. Exit code 5 when a check failed. */
#include <getopt.h>

#include "check.h"

#define MOST_CASES 1024

check_options the_options = {.kernel = "*",
                             .level = "*",
                             .threads = 2,
                             .cases = 60,
                             .rounds = 9,
                             .rotate = -1,
                             .seed = 20261121};

static const char usage[] =
    "usage: kernel_check [options]\n"
    "  --list            kernels, and the levels of this processor that they are checked at\n"
    "  --kernel GLOB     only kernels of that name\n"
    "  --level GLOB      only levels of that name\n"
    "  --threads N       threads (2); some cases run with 1 and 3 besides and must give equal "
    "bits\n"
    "  --cases N         problems per kernel and kind of input (60)\n"
    "  --inputs KIND     exact or random; without, both\n"
    "  --problem TEXT    this problem instead of drawn ones; --seed is then the case's own\n"
    "  --seed S          of everything that is random\n"
    "  --bench           then time each kernel against the dense ones, at the best level or "
    "--level\n"
    "  --json            with --bench: JSON lines\n"
    "  --rounds N        with --bench: interleaved rounds (9)\n"
    "  --rotate BYTES    with --bench: as for `espalier bench`\n"
    "  -v                name the cases that passed\n";

static bool number(const char *text, int64_t least, int64_t most, int64_t *value)
{
    char *end;
    *value = strtoll(text, &end, 0);
    return end != text && *end == '\0' && *value >= least && *value <= most;
}

static bool set_option(int letter, const char *text)
{
    int64_t value = 0;
    char *end;
    switch (letter) {
    case 'k':
        the_options.kernel = text;
        return true;
    case 'l':
        the_options.level = text;
        return true;
    case 'p':
        the_options.problem = text;
        return true;
    case 'i':
        the_options.inputs = text;
        return strcmp(text, "exact") == 0 || strcmp(text, "random") == 0;
    case 's':
        the_options.seed = strtoull(text, &end, 0);
        return end != text && *end == '\0';
    case 't':
        return number(text, 1, 1024, &value) && (the_options.threads = (int)value) > 0;
    case 'c':
        return number(text, 1, MOST_CASES, &value) && (the_options.cases = (int)value) > 0;
    case 'r':
        return number(text, 1, 10000, &value) && (the_options.rounds = (int)value) > 0;
    case 'R':
        return number(text, -1, (int64_t)1 << 40, &the_options.rotate);
    default:
        return false;
    }
}

static bool read_options(int argc, char **argv, bool *verbose)
{
    static const struct option options[] = {
        {"kernel", 1, NULL, 'k'}, {"level", 1, NULL, 'l'},  {"problem", 1, NULL, 'p'},
        {"inputs", 1, NULL, 'i'}, {"seed", 1, NULL, 's'},   {"threads", 1, NULL, 't'},
        {"cases", 1, NULL, 'c'},  {"rounds", 1, NULL, 'r'}, {"rotate", 1, NULL, 'R'},
        {"bench", 0, NULL, 'b'},  {"json", 0, NULL, 'j'},   {"list", 0, NULL, 'L'},
        {NULL, 0, NULL, 0}};
    for (int letter; (letter = getopt_long(argc, argv, "v", options, NULL)) >= 0;) {
        if (letter == 'v') {
            *verbose = true;
        } else if (letter == 'b') {
            the_options.bench = true;
        } else if (letter == 'j') {
            the_options.json = true;
        } else if (letter == 'L') {
            the_options.list = true;
        } else if (!set_option(letter, optarg)) {
            return false;
        }
    }
    return optind == argc;
}

static void list(void)
{
    const char *levels[MAX_LEVELS];
    int count = check_levels(levels);
    for (int i = 0; i < count; i++) {
        printf("level %s\n", levels[i]);
    }
    for (int i = 0; i < esp_kernel_count(); i++) {
        esp_kernel_info info = esp_kernel_get(i);
        if (check_is_selected(&info)) {
            printf("%s: %s, %s\n", info.name, info.format, info.level);
        }
    }
}

int main(int argc, char **argv)
{
    static const test_case cases[] = {{"catalogue", check_catalogue}};
    bool verbose = false;
    if (!read_options(argc, argv, &verbose)) {
        fputs(usage, stderr);
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0); /* a crash loses nothing */
    if (the_options.list) {
        list();
        return 0;
    }
    FILE *notes = the_options.json ? stderr : stdout;
    fprintf(notes, "kernel_check: seed %llu\n", (unsigned long long)the_options.seed);
    check_catch_crashes();
    char flag[] = "-v";
    char *arguments[] = {argv[0], flag, NULL};
    if (test_main(verbose ? 2 : 1, arguments, cases, ESP_COUNT(cases)) != 0) {
        return 5;
    }
    esp_error error = {0};
    if (the_options.bench && check_bench(&error) != ESP_OK) {
        fprintf(stderr, "kernel_check: %s [%s]\n", error.message, error.code);
        return error.status == ESP_CHECK_FAILED ? 5 : 1;
    }
    return 0;
}
