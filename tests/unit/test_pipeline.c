/* prune and convert on whole folders: what is written is what mask and format say, nothing else
 * changes, and after any failure the target is as it was and nothing is left over. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "safetensors_bytes.h"
#include "unit/pipeline_tools.h"

/* ---- tools ---- */

static bool same_file(const char *a, const char *b)
{
    FILE *x = fopen(a, "rb"), *y = fopen(b, "rb");
    int p = 0, q = 0;
    while (x != NULL && y != NULL && p == q && p != EOF) {
        p = getc(x);
        q = getc(y);
    }
    bool same = x != NULL && y != NULL && p == q;
    if (x != NULL) {
        fclose(x);
    }
    if (y != NULL) {
        fclose(y);
    }
    return same;
}

typedef struct seen_layer {
    char name[96], note[96];
    bool pruned;
    char pattern[ESP_PATTERN_TEXT_MAX];
    size_t stored_bytes;
    esp_mask_report mask;
} seen_layer;

typedef struct seen_layers {
    int count;
    seen_layer layers[32];
} seen_layers;

static void remember(void *user, const esp_layer_report *layer)
{
    seen_layers *seen = user;
    seen_layer *next = &seen->layers[seen->count++ % 32];
    *next = (seen_layer){
        .pruned = layer->pruned, .stored_bytes = layer->stored_bytes, .mask = layer->mask};
    snprintf(next->name, sizeof next->name, "%s", layer->name);
    snprintf(next->note, sizeof next->note, "%s", layer->note);
    esp_pattern_print(&layer->pattern, next->pattern);
}

static const seen_layer *layer_named(const seen_layers *seen, const char *name)
{
    static const seen_layer none = {.pattern = "absent"};
    for (int i = 0; i < seen->count; i++) {
        if (strcmp(seen->layers[i].name, name) == 0) {
            return &seen->layers[i];
        }
    }
    return &none;
}

/* The dense tensor as it should come back. */
static void expect_tensor(test_run *run, esp_context *context, const esp_checkpoint *source,
                          const esp_checkpoint *target, int64_t index)
{
    esp_weight_info weight = esp_checkpoint_get(target, index);
    esp_tensor expected, actual;
    int64_t at = esp_checkpoint_find(source, weight.name);
    size_t bytes = 0;
    REQUIRE(at >= 0);
    REQUIRE_OK(
        esp_tensor_create(context, weight.dtype, weight.rank, weight.shape, &expected, error));
    REQUIRE_OK(esp_tensor_create(context, weight.dtype, weight.rank, weight.shape, &actual, error));
    CHECK_OK(esp_tensor_size(&actual, NULL, &bytes, error));
    CHECK_OK(esp_checkpoint_read_dense(source, at, &expected, error));
    CHECK_OK(esp_checkpoint_read_dense(target, index, &actual, error));
    if (weight.pattern.kind != ESP_PATTERN_DENSE) {
        esp_mask *mask = NULL;
        CHECK_OK(esp_prune_mask(context, &expected, &weight.pattern, NULL, &mask, NULL, error));
        CHECK(mask != NULL && esp_mask_apply(mask, &expected, NULL) == ESP_OK);
        esp_mask_free(mask);
    }
    CHECK(memcmp(expected.data, actual.data, bytes) == 0);
    esp_tensor_free(context, &expected);
    esp_tensor_free(context, &actual);
}

/* ---- prune ---- */

static const char *const patterns[] = {
    "2:4", "16:2:8", "64:2:8", "128:2:8",       "64:2:5",       "32:2:7",        "16:2:32",
    "4:8", "1:16",   "3:7",    "panel:16@0.75", "panel:64@0.5", "panel:1000@0.9"};

