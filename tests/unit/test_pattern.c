/* Pattern strings: every right form round-trips, every wrong one has its code and shows a right
 * one. */
#include <espalier/pattern.h>
#include <locale.h>
#include <stdio.h>
#include <string.h>

#include "base/base.h"
#include "test.h"

static void right_strings(test_run *run)
{
    static const struct {
        const char *text;
        esp_pattern pattern;
    } rows[] = {
        {"dense", {.kind = ESP_PATTERN_DENSE}},
        {"2:4", {.kind = ESP_PATTERN_PANEL}},
        {"4:8", {.kind = ESP_PATTERN_NM, .keep = 4, .group = 8}},
        {"1:2", {.kind = ESP_PATTERN_NM, .keep = 1, .group = 2}},
        {"65535:65536", {.kind = ESP_PATTERN_NM, .keep = 65535, .group = 65536}},
        {"64:2:8", {.kind = ESP_PATTERN_PANEL, .v = 64, .m = 8}},
        {"1:2:5", {.kind = ESP_PATTERN_PANEL, .v = 1, .m = 5}},
        {"1048576:2:1024", {.kind = ESP_PATTERN_PANEL, .v = 1048576, .m = 1024}},
        {"panel:64@0.75", {.kind = ESP_PATTERN_PANEL, .v = 64, .sparsity = 0.75}},
        {"panel:1@0.5", {.kind = ESP_PATTERN_PANEL, .v = 1, .sparsity = 0.5}},
        {"block:32x32@0.8",
         {.kind = ESP_PATTERN_BLOCK, .block_rows = 32, .block_cols = 32, .sparsity = 0.8}},
        {"unstructured@0.9", {.kind = ESP_PATTERN_UNSTRUCTURED, .sparsity = 0.9}},
        {"rows@0.5", {.kind = ESP_PATTERN_ROWS, .sparsity = 0.5}},
        {"cols@1e-05", {.kind = ESP_PATTERN_COLS, .sparsity = 1e-05}},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s", rows[i].text);
        esp_pattern pattern = {0};
        char text[ESP_PATTERN_TEXT_MAX];
        CHECK_OK(esp_pattern_parse(rows[i].text, &pattern, error));
        CHECK(memcmp(&pattern, &rows[i].pattern, sizeof pattern) == 0);
        CHECK_OK(esp_pattern_check(&pattern, error));
        esp_pattern_print(&pattern, text);
        CHECK_TEXT(text, rows[i].text);
        for (int j = 0; j < ESP_COUNT(rows); j++) {
            CHECK(esp_pattern_equal(&rows[i].pattern, &rows[j].pattern) == (i == j));
        }
    }
}

