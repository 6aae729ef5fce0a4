/* Encoders that must be refused, each by its code, and odd ones that must be taken: config.json,
 * tensors, and the files of sentence-transformers. */
#include "model/bert.h"
#include "model_changes.h"

#define UNSUPPORTED .status = ESP_UNSUPPORTED
#define Q0 "encoder.layer.0.attention.self.query.weight"

static const change changes[] = {
    {.name = "a head for labels",
     .config = "{\"architectures\": [\"BertForSequenceClassification\"]}",
     .code = "config.unsupported_architecture",
     UNSUPPORTED,
     .says = "BertForSequenceClassification"},
    {.name = "model_type roberta",
     .config = "{\"model_type\": \"roberta\"}",
     .code = "config.unsupported_architecture",
     UNSUPPORTED,
     .says = "roberta"},
    {.name = "positions relative to the key",
     .config = "{\"position_embedding_type\": \"relative_key\"}",
     .code = "config.unsupported_positions",
     UNSUPPORTED,
     .says = "relative_key"},
    {.name = "position_embedding_type is a number",
     .config = "{\"position_embedding_type\": 1}",
     .code = "config.bad_type"},
    {.name = "a decoder",
     .config = "{\"is_decoder\": true}",
     .code = "config.unsupported_decoder",
     UNSUPPORTED,
     .says = "is_decoder"},
    {.name = "attention to another model",
     .config = "{\"add_cross_attention\": true}",
     .code = "config.unsupported_decoder",
     UNSUPPORTED},
    {.name = "is_decoder is text", .config = "{\"is_decoder\": \"no\"}", .code = "config.bad_type"},
    {.name = "quick_gelu",
     .config = "{\"hidden_act\": \"quick_gelu\"}",
     .code = "config.unsupported_activation",
     UNSUPPORTED,
     .says = "quick_gelu"},
    {.name = "no hidden_act",
     .config = "{\"hidden_act\": \"(remove)\"}",
     .code = "config.missing_key",
     .says = "hidden_act"},
    {.name = "hidden_act is a number", .config = "{\"hidden_act\": 3}", .code = "config.bad_type"},
    {.name = "no layer_norm_eps",
     .config = "{\"layer_norm_eps\": \"(remove)\"}",
     .code = "config.missing_key",
     .says = "layer_norm_eps"},
    {.name = "layer_norm_eps 0", .config = "{\"layer_norm_eps\": 0}", .code = "config.bad_value"},
    {.name = "layer_norm_eps negative",
     .config = "{\"layer_norm_eps\": -1e-12}",
     .code = "config.bad_value"},
    {.name = "layer_norm_eps text",
     .config = "{\"layer_norm_eps\": \"1e-12\"}",
     .code = "config.bad_type"},
    {.name = "hidden_size no multiple of heads",
     .config = "{\"num_attention_heads\": 5}",
     .code = "config.heads_divide_hidden",
     .says = "96"},
    {.name = "no heads", .config = "{\"num_attention_heads\": 0}", .code = "config.bad_value"},
    {.name = "no layers", .config = "{\"num_hidden_layers\": 0}", .code = "config.bad_value"},
    {.name = "10^9 layers",
     .config = "{\"num_hidden_layers\": 1000000000}",
     .code = "config.bad_value"},
    {.name = "no positions",
     .config = "{\"max_position_embeddings\": 0}",
     .code = "config.bad_value"},
    {.name = "positions missing",
     .config = "{\"max_position_embeddings\": \"(remove)\"}",
     .code = "config.missing_key"},
    {.name = "no types", .config = "{\"type_vocab_size\": 0}", .code = "config.bad_value"},
    {.name = "vocab_size is text",
     .config = "{\"vocab_size\": \"101\"}",
     .code = "config.bad_type"},
    {.name = "hidden_size null", .config = "{\"hidden_size\": null}", .code = "config.missing_key"},
    {.name = "another vocab_size",
     .config = "{\"vocab_size\": 102}",
     .code = "model.wrong_shape",
     .says = "word_embeddings"},
    {.name = "more positions than rows",
     .config = "{\"max_position_embeddings\": 65}",
     .code = "model.wrong_shape",
     .says = "position_embeddings"},
    {.name = "another intermediate_size",
     .config = "{\"intermediate_size\": 192}",
     .code = "model.wrong_shape",
     .says = "intermediate.dense"},
    {.name = "a layer too many",
     .config = "{\"num_hidden_layers\": 3}",
     .code = "model.missing_tensor",
     .says = "encoder.layer.2"},
    {.name = "query missing", .drop = Q0, .code = "model.missing_tensor", .says = Q0},
    {.name = "a bias missing",
     .drop = "encoder.layer.1.output.dense.bias",
     .code = "model.missing_tensor"},
    {.name = "a norm missing",
     .drop = "embeddings.LayerNorm.weight",
     .code = "model.missing_tensor"},
    {.name = "words missing",
     .drop = "embeddings.word_embeddings.weight",
     .code = "model.missing_tensor"},
    {.name = "query of another shape", .reshape = Q0, .code = "model.wrong_shape", .says = Q0},
    {.name = "norm as I32",
     .dtype = "encoder.layer.0.output.LayerNorm.weight",
     .code = "model.wrong_dtype",
     .says = "I32"},
    {.name = "words as I32",
     .dtype = "embeddings.word_embeddings.weight",
     .code = "model.wrong_dtype"},

    {.name = "accepted: a layer less", .config = "{\"num_hidden_layers\": 1}"},
    {.name = "accepted: model_type alone", .config = "{\"architectures\": \"(remove)\"}"},
    {.name = "accepted: architectures alone", .config = "{\"model_type\": \"(remove)\"}"},
    {.name = "accepted: no position_embedding_type",
     .config = "{\"position_embedding_type\": \"(remove)\"}"},
    {.name = "accepted: gelu_python", .config = "{\"hidden_act\": \"gelu_python\"}"},
    {.name = "accepted: a stray buffer",
     .add = "{\"name\": \"embeddings.position_ids\", \"shape\": [64]}"},
    {.name = "accepted: a pooler", .add = "{\"name\": \"pooler.dense.bias\", \"shape\": [96]}"},
};

