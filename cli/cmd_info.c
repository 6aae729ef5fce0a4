/* espalier info: what a checkpoint says about itself, without reading its weights. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "output.h"
#include "sizes.h"

typedef struct info_args {
    bool tensors;
} info_args;

/* Keys of config.json that say what kind of model it is. */
static const char *const facts[] = {"model_type",
                                    "hidden_size",
                                    "intermediate_size",
                                    "num_hidden_layers",
                                    "num_attention_heads",
                                    "num_key_value_heads",
                                    "head_dim",
                                    "vocab_size",
                                    "max_position_embeddings",
                                    "tie_word_embeddings",
                                    "torch_dtype"};

/* Tensors of one pattern and type. */
typedef struct weight_group {
    char pattern[ESP_PATTERN_TEXT_MAX];
    esp_dtype dtype;
    int64_t tensors, parameters;
    size_t dense_bytes, stored_bytes;
} weight_group;

typedef struct checkpoint_facts {
    const esp_checkpoint *checkpoint;
    json_t *config; /* NULL: none */
    weight_group *groups;
    int group_count;
    weight_group total;
} checkpoint_facts;

static int64_t elements(const esp_weight_info *weight)
{
    int64_t product = 1;
    for (int i = 0; i < weight->rank; i++) {
        product *= weight->shape[i];
    }
    return product;
}

static void add_weight(weight_group *group, const esp_weight_info *weight)
{
    group->tensors++;
    group->parameters += elements(weight);
    group->dense_bytes += weight->dense_bytes;
    group->stored_bytes += weight->stored_bytes;
}

static weight_group *find_group(checkpoint_facts *found, const esp_weight_info *weight)
{
    char pattern[ESP_PATTERN_TEXT_MAX];
    esp_pattern_print(&weight->pattern, pattern);
    for (int i = 0; i < found->group_count; i++) {
        if (found->groups[i].dtype == weight->dtype &&
            strcmp(found->groups[i].pattern, pattern) == 0) {
            return &found->groups[i];
        }
    }
    weight_group *groups =
        realloc(found->groups, ((size_t)found->group_count + 1) * sizeof *found->groups);
    if (groups == NULL) {
        return NULL;
    }
    found->groups = groups;
    weight_group *added = &groups[found->group_count++];
    *added = (weight_group){.dtype = weight->dtype};
    memcpy(added->pattern, pattern, sizeof pattern);
    return added;
}

static esp_status gather(checkpoint_facts *found, esp_error *error)
{
    const char *config = esp_checkpoint_config(found->checkpoint);
    found->config = config != NULL ? json_loads(config, 0, NULL) : NULL;
    for (int64_t i = 0; i < esp_checkpoint_count(found->checkpoint); i++) {
        esp_weight_info weight = esp_checkpoint_get(found->checkpoint, i);
        weight_group *group = find_group(found, &weight);
        if (group == NULL) {
            return cli_fail_memory(error, "the list of patterns");
        }
        add_weight(group, &weight);
        add_weight(&found->total, &weight);
    }
    return ESP_OK;
}

static const char *architecture(const checkpoint_facts *found)
{
    json_t *names = json_object_get(found->config, "architectures");
    const char *timm = json_string_value(json_object_get(found->config, "architecture"));
    return names != NULL ? json_string_value(json_array_get(names, 0)) : timm;
}

/* ---- JSON ---- */

static cli_record tensor_json(const esp_weight_info *weight)
{
    char pattern[ESP_PATTERN_TEXT_MAX];
    cli_record record = record_object();
    esp_pattern_print(&weight->pattern, pattern);
    record_text(&record, "name", weight->name);
    record_text(&record, "dtype", esp_dtype_name(weight->dtype));
    record_shape(&record, "shape", weight->rank, weight->shape);
    record_text(&record, "pattern", pattern);
    record_int(&record, "dense_bytes", (int64_t)weight->dense_bytes);
    record_int(&record, "stored_bytes", (int64_t)weight->stored_bytes);
    return record;
}

static cli_record group_json(const weight_group *group)
{
    cli_record record = record_object();
    record_text(&record, "pattern", group->pattern);
    record_text(&record, "dtype", esp_dtype_name(group->dtype));
    record_int(&record, "tensors", group->tensors);
    record_int(&record, "parameters", group->parameters);
    record_int(&record, "dense_bytes", (int64_t)group->dense_bytes);
    record_int(&record, "stored_bytes", (int64_t)group->stored_bytes);
    return record;
}

