/* Skips win over rules, the first rule wins over the default, which leaves out classifier heads and
 * poolers, and a layer whose compressed form would be no smaller than the dense one stays dense:
 * nobody gains by it. */
#include "pipeline/selection.h"

#include <stdio.h>
#include <string.h>

#include "prune/prune.h"

/* A glob names a tensor by its whole name, with or without ".weight". */
static bool glob_names(const char *glob, const char *name)
{
    if (esp_glob_match(glob, name)) {
        return true;
    }
    static const char suffix[] = ".weight";
    size_t length = strlen(name), tail = sizeof suffix - 1;
    char stem[1024];
    if (length < tail || length - tail >= sizeof stem ||
        strcmp(name + length - tail, suffix) != 0) {
        return false;
    }
    memcpy(stem, name, length - tail);
    stem[length - tail] = '\0';
    return esp_glob_match(glob, stem);
}

bool esp_selection_skips(const esp_prune_options *options, const char *name)
{
    for (int i = 0; i < options->skip_count; i++) {
        if (glob_names(options->skips[i], name)) {
            return true;
        }
    }
    return false;
}

const esp_pattern_rule *esp_selection_rule(const esp_prune_options *options, const char *name)
{
    for (int i = 0; i < options->rule_count; i++) {
        if (glob_names(options->rules[i].glob, name)) {
            return &options->rules[i];
        }
    }
    return NULL;
}

static bool reaches(const esp_checkpoint *source, const char *glob, bool linear_only)
{
    for (int64_t i = 0; i < esp_checkpoint_count(source); i++) {
        esp_weight_info weight = esp_checkpoint_get(source, i);
        if (glob_names(glob, weight.name) &&
            (!linear_only || esp_linear_layer_why_not(&weight) == NULL)) {
            return true;
        }
    }
    return false;
}

esp_status esp_selection_check_globs(const esp_checkpoint *source, const esp_prune_options *options,
                                     esp_error *error)
{
    const char *path = esp_checkpoint_path(source);
    for (int i = 0; i < options->rule_count; i++) {
        const char *from = options->rules[i].source;
        if (!reaches(source, options->rules[i].glob, true)) {
            return esp_fail(
                error, ESP_BAD_ARGUMENT, "prune.glob_matches_nothing",
                "%s%spattern rule '%s' names no linear layer of %s (embeddings, output heads "
                "and tensors that are not rank 2 stay dense); 'espalier info --tensors' "
                "lists the names",
                from != NULL ? from : "", from != NULL ? ": " : "", options->rules[i].glob, path);
        }
    }
    for (int i = 0; i < options->skip_count; i++) {
        if (!reaches(source, options->skips[i], false)) {
            return esp_fail(error, ESP_BAD_ARGUMENT, "prune.glob_matches_nothing",
                            "skip '%s' names no tensor of %s; 'espalier info --tensors' lists the "
                            "names",
                            options->skips[i], path);
        }
    }
    return ESP_OK;
}

static esp_status check_patterns(const esp_prune_options *options, esp_error *error)
{
    ESP_TRY(esp_pattern_check(&options->pattern, error));
    for (int i = 0; i < options->rule_count; i++) {
        if (esp_pattern_check(&options->rules[i].pattern, error) != ESP_OK) {
            return esp_fail_within(error, ESP_BAD_ARGUMENT, "pattern rule '%s'",
                                   options->rules[i].glob);
        }
    }
    return ESP_OK;
}

/* The pattern as this shape stores it. */
static esp_pattern clamp_pattern(const esp_pattern *pattern, const esp_weight_info *weight,
                                 esp_choice *choice)
{
    esp_pattern stored = *pattern;
    if (pattern->kind == ESP_PATTERN_PANEL && pattern->v > weight->shape[0]) {
        stored.v = esp_pattern_panel_rows(pattern, weight->shape[0]);
        snprintf(choice->note, sizeof choice->note, "V=%lld clamped to out=%lld",
                 (long long)pattern->v, (long long)weight->shape[0]);
    }
    return stored;
}

void esp_choice_stay_dense(esp_choice *choice, const esp_weight_info *weight, const char *note)
{
    choice->pruned = false;
    choice->pattern = weight->pattern;
    choice->stored_bytes = weight->stored_bytes;
    snprintf(choice->note, sizeof choice->note, "%s", note);
}

