/* tokenizer.json as a handle: opening reads and checks the whole file, then nothing changes any
 * more, so that threads may share it. The format is that of the Hugging Face `tokenizers` library.
 */
#include "model/tokenizer.h"

static void *regex_allocate(size_t bytes, void *user)
{
    return esp_alloc(user, bytes);
}

static void regex_release(void *memory, void *user)
{
    esp_release(user, memory);
}

/* An option of the BPE model that must be absent, null, false or empty. */
static esp_status must_be_off(const esp_tokenizer *tokenizer, const json_t *model, const char *key,
                              esp_error *error)
{
    const json_t *value = json_object_get(model, key);
    bool empty = json_is_string(value) && json_string_length(value) == 0;
    if (value == NULL || json_is_null(value) || json_is_false(value) || empty ||
        (json_is_number(value) && json_number_value(value) == 0)) {
        return ESP_OK;
    }
    return esp_fail(error, ESP_UNSUPPORTED, "tokenizer.unsupported_model",
                    "%s: model.%s is set, which is not supported: only BPE without it is%s",
                    tokenizer->path, key, tokenizer->byte_level ? " in a byte-level file" : "");
}

static esp_status check_model(esp_tokenizer *tokenizer, const json_t *model, esp_error *error)
{
    static const char *const off[] = {"dropout", "continuing_subword_prefix", "end_of_word_suffix"};
    const char *type = esp_tokenizer_type(model);
    /* Old files leave the type out; then vocab and merges say that it is BPE. */
    bool untyped = json_is_object(model) && json_object_get(model, "type") == NULL &&
                   json_object_get(model, "merges") != NULL;
    tokenizer->wordpiece = strcmp(type, "WordPiece") == 0;
    if (tokenizer->wordpiece) {
        return ESP_OK;
    }
    if (strcmp(type, "BPE") != 0 && !untyped) {
        return esp_fail(error, ESP_UNSUPPORTED, "tokenizer.unsupported_model",
                        "%s: model %.80s is not supported; known: BPE, WordPiece", tokenizer->path,
                        type[0] != '\0' ? type : "without a type");
    }
    for (int i = 0; i < ESP_COUNT(off); i++) {
        ESP_TRY(must_be_off(tokenizer, model, off[i], error));
    }
    ESP_TRY(esp_tokenizer_bool(tokenizer, model, "byte_fallback", false, &tokenizer->byte_fallback,
                               error));
    return esp_tokenizer_bool(tokenizer, model, "fuse_unk", false, &tokenizer->fuse_unknown, error);
}

/* `truncation` and `padding` belong to batches of training examples and are not read. */
static esp_status load(esp_tokenizer *tokenizer, const json_t *json, esp_error *error)
{
    const json_t *model = json_object_get(json, "model");
    const json_t *added = json_object_get(json, "added_tokens");
    const char *version = json_string_value(json_object_get(json, "version"));
    if (version == NULL || strcmp(version, "1.0") != 0) {
        return esp_fail(error, ESP_UNSUPPORTED, "tokenizer.version",
                        "%s: version must be \"1.0\", found \"%.40s\"", tokenizer->path,
                        version != NULL ? version : "none");
    }
    if (added != NULL && !json_is_null(added) && !json_is_array(added)) {
        return esp_tokenizer_bad_field(tokenizer, "added_tokens", "an array", error);
    }
    ESP_TRY(check_model(tokenizer, model, error));
    ESP_TRY(esp_tokenizer_load_normalizer(tokenizer, json_object_get(json, "normalizer"), error));
    ESP_TRY(esp_tokenizer_load_steps(tokenizer, json_object_get(json, "pre_tokenizer"), error));
    if (tokenizer->byte_level && tokenizer->wordpiece) {
        return esp_fail(error, ESP_UNSUPPORTED, "tokenizer.unsupported_model",
                        "%s: model WordPiece beside pre_tokenizer ByteLevel is not supported",
                        tokenizer->path);
    }
    if (tokenizer->byte_level) {
        ESP_TRY(must_be_off(tokenizer, model, "byte_fallback", error));
    }
    ESP_TRY(esp_tokenizer_load_decoder(tokenizer, json_object_get(json, "decoder"), error));
    ESP_TRY(esp_tokenizer_load_vocabulary(tokenizer, model, added, error));
    ESP_TRY(esp_tokenizer_load_added(tokenizer, added, error));
    ESP_TRY(tokenizer->wordpiece ? esp_wordpiece_load(tokenizer, model, error)
                                 : esp_tokenizer_load_merges(tokenizer, model, error));
    return esp_tokenizer_load_template(tokenizer, json_object_get(json, "post_processor"), error);
}