static cli_record config_json(const checkpoint_facts *found)
{
    cli_record record = record_object();
    record_text(&record, "architecture", architecture(found));
    for (int i = 0; i < COUNT(facts); i++) {
        json_t *value = json_object_get(found->config, facts[i]);
        if (value != NULL) {
            record.failed |= json_object_set(record.json, facts[i], value) != 0;
        }
    }
    return record;
}

/* NULL: ours, or nothing is compressed. */
static const char *foreign_form(const esp_checkpoint *checkpoint)
{
    static const char *const names[] = {NULL, "sparse-24-bitmask", "sparse-bitmask"};
    return names[esp_checkpoint_form(checkpoint)];
}

/* What config.json says of reordered channels; NULL: nothing. */
static json_t *permutation_of(const checkpoint_facts *found)
{
    return json_object_get(json_object_get(found->config, "quantization_config"), "permutation");
}

static cli_record permutation_json(json_t *permutation)
{
    cli_record record = record_object();
    record_text(&record, "score", json_string_value(json_object_get(permutation, "score")));
    record_int(&record, "orders",
               (int64_t)json_object_size(json_object_get(permutation, "orders")));
    record_real(&record, "kept_before",
                json_number_value(json_object_get(permutation, "kept_before")));
    record_real(&record, "kept_after",
                json_number_value(json_object_get(permutation, "kept_after")));
    return record;
}

static esp_status print_json(const cli_state *cli, const checkpoint_facts *found, esp_error *error)
{
    const info_args *args = cli->args;
    cli_record record = record_begin("info"), groups = record_list();
    record_text(&record, "path", esp_checkpoint_path(found->checkpoint));
    record_bool(&record, "compressed", esp_checkpoint_is_compressed(found->checkpoint));
    record_text(&record, "foreign_form", foreign_form(found->checkpoint));
    if (found->config != NULL) {
        record_child(&record, "config", config_json(found));
    }
    record_int(&record, "tensor_count", found->total.tensors);
    record_int(&record, "parameters", found->total.parameters);
    record_int(&record, "dense_bytes", (int64_t)found->total.dense_bytes);
    record_int(&record, "stored_bytes", (int64_t)found->total.stored_bytes);
    record_int(&record, "file_bytes", (int64_t)esp_checkpoint_file_bytes(found->checkpoint));
    if (permutation_of(found) != NULL) {
        record_child(&record, "permutation", permutation_json(permutation_of(found)));
    }
    for (int i = 0; i < found->group_count; i++) {
        record_add(&groups, group_json(&found->groups[i]));
    }
    record_child(&record, "patterns", groups);
    if (args->tensors) {
        cli_record tensors = record_list();
        for (int64_t i = 0; i < esp_checkpoint_count(found->checkpoint); i++) {
            esp_weight_info weight = esp_checkpoint_get(found->checkpoint, i);
            record_add(&tensors, tensor_json(&weight));
        }
        record_child(&record, "tensors", tensors);
    }
    return record_print(&record, error);
}

/* ---- text ---- */

static void print_facts(const checkpoint_facts *found)
{
    const char *name = architecture(found);
    char size[SIZE_TEXT_MAX], count[SIZE_TEXT_MAX];
    printf("%-24s %s\n", "path", esp_checkpoint_path(found->checkpoint));
    if (name != NULL) {
        printf("%-24s %s\n", "architecture", name);
    }
    for (int i = 0; i < COUNT(facts); i++) {
        char *value = json_dumps(json_object_get(found->config, facts[i]), JSON_ENCODE_ANY);
        if (value != NULL) {
            printf("%-24s %s\n", facts[i], value);
        }
        free(value);
    }
    printf("%-24s %lld (%s)\n", "parameters", (long long)found->total.parameters,
           size_count((double)found->total.parameters, count));
    uint64_t bytes = esp_checkpoint_file_bytes(found->checkpoint);
    printf("%-24s %llu bytes (%s)\n", "files", (unsigned long long)bytes,
           size_bytes((double)bytes, size));
    const char *foreign = foreign_form(found->checkpoint);
    bool compressed = esp_checkpoint_is_compressed(found->checkpoint);
    json_t *permutation = permutation_of(found);
    if (permutation != NULL) {
        printf("%-24s %zu orders, kept score %.4f -> %.4f\n", "permutation",
               json_object_size(json_object_get(permutation, "orders")),
               json_number_value(json_object_get(permutation, "kept_before")),
               json_number_value(json_object_get(permutation, "kept_after")));
    }
    printf("%-24s %s\n\n", "compressed", foreign != NULL ? foreign : compressed ? "yes" : "no");
}

