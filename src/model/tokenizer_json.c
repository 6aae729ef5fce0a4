/* The parts of tokenizer.json around the model: pre_tokenizer and post_processor. Everything that
 * is not known to mean the same here is refused by its name. */
#include "model/tokenizer.h"

#define GPT2_REGEX                                                                                 \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

const char *esp_tokenizer_type(const json_t *part)
{
    const char *type = json_string_value(json_object_get(part, "type"));
    return type != NULL ? type : "";
}

esp_status esp_tokenizer_bad_field(const esp_tokenizer *tokenizer, const char *what,
                                   const char *expected, esp_error *error)
{
    return esp_fail(error, ESP_BAD_FILE, "tokenizer.bad_field", "%s: %s must be %s",
                    tokenizer->path, what, expected);
}

esp_status esp_tokenizer_bool(const esp_tokenizer *tokenizer, const json_t *part, const char *key,
                              bool fallback, bool *value, esp_error *error)
{
    const json_t *found = json_object_get(part, key);
    if (found == NULL || json_is_null(found)) {
        *value = fallback;
        return ESP_OK;
    }
    if (!json_is_boolean(found)) {
        return esp_tokenizer_bad_field(tokenizer, key, "true or false", error);
    }
    *value = json_is_true(found);
    return ESP_OK;
}

/* ---- pre_tokenizer ---- */

static esp_status refuse(const esp_tokenizer *tokenizer, const char *what, esp_error *error)
{
    return esp_fail(
        error, ESP_UNSUPPORTED, "tokenizer.unsupported_pre_tokenizer",
        "%s: pre_tokenizer %.80s is not supported; known are null, ByteLevel (last), Split "
        "(Isolated, Removed), Digits, Metaspace, BertPreTokenizer and Sequence of them",
        tokenizer->path, what[0] != '\0' ? what : "without a type");
}

static esp_status new_step(esp_tokenizer *tokenizer, esp_step_kind kind, esp_step **step,
                           esp_error *error)
{
    if (tokenizer->step_count == ESP_TOKENIZER_MAX_STEPS) {
        return refuse(tokenizer, "Sequence of more than 16 steps", error);
    }
    *step = &tokenizer->steps[tokenizer->step_count++];
    (*step)->kind = kind;
    return ESP_OK;
}

static esp_status split_by(esp_tokenizer *tokenizer, const char *pattern, bool literal,
                           esp_step **step, esp_error *error)
{
    ESP_TRY(new_step(tokenizer, ESP_STEP_SPLIT, step, error));
    return esp_tokenizer_compile(tokenizer, pattern, literal, &(*step)->regex, error);
}

static esp_status load_split(esp_tokenizer *tokenizer, const json_t *part, esp_error *error)
{
    const json_t *pattern = json_object_get(part, "pattern");
    const char *regex = json_string_value(json_object_get(pattern, "Regex"));
    const char *literal = json_string_value(json_object_get(pattern, "String"));
    const char *behavior = json_string_value(json_object_get(part, "behavior"));
    if (regex == NULL && literal == NULL) {
        return esp_tokenizer_bad_field(tokenizer, "Split.pattern",
                                       "{\"Regex\": ...} or {\"String\": ...}", error);
    }
    bool removed = behavior != NULL && strcmp(behavior, "Removed") == 0;
    if (!removed && (behavior == NULL || strcmp(behavior, "Isolated") != 0)) {
        char what[96];
        snprintf(what, sizeof what, "Split with behavior %.60s",
                 behavior != NULL ? behavior : "missing");
        return refuse(tokenizer, what, error);
    }
    bool invert = false;
    ESP_TRY(esp_tokenizer_bool(tokenizer, part, "invert", false, &invert, error));
    esp_step *step = NULL;
    ESP_TRY(split_by(tokenizer, regex != NULL ? regex : literal, regex == NULL, &step, error));
    step->drop_matches = removed && !invert;
    step->drop_others = removed && invert;
    return ESP_OK;
}