static void written_is_what_was_masked(test_run *run)
{
    const char *dense = tiny_dense(run);
    for (int i = 0; i < ESP_COUNT(patterns); i++) {
        test_sub(run, "%s", patterns[i]);
        esp_context *context = test_context(run, 1 + i % 3);
        char out[1024];
        snprintf(out, sizeof out, "%s/masked-%d", test_folder(run), i);
        esp_prune_options options = with_pattern(run, patterns[i]);
        seen_layers seen = {0};
        esp_prune_summary summary = {0};
        options.on_layer = remember;
        options.user = &seen;
        CHECK_OK(esp_prune_checkpoint(context, dense, out, &options, &summary, error));
        CHECK_INT(summary.layers, 14);
        CHECK_INT(summary.pruned_layers, 14);
        CHECK_INT(summary.pruned_weights, 92160);
        CHECK_INT(summary.source_bytes, 217984);
        CHECK_INT(summary.pruned_source_bytes, 184320);
        CHECK_INT(summary.stored_bytes - summary.pruned_stored_bytes, 217984 - 184320);
        CHECK_INT(seen.count, 20);
        esp_checkpoint *source = NULL, *target = NULL;
        CHECK_OK(esp_checkpoint_open(context, dense, &source, error));
        CHECK_OK(esp_checkpoint_open(context, out, &target, error));
        size_t stored = 0;
        for (int64_t t = 0; target != NULL && t < esp_checkpoint_count(target); t++) {
            expect_tensor(run, context, source, target, t);
            stored += esp_checkpoint_get(target, t).stored_bytes;
        }
        CHECK_INT(stored, summary.stored_bytes);
        CHECK(target != NULL && esp_checkpoint_count(target) == 20);
        CHECK(target != NULL && esp_checkpoint_is_compressed(target));
        esp_checkpoint_close(target);
        esp_checkpoint_close(source);
        CHECK(same_file(test_path(out, "tokenizer.json"), test_path(dense, "tokenizer.json")));
        test_context_free(run, context);
    }
}

static void dry_run_foretells(test_run *run)
{
    const char *dense = tiny_dense(run);
    esp_context *context = test_context(run, 2);
    for (int i = 0; i < ESP_COUNT(patterns); i++) {
        test_sub(run, "%s", patterns[i]);
        char out[1024];
        snprintf(out, sizeof out, "%s/foretold-%d", test_folder(run), i);
        seen_layers foretold = {0}, done = {0};
        esp_prune_summary before = {0}, after = {0};
        esp_prune_options options = with_pattern(run, patterns[i]);
        options.on_layer = remember;
        options.user = &foretold;
        options.dry_run = true;
        CHECK_OK(esp_prune_checkpoint(context, dense, out, &options, &before, error));
        CHECK(!esp_path_exists(out));
        options.user = &done;
        CHECK_OK(esp_prune_checkpoint(context, dense, NULL, &options, NULL, error));
        CHECK_INT(done.count, foretold.count);
        done.count = 0;
        options.dry_run = false;
        CHECK_OK(esp_prune_checkpoint(context, dense, out, &options, &after, error));
        CHECK_INT(before.stored_bytes, after.stored_bytes);
        CHECK_INT(before.pruned_layers, after.pruned_layers);
        CHECK_INT(before.pruned_stored_bytes, after.pruned_stored_bytes);
        for (int k = 0; k < done.count; k++) {
            CHECK_TEXT(foretold.layers[k].pattern, done.layers[k].pattern);
            CHECK_TEXT(foretold.layers[k].note, done.layers[k].note);
            CHECK_INT(foretold.layers[k].stored_bytes, done.layers[k].stored_bytes);
        }
    }
    test_context_free(run, context);
}

/* ---- which layer gets what ---- */