static void group_row(cli_table *table, const weight_group *group, const char *pattern,
                      const char *dtype)
{
    table_cell(table, "%s", pattern);
    table_cell(table, "%s", dtype);
    table_cell(table, "%lld", (long long)group->tensors);
    table_cell(table, "%lld", (long long)group->parameters);
    table_cell(table, "%zu", group->dense_bytes);
    table_cell(table, "%zu", group->stored_bytes);
    table_cell(table, "%.4f",
               group->dense_bytes > 0 ? (double)group->stored_bytes / (double)group->dense_bytes
                                      : 1.0);
}

static esp_status print_groups(const checkpoint_facts *found, esp_error *error)
{
    static const char *const heads[] = {"<pattern",     "<type",         ">tensors", ">parameters",
                                        ">dense bytes", ">stored bytes", ">ratio"};
    cli_table table;
    table_begin(&table, COUNT(heads), heads);
    for (int i = 0; i < found->group_count; i++) {
        group_row(&table, &found->groups[i], found->groups[i].pattern,
                  esp_dtype_name(found->groups[i].dtype));
    }
    group_row(&table, &found->total, "total", "");
    esp_status status = table_print(&table, stdout, error);
    table_free(&table);
    return status;
}

static esp_status print_tensors(const checkpoint_facts *found, esp_error *error)
{
    static const char *const heads[] = {"<tensor", "<type", "<shape", "<pattern", ">bytes"};
    cli_table table;
    table_begin(&table, COUNT(heads), heads);
    for (int64_t i = 0; i < esp_checkpoint_count(found->checkpoint); i++) {
        esp_weight_info weight = esp_checkpoint_get(found->checkpoint, i);
        char pattern[ESP_PATTERN_TEXT_MAX], shape[SHAPE_TEXT_MAX];
        esp_pattern_print(&weight.pattern, pattern);
        table_cell(&table, "%s", weight.name);
        table_cell(&table, "%s", esp_dtype_name(weight.dtype));
        table_cell(&table, "%s", size_shape(weight.rank, weight.shape, shape));
        table_cell(&table, "%s", pattern);
        table_cell(&table, "%zu", weight.stored_bytes);
    }
    printf("\n");
    esp_status status = table_print(&table, stdout, error);
    table_free(&table);
    return status;
}

static esp_status print_text(const cli_state *cli, const checkpoint_facts *found, esp_error *error)
{
    const info_args *args = cli->args;
    print_facts(found);
    TRY(print_groups(found, error));
    return args->tensors ? print_tensors(found, error) : ESP_OK;
}

static esp_status run(cli_state *cli, esp_error *error)
{
    esp_checkpoint *checkpoint;
    TRY(esp_checkpoint_open(cli->context, cli->operands[0], &checkpoint, error));
    checkpoint_facts found = {.checkpoint = checkpoint};
    esp_status status = gather(&found, error);
    if (status == ESP_OK) {
        status = cli->common.json ? print_json(cli, &found, error) : print_text(cli, &found, error);
    }
    json_decref(found.config);
    free(found.groups);
    esp_checkpoint_close(checkpoint);
    return status;
}

static const cli_option options[] = {{.name = "tensors",
                                      .kind = OPTION_FLAG,
                                      .offset = offsetof(info_args, tensors),
                                      .help = "list every tensor"},
                                     {.name = NULL}};

const cli_command info_command = {
    .name = "info",
    .summary = "say what a model folder or a .safetensors file holds",
    .operands = "MODEL",
    .least_operands = 1,
    .most_operands = 1,
    .options = options,
    .args_bytes = sizeof(info_args),
    .run = run,
    .notes = "MODEL is a Hugging Face style folder (config.json and .safetensors files), dense or "
             "compressed by espalier, or one .safetensors file. Headers are checked, weights are "
             "not read: 'espalier verify' does that."};