static void config_and_tensors(test_run *run)
{
    check_model_changes(run, "bert/a_heads_of_32", changes, ESP_COUNT(changes));
}

/* ---- the files of sentence-transformers ---- */

#define TRANSFORMER                                                                                \
    "{\"idx\":0,\"path\":\"\",\"type\":\"sentence_transformers.models.Transformer\"}"
#define POOLING                                                                                    \
    "{\"idx\":1,\"path\":\"1_Pooling\",\"type\":\"sentence_transformers.models.Pooling\"}"
#define NORMALIZE "{\"idx\":2,\"path\":\"\",\"type\":\"sentence_transformers.models.Normalize\"}"
#define MEAN "{\"word_embedding_dimension\":96,\"pooling_mode_mean_tokens\":true}"

static const struct {
    const char *name;
    const char *modules, *pooling, *length, *prompts; /* texts of the files; NULL: none */
    const char *code;                                 /* NULL: must load */
    esp_status status;                                /* ESP_OK: ESP_BAD_FILE */
    const char *says;
} folders[] = {
    {"no list", "{}", MEAN, NULL, NULL, "json.not_list", ESP_OK, "modules.json"},
    {"no modules", "[]", MEAN, NULL, NULL, "config.unsupported_module", ESP_UNSUPPORTED, NULL},
    {"no pooling", "[" TRANSFORMER "]", MEAN, NULL, NULL, "config.unsupported_module",
     ESP_UNSUPPORTED, "Pooling"},
    {"pooling first", "[" POOLING "," TRANSFORMER "]", MEAN, NULL, NULL,
     "config.unsupported_module", ESP_UNSUPPORTED, "Pooling"},
    {"a module that is not known",
     "[" TRANSFORMER "," POOLING ",{\"path\":\"2_Dense\",\"type\":\"x.models.Dense\"}]", MEAN, NULL,
     NULL, "config.unsupported_module", ESP_UNSUPPORTED, "Dense"},
    {"four modules", "[" TRANSFORMER "," POOLING "," NORMALIZE "," NORMALIZE "]", MEAN, NULL, NULL,
     "config.unsupported_module", ESP_UNSUPPORTED, NULL},
    {"a module without a type", "[" TRANSFORMER ",{\"path\":\"1_Pooling\"}]", MEAN, NULL, NULL,
     "config.unsupported_module", ESP_UNSUPPORTED, "without a type"},
    {"the model is elsewhere",
     "[{\"path\":\"0_Transformer\",\"type\":\"x.Transformer\"}," POOLING "]", MEAN, NULL, NULL,
     "config.unsupported_module", ESP_UNSUPPORTED, NULL},
    {"pooling outside of the folder",
     "[" TRANSFORMER ",{\"path\":\"../1_Pooling\",\"type\":\"x.Pooling\"}]", MEAN, NULL, NULL,
     "config.unsupported_module", ESP_UNSUPPORTED, NULL},
    {"pooling is a path", "[" TRANSFORMER ",{\"path\":\"/etc\",\"type\":\"x.Pooling\"}]", MEAN,
     NULL, NULL, "config.unsupported_module", ESP_UNSUPPORTED, NULL},
    {"the pooling's file is missing", "[" TRANSFORMER "," POOLING "]", NULL, NULL, NULL,
     "file.not_found", ESP_OK, "1_Pooling"},
    {"weighted mean", "[" TRANSFORMER "," POOLING "]",
     "{\"pooling_mode_weightedmean_tokens\":true}", NULL, NULL, "config.unsupported_pooling",
     ESP_UNSUPPORTED, "weightedmean"},
    {"mean over the root of the length", "[" TRANSFORMER "," POOLING "]",
     "{\"pooling_mode_mean_sqrt_len_tokens\":true}", NULL, NULL, "config.unsupported_pooling",
     ESP_UNSUPPORTED, "sqrt"},
    {"the last token", "[" TRANSFORMER "," POOLING "]", "{\"pooling_mode_lasttoken\":true}", NULL,
     NULL, "config.unsupported_pooling", ESP_UNSUPPORTED, "lasttoken"},
    {"two poolings", "[" TRANSFORMER "," POOLING "]",
     "{\"pooling_mode_mean_tokens\":true,\"pooling_mode_max_tokens\":true}", NULL, NULL,
     "config.unsupported_pooling", ESP_UNSUPPORTED, "pooling_mode_max_tokens"},
    {"no pooling mode", "[" TRANSFORMER "," POOLING "]", "{\"pooling_mode_mean_tokens\":false}",
     NULL, NULL, "config.missing_key", ESP_OK, "pooling_mode"},
    {"a mode is a number", "[" TRANSFORMER "," POOLING "]", "{\"pooling_mode_mean_tokens\":1}",
     NULL, NULL, "config.bad_type", ESP_OK, NULL},
    {"another size of vectors", "[" TRANSFORMER "," POOLING "]",
     "{\"word_embedding_dimension\":64,\"pooling_mode_mean_tokens\":true}", NULL, NULL,
     "config.bad_value", ESP_OK, "64"},
    {"no longest text", NULL, NULL, "{\"max_seq_length\":0}", NULL, "config.bad_value", ESP_OK,
     "max_seq_length"},
    {"longest text is text", NULL, NULL, "{\"max_seq_length\":\"256\"}", NULL, "config.bad_type",
     ESP_OK, NULL},
    {"small letters first", NULL, NULL, "{\"do_lower_case\":true}", NULL,
     "config.unsupported_lower_case", ESP_UNSUPPORTED, NULL},
    {"a text before each text", NULL, NULL, NULL, "{\"default_prompt_name\":\"query\"}",
     "config.unsupported_prompt", ESP_UNSUPPORTED, "query"},

    {"accepted: all of them", "[" TRANSFORMER "," POOLING "," NORMALIZE "]", MEAN,
     "{\"max_seq_length\":32,\"do_lower_case\":false}",
     "{\"prompts\":{},\"default_prompt_name\":null,\"similarity_fn_name\":\"cosine\"}", NULL,
     ESP_OK, NULL},
    {"accepted: a longer text than there are positions", NULL, NULL, "{\"max_seq_length\":512}",
     NULL, NULL, ESP_OK, NULL},
    {"accepted: max_seq_length null", NULL, NULL, "{\"max_seq_length\":null}", NULL, NULL, ESP_OK,
     NULL},
    {"accepted: a type of another version",
     "[{\"path\":\"\",\"type\":\"sentence_transformers.base.modules.transformer.Transformer\"},"
     "{\"path\":\"1_Pooling\",\"type\":\"a.b.pooling.Pooling\"}]",
     "{\"pooling_mode_cls_token\":true}", NULL, NULL, NULL, ESP_OK, NULL},
};

