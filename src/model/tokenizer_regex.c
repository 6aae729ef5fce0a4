/* Regular expressions of tokenizer files, run by PCRE2.
 *
 * The files are written for Oniguruma (Ruby syntax, Unicode). Most of what they use means the same
 * in PCRE2; the few differences (\s, \w) are respelled, and what could mean something else is
 * refused instead of guessed. Patterns come from outside: matching has step, heap and depth limits.
 */
#include "model/tokenizer.h"

/* The White_Space property; PCRE2's \s has U+180E besides. */
#define SPACE_SET                                                                                  \
    "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"                \
    "\\x{205f}\\x{3000}"
/* Word characters by UTS 18; PCRE2's \w lacks marks. */
#define WORD_SET "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"

#define MATCH_LIMIT 20000000u
#define DEPTH_LIMIT 1000000u
#define HEAP_LIMIT_KIB (256u << 10)

/* pattern[at] follows a backslash. Returns the characters taken, 0 when unsupported. */
static size_t translate_escape(const char *rest, bool in_class, esp_buffer *out)
{
    const char *set = NULL;
    switch (rest[0]) {
    case 's':
        set = in_class ? SPACE_SET : "[" SPACE_SET "]";
        break;
    case 'S':
        set = in_class ? "\\S\\x{180e}" : "[^" SPACE_SET "]";
        break;
    case 'w':
        set = in_class ? WORD_SET : "[" WORD_SET "]";
        break;
    case 'W':
        set = in_class ? NULL : "[^" WORD_SET "]";
        break;
    default:
        break;
    }
    if (set != NULL) {
        esp_buffer_text(out, set);
        return 1;
    }
    bool punctuation = rest[0] > ' ' && rest[0] < 0x7f &&
                       strchr("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", rest[0]) != NULL;
    if (punctuation || rest[0] == ' ' ||
        (rest[0] != '\0' && strchr("rntfdDpPx", rest[0]) != NULL)) {
        esp_buffer_text(out, "\\");
        esp_buffer_append(out, rest, 1);
        return 1;
    }
    if (rest[0] == 'u' && strspn(rest + 1, "0123456789abcdefABCDEF") >= 4) {
        esp_buffer_printf(out, "\\x{%.4s}", rest + 1);
        return 5;
    }
    return 0;
}

/* A '(?' group that means the same in both: (?: (?= (?! (?<= (?<! (?> and (?i: . */
static bool group_is_known(const char *rest)
{
    static const char *const known[] = {"?:", "?=", "?!", "?<=", "?<!", "?>", "?i:", "?i)"};
    if (rest[0] == '*') { /* a PCRE2 verb */
        return false;
    }
    if (rest[0] != '?') {
        return true;
    }
    for (int i = 0; i < ESP_COUNT(known); i++) {
        if (strncmp(rest, known[i], strlen(known[i])) == 0) {
            return true;
        }
    }
    return false;
}

bool esp_regex_translate(const char *pattern, esp_buffer *out, const char **reason)
{
    bool in_class = false;
    for (const char *at = pattern; *at != '\0';) {
        if (*at == '\\') {
            size_t taken = translate_escape(at + 1, in_class, out);
            if (taken == 0) {
                *reason = "an escape that is not supported here";
                return false;
            }
            at += 1 + taken;
            continue;
        }
        if (in_class && (*at == '[' || strncmp(at, "&&", 2) == 0)) {
            *reason = "a nested class or class intersection, which is not supported";
            return false;
        }
        if (!in_class && *at == '(' && !group_is_known(at + 1)) {
            *reason = "a kind of group that is not supported";
            return false;
        }
        bool opens = !in_class && *at == '[', closes = in_class && *at == ']';
        esp_buffer_append(out, at++, 1);
        if (opens) {
            in_class = true;
            if (*at == '^') {
                esp_buffer_append(out, at++, 1);
            }
            if (*at == ']') {
                *reason = "a class that begins with ']'; write \\]";
                return false;
            }
        } else if (closes) {
            in_class = false;
        }
    }
    return true;
}