/* Numbers that came after Unicode 14, which is PCRE2 10.42's. */
#define NEWER_NUMBERS                                                                              \
    "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11de0}-\\x{11de9}"         \
    "\\x{11f50}-\\x{11f59}\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{16ff4}-\\x{16ff6}"         \
    "\\x{1ccf0}-\\x{1ccf9}\\x{1d2c0}-\\x{1d2d3}\\x{1e4f0}-\\x{1e4f9}\\x{1e5f1}-\\x{1e5fa}"

static esp_status load_digits(esp_tokenizer *tokenizer, const json_t *part, esp_error *error)
{
    bool individual = false;
    esp_step *step = NULL;
    ESP_TRY(esp_tokenizer_bool(tokenizer, part, "individual_digits", false, &individual, error));
    return split_by(tokenizer,
                    individual ? "[\\p{N}" NEWER_NUMBERS "]" : "[\\p{N}" NEWER_NUMBERS "]+", false,
                    &step, error);
}

static esp_status load_byte_level(esp_tokenizer *tokenizer, const json_t *part, esp_error *error)
{
    bool prefix = false, regex = true;
    esp_step *step = NULL;
    if (!json_is_boolean(json_object_get(part, "add_prefix_space"))) {
        return esp_tokenizer_bad_field(tokenizer, "ByteLevel.add_prefix_space", "true or false",
                                       error);
    }
    ESP_TRY(esp_tokenizer_bool(tokenizer, part, "add_prefix_space", false, &prefix, error));
    ESP_TRY(esp_tokenizer_bool(tokenizer, part, "use_regex", true, &regex, error));
    if (prefix) {
        ESP_TRY(new_step(tokenizer, ESP_STEP_PREFIX_SPACE, &step, error));
    }
    return regex ? split_by(tokenizer, GPT2_REGEX, false, &step, error) : ESP_OK;
}

esp_status esp_tokenizer_metaspace(const esp_tokenizer *tokenizer, const json_t *part,
                                   esp_metaspace *metaspace, esp_error *error)
{
    static const char *const schemes[] = {[ESP_PREPEND_ALWAYS] = "always",
                                          [ESP_PREPEND_FIRST] = "first",
                                          [ESP_PREPEND_NEVER] = "never"};
    const json_t *named = json_object_get(part, "prepend_scheme");
    const char *name = json_string_value(named);
    const char *mark = json_string_value(json_object_get(part, "replacement"));
    int32_t point = 0;
    if (mark == NULL || mark[0] == '\0' ||
        esp_utf8_next(mark, strlen(mark), &point) != strlen(mark)) {
        return esp_tokenizer_bad_field(tokenizer, "Metaspace.replacement", "one character", error);
    }
    snprintf(metaspace->replacement, sizeof metaspace->replacement, "%s", mark);
    int scheme = ESP_PREPEND_ALWAYS;
    while (name != NULL && scheme < ESP_COUNT(schemes) && strcmp(schemes[scheme], name) != 0) {
        scheme++;
    }
    bool prefix = true;
    ESP_TRY(esp_tokenizer_bool(tokenizer, part, "add_prefix_space", true, &prefix, error));
    if (!prefix && named == NULL) {
        scheme = ESP_PREPEND_NEVER; /* as files say that are older than prepend_scheme */
    }
    if (scheme == ESP_COUNT(schemes) || (named != NULL && name == NULL) ||
        (!prefix && scheme != ESP_PREPEND_NEVER)) {
        return esp_tokenizer_bad_field(
            tokenizer, "Metaspace.prepend_scheme",
            "\"always\", \"first\" or \"never\", and \"never\" beside add_prefix_space false",
            error);
    }
    metaspace->scheme = (esp_prepend)scheme;
    return esp_tokenizer_bool(tokenizer, part, "split", true, &metaspace->split, error);
}

