/* Where folders are written in tests: a parent with a source model and a name for the target. */
#ifndef TESTS_UNIT_WRITER_PLACE_H
#define TESTS_UNIT_WRITER_PLACE_H

#include <unistd.h>

#include "model_folder.h"

typedef struct place {
    char parent[900], source[1000], target[1000];
} place;

/* A fresh parent folder with a source model in it. */
static inline place make_place(test_run *run, esp_context *context)
{
    static int number;
    place made;
    snprintf(made.parent, sizeof made.parent, "%s/place%d", test_folder(run), number++);
    snprintf(made.source, sizeof made.source, "%s/source", made.parent);
    snprintf(made.target, sizeof made.target, "%s/target", made.parent);
    mkdir(made.parent, 0700);
    make_source_folder(run, context, made.source);
    return made;
}

static inline bool exists(const char *folder, const char *name)
{
    return access(test_path(folder, name), F_OK) == 0;
}

static inline esp_checkpoint_writer *make_writer(test_run *run, esp_context *context,
                                                 const place *at)
{
    esp_checkpoint *source = NULL;
    esp_checkpoint_writer *writer = NULL;
    CHECK_OK(esp_checkpoint_open(context, at->source, &source, error));
    CHECK_OK(esp_checkpoint_writer_create(context, source, at->target, false, &writer, error));
    esp_checkpoint_close(source);
    return writer;
}

static inline void free_and_check(test_run *run, const place *at, esp_checkpoint_writer *writer)
{
    esp_checkpoint_writer_free(writer);
    CHECK_INT(test_entries(at->parent), 1);
}

#endif
