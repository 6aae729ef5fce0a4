/* config.json and tensors that must be refused, each by its code, and odd ones that must be taken.
 */
#include <espalier/prune.h>

#include "model_changes.h"

#define LLAMA3_PART(factors)                                                                       \
    "{\"rope_parameters\": {\"rope_type\": \"llama3\", \"rope_theta\": 1e4, " factors "}}"
#define Q0 "model.layers.0.self_attn.q_proj.weight"

static const change changes[] = {
    {.name = "no architecture",
     .config = "{\"architectures\": \"(remove)\", \"model_type\": \"(remove)\"}",
     .code = "config.missing_key"},
    {.name = "unknown architecture",
     .config = "{\"architectures\": [\"MambaForCausalLM\"], \"model_type\": \"mamba\"}",
     .code = "config.unsupported_architecture",
     .status = ESP_UNSUPPORTED,
     .says = "MambaForCausalLM"},
    {.name = "unknown model_type",
     .config = "{\"architectures\": \"(remove)\", \"model_type\": \"qwen3\"}",
     .code = "config.unsupported_architecture",
     .status = ESP_UNSUPPORTED,
     .says = "LlamaForCausalLM"},
    {.name = "a head for classes",
     .config = "{\"architectures\": [\"LlamaForSequenceClassification\"]}",
     .code = "config.unsupported_architecture",
     .status = ESP_UNSUPPORTED},
    {.name = "architectures is text",
     .config = "{\"architectures\": \"LlamaForCausalLM\"}",
     .code = "config.bad_type"},
    {.name = "model_type is a number", .config = "{\"model_type\": 7}", .code = "config.bad_type"},
    {.name = "hidden_act is a number", .config = "{\"hidden_act\": 1}", .code = "config.bad_type"},
    {.name = "hidden_act gelu",
     .config = "{\"hidden_act\": \"gelu\"}",
     .code = "config.unsupported_activation",
     .status = ESP_UNSUPPORTED,
     .says = "gelu"},
    {.name = "sliding window",
     .config = "{\"sliding_window\": 4096}",
     .code = "config.unsupported_sliding_window",
     .status = ESP_UNSUPPORTED},
    {.name = "hidden_size missing",
     .config = "{\"hidden_size\": \"(remove)\"}",
     .code = "config.missing_key",
     .says = "hidden_size"},
    {.name = "hidden_size null", .config = "{\"hidden_size\": null}", .code = "config.missing_key"},
    {.name = "hidden_size text", .config = "{\"hidden_size\": \"64\"}", .code = "config.bad_type"},
    {.name = "hidden_size 64.5", .config = "{\"hidden_size\": 64.5}", .code = "config.bad_type"},
    {.name = "hidden_size negative",
     .config = "{\"hidden_size\": -64}",
     .code = "config.bad_value"},
    {.name = "hidden_size 2^40",
     .config = "{\"hidden_size\": 1099511627776}",
     .code = "config.bad_value"},
    {.name = "hidden_size no multiple of heads",
     .config = "{\"num_attention_heads\": 5, \"num_key_value_heads\": 5}",
     .code = "config.heads_divide_hidden",
     .says = "64"},
    {.name = "heads no multiple of kv heads",
     .config = "{\"num_key_value_heads\": 3}",
     .code = "config.kv_heads_divide_heads"},
    {.name = "more kv heads than heads",
     .config = "{\"num_key_value_heads\": 8}",
     .code = "config.kv_heads_divide_heads"},
    {.name = "odd head_dim", .config = "{\"head_dim\": 15}", .code = "config.bad_value"},
    {.name = "head_dim 0", .config = "{\"head_dim\": 0}", .code = "config.bad_value"},
    {.name = "no layers", .config = "{\"num_hidden_layers\": 0}", .code = "config.bad_value"},
    {.name = "10^9 layers",
     .config = "{\"num_hidden_layers\": 1000000000}",
     .code = "config.bad_value",
     .says = "1000000000"},
    {.name = "vocab_size 0", .config = "{\"vocab_size\": 0}", .code = "config.bad_value"},
    {.name = "no rms_norm_eps",
     .config = "{\"rms_norm_eps\": \"(remove)\"}",
     .code = "config.missing_key",
     .says = "rms_norm_eps"},
    {.name = "rms_norm_eps 0", .config = "{\"rms_norm_eps\": 0}", .code = "config.bad_value"},
    {.name = "rms_norm_eps negative",
     .config = "{\"rms_norm_eps\": -1e-6}",
     .code = "config.bad_value"},
    {.name = "rms_norm_eps text",
     .config = "{\"rms_norm_eps\": \"1e-6\"}",
     .code = "config.bad_type"},
    {.name = "tie_word_embeddings 1",
     .config = "{\"tie_word_embeddings\": 1}",
     .code = "config.bad_type"},
    {.name = "eos text", .config = "{\"eos_token_id\": \"</s>\"}", .code = "config.bad_type"},
    {.name = "eos list of text",
     .config = "{\"eos_token_id\": [1, \"2\"]}",
     .code = "config.bad_type"},
    {.name = "eos negative", .config = "{\"eos_token_id\": -1}", .code = "config.bad_value"},
    {.name = "17 eos",
     .config = "{\"eos_token_id\": [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]}",
     .code = "config.bad_value"},
    {.name = "bos text", .config = "{\"bos_token_id\": \"<s>\"}", .code = "config.bad_type"},
    {.name = "rope_type yarn",
     .config = "{\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4.0}}",
     .code = "config.unsupported_rope",
     .status = ESP_UNSUPPORTED,
     .says = "yarn"},
    {.name = "old type dynamic",
     .config = "{\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 4.0}}",
     .code = "config.unsupported_rope",
     .status = ESP_UNSUPPORTED},
    {.name = "rope_type is a number",
     .config = "{\"rope_scaling\": {\"rope_type\": 3}}",
     .code = "config.bad_type"},
    {.name = "rope_scaling is text",
     .config = "{\"rope_scaling\": \"linear\"}",
     .code = "config.bad_type"},
    {.name = "partial rotary",
     .config = "{\"partial_rotary_factor\": 0.5}",
     .code = "config.unsupported_rope",
     .status = ESP_UNSUPPORTED},
    {.name = "rope_theta 0", .config = "{\"rope_theta\": 0}", .code = "config.bad_value"},
    {.name = "linear without factor",
     .config = "{\"rope_scaling\": {\"rope_type\": \"linear\"}}",
     .code = "config.bad_rope",
     .says = "factor"},
    {.name = "llama3 without low_freq_factor",
     .config = LLAMA3_PART("\"factor\": 8, \"high_freq_factor\": 4, "
                           "\"original_max_position_embeddings\": 64"),
     .code = "config.bad_rope",
     .says = "low_freq_factor"},
    {.name = "llama3 without original length",
     .config = LLAMA3_PART("\"factor\": 8, \"high_freq_factor\": 4, \"low_freq_factor\": 1"),
     .code = "config.bad_rope"},
    {.name = "llama3 high equals low",
     .config = LLAMA3_PART("\"factor\": 8, \"high_freq_factor\": 4, \"low_freq_factor\": 4, "
                           "\"original_max_position_embeddings\": 64"),
     .code = "config.bad_rope",
     .says = "high_freq_factor"},
    {.name = "llama3 factor text",
     .config = LLAMA3_PART("\"factor\": \"8\", \"high_freq_factor\": 4, \"low_freq_factor\": 1, "
                           "\"original_max_position_embeddings\": 64"),
     .code = "config.bad_rope"},
    {.name = "a tensor missing", .drop = Q0, .code = "model.missing_tensor", .says = Q0},
    {.name = "last norm missing", .drop = "model.norm.weight", .code = "model.missing_tensor"},
    {.name = "a layer missing",
     .config = "{\"num_hidden_layers\": 3}",
     .code = "model.missing_tensor",
     .says = "model.layers.2."},
    {.name = "bias promised, missing",
     .config = "{\"attention_bias\": true}",
     .code = "model.missing_tensor",
     .says = "q_proj.bias"},
    {.name = "not tied, no lm_head",
     .config = "{\"tie_word_embeddings\": false}",
     .code = "model.missing_tensor",
     .says = "lm_head.weight"},
    {.name = "vocab_size is not the embedding's rows",
     .config = "{\"vocab_size\": 102}",
     .code = "model.wrong_shape",
     .says = "[102, 64]"},
    {.name = "intermediate_size wrong",
     .config = "{\"intermediate_size\": 128}",
     .code = "model.wrong_shape"},
    {.name = "head_dim wrong", .config = "{\"head_dim\": 32}", .code = "model.wrong_shape"},
    {.name = "rank wrong", .reshape = Q0, .code = "model.wrong_shape", .says = "[3]"},
    {.name = "integers as weights", .dtype = Q0, .code = "model.wrong_dtype", .says = "I32"},
    {.name = "huge sizes that no file backs",
     .config = "{\"hidden_size\": 1048576, \"num_hidden_layers\": 1000, \"vocab_size\": 16777216, "
               "\"intermediate_size\": 1048576, \"head_dim\": 4096, \"max_position_embeddings\": "
               "2147483647}",
     .code = "model.wrong_shape"},

    {.name = "accepted: nulls for defaults",
     .config = "{\"head_dim\": null, \"num_key_value_heads\": null, \"rope_scaling\": null, "
               "\"eos_token_id\": null, \"bos_token_id\": null, \"sliding_window\": null}"},
    {.name = "accepted: no optional keys",
     .config = "{\"rope_theta\": \"(remove)\", \"num_key_value_heads\": \"(remove)\", "
               "\"eos_token_id\": \"(remove)\", \"hidden_act\": \"(remove)\", "
               "\"architectures\": \"(remove)\"}"},
    {.name = "accepted: unknown keys",
     .config = "{\"pretraining_tp\": 1, \"attention_dropout\": 0.0, \"_name\": {\"a\": []}}"},
    {.name = "accepted: window not in use",
     .config = "{\"sliding_window\": 4096, \"use_sliding_window\": false}"},
    {.name = "accepted: list of eos", .config = "{\"eos_token_id\": [5, 6]}"},
    {.name = "accepted: rope_parameters default",
     .config = "{\"rope_theta\": \"(remove)\", \"rope_parameters\": {\"rope_type\": \"default\", "
               "\"rope_theta\": 10000.0}}"},
    {.name = "accepted: rotary_emb.inv_freq",
     .add = "{\"name\": \"model.layers.0.self_attn.rotary_emb.inv_freq\", \"shape\": [8]}"},
    {.name = "accepted: tied with a copy of lm_head",
     .add = "{\"name\": \"lm_head.weight\", \"shape\": [101, 64]}"},
};

