/* The tuning table as text, and what it is keyed by. The text is for people to read and for this
 * parser alone to write and read:
 *
 *     espalier-tuning 1
 *     device cpu | Intel(R) ... | avx512 | threads 2 | memory 16 GiB | espalier 0.1.0
 *     problem 1764078602 matmul/64:2:8/bf16/4096x4096x16/a:f32/c:f32
 *     time 1022000 matmul_panel_bf16_f32__cpu_avx512
 *     end 1 89abcdef
 *
 * A device line holds for the problems below it, a problem line (seconds since 1970) for the times
 * (nanoseconds) below it. The last line has the number of problems and the CRC-32C of all bytes
 * above it: a text that is cut or changed anywhere is refused whole. */
#include "plan/plan.h"

#include <ctype.h>
#include <stdio.h>
#include <time.h>

#define MAGIC "espalier-tuning "
#define VERSION 1
#define MAX_TIMES 4096 /* of a problem */
#define KERNEL_MAX 128

/* ---- reading ---- */

typedef struct reader {
    esp_context *context;
    const char *at, *end;
    int64_t line;
    esp_tuning_table made; /* one group per problem, in the order of the text; not sorted */
    char device[ESP_DEVICE_IDENTITY_MAX];
} reader;

static esp_status bad_line(const reader *text, const char *expected, esp_error *error)
{
    return esp_fail(error, ESP_BAD_FILE, "tuning.bad_line",
                    "tuning: line %lld: %s was expected; tune again", (long long)text->line,
                    expected);
}

static esp_status damaged(const char *what, esp_error *error)
{
    return esp_fail(error, ESP_BAD_FILE, "tuning.damaged",
                    "tuning: the text is damaged: %s; tune again", what);
}

/* A decimal number without leading zeros, up to `most`; *at moves behind it. */
static bool read_number(const char **at, const char *end, int64_t most, int64_t *value)
{
    const char *begin = *at;
    int64_t number = 0;
    for (; *at < end && isdigit((unsigned char)**at); (*at)++) {
        if (number > (most - (**at - '0')) / 10) {
            return false;
        }
        number = 10 * number + (**at - '0');
    }
    *value = number;
    return *at > begin && (*begin != '0' || *at == begin + 1);
}

static bool starts(const char *at, const char *end, const char *word)
{
    size_t length = strlen(word);
    return (size_t)(end - at) >= length && memcmp(at, word, length) == 0;
}

static esp_status check_magic(const char *text, size_t length, esp_error *error)
{
    const char *end = text + length, *at = text + strlen(MAGIC);
    int64_t version;
    if (length > ESP_TUNING_MAX_BYTES) {
        return esp_fail(error, ESP_BAD_FILE, "tuning.too_large",
                        "tuning: %zu bytes are more than a tuning table ever has (%zu)", length,
                        ESP_TUNING_MAX_BYTES);
    }
    if (!starts(text, end, MAGIC) || !read_number(&at, end, INT32_MAX, &version) || at == end ||
        *at != '\n' || version < 1) {
        return esp_fail(error, ESP_BAD_FILE, "tuning.not_tuning_file",
                        "tuning: the text does not begin with '" MAGIC "%d'; it is not a tuning "
                        "table of espalier",
                        VERSION);
    }
    if (version > VERSION) {
        return esp_fail(error, ESP_BAD_FILE, "tuning.newer_version",
                        "tuning: the text has version %lld, this library reads up to %d; use a "
                        "newer espalier, or tune again into another file",
                        (long long)version, VERSION);
    }
    return ESP_OK;
}

/* Finds the last line and checks what it says; *body_end is where it begins. */
static esp_status check_end(const char *text, size_t length, const char **body_end,
                            int64_t *problems, esp_error *error)
{
    const char *end = text + length, *last = end - 1;
    if (length == 0 || *last != '\n') {
        return damaged("its last line is cut", error);
    }
    while (last > text && last[-1] != '\n') {
        last--;
    }
    const char *at = last + 4;
    char expected[16];
    if (!starts(last, end, "end ") || !read_number(&at, end, INT64_MAX / 16, problems)) {
        return damaged("its last line is missing", error);
    }
    uint32_t crc = esp_crc32c(0, text, (size_t)(last - text));
    snprintf(expected, sizeof expected, " %08x\n", crc);
    if ((size_t)(end - at) != strlen(expected) || memcmp(at, expected, strlen(expected)) != 0) {
        return damaged("its checksum is wrong", error);
    }
    *body_end = last;
    return ESP_OK;
}