static esp_status create(esp_context *context, const char *model_dir, esp_tokenizer **tokenizer,
                         esp_error *error)
{
    esp_tokenizer *made = esp_alloc_zero(context, sizeof *made);
    if (made == NULL) {
        return esp_fail_memory(error, sizeof *made, "a tokenizer");
    }
    made->context = context;
    esp_buffer_init(&made->bytes, context);
    esp_buffer path;
    esp_buffer_init(&path, context);
    esp_buffer_printf(&path, "%s/tokenizer.json", model_dir);
    made->path = path.data;
    made->regex_memory = pcre2_general_context_create(regex_allocate, regex_release, context);
    if (path.failed || made->regex_memory == NULL) {
        esp_tokenizer_close(made);
        return esp_fail_memory(error, 0, "a tokenizer");
    }
    *tokenizer = made;
    return ESP_OK;
}

esp_status esp_tokenizer_open(esp_context *context, const char *model_dir,
                              esp_tokenizer **tokenizer, esp_error *error)
{
    esp_tokenizer *made = NULL;
    json_t *json = NULL;
    ESP_TRY(create(context, model_dir, &made, error));
    esp_status status =
        esp_json_load(context, made->path, ESP_TOKENIZER_MAX_FILE, &json, NULL, error);
    if (status == ESP_OK) {
        status = load(made, json, error);
        json_decref(json);
    }
    if (status != ESP_OK) {
        esp_tokenizer_close(made);
        return status;
    }
    *tokenizer = made;
    return ESP_OK;
}

void esp_tokenizer_close(esp_tokenizer *tokenizer)
{
    if (tokenizer == NULL) {
        return;
    }
    esp_context *context = tokenizer->context;
    for (int i = 0; i < tokenizer->step_count; i++) {
        pcre2_code_free(tokenizer->steps[i].regex);
    }
    for (int i = 0; i < tokenizer->fold_count; i++) {
        pcre2_code_free(tokenizer->folds[i].regex);
    }
    pcre2_general_context_free(tokenizer->regex_memory);
    esp_buffer_free(&tokenizer->bytes);
    esp_release(context, tokenizer->path);
    esp_release(context, tokenizer->tokens);
    esp_release(context, tokenizer->raw.tokens);
    esp_release(context, tokenizer->normalized.tokens);
    esp_release(context, tokenizer->characters);
    esp_release(context, tokenizer->merges);
    esp_release(context, tokenizer->words);
    esp_release(context, tokenizer->starts.ids);
    esp_release(context, tokenizer->insides.ids);
    esp_release(context, tokenizer);
}

int64_t esp_tokenizer_size(const esp_tokenizer *tokenizer)
{
    return tokenizer->size;
}

static int copy_ids(const int32_t *from, int count, int32_t *ids, int capacity)
{
    if (ESP_MIN(capacity, count) > 0) {
        memcpy(ids, from, (size_t)ESP_MIN(capacity, count) * sizeof *ids);
    }
    return count;
}

int esp_tokenizer_prefix(const esp_tokenizer *tokenizer, int32_t *ids, int capacity)
{
    return copy_ids(tokenizer->prefix, tokenizer->prefix_count, ids, capacity);
}

int esp_tokenizer_suffix(const esp_tokenizer *tokenizer, int32_t *ids, int capacity)
{
    return copy_ids(tokenizer->suffix, tokenizer->suffix_count, ids, capacity);
}