esp_status esp_tokenizer_compile(const esp_tokenizer *tokenizer, const char *pattern, bool literal,
                                 pcre2_code **regex, esp_error *error)
{
    esp_buffer spelled;
    esp_buffer_init(&spelled, tokenizer->context);
    const char *reason = NULL;
    if (literal) {
        esp_buffer_text(&spelled, pattern);
    } else if (!esp_regex_translate(pattern, &spelled, &reason)) {
        esp_buffer_free(&spelled);
        return esp_fail(error, ESP_UNSUPPORTED, "tokenizer.unsupported_regex",
                        "%s: the pattern \"%.200s\" has %s", tokenizer->path, pattern, reason);
    }
    pcre2_compile_context *limits = pcre2_compile_context_create(tokenizer->regex_memory);
    if (spelled.failed || limits == NULL) {
        esp_buffer_free(&spelled);
        pcre2_compile_context_free(limits);
        return esp_fail_memory(error, strlen(pattern), "compiling a regular expression");
    }
    pcre2_set_max_pattern_length(limits, 1 << 20);
    uint32_t options = PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_MULTILINE);
    int code = 0;
    size_t offset = 0;
    pcre2_code *compiled = pcre2_compile((PCRE2_SPTR)(spelled.data != NULL ? spelled.data : ""),
                                         spelled.length, options, &code, &offset, limits);
    pcre2_compile_context_free(limits);
    esp_buffer_free(&spelled);
    if (compiled == NULL) {
        PCRE2_UCHAR text[128] = "";
        pcre2_get_error_message(code, text, sizeof text);
        if (code == PCRE2_ERROR_HEAP_FAILED) {
            return esp_fail_memory(error, strlen(pattern), "compiling a regular expression");
        }
        return esp_fail(error, ESP_BAD_FILE, "tokenizer.bad_regex",
                        "%s: the pattern \"%.200s\" does not compile: %s", tokenizer->path, pattern,
                        (const char *)text);
    }
    (void)pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE); /* without JIT it is only slower */
    *regex = compiled;
    return ESP_OK;
}

static esp_status prepare(esp_encoder *encoder)
{
    pcre2_general_context *memory = encoder->tokenizer->regex_memory;
    if (encoder->match != NULL) {
        return ESP_OK;
    }
    encoder->match = pcre2_match_data_create(1, memory);
    encoder->limits = pcre2_match_context_create(memory);
    if (encoder->match == NULL || encoder->limits == NULL) {
        return esp_fail_memory(encoder->error, 0, "matching a regular expression");
    }
    pcre2_set_match_limit(encoder->limits, MATCH_LIMIT);
    pcre2_set_depth_limit(encoder->limits, DEPTH_LIMIT);
    pcre2_set_heap_limit(encoder->limits, HEAP_LIMIT_KIB);
    encoder->stack = pcre2_jit_stack_create(32 << 10, 8 << 20, memory);
    if (encoder->stack != NULL) { /* NULL also where there is no JIT */
        pcre2_jit_stack_assign(encoder->limits, NULL, encoder->stack);
    }
    return ESP_OK;
}

static esp_status match_failed(const esp_encoder *encoder, int code)
{
    PCRE2_UCHAR text[128] = "";
    if (code == PCRE2_ERROR_NOMEMORY) {
        return esp_fail_memory(encoder->error, 0, "matching a regular expression");
    }
    pcre2_get_error_message(code, text, sizeof text);
    return esp_fail(encoder->error, ESP_BAD_FILE, "tokenizer.regex_limit",
                    "%s: a pattern takes too much work on this text: %s; the pattern "
                    "backtracks without bound or the text is hostile",
                    encoder->tokenizer->path, (const char *)text);
}

esp_status esp_regex_next(esp_encoder *encoder, const pcre2_code *regex, const char *text,
                          size_t length, size_t *from, bool *after_match, bool *found,
                          size_t *start, size_t *end)
{
    ESP_TRY(prepare(encoder));
    *found = false;
    while (*from <= length) {
        int code = pcre2_match(regex, (PCRE2_SPTR)text, length, *from, PCRE2_NO_UTF_CHECK,
                               encoder->match, encoder->limits);
        if (code == PCRE2_ERROR_JIT_STACKLIMIT) {
            code = pcre2_match(regex, (PCRE2_SPTR)text, length, *from,
                               PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, encoder->match, encoder->limits);
        }
        if (code == PCRE2_ERROR_NOMATCH) {
            return ESP_OK;
        }
        if (code < 0) {
            return match_failed(encoder, code);
        }
        const size_t *span = pcre2_get_ovector_pointer(encoder->match);
        if (span[1] == span[0] && *after_match && span[1] == *from) {
            int32_t ignored;
            *from += *from < length ? esp_utf8_next(text + *from, length - *from, &ignored) : 1;
            *after_match = false;
            continue;
        }
        *start = span[0];
        *end = *from = ESP_MAX(span[1], span[0]);
        *after_match = *found = true;
        return ESP_OK;
    }
    return ESP_OK;
}