static const struct {
    const char *what;
    const char *rules[3]; /* GLOB=PATTERN */
    const char *skips[2];
    const char *layer, *pattern, *note;
} choices[] = {
    {"default", {NULL}, {NULL}, "model.layers.0.mlp.up_proj.weight", "64:2:8", ""},
    {"clamped",
     {NULL},
     {NULL},
     "model.layers.0.self_attn.k_proj.weight",
     "32:2:8",
     "V=64 clamped to out=32"},
    {"embedding", {NULL}, {NULL}, "model.embed_tokens.weight", "dense", "embedding"},
    {"norm", {NULL}, {NULL}, "model.norm.weight", "dense", "not rank 2"},
    {"rule", {"*.mlp.*=2:4"}, {NULL}, "model.layers.0.mlp.up_proj.weight", "2:4", ""},
    {"rule, other layer",
     {"*.mlp.*=2:4"},
     {NULL},
     "model.layers.0.self_attn.q_proj.weight",
     "64:2:8",
     ""},
    {"rule without .weight",
     {"*.up_proj=4:8"},
     {NULL},
     "model.layers.1.mlp.up_proj.weight",
     "4:8",
     ""},
    {"first rule wins",
     {"*.0.mlp.*=16:2:8", "*.mlp.*=2:4"},
     {NULL},
     "model.layers.0.mlp.gate_proj.weight",
     "16:2:8",
     ""},
    {"second rule",
     {"*.0.mlp.*=16:2:8", "*.mlp.*=2:4"},
     {NULL},
     "model.layers.1.mlp.gate_proj.weight",
     "2:4",
     ""},
    {"dense by rule",
     {"*.down_proj*=dense"},
     {NULL},
     "model.layers.1.mlp.down_proj.weight",
     "dense",
     "dense by rule"},
    {"skip", {NULL}, {"*.layers.1.*"}, "model.layers.1.mlp.up_proj.weight", "dense", "skipped"},
    {"skip wins over rule",
     {"*=2:4"},
     {"*.q_proj"},
     "model.layers.0.self_attn.q_proj.weight",
     "dense",
     "skipped"},
    {"a rule for all leaves the embedding",
     {"*=2:4"},
     {NULL},
     "model.embed_tokens.weight",
     "dense",
     "embedding"},
    {"set in a glob",
     {"*.[qk]_proj*=2:4"},
     {NULL},
     "model.layers.0.self_attn.k_proj.weight",
     "2:4",
     ""},
    {"skip of what stays dense anyway",
     {NULL},
     {"*embed*"},
     "model.embed_tokens.weight",
     "dense",
     "embedding"},
};

static void set_rules(test_run *run, const char *const *texts, char globs[3][64],
                      esp_pattern_rule *rules, esp_prune_options *options)
{
    for (int i = 0; i < 3 && texts[i] != NULL; i++) {
        const char *equals = strrchr(texts[i], '=');
        snprintf(globs[i], 64, "%.*s", (int)(equals - texts[i]), texts[i]);
        rules[i].glob = globs[i];
        CHECK_OK(esp_pattern_parse(equals + 1, &rules[i].pattern, error));
        options->rule_count = i + 1;
    }
    options->rules = rules;
}

static void layers_are_chosen(test_run *run)
{
    const char *dense = tiny_dense(run);
    esp_context *context = test_context(run, 1);
    for (int i = 0; i < ESP_COUNT(choices); i++) {
        test_sub(run, "%s", choices[i].what);
        esp_pattern_rule rules[3];
        char globs[3][64];
        seen_layers seen = {0};
        esp_prune_options options = with_pattern(run, "64:2:8");
        set_rules(run, choices[i].rules, globs, rules, &options);
        options.skips = choices[i].skips;
        options.skip_count = choices[i].skips[0] != NULL;
        options.dry_run = true;
        options.on_layer = remember;
        options.user = &seen;
        CHECK_OK(esp_prune_checkpoint(context, dense, NULL, &options, NULL, error));
        const seen_layer *layer = layer_named(&seen, choices[i].layer);
        CHECK_TEXT(layer->pattern, choices[i].pattern);
        CHECK_TEXT(layer->note, choices[i].note);
        CHECK_INT(layer->pruned, strcmp(choices[i].pattern, "dense") != 0);
    }
    test_context_free(run, context);
}