static void refused_and_taken(test_run *run)
{
    check_model_changes(run, "a_tiny_mha", changes, ESP_COUNT(changes));
}

/* What Qwen2 has of its own. */
static void qwen2(test_run *run)
{
    static const change rows[] = {
        {.name = "a window that is used",
         .config = "{\"use_sliding_window\": true}",
         .code = "config.unsupported_sliding_window",
         .status = ESP_UNSUPPORTED,
         .says = "32768"},
        {.name = "a layer with a window",
         .config = "{\"layer_types\": [\"full_attention\", \"sliding_attention\"]}",
         .code = "config.unsupported_sliding_window",
         .status = ESP_UNSUPPORTED,
         .says = "sliding_attention"},
        {.name = "use_sliding_window is a number",
         .config = "{\"use_sliding_window\": 1}",
         .code = "config.bad_type"},
        {.name = "a bias of q is missing",
         .drop = "model.layers.0.self_attn.q_proj.bias",
         .code = "model.missing_tensor",
         .says = "q_proj.bias"},
        {.name = "the name of another family",
         .config = "{\"model_type\": \"llama\"}",
         .code = "config.unsupported_architecture",
         .status = ESP_UNSUPPORTED},
        {.name = "yarn",
         .config = "{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4.0}}",
         .code = "config.unsupported_rope",
         .status = ESP_UNSUPPORTED,
         .says = "yarn"},
        {.name = "no window is named", .config = "{\"sliding_window\": null}"},
        {.name = "use_sliding_window is absent",
         .config = "{\"use_sliding_window\": \"(remove)\"}"},
        {.name = "every layer sees all",
         .config = "{\"layer_types\": [\"full_attention\", \"full_attention\"]}"},
        {.name = "model_type alone", .config = "{\"architectures\": \"(remove)\"}"},
    };
    check_model_changes(run, "j_qwen2", rows, ESP_COUNT(rows));
}