static esp_status load_metaspace(esp_tokenizer *tokenizer, const json_t *part, esp_error *error)
{
    for (int i = 0; i < tokenizer->step_count; i++) {
        if (tokenizer->steps[i].kind == ESP_STEP_METASPACE) {
            return refuse(tokenizer, "Metaspace twice", error);
        }
    }
    esp_step *step = NULL;
    ESP_TRY(new_step(tokenizer, ESP_STEP_METASPACE, &step, error));
    return esp_tokenizer_metaspace(tokenizer, part, &step->metaspace, error);
}

/* One part that is no Sequence. ByteLevel, which is the last one, makes the file byte-level. */
static esp_status load_step(esp_tokenizer *tokenizer, const json_t *part, esp_error *error)
{
    const char *type = esp_tokenizer_type(part);
    if (strcmp(type, "ByteLevel") == 0) {
        return load_byte_level(tokenizer, part, error);
    }
    if (strcmp(type, "Split") == 0) {
        return load_split(tokenizer, part, error);
    }
    if (strcmp(type, "Digits") == 0) {
        return load_digits(tokenizer, part, error);
    }
    if (strcmp(type, "BertPreTokenizer") == 0) {
        esp_step *step = NULL;
        return new_step(tokenizer, ESP_STEP_BERT, &step, error);
    }
    if (strcmp(type, "Metaspace") == 0) {
        return tokenizer->byte_level ? refuse(tokenizer, "Metaspace beside ByteLevel", error)
                                     : load_metaspace(tokenizer, part, error);
    }
    return refuse(tokenizer, type, error);
}

esp_status esp_tokenizer_load_steps(esp_tokenizer *tokenizer, const json_t *pre_tokenizer,
                                    esp_error *error)
{
    if (pre_tokenizer == NULL || json_is_null(pre_tokenizer)) {
        return ESP_OK;
    }
    if (strcmp(esp_tokenizer_type(pre_tokenizer), "Sequence") != 0) {
        tokenizer->byte_level = strcmp(esp_tokenizer_type(pre_tokenizer), "ByteLevel") == 0;
        return load_step(tokenizer, pre_tokenizer, error);
    }
    const json_t *parts = json_object_get(pre_tokenizer, "pretokenizers");
    size_t count = json_array_size(parts);
    if (count == 0) {
        return refuse(tokenizer, "Sequence without parts", error);
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *part = json_array_get(parts, i);
        bool byte_level = strcmp(esp_tokenizer_type(part), "ByteLevel") == 0;
        if (byte_level && i + 1 < count) {
            return refuse(tokenizer, "ByteLevel before other parts", error);
        }
        tokenizer->byte_level |= byte_level;
    }
    for (size_t i = 0; i < count; i++) {
        ESP_TRY(load_step(tokenizer, json_array_get(parts, i), error));
    }
    return ESP_OK;
}

/* ---- post_processor ---- */

static esp_status bad_template(const esp_tokenizer *tokenizer, const char *what, esp_error *error)
{
    return esp_fail(error, ESP_BAD_FILE, "tokenizer.bad_template", "%s: post_processor: %.120s",
                    tokenizer->path, what);
}

static bool insert(int32_t *ids, int *count, int at, int32_t id)
{
    if (*count == ESP_TOKENIZER_MAX_TEMPLATE) {
        return false;
    }
    memmove(ids + at + 1, ids + at, (size_t)(*count - at) * sizeof *ids);
    ids[at] = id;
    ++*count;
    return true;
}

/* The ids of a special token of the template go before everything that an earlier template put
 * before the text, or behind everything that one put behind it. */
static esp_status add_special(esp_tokenizer *tokenizer, const json_t *ids, bool behind, int *placed,
                              esp_error *error)
{
    for (size_t i = 0; i < json_array_size(ids); i++) {
        int32_t id = 0;
        ESP_TRY(esp_tokenizer_id(tokenizer, json_array_get(ids, i), "of the template", &id, error));
        if (id >= tokenizer->size || !tokenizer->tokens[id].known) {
            return bad_template(tokenizer, "it uses an id that no token has", error);
        }
        bool room = behind ? insert(tokenizer->suffix, &tokenizer->suffix_count,
                                    tokenizer->suffix_count, id)
                           : insert(tokenizer->prefix, &tokenizer->prefix_count, (*placed)++, id);
        if (!room) {
            return bad_template(tokenizer, "more than 16 tokens before or behind a text", error);
        }
    }
    return ESP_OK;
}