/* `shows`: what the message must contain, besides the string itself. */
static void wrong_strings(test_run *run)
{
    static const struct {
        const char *text, *code, *shows;
    } rows[] = {
        {"", "pattern.empty", "64:2:8"},
        {" ", "pattern.whitespace", "2:4"},
        {"2:4 ", "pattern.whitespace", "no blanks"},
        {"2: 4", "pattern.whitespace", "no blanks"},
        {"2:4\n", "pattern.whitespace", "no blanks"},
        {"64", "pattern.incomplete", "2:4"},
        {"2.4", "pattern.unexpected_character", "':'"},
        {"2-4", "pattern.unexpected_character", "':'"},
        {"2x4", "pattern.unexpected_character", "':'"},
        {":4", "pattern.missing_number", "first number"},
        {"2:", "pattern.missing_number", "second number"},
        {"2:4:", "pattern.missing_number", "third number"},
        {"2::4", "pattern.missing_number", "second number"},
        {"-2:4", "pattern.bad_number", "without a sign"},
        {"+2:4", "pattern.bad_number", "without a sign"},
        {"2:-4", "pattern.bad_number", "second number"},
        {"2:four", "pattern.bad_number", "second number"},
        {"02:4", "pattern.leading_zero", "first number"},
        {"2:04", "pattern.leading_zero", "second number"},
        {"64:2:08", "pattern.leading_zero", "third number"},
        {"99999999999999999999:4", "pattern.number_too_large", "first number"},
        {"2:18446744073709551620", "pattern.number_too_large", "second number"},
        {"64:2:1000000000001", "pattern.number_too_large", "third number"},
        {"2:4x", "pattern.trailing", "\"x\""},
        {"2:4@0.5", "pattern.trailing", "@0.5"},
        {"64:2:8x", "pattern.trailing", "64:2:8"},
        {"dense:4", "pattern.trailing", "write dense"},
        {"dense@0.5", "pattern.trailing", "write dense"},
        {"1:2:3:4", "pattern.too_many_parts", "three numbers"},
        {"64:2:8:", "pattern.too_many_parts", "three numbers"},
        {"64:3:8", "pattern.n_not_2", "write 64:2:8"},
        {"64:1:8", "pattern.n_not_2", "write 64:2:8"},
        {"0:4", "pattern.keep_too_small", "1:4"},
        {"0:0", "pattern.keep_too_small", "1:4"},
        {"4:2", "pattern.keep_not_below_group", "write 2:4"},
        {"4:4", "pattern.keep_not_below_group", "write dense"},
        {"3:0", "pattern.keep_not_below_group", "write 2:4"},
        {"1:65537", "pattern.group_too_large", "65536"},
        {"0:2:8", "pattern.v_too_small", "V"},
        {"panel:0@0.75", "pattern.v_too_small", "V"},
        {"1048577:2:8", "pattern.v_too_large", "1048576"},
        {"panel:1048577@0.75", "pattern.v_too_large", "1048576"},
        {"64:2:4", "pattern.m_too_small", "2:4"},
        {"64:2:0", "pattern.m_too_small", "M"},
        {"64:2:1025", "pattern.m_too_large", "1024"},
        {"dens", "pattern.unknown_word", "dense"},
        {"panels:64@0.75", "pattern.unknown_word", "panel:64@0.75"},
        {"sparse", "pattern.unknown_word", "unstructured@0.9"},
        {"Dense", "pattern.wrong_case", "write dense"},
        {"PANEL:64@0.75", "pattern.wrong_case", "panel:64@0.75"},
        {"panel", "pattern.missing_number", "V"},
        {"panel@0.5", "pattern.missing_number", "V"},
        {"panel:64", "pattern.missing_sparsity", "panel:64@0.75"},
        {"panel:64@", "pattern.missing_sparsity", "panel:64@0.75"},
        {"panel:x@0.75", "pattern.missing_number", "V"},
        {"panel:y@0.75", "pattern.bad_number", "V"},
        {"panel:64x0.75", "pattern.missing_sparsity", "panel:64@0.75"},
        {"panel:64@1.2", "pattern.sparsity_out_of_range", "below 1"},
        {"panel:64@0.49", "pattern.sparsity_out_of_range", "at least 0.5"},
        {"panel:64@1", "pattern.sparsity_out_of_range", "below 1"},
        {"panel:64@75%", "pattern.bad_sparsity", "75%"},
        {"panel:64@0,75", "pattern.bad_sparsity", "0,75"},
        {"panel:64@.75", "pattern.bad_sparsity", "0.75"},
        {"panel:64@0.75:1", "pattern.bad_sparsity", "0.75:1"},
        {"panel:64@nan", "pattern.bad_sparsity", "nan"},
        {"panel:64@inf", "pattern.bad_sparsity", "inf"},
        {"panel:64@0x1p-1", "pattern.bad_sparsity", "0x1p-1"},
        {"panel:64@-0.75", "pattern.bad_sparsity", "-0.75"},
        {"panel:64@00.75", "pattern.bad_sparsity", "00.75"},
        {"panel:64@0.", "pattern.bad_sparsity", "0."},
        {"panel:64@1e", "pattern.bad_sparsity", "1e"},
        {"block@0.8", "pattern.missing_number", "rows of a block"},
        {"block:32@0.8", "pattern.missing_number", "columns of a block"},
        {"block:32x32", "pattern.missing_sparsity", "block:32x32@0.8"},
        {"block:0x32@0.8", "pattern.block_too_small", "block:32x32@0.8"},
        {"block:32x65537@0.8", "pattern.block_too_large", "65536"},
        {"block:32x32@0", "pattern.sparsity_out_of_range", "above 0"},
        {"unstructured", "pattern.missing_sparsity", "unstructured@0.9"},
        {"unstructured@1e400", "pattern.sparsity_out_of_range", "below 1"},
        {"rows:0.5", "pattern.missing_sparsity", "rows@0.5"},
        {"cols@1", "pattern.sparsity_out_of_range", "below 1"},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "\"%s\"", rows[i].text);
        esp_pattern pattern = {.kind = ESP_PATTERN_ROWS, .sparsity = 0.25}, before = pattern;
        esp_error error = {0};
        esp_status status = esp_pattern_parse(rows[i].text, &pattern, &error);
        test_check_failure(run, __FILE__, __LINE__, "parse", status, &error, ESP_BAD_ARGUMENT,
                           rows[i].code);
        CHECK(memcmp(&pattern, &before, sizeof pattern) == 0);
        if (strstr(error.message, rows[i].shows) == NULL ||
            strncmp(error.message, rows[i].text[0] != '\0' ? "pattern \"" : "the pattern", 9) !=
                0) {
            test_fail(run, __FILE__, __LINE__, "the message does not say \"%s\": %s", rows[i].shows,
                      error.message);
        }
    }
}

