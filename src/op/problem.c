/* Problem strings: the text form of a product, as bench, checker, logs and tuning files name it.
 * One strict parser and its exact reverse: printing leaves out what is default, and what is printed
 * parses back to the same problem. Grammar: matmul.h. */
#include <ctype.h>
#include <stdio.h>

#include "op/op.h"

#define SHOW "write e.g. matmul/64:2:8/bf16/4096x4096x512/x:tok/ep:bias+silu"
#define MAX_FEATURES ((int64_t)1 << 32)
#define MAX_TOKENS ((int64_t)1 << 31)

static const struct {
    const char *word;
    unsigned bit;
} epilogue_words[] = {
    {"scale", ESP_EP_SCALE},   {"bias", ESP_EP_BIAS},           {"relu", ESP_EP_RELU},
    {"gelu", ESP_EP_GELU},     {"gelu_tanh", ESP_EP_GELU_TANH}, {"silu", ESP_EP_SILU},
    {"swiglu", ESP_EP_SWIGLU}, {"residual", ESP_EP_RESIDUAL},
};

#define ACTIVATIONS (ESP_EP_RELU | ESP_EP_GELU | ESP_EP_GELU_TANH | ESP_EP_SILU | ESP_EP_SWIGLU)

/* A piece of the text between slashes. */
typedef struct piece {
    const char *begin;
    size_t length;
} piece;

static piece next_piece(const char **rest)
{
    piece found = {*rest, strcspn(*rest, "/")};
    *rest += found.length;
    if (**rest == '/') {
        (*rest)++;
    }
    return found;
}

static bool piece_is(piece part, const char *word)
{
    return part.length == strlen(word) && memcmp(part.begin, word, part.length) == 0;
}

/* At most capacity - 1 characters; longer pieces are cut, which no valid word is. */
static void piece_copy(piece part, char *text, size_t capacity)
{
    size_t length = ESP_MIN(part.length, capacity - 1);
    memcpy(text, part.begin, length);
    text[length] = '\0';
}

static esp_status parse_type(piece part, const char *what, esp_dtype *dtype, esp_error *error)
{
    char text[32];
    piece_copy(part, text, sizeof text);
    esp_dtype found = esp_dtype_from_short_name(text);
    if (!esp_dtype_is_weight(found)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "problem.bad_type",
                        "problem: %s '%s' is not f32, f16 or bf16; " SHOW, what, text);
    }
    *dtype = found;
    return ESP_OK;
}

static bool parse_number(const char **text, int64_t *value)
{
    int64_t number = 0;
    int digits = 0;
    for (; isdigit((unsigned char)**text); (*text)++) {
        if (++digits > 10) {
            return false;
        }
        number = 10 * number + (**text - '0');
    }
    *value = number;
    return digits > 0;
}

static esp_status parse_sizes(piece part, esp_matmul_problem *problem, esp_error *error)
{
    char text[64];
    piece_copy(part, text, sizeof text);
    const char *at = text;
    bool right = parse_number(&at, &problem->out_features) && *at++ == 'x' &&
                 parse_number(&at, &problem->in_features) && *at++ == 'x' &&
                 parse_number(&at, &problem->tokens) && *at == '\0';
    if (!right) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "problem.bad_sizes",
                        "problem: sizes '%s' are not OUTxINxTOKENS; " SHOW, text);
    }
    return ESP_OK;
}

static esp_status parse_epilogue(piece part, unsigned *epilogue, esp_error *error)
{
    unsigned bits = 0;
    for (const char *at = part.begin, *end = part.begin + part.length; at <= end;) {
        piece word = {at, 0};
        while (at + word.length < end && at[word.length] != '+') {
            word.length++;
        }
        unsigned bit = 0;
        for (int i = 0; i < ESP_COUNT(epilogue_words); i++) {
            bit |= piece_is(word, epilogue_words[i].word) ? epilogue_words[i].bit : 0;
        }
        if (bit == 0 || (bits & bit) != 0) {
            char text[32];
            piece_copy(word, text, sizeof text);
            return esp_fail(error, ESP_BAD_ARGUMENT, "problem.bad_epilogue",
                            "problem: epilogue word '%s' is %s; words are scale, bias, relu, gelu, "
                            "gelu_tanh, silu, swiglu, residual; " SHOW,
                            text, bit == 0 ? "not known" : "given twice");
        }
        bits |= bit;
        at += word.length + 1;
    }
    *epilogue = bits;
    return ESP_OK;
}

