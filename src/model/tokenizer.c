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

static esp_status unsupported(const esp_tokenizer *tokenizer, const char *code, const char *part,
                              const char *type, const char *known, esp_error *error)
{
    return esp_fail(error, ESP_UNSUPPORTED, code, "%s: %s %.80s is not supported; known: %s",
                    tokenizer->path, part, type[0] != '\0' ? type : "without a type", known);
}

static esp_status load_normalizer(esp_tokenizer *tokenizer, const json_t *part, esp_error *error)
{
    if (part == NULL || json_is_null(part)) {
        return ESP_OK;
    }
    const char *type = esp_tokenizer_type(part);
    if (strcmp(type, "NFC") == 0) {
        tokenizer->nfc = true;
        return ESP_OK;
    }
    const json_t *parts = json_object_get(part, "normalizers");
    if (strcmp(type, "Sequence") != 0 || !json_is_array(parts)) {
        return unsupported(tokenizer, "tokenizer.unsupported_normalizer", "normalizer", type,
                           "null, NFC", error);
    }
    for (size_t i = 0; i < json_array_size(parts); i++) {
        const char *inner = esp_tokenizer_type(json_array_get(parts, i));
        if (strcmp(inner, "NFC") != 0) {
            return unsupported(tokenizer, "tokenizer.unsupported_normalizer", "normalizer", inner,
                               "null, NFC", error);
        }
        tokenizer->nfc = true;
    }
    return ESP_OK;
}

static esp_status check_decoder(const esp_tokenizer *tokenizer, const json_t *part,
                                esp_error *error)
{
    const json_t *parts = json_object_get(part, "decoders");
    if (strcmp(esp_tokenizer_type(part), "Sequence") == 0 && json_array_size(parts) == 1) {
        part = json_array_get(parts, 0);
    }
    const char *type = esp_tokenizer_type(part);
    if (strcmp(type, "ByteLevel") != 0) {
        return unsupported(tokenizer, "tokenizer.unsupported_decoder", "decoder", type, "ByteLevel",
                           error);
    }
    return ESP_OK;
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
    return esp_fail(
        error, ESP_UNSUPPORTED, "tokenizer.unsupported_model",
        "%s: model.%s is set, which is not supported: only byte-level BPE without it is",
        tokenizer->path, key);
}

static esp_status check_model(esp_tokenizer *tokenizer, const json_t *model, esp_error *error)
{
    static const char *const off[] = {"dropout", "byte_fallback", "continuing_subword_prefix",
                                      "end_of_word_suffix"};
    const char *type = esp_tokenizer_type(model);
    /* Old files leave the type out; then vocab and merges say that it is BPE. */
    bool untyped = json_is_object(model) && json_object_get(model, "type") == NULL &&
                   json_object_get(model, "merges") != NULL;
    if (strcmp(type, "BPE") != 0 && !untyped) {
        return unsupported(tokenizer, "tokenizer.unsupported_model", "model", type, "BPE", error);
    }
    for (int i = 0; i < ESP_COUNT(off); i++) {
        ESP_TRY(must_be_off(tokenizer, model, off[i], error));
    }
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
    ESP_TRY(load_normalizer(tokenizer, json_object_get(json, "normalizer"), error));
    ESP_TRY(check_decoder(tokenizer, json_object_get(json, "decoder"), error));
    ESP_TRY(esp_tokenizer_load_steps(tokenizer, json_object_get(json, "pre_tokenizer"), error));
    ESP_TRY(esp_tokenizer_load_vocabulary(tokenizer, model, added, error));
    ESP_TRY(esp_tokenizer_load_added(tokenizer, added, error));
    ESP_TRY(esp_tokenizer_load_merges(tokenizer, model, error));
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
    pcre2_general_context_free(tokenizer->regex_memory);
    esp_buffer_free(&tokenizer->bytes);
    esp_release(context, tokenizer->path);
    esp_release(context, tokenizer->tokens);
    esp_release(context, tokenizer->raw.tokens);
    esp_release(context, tokenizer->normalized.tokens);
    esp_release(context, tokenizer->merges);
    esp_release(context, tokenizer->words);
    esp_release(context, tokenizer);
}

int64_t esp_tokenizer_size(const esp_tokenizer *tokenizer)
{
    return tokenizer->size;
}

const char *esp_tokenizer_token(const esp_tokenizer *tokenizer, int32_t id, bool show_special,
                                size_t *length)
{
    if (id < 0 || id >= tokenizer->size || !tokenizer->tokens[id].known) {
        *length = 0;
        return NULL;
    }
    const esp_token *token = &tokenizer->tokens[id];
    *length = token->special && !show_special ? 0 : token->length;
    return tokenizer->bytes.data != NULL ? tokenizer->bytes.data + token->offset : "";
}

int esp_tokenizer_prefix(const esp_tokenizer *tokenizer, int32_t *ids, int capacity)
{
    int count = ESP_MIN(capacity, tokenizer->prefix_count);
    if (count > 0) {
        memcpy(ids, tokenizer->prefix, (size_t)count * sizeof *ids);
    }
    return tokenizer->prefix_count;
}