static void long_strings_stay_one_line(test_run *run)
{
    static char text[100000];
    memset(text, '7', sizeof text - 1);
    esp_pattern pattern;
    CHECK_FAILS(esp_pattern_parse(text, &pattern, error), ESP_BAD_ARGUMENT,
                "pattern.number_too_large");
    memset(text, 'd', sizeof text - 1);
    CHECK_FAILS(esp_pattern_parse(text, &pattern, error), ESP_BAD_ARGUMENT, "pattern.unknown_word");
    memcpy(text, "rows@0.", 7);
    memset(text + 7, '1', sizeof text - 8);
    CHECK_OK(esp_pattern_parse(text, &pattern, error));
    CHECK(pattern.sparsity > 0.11 && pattern.sparsity < 0.12);
    CHECK_FAILS(esp_pattern_parse("\x1b[2J\xff", &pattern, error), ESP_BAD_ARGUMENT,
                "pattern.bad_number");
}

static void wrong_structs(test_run *run)
{
    static const struct {
        const char *code;
        esp_pattern pattern;
    } rows[] = {
        {"pattern.bad_kind", {.kind = (esp_pattern_kind)77}},
        {"pattern.not_canonical", {.kind = ESP_PATTERN_NM, .keep = 2, .group = 4}},
        {"pattern.keep_too_small", {.kind = ESP_PATTERN_NM, .keep = -1, .group = 4}},
        {"pattern.keep_not_below_group", {.kind = ESP_PATTERN_NM, .keep = 5, .group = 4}},
        {"pattern.v_too_small", {.kind = ESP_PATTERN_PANEL, .v = -1, .m = 8}},
        {"pattern.v_too_small", {.kind = ESP_PATTERN_PANEL, .v = 0, .m = 8}},
        {"pattern.m_too_small", {.kind = ESP_PATTERN_PANEL, .v = 8, .m = -8}},
        {"pattern.sparsity_out_of_range", {.kind = ESP_PATTERN_PANEL, .v = 8}},
        {"pattern.block_too_small", {.kind = ESP_PATTERN_BLOCK, .sparsity = 0.5}},
        {"pattern.sparsity_out_of_range", {.kind = ESP_PATTERN_ROWS, .sparsity = -0.5}},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s %d", rows[i].code, i);
        CHECK_FAILS(esp_pattern_check(&rows[i].pattern, error), ESP_BAD_ARGUMENT, rows[i].code);
    }
}

