/* A whole small model on disk, and what must not change about folders when something fails. */
#ifndef ESP_TESTS_SMALL_MODEL_H
#define ESP_TESTS_SMALL_MODEL_H

#include <dirent.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <espalier/assess.h>
#include <espalier/prune.h>

#define TINY_HIDDEN_SIZE 16
#define TINY_FFN_SIZE 24
#define TINY_LAYER_COUNT 1
#include "cli/tiny_model.h"
#include "io/io.h"
#include "test.h"

typedef struct small_place {
    char parent[800], source[900], compressed[900], bitmask[900], target[900];
} small_place;

static inline esp_prune_options small_options(test_run *run, bool force)
{
    esp_prune_options options = {.force = force};
    CHECK_OK(esp_pattern_parse("8:2:8", &options.pattern, error));
    return options;
}

/* Before the first test_folder: thousands of small folders need no real disk where there is none to
 * spare. TMPDIR decides if it is set. */
static inline void prefer_memory_disk(void)
{
    if (access("/dev/shm", W_OK | X_OK) == 0) {
        setenv("TMPDIR", "/dev/shm", 0);
    }
}

/* PARENT/source (dense), PARENT/compressed, PARENT/bitmask, and PARENT/out/target, which is not
 * there yet. */
static inline small_place make_small_place(test_run *run, esp_context *context, const char *name)
{
    small_place at;
    char out[900];
    prefer_memory_disk();
    snprintf(at.parent, sizeof at.parent, "%s/%s", test_folder(run), name);
    snprintf(at.source, sizeof at.source, "%s/source", at.parent);
    snprintf(at.compressed, sizeof at.compressed, "%s/compressed", at.parent);
    snprintf(at.bitmask, sizeof at.bitmask, "%s/bitmask", at.parent);
    snprintf(out, sizeof out, "%s/out", at.parent);
    snprintf(at.target, sizeof at.target, "%s/target", out);
    mkdir(at.parent, 0700);
    mkdir(out, 0700);
    esp_prune_options options = small_options(run, false);
    CHECK(tiny_model_write(at.source, "plain"));
    /* A folder within goes along, as those of sentence-transformers do. */
    snprintf(out, sizeof out, "%s/1_Pooling", at.source);
    mkdir(out, 0700);
    test_write_file(run, test_path(out, "config.json"), "{}", 2);
    CHECK_OK(esp_prune_checkpoint(context, at.source, at.compressed, &options, NULL, error));
    CHECK_OK(esp_convert_checkpoint(context, at.compressed, at.bitmask, ESP_CONVERT_SPARSE_BITMASK,
                                    &options, NULL, error));
    return at;
}

/* Names and contents of all files of a folder, whatever order they are listed in; 0: no folder. */
static inline uint64_t folder_sum(const char *path)
{
    static char content[1 << 20];
    uint64_t sum = 1;
    DIR *folder = opendir(path);
    if (folder == NULL) {
        return 0;
    }
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        char name[1300];
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        struct stat facts;
        if (entry->d_name[0] != '.' && stat(name, &facts) == 0 && S_ISDIR(facts.st_mode)) {
            sum += 5 * folder_sum(name);
            continue;
        }
        FILE *file = entry->d_name[0] != '.' ? fopen(name, "rb") : NULL;
        if (file == NULL) {
            sum += entry->d_name[0] != '.';
            continue;
        }
        size_t length = fread(content, 1, sizeof content, file);
        fclose(file);
        uint32_t crc = esp_crc32c(0, entry->d_name, strlen(entry->d_name));
        sum += (uint64_t)esp_crc32c(crc, content, length) * (length + 3) + crc;
    }
    closedir(folder);
    return sum;
}

static inline int remove_entry(const char *path, const struct stat *facts, int kind,
                               struct FTW *place)
{
    (void)facts, (void)kind, (void)place;
    return remove(path);
}

/* With all below it. */
static inline void remove_folder(const char *path)
{
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

#endif