/* A row of 2 weights is smaller dense than as 2:4; no columns at all is no layer to prune. */
static void small_layers_stay_dense(test_run *run)
{
    static const char header[] =
        "{\"a.weight\":{\"dtype\":\"F16\",\"shape\":[1,2],\"data_offsets\":[0,4]},"
        "\"b.weight\":{\"dtype\":\"F16\",\"shape\":[0,8],\"data_offsets\":[4,4]},"
        "\"c.weight\":{\"dtype\":\"F16\",\"shape\":[2,8],\"data_offsets\":[4,36]},"
        "\"d.weight\":{\"dtype\":\"I8\",\"shape\":[2,2],\"data_offsets\":[36,40]}}";
    const char *folder = test_path(test_folder(run), "small");
    esp_context *context = test_context(run, 1);
    CHECK_OK(esp_folder_create(folder, error));
    write_safetensors(run, test_path(folder, "model.safetensors"), header, NULL, 40);
    write_text(run, test_path(folder, "config.json"), "{\"architectures\": [\"None\"]}");
    seen_layers seen = {0};
    esp_prune_options options = with_pattern(run, "2:4");
    options.on_layer = remember;
    options.user = &seen;
    esp_prune_summary summary = {0};
    const char *out = test_path(test_folder(run), "small-out");
    CHECK_OK(esp_prune_checkpoint(context, folder, out, &options, &summary, error));
    CHECK_TEXT(layer_named(&seen, "a.weight")->note, "would not get smaller");
    CHECK_TEXT(layer_named(&seen, "b.weight")->note, "empty");
    CHECK_TEXT(layer_named(&seen, "c.weight")->pattern, "2:4");
    CHECK_TEXT(layer_named(&seen, "d.weight")->note, "type is not F32, F16 or BF16");
    CHECK_INT(summary.layers, 3);
    CHECK_INT(summary.pruned_layers, 1);
    esp_checkpoint *target = NULL;
    CHECK_OK(esp_checkpoint_open(context, out, &target, error));
    CHECK(target != NULL && esp_checkpoint_count(target) == 4);
    esp_checkpoint_close(target);
    test_context_free(run, context);
}

static void write_heads(test_run *run, const char *folder, const char *const *names, int count)
{
    char header[2048];
    int used = 0;
    for (int i = 0; i < count; i++) {
        used += snprintf(header + used, sizeof header - (size_t)used,
                         "%c\"%s\":{\"dtype\":\"F16\",\"shape\":[8,64],\"data_offsets\":[%d,%d]}",
                         i == 0 ? '{' : ',', names[i], 1024 * i, 1024 * (i + 1));
    }
    snprintf(header + used, sizeof header - (size_t)used, "}");
    CHECK_OK(esp_folder_create(folder, error));
    write_safetensors(run, test_path(folder, "model.safetensors"), header, NULL,
                      1024 * (size_t)count);
    write_text(run, test_path(folder, "config.json"), "{\"architectures\": [\"None\"]}");
}

/* Classifier heads and poolers: dense by default, pruned by a rule that names them. */
static void heads_stay_dense(test_run *run)
{
    static const struct {
        const char *name, *note;
    } layers[] = {{"classifier.weight", "classifier head"},
                  {"vit.pooler.dense.weight", "pooler"},
                  {"distillation_classifier.weight", "classifier head"},
                  {"head.weight", "classifier head"},
                  {"head_dist.weight", "classifier head"},
                  {"score.weight", "classifier head"},
                  {"qa_outputs.weight", "output head"},
                  {"vit.encoder.layer.0.output.dense.weight", ""}};
    const char *folder = test_path(test_folder(run), "heads"), *names[ESP_COUNT(layers)];
    const esp_pattern_rule rules[] = {
        {.glob = "*", .pattern = {.kind = ESP_PATTERN_PANEL}},
        {.glob = "classifier", .pattern = {.kind = ESP_PATTERN_PANEL}}};
    static const int pruned_by[] = {1, ESP_COUNT(layers), 2};
    esp_context *context = test_context(run, 1);
    for (int i = 0; i < ESP_COUNT(layers); i++) {
        names[i] = layers[i].name;
    }
    write_heads(run, folder, names, ESP_COUNT(layers));
    for (int way = 0; way < 3; way++) {
        seen_layers seen = {0};
        esp_prune_summary summary = {0};
        esp_prune_options options = with_pattern(run, "2:4");
        options.rules = way > 0 ? &rules[way - 1] : NULL;
        options.rule_count = way > 0;
        options.dry_run = true;
        options.on_layer = remember;
        options.user = &seen;
        test_sub(run, "%s", way > 0 ? options.rules->glob : "no rule");
        CHECK_OK(esp_prune_checkpoint(context, folder, NULL, &options, &summary, error));
        CHECK_INT(summary.layers, ESP_COUNT(layers));
        CHECK_INT(summary.pruned_layers, pruned_by[way]);
        for (int i = 0; i < ESP_COUNT(layers); i++) {
            bool pruned = way == 1 || layers[i].note[0] == '\0' || (way == 2 && i == 0);
            CHECK_TEXT(layer_named(&seen, names[i])->note, pruned ? "" : layers[i].note);
            CHECK_INT(layer_named(&seen, names[i])->pruned, pruned);
        }
    }
    test_context_free(run, context);
}