static void random_fractions_round_trip(test_run *run)
{
    esp_random random;
    esp_random_seed(&random, test_seed(run));
    for (int i = 0; i < 2000; i++) {
        esp_pattern pattern = {.kind = ESP_PATTERN_BLOCK,
                               .block_rows = 65536,
                               .block_cols = 65536,
                               .sparsity = esp_random_uniform(&random)};
        for (uint64_t k = esp_random_below(&random, 300); i % 4 == 0 && k > 0; k--) {
            pattern.sparsity /= 10;
        }
        if (pattern.sparsity <= 0) {
            continue;
        }
        char text[ESP_PATTERN_TEXT_MAX];
        esp_pattern parsed = {0};
        esp_pattern_print(&pattern, text);
        CHECK_OK(esp_pattern_parse(text, &parsed, error));
        CHECK(parsed.sparsity == pattern.sparsity);
        CHECK(esp_pattern_equal(&parsed, &pattern));
    }
}

/* A program under a locale with a decimal comma reads and writes the same strings. */
static void locale_does_not_matter(test_run *run)
{
    static const char *const names[] = {"de_DE.UTF-8", "fr_FR.UTF-8", "de_DE", "C.UTF-8"};
    const char *set = NULL;
    for (int i = 0; i < ESP_COUNT(names) && set == NULL; i++) {
        set = setlocale(LC_NUMERIC, names[i]);
    }
    esp_pattern pattern = {0};
    char text[ESP_PATTERN_TEXT_MAX];
    CHECK_OK(esp_pattern_parse("panel:64@0.75", &pattern, error));
    CHECK(pattern.sparsity == 0.75);
    esp_pattern_print(&pattern, text);
    CHECK_TEXT(text, "panel:64@0.75");
    setlocale(LC_NUMERIC, "C");
}

static void kept_columns(test_run *run)
{
    static const struct {
        const char *pattern;
        int64_t in, kept;
    } rows[] = {
        {"dense", 8, -1},
        {"2:4", 0, 0},
        {"2:4", 1, 4},
        {"2:4", 4096, 4096},
        {"2:4", 4098, 4100},
        {"4:8", 16, 8},
        {"4:8", 19, 11},
        {"4:8", 23, 12},
        {"1:16", 17, 2},
        {"64:2:8", 4096, 2048},
        {"64:2:8", 4097, 2052},
        {"64:2:5", 4096, 3280},
        {"64:2:8", 3, 4},
        {"64:2:8", 70001, 35004},
        {"panel:64@0.5", 16, 16},
        {"panel:64@0.5", 18, 20},
        {"panel:64@0.5", 17, 16},
        {"panel:64@0.75", 4096, 2048},
        {"panel:64@0.99", 16, 4},
        {"panel:64@0.75", 1, 4},
        {"panel:64@0.9", 384, 76},
    };
    for (int i = 0; i < ESP_COUNT(rows); i++) {
        test_sub(run, "%s of %lld", rows[i].pattern, (long long)rows[i].in);
        esp_pattern pattern = {0};
        CHECK_OK(esp_pattern_parse(rows[i].pattern, &pattern, error));
        CHECK_INT(esp_pattern_kept(&pattern, rows[i].in), rows[i].kept);
    }
    esp_pattern panel = {.kind = ESP_PATTERN_PANEL, .v = 64, .m = 8};
    esp_pattern two_four = {.kind = ESP_PATTERN_PANEL};
    CHECK_INT(esp_pattern_panel_rows(&panel, 1000), 64);
    CHECK_INT(esp_pattern_panel_rows(&panel, 10), 10);
    CHECK_INT(esp_pattern_panel_rows(&panel, 0), 1);
    CHECK_INT(esp_pattern_panel_rows(&two_four, 1000), 0);
    CHECK(esp_pattern_is_2_4(&two_four));
    CHECK(!esp_pattern_is_2_4(&panel));
}

static const test_case cases[] = {
    {"right strings", right_strings},
    {"wrong strings", wrong_strings},
    {"long strings stay one line", long_strings_stay_one_line},
    {"wrong structs", wrong_structs},
    {"random fractions round trip", random_fractions_round_trip},
    {"the locale does not matter", locale_does_not_matter},
    {"kept columns", kept_columns},
};
TEST_MAIN(cases)