static void broken_files(test_run *run)
{
    static const struct {
        const char *file, *text, *code;
    } rows[] = {{"config.json", "[]", "json.not_object"},
                {"config.json", "{\"hidden_size\": 1, \"hidden_size\": 2}", "json.duplicate_key"},
                {"generation_config.json", "{\"eos_token_id\": \"x\"}", "config.bad_type"},
                {"generation_config.json", "{", "json.syntax"}};
    esp_context *context = test_context(run, 1);
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        json_t *golden = golden_json("a_tiny_mha");
        golden_model loaded;
        test_sub(run, "%s in %s", rows[i].code, rows[i].file);
        const char *folder = golden_folder(run, context, golden);
        test_write_file(run, test_path(folder, rows[i].file), rows[i].text, strlen(rows[i].text));
        CHECK_FAILS(golden_load(context, folder, "cpu", ESP_COMPUTE_AUTO, &loaded, error),
                    ESP_BAD_FILE, rows[i].code);
        golden_close(&loaded);
        json_decref(golden);
    }
    json_t *golden = golden_json("a_tiny_mha");
    golden_model loaded;
    test_sub(run, "config.missing: a lone file");
    const char *lone = test_path(golden_folder(run, context, golden), "model.safetensors");
    CHECK_FAILS(golden_load(context, lone, "cpu", ESP_COMPUTE_AUTO, &loaded, error), ESP_BAD_FILE,
                "config.missing");
    golden_close(&loaded);
    json_decref(golden);
    test_context_free(run, context);
}