static esp_status parse_layout(piece part, esp_layout *layout, esp_error *error)
{
    if (piece_is(part, "feat") || piece_is(part, "tok")) {
        *layout = piece_is(part, "tok") ? ESP_TOKEN_MAJOR : ESP_FEATURE_MAJOR;
        return ESP_OK;
    }
    char text[32];
    piece_copy(part, text, sizeof text);
    return esp_fail(error, ESP_BAD_ARGUMENT, "problem.bad_layout",
                    "problem: layout '%s' is neither feat nor tok; " SHOW, text);
}

static esp_status parse_compute(piece part, esp_compute *compute, esp_error *error)
{
    for (int i = ESP_COMPUTE_AUTO; i <= ESP_COMPUTE_BF16; i++) {
        if (piece_is(part, esp_compute_name((esp_compute)i))) {
            *compute = (esp_compute)i;
            return ESP_OK;
        }
    }
    char text[32];
    piece_copy(part, text, sizeof text);
    return esp_fail(error, ESP_BAD_ARGUMENT, "problem.bad_compute",
                    "problem: compute type '%s' is not auto, f32 or bf16; " SHOW, text);
}

/* One option KEY:VALUE; `seen` has a bit per key. */
static esp_status parse_option(piece part, esp_matmul_problem *problem, unsigned *seen,
                               esp_error *error)
{
    static const char *const keys[] = {"x", "y", "a", "o", "c", "ep"};
    char text[48];
    piece_copy(part, text, sizeof text);
    size_t key_length = strcspn(text, ":");
    int key = 0;
    while (key < ESP_COUNT(keys) &&
           !(strlen(keys[key]) == key_length && strncmp(keys[key], text, key_length) == 0)) {
        key++;
    }
    if (key == ESP_COUNT(keys) || text[key_length] != ':') {
        return esp_fail(error, ESP_BAD_ARGUMENT, "problem.bad_option",
                        "problem: option '%s' is not one of x:, y:, a:, o:, c:, ep:; " SHOW, text);
    }
    if ((*seen & 1u << key) != 0) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "problem.repeated_option",
                        "problem: option '%s:' is given twice", keys[key]);
    }
    *seen |= 1u << key;
    piece value = {part.begin + key_length + 1, part.length - key_length - 1};
    switch (key) {
    case 0:
        return parse_layout(value, &problem->x_layout, error);
    case 1:
        return parse_layout(value, &problem->y_layout, error);
    case 2:
        return parse_type(value, "activation type", &problem->act_type, error);
    case 3:
        return parse_type(value, "output type", &problem->out_type, error);
    case 4:
        return parse_compute(value, &problem->compute, error);
    default:
        return parse_epilogue(value, &problem->epilogue, error);
    }
}

static esp_status parse_pattern(piece part, esp_pattern *pattern, esp_error *error)
{
    char text[ESP_PATTERN_TEXT_MAX];
    if (part.length >= sizeof text) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "problem.bad_pattern",
                        "problem: the pattern has %zu characters, more than any pattern; " SHOW,
                        part.length);
    }
    piece_copy(part, text, sizeof text);
    esp_status status = esp_pattern_parse(text, pattern, error);
    return status == ESP_OK ? ESP_OK : esp_fail_within(error, status, "problem");
}

esp_status esp_matmul_problem_parse(const char *text, esp_matmul_problem *problem, esp_error *error)
{
    const char *rest = text;
    if (!piece_is(next_piece(&rest), "matmul")) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "problem.bad_operation",
                        "problem '%.64s' does not begin with 'matmul/'; " SHOW, text);
    }
    esp_matmul_problem made = {0};
    ESP_TRY(parse_pattern(next_piece(&rest), &made.pattern, error));
    ESP_TRY(parse_type(next_piece(&rest), "weight type", &made.weight_type, error));
    ESP_TRY(parse_sizes(next_piece(&rest), &made, error));
    unsigned seen = 0;
    while (rest[-1] == '/') {
        ESP_TRY(parse_option(next_piece(&rest), &made, &seen, error));
    }
    made.act_type = made.act_type != ESP_DTYPE_INVALID ? made.act_type : made.weight_type;
    made.out_type = made.out_type != ESP_DTYPE_INVALID ? made.out_type : made.act_type;
    ESP_TRY(esp_matmul_problem_check(&made, error));
    *problem = made;
    return ESP_OK;
}

static void append(char text[ESP_PROBLEM_TEXT_MAX], const char *prefix, const char *word)
{
    size_t used = strlen(text);
    snprintf(text + used, ESP_PROBLEM_TEXT_MAX - used, "%s%s", prefix, word);
}

