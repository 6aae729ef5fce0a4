/* Texts line by line: what `run` and `eval` do with encoders, and questions for decoders. */
#ifndef CLI_TEXTS_H
#define CLI_TEXTS_H

#include "explain.h"
#include "load.h"

/* ---- run: vectors (run_texts.c) ---- */

typedef struct run_texts_args {
    text_list texts;
    const char *file; /* a text a line */
} run_texts_args;

/* Entries of an option table for the struct `type` that holds a run_texts_args named `texts`. */
#define RUN_TEXTS_OPTIONS(type)                                                                    \
    {.name = "text",                                                                               \
     .letter = 't',                                                                                \
     .kind = OPTION_LIST,                                                                          \
     .offset = offsetof(type, texts.texts),                                                        \
     .argument = "TEXT",                                                                           \
     .help = "encoders: a text to make a vector of; may be given several times"},                  \
    {                                                                                              \
        .name = "text-file", .kind = OPTION_TEXT, .offset = offsetof(type, texts.file),            \
        .argument = "FILE", .help = "encoders: a text a line; - for standard input"                \
    }

bool run_texts_wanted(const run_texts_args *args);
/* cli->plan is set. */
ESP_MUST_CHECK esp_status run_texts(cli_state *cli, const run_texts_args *args, esp_error *error);

/* ---- eval: retrieval (eval_retrieval.c) ---- */

/* file: pairs, "query<TAB>document" a line. baseline: a model's folder, or NULL. */
ESP_MUST_CHECK esp_status eval_retrieval(cli_state *cli, const char *file, const char *baseline,
                                         esp_error *error);

/* ---- eval: multiple choice (eval_choices.c) ---- */

/* file: a JSON object a line, {"context": TEXT, "choices": [TEXT, ...], "answer": NUMBER}. */
ESP_MUST_CHECK esp_status eval_choices(cli_state *cli, const char *file, const char *baseline,
                                       esp_error *error);

/* ---- all of them ---- */

/* Texts of a file that lie in one block. */
typedef struct text_lines {
    char *block;
    esp_text *lines;
    int64_t count;
} text_lines;

/* Lines of the file ("-": standard input), ends of lines left out; a last line without one counts.
 * To be freed after a failure too. */
ESP_MUST_CHECK esp_status text_lines_load(const char *path, text_lines *lines, esp_error *error);
void text_lines_free(text_lines *lines);

/* "run.no_encoder", "run.no_decoder": the model is of the other kind; says what to do instead. */
ESP_MUST_CHECK esp_status check_decoder(const cli_state *cli, const loaded_model *loaded,
                                        esp_error *error);
ESP_MUST_CHECK esp_status check_encoder(const cli_state *cli, const loaded_model *loaded,
                                        esp_error *error);

#endif
