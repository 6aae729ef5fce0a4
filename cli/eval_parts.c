/* Intervals of an evaluation and its parts, as text and JSON. */
#include "eval_parts.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "load.h"

/* ---- sizes of documents ---- */

static esp_status bad_size(const char *path, int64_t line, esp_error *error)
{
    return cli_fail(error, ESP_BAD_FILE, "text.bad_size",
                    "%s, line %lld: a number of bytes was expected, from 0 to 999999999999999999",
                    path, (long long)line);
}

/* The number that a line begins with; white space or the line's end follows it. */
static bool parse_size(const char *line, const char *end, size_t *size)
{
    size_t value = 0;
    const char *at = line;
    for (; at < end && *at >= '0' && *at <= '9' && at - line < 18; at++) {
        value = 10 * value + (size_t)(*at - '0');
    }
    *size = value;
    return at > line && (at == end || *at == ' ' || *at == '\t' || *at == '\r');
}

static esp_status parse_sizes(eval_parts *parts, const char *text, size_t length, esp_error *error)
{
    const char *end = text + length;
    int64_t line = 0, lines = 1;
    for (size_t i = 0; i < length; i++) {
        lines += text[i] == '\n';
    }
    parts->document_bytes = calloc((size_t)lines, sizeof *parts->document_bytes);
    if (parts->document_bytes == NULL) {
        return cli_fail(error, ESP_OUT_OF_MEMORY, "memory", "no memory for %lld documents",
                        (long long)lines);
    }
    while (text < end) {
        const char *stop = memchr(text, '\n', (size_t)(end - text));
        stop = stop != NULL ? stop : end;
        line++;
        if (!parse_size(text, stop, &parts->document_bytes[parts->document_count])) {
            return bad_size(parts->args->documents, line, error);
        }
        parts->document_count++;
        text = stop + 1;
    }
    return line > 0 ? ESP_OK : bad_size(parts->args->documents, 1, error);
}

esp_status eval_parts_open(eval_parts *parts, const eval_parts_args *args, esp_error *error)
{
    *parts = (eval_parts){.args = args, .list = record_list()};
    if (args->documents == NULL) {
        return ESP_OK;
    }
    char *text = NULL;
    size_t length = 0;
    TRY(load_text(args->documents, &text, &length, error));
    esp_status status = parse_sizes(parts, text, length, error);
    free(text);
    return status;
}

void eval_parts_free(eval_parts *parts)
{
    free(parts->document_bytes);
    record_free(&parts->list);
}

/* ---- what is seen ---- */

static void add_part(void *user, const esp_eval_part *part)
{
    eval_parts *parts = user;
    cli_record record = record_object();
    record_int(&record, "index", part->index);
    record_int(&record, "tokens", part->tokens);
    record_real(&record, "nats", part->nats);
    record_real(&record, "baseline_nats", part->baseline_nats);
    record_real(&record, "kl", part->kl);
    record_int(&record, "top1", part->top1);
    record_add(&parts->list, record);
}

esp_eval_parts eval_parts_options(eval_parts *parts)
{
    const eval_parts_args *args = parts->args;
    bool seen = args->bootstrap > 0 || args->documents != NULL;
    return (esp_eval_parts){.document_bytes = parts->document_bytes,
                            .document_count = parts->document_count,
                            .resamples = args->bootstrap,
                            .seed = (uint64_t)args->seed,
                            .on_part = seen ? add_part : NULL,
                            .user = parts};
}

/* ---- what is shown ---- */

static void print_interval(const char *what, esp_interval interval)
{
    printf("%-16s %s %.5f to %.5f\n", "", what, interval.low, interval.high);
}

void eval_parts_print(const eval_parts *parts, const esp_eval_intervals *intervals, bool baseline,
                      bool images)
{
    if (intervals->resamples == 0) {
        return;
    }
    printf("%-16s 95 %%, %lld resamples of %lld %s, seed %lld\n", "intervals",
           (long long)intervals->resamples, (long long)intervals->parts,
           images                          ? "images"
           : parts->document_bytes != NULL ? "documents"
                                           : "windows",
           (long long)parts->args->seed);
    if (images) {
        print_interval("top-1", intervals->top1);
    }
    print_interval(images ? "nats an image" : "nats a token", intervals->nats);
    if (baseline) {
        print_interval("above the baseline's nats", intervals->excess);
        print_interval("mean KL", intervals->kl);
    }
}

static void record_interval(cli_record *record, const char *key, esp_interval interval)
{
    cli_record pair = record_object();
    record_real(&pair, "low", interval.low);
    record_real(&pair, "high", interval.high);
    record_child(record, key, pair);
}

void eval_parts_json(eval_parts *parts, const esp_eval_intervals *intervals, bool baseline,
                     bool images, cli_record *record)
{
    const eval_parts_args *args = parts->args;
    if (intervals->resamples > 0) {
        cli_record shown = record_object();
        record_real(&shown, "level", 0.95);
        record_int(&shown, "resamples", intervals->resamples);
        record_int(&shown, "parts", intervals->parts);
        record_int(&shown, "seed", args->seed);
        record_interval(&shown, "mean_nats", intervals->nats);
        if (images) {
            record_interval(&shown, "top1", intervals->top1);
        }
        if (baseline) {
            record_interval(&shown, "excess_nats", intervals->excess);
            record_interval(&shown, "mean_kl", intervals->kl);
        }
        record_child(record, "intervals", shown);
    }
    if (intervals->resamples > 0 || args->documents != NULL) {
        record_child(record, "parts", parts->list);
        parts->list = (cli_record){0};
    }
}