void esp_matmul_problem_print(const esp_matmul_problem *problem, char text[ESP_PROBLEM_TEXT_MAX])
{
    char pattern[ESP_PATTERN_TEXT_MAX];
    esp_pattern_print(&problem->pattern, pattern);
    snprintf(text, ESP_PROBLEM_TEXT_MAX, "matmul/%s/%s/%lldx%lldx%lld", pattern,
             esp_dtype_short_name(problem->weight_type), (long long)problem->out_features,
             (long long)problem->in_features, (long long)problem->tokens);
    if (problem->x_layout == ESP_TOKEN_MAJOR) {
        append(text, "/x:", "tok");
    }
    if (problem->y_layout == ESP_TOKEN_MAJOR) {
        append(text, "/y:", "tok");
    }
    if (problem->act_type != problem->weight_type) {
        append(text, "/a:", esp_dtype_short_name(problem->act_type));
    }
    if (problem->out_type != problem->act_type) {
        append(text, "/o:", esp_dtype_short_name(problem->out_type));
    }
    if (problem->compute != ESP_COMPUTE_AUTO) {
        append(text, "/c:", esp_compute_name(problem->compute));
    }
    const char *prefix = "/ep:";
    for (int i = 0; i < ESP_COUNT(epilogue_words); i++) {
        if ((problem->epilogue & epilogue_words[i].bit) != 0) {
            append(text, prefix, epilogue_words[i].word);
            prefix = "+";
        }
    }
}

static esp_status check_types(const esp_matmul_problem *problem, esp_error *error)
{
    if (!esp_dtype_is_weight(problem->weight_type) || !esp_dtype_is_weight(problem->act_type) ||
        !esp_dtype_is_weight(problem->out_type)) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "problem.bad_type",
                        "problem: weight, activation and output types must be f32, f16 or bf16");
    }
    if ((unsigned)problem->compute > ESP_COMPUTE_BF16 ||
        (unsigned)problem->x_layout > ESP_TOKEN_MAJOR ||
        (unsigned)problem->y_layout > ESP_TOKEN_MAJOR) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "problem.bad_option",
                        "problem: compute type or a layout is out of range");
    }
    return ESP_OK;
}

static esp_status check_epilogue(const esp_matmul_problem *problem, esp_error *error)
{
    unsigned activations = problem->epilogue & ACTIVATIONS;
    if ((activations & (activations - 1)) != 0 || problem->epilogue >= ESP_EP_RESIDUAL << 1) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "problem.bad_epilogue",
                        "problem: an epilogue has at most one of relu, gelu, gelu_tanh, silu, "
                        "swiglu; " SHOW);
    }
    if ((activations & ESP_EP_SWIGLU) != 0 && problem->out_features % 2 != 0) {
        return esp_fail(error, ESP_BAD_ARGUMENT, "problem.odd_swiglu",
                        "problem: swiglu joins pairs of rows, but out is %lld; give an even out",
                        (long long)problem->out_features);
    }
    return ESP_OK;
}

/* Each operand, in f32, must fit an address space. */
static bool operands_fit(const esp_matmul_problem *problem)
{
    int64_t elems;
    int64_t most = INT64_MAX / 16;
    return esp_mul_i64(problem->out_features, problem->in_features, &elems) && elems <= most &&
           esp_mul_i64(problem->tokens, problem->in_features, &elems) && elems <= most &&
           esp_mul_i64(problem->out_features, problem->tokens, &elems) && elems <= most;
}

esp_status esp_matmul_problem_check(const esp_matmul_problem *problem, esp_error *error)
{
    esp_status status = esp_pattern_check(&problem->pattern, error);
    if (status != ESP_OK) {
        return esp_fail_within(error, status, "problem");
    }
    ESP_TRY(check_types(problem, error));
    const int64_t sizes[] = {problem->out_features, problem->in_features, problem->tokens};
    static const char *const names[] = {"out", "in", "tokens"};
    for (int i = 0; i < 3; i++) {
        int64_t most = i < 2 ? MAX_FEATURES : MAX_TOKENS;
        if (sizes[i] < 1 || sizes[i] > most) {
            return esp_fail(error, ESP_BAD_ARGUMENT, "problem.bad_sizes",
                            "problem: %s is %lld; it must be 1..%lld", names[i],
                            (long long)sizes[i], (long long)most);
        }
    }
    if (!operands_fit(problem)) {
        return esp_fail(error, ESP_OUT_OF_MEMORY, "problem.too_large",
                        "problem: an operand of %lldx%lldx%lld does not fit an address space",
                        (long long)sizes[0], (long long)sizes[1], (long long)sizes[2]);
    }
    return check_epilogue(problem, error);
}