static esp_status read_device(reader *text, const char *at, const char *end, esp_error *error)
{
    size_t length = (size_t)(end - at);
    bool printable = length > 0 && length < sizeof text->device;
    for (size_t i = 0; printable && i < length; i++) {
        printable = at[i] >= 0x20 && at[i] < 0x7f;
    }
    if (!printable) {
        return bad_line(text, "a device in printable characters", error);
    }
    memcpy(text->device, at, length);
    text->device[length] = '\0';
    return ESP_OK;
}

static esp_status read_problem(reader *text, const char *at, const char *end, esp_error *error)
{
    char name[ESP_PROBLEM_TEXT_MAX], again[ESP_PROBLEM_TEXT_MAX];
    esp_matmul_problem problem;
    int64_t when;
    if (text->device[0] == '\0' || !read_number(&at, end, INT64_MAX / 16, &when) || at == end ||
        *at++ != ' ' || (size_t)(end - at) >= sizeof name) {
        return bad_line(text, "'problem SECONDS PROBLEM' below a device", error);
    }
    memcpy(name, at, (size_t)(end - at));
    name[end - at] = '\0';
    if (esp_matmul_problem_parse(name, &problem, NULL) != ESP_OK ||
        problem.compute == ESP_COMPUTE_AUTO) {
        return bad_line(text, "a valid problem with its compute type", error);
    }
    esp_matmul_problem_print(&problem, again);
    if (strcmp(name, again) != 0) {
        return bad_line(text, "a problem as it is printed", error);
    }
    esp_tuning_table *made = &text->made;
    esp_tuning_family(&problem, again);
    ESP_TRY(esp_tuning_group_make(text->context, text->device, again, problem.tokens, when,
                                  &made->groups[made->count], error));
    made->count++;
    return ESP_OK;
}

static esp_status read_time(reader *text, const char *at, const char *end, esp_error *error)
{
    char kernel[KERNEL_MAX];
    int64_t ns;
    esp_tuning_table *made = &text->made;
    bool right = made->count > 0 && made->groups[made->count - 1].count < MAX_TIMES &&
                 read_number(&at, end, INT64_MAX / 16, &ns) && ns > 0 && at < end && *at++ == ' ' &&
                 at < end && (size_t)(end - at) < sizeof kernel;
    for (const char *name = at; right && name < end; name++) {
        right = islower((unsigned char)*name) || isdigit((unsigned char)*name) || *name == '_';
    }
    if (!right) {
        return bad_line(text, "'time NANOSECONDS KERNEL' below a problem", error);
    }
    memcpy(kernel, at, (size_t)(end - at));
    kernel[end - at] = '\0';
    esp_tuning_group *group = &made->groups[made->count - 1];
    if (esp_tuning_group_find(group, kernel) != 0) {
        return bad_line(text, "each kernel once", error);
    }
    return esp_tuning_group_add(text->context, group, kernel, ns, error);
}

static esp_status read_line(reader *text, esp_error *error)
{
    const char *begin = text->at;
    const char *end = memchr(begin, '\n', (size_t)(text->end - begin)); /* the last byte is one */
    text->at = end + 1;
    text->line++;
    if (starts(begin, end, "time ")) {
        return read_time(text, begin + 5, end, error);
    }
    if (starts(begin, end, "problem ")) {
        return read_problem(text, begin + 8, end, error);
    }
    if (starts(begin, end, "device ")) {
        return read_device(text, begin + 7, end, error);
    }
    return bad_line(text, "device, problem or time", error);
}

static int64_t count_problems(const char *at, const char *end)
{
    int64_t count = 0;
    for (; at < end; at = (const char *)memchr(at, '\n', (size_t)(end - at)) + 1) {
        count += starts(at, end, "problem ");
    }
    return count;
}