static void write_if(test_run *run, const char *folder, const char *name, const char *text)
{
    if (text != NULL) {
        test_write_file(run, test_path(folder, name), text, strlen(text));
    }
}

static void sentence_folders(test_run *run)
{
    esp_context *context = test_context(run, 1);
    json_t *golden = golden_json("bert/a_heads_of_32");
    for (int i = 0; i < ESP_COUNT(folders); i++) {
        golden_model loaded;
        esp_error problem = {0};
        test_sub(run, "%s", folders[i].name);
        const char *folder = golden_folder(run, context, golden);
        CHECK_OK(esp_folder_create(test_path(folder, "1_Pooling"), error));
        write_if(run, folder, "modules.json", folders[i].modules);
        write_if(run, folder, "1_Pooling/config.json", folders[i].pooling);
        write_if(run, folder, "sentence_bert_config.json", folders[i].length);
        write_if(run, folder, "config_sentence_transformers.json", folders[i].prompts);
        esp_status status =
            golden_load(context, folder, "cpu", ESP_COMPUTE_AUTO, &loaded, &problem);
        if (folders[i].code == NULL) {
            CHECK_INT(status, ESP_OK);
            CHECK_TEXT(problem.message, "");
        } else {
            esp_status expected = folders[i].status != ESP_OK ? folders[i].status : ESP_BAD_FILE;
            test_check_failure(run, __FILE__, __LINE__, "load", status, &problem, expected,
                               folders[i].code);
            CHECK(loaded.model == NULL && strstr(problem.message, folder) != NULL);
            CHECK(folders[i].says == NULL || strstr(problem.message, folders[i].says) != NULL);
        }
        golden_close(&loaded);
    }
    json_decref(golden);
    test_context_free(run, context);
}