/* ---- refusals ---- */

static bool stop_at(void *user, const char *what, double done, double total, const char *unit)
{
    int *left = user;
    (void)what, (void)unit;
    return done <= total && (*left)-- > 0;
}

static void refusals(test_run *run)
{
    const char *dense = tiny_dense(run), *folder = test_folder(run);
    const char *out = test_path(folder, "refused"), *pruned = test_path(folder, "pruned-before");
    esp_context *context = test_context(run, 2);
    esp_prune_options options = with_pattern(run, "64:2:8");
    CHECK_OK(esp_prune_checkpoint(context, dense, pruned, &options, NULL, error));
    const char *foreign = test_path(folder, "foreign");
    CHECK(tiny_model_write(foreign, "plain"));
    int before = test_entries(folder);
    static const char *const nothing[] = {"*nothing*"};
    esp_pattern_rule rule = {.glob = "model.embed_tokens*", .pattern = options.pattern};

    test_sub(run, "rule that reaches only the embedding");
    options.rules = &rule;
    options.rule_count = 1;
    CHECK_FAILS(esp_prune_checkpoint(context, dense, out, &options, NULL, error), ESP_BAD_ARGUMENT,
                "prune.glob_matches_nothing");
    test_sub(run, "rule that reaches nothing");
    rule.glob = "x";
    CHECK_FAILS(esp_prune_checkpoint(context, dense, out, &options, NULL, error), ESP_BAD_ARGUMENT,
                "prune.glob_matches_nothing");
    test_sub(run, "skip that reaches nothing");
    options = with_pattern(run, "64:2:8");
    options.skips = nothing;
    options.skip_count = 1;
    CHECK_FAILS(esp_prune_checkpoint(context, dense, out, &options, NULL, error), ESP_BAD_ARGUMENT,
                "prune.glob_matches_nothing");
    test_sub(run, "compressed already");
    options = with_pattern(run, "64:2:8");
    CHECK_FAILS(esp_prune_checkpoint(context, pruned, out, &options, NULL, error), ESP_BAD_ARGUMENT,
                "prune.already_compressed");
    test_sub(run, "no target");
    CHECK_FAILS(esp_prune_checkpoint(context, dense, NULL, &options, NULL, error), ESP_BAD_ARGUMENT,
                "prune.no_target");
    CHECK_FAILS(
        esp_convert_checkpoint(context, pruned, NULL, ESP_CONVERT_DENSE, &options, NULL, error),
        ESP_BAD_ARGUMENT, "convert.no_target");
    test_sub(run, "no model");
    CHECK_FAILS(
        esp_prune_checkpoint(context, test_path(folder, "absent"), out, &options, NULL, error),
        ESP_BAD_FILE, NULL);
    test_sub(run, "target is there");
    CHECK_FAILS(esp_prune_checkpoint(context, dense, pruned, &options, NULL, error), ESP_FAILED,
                "checkpoint.exists");
    test_sub(run, "target is somebody else's");
    options.force = true;
    CHECK_FAILS(esp_prune_checkpoint(context, dense, foreign, &options, NULL, error), ESP_FAILED,
                "checkpoint.not_ours");
    test_sub(run, "target is the source");
    CHECK_FAILS(esp_prune_checkpoint(context, dense, dense, &options, NULL, error),
                ESP_BAD_ARGUMENT, "checkpoint.same_folder");
    test_sub(run, "forced over our own");
    CHECK_OK(esp_prune_checkpoint(context, dense, pruned, &options, NULL, error));
    test_sub(run, "pattern out of range");
    options.pattern = (esp_pattern){.kind = ESP_PATTERN_NM, .keep = 5, .group = 4};
    CHECK_FAILS(esp_prune_checkpoint(context, dense, out, &options, NULL, error), ESP_BAD_ARGUMENT,
                NULL);
    test_sub(run, "nothing is left over");
    CHECK(!esp_path_exists(out));
    CHECK_INT(test_entries(folder), before);
    test_context_free(run, context);
}