/* Copies a weight from one folder to another, the embedding cut to 2:4. */
static esp_status copy_weight(esp_context *context, const esp_checkpoint *source, int64_t index,
                              esp_checkpoint_writer *writer, esp_error *error)
{
    esp_weight_info info = esp_checkpoint_get(source, index);
    esp_tensor dense = {0};
    esp_mask *mask = NULL;
    esp_sparse *sparse = NULL;
    const esp_pattern pattern = {.kind = ESP_PATTERN_PANEL};
    ESP_TRY(esp_tensor_create(context, info.dtype, info.rank, info.shape, &dense, error));
    esp_status status = esp_checkpoint_read_dense(source, index, &dense, error);
    if (status == ESP_OK && strstr(info.name, "embed_tokens") != NULL) {
        status = esp_prune_mask(context, &dense, &pattern, NULL, &mask, NULL, error);
        status = status != ESP_OK
                     ? status
                     : esp_sparse_encode(context, &pattern, &dense, mask, &sparse, error);
        status = status != ESP_OK
                     ? status
                     : esp_checkpoint_writer_write_sparse(writer, info.name, sparse, error);
    } else if (status == ESP_OK) {
        status = esp_checkpoint_writer_write_dense(writer, info.name, &dense, error);
    }
    esp_sparse_free(sparse);
    esp_mask_free(mask);
    esp_tensor_free(context, &dense);
    return status;
}

static esp_status write_compressed(esp_context *context, const esp_checkpoint *source,
                                   esp_checkpoint_writer *writer, esp_error *error)
{
    for (int64_t i = 0; i < esp_checkpoint_count(source); i++) {
        esp_weight_info info = esp_checkpoint_get(source, i);
        if (strstr(info.name, "embed_tokens") != NULL) {
            info.pattern = (esp_pattern){.kind = ESP_PATTERN_PANEL};
            info.stored_bytes = 0;
        }
        ESP_TRY(esp_checkpoint_writer_declare(writer, &info, error));
    }
    ESP_TRY(esp_checkpoint_writer_begin(writer, error));
    for (int64_t i = 0; i < esp_checkpoint_count(source); i++) {
        ESP_TRY(copy_weight(context, source, i, writer, error));
    }
    return esp_checkpoint_writer_finish(writer, error);
}

/* A folder of ours whose embedding is compressed: rows of it could not be looked up. */
static void compressed_embedding(test_run *run)
{
    esp_context *context = test_context(run, 1);
    json_t *golden = golden_json("a_tiny_mha_bf16");
    const char *folder = golden_folder(run, context, golden);
    char target[600];
    snprintf(target, sizeof target, "%s-compressed", folder);
    esp_checkpoint *source = NULL;
    esp_checkpoint_writer *writer = NULL;
    golden_model loaded = {0};
    REQUIRE_OK(esp_checkpoint_open(context, folder, &source, error));
    REQUIRE_OK(esp_checkpoint_writer_create(context, source, target, false, &writer, error));
    REQUIRE_OK(write_compressed(context, source, writer, error));
    esp_checkpoint_writer_free(writer);
    esp_checkpoint_close(source);
    CHECK_FAILS(golden_load(context, target, "cpu", ESP_COMPUTE_AUTO, &loaded, error),
                ESP_UNSUPPORTED, "model.embedding_compressed");
    golden_close(&loaded);
    json_decref(golden);
    test_context_free(run, context);
}

static bool stop_at_half(void *user, const char *what, double done, double total, const char *unit)
{
    (void)user, (void)what, (void)unit;
    return done < total / 2;
}