/* What the files say arrives. */
static void sentence_values(test_run *run)
{
    esp_context *context = test_context(run, 1);
    json_t *golden = golden_json("bert/a_heads_of_32");
    golden_model loaded;
    esp_model_info info;
    const char *folder = golden_folder(run, context, golden);
    CHECK_OK(golden_load(context, folder, "cpu", ESP_COMPUTE_AUTO, &loaded, error));
    esp_model_get_info(loaded.model, &info);
    CHECK(info.context == 64 && info.pooling == ESP_POOLING_MEAN && !info.normalizes);
    golden_close(&loaded);
    CHECK_OK(esp_folder_create(test_path(folder, "1_Pooling"), error));
    write_if(run, folder, "modules.json", "[" TRANSFORMER "," POOLING "," NORMALIZE "]");
    write_if(run, folder, "1_Pooling/config.json", "{\"pooling_mode_max_tokens\":true}");
    write_if(run, folder, "sentence_bert_config.json", "{\"max_seq_length\":20}");
    CHECK_OK(golden_load(context, folder, "cpu", ESP_COMPUTE_AUTO, &loaded, error));
    esp_model_get_info(loaded.model, &info);
    CHECK(info.context == 20 && info.pooling == ESP_POOLING_MAX && info.normalizes);
    golden_close(&loaded);
    json_decref(golden);
    test_context_free(run, context);
}

static const test_case cases[] = {
    {"config.json and tensors", config_and_tensors},
    {"folders of sentence-transformers", sentence_folders},
    {"values of sentence-transformers", sentence_values},
};
TEST_MAIN(cases)