static esp_status choose(const esp_prune_options *options, const esp_weight_info *weight,
                         const esp_checkpoint *source, esp_choice *choice, esp_error *error)
{
    const char *why_not = esp_linear_layer_why_not(weight);
    const esp_pattern_rule *rule = esp_selection_rule(options, weight->name);
    const esp_pattern *pattern = rule != NULL ? &rule->pattern : &options->pattern;
    choice->linear = why_not == NULL;
    if (why_not != NULL) {
        esp_choice_stay_dense(choice, weight, why_not);
        return ESP_OK;
    }
    if (esp_selection_skips(options, weight->name)) {
        esp_choice_stay_dense(choice, weight, "skipped");
        return ESP_OK;
    }
    const char *outside = rule == NULL ? esp_linear_layer_outside(weight) : NULL;
    if (outside != NULL) {
        esp_choice_stay_dense(choice, weight, outside);
        return ESP_OK;
    }
    if (pattern->kind == ESP_PATTERN_DENSE) {
        esp_choice_stay_dense(choice, weight, rule != NULL ? "dense by rule" : "dense");
        return ESP_OK;
    }
    if (weight->shape[0] == 0 || weight->shape[1] == 0) {
        esp_choice_stay_dense(choice, weight, "empty");
        return ESP_OK;
    }
    /* A foreign form is only a way of storing zeros: from there everything may be chosen anew. */
    bool ours = esp_checkpoint_form(source) == ESP_FORM_ESPALIER;
    if (weight->pattern.kind != ESP_PATTERN_DENSE && ours) {
        char stored[ESP_PATTERN_TEXT_MAX];
        esp_pattern_print(&weight->pattern, stored);
        return esp_fail(error, ESP_BAD_ARGUMENT, "prune.already_compressed",
                        "%s: %s is stored as %s already; start from the dense model, or make one "
                        "with 'espalier convert --dense'",
                        esp_checkpoint_path(source), weight->name, stored);
    }
    choice->pruned = true;
    choice->pattern = clamp_pattern(pattern, weight, choice);
    bool has_rows = esp_prune_stores_rows(&options->mask, &choice->pattern, weight->shape[0]);
    if (esp_sparse_layout_bytes(&choice->pattern, weight->dtype, weight->shape[0], weight->shape[1],
                                has_rows, &choice->stored_bytes, error) != ESP_OK) {
        return esp_fail_within(error, ESP_UNSUPPORTED, "%s", weight->name);
    }
    if (choice->stored_bytes >= weight->dense_bytes) {
        esp_choice_stay_dense(choice, weight, "would not get smaller");
    }
    return ESP_OK;
}

esp_status esp_select_layers(esp_context *context, const esp_checkpoint *source,
                             const esp_prune_options *options, esp_selection *selection,
                             esp_error *error)
{
    ESP_TRY(check_patterns(options, error));
    ESP_TRY(esp_selection_check_globs(source, options, error));
    int64_t count = esp_checkpoint_count(source);
    esp_choice *choices = esp_alloc_array(context, (size_t)count, sizeof *choices);
    if (choices == NULL) {
        return esp_fail_memory(error, (size_t)count * sizeof *choices, "the list of layers");
    }
    for (int64_t i = 0; i < count; i++) {
        esp_weight_info weight = esp_checkpoint_get(source, i);
        esp_status status = choose(options, &weight, source, &choices[i], error);
        if (status != ESP_OK) {
            esp_release(context, choices);
            return status;
        }
    }
    *selection = (esp_selection){context, choices, count};
    return ESP_OK;
}

void esp_selection_free(esp_selection *selection)
{
    esp_release(selection->context, selection->choices);
}

esp_status esp_prune_patterns(esp_context *context, const esp_checkpoint *source,
                              const esp_prune_options *options, esp_pattern *patterns,
                              esp_error *error)
{
    esp_selection selection;
    ESP_TRY(esp_select_layers(context, source, options, &selection, error));
    for (int64_t i = 0; i < selection.count; i++) {
        const esp_choice *choice = &selection.choices[i];
        patterns[i] = choice->pruned ? choice->pattern : (esp_pattern){.kind = ESP_PATTERN_DENSE};
    }
    esp_selection_free(&selection);
    return ESP_OK;
}
