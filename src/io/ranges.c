/* Rules between the tensors of a safetensors file: each name once, and data ranges that lie side by
 * side from the first byte to the last, so that no byte is shared, hidden or missing. */
#include <inttypes.h>
#include <string.h>

#include "io/header_json.h"
#include "io/names.h"
#include "io/safetensors.h"

#define AGAIN "download or export the file again"

static int compare_names(const void *user, uint32_t a, uint32_t b)
{
    const esp_safetensors_entry *entries = user;
    return strcmp(entries[a].info.name, entries[b].info.name);
}

static int compare_keys(const void *user, uint32_t a, uint32_t b)
{
    const esp_metadata_entry *entries = user;
    return strcmp(entries[a].key, entries[b].key);
}

static int compare_ranges(const void *user, uint32_t a, uint32_t b)
{
    const esp_safetensors_entry *entries = user;
    if (entries[a].begin != entries[b].begin) {
        return entries[a].begin < entries[b].begin ? -1 : 1;
    }
    if (entries[a].end != entries[b].end) {
        return entries[a].end < entries[b].end ? -1 : 1;
    }
    return 0;
}

static esp_status make_order(esp_context *context, size_t count, uint32_t **order, esp_error *error)
{
    uint32_t *made = esp_alloc_array(context, count, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, count * sizeof *made, "an index of tensors");
    }
    for (size_t i = 0; i < count; i++) {
        made[i] = (uint32_t)i;
    }
    *order = made;
    return ESP_OK;
}

/* Byte in the file at which text of the header began. */
static uint64_t place_of(const esp_safetensors *file, const char *text)
{
    return ESP_HEADER_START + (uint64_t)(text - file->header);
}

static esp_status check_metadata_keys(esp_safetensors *file, esp_error *error)
{
    uint32_t *order = NULL;
    ESP_TRY(make_order(file->context, file->metadata_count, &order, error));
    esp_status status = esp_io_sort(file->context, order, file->metadata_count, compare_keys,
                                    file->metadata, error);
    for (size_t i = 1; status == ESP_OK && i < file->metadata_count; i++) {
        const char *key = file->metadata[order[i]].key;
        if (strcmp(file->metadata[order[i - 1]].key, key) == 0) {
            status = esp_fail(error, ESP_BAD_FILE, "safetensors.duplicate_metadata_key",
                              "%s: byte %" PRIu64 ": __metadata__ holds \"%s\" twice; " AGAIN,
                              file->path, place_of(file, key), esp_io_show(key).text);
        }
    }
    esp_release(file->context, order);
    return status;
}

esp_status esp_safetensors_check_names(esp_safetensors *file, esp_error *error)
{
    ESP_TRY(check_metadata_keys(file, error));
    ESP_TRY(make_order(file->context, file->count, &file->by_name, error));
    ESP_TRY(esp_io_sort(file->context, file->by_name, file->count, compare_names, file->entries,
                        error));
    for (size_t i = 1; i < file->count; i++) {
        const esp_safetensors_entry *a = &file->entries[file->by_name[i - 1]];
        const esp_safetensors_entry *b = &file->entries[file->by_name[i]];
        if (strcmp(a->info.name, b->info.name) == 0) {
            bool hidden = a->escaped || b->escaped;
            return esp_fail(
                error, ESP_BAD_FILE,
                hidden ? "safetensors.duplicate_key_escaped" : "safetensors.duplicate_key",
                "%s: byte %" PRIu64 ": tensor \"%s\" occurs twice%s, first at byte %" PRIu64
                "; programs would disagree on which one counts: export the file again",
                file->path, place_of(file, b->info.name), esp_io_show(b->info.name).text,
                hidden ? " (spelled differently, by an escape)" : "", place_of(file, a->info.name));
        }
    }
    return ESP_OK;
}

