/* eval --bootstrap: intervals, and the documents that they are made of. */
#ifndef CLI_EVAL_PARTS_H
#define CLI_EVAL_PARTS_H

#include <stddef.h>

#include "cli.h"
#include "output.h"

typedef struct eval_parts_args {
    const char *documents; /* file, or NULL */
    int64_t bootstrap, seed;
} eval_parts_args;

/* Entries of an option table for the struct `type` that holds an eval_parts_args named `parts`. */
#define EVAL_PARTS_OPTIONS(type)                                                                   \
    {.name = "bootstrap",                                                                          \
     .kind = OPTION_INTEGER,                                                                       \
     .offset = offsetof(type, parts.bootstrap),                                                    \
     .argument = "N",                                                                              \
     .help = "of texts and images: 95 % intervals from N resamples of documents or images; 0: "    \
             "none",                                                                               \
     .fallback = "0",                                                                              \
     .least = 0,                                                                                   \
     .most = 1000000},                                                                             \
        {.name = "documents",                                                                      \
         .kind = OPTION_TEXT,                                                                      \
         .offset = offsetof(type, parts.documents),                                                \
         .argument = "FILE",                                                                       \
         .help = "with --text: the bytes of its documents, one after the other, a number a line "  \
                 "(what follows it is a comment); without: every window is one"},                  \
    {                                                                                              \
        .name = "seed", .kind = OPTION_INTEGER, .offset = offsetof(type, parts.seed),              \
        .argument = "N", .help = "with --bootstrap: chooses the resamples", .fallback = "0",       \
        .least = 0, .most = INT64_MAX                                                              \
    }

typedef struct eval_parts {
    const eval_parts_args *args;
    size_t *document_bytes; /* NULL: none given */
    int64_t document_count;
    cli_record list; /* of the parts that were seen */
} eval_parts;

/* To be freed after a failure too. */
ESP_MUST_CHECK esp_status eval_parts_open(eval_parts *parts, const eval_parts_args *args,
                                          esp_error *error);
void eval_parts_free(eval_parts *parts);
/* Valid as long as `parts`. */
esp_eval_parts eval_parts_options(eval_parts *parts);

/* Lines "  95 %  ..." of text; nothing where no intervals were asked for. */
void eval_parts_print(const eval_parts *parts, const esp_eval_intervals *intervals, bool baseline,
                      bool images);
/* Members "intervals" and "parts"; the latter takes over what was collected. */
void eval_parts_json(eval_parts *parts, const esp_eval_intervals *intervals, bool baseline,
                     bool images, cli_record *record);

#endif