esp_status esp_tuning_read(esp_context *context, const char *text, size_t length, esp_error *error)
{
    int64_t problems = 0;
    reader lines = {.context = context, .line = 1};
    ESP_TRY(check_magic(text, length, error));
    ESP_TRY(check_end(text, length, &lines.end, &problems, error));
    lines.at = (const char *)memchr(text, '\n', length) + 1;
    if (count_problems(lines.at, lines.end) != problems) {
        return damaged("its last line has another number of problems", error);
    }
    lines.made.groups = esp_alloc_array(context, (size_t)problems, sizeof *lines.made.groups);
    if (lines.made.groups == NULL) {
        return esp_fail_memory(error, (size_t)problems, "the tuning table");
    }
    esp_status status = ESP_OK;
    while (lines.at < lines.end && status == ESP_OK) {
        status = read_line(&lines, error);
    }
    if (status == ESP_OK) {
        return esp_tuning_table_merge(context, &context->tuning, &lines.made, error);
    }
    esp_tuning_table_clear(context, &lines.made);
    return status;
}

/* ---- writing ---- */

static void print_group(esp_buffer *text, const esp_tuning_group *group, const char *device_above)
{
    char name[ESP_PROBLEM_TEXT_MAX];
    esp_matmul_problem problem = {0};
    if (esp_matmul_problem_parse(group->family, &problem, NULL) == ESP_OK) { /* it was one */
        problem.tokens = group->tokens;
    }
    esp_matmul_problem_print(&problem, name);
    if (device_above == NULL || strcmp(device_above, group->device) != 0) {
        esp_buffer_printf(text, "device %s\n", group->device);
    }
    esp_buffer_printf(text, "problem %lld %s\n", (long long)group->when, name);
    for (int i = 0; i < group->count; i++) {
        esp_buffer_printf(text, "time %lld %s\n", (long long)group->times[i].ns,
                          group->times[i].kernel);
    }
}

esp_status esp_tuning_write(esp_context *context, esp_write_fn write, void *user, esp_error *error)
{
    esp_tuning_table *table = &context->tuning;
    esp_buffer text;
    esp_buffer_init(&text, context);
    pthread_mutex_lock(&table->lock);
    esp_buffer_printf(&text, MAGIC "%d\n", VERSION);
    for (int64_t i = 0; i < table->count; i++) {
        print_group(&text, &table->groups[i], i > 0 ? table->groups[i - 1].device : NULL);
    }
    int64_t count = table->count;
    pthread_mutex_unlock(&table->lock);
    if (!text.failed) {
        uint32_t crc = esp_crc32c(0, text.data, text.length);
        esp_buffer_printf(&text, "end %lld %08x\n", (long long)count, crc);
    }
    esp_status status = ESP_OK;
    if (text.failed) {
        status = esp_fail_memory(error, text.length, "the tuning table");
    } else {
        write(user, text.data, text.length);
    }
    esp_buffer_free(&text);
    return status;
}

/* ---- the rest ---- */

int64_t esp_tuning_count(esp_context *context)
{
    pthread_mutex_lock(&context->tuning.lock);
    int64_t count = context->tuning.count;
    pthread_mutex_unlock(&context->tuning.lock);
    return count;
}

void esp_tuning_clear(esp_context *context)
{
    pthread_mutex_lock(&context->tuning.lock);
    esp_tuning_table_clear(context, &context->tuning);
    pthread_mutex_unlock(&context->tuning.lock);
}

esp_status esp_tuning_put(esp_device *device, const esp_matmul_problem *resolved,
                          const esp_plan_candidate *candidates, int count, esp_error *error)
{
    esp_context *context = device->context;
    char family[ESP_PROBLEM_TEXT_MAX];
    esp_tuning_table one = {.count = 0};
    esp_tuning_family(resolved, family);
    one.groups = esp_alloc_array(context, 1, sizeof *one.groups);
    if (one.groups == NULL) {
        return esp_fail_memory(error, sizeof *one.groups, "the tuning table");
    }
    esp_status status =
        esp_tuning_group_make(context, esp_device_identity(device), family, resolved->tokens,
                              (int64_t)time(NULL), &one.groups[0], error);
    one.count = status == ESP_OK;
    for (int i = 0; i < count && status == ESP_OK; i++) {
        int64_t ns = (int64_t)(1e3 * candidates[i].tuned_us + 0.5);
        if (candidates[i].tuned_us > 0) {
            status = esp_tuning_group_add(context, &one.groups[0], candidates[i].kernel,
                                          ESP_MAX(ns, 1), error);
        }
    }
    if (status == ESP_OK) {
        return esp_tuning_table_merge(context, &context->tuning, &one, error);
    }
    esp_tuning_table_clear(context, &one);
    return status;
}