static esp_status check_neighbours(const esp_safetensors *file, size_t i, esp_error *error)
{
    const esp_safetensors_entry *entry = &file->entries[i];
    uint64_t expected = i > 0 ? entry[-1].end : 0;
    esp_shown name = esp_io_show(entry->info.name);
    if (entry->begin > expected) {
        return esp_fail(error, ESP_BAD_FILE,
                        i == 0 ? "safetensors.hole_at_start" : "safetensors.hole",
                        "%s: tensor \"%s\" begins at data byte %" PRIu64 ", expected %" PRIu64
                        ": bytes that no tensor owns lie before it; " AGAIN,
                        file->path, name.text, entry->begin, expected);
    }
    if (entry->begin < expected) {
        bool same = entry->begin == entry[-1].begin && entry->end == entry[-1].end;
        return esp_fail(error, ESP_BAD_FILE,
                        same ? "safetensors.identical_ranges" : "safetensors.overlap",
                        "%s: tensors \"%s\" and \"%s\" share bytes (data byte %" PRIu64
                        "); each must have its own: export the file again without shared tensors",
                        file->path, esp_io_show(entry[-1].info.name).text, name.text, entry->begin);
    }
    return ESP_OK;
}

/* The end of the last tensor must be the end of the file. */
static esp_status check_end(const esp_safetensors *file, esp_error *error)
{
    uint64_t start = ESP_HEADER_START + file->header_bytes;
    uint64_t have = file->file_bytes - start;
    uint64_t want = file->count > 0 ? file->entries[file->count - 1].end : 0;
    if (want > have) {
        return esp_fail(
            error, ESP_BAD_FILE, have == 0 ? "safetensors.data_missing" : "safetensors.truncated",
            "%s: cut short: its header describes a file of %" PRIu64 " bytes, this one has %" PRIu64
            "; the download was interrupted: download it "
            "again",
            file->path, start + want, file->file_bytes);
    }
    if (want < have) {
        return esp_fail(error, ESP_BAD_FILE, "safetensors.trailing_bytes",
                        "%s: byte %" PRIu64 ": %" PRIu64
                        " bytes that no tensor owns follow the last "
                        "tensor; the file should have %" PRIu64 " bytes; " AGAIN,
                        file->path, start + want, have - want, start + want);
    }
    return ESP_OK;
}

/* Puts the entries into the given order; by_name follows. place_of_old: room for count. */
static esp_status reorder(esp_safetensors *file, const uint32_t *order, uint32_t *place_of_old,
                          esp_error *error)
{
    esp_safetensors_entry *sorted = esp_alloc_array(file->context, file->count, sizeof *sorted);
    if (sorted == NULL) {
        return esp_fail_memory(error, file->count * sizeof *sorted, "tensor table");
    }
    for (size_t i = 0; i < file->count; i++) {
        sorted[i] = file->entries[order[i]];
        place_of_old[order[i]] = (uint32_t)i;
    }
    for (size_t i = 0; i < file->count; i++) {
        file->by_name[i] = place_of_old[file->by_name[i]];
    }
    esp_release(file->context, file->entries);
    file->entries = sorted;
    return ESP_OK;
}

static esp_status sort_by_range(esp_safetensors *file, esp_error *error)
{
    esp_context *context = file->context;
    uint32_t *order = NULL, *scratch = NULL;
    esp_status status = make_order(context, file->count, &order, error);
    if (status == ESP_OK) {
        status = make_order(context, file->count, &scratch, error);
    }
    if (status == ESP_OK) {
        status = esp_io_sort(context, order, file->count, compare_ranges, file->entries, error);
    }
    if (status == ESP_OK) {
        status = reorder(file, order, scratch, error);
    }
    esp_release(context, order);
    esp_release(context, scratch);
    return status;
}

esp_status esp_safetensors_check_ranges(esp_safetensors *file, esp_error *error)
{
    ESP_TRY(sort_by_range(file, error));
    for (size_t i = 0; i < file->count; i++) {
        ESP_TRY(check_neighbours(file, i, error));
    }
    return check_end(file, error);
}