static esp_status load_one_template(esp_tokenizer *tokenizer, const json_t *part, esp_error *error)
{
    const json_t *single = json_object_get(part, "single");
    const json_t *specials = json_object_get(part, "special_tokens");
    bool behind = false;
    int placed = 0;
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *piece = json_array_get(single, i);
        const json_t *sequence = json_object_get(piece, "Sequence");
        const char *name =
            json_string_value(json_object_get(json_object_get(piece, "SpecialToken"), "id"));
        if (sequence != NULL) {
            const char *which = json_string_value(json_object_get(sequence, "id"));
            if (behind || which == NULL || strcmp(which, "A") != 0) {
                return bad_template(tokenizer, "\"single\" must hold the text $A exactly once",
                                    error);
            }
            behind = true;
            continue;
        }
        const json_t *special = name != NULL ? json_object_get(specials, name) : NULL;
        const json_t *ids = json_object_get(special, "ids");
        if (!json_is_array(ids)) {
            return bad_template(tokenizer, "a special token of \"single\" is not in special_tokens",
                                error);
        }
        ESP_TRY(add_special(tokenizer, ids, behind, &placed, error));
    }
    return behind ? ESP_OK : bad_template(tokenizer, "\"single\" must hold the text $A", error);
}

/* [text, id] */
static esp_status load_bert_token(esp_tokenizer *tokenizer, const json_t *part, const char *key,
                                  bool behind, esp_error *error)
{
    const json_t *pair = json_object_get(part, key);
    int placed = 0;
    if (json_array_size(pair) != 2 || !json_is_string(json_array_get(pair, 0))) {
        return bad_template(tokenizer, "\"cls\" and \"sep\" must be a token and its id", error);
    }
    json_t *ids = json_pack("[O]", json_array_get(pair, 1));
    if (ids == NULL) {
        return esp_fail_memory(error, 64, "reading a template");
    }
    esp_status status = add_special(tokenizer, ids, behind, &placed, error);
    json_decref(ids);
    return status;
}

static esp_status load_template_part(esp_tokenizer *tokenizer, const json_t *part, esp_error *error)
{
    const char *type = esp_tokenizer_type(part);
    if (strcmp(type, "ByteLevel") == 0) { /* changes offsets only */
        return ESP_OK;
    }
    if (strcmp(type, "TemplateProcessing") == 0) {
        return load_one_template(tokenizer, part, error);
    }
    if (strcmp(type, "BertProcessing") == 0) {
        ESP_TRY(load_bert_token(tokenizer, part, "cls", false, error));
        return load_bert_token(tokenizer, part, "sep", true, error);
    }
    return esp_fail(error, ESP_UNSUPPORTED, "tokenizer.unsupported_post_processor",
                    "%s: post_processor %.80s is not supported; known are TemplateProcessing, "
                    "BertProcessing, ByteLevel and Sequence of them",
                    tokenizer->path, type[0] != '\0' ? type : "without a type");
}

esp_status esp_tokenizer_load_template(esp_tokenizer *tokenizer, const json_t *post_processor,
                                       esp_error *error)
{
    if (post_processor == NULL || json_is_null(post_processor)) {
        return ESP_OK;
    }
    if (strcmp(esp_tokenizer_type(post_processor), "Sequence") != 0) {
        return load_template_part(tokenizer, post_processor, error);
    }
    const json_t *parts = json_object_get(post_processor, "processors");
    for (size_t i = 0; i < json_array_size(parts); i++) {
        ESP_TRY(load_template_part(tokenizer, json_array_get(parts, i), error));
    }
    return ESP_OK;
}