static void interrupts_leave_nothing(test_run *run)
{
    const char *dense = tiny_dense(run), *folder = test_folder(run);
    const char *out = test_path(folder, "interrupted");
    esp_context *context = test_context(run, 1);
    int before = test_entries(folder);
    for (int calls = 0; calls <= 21; calls++) {
        test_sub(run, "at step %d", calls);
        int left = calls;
        esp_prune_options options = with_pattern(run, "2:4");
        options.progress = stop_at;
        options.user = &left;
        if (calls < 21) {
            CHECK_FAILS(esp_prune_checkpoint(context, dense, out, &options, NULL, error),
                        ESP_CANCELLED, "cancelled");
            CHECK(!esp_path_exists(out));
            CHECK_INT(test_entries(folder), before);
        } else {
            CHECK_OK(esp_prune_checkpoint(context, dense, out, &options, NULL, error));
        }
    }
    test_context_free(run, context);
}

/* ---- convert ---- */

static void forms_round_trip(test_run *run)
{
    const char *dense = tiny_dense(run), *folder = test_folder(run);
    static const char *const fitting[] = {"2:4", "64:2:8", "128:2:5", "4:8", "16:2:32"};
    for (int i = 0; i < ESP_COUNT(fitting); i++) {
        test_sub(run, "%s", fitting[i]);
        esp_context *context = test_context(run, 2);
        char pruned[1024], zeros[1024], again[1024];
        snprintf(pruned, sizeof pruned, "%s/trip-%d", folder, i);
        snprintf(zeros, sizeof zeros, "%s/trip-%d-dense", folder, i);
        snprintf(again, sizeof again, "%s/trip-%d-again", folder, i);
        esp_prune_options options = with_pattern(run, fitting[i]);
        esp_prune_summary summary = {0};
        CHECK_OK(esp_prune_checkpoint(context, dense, pruned, &options, NULL, error));
        CHECK_OK(esp_convert_checkpoint(context, pruned, zeros, ESP_CONVERT_DENSE, &options,
                                        &summary, error));
        CHECK_INT(summary.pruned_layers, 14);
        CHECK_INT(summary.stored_bytes, 217984);
        CHECK_FAILS(
            esp_convert_checkpoint(context, zeros, again, ESP_CONVERT_DENSE, &options, NULL, error),
            ESP_BAD_ARGUMENT, "convert.not_compressed");
        esp_checkpoint *converted = NULL;
        CHECK_OK(esp_checkpoint_open(context, zeros, &converted, error));
        CHECK(converted != NULL && !esp_checkpoint_is_compressed(converted));
        esp_checkpoint_close(converted);
        CHECK_OK(esp_convert_checkpoint(context, zeros, again, ESP_CONVERT_COMPRESS, &options,
                                        &summary, error));
        CHECK_INT(summary.pruned_layers, 14);
        CHECK(same_file(test_path(pruned, "model.safetensors"),
                        test_path(again, "model.safetensors")));
        test_context_free(run, context);
    }
}