static void cancelled(test_run *run)
{
    esp_context *context = test_context(run, 1);
    json_t *golden = golden_json("a_tiny_mha");
    esp_device *device = NULL;
    esp_checkpoint *checkpoint = NULL;
    esp_model *model = NULL;
    esp_model_options options = {.progress = stop_at_half};
    CHECK_OK(esp_device_open(context, "cpu", &device, error));
    CHECK_OK(esp_checkpoint_open(context, golden_folder(run, context, golden), &checkpoint, error));
    CHECK_FAILS(esp_model_load(device, checkpoint, &options, &model, error), ESP_CANCELLED,
                "cancelled");
    options = (esp_model_options){.kernel_glob = "no_such_kernel*"};
    CHECK_FAILS(esp_model_load(device, checkpoint, &options, &model, error), ESP_UNSUPPORTED,
                "plan.no_kernel");
    CHECK(model == NULL);
    esp_checkpoint_close(checkpoint);
    esp_device_close(device);
    json_decref(golden);
    test_context_free(run, context);
}

/* A device that lacks an operation is refused at load, by the operation's name. */
static void missing_operation(test_run *run)
{
    esp_context *context = test_context(run, 1);
    esp_device *device = NULL;
    esp_model *model = NULL;
    REQUIRE_OK(esp_device_open(context, "cpu", &device, error));
    const esp_backend *whole = device->backend;
    esp_ops ops = *whole->ops;
    esp_backend lacking = *whole;
    ops.swiglu = NULL;
    lacking.ops = &ops;
    device->backend = &lacking;
    json_t *golden = golden_json("a_tiny_mha");
    esp_checkpoint *checkpoint = NULL;
    REQUIRE_OK(
        esp_checkpoint_open(context, golden_folder(run, context, golden), &checkpoint, error));
    json_decref(golden);
    esp_error problem = {0};
    esp_status status = esp_model_load(device, checkpoint, NULL, &model, &problem);
    esp_checkpoint_close(checkpoint);
    test_check_failure(run, __FILE__, __LINE__, "load", status, &problem, ESP_UNSUPPORTED,
                       "model.missing_operation");
    CHECK(strstr(problem.message, "swiglu") != NULL);
    device->backend = whole;
    esp_device_close(device);
    test_context_free(run, context);
}

/* Random bytes of config.json changed: what is accepted is within every limit. */
static void changed_configs(test_run *run)
{
    json_t *golden = golden_json("d_llama3_rope");
    char *good = json_dumps(json_object_get(golden, "config"), 0), *changed = strdup(good);
    size_t length = strlen(good);
    int accepted = 0;
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int round = 0; round < 20000; round++) {
        static const char likely[] = "0123456789-.eE\"{}[],:nul truefas";
        esp_llama_config config;
        memcpy(changed, good, length);
        for (uint64_t n = 1 + esp_random_below(&random, 4); n > 0; n--) {
            size_t at = (size_t)esp_random_below(&random, length);
            changed[at] = likely[esp_random_below(&random, sizeof likely - 1)];
        }
        json_t *json = NULL;
        if (esp_json_parse(changed, length, "config.json", &json, NULL) != ESP_OK) {
            continue;
        }
        esp_config_file file = {"config.json", json};
        esp_status status = esp_llama_config_read(&file, &config, NULL);
        json_decref(json);
        if (status != ESP_OK) {
            continue;
        }
        accepted++;
        CHECK(config.layers >= 1 && config.layers <= 1000);
        CHECK(config.hidden >= 1 && config.hidden <= 1 << 20);
        CHECK(config.vocabulary >= 1 && config.vocabulary <= 1 << 24);
        CHECK(config.head_dim >= 2 && config.head_dim <= 4096 && config.head_dim % 2 == 0);
        CHECK(config.kv_heads >= 1 && config.heads % config.kv_heads == 0);
        CHECK(config.rms_norm_eps > 0 && config.eos_count >= 0 && config.eos_count <= ESP_MAX_EOS);
    }
    CHECK(accepted > 0);
    free(good);
    free(changed);
    json_decref(golden);
}

static const test_case cases[] = {
    {"changed configs", changed_configs},
    {"config.json and tensors", refused_and_taken},
    {"qwen2", qwen2},
    {"broken files", broken_files},
    {"compressed embedding", compressed_embedding},
    {"cancelled, no kernel", cancelled},
    {"missing operation", missing_operation},
};
TEST_MAIN(cases)