static void misfits_are_named(test_run *run)
{
    const char *dense = tiny_dense(run), *folder = test_folder(run);
    const char *pruned = test_path(folder, "misfit"), *zeros = test_path(folder, "misfit-dense");
    const char *out = test_path(folder, "misfit-out");
    static const char *const skips[] = {"model.layers.1.mlp.up_proj"};
    esp_context *context = test_context(run, 1);
    esp_prune_options options = with_pattern(run, "64:2:8");
    options.skips = skips;
    options.skip_count = 1;
    CHECK_OK(esp_prune_checkpoint(context, dense, pruned, &options, NULL, error));
    CHECK_OK(
        esp_convert_checkpoint(context, pruned, zeros, ESP_CONVERT_DENSE, &options, NULL, error));
    int before = test_entries(folder);
    esp_prune_options all = with_pattern(run, "64:2:8");
    esp_error why = {0};
    CHECK_INT(esp_convert_checkpoint(context, zeros, out, ESP_CONVERT_COMPRESS, &all, NULL, &why),
              ESP_CHECK_FAILED);
    CHECK_TEXT(why.code, "convert.does_not_fit");
    CHECK(strstr(why.message, "model.layers.1.mlp.up_proj.weight") != NULL);
    CHECK(strstr(why.message, "panel 0") != NULL);
    CHECK(!esp_path_exists(out));
    CHECK_INT(test_entries(folder), before);
    CHECK_OK(
        esp_convert_checkpoint(context, zeros, out, ESP_CONVERT_COMPRESS, &options, NULL, error));
    test_context_free(run, context);
}

/* A second pattern for the layers that the first run left alone: what is compressed is carried
 * over. */
static void compressed_layers_are_carried_over(test_run *run)
{
    const char *dense = tiny_dense(run), *folder = test_folder(run);
    const char *first = test_path(folder, "first"), *second = test_path(folder, "second");
    static const char *const mlp[] = {"*.mlp.*"}, *const attention[] = {"*.self_attn.*"};
    esp_context *context = test_context(run, 1);
    esp_prune_options options = with_pattern(run, "64:2:8");
    options.skips = mlp;
    options.skip_count = 1;
    CHECK_OK(esp_prune_checkpoint(context, dense, first, &options, NULL, error));
    options = with_pattern(run, "2:4");
    options.skips = attention;
    options.skip_count = 1;
    CHECK_OK(esp_prune_checkpoint(context, first, second, &options, NULL, error));
    esp_checkpoint *target = NULL, *source = NULL;
    CHECK_OK(esp_checkpoint_open(context, second, &target, error));
    CHECK_OK(esp_checkpoint_open(context, dense, &source, error));
    int counts[2] = {0};
    for (int64_t i = 0; target != NULL && i < esp_checkpoint_count(target); i++) {
        esp_weight_info weight = esp_checkpoint_get(target, i);
        expect_tensor(run, context, source, target, i);
        counts[0] += weight.pattern.kind == ESP_PATTERN_PANEL && weight.pattern.m == 8;
        counts[1] += esp_pattern_is_2_4(&weight.pattern);
    }
    CHECK_INT(counts[0], 8);
    CHECK_INT(counts[1], 6);
    esp_checkpoint_close(source);
    esp_checkpoint_close(target);
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"written is what was masked", written_is_what_was_masked},
    {"dry run foretells", dry_run_foretells},
    {"layers are chosen", layers_are_chosen},
    {"small layers stay dense", small_layers_stay_dense},
    {"heads stay dense", heads_stay_dense},
    {"refusals", refusals},
    {"interrupts leave nothing", interrupts_leave_nothing},
    {"forms round trip", forms_round_trip},
    {"misfits are named", misfits_are_named},
    {"compressed layers are carried over", compressed_layers_are_carried_over},
};
TEST_MAIN(cases)
